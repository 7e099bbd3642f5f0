from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from migrate_ckpt import migrate_file, plan_file, read_set
from migrate_ckpt.files import inspect_file


def migration(*lines: str) -> str:
    body = "".join(f"    {line}\n" for line in lines)
    return (
        f'"""Title."""\nimport torch\ndef handle(ckpt):\n    w = ckpt["w"]\n{body}    return ckpt\n'
    )


@pytest.fixture
def old(tmp_path) -> Path:
    torch.manual_seed(0)
    weights = OrderedDict((name, torch.randn(6, 2)) for name in ("m.a", "m.b", "m.qkv"))
    weights["m.tied"] = weights["m.a"]
    torch.save({"w": weights, "epoch": 3, "notes": "x" * 500}, tmp_path / "old.ckpt")
    return tmp_path / "old.ckpt"


def changes_of(plan) -> list[list[str]]:
    """Of each step its changes, short."""
    short = []
    for step in plan.steps:
        short.append([])
        for change in step.preview.changes or ():
            paths = (e.path[-1] for e in (change.before, change.after) if e is not None)
            short[-1].append(f"{change.kind} {' '.join(dict.fromkeys(paths))}")
    return short


RENAME = migration("for k in list(w): w[k.removeprefix('m.')] = w.pop(k)")
SPLIT = migration("for n, t in zip('qkv', w.pop('qkv').chunk(3)): w[n] = t.clone()")
CASES = {
    "rename": (RENAME, ["renamed m.a a", "renamed m.b b", "renamed m.qkv qkv", "renamed m.tied tied"]),
    "cast": (migration("w['m.b'] = w['m.b'].half()"), ["changed m.b"]),
    "in place": (migration("w['m.b'].mul_(2)"), ["changed m.b"]),
    "in place, behind the back of autograd": (migration("w['m.b'].data.mul_(2)"), ["changed m.b"]),
    "in place, through NumPy": (migration("w['m.b'].numpy()[0] = 7"), ["changed m.b"]),
    "in place, of a tied one": (migration("w['m.a'].mul_(2)"), ["changed m.a", "changed m.tied"]),
    "the end of a long text": (migration("ckpt['notes'] += 'y'"), ["changed notes"]),
    "another order": (migration("ckpt['w'] = type(w)(sorted(w.items(), reverse=True))"), []),
    "the same values anew": (migration("w['m.b'] = w['m.b'].clone()"), ["changed m.b"]),
    "an inference tensor": (
        migration("with torch.inference_mode(): w['i'] = torch.zeros(1)"),
        ["added i"],
    ),
    "a sparse tensor": (migration("w['s'] = torch.eye(2).to_sparse()"), ["added s"]),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES)
def test_each_way_to_change_a_checkpoint_is_seen(old, write_folder, text, expected):
    folder = write_folder({"0001_x.py": text})

    plan = plan_file(old, read_set(folder), with_changes=True)

    assert changes_of(plan) == [expected]


def test_the_real_run_gives_the_structure_that_the_plan_said(old, write_folder, tmp_path):
    drop = migration("del w['tied']", "ckpt['epoch'] = torch.tensor(3)", "ckpt['new'] = {'x': [1]}")
    folder = write_folder({"0001_x.py": RENAME, "0002_y.py": SPLIT, "0003_z.py": drop})

    plan = plan_file(old, read_set(folder), with_changes=True)
    migrate_file(old, tmp_path / "new.ckpt", folder=folder)

    planned = {without_content(entry) for entry in inspect_file(old).entries}
    for step in plan.steps:
        gone = {without_content(c.before) for c in step.preview.changes if c.before}
        assert gone <= planned
        planned -= gone
        planned |= {without_content(c.after) for c in step.preview.changes if c.after}
    assert planned == {
        without_content(entry)
        for entry in inspect_file(tmp_path / "new.ckpt").entries
        if not entry.path[0].startswith("_migrate-ckpt")
    }


def without_content(entry):
    return (entry.path, entry.kind, entry.dtype, entry.shape, entry.text, entry.nbytes)


