from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import textwrap
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from migrate_ckpt import (
    HistoryRefused,
    MigrationFailed,
    TargetExists,
    UnreadableCheckpoint,
    UnwritableCheckpoint,
    ckpt_migration_key,
    inspect_file,
    migrate_file,
    plan_file,
    read_checkpoint,
    read_folder,
    run_file,
    write_checkpoint,
)
from migrate_ckpt.formats.pieces import Range
from migrate_ckpt.history_files import stamp_file

STRIP = '''"""Strip the prefix."""
def handle(ckpt):
    ckpt["state_dict"] = {key.removeprefix("model."): value for key, value in ckpt["state_dict"].items()}
    return ckpt
'''
RENAME = '''"""Rename lr."""
def handle(ckpt):
    ckpt["args"].learning_rate = ckpt["args"].__dict__.pop("lr")
    return ckpt
'''
FAIL = '''"""Fail."""
def handle(ckpt):
    raise KeyError("encoder")
'''


@pytest.fixture
def old(tmp_path) -> Path:
    path = tmp_path / "old.ckpt"
    state = OrderedDict((f"model.{index}", torch.full((100,), index)) for index in range(5))
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=0.1)}, path)
    return path


@pytest.fixture
def folder(write_folder) -> Path:
    return write_folder({"0001_strip.py": STRIP, "0002_rename.py": RENAME})


def test_a_file_is_migrated_with_its_foreign_objects(old, folder, tmp_path):
    report = migrate_file(old, tmp_path / "new.ckpt", folder=folder)

    migrated = torch.load(tmp_path / "new.ckpt", weights_only=False)
    assert report.ran == ("0001_strip", "0002_rename")
    assert list(migrated["state_dict"]) == ["0", "1", "2", "3", "4"]
    assert all(
        torch.equal(w, torch.full((100,), int(k))) for k, w in migrated["state_dict"].items()
    )
    assert migrated["args"] == argparse.Namespace(learning_rate=0.1)
    assert migrated[ckpt_migration_key] == ["0001_strip", "0002_rename"]


def test_renaming_all_keys_moves_the_storages_as_one_range(old, folder):
    with run_file(old, read_folder(folder)) as run:
        ranges = [piece for piece in run.pieces if isinstance(piece, Range)]

    assert len(ranges) == 1


def test_nothing_pending_gives_the_same_bytes_again(old, folder, tmp_path):
    migrate_file(old, tmp_path / "new.ckpt", folder=folder)

    report = migrate_file(tmp_path / "new.ckpt", tmp_path / "again.ckpt", folder=folder)

    assert report.ran == ()
    assert (tmp_path / "again.ckpt").read_bytes() == (tmp_path / "new.ckpt").read_bytes()


def test_source_and_target_may_be_the_same_path(old, folder):
    old.chmod(0o640)

    migrate_file(old, old, folder=folder)

    assert list(read_checkpoint(old)["state_dict"]) == ["0", "1", "2", "3", "4"]
    assert old.stat().st_mode & 0o777 == 0o640


def test_an_old_stream_with_nothing_pending_stays_what_it_is(write_folder, tmp_path):
    old = tmp_path / "old.pt"
    torch.save({"w": torch.ones(2)}, old, _use_new_zipfile_serialization=False)
    before = old.read_bytes()

    report = migrate_file(old, old, folder=write_folder({}))

    assert report.target["format"] == "torch-legacy"
    assert old.read_bytes() == before


