from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from migrate_ckpt import ckpt_migration_key, read_checkpoint
from migrate_ckpt.cli import main

MIGRATION = '"""Do {0}."""\ndef handle(ckpt):\n    ckpt["{0}"] = True\n    return ckpt\n'


@pytest.fixture(autouse=True)
def folder(write_folder, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_folder({"0001_a.py": MIGRATION.format("a")})


@pytest.fixture
def runs() -> Path:
    """Checkpoints in two sub-folders under one name, beside what is none."""
    for name in ("runs/one/last.ckpt", "runs/two/last.ckpt", "runs/best.pt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"name": name}, name)
    Path("runs/one/hparams.yaml").write_text("lr: 0.1\n")
    Path("runs/.hidden").mkdir()
    torch.save({}, "runs/.hidden/x.ckpt")
    return Path("runs")


def found_below(folder: str) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())


def statuses(capsys) -> dict[str, str]:
    return {file["source"]: file["status"] for file in json.loads(capsys.readouterr().out)["files"]}


def test_a_folder_is_migrated_with_its_sub_folders(runs, capsys):
    assert main(["run", "runs", "--output-dir", "new"]) == 0

    assert found_below("new") == ["best.pt", "one/last.ckpt", "two/last.ckpt"]
    assert read_checkpoint("new/two/last.ckpt")["name"] == "runs/two/last.ckpt"
    assert capsys.readouterr().out.splitlines()[-1] == "3 files: 3 migrated"


def test_a_pattern_in_quotes_keeps_what_its_stars_stand_for(runs):
    assert main(["run", "runs/*/last.ckpt", "--output-dir", "new"]) == 0

    assert found_below("new") == ["one/last.ckpt", "two/last.ckpt"]


def test_a_pattern_in_quotes_reaches_every_depth(runs, capsys):
    main(["plan", "runs/**/*.ckpt", "runs/**/*.pt", "--json"])

    assert list(statuses(capsys)) == ["runs/one/last.ckpt", "runs/two/last.ckpt", "runs/best.pt"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(runs, capsys):
    shutil.copy("runs/best.pt", "epoch=[3].ckpt")

    assert main(["run", "epoch=[3].ckpt", "-o", "new.ckpt"]) == 0


def test_two_sources_of_one_target_are_refused_before_anything_is_done(runs, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["run", "runs/one/last.ckpt", "runs/two/last.ckpt", "--output-dir", "new"])

    assert not Path("new").exists()
    assert "a pattern in quotes" in capsys.readouterr().err


def test_the_same_command_again_goes_on_where_it_stopped(runs, capsys):
    main(["run", "runs", "--output-dir", "new"])
    Path("new/best.pt").unlink()
    capsys.readouterr()

    assert main(["run", "runs", "--output-dir", "new", "--json"]) == 0

    assert statuses(capsys) == {
        "runs/best.pt": "migrated",
        "runs/one/last.ckpt": "already migrated",
        "runs/two/last.ckpt": "already migrated",
    }


def test_what_was_migrated_before_a_new_migration_came_is_not_taken_for_done(
    runs, write_folder, capsys
):
    main(["run", "runs", "--output-dir", "new"])
    write_folder({"0002_b.py": MIGRATION.format("b")})

    assert main(["run", "runs", "--output-dir", "new"]) == 2
    assert main(["run", "runs", "--output-dir", "new", "--force"]) == 0

    assert read_checkpoint("new/best.pt")[ckpt_migration_key] == ["0001_a", "0002_b"]


def test_a_target_that_is_older_than_its_source_is_not_taken_for_done(runs, capsys):
    main(["run", "runs", "--output-dir", "new"])
    os.utime("new/best.pt", (0, 0))

    assert main(["run", "runs", "--output-dir", "new"]) == 2

    assert "new/best.pt exists already" in capsys.readouterr().err


def test_a_target_of_another_format_is_not_taken_for_done(runs):
    torch.save({"w": torch.ones(1)}, "flat.pt")
    Path("none").mkdir()
    options = ["--output-dir", "new", "--folder", "none"]
    main(["run", "flat.pt", *options])

    assert main(["run", "flat.pt", *options, "--format", "safetensors"]) == 2


def test_results_below_the_sources_are_not_migrated_again(runs):
    assert main(["run", "runs", "--output-dir", "runs/new"]) == 0
    assert main(["run", "runs", "--output-dir", "runs/new"]) == 0
    assert main(["run", "runs/**/*.ckpt", "--output-dir", "runs/new"]) == 0

    assert found_below("runs/new") == ["best.pt", "one/last.ckpt", "two/last.ckpt"]


def test_damaged_checkpoints_in_a_folder_are_not_passed_over(runs, capsys):
    whole = Path("runs/best.pt").read_bytes()
    Path("runs/cut.pt").write_bytes(whole[: len(whole) // 2])

    assert main(["plan", "runs", "--json"]) == 3

    assert statuses(capsys)["runs/cut.pt"] == "failed"


def test_the_report_has_every_file_and_the_counts(runs, capsys):
    Path("bad.ckpt").write_text("nothing")

    code = main(["run", "runs", "bad.ckpt", "--output-dir", "new", "--report", "report.json"])

    report = json.loads(Path("report.json").read_text())
    assert code == report["exit_code"] == 3
    assert report["counts"] == {"migrated": 3, "failed": 1}
    assert [file["status"] for file in report["files"]] == [*["migrated"] * 3, "failed"]
    assert report["files"][0]["report"]["ran"] == ["0001_a"]
    assert report["files"][3]["error"]["error_type"] == "not_a_checkpoint"
    assert (report["interrupted"], report["not_done"]) == (False, 0)
    assert capsys.readouterr().out.splitlines()[-1] == "4 files: 3 migrated, 1 failed"


def test_a_plan_for_many_files_ends_with_what_there_is_to_do(runs, capsys):
    main(["run", "runs/best.pt", "--in-place"])
    capsys.readouterr()

    assert main(["plan", "runs"]) == 1

    assert capsys.readouterr().out.splitlines()[-1] == "3 files: 1 up to date, 2 to migrate"


def test_a_failure_leaves_no_folder_that_was_made_for_its_result(runs, write_folder):
    write_folder({"0002_b.py": '"""B."""\ndef handle(ckpt):\n    raise ValueError\n'})

    assert main(["run", "runs", "--output-dir", "new/deep"]) == 5

    assert not Path("new").exists()


def test_names_that_no_terminal_should_see_are_escaped(runs, capsys):
    evil = "evil\x1b[31m\n.ckpt"
    shutil.copy("runs/best.pt", evil)
    Path("bad\x1b[31m.ckpt").write_text("nothing")

    main(["run", evil, "bad\x1b[31m.ckpt", "--output-dir", "new"])

    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert "evil\\x1b[31m\\n.ckpt" in captured.out


def test_a_folder_that_cannot_be_loaded_is_told_once(runs, write_folder, capsys):
    write_folder({"0002_b.py": "import no_such_module\n" + MIGRATION.format("b")})

    assert main(["run", "runs", "--output-dir", "new"]) == 2

    captured = capsys.readouterr()
    assert captured.err.count("no_such_module") == 1
    assert captured.out == "3 files: 1 failed, 2 not done\n"


def test_results_never_replace_their_sources_unless_asked_to(runs, capsys):
    before = Path("runs/best.pt").read_bytes()

    with pytest.raises(SystemExit, match="2"):
        main(["run", "runs", "--output-dir", "runs"])

    assert Path("runs/best.pt").read_bytes() == before
    assert "--in-place" in capsys.readouterr().err


def test_a_plan_of_many_files_loads_no_torch(runs, tmp_path):
    code = (
        "import sys\nfrom migrate_ckpt.cli import main\nmain(['plan', 'runs'])\n"
        "raise SystemExit('torch' in sys.modules or 'rich' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "3 files: 3 to migrate"


def test_a_source_that_is_gone_does_not_stop_the_others(runs):
    main(["run", "runs/best.pt", "--output-dir", "new"])
    Path("runs/best.pt").unlink()

    assert main(["run", "runs/best.pt", "runs/one/last.ckpt", "--output-dir", "new"]) == 2

    assert found_below("new") == ["best.pt", "last.ckpt"]


def test_a_source_is_no_target_of_itself_by_accident(runs, capsys):
    before = Path("runs/best.pt").read_bytes()

    with pytest.raises(SystemExit, match="2"):
        main(["run", "runs/best.pt", "-o", "./runs/best.pt"])

    assert "give --in-place" in capsys.readouterr().err
    assert Path("runs/best.pt").read_bytes() == before
    assert main(["run", "runs/best.pt", "-o", "runs/best.pt", "--force"]) == 0
    assert read_checkpoint("runs/best.pt")["a"] is True


def test_a_folder_that_is_no_checkpoint_is_named(runs, capsys):
    assert main(["manifest", "runs"]) == 2

    assert "'runs'" in capsys.readouterr().err
