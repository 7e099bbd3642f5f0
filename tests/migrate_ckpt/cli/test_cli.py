from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from migrate_ckpt import ckpt_migration_key, read_checkpoint, write_checkpoint
from migrate_ckpt.cli import main

MIGRATION = '"""Do {0}."""\ndef handle(ckpt):\n    ckpt["{0}"] = True\n    return ckpt\n'


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.ones(2), "args": argparse.Namespace(lr=0.1)}, "old.ckpt")
    return Path("old.ckpt")


@pytest.fixture(autouse=True)
def folder(write_folder) -> Path:
    return write_folder({"0001_a.py": MIGRATION.format("a"), "0002_b.py": MIGRATION.format("b")})


def test_run_writes_the_target_and_says_what_ran(old, capsys):
    code = main(["run", "old.ckpt", "-o", "new.ckpt"])

    assert code == 0
    assert capsys.readouterr().out == (
        "old.ckpt -> new.ckpt: 2 migrations ran\n  0001_a  Do a.\n  0002_b  Do b.\n"
    )
    assert read_checkpoint("new.ckpt")[ckpt_migration_key] == ["0001_a", "0002_b"]


def test_plan_answers_by_its_exit_code(old, capsys):
    assert main(["plan", "old.ckpt"]) == 1
    assert main(["run", "old.ckpt", "--in-place"]) == 0
    assert main(["plan", "old.ckpt"]) == 0

    assert capsys.readouterr().out.splitlines()[-1] == "old.ckpt: 0 migrations to run (2 applied)"


def test_a_verbose_plan_has_a_line_for_each_migration(old, capsys):
    main(["run", "old.ckpt", "--in-place", "--to", "0001_a"])
    capsys.readouterr()

    main(["plan", "old.ckpt", "--verbose"])

    assert capsys.readouterr().out.splitlines()[1:] == [
        "    applied  0001_a  Do a.",
        "  > pending  0002_b  Do b.",
        "      + b: bool True",
    ]


def test_changes_that_differ_in_numbers_only_share_a_line_and_a_long_list_is_cut(
    old, write_folder, capsys
):
    weights = {f"m.layers.{i}.w": torch.ones(2, 3) for i in range(20)}
    torch.save({"w": weights, **dict.fromkeys("abcdefghijklmnopq", torch.ones(1))}, "old.ckpt")
    rename = "    for k in list(w): w[k.removeprefix('m.')] = w.pop(k)\n"
    drop = "    for k in 'abcdefghijklmnopq': del ckpt[k]\n    return ckpt\n"
    write_folder(
        {"0001_x.py": f'"""X."""\ndef handle(ckpt):\n    w = ckpt["w"]\n{rename}{drop}'},
        name="names",
    )

    assert main(["plan", "old.ckpt", "--verbose", "--folder", "names"]) == 1

    lines = capsys.readouterr().out.splitlines()[2:]
    assert lines[0] == "      - a: float32 [1], 4 B"
    assert lines[-2:] == [
        "      - and 5 more removed",
        "      → 20 x w / m.layers.{i}.w → w / layers.{i}.w: float32 [2, 3], 24 B",
    ]


def test_a_plan_that_fails_says_where_and_has_the_exit_code_of_a_failure(old, write_folder, capsys):
    write_folder({"0002_b.py": '"""B."""\ndef handle(ckpt):\n    raise ValueError("\\x1b")\n'})

    assert main(["plan", "old.ckpt"]) == 1
    assert main(["plan", "old.ckpt", "--verbose"]) == 5

    assert capsys.readouterr().out.splitlines()[-1] == (
        "      ! The migration 0002_b (2 of 2) failed in 0002_b.py, line 3: ValueError: \\x1b"
    )


