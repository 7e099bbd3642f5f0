"""Checkpoints of other people's training through curl and through the library, each as its kind demands."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from migrate_ckpt import (
    ForeignObject,
    UnreadableCheckpoint,
    inspect_file,
    migrate_file,
    read_checkpoint,
)
from migrate_ckpt.file_run import read_tensors
from migrate_ckpt.formats import open_container
from migrate_ckpt.formats.source import FileSource
from tests.acceptance.conftest import Service, running_service
from tests.acceptance.real_files import (
    NO_MAPPINGS,
    PROGRAMS,
    STATE_DICTS,
    Real,
    fetched,
    path_of,
)

pytestmark = pytest.mark.acceptance

RENAME = '''
"""Put every weight below `renamed.`."""

SECTION = {keys!r}


def handle(ckpt):
    weights = ckpt
    for key in SECTION:
        weights = weights[key]
    for key in list(weights):
        weights["renamed." + key] = weights.pop(key)
    return ckpt
'''

WRAP = '''
"""Put what is no mapping into one."""


def handle(ckpt):
    return {"found": ckpt}
'''


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One with a set for each place where a state dict may be, and nothing in the default one."""
    folder = tmp_path_factory.mktemp("service")
    codes = {set_of(real): RENAME.format(keys=real.keys) for real in STATE_DICTS.values()}
    for name, code in {**codes, "wrap": WRAP}.items():
        (folder / "migrations" / name).mkdir(parents=True)
        (folder / "migrations" / name / "0001_change.py").write_text(code.lstrip())
    with running_service(folder) as running:
        yield running


def set_of(real: Real) -> str:
    return "-".join(real.keys) or "flat"


def post(service: Service, old: Path, set_name: str, new: Path) -> tuple[int, dict[str, Any]]:
    """The status, and the report or the problem; the answer itself is in the new file."""
    written = "%{http_code} %header{migration-report}"
    url = f"{service.url}/migrate?set={set_name}"
    done = subprocess.run(
        ["curl", "--silent", "-F", f"file=@{old}", url, "-o", new, "-w", written],
        capture_output=True,
        text=True,
        check=True,
    )
    status, _, report = done.stdout.partition(" ")
    return int(status), json.loads(report or new.read_text())


def migrate(old: Path, new: Path, service: Service, set_name: str) -> None:
    """By the service and by the library, which give the same bytes."""
    status, report = post(service, old, set_name, new)
    assert (status, report.get("ran")) == (200, ["0001_change"]), report
    library = new.with_name("library.ckpt")
    folder = service.log.parent / "migrations"
    migrate_file(old, library, folder=folder, set_name=set_name)
    assert (
        hashlib.sha256(new.read_bytes()).digest() == hashlib.sha256(library.read_bytes()).digest()
    )


@pytest.mark.parametrize("real", STATE_DICTS.values(), ids=STATE_DICTS.keys())
def test_a_real_checkpoint_comes_back_renamed_and_otherwise_bit_for_bit_the_same(
    real: Real, service: Service, tmp_path: Path
) -> None:
    old, new = fetched(real), tmp_path / "new.ckpt"

    migrate(old, new, service, set_of(real))

    assert inspect_file(old).format == real.format
    before, after = read_checkpoint(old), read_checkpoint(new)
    weights = dict(leaves(section_of(before, real)))
    assert weights
    assert dict(leaves(section_of(after, real))).keys() - {("_migrate-ckpt",)} >= {
        ("renamed." + k[0], *k[1:]) for k in weights
    }
    assert [bits(leaf) for _, leaf in leaves(before)] == [
        bits(leaf) for path, leaf in leaves(after) if not path[0].startswith("_migrate-ckpt")
    ]
    assert set(inspect_file(old).calls.items()) == set(inspect_file(new).calls.items())


@pytest.mark.parametrize("real", NO_MAPPINGS.values(), ids=NO_MAPPINGS.keys())
def test_what_is_no_mapping_is_made_one_by_a_migration(
    real: Real, service: Service, tmp_path: Path
) -> None:
    old, new = fetched(real), tmp_path / "new.ckpt"

    migrate(old, new, service, "wrap")

    assert inspect_file(old).format == real.format
    with FileSource(old) as source:
        before = [bits(leaf) for _, leaf in leaves(read_tensors(open_container(source)).value)]
    after = [bits(leaf) for _, leaf in leaves(read_checkpoint(new)["found"])]
    assert before == after != []
    assert set(inspect_file(old).calls.items()) == set(inspect_file(new).calls.items())


@pytest.mark.parametrize("real", NO_MAPPINGS.values(), ids=NO_MAPPINGS.keys())
def test_what_is_no_mapping_is_refused_where_no_migration_makes_it_one(
    real: Real, service: Service, tmp_path: Path
) -> None:
    old = fetched(real)

    status, problem = post(service, old, "default", tmp_path / "answer")

    assert status == 422
    assert "not a mapping" in problem["detail"]
    with pytest.raises(UnreadableCheckpoint, match="not a mapping"):
        migrate_file(old, tmp_path / "new.ckpt", folder=service.log.parent / "migrations")


@pytest.mark.parametrize("real", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_a_program_is_refused_by_its_name(real: Real, service: Service, tmp_path: Path) -> None:
    old = fetched(real)

    status, problem = post(service, old, "flat", tmp_path / "answer")

    assert status == 422
    assert "TorchScript" in problem["detail"]
    with pytest.raises(UnreadableCheckpoint, match="TorchScript"):
        read_checkpoint(old)


def test_one_of_them_names_classes_that_weights_only_does_not_know() -> None:
    path = path_of(STATE_DICTS["Lightning, refused by weights_only"])
    if not path.exists():
        pytest.skip("the Lightning checkpoint was not fetched")

    assert "omegaconf.listconfig.ListConfig" in inspect_file(path).globals


def section_of(value: Any, wanted: Real) -> Any:
    for key in wanted.keys:
        value = value[key]
    return value


def leaves(
    value: Any, path: tuple[str, ...] = (), above: frozenset[int] = frozenset()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every tensor and plain value by its path; foreign objects by what they hold, once around a cycle."""
    if id(value) in above:
        return
    above |= {id(value)}
    if isinstance(value, ForeignObject):
        yield from leaves(dict(vars(value)), (*path, "."), above)
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from leaves(child, (*path, str(key)), above)
    elif type(value) in (list, tuple):
        for index, child in enumerate(value):
            yield from leaves(child, (*path, str(index)), above)
    elif not isinstance(value, ForeignObject):
        yield path, value


def bits(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return repr(leaf)
    data = hashlib.sha256(leaf.contiguous().reshape(-1).view(torch.uint8).numpy()).hexdigest()
    layout = (
        leaf.dtype,
        tuple(leaf.shape),
        leaf.stride(),
        leaf.storage_offset(),
        leaf.requires_grad,
    )
    return data, layout, leaf.untyped_storage()._migrate_ckpt_handle.location  # type: ignore[attr-defined]
