from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from migrate_ckpt import read_checkpoint
from migrate_ckpt.cli import main

GOOD = '"""Do it."""\n\n\ndef handle(ckpt):\n    ckpt["done"] = True\n    return ckpt\n'
DROPS = '"""Do it."""\n\n\ndef handle(ckpt):\n    del ckpt["old"]\n    return ckpt\n'


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.save({"old": 1}, "old.ckpt")
    return tmp_path


def test_lint_has_a_line_for_each_finding_and_answers_by_its_exit_code(write_folder, capsys):
    write_folder({"0001_a.py": DROPS})

    assert main(["lint"]) == 1

    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("migrations/0001_a.py:5: MC007 `del ckpt['old']` drops a value")


def test_lint_without_findings_says_so(write_folder, capsys):
    write_folder({"0001_a.py": GOOD})

    assert main(["lint"]) == 0

    assert capsys.readouterr().out == "no findings\n"


def test_lint_as_json(write_folder, capsys):
    write_folder({"0001_a.py": DROPS})

    main(["lint", "--json"])

    [finding] = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["path"], finding["line"], finding["code"]) == (
        "migrations/0001_a.py",
        5,
        "MC007",
    )


def test_lint_against_checkpoints_finds_what_was_edited_since(write_folder, capsys):
    write_folder({"0001_a.py": GOOD})
    main(["run", "old.ckpt", "-o", "runs.ckpt"])
    write_folder({"0001_a.py": GOOD.replace("True", "False")})
    capsys.readouterr()

    assert main(["lint", "--against", "*.ckpt"]) == 1
    assert main(["lint"]) == 0

    assert "migrations/0001_a.py:1: MC010 was another one when it was applied to runs.ckpt" in (
        capsys.readouterr().out
    )


def test_lint_against_what_is_no_checkpoint_is_an_error(write_folder):
    write_folder({"0001_a.py": GOOD})
    Path("bad.ckpt").write_text("nothing")

    assert main(["lint", "--against", "bad.ckpt"]) == 3


def test_check_names_every_broken_file_and_runs_none(write_folder, capsys):
    write_folder(
        {
            "0001_a.py": "import no_such_module\n" + GOOD,
            "0002_b.py": GOOD,
            "0003_c.py": "raise ValueError('no')\n" + GOOD,
            "vision/0001_x.py": "def handle(:\n",
        }
    )

    assert main(["check"]) == 1

    error = capsys.readouterr().err
    assert [line.partition(":")[0] for line in error.splitlines()] == [
        "migrations/0001_a.py",
        "migrations/0003_c.py",
        "migrations/vision/0001_x.py",
    ]


def test_check_says_that_all_is_well(write_folder, capsys):
    write_folder({"0001_a.py": GOOD, "vision/0001_x.py": GOOD})

    assert main(["check"]) == 0

    assert capsys.readouterr().out.splitlines() == [
        "migrations, set default: 1 migration, all can be run",
        "migrations, set vision: 1 migration, all can be run",
    ]


def test_check_finds_an_order_that_would_be_refused(write_folder, capsys):
    write_folder({"10_a.py": GOOD, "2_b.py": GOOD})

    assert main(["check"]) == 1

    assert "Alphabetical and numeric order disagree" in capsys.readouterr().err


def test_check_tries_the_migrations_out_on_checkpoints_and_writes_nothing(write_folder, capsys):
    write_folder({"0001_a.py": DROPS})
    torch.save({"other": 1}, "other.ckpt")
    before = Path("old.ckpt").read_bytes()

    assert main(["check", "old.ckpt"]) == 0
    assert main(["check", "old.ckpt", "other.ckpt", "--report", "report.json"]) == 5

    report = json.loads(Path("report.json").read_text())
    assert report["counts"] == {"good": 1, "would fail": 1}
    assert report["sets"] == {"default": ["0001_a"]}
    assert "KeyError: 'old'" in capsys.readouterr().out
    assert Path("old.ckpt").read_bytes() == before


def test_check_finds_a_checkpoint_that_was_migrated_with_other_code(write_folder, capsys):
    write_folder({"0001_a.py": GOOD})
    main(["run", "old.ckpt", "--in-place"])
    write_folder({"0001_a.py": GOOD.replace("True", "False")})

    assert main(["check", "old.ckpt"]) == 1

    assert "Edited since they were applied" in capsys.readouterr().out