def test_colour_is_for_terminals_and_for_those_who_ask(old, monkeypatch, capsys):
    main(["plan", "old.ckpt", "--verbose"])
    assert "\x1b" not in capsys.readouterr().out

    monkeypatch.setenv("FORCE_COLOR", "1")
    main(["plan", "old.ckpt", "--verbose"])
    assert "\x1b[32m      + b: bool True\x1b[0m" in capsys.readouterr().out

    monkeypatch.setenv("NO_COLOR", "1")
    main(["plan", "old.ckpt", "--verbose"])
    assert "\x1b[32m" not in capsys.readouterr().out


def test_json_has_one_document_for_all_sources(old, capsys):
    Path("bad.ckpt").write_text("nothing")

    code = main(["run", "old.ckpt", "bad.ckpt", "--output-dir", "out", "--json"])

    good, bad = json.loads(capsys.readouterr().out)["files"]
    assert code == 3
    assert (good["target"], good["report"]["ran"]) == ("out/old.ckpt", ["0001_a", "0002_b"])
    assert bad["error"]["error_type"] == "not_a_checkpoint"


def test_one_bad_file_does_not_stop_the_others(old):
    Path("bad.ckpt").write_text("nothing")

    assert main(["run", "bad.ckpt", "old.ckpt", "--in-place"]) == 3

    assert ckpt_migration_key in read_checkpoint("old.ckpt")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["run", "old.ckpt"], 2),
        (["run", "old.ckpt", "-o", "taken"], 2),
        (["run", "old.ckpt", "-o", "new.ckpt", "--to", "nothing"], 2),
        (["run", "old.ckpt", "-o", "new.ckpt", "--folder", "nowhere"], 2),
        (["run", "old.ckpt", "-o", "new.ckpt", "--set", "nothing"], 2),
        (["run", "old.ckpt", "taken", "-o", "new.ckpt"], 2),
        (["run", "nothing*.ckpt", "-o", "new.ckpt"], 2),
        (["run", "failing", "-o", "new.ckpt"], 2),
        (["run", "old.ckpt", "-o", "new.ckpt", "--report", "nowhere/r.json"], 2),
        (["run", "nothing.ckpt", "-o", "new.ckpt"], 2),
        (["run", "taken", "-o", "new.ckpt"], 3),
        (["inspect", "taken"], 3),
        (["run", "foreign.ckpt", "-o", "new.ckpt"], 4),
        (["revert", "old.ckpt", "-o", "new.ckpt", "--to", "0001_a"], 4),
        (["revert", "old.ckpt", "-o", "new.ckpt", "--undo", "taken"], 4),
        (["revert", "old.ckpt", "taken", "--output-dir", "x", "--undo", "taken"], 2),
        (["run", "old.ckpt", "-o", "new.ckpt", "--folder", "failing"], 5),
        (["no-such-command"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_each_kind_of_failure_has_its_exit_code(old, write_folder, arguments, code, capsys):
    Path("taken").write_text("precious")
    torch.save({"w": 1, ckpt_migration_key: ["elsewhere"]}, "foreign.ckpt")
    write_folder(
        {"0001_x.py": '"""X."""\ndef handle(ckpt):\n    raise ValueError("no")\n'}, name="failing"
    )

    try:
        found = main(arguments)
    except SystemExit as stopped:
        found = stopped.code

    assert found == code
    assert not Path("new.ckpt").exists()
    assert Path("taken").read_text() == "precious"
    assert capsys.readouterr().err


def test_a_failed_migration_names_itself_its_line_and_its_reason(old, write_folder, capsys):
    write_folder(
        {"0001_x.py": '"""X."""\ndef handle(ckpt):\n    raise ValueError("no")\n'}, name="failing"
    )

    main(["run", "old.ckpt", "-o", "new.ckpt", "--folder", "failing"])

    error = capsys.readouterr().err
    assert "0001_x" in error
    assert "line 3" in error
    assert "ValueError: no" in error


def test_inspect_shows_what_a_trusting_load_would_call(old, capsys):
    assert main(["inspect", "old.ckpt"]) == 0

    shown = capsys.readouterr().out
    assert "1 x argparse.Namespace" in shown
    assert "w: float32 [2]" in shown


def test_stamp_and_new_do_their_work(old, capsys):
    assert main(["stamp", "old.ckpt", "--in-place"]) == 0
    assert main(["plan", "old.ckpt"]) == 0
    assert main(["new", "third"]) == 0

    assert Path("migrations/0003_third.py").exists()
    assert main(["plan", "old.ckpt"]) == 1


def test_run_with_an_undo_bundle_is_reverted(old, capsys):
    before = old.read_bytes()
    assert main(["run", "old.ckpt", "--in-place", "--keep-undo"]) == 0
    capsys.readouterr()

    assert main(["revert", "old.ckpt", "--in-place"]) == 0

    assert capsys.readouterr().out == "old.ckpt is as it was before 0001_a, 0002_b\n"
    assert old.read_bytes() == before
    assert not Path("old.ckpt.undo").exists()


def test_revert_stops_at_the_migration_that_is_named(old, capsys):
    main(["run", "old.ckpt", "--in-place", "--keep-undo"])
    capsys.readouterr()

    assert main(["revert", "old.ckpt", "--in-place", "--to", "0001_a"]) == 0

    assert capsys.readouterr().out == "old.ckpt is as it was before 0002_b\n"
    assert read_checkpoint("old.ckpt")[ckpt_migration_key] == ["0001_a"]


def test_revert_of_several_files_says_what_came_of_each(old, capsys):
    shutil.copy(old, "other.ckpt")
    main(["run", "old.ckpt", "other.ckpt", "--output-dir", "new", "--keep-undo"])
    migrated = read_checkpoint("new/other.ckpt")
    write_checkpoint({**migrated, "epoch": 9}, "new/other.ckpt")
    capsys.readouterr()

    code = main(["revert", "new", "--output-dir", "back", "--json"])

    said = json.loads(capsys.readouterr().out)
    assert code == 4
    assert [file["status"] for file in said["files"]] == ["reverted", "failed"]
    assert said["files"][0]["reverted"] == ["0001_a", "0002_b"]
    assert said["files"][1]["error"]["error_type"] == "undo_refused"
    assert Path("back/old.ckpt").read_bytes() == old.read_bytes()
    assert not Path("back/other.ckpt").exists()


def test_another_format_and_a_list_of_what_is_allowed_can_be_chosen(old, capsys):
    torch.save({"w": torch.ones(2)}, "flat.pt")
    Path("allowed.txt").write_text("# nothing but plain values\n")
    options = ["--folder", "empty", "--allowed-globals", "allowed.txt"]
    Path("empty").mkdir()

    assert (
        main(["run", "flat.pt", "-o", "flat.safetensors", "--format", "safetensors", *options]) == 0
    )
    assert main(["run", "old.ckpt", "-o", "new.ckpt", *options]) == 3

    assert load_file("flat.safetensors")["w"].tolist() == [1.0, 1.0]
    assert "argparse.Namespace" in capsys.readouterr().err
    assert not Path("new.ckpt").exists()


def test_control_characters_of_a_file_never_reach_the_terminal(old, capsys):
    torch.save({"\x1b[31mred\n": "\x07"}, "old.ckpt")

    main(["inspect", "old.ckpt"])

    assert "\x1b" not in (shown := capsys.readouterr().out)
    assert "\x07" not in shown


def test_an_interrupt_ends_with_130_and_leaves_nothing_behind(old, write_folder, tmp_path):
    started = tmp_path / "migrations" / "started.txt"
    slow = f'"""Slow."""\nimport pathlib, time\ndef handle(ckpt):\n    pathlib.Path({str(started)!r}).touch()\n'
    write_folder({"0003_slow.py": slow + "    time.sleep(60)\n    return ckpt\n"})
    command = [sys.executable, "-m", "migrate_ckpt.cli", "run", "old.ckpt", "-o", "new.ckpt"]
    before = set(os.listdir())

    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        wait_for(started)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=20)

    assert process.returncode == 130
    assert error == b"interrupted\n"
    assert set(os.listdir()) == before


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)
