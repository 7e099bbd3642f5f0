"""Sharded checkpoints in a tar: migrated where they lie in it, into another tar."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from migrate_ckpt import (
    BytesNeeded,
    UnreadableCheckpoint,
    UnwritableCheckpoint,
    inspect_file,
    migrate_file,
    plan_file,
    read_set,
    run_file,
)
from migrate_ckpt.formats.pieces import Range
from tests.migrate_ckpt.sharded.test_sharded_run import FUSE, RENAME_LAST, Model, load

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture(params=["safetensors", "bin"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    model = Model(tmp_path / "model", request.param)
    (model.folder / "config.json").write_text('{"hidden": 8}')
    return model


def packed(folder: Path, prefix: str = "model") -> Path:
    path = folder.with_suffix(".tar")
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, f"{prefix}/{file.name}" if prefix else file.name)
    return path


def unpacked(path: Path) -> Path:
    with tarfile.open(path) as tar:
        tar.extractall(path.with_suffix(""), filter="data")
    return path.with_suffix("")


def migrations(tmp_path: Path, text: str) -> Path:
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001.py").write_text(text)
    return tmp_path / "migrations"


@pytest.mark.parametrize("text", [RENAME_LAST, FUSE], ids=["rename", "join"])
def test_is_migrated_as_the_folder_is(model: Model, tmp_path: Path, text: str) -> None:
    folder = migrations(tmp_path, text)
    tar = packed(model.folder)
    (model.folder / "config.json").unlink()
    migrate_file(model.folder, tmp_path / "by_folder", folder=folder)

    report = migrate_file(tar, tmp_path / "new.tar", folder=folder)

    made = unpacked(tmp_path / "new.tar") / "model"
    assert (made / "config.json").read_text() == '{"hidden": 8}'
    (made / "config.json").unlink()
    for path in (tmp_path / "by_folder").iterdir():
        assert (made / path.name).read_bytes() == path.read_bytes()
    assert len(load(made)) in (5, 6)
    assert report.target is not None
    assert report.target["format"].endswith(" in a tar")
    assert report.target["size"] == os.stat(tmp_path / "new.tar").st_size


def test_shards_that_did_not_change_are_ranges_of_the_old_tar(model: Model, tmp_path: Path) -> None:
    tar = packed(model.folder)
    untouched = sum(os.stat(model.folder / model.name(n)).st_size for n in (0, 1))

    with run_file(tar, read_set(migrations(tmp_path, RENAME_LAST))) as run:
        copied = sum(piece.count for piece in run.pieces if isinstance(piece, Range))

    assert copied >= untouched


def test_of_one_that_is_fetched_in_part_all_is_needed(model: Model, tmp_path: Path) -> None:
    tar = packed(model.folder)
    named = read_set(migrations(tmp_path, RENAME_LAST))

    with pytest.raises(BytesNeeded) as beginning:
        run_file(tar, named, present=[])
    with pytest.raises(BytesNeeded) as caught:
        run_file(tar, named, present=beginning.value.ranges)
    assert caught.value.ranges == ((0, tar.stat().st_size),)
    with run_file(tar, named, present=caught.value.ranges) as run:
        assert run.report.ran == ("0001",)


def test_plan_and_inspection_read_it_where_it_lies(model: Model, tmp_path: Path) -> None:
    tar = packed(model.folder, prefix="")

    assert inspect_file(tar).format.startswith("sharded ")
    plan = plan_file(tar, read_set(migrations(tmp_path, FUSE)), with_changes=True)
    assert plan.steps[0].preview is not None
    assert plan.steps[0].preview.counts == {"removed": 2, "added": 1}


def test_second_run_gives_the_same_tar(model: Model, tmp_path: Path) -> None:
    folder = migrations(tmp_path, RENAME_LAST)
    migrate_file(packed(model.folder), tmp_path / "new.tar", folder=folder)

    assert migrate_file(tmp_path / "new.tar", tmp_path / "again.tar", folder=folder).ran == ()
    assert (tmp_path / "new.tar").read_bytes() == (tmp_path / "again.tar").read_bytes()


def test_function_that_writes_in_place_is_noticed(model: Model, tmp_path: Path) -> None:
    text = "def handle(ckpt):\n    ckpt['layers.1.w'].numpy()[0, 0] = 7\n    return ckpt\n"

    migrate_file(packed(model.folder), tmp_path / "new.tar", folder=migrations(tmp_path, text))

    made = unpacked(tmp_path / "new.tar") / "model"
    (made / "config.json").unlink()
    assert load(made)["layers.1.w"][0, 0] == 7


def test_distributed_checkpoint(tmp_path: Path) -> None:
    state = {"model": {"layers.2.w": torch.randn(4, 6)}, "epoch": 3}
    dcp.save(state, checkpoint_id=tmp_path / "old", no_dist=True)

    folder = migrations(tmp_path, RENAME_LAST)
    migrate_file(packed(tmp_path / "old", ""), tmp_path / "new.tar", folder=folder)

    loaded: dict[str, Any] = {"model": {"blocks.2.w": torch.zeros(4, 6)}, "epoch": 0}
    dcp.load(loaded, checkpoint_id=unpacked(tmp_path / "new.tar"), no_dist=True)
    assert torch.equal(loaded["model"]["blocks.2.w"], state["model"]["layers.2.w"])  # type: ignore[index]
    assert loaded["epoch"] == 3


def test_another_format_is_refused(model: Model, tmp_path: Path) -> None:
    folder = migrations(tmp_path, FUSE)

    with pytest.raises(UnwritableCheckpoint, match="keeps its format"):
        migrate_file(packed(model.folder), tmp_path / "new.tar", folder=folder, format="torch")


def hostile(tmp_path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    path = tmp_path / "hostile.tar"
    with tarfile.open(path, "w") as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def link(name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


INDEX = (tarfile.TarInfo("model.safetensors.index.json"), b'{"weight_map": {"a": "x"}}')


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([(link("x", "/etc/passwd"), b""), INDEX], "more than plain files"),
        ([(tarfile.TarInfo("a/x"), b"1"), INDEX], "several folders"),
        ([(tarfile.TarInfo("x"), b"1"), (tarfile.TarInfo("x"), b"2"), INDEX], "twice"),
        ([(tarfile.TarInfo("x"), b"not a checkpoint"), INDEX], "the file is text"),
        ([(tarfile.TarInfo("y"), b"1"), INDEX], "not there: x"),
        ([(tarfile.TarInfo("pickle"), b"1")], "a tar archive"),
        ([(tarfile.TarInfo(".metadata"), b"cos\nsystem\n(S'true'\ntR.")], "there is no"),
    ],
    ids=["link", "folders", "twice", "garbage", "missing", "other", "pickle"],
)
def test_hostile_tar_is_refused(tmp_path: Path, members: Any, reason: str) -> None:
    with pytest.raises(UnreadableCheckpoint, match=reason):
        inspect_file(hostile(tmp_path, *members))


def test_tar_that_ends_early_is_refused(model: Model, tmp_path: Path) -> None:
    tar = packed(model.folder)
    tar.write_bytes(tar.read_bytes()[:2000])

    with pytest.raises(UnreadableCheckpoint):
        inspect_file(tar)
