"""Folders of torch.distributed.checkpoint, migrated as one checkpoint without their bytes."""

from __future__ import annotations

import argparse
import copy
import io
import os
import pickle
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
)

from migrate_ckpt import (
    MigrationFailed,
    RefusedGlobals,
    TargetExists,
    UnreadableCheckpoint,
    UnwritableCheckpoint,
    inspect_file,
    migrate_file,
    plan_file,
    read_set,
)
from migrate_ckpt.cli import main
from migrate_ckpt.formats.pieces import replace_file
from migrate_ckpt.sharded import distributed_checkpoint, new_set

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

HEAD = (
    "from migrate_ckpt.operations import add, cast, concat, drop, rename, rename_value, split\n\n"
)
RENAME = (
    HEAD + 'operations = [rename("layers.{i}.w", "blocks.{i}.w"), rename_value("lr", "rate")]\n'
)
DATA_FILE = "__0_0.distcp"


@pytest.fixture
def state() -> dict[str, Any]:
    weights = {f"layers.{n}.w": torch.randn(4, 6) for n in range(3)}
    return {"model": weights, "lr": 0.1, "epoch": 3, "more": [1, {"a": torch.ones(2)}]}


@pytest.fixture
def folder(tmp_path: Path, state: dict[str, Any]) -> Path:
    dcp.save(state, checkpoint_id=tmp_path / "old", no_dist=True)
    return tmp_path / "old"


@pytest.fixture
def migrations(tmp_path: Path) -> Callable[..., Path]:
    def write(*texts: str) -> Path:
        folder = tmp_path / "migrations"
        folder.mkdir(exist_ok=True)
        for number, text in enumerate(texts, 1):
            (folder / f"000{number}.py").write_text(text)
        return folder

    return write


def load(folder: Path, **wanted: Any) -> dict[str, Any]:
    """What torch itself loads into a state dict of this form."""
    dcp.load(wanted, checkpoint_id=folder, no_dist=True)
    return wanted


def metadata_of(folder: Path) -> Metadata:
    metadata: Metadata = dcp.FileSystemReader(folder).read_metadata()
    return metadata


def zeros(names: list[str], shape: tuple[int, ...] = (4, 6)) -> dict[str, Any]:
    return {name: torch.zeros(shape) for name in names}


def test_renaming_reads_and_writes_no_tensor(
    folder: Path, state: Any, migrations: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(distributed_checkpoint.DistributedCheckpoint, "_assembled", refuse)
    data = (folder / DATA_FILE).read_bytes()

    report = migrate_file(folder, folder, folder=migrations(RENAME))

    assert report.ran == ("0001",)
    assert (folder / DATA_FILE).read_bytes() == data
    loaded = load(folder, model=zeros([f"blocks.{n}.w" for n in range(3)]), rate=0.0)
    for n in range(3):
        assert torch.equal(loaded["model"][f"blocks.{n}.w"], state["model"][f"layers.{n}.w"])
    assert loaded["rate"] == 0.1


def test_what_is_new_goes_into_one_more_file(
    folder: Path, state: Any, migrations: Any, tmp_path: Path
) -> None:
    text = HEAD + (
        'operations = [concat(["layers.0.w", "layers.1.w"], "fused"), cast("bfloat16", keys="layers.2.w"), '
        'add("new", 2.0, shape=[3])]\n'
    )

    report = migrate_file(folder, tmp_path / "new", folder=migrations(text))

    assert report.target is not None
    assert report.target["shards"] == 2
    [written] = report.target["written"]
    assert (tmp_path / "new" / written).is_file()
    loaded = load(
        tmp_path / "new",
        model={
            "fused": torch.zeros(8, 6),
            "layers.2.w": torch.zeros(4, 6, dtype=torch.bfloat16),
            "new": torch.zeros(3),
        },
        epoch=0,
        more=[0, {"a": torch.zeros(2)}],
    )
    old = state["model"]
    assert torch.equal(loaded["model"]["fused"], torch.cat([old["layers.0.w"], old["layers.1.w"]]))
    assert torch.equal(loaded["model"]["layers.2.w"], old["layers.2.w"].bfloat16())
    assert loaded["model"]["new"].tolist() == [2.0] * 3
    assert (loaded["epoch"], loaded["more"][0], loaded["more"][1]["a"].tolist()) == (3, 1, [1, 1])


def test_history_is_an_item_of_its_own(folder: Path, migrations: Any) -> None:
    migrate_file(folder, folder, folder=migrations(RENAME))

    assert inspect_file(folder).history.names == ("0001",)  # type: ignore[union-attr]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert migrate_file(folder, folder, folder=migrations(RENAME)).ran == ()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_second_run_leaves_no_file_behind_that_nothing_is_left_of(
    folder: Path, migrations: Any
) -> None:
    migrate_file(folder, folder, folder=migrations(RENAME))
    drop = HEAD + 'operations = [rename("blocks.{i}.w", "c.{i}.w")]\n'

    migrate_file(folder, folder, folder=migrations(RENAME, drop))

    used = {info.relative_path for info in metadata_of(folder).storage_data.values()}
    assert {path.name for path in folder.iterdir()} == {".metadata", *used}
    assert len(used) == 2


