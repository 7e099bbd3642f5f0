"""What holds for the preview of every list of operations: no byte is read for it, and the real run does as it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migrate_ckpt.changes import Change, apply_changes
from migrate_ckpt.files import inspect_file, migrate_file, plan_file
from migrate_ckpt.folder import MigrationSet, read_folder
from migrate_ckpt.formats import open_container
from migrate_ckpt.formats.outline_tensors import OutlineTensors
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.loader import load_migrations
from migrate_ckpt.outline import OutlineEntry
from migrate_ckpt.plan import Plan
from migrate_ckpt.preview import OfContainer, preview_plan

ELEMENTS = 1 << 18

# As they would stand in a file; each may or may not fit what those before it left.
OPERATIONS = (
    'strip_prefix("model")',
    'add_prefix("net")',
    'rename("head.weight", "classifier.weight")',
    'rename({"layers.0.norm": "layers.1.norm", "layers.1.norm": "layers.0.norm"})',
    'rename("layers.{i}.norm", "blocks.{i}.norm")',
    'split("layers.{i}.qkv", ["layers.{i}.q", "layers.{i}.k", "layers.{i}.v"])',
    'concat(["layers.{i}.q", "layers.{i}.k", "layers.{i}.v"], "layers.{i}.qkv")',
    'drop("layers.{i}.qkv")',
    'add("new", 0.0, shape=[2, 3])',
    'cast("float16")',
    'cast("float64", keys="layers.{i}.norm")',
)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = {
        **{f"model.layers.{i}.qkv": torch.randn(ELEMENTS * 3 // 64, 64) for i in range(2)},
        **{f"model.layers.{i}.norm": torch.ones(8) for i in range(2)},
        "model.head.weight": torch.ones(4, 2),
    }
    weights["model.tied"] = weights["model.head.weight"]
    path = tmp_path_factory.mktemp("laws") / "old.ckpt"
    torch.save({"state_dict": weights, "epoch": 3}, path)
    return path


def write_set(folder: Path, operations: list[str]) -> MigrationSet:
    for number, operation in enumerate(operations):
        verb = operation.partition("(")[0]
        text = f'"""X."""\nfrom migrate_ckpt.operations import {verb}\noperations = [{operation}]\n'
        (folder / f"{number:04}_x.py").write_text(text)
    return read_folder(folder)


@pytest.fixture
def new_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    return lambda: tmp_path_factory.mktemp("set")


def changes_of(plan: Plan) -> list[Any]:
    """The changes of each step without what tells one run's tensors from another's; of a failure its message."""
    told: list[Any] = []
    for step in plan.steps:
        assert step.preview is not None
        if step.preview.changes is None:
            told.append(step.preview.error and step.preview.error["message"])
        else:
            told.append([plain(change) for change in step.preview.changes])
    return told


def plain(change: Change) -> Change:
    before, after = change.before, change.after
    return Change(change.kind, before and anonymous(before), after and anonymous(after))


def anonymous(entry: OutlineEntry) -> OutlineEntry:
    return replace(entry, content=None)


# Most of them fit only once the prefix is gone.
LISTS = st.lists(st.sampled_from(OPERATIONS), max_size=3).map(lambda rest: [OPERATIONS[0], *rest])


@given(operations=LISTS)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_real_run_does_what_the_preview_without_bytes_said(
    old: Path, new_folder: Callable[[], Path], operations: list[str]
) -> None:
    folder = new_folder()
    migrations = write_set(folder, operations)
    as_functions = [replace(m, operations=None) for m in load_migrations(migrations)]

    planned = plan_file(old, migrations, with_changes=True)

    with FileSource(old) as source:
        # Without their declaration they are run on the mapped file.
        real = preview_plan(
            OfContainer(open_container(source)), plan_file(old, migrations), as_functions
        )
    told, ran = changes_of(planned), changes_of(real)
    assert [isinstance(step, list) for step in told] == [isinstance(step, list) for step in ran]
    assert [s for s in told if isinstance(s, list)] == [s for s in ran if isinstance(s, list)]
    if planned.failing is None:
        migrate_file(old, folder / "new.ckpt", folder=migrations)
        assert apply_all(old, told) == set(entries_of(folder / "new.ckpt"))


def apply_all(old: Path, steps: list[list[Change]]) -> set[OutlineEntry]:
    entries = set(entries_of(old))
    for changes in steps:
        entries = apply_changes(list(entries), changes)
    return entries


def entries_of(path: Path) -> Iterator[OutlineEntry]:
    for entry in inspect_file(path).entries:
        if not entry.path[0].startswith("_migrate-ckpt"):
            yield entry


class CountingSource(FileSource):
    """Remembers which ranges were read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.ranges: list[tuple[int, int]] = []

    def read(self, offset: int, count: int) -> bytes:
        self.ranges.append((offset, offset + count))
        return super().read(offset, count)


def test_declared_operations_are_previewed_without_reading_a_tensor(
    old: Path, new_folder: Callable[[], Path]
) -> None:
    operations = [OPERATIONS[i] for i in (0, 3, 5, 10, 9)]
    migrations = write_set(new_folder(), operations)

    with CountingSource(old) as source:
        container = open_container(source)
        container.read(OutlineTensors(container))
        # The directory, the pickle, and what stands around them.
        metadata = set(source.ranges)
        planned = preview_plan(
            OfContainer(container), plan_file(old, migrations), load_migrations(migrations)
        )

        assert planned.failing is None
        assert len(changes_of(planned)[4]) == 10
        assert set(source.ranges) == metadata
        assert "mapped" not in vars(container)
        assert sum(end - start for start, end in metadata) < source.size / 10


def test_a_function_is_previewed_on_the_mapped_file(
    old: Path, new_folder: Callable[[], Path]
) -> None:
    folder = new_folder()
    look = 'assert ckpt["state_dict"]["model.head.weight"].sum() == 8'
    text = f'"""X."""\ndef handle(ckpt):\n    {look}\n    return ckpt\n'
    (folder / "0001_x.py").write_text(text)
    migrations = read_folder(folder)

    with CountingSource(old) as source:
        container = open_container(source)
        planned = preview_plan(
            OfContainer(container), plan_file(old, migrations), load_migrations(migrations)
        )

        assert planned.failing is None
        assert "mapped" in vars(container)