def test_check_takes_a_missed_migration_for_good_only_if_it_will_run(write_folder, capsys):
    write_folder({"0002_b.py": GOOD})
    main(["run", "old.ckpt", "--in-place"])
    write_folder({"0001_a.py": GOOD})

    assert main(["check", "old.ckpt"]) == 1
    assert main(["check", "old.ckpt", "--policy", "run-missed"]) == 0


def test_check_as_json_is_one_document(write_folder, capsys):
    write_folder({"0001_a.py": GOOD})

    main(["check", "old.ckpt", "--json"])

    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == []
    assert found["counts"] == {"good": 1}


@pytest.mark.parametrize("command", ["check", "lint"])
def test_a_folder_that_is_not_there_is_wrong_usage(command):
    assert main([command, "--folder", "nowhere"]) == 2


def test_new_offers_both_forms(capsys):
    assert main(["new", "first"]) == 0
    assert main(["new", "second", "--handle"]) == 0

    assert "operations = [" in Path("migrations/0001_first.py").read_text()
    assert "def handle(" in Path("migrations/0002_second.py").read_text()
    assert capsys.readouterr().out.splitlines()[0] == "migrations/0001_first.py"


def test_autogenerate_writes_a_migration_that_runs(capsys):
    torch.save({"state_dict": {"a.w": torch.ones(2, 3), "b.w": torch.randn(4)}}, "before.ckpt")
    before = torch.load("before.ckpt")["state_dict"]
    torch.save({"state_dict": {"a.w": before["a.w"], "c.w": before["b.w"]}}, "after.ckpt")

    assert main(["autogenerate", "before.ckpt", "after.ckpt", "--name", "rename_b"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "migrations/0001_rename_b.py: 1 operation, 1 tensor as before"
    assert lines[1] == "  proved: they make NEW's state dict of OLD's, bit by bit"
    assert main(["run", "before.ckpt", "-o", "made.ckpt"]) == 0
    assert list(read_checkpoint("made.ckpt")["state_dict"]) == ["a.w", "c.w"]


def test_autogenerate_says_what_is_left_to_decide(capsys):
    torch.save({"state_dict": {"a.w": torch.ones(2), "b.w": torch.ones(2)}}, "before.ckpt")
    torch.save({"state_dict": {"c.w": torch.ones(2), "d.w": torch.ones(2)}}, "after.ckpt")

    assert main(["autogenerate", "before.ckpt", "after.ckpt"]) == 1

    assert "not decided: 'a.w', 'b.w' -> 'c.w', 'd.w'" in capsys.readouterr().out


def test_draft_that_is_to_be_finished_has_no_fixture(capsys):
    weight = torch.randn(2)
    torch.save({"state_dict": {"a.w": weight}}, "before.ckpt")
    torch.save({"state_dict": {"b.w": weight, "c.w": torch.randn(3)}}, "after.ckpt")

    assert main(["autogenerate", "before.ckpt", "after.ckpt"]) == 1

    assert Path("migrations/0001_autogenerated.py").exists()
    assert not Path("migrations/fixtures").exists()


def test_autogenerate_takes_sharded_checkpoints(capsys):
    weight, other = torch.randn(2), torch.randn(3)
    for folder, name in (("old", "a"), ("new", "b")):
        tensors = {"one.safetensors": {f"{name}.w": weight}, "two.safetensors": {"other": other}}
        weight_map = {key: shard for shard, held in tensors.items() for key in held}
        Path(folder).mkdir()
        for shard, held in tensors.items():
            save_file(held, Path(folder, shard))
        Path(folder, "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": weight_map})
        )

    assert main(["autogenerate", "old", "new"]) == 0

    assert "proved" in capsys.readouterr().out
    assert not Path("migrations/fixtures").exists()
    assert main(["test", "--write", "old"]) != 0
    assert "A fixture cannot be made of a sharded checkpoint" in capsys.readouterr().err


def test_autogenerate_as_json_and_as_text_only(capsys):
    torch.save({"state_dict": {"a.w": torch.randn(2)}}, "before.ckpt")

    assert main(["autogenerate", "before.ckpt", "before.ckpt", "--print"]) == 0
    assert "operations = []" in capsys.readouterr().out
    assert main(["autogenerate", "before.ckpt", "before.ckpt", "--print", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["proved"] is True
    assert not Path("migrations/0001_autogenerated.py").exists()


COMMANDS = [
    "run",
    "plan",
    "inspect",
    "stamp",
    "new",
    "autogenerate",
    "test",
    "squash",
    "repair",
    "adopt",
    "lint",
    "check",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_has_an_example(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])

    text = capsys.readouterr().out
    assert f"\n  migrate-ckpt {command}" in text
    assert max(map(len, text.splitlines())) <= 120