@pytest.mark.parametrize(
    "text",
    [
        HEAD + 'operations = [cast("float16")]\n',
        "def handle(ckpt):\n    ckpt['n'] = ckpt['model'].pop('0')\n    return ckpt\n",
    ],
    ids=["operation", "function"],
)
def test_more_tensors_than_files_may_be_open(tmp_path: Path, migrations: Any, text: str) -> None:
    weights = {f"{n}": torch.full((2,), float(n)) for n in range(120)}
    dcp.save({"model": weights}, checkpoint_id=tmp_path / "old", no_dist=True)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    here = len(os.listdir("/proc/self/fd")) + 100

    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (here, limits[1]))
        migrate_file(tmp_path / "old", tmp_path / "new", folder=migrations(text))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    wanted = {"119": torch.zeros(2, dtype=torch.float16 if "cast" in text else torch.float32)}
    assert load(tmp_path / "new", model=wanted)["model"]["119"].tolist() == [119, 119]


@pytest.mark.parametrize(
    "handle",
    [
        "    ckpt['model']['layers.1.w'][0, 0] = 7\n",
        "    ckpt['model']['layers.1.w'].numpy()[0, 0] = 7\n",
        "    ckpt['model']['layers.1.w'] = ckpt['model']['layers.1.w'].clone()\n"
        "    ckpt['model']['layers.1.w'][0, 0] = 7\n",
    ],
    ids=["in place", "through numpy", "another"],
)
def test_function_sees_the_tensors_and_what_it_writes_is_kept(
    folder: Path, state: Any, migrations: Any, handle: str
) -> None:
    migrate_file(folder, folder, folder=migrations(f"def handle(ckpt):\n{handle}    return ckpt\n"))

    loaded = load(folder, model=zeros(list(state["model"])))
    state["model"]["layers.1.w"][0, 0] = 7
    assert all(torch.equal(loaded["model"][key], t) for key, t in state["model"].items())
    places = metadata_of(folder).storage_data
    moved = {index.fqn for index, info in places.items() if info.relative_path != DATA_FILE}
    assert {name for name in moved if name.startswith("model.")} == {"model.layers.1.w"}


def test_tensor_under_two_names_is_two_tensors_from_then_on(folder: Path, migrations: Any) -> None:
    twice = "def handle(ckpt):\n    ckpt['twin'] = ckpt['model']['layers.1.w']\n    return ckpt\n"
    change = "def handle(ckpt):\n    ckpt['twin'].fill_(7)\n    return ckpt\n"
    migrate_file(folder, folder, folder=migrations(twice))
    before = load(folder, model=zeros(["layers.1.w"]))["model"]["layers.1.w"]

    migrate_file(folder, folder, folder=migrations(twice, change))

    loaded = load(folder, model=zeros(["layers.1.w"]), twin=torch.zeros(4, 6))
    assert loaded["twin"].eq(7).all()
    assert torch.equal(loaded["model"]["layers.1.w"], before)


