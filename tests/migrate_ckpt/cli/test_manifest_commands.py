from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from migrate_ckpt import read_manifest
from migrate_ckpt.cli import main

MODULE = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 3)
        self.b = nn.Linear(2, 3)
        self.b.weight = self.a.weight

def broken():
    raise RuntimeError("no weights here")

def real():
    return nn.Linear(int(torch.ones(1)), 2)

def nothing():
    return 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "zoo_of_models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", __import__("sys").path[:])
    model = nn.Module()
    model.a, model.b = nn.Linear(2, 3), nn.Linear(2, 3)
    model.b.weight = model.a.weight
    torch.save({"state_dict": model.state_dict()}, tmp_path / "new.ckpt")
    return tmp_path


def test_manifest_of_a_factory_is_that_of_its_checkpoint(here, capsys):
    assert main(["manifest", "zoo_of_models:Model", "-o", "model.json"]) == 0
    assert capsys.readouterr().out == "model.json: 4 tensors, 1 ties\n"

    assert main(["manifest", "new.ckpt", "-o", "ckpt.json"]) == 0

    factory, file = read_manifest(here / "model.json"), read_manifest(here / "ckpt.json")
    assert factory.tensors == file.tensors
    assert factory.ties == file.ties == (("a.weight", "b.weight"),)
    assert (factory.section, file.section) == (None, ("state_dict",))


def test_manifest_is_printed_with_what_was_asked_for(here, capsys):
    code = main([
        "manifest", "zoo_of_models:Model", "--prefix", "model.", "--checks", "keys", "--section", "state_dict",
    ])  # fmt: skip

    printed = json.loads(capsys.readouterr().out)
    assert code == 0
    assert printed["checks"] == ["keys"]
    assert printed["section"] == ["state_dict"]
    assert printed["ties"] == [["model.a.weight", "model.b.weight"]]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("zoo_of_models:broken", "failed: RuntimeError: no weights here. If it needs real tensors"),
        ("zoo_of_models:Modell", "cannot be found: module 'zoo_of_models' has no attribute"),
        ("no_such_zoo:Model", "cannot be found: No module named 'no_such_zoo'"),
        ("zoo_of_models:nothing", "gave no model: A int is neither a module nor a state dict"),
    ],
)
def test_factory_that_gives_no_model_is_explained(here, capsys, name, sentence):
    with pytest.raises(SystemExit) as caught:
        main(["manifest", name])

    assert caught.value.code == 2
    assert sentence in capsys.readouterr().err


def test_model_that_needs_real_tensors_can_have_them(here, capsys):
    with pytest.raises(SystemExit):
        main(["manifest", "zoo_of_models:real"])

    assert main(["manifest", "zoo_of_models:real", "--allocate"]) == 0


def test_existing_manifest_is_kept_without_force(here, capsys):
    (here / "model.json").write_text("mine")

    assert main(["manifest", "new.ckpt", "-o", "model.json"]) == 2
    assert (here / "model.json").read_text() == "mine"
    assert main(["manifest", "new.ckpt", "-o", "model.json", "--force"]) == 0


def test_verify_says_each_difference_and_what_loading_does(here, capsys):
    main(["manifest", "new.ckpt", "-o", "model.json"])
    weights = {
        "a.weight": torch.zeros(3, 2),
        "b.weight": torch.zeros(3, 2),
        "a.bias": torch.ones(4),
    }
    torch.save({"state_dict": {**weights, "more": torch.ones(1).half()}}, here / "other.ckpt")
    capsys.readouterr()

    assert main(["verify", "new.ckpt", "--manifest", "model.json"]) == 0
    assert capsys.readouterr().out == "new.ckpt: as expected\n"
    assert main(["verify", "other.ckpt", "--manifest", "model.json"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "other.ckpt: 1 missing, 1 unexpected, 1 shape, 1 tie",
        "  - missing b.bias: float32 [3]",
        "  + unexpected more: float16 [1]",
        "  ~ shape a.bias: float32 [4], expected float32 [3]",
        "  = tie a.weight, b.weight: tensors of their own, expected one tensor",
        "  load_state_dict(strict=True) refuses it",
    ]


def test_verify_takes_the_manifest_of_the_set_and_many_files(here, capsys):
    (here / "migrations").mkdir()
    with pytest.raises(SystemExit) as caught:
        main(["verify", "new.ckpt"])
    assert caught.value.code == 2
    assert "the set default has no manifest.json" in capsys.readouterr().err

    main(["manifest", "new.ckpt", "-o", "migrations/manifest.json", "--force"])
    torch.save({"state_dict": {"a": torch.zeros(1)}}, here / "other.ckpt")
    capsys.readouterr()

    assert main(["verify", "new.ckpt", "other.ckpt", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert [file["status"] for file in data["files"]] == ["as expected", "different"]
    assert data["files"][1]["loads_strictly"] is False


def test_run_that_does_not_meet_the_manifest_ends_with_5(here, capsys):
    (here / "migrations").mkdir()
    main(["manifest", "new.ckpt", "-o", "migrations/manifest.json"])
    torch.save({"state_dict": {"a": torch.zeros(1)}}, here / "other.ckpt")

    assert main(["run", "other.ckpt", "-o", "out.ckpt"]) == 5
    assert "manifest_not_met: The migrated checkpoint is not what" in capsys.readouterr().err
    assert not (here / "out.ckpt").exists()
