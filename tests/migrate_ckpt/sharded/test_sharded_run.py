"""Sharded checkpoints of Hugging Face's kind, migrated as one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from migrate_ckpt import (
    TargetExists,
    UnreadableCheckpoint,
    UnwritableCheckpoint,
    draft_migration,
    inspect_file,
    manifest_of_file,
    migrate_file,
    plan_file,
    read_set,
    verify_file,
)
from migrate_ckpt.cli import main
from migrate_ckpt.formats.pieces import replace_file
from migrate_ckpt.history import ckpt_migration_key
from migrate_ckpt.sharded import new_set

HEAD = "from migrate_ckpt.operations import concat, drop, rename, split\n\n"
RENAME_LAST = HEAD + 'operations = [rename("layers.2.w", "blocks.2.w")]\n'
FUSE = HEAD + 'operations = [concat(["layers.0.w", "layers.1.w"], "fused.w")]\n'


class Model:
    """A folder with shards of two tensors each."""

    def __init__(self, folder: Path, kind: str) -> None:
        folder.mkdir()
        self.folder, self.kind = folder, kind
        self.tensors = {f"layers.{n}.{k}": torch.randn(4, 8) for n in range(3) for k in "wb"}
        keys = list(self.tensors)
        weight_map = {}
        for number in range(3):
            part = {key: self.tensors[key] for key in keys[2 * number : 2 * number + 2]}
            name = self.name(number)
            save(part, folder / name)
            weight_map |= dict.fromkeys(part, name)
        stem = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
        self.index = folder / f"{stem}.index.json"
        metadata = {"total_size": 6 * 4 * 8 * 4, "note": "mine"}
        self.index.write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))

    def name(self, number: int) -> str:
        if self.kind == "safetensors":
            return f"model-0000{number + 1}-of-00003.safetensors"
        return f"pytorch_model-0000{number + 1}-of-00003.bin"


def save(tensors: dict[str, Any], path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path)


def load(folder: Path) -> dict[str, Any]:
    """What transformers reads: each key from the file that the index says."""
    [index] = folder.glob("*.index.json")
    weight_map = json.loads(index.read_text())["weight_map"]
    loaded = {}
    for name in dict.fromkeys(weight_map.values()):
        path = folder / name
        part = load_file(path) if path.suffix == ".safetensors" else torch.load(path)
        assert set(part) == {key for key, shard in weight_map.items() if shard == name}
        loaded |= part
    assert {path.name for path in folder.iterdir()} == {index.name, *weight_map.values()}
    return {key: loaded[key] for key in weight_map}


@pytest.fixture(params=["safetensors", "bin"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    return Model(tmp_path / "model", request.param)


@pytest.fixture
def migrations(tmp_path: Path) -> Callable[..., Path]:
    def write(**texts: str) -> Path:
        folder = tmp_path / "migrations"
        folder.mkdir(exist_ok=True)
        for name, text in texts.items():
            (folder / f"{name.lstrip('_')}.py").write_text(text)
        return folder

    return write


def test_into_another_folder(model: Model, migrations: Any, tmp_path: Path) -> None:
    before = load(model.folder)

    report = migrate_file(model.folder, tmp_path / "new", folder=migrations(_0001=RENAME_LAST))

    assert report.ran == ("0001",)
    expected = {key.replace("layers.2.w", "blocks.2.w"): t for key, t in before.items()}
    assert list(load(tmp_path / "new")) == list(expected)
    assert all(torch.equal(load(tmp_path / "new")[key], t) for key, t in expected.items())
    assert report.target is not None
    assert report.target["written"] == [model.name(2)]
    for number in (0, 1):
        name = model.name(number)
        assert (tmp_path / "new" / name).read_bytes() == (model.folder / name).read_bytes()
    assert load(model.folder).keys() == before.keys()


def test_in_place_only_the_shards_that_change_are_written(model: Model, migrations: Any) -> None:
    inodes = {model.name(n): os.stat(model.folder / model.name(n)).st_ino for n in (0, 1)}

    report = migrate_file(model.index, model.index, folder=migrations(_0001=RENAME_LAST))

    assert "blocks.2.w" in load(model.folder)
    assert {name: os.stat(model.folder / name).st_ino for name in inodes} == inodes
    assert report.target is not None
    [written] = report.target["written"]
    assert written.startswith(model.name(2).rpartition(".")[0] + ".m")
    assert not (model.folder / model.name(2)).exists()


def test_history_stands_in_the_index(model: Model, migrations: Any) -> None:
    folder = migrations(_0001=RENAME_LAST)
    migrate_file(model.folder, model.folder, folder=folder)

    index = json.loads(model.index.read_text())
    assert index["metadata"][ckpt_migration_key] == ["0001"]
    assert index["metadata"]["note"] == "mine"
    assert inspect_file(model.folder).history.names == ("0001",)  # type: ignore[union-attr]
    assert plan_file(model.folder, read_set(folder), policy="strict").to_run == ()
    names = sorted(path.name for path in model.folder.iterdir())
    assert migrate_file(model.folder, model.folder, folder=folder).ran == ()
    assert sorted(path.name for path in model.folder.iterdir()) == names


def test_second_run_in_place_replaces_the_names_of_the_first(model: Model, migrations: Any) -> None:
    migrate_file(model.folder, model.folder, folder=migrations(_0001=RENAME_LAST))
    folder = migrations(
        _0002=RENAME_LAST.replace("layers.2.w", "blocks.2.w").replace('"blocks.2.w")]', '"c.w")]')
    )

    report = migrate_file(model.folder, model.folder, folder=folder)

    assert report.target is not None
    [written] = report.target["written"]
    assert written.count(".m") == 1
    assert "c.w" in load(model.folder)


def test_tensors_of_several_shards_are_joined(
    model: Model, migrations: Any, tmp_path: Path
) -> None:
    before = load(model.folder)

    migrate_file(model.folder, tmp_path / "new", folder=migrations(_0001=FUSE))

    after = load(tmp_path / "new")
    assert torch.equal(after["fused.w"], torch.cat([before["layers.0.w"], before["layers.1.w"]]))
    index = json.loads((tmp_path / "new" / model.index.name).read_text())
    assert index["metadata"]["total_size"] == 6 * 4 * 8 * 4


def test_shard_of_which_nothing_is_left_goes(model: Model, migrations: Any) -> None:
    text = HEAD + 'operations = [drop("layers.1.w", "layers.1.b")]\n'

    report = migrate_file(model.folder, model.folder, folder=migrations(_0001=text))

    assert report.target is not None
    assert (report.target["shards"], report.target["written"]) == (2, [])
    assert len(load(model.folder)) == 4
    assert json.loads(model.index.read_text())["metadata"]["total_size"] == 4 * 4 * 8 * 4


def test_function_that_writes_in_place_is_noticed(model: Model, migrations: Any) -> None:
    text = "def handle(ckpt):\n    ckpt['layers.1.w'].numpy()[0, 0] = 7\n    return ckpt\n"

    report = migrate_file(model.folder, model.folder, folder=migrations(_0001=text))

    assert report.target is not None
    assert len(report.target["written"]) == 1
    assert load(model.folder)["layers.1.w"][0, 0] == 7


def test_plan_with_changes_reads_all_shards_as_one(model: Model, migrations: Any) -> None:
    plan = plan_file(model.folder, read_set(migrations(_0001=FUSE)), with_changes=True)

    preview = plan.steps[0].preview
    assert preview is not None
    assert preview.counts == {"removed": 2, "added": 1}


def test_migration_that_fails_leaves_everything(model: Model, migrations: Any) -> None:
    before = {path: path.read_bytes() for path in model.folder.iterdir()}
    text = HEAD + 'operations = [rename("no", "x")]\n'

    with pytest.raises(Exception, match="no key is 'no'"):
        migrate_file(model.folder, model.folder, folder=migrations(_0001=text))

    assert {path: path.read_bytes() for path in model.folder.iterdir()} == before


def test_killed_before_the_index_is_written_the_old_set_is_whole(
    model: Model, migrations: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load(model.folder)

    def killed(target: Path, *args: Any, **options: Any) -> None:
        if target == model.index:
            raise KeyboardInterrupt
        replace_file(target, *args, **options)

    monkeypatch.setattr(new_set, "replace_file", killed)
    with pytest.raises(KeyboardInterrupt):
        migrate_file(model.folder, model.folder, folder=migrations(_0001=RENAME_LAST))
    monkeypatch.undo()

    index = json.loads(model.index.read_text())["weight_map"]
    assert set(index) == set(before)
    assert all((model.folder / name).exists() for name in index.values())
    migrate_file(model.folder, model.folder, folder=migrations(_0001=RENAME_LAST))
    assert "blocks.2.w" in load(model.folder)


@pytest.mark.parametrize("has_work", [False, True], ids=["no work", "work"])
def test_killed_after_the_index_is_written_the_next_run_takes_the_old_shards(
    model: Model, migrations: Any, monkeypatch: pytest.MonkeyPatch, has_work: bool
) -> None:
    folder = migrations(_0001=RENAME_LAST)
    monkeypatch.setattr(new_set, "remove", lambda *_: None)
    migrate_file(model.folder, model.folder, folder=folder)
    monkeypatch.undo()
    assert (model.folder / model.name(2)).exists()

    if has_work:
        folder = migrations(_0002=HEAD + 'operations = [rename("blocks.2.w", "c.w")]\n')
    migrate_file(model.folder, model.folder, folder=folder)

    # Which also says that nothing else is in the folder.
    assert ("c.w" if has_work else "blocks.2.w") in load(model.folder)


def test_file_of_the_name_of_an_old_shard_that_was_saved_since_stays(
    model: Model, migrations: Any
) -> None:
    folder = migrations(_0001=RENAME_LAST)
    migrate_file(model.folder, model.folder, folder=folder)
    saved = model.folder / model.name(2)
    saved.write_text("mine")
    index = model.index.stat()
    os.utime(saved, ns=(index.st_mtime_ns, index.st_mtime_ns + 1))

    migrate_file(model.folder, model.folder, folder=folder)
    migrate_file(
        model.folder,
        model.folder,
        folder=migrations(_0002=HEAD + 'operations = [rename("blocks.2.w", "c.w")]\n'),
    )

    assert saved.read_text() == "mine"


def test_links_are_replaced_and_what_they_lead_to_stays(
    model: Model, migrations: Any, tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in model.folder.iterdir()}
    revisions = [tmp_path / "one", tmp_path / "two"]
    for revision in revisions:
        revision.mkdir()
        for name in before:
            (revision / name).symlink_to(f"../model/{name}")

    migrate_file(revisions[0], revisions[0], folder=migrations(_0001=RENAME_LAST))

    assert "blocks.2.w" in load(revisions[0])
    assert {path.name: path.read_bytes() for path in model.folder.iterdir()} == before
    assert "layers.2.w" in load(revisions[1])


def test_link_under_the_name_of_a_new_shard_is_replaced(
    model: Model, migrations: Any, tmp_path: Path
) -> None:
    folder = migrations(_0001=RENAME_LAST)
    shutil.copytree(model.folder, tmp_path / "tried")
    report = migrate_file(tmp_path / "tried", tmp_path / "tried", folder=folder)
    assert report.target is not None
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (model.folder / report.target["written"][0]).symlink_to(victim)

    migrate_file(model.folder, model.folder, folder=folder)

    assert victim.read_text() == "mine"
    assert "blocks.2.w" in load(model.folder)


def test_shards_that_another_index_needs_stay(model: Model, migrations: Any) -> None:
    other = model.folder / "other.index.json"
    shutil.copy(model.index, other)

    migrate_file(model.index, model.index, folder=migrations(_0001=RENAME_LAST))

    assert inspect_file(model.index).history.names == ("0001",)  # type: ignore[union-attr]
    assert not inspect_file(other).history.names  # type: ignore[union-attr]
    migrate_file(other, other, folder=migrations(_0001=RENAME_LAST))
    assert not (model.folder / model.name(2)).exists()


def test_set_that_is_there_already_is_not_replaced(
    model: Model, migrations: Any, tmp_path: Path
) -> None:
    folder = migrations(_0001=RENAME_LAST)
    migrate_file(model.folder, tmp_path / "new", folder=folder)

    with pytest.raises(TargetExists):
        migrate_file(model.folder, tmp_path / "new", folder=folder)
    migrate_file(model.folder, tmp_path / "new", folder=folder, force=True)


@pytest.mark.parametrize("is_link", [False, True], ids=["file", "link"])
def test_shard_of_that_name_that_is_there_already_is_not_replaced(
    model: Model, migrations: Any, tmp_path: Path, is_link: bool
) -> None:
    (tmp_path / "new").mkdir()
    there = tmp_path / "new" / model.name(2)
    if is_link:
        there.symlink_to(model.folder / model.name(2))
    else:
        there.write_text("precious")
    before = there.read_bytes()

    with pytest.raises(TargetExists) as caught:
        migrate_file(model.folder, tmp_path / "new", folder=migrations(_0001=RENAME_LAST))

    assert caught.value.path == there
    assert there.read_bytes() == before
    assert os.listdir(tmp_path / "new") == [there.name]
    migrate_file(model.folder, tmp_path / "new", folder=migrations(_0001=RENAME_LAST), force=True)
    assert "blocks.2.w" in load(tmp_path / "new")
    assert "layers.2.w" in load(model.folder)


def test_interrupted_in_another_folder_leaves_nothing_there(
    model: Model, migrations: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(target: Path, *args: Any, **options: Any) -> None:
        if target.name == model.name(2):
            raise KeyboardInterrupt
        replace_file(target, *args, **options)

    monkeypatch.setattr(new_set, "replace_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        migrate_file(model.folder, tmp_path / "new", folder=migrations(_0001=RENAME_LAST))
    monkeypatch.undo()

    assert os.listdir(tmp_path / "new") == []
    migrate_file(model.folder, tmp_path / "new", folder=migrations(_0001=RENAME_LAST))
    assert "blocks.2.w" in load(tmp_path / "new")


@pytest.mark.parametrize("text", [RENAME_LAST, None], ids=["work", "no work"])
def test_replaced_by_force_the_other_set_is_whole_until_the_index_is_written(
    model: Model, migrations: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    other = Model(tmp_path / "other", model.kind)
    save({"x": torch.ones(1)}, other.folder / "extra.bin")
    index = json.loads(other.index.read_text())
    index["weight_map"]["x"] = "extra.bin"
    other.index.write_text(json.dumps(index))
    before = load(other.folder)
    folder = migrations(_0001=RENAME_LAST)
    if text is None:
        migrate_file(model.folder, model.folder, folder=folder)

    def killed(target: Path, *args: Any, **options: Any) -> None:
        if target.name == model.index.name:
            raise KeyboardInterrupt
        replace_file(target, *args, **options)

    monkeypatch.setattr(new_set, "replace_file", killed)
    with pytest.raises(KeyboardInterrupt):
        migrate_file(model.folder, other.folder, folder=folder, force=True)
    monkeypatch.undo()
    index = json.loads(other.index.read_text())
    for name in set(index["weight_map"].values()):
        held = (
            load_file(other.folder / name) if "safet" in name else torch.load(other.folder / name)
        )
        assert all(torch.equal(before[key], tensor) for key, tensor in held.items())

    migrate_file(model.folder, other.folder, folder=folder, force=True)

    # Which also says that nothing else is left in the folder.
    made = load(other.folder)
    assert torch.equal(made["blocks.2.w"], model.tensors["layers.2.w"])
    assert inspect_file(other.folder).history.names == ("0001",)  # type: ignore[union-attr]
    migrate_file(model.folder, other.folder, folder=folder, force=True)
    assert made.keys() == load(other.folder).keys()


@pytest.mark.parametrize("options", [{"format": "torch"}, {"keep_undo": True}], ids=str)
def test_what_is_for_one_file_is_refused(
    model: Model, migrations: Any, tmp_path: Path, options: Any
) -> None:
    with pytest.raises(UnwritableCheckpoint):
        migrate_file(model.folder, tmp_path / "new", folder=migrations(_0001=FUSE), **options)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ("{", "no JSON"),
        ('{"weight_map": {}}', 'no "weight_map"'),
        ('{"weight_map": {"a": "../secret"}}', "no name of a file beside it"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "no name of a file beside it"),
        ('{"weight_map": {"a": "missing.safetensors"}}', "not there: missing.safetensors"),
        ('{"weight_map": {"a": 3}}', "no name of a file"),
        ('{"metadata": 3, "weight_map": {"a": "b"}}', 'a "metadata" that is no mapping'),
    ],
)
def test_hostile_index_is_refused(model: Model, index: str, reason: str, migrations: Any) -> None:
    model.index.write_text(index)

    with pytest.raises(UnreadableCheckpoint, match=reason):
        plan_file(model.index, read_set(migrations(_0001=FUSE)))


def test_shard_that_does_not_hold_what_the_index_says_is_refused(model: Model) -> None:
    save({"layers.0.w": model.tensors["layers.0.w"]}, model.folder / model.name(0))

    with pytest.raises(UnreadableCheckpoint, match=r"layers\.0\.b"):
        inspect_file(model.folder)


def test_shards_that_were_migrated_one_by_one_are_refused(model: Model, migrations: Any) -> None:
    path = model.folder / model.name(2)
    migrate_file(path, path, folder=migrations(_0001=RENAME_LAST), policy="run-missed")
    text = model.index.read_text().replace("layers.2.w", "blocks.2.w")
    model.index.write_text(text)

    with pytest.raises(UnreadableCheckpoint, match="history of its own"):
        inspect_file(model.folder)


def test_command_takes_a_folder_with_an_index_for_one_checkpoint(
    model: Model,
    migrations: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    migrations(_0001=RENAME_LAST)
    torch.save({"state_dict": {"layers.2.w": torch.ones(2)}}, "single.ckpt")

    assert main(["plan", "model"]) == 1
    assert "1 migration to run" in capsys.readouterr().out
    assert main(["run", "model", "-o", "new"]) == 0
    assert "blocks.2.w" in load(tmp_path / "new")
    assert main(["run", ".", "--output-dir", "all"]) == 0
    assert "blocks.2.w" in load(tmp_path / "all" / "model")
    capsys.readouterr()
    assert main(["run", ".", "--output-dir", "all"]) == 0
    assert "3 already migrated" in capsys.readouterr().out
    assert main(["run", "model", "--in-place"]) == 0
    assert main(["inspect", "model"]) == 0
    assert main(["inspect", str(model.index)]) == 0


BROKEN = {
    "a shard is gone": lambda index: {
        **index,
        "weight_map": index["weight_map"] | {"x": "gone.bin"},
    },
    "a path out": lambda index: {**index, "weight_map": index["weight_map"] | {"x": "../x.bin"}},
    "no map": lambda index: {"metadata": {}},
    "metadata is a list": lambda index: {**index, "metadata": [1]},
}


@pytest.mark.parametrize("name", BROKEN)
def test_command_leaves_files_beside_a_broken_index_alone(
    model: Model, migrations: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    migrations(_0001=HEAD + 'operations = [rename("layers.2.w", "blocks.2.w", missing="skip")]\n')
    model.index.write_text(json.dumps(BROKEN[name](json.loads(model.index.read_text()))))
    before = {path: path.read_bytes() for path in model.folder.iterdir()}

    assert main(["run", "model", "--in-place"]) == 3
    assert main(["run", "model", "--output-dir", "new"]) == 3

    assert {path: path.read_bytes() for path in model.folder.iterdir()} == before
    assert not list(tmp_path.glob("new/**/*.*"))


def test_what_is_no_tensor_is_named_and_not_our_own_history(
    tmp_path: Path, migrations: Any
) -> None:
    torch.save({"a": torch.ones(2), "step": 3}, tmp_path / "one.bin")
    index = {"metadata": {}, "weight_map": {"a": "one.bin", "step": "one.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    folder = migrations(_0001=HEAD + 'operations = [rename("a", "b")]\n')

    with pytest.raises(UnwritableCheckpoint, match=r"nothing else, and not 'step'$"):
        migrate_file(tmp_path, tmp_path / "new", folder=folder)


def test_metadata_may_be_null(model: Model, migrations: Any, tmp_path: Path) -> None:
    weight_map = json.loads(model.index.read_text())["weight_map"]
    model.index.write_text(json.dumps({"metadata": None, "weight_map": weight_map}))

    migrate_file(model.folder, tmp_path / "new", folder=migrations(_0001=RENAME_LAST))

    assert "blocks.2.w" in load(tmp_path / "new")


def test_one_of_several_indexes_is_to_be_named(model: Model) -> None:
    other = model.index.with_name("other.index.json")
    other.write_bytes(model.index.read_bytes())

    with pytest.raises(UnreadableCheckpoint, match="more than one index"):
        inspect_file(model.folder)
    assert inspect_file(model.index).size


@pytest.mark.parametrize(
    ("change", "said"), [("x", "it lacks 'x'"), (None, "it has 'layers.0.w', too")]
)
def test_what_a_shard_lacks_or_has_too_is_said(model: Model, change: str | None, said: str) -> None:
    index = json.loads(model.index.read_text())
    if change is None:
        del index["weight_map"]["layers.0.w"]
    else:
        index["weight_map"][change] = model.name(0)
    model.index.write_text(json.dumps(index))

    with pytest.raises(UnreadableCheckpoint, match=said):
        inspect_file(model.folder)


def test_manifest_and_draft_take_it_for_one(model: Model, migrations: Any, tmp_path: Path) -> None:
    migrate_file(model.folder, tmp_path / "new", folder=migrations(_0001=FUSE))

    manifest = manifest_of_file(tmp_path / "new")
    draft = draft_migration(model.folder, tmp_path / "new")

    assert manifest.tensors["fused.w"].shape == (8, 8)
    assert not verify_file(tmp_path / "new", manifest).differences
    assert draft.is_proved
    assert [each.operation.verb for each in draft.drafted] == ["concat"]