def test_values_that_are_no_tensors_are_there_and_may_be_changed(
    folder: Path, migrations: Any
) -> None:
    text = "def handle(ckpt):\n    ckpt['epoch'] += 1\n    ckpt['more'][0] = 'x'\n    return ckpt\n"

    migrate_file(folder, folder, folder=migrations(text))

    loaded = load(folder, epoch=0, more=["", {"a": torch.zeros(2)}])
    assert (loaded["epoch"], loaded["more"][0]) == (4, "x")


def test_plan_with_changes(folder: Path, migrations: Any) -> None:
    plan = plan_file(folder, read_set(migrations(RENAME)), with_changes=True)

    preview = plan.steps[0].preview
    assert preview is not None
    assert preview.counts == {"renamed": 3, "removed": 1, "added": 1}


def test_migration_that_fails_leaves_everything(folder: Path, migrations: Any) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    with pytest.raises(MigrationFailed, match="no key is 'no'"):
        migrate_file(folder, folder, folder=migrations(HEAD + 'operations = [rename("no", "x")]\n'))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    "value",
    [[0.9, 0.99], (0.9, 0.99), [], [[1], [2, (3,)]], ({"a": 1},), [1, {"a": [2, 3]}]],
    ids=repr,
)
def test_list_that_is_new_is_split_where_torch_splits_it(
    folder: Path, migrations: Any, tmp_path: Path, value: Any
) -> None:
    text = f"def handle(ckpt):\n    ckpt['hyper'] = {{'betas': {value!r}}}\n    return ckpt\n"
    migrate_file(folder, folder, folder=migrations(text))

    dcp.save({"hyper": {"betas": value}}, checkpoint_id=tmp_path / "by_torch", no_dist=True)
    expected = metadata_of(tmp_path / "by_torch").planner_data
    made = metadata_of(folder).planner_data
    assert made is not None
    assert {name: path for name, path in made.items() if path[0] == "hyper"} == expected
    wanted = copy.deepcopy(value)
    assert load(folder, hyper={"betas": wanted})["hyper"]["betas"] == value


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            "ckpt['model.layers.0.w'] = ckpt['model']['layers.1.w']",
            "both called 'model.layers.0.w'",
        ),
        ("ckpt['state'] = {5: ckpt['model']['layers.1.w']}", "no text, as 'state.5' is"),
        ("ckpt['state'] = {0: ckpt['model']['layers.1.w']}", "no text, as 'state.0' is"),
        ("ckpt['state'] = {(1, 2): 5}", "no text"),
        ("for _ in range(70): ckpt['model'] = {'m': ckpt['model']}", "deeper than 64"),
        ("ckpt['model']['all'] = ckpt", "nothing that is in itself"),
        ("ckpt['more'] = [1]; ckpt['more'].append(ckpt['more'])", "nothing that is in itself"),
        ("ckpt['eye'] = ckpt['model']['layers.1.w'].to_sparse()", "no sparse tensor, as 'eye' is"),
    ],
    ids=["same name", "number", "zero", "tuple", "deep", "in itself", "list in itself", "sparse"],
)
def test_what_could_not_be_read_again_is_not_written(
    folder: Path, migrations: Any, line: str, reason: str
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    with pytest.raises(UnwritableCheckpoint, match=reason):
        migrate_file(
            folder, folder, folder=migrations(f"def handle(ckpt):\n    {line}\n    return ckpt\n")
        )

    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_another_that_is_there_is_not_replaced(
    folder: Path, migrations: Any, tmp_path: Path
) -> None:
    migrate_file(folder, tmp_path / "new", folder=migrations(RENAME))

    with pytest.raises(TargetExists):
        migrate_file(folder, tmp_path / "new", folder=migrations(RENAME))
    with pytest.raises(UnwritableCheckpoint):
        migrate_file(folder, tmp_path / "x", folder=migrations(RENAME), format="torch")


def test_replaced_by_force_the_other_one_is_whole_until_the_metadata_is_written(
    folder: Path, migrations: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    dcp.save({"model": {"w": torch.full((3,), 5.0)}}, checkpoint_id=other, no_dist=True)

    def killed(target: Path, *args: Any, **options: Any) -> None:
        if target.name == ".metadata":
            raise KeyboardInterrupt
        replace_file(target, *args, **options)

    monkeypatch.setattr(new_set, "replace_file", killed)
    with pytest.raises(KeyboardInterrupt):
        migrate_file(folder, other, folder=migrations(RENAME), force=True)
    monkeypatch.undo()
    assert load(other, model={"w": torch.zeros(3)})["model"]["w"].tolist() == [5.0] * 3

    for _ in range(2):
        migrate_file(folder, other, folder=migrations(RENAME), force=True)
        assert load(other, rate=0.0)["rate"] == 0.1
        used = {info.relative_path for info in metadata_of(other).storage_data.values()}
        assert {path.name for path in other.iterdir()} == {".metadata", *used}


class Marker:
    """What a hostile pickle would call."""

    called = False

    def __reduce__(self) -> Any:
        return Marker.call, ()

    @staticmethod
    def call() -> None:
        Marker.called = True


def edited(folder: Path, edit: Callable[[Metadata], object]) -> None:
    metadata = metadata_of(folder)
    made = edit(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata if made is None else made))


def _info(metadata: Metadata) -> Any:
    return next(iter(metadata.storage_data.values()))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda m: setattr(_info(m), "relative_path", "../secret"), "not beside it"),
        (lambda m: setattr(_info(m), "relative_path", "/etc/passwd"), "not beside it"),
        (lambda m: setattr(_info(m), "relative_path", "missing"), "not beside it"),
        (lambda m: setattr(_info(m), "length", 1 << 40), "shorter than"),
        (lambda m: setattr(_info(m), "offset", -1), "shorter than"),
        (lambda m: setattr(m, "storage_data", {}), "not where it is"),
        (lambda m: setattr(m, "state_dict_metadata", 3), "not what torch"),
        (lambda m: setattr(_info(m), "transform_descriptors", [1]), "transformed"),
        (lambda m: Marker(), "there is no"),
        (lambda m: {"a": 1}, "there is no"),
    ],
)
def test_hostile_metadata_is_refused_and_nothing_called(
    folder: Path, edit: Callable[[Metadata], object], reason: str
) -> None:
    edited(folder, edit)

    with pytest.raises(UnreadableCheckpoint, match=reason):
        inspect_file(folder)
    assert not Marker.called


