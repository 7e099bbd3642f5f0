from __future__ import annotations

import argparse
import collections
import zipfile

import torch

from migrate_ckpt import inspect_file, migrate_file
from migrate_ckpt.outline import each_once


def inspected(tmp_path, value):
    torch.save(value, tmp_path / "x.pt")
    return inspect_file(tmp_path / "x.pt").to_dict()


def test_tensors_have_dtype_and_shape_and_leaves_a_text(tmp_path):
    value = {
        "net": {"w": torch.ones(2, 3, dtype=torch.bfloat16)},
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1),
    }

    found = inspected(tmp_path, value)["outline"]

    assert found == [
        {
            "path": ["net", "w"],
            "kind": "tensor",
            "dtype": "bfloat16",
            "shape": [2, 3],
            "nbytes": 12,
        },
        {"path": ["epoch"], "kind": "int", "text": "3"},
        {"path": ["args", "lr"], "kind": "float", "text": "0.1"},
    ]


def test_items_of_foreign_objects_are_entries(tmp_path):
    value = {
        "kept": collections.deque([torch.ones(2)]),
        "by": collections.defaultdict(list, {"a": [1]}),
        "empty": collections.deque(),
    }

    found = inspected(tmp_path, value)["outline"]

    shown = [(*entry["path"], entry.get("shape") or entry["text"]) for entry in found]
    assert shown == [
        ("kept", "0", [2]),
        ("by", "a", "0", "1"),
        ("empty", "<foreign collections.deque; 0 items>"),
    ]


def test_a_dtype_without_a_storage_type_of_its_own_is_named(tmp_path):
    found = inspected(
        tmp_path, {"w": torch.ones(3, dtype=torch.uint16), "p": torch.nn.Parameter(torch.ones(2))}
    )

    assert [(entry["dtype"], entry["shape"]) for entry in found["outline"]] == [
        ("uint16", [3]),
        ("float32", [2]),
    ]


def test_values_that_hold_themselves_and_huge_numbers_come_to_an_end(tmp_path):
    endless: list = []
    endless.append(endless)

    found = inspected(tmp_path, {"endless": endless, "huge": 10**5000, "long": "x" * 10_000})

    texts = {entry["path"][0]: entry["text"] for entry in found["outline"]}
    assert texts["endless"] == "..."
    assert texts["huge"] == "an int of 16610 bits"
    assert len(texts["long"]) == 200


def test_shared_values_do_not_multiply_without_end(tmp_path):
    value: list = [1]
    for _ in range(40):
        value = [value, value]

    found = inspected(tmp_path, {"x": value})

    assert len(found["outline"]) <= 100_000


def test_a_long_key_is_not_written_out(tmp_path):
    key = ("x" * 1_000_000, 1)
    values = {"many": [{key: 1} for _ in range(2000)], (("a", (1, 2)),): 2, ("y" * 100,) * 30: 3}

    found = inspected(tmp_path, values)["outline"]

    assert {entry["path"][-1] for entry in found} == {
        "a tuple of 2",
        "(('a', (1, 2)),)",
        "a tuple of 30",
    }


def test_every_value_is_visited_once_however_often_it_is_shared():
    value: list = [1]
    for _ in range(200):
        value = [value, value]
    value.append({"back": value, "kept": collections.deque([torch.ones(1)])})

    visited = list(each_once({"x": value}))

    assert len(visited) < 1000
    assert ("x", "2", "back") not in dict(visited)
    assert ("x", "2", "kept") in dict(visited)


def test_every_global_and_call_of_the_pickle_is_listed(tmp_path):
    found = inspected(
        tmp_path,
        {"args": [argparse.Namespace(), argparse.Namespace()], "optimizer": torch.optim.Adam},
    )

    assert found["globals"] == ["argparse.Namespace", "torch.optim.adam.Adam"]
    assert found["calls"] == {"argparse.Namespace": 2}
    assert found["hidden_calls"] == {}


def test_an_unusable_history_is_said(tmp_path):
    found = inspected(tmp_path, {"_migrate-ckpt-migrations": "0001_x"})

    assert found["history"] is None
    assert found["history_error"]


class WithSetter:
    def __reduce__(self) -> tuple:
        return WithSetter, (), {"x": 1}, None, None, setattr


def test_a_function_that_sets_a_state_is_counted_as_the_call_it_is(tmp_path):
    assert inspected(tmp_path, {"x": WithSetter()})["calls"]["__builtin__.setattr"] == 1


def test_a_call_whose_result_is_thrown_away_is_listed_as_hidden(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"x": 1}, path)
    # `os.getpid()` is called, and its result popped, before the pickle goes on as before.
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "y.pt", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            is_pickle = name.endswith("/data.pkl")
            new.writestr(name, data[:2] + b"cos\ngetpid\n)R0" + data[2:] if is_pickle else data)

    found = inspect_file(tmp_path / "y.pt").to_dict()

    assert found["globals"] == ["os.getpid"]
    assert found["hidden_calls"] == {"os.getpid": 1}
    assert found["outline"] == [{"path": ["x"], "kind": "int", "text": "1"}]
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_x.py").write_text("def handle(ckpt):\n    return ckpt\n")
    report = migrate_file(tmp_path / "y.pt", tmp_path / "z.pt", folder=tmp_path / "migrations")
    assert any("are not in the new one: os.getpid" in sentence for sentence in report.warnings)