def test_in_place_a_file_with_nothing_pending_is_not_touched(old, folder):
    migrate_file(old, old, folder=folder)
    before = old.stat()

    migrate_file(old, old, folder=folder)

    assert (old.stat().st_ino, old.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_another_file_in_the_targets_place_is_kept_unless_forced(old, folder, tmp_path):
    target = tmp_path / "new.ckpt"
    target.write_text("precious")

    with pytest.raises(TargetExists):
        migrate_file(old, target, folder=folder)
    assert target.read_text() == "precious"

    migrate_file(old, target, folder=folder, force=True)
    assert read_checkpoint(target)


def test_a_symbolic_link_as_target_stays_one(old, folder, tmp_path):
    link = tmp_path / "link.ckpt"
    link.symlink_to(old)

    migrate_file(link, link, folder=folder)

    assert link.is_symlink()
    assert ckpt_migration_key in read_checkpoint(old)


def test_a_failing_migration_leaves_no_target_and_the_source_as_it_was(old, write_folder, tmp_path):
    folder = write_folder({"0001_strip.py": STRIP, "0002_fail.py": FAIL})
    before = old.read_bytes()
    names = set(os.listdir(tmp_path))

    with pytest.raises(MigrationFailed) as failure:
        migrate_file(old, tmp_path / "new.ckpt", folder=folder)

    assert (failure.value.name, failure.value.position, failure.value.count) == ("0002_fail", 2, 2)
    assert failure.value.report.ran == ("0001_strip",)
    assert isinstance(failure.value.__cause__, KeyError)
    assert old.read_bytes() == before
    assert set(os.listdir(tmp_path)) == names


def test_a_full_disk_leaves_no_target_and_no_rest(old, folder, tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    names = set(os.listdir(tmp_path))

    with pytest.raises(OSError, match="No space"):
        migrate_file(old, old, folder=folder)

    assert set(os.listdir(tmp_path)) == names
    assert ckpt_migration_key not in read_checkpoint(old)


def test_a_tensor_that_a_migration_changes_in_place_has_its_new_values(old, write_folder, tmp_path):
    folder = write_folder(
        {
            "0001_scale.py": '"""Scale."""\ndef handle(ckpt):\n'
            '    ckpt["state_dict"]["model.3"].mul_(2)\n    return ckpt\n'
        }
    )

    migrate_file(old, tmp_path / "new.ckpt", folder=folder)

    state = torch.load(tmp_path / "new.ckpt", weights_only=False)["state_dict"]
    assert [int(state[f"model.{index}"][0]) for index in range(5)] == [0, 1, 2, 6, 4]


def test_a_flat_state_dict_still_loads_strictly_after_its_migration(write_folder, tmp_path):
    module = torch.nn.Linear(2, 2)
    torch.save(dict(module.state_dict()), tmp_path / "flat.pt")
    folder = write_folder(
        {"0001_nothing.py": '"""Nothing."""\ndef handle(ckpt):\n    return ckpt\n'}
    )

    report = migrate_file(tmp_path / "flat.pt", tmp_path / "new.pt", folder=folder)

    migrated = torch.load(tmp_path / "new.pt", weights_only=True)
    module.load_state_dict(migrated, strict=True)
    assert any("OrderedDict" in sentence for sentence in report.warnings)
    assert plan_file(tmp_path / "new.pt", read_folder(folder)).applied == ("0001_nothing",)


def test_the_output_is_the_same_under_any_name_in_any_process(old, folder, tmp_path):
    program = f"""
        import sys
        from migrate_ckpt import migrate_file
        migrate_file({str(old)!r}, sys.argv[1], folder={str(folder)!r})
    """

    def digest_of_run(index: int) -> str:
        target = tmp_path / f"result-{index}" / f"name{index}.pt"
        target.parent.mkdir()
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), target],
            env={**os.environ, "PYTHONHASHSEED": str(index)},
            check=True,
        )
        return hashlib.sha256(target.read_bytes()).hexdigest()

    assert len({digest_of_run(index) for index in range(1, 4)}) == 1


def test_a_plan_needs_no_torch_and_runs_no_migration(old, write_folder):
    folder = write_folder(
        {"0001_x.py": '"""X."""\nraise SystemExit("ran")\ndef handle(ckpt): ...\n'}
    )
    program = f"""
        import sys
        from migrate_ckpt import inspect_file, plan_file, read_folder
        print(plan_file({str(old)!r}, read_folder({str(folder)!r})).pending)
        inspect_file({str(old)!r})
        assert "torch" not in sys.modules
    """

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "('0001_x',)\n"), done.stderr


def test_a_history_of_another_folder_is_refused_unless_allowed(old, folder, write_folder, tmp_path):
    other = write_folder({"0001_other.py": STRIP.replace("model.", "x.")}, name="other")
    migrate_file(old, old, folder=folder)

    with pytest.raises(HistoryRefused):
        migrate_file(old, tmp_path / "new.ckpt", folder=other)

    report = migrate_file(old, tmp_path / "new.ckpt", folder=other, allow_unknown_history=True)
    assert report.ran == ("0001_other",)


def test_to_stops_after_a_migration_and_the_rest_stays_pending(old, folder, tmp_path):
    report = migrate_file(old, tmp_path / "new.ckpt", folder=folder, to="0001_strip")

    assert (report.ran, report.pending) == (("0001_strip",), ("0002_rename",))


def test_a_pickled_module_reaches_the_first_migration_which_may_make_it_a_checkpoint(
    tmp_path, write_folder
):
    module = torch.nn.Linear(2, 1)
    torch.save(module, tmp_path / "module.pt")
    unwrap = """
        def handle(module):
            return {"state_dict": dict(module._parameters), "class": module.__class__.__qualname__}
    """
    folder = write_folder({"0001_unwrap.py": textwrap.dedent(unwrap)})

    migrate_file(tmp_path / "module.pt", tmp_path / "new.pt", folder=folder)

    migrated = torch.load(tmp_path / "new.pt", weights_only=True)
    assert migrated["class"] == "Linear"
    assert torch.equal(migrated["state_dict"]["weight"], module.weight)