def value_instead(metadata: Metadata) -> None:
    metadata.state_dict_metadata["model.layers.0.w"] = BytesStorageMetadata()


def below(name: str) -> Callable[[Metadata], None]:
    def edit(metadata: Metadata) -> None:
        assert metadata.planner_data is not None
        path = metadata.planner_data[name]
        metadata.planner_data["epoch"] = (*path, "x", "y")

    return edit


def huge_and_empty(metadata: Metadata) -> None:
    entry: Any = metadata.state_dict_metadata["model.layers.0.w"]
    # torch.Size refuses what is no size by itself.
    entry.size = entry.chunks[0].sizes = (1 << 70, 0)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (value_instead, "says that it is none"),
        (below("model.layers.0.w"), "through a value"),
        (below("lr"), "through a value"),
        (huge_and_empty, "do not make the tensor"),
    ],
    ids=["tensor as value", "below a tensor", "below a value", "huge and empty"],
)
def test_metadata_that_contradicts_the_values_is_refused(
    folder: Path, edit: Callable[[Metadata], object], reason: str
) -> None:
    edited(folder, edit)

    with pytest.raises(UnreadableCheckpoint, match=reason):
        inspect_file(folder)


def test_first_tensor_is_added(tmp_path: Path, migrations: Any) -> None:
    dcp.save({"model": {"lr": 0.1}}, checkpoint_id=tmp_path / "old", no_dist=True)
    text = "def handle(ckpt):\n    import torch\n    ckpt['t'] = torch.arange(3)\n    return ckpt\n"

    migrate_file(tmp_path / "old", tmp_path / "old", folder=migrations(text))

    assert load(tmp_path / "old", t=torch.zeros(3, dtype=torch.int64))["t"].tolist() == [0, 1, 2]
    by_torch = TensorProperties(dtype=torch.int64)
    assert metadata_of(tmp_path / "old").state_dict_metadata["t"].properties == by_torch  # type: ignore[union-attr]