def test_nothing_is_written_and_the_source_stays(old, write_folder):
    before = old.read_bytes()

    plan_file(old, read_set(write_folder({"0001_x.py": CASES["in place"][0]})), with_changes=True)

    assert old.read_bytes() == before
    assert [path.name for path in old.parent.iterdir() if path.is_file()] == ["old.ckpt"]


def test_a_failure_stands_in_the_plan_and_what_follows_is_unknown(old, write_folder):
    failing = migration("raise ValueError('no')")
    folder = write_folder({"0001_x.py": RENAME, "0002_y.py": failing, "0003_z.py": SPLIT})

    first, failed, unknown = plan_file(old, read_set(folder), with_changes=True).to_dict()["steps"]

    assert first["counts"] == {"renamed": 4}
    assert failed["changes"] is None
    assert (failed["error"]["error_type"], failed["error"]["migration"]) == (
        "migration_failed",
        "0002_y",
    )
    assert (unknown["changes"], unknown["error"]) == (None, None)


def test_a_plan_without_changes_runs_nothing_and_has_none(old, write_folder):
    folder = write_folder({"0001_x.py": migration("raise ValueError('no')")})

    [step] = plan_file(old, read_set(folder)).to_dict()["steps"]

    assert "changes" not in step


def test_what_will_not_run_has_no_changes(old, write_folder):
    folder = write_folder({"0001_x.py": RENAME, "0002_y.py": SPLIT})

    _, later = plan_file(old, read_set(folder), with_changes=True, to="0001_x").to_dict()["steps"]

    assert "changes" not in later


@pytest.mark.parametrize("format", ["zip", "old stream", "safetensors"])
def test_each_format_is_previewed_with_and_without_bytes(tmp_path, write_folder, format):
    weights = OrderedDict(a=torch.ones(6, 2), b=torch.ones(6, 2)[::2], c=torch.ones(0))
    path = tmp_path / "old"
    if format == "safetensors":
        save_file({key: value.contiguous() for key, value in weights.items()}, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=format == "zip")
    declared = 'from migrate_ckpt.operations import rename\noperations = [rename("{}", "x.{}")]\n'
    function = "def handle(ckpt):\n    ckpt['y'] = ckpt.pop('c')\n    return ckpt\n"
    declared_only = write_folder({"0001_x.py": declared.format("a", "a")}, name="declared")
    both = write_folder({"0001_x.py": declared.format("a", "a"), "0002_y.py": function})

    without_bytes = plan_file(path, read_set(declared_only), with_changes=True)
    with_bytes = plan_file(path, read_set(both), with_changes=True)

    assert changes_of(without_bytes) == [["renamed a x.a"]]
    assert changes_of(with_bytes) == [["renamed a x.a"], ["renamed c y"]]


def requiring(otherwise: str) -> str:
    need = f'requires = [requires_key("encoder", otherwise="{otherwise}")]'
    return (
        '"""X."""\nfrom migrate_ckpt.operations import drop, requires_key\n'
        f'{need}\noperations = [drop("m.b")]\n'
    )


def test_a_migration_that_does_not_apply_changes_nothing_and_says_why(old, write_folder):
    torch.save({"state_dict": {"m.b": torch.ones(1)}}, old)
    folder = write_folder({"0001_x.py": requiring("not_applicable")})

    [step] = plan_file(old, read_set(folder), with_changes=True).to_dict()["steps"]

    assert (step["changes"], step["counts"]) == ([], {})
    assert "encoder" in step["warnings"][0]


def test_a_checkpoint_that_a_migration_is_not_for_is_a_failure_in_the_plan(old, write_folder):
    torch.save({"state_dict": {"m.b": torch.ones(1)}}, old)
    folder = write_folder({"0001_x.py": requiring("refuse")})

    [step] = plan_file(old, read_set(folder), with_changes=True).to_dict()["steps"]

    assert step["changes"] is None
    assert step["error"]["error_type"] == "requirements_not_met"