def test_a_file_that_holds_no_mapping_and_has_no_migration_is_refused_with_what_it_is(
    tmp_path, write_folder
):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pt")

    with pytest.raises(
        UnreadableCheckpoint, match=r"an object of torch\.nn\.modules\.linear\.Linear"
    ):
        migrate_file(tmp_path / "module.pt", tmp_path / "new.pt", folder=write_folder({}))


def test_a_damaged_record_is_an_error_and_leaves_no_target(old, folder, tmp_path):
    data = bytearray(old.read_bytes())
    data[data.index(torch.full((100,), 3).numpy().tobytes()) + 17] ^= 1
    old.write_bytes(data)

    with pytest.raises(UnreadableCheckpoint, match="data/3"):
        migrate_file(old, tmp_path / "new.ckpt", folder=folder)

    assert not (tmp_path / "new.ckpt").exists()


@pytest.mark.parametrize("computes", [True, False], ids=["with checksums", "without"])
def test_the_report_says_whether_all_bytes_were_compared_with_a_checksum(
    old, folder, tmp_path, computes
):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(computes)
    try:
        torch.save(
            {"state_dict": {"model.0": torch.ones(5)}, "args": argparse.Namespace(lr=1)}, old
        )
    finally:
        torch.serialization.set_crc32_options(before)

    report = migrate_file(old, tmp_path / "new.ckpt", folder=folder)

    assert report.bytes_verified is computes


@pytest.mark.parametrize(
    "data",
    [b"", b"not a checkpoint", b"PK\3\4", b"\x80\x02}."],
    ids=["empty", "text", "a zip's first bytes", "pickle"],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, folder, data):
    (tmp_path / "x.pt").write_bytes(data)

    with pytest.raises(UnreadableCheckpoint):
        migrate_file(tmp_path / "x.pt", tmp_path / "new.pt", folder=folder)


def test_an_object_of_a_migrations_own_class_is_refused(old, write_folder, tmp_path):
    folder = write_folder(
        {
            "0001_x.py": '"""X."""\nclass Config: ...\n\ndef handle(ckpt):\n'
            '    ckpt["config"] = Config()\n    return ckpt\n'
        }
    )

    with pytest.raises(UnwritableCheckpoint, match="defined in the folder of migrations"):
        migrate_file(old, tmp_path / "new.ckpt", folder=folder)


def test_stamping_writes_the_history_and_runs_nothing(old, folder, tmp_path):
    names = stamp_file(old, tmp_path / "new.ckpt", folder=folder)

    stamped = read_checkpoint(tmp_path / "new.ckpt")
    assert names == ("0001_strip", "0002_rename")
    assert next(iter(stamped["state_dict"])) == "model.0"
    assert plan_file(tmp_path / "new.ckpt", read_folder(folder)).to_run == ()


def test_nothing_that_a_checkpoint_names_is_imported_or_called(tmp_path, folder):
    class Payload:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path / 'marker'}",)

    state = {"model.w": torch.ones(2)}
    good, hostile = tmp_path / "good.ckpt", tmp_path / "hostile.ckpt"
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=1)}, good)
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=1), "x": Payload()}, hostile)
    program = f"""
        import sys
        from migrate_ckpt import inspect_file, migrate_file, read_folder
        migrate_file({str(good)!r}, {str(tmp_path / "a")!r}, folder={str(folder)!r})
        inspect_file({str(good)!r})
        seen = []
        # Migrations are compiled and run; what else the run does must be nothing that executes.
        def hook(event, arguments):
            if event in ("os.system", "subprocess.Popen", "os.exec", "pickle.find_class", "socket.connect"):
                seen.append(event)
            if event == "import" and not str(arguments[0]).startswith(("_migrate_ckpt_", "m_")):
                seen.append(f"import {{arguments[0]}}")
        sys.addaudithook(hook)
        migrate_file({str(hostile)!r}, {str(tmp_path / "b")!r}, folder={str(folder)!r})
        inspect_file({str(hostile)!r})
        print(seen)
    """

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    assert not (tmp_path / "marker").exists()
    inspection = inspect_file(tmp_path / "b")
    assert inspection.calls["posix.system"] == 1


@pytest.mark.parametrize("count", [1, 2], ids=["of another size", "of the same size"])
def test_new_tensor_in_front_does_not_take_the_place_of_one_that_was_read(
    count: int, tmp_path: Path
) -> None:
    torch.save({"a": torch.ones(2), "b": torch.full((2,), 3.0)}, tmp_path / "old.ckpt")
    ckpt = read_checkpoint(tmp_path / "old.ckpt")
    ckpt = {"new": torch.full((count,), 7.0), **ckpt}

    write_checkpoint(ckpt, tmp_path / "new.ckpt")

    written = torch.load(tmp_path / "new.ckpt", weights_only=True)
    assert {key: value.tolist() for key, value in written.items()} == {
        "new": [7.0] * count,
        "a": [1.0, 1.0],
        "b": [3.0, 3.0],
    }