def test_list_of_allowed_globals_is_for_the_metadata_and_for_every_part(
    tmp_path: Path, folder: Path, migrations: Any
) -> None:
    named = read_set(migrations(RENAME))
    assert plan_file(folder, named, allowed_globals=()).to_run == ("0001",)
    dcp.save({"args": argparse.Namespace(a=1)}, checkpoint_id=tmp_path / "other", no_dist=True)

    with pytest.raises(RefusedGlobals, match=r"argparse\.Namespace"):
        plan_file(tmp_path / "other", named, allowed_globals=())
    edited(folder, lambda m: setattr(m, "planner_data", {"x": Marker()}))
    with pytest.raises(RefusedGlobals, match="Marker"):
        plan_file(folder, named, allowed_globals=())
    assert not Marker.called


def test_shape_that_the_parts_do_not_make_is_refused(folder: Path) -> None:
    def edit(metadata: Metadata) -> None:
        metadata.state_dict_metadata["model.layers.0.w"].size = torch.Size([1 << 40, 6])  # type: ignore[union-attr]

    edited(folder, edit)

    with pytest.raises(UnreadableCheckpoint, match="do not make the tensor"):
        inspect_file(folder)


def chunked(folder: Path, *boxes: tuple[list[int], list[int]]) -> None:
    """A checkpoint of one tensor of 4 x 4 ones, whose parts are said to be these."""
    dcp.save({"w": torch.ones(4, 4)}, checkpoint_id=folder, no_dist=True)

    def edit(metadata: Metadata) -> None:
        [info] = metadata.storage_data.values()
        data = b""
        metadata.storage_data.clear()
        chunks = []
        for start, size in boxes:
            part = io.BytesIO()
            torch.save(torch.ones(size), part)
            place = replace(info, offset=len(data), length=len(part.getvalue()))
            data += part.getvalue()
            metadata.storage_data[MetadataIndex("w", torch.Size(start))] = place
            chunks.append(ChunkStorageMetadata(torch.Size(start), torch.Size(size)))
        metadata.state_dict_metadata["w"].chunks = chunks  # type: ignore[union-attr]
        (folder / info.relative_path).write_bytes(data)

    edited(folder, edit)


def test_parts_that_overlap_and_leave_a_gap_are_refused(tmp_path: Path) -> None:
    chunked(tmp_path / "old", ([0, 0], [3, 4]), ([2, 0], [1, 4]))

    with pytest.raises(UnreadableCheckpoint, match="do not make the tensor"):
        inspect_file(tmp_path / "old")


@pytest.mark.parametrize(
    "boxes",
    [
        [([0, 0], [3, 4]), ([3, 0], [1, 4])],
        [([0, 2], [4, 2]), ([0, 0], [4, 2])],
        [([r, c], [2, 2]) for r in (0, 2) for c in (0, 2)],
        [([0, 0], [1, 3]), ([0, 3], [3, 1]), ([1, 0], [3, 1]), ([3, 1], [1, 3]), ([1, 1], [2, 2])],
        [([0, 0], [4, 4]), ([4, 0], [0, 4])],
    ],
    ids=["rows", "columns", "squares", "around one", "empty"],
)
def test_parts_that_fill_a_tensor_are_put_together(
    tmp_path: Path, migrations: Any, boxes: Any
) -> None:
    chunked(tmp_path / "old", *boxes)
    text = HEAD + 'operations = [cast("float64")]\n'

    migrate_file(tmp_path / "old", tmp_path / "new", folder=migrations(text))

    wanted = torch.zeros(4, 4, dtype=torch.float64)
    assert load(tmp_path / "new", w=wanted)["w"].eq(1).all()


def test_command(
    folder: Path,
    migrations: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    migrations(RENAME)

    assert main(["inspect", "old"]) == 0
    assert "model / layers.0.w: float32 [4, 6]" in capsys.readouterr().out
    assert main(["plan", "old"]) == 1
    assert main(["run", "old", "-o", "new"]) == 0
    assert main(["run", ".", "--output-dir", "all"]) == 0
    assert (tmp_path / "all" / "old" / ".metadata").is_file()
    assert main(["run", "old", "--in-place"]) == 0
