"""What is passed to `migrate_ckpt` is never changed, and what its tensors hold is not copied for that."""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import textwrap
import zipfile
from collections import OrderedDict

import numpy
import pytest
import torch

from migrate_ckpt import Migration, migrate_ckpt, read_checkpoint, write_checkpoint
from migrate_ckpt.copying import copy_sharing_storages
from migrate_ckpt.formats.legacy_ids import StorageView

WRITES = {
    "in place": lambda tensor: tensor.mul_(2),
    "through a view": lambda tensor: tensor[1:2].fill_(7),
    "through data": lambda tensor: tensor.data.add_(1),
    "through NumPy": lambda tensor: tensor.detach().numpy().__setitem__(0, 9),
    "through the storage": lambda tensor: tensor.untyped_storage().fill_(1),
    "through out": lambda tensor: torch.add(tensor.data, 1, out=tensor.data),
    "through another dtype": lambda tensor: tensor.data.view(torch.int32).fill_(3),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
@pytest.mark.parametrize("side", ["the copy", "the original"])
def test_a_write_to_one_side_is_not_seen_on_the_other(write, side):
    original = {"w": torch.arange(8.0)}
    twin = copy_sharing_storages(original)
    written, other = (twin, original) if side == "the copy" else (original, twin)

    write(written["w"])

    assert torch.equal(other["w"], torch.arange(8.0))
    assert not torch.equal(written["w"], other["w"])


def test_ties_and_views_stay_so_among_themselves():
    base = torch.arange(10.0)
    twin = copy_sharing_storages(
        {"base": base, "tie": base, "view": base[2:5], "transposed": base.view(2, 5).t()}
    )

    twin["base"].add_(1)

    assert twin["tie"] is twin["base"]
    assert twin["view"].tolist() == [3.0, 4.0, 5.0]
    assert twin["transposed"].stride() == (1, 5)
    assert twin["transposed"][0, 0] == 1.0
    assert base.tolist() == list(range(10))


def test_parameters_stay_parameters_and_share_with_their_views():
    weight = torch.nn.Parameter(torch.ones(3))
    module = torch.nn.Linear(2, 2)

    twin = copy_sharing_storages({"weight": weight, "view": weight.data[:1], "module": module})

    assert type(twin["weight"]) is torch.nn.Parameter
    assert twin["weight"].requires_grad
    twin["weight"].data.fill_(5)
    assert twin["view"].item() == 5.0
    assert weight.tolist() == [1.0, 1.0, 1.0]
    twin["module"].weight.data.zero_()
    assert module.weight.abs().sum() > 0


def test_everything_else_is_a_deep_copy():
    state = OrderedDict(w=torch.ones(2))
    state._metadata = {"": {"version": 1}}
    args = argparse.Namespace(layers=[1])
    graded = torch.ones(2, requires_grad=True)
    graded.grad = torch.full((2,), 3.0)
    graded.note = ["mine"]
    original = {"state": state, "args": args, "graded": graded, "result": (graded * 2)}

    twin = copy_sharing_storages(original)

    twin["state"]._metadata[""]["version"] = 2
    twin["args"].layers.append(2)
    twin["graded"].note.append("too")
    twin["graded"].grad.zero_()
    assert state._metadata == {"": {"version": 1}}
    assert args.layers == [1]
    assert graded.note == ["mine"]
    assert graded.grad.tolist() == [3.0, 3.0]
    assert twin["graded"].requires_grad


def test_a_parameter_keeps_its_gradient_and_attributes():
    weight = torch.nn.Parameter(torch.ones(3), requires_grad=True)
    weight.grad = torch.full((3,), 2.0)
    weight.note = ["mine"]
    weight.me = weight
    module = torch.nn.Linear(2, 2)
    module.weight.tag = module.bias

    twin = copy_sharing_storages({"weight": weight, "module": module})

    copied = twin["weight"]
    copied.note.append("too")
    copied.grad.zero_()
    assert type(copied) is torch.nn.Parameter
    assert copied.me is copied
    assert weight.note == ["mine"]
    assert weight.grad.tolist() == [2.0, 2.0, 2.0]
    assert twin["module"].weight.tag is twin["module"].bias


def test_a_tensor_may_hold_itself():
    tensor = torch.ones(2)
    tensor.me = [tensor]

    twin = copy_sharing_storages(tensor)

    assert twin.me[0] is twin


class Average:
    """One that copies itself, with a tensor of its own that starts as another does."""

    def __init__(self, shadow):
        self.shadow = shadow

    def __deepcopy__(self, memo):
        twin = Average(self.shadow.data.clone())
        twin.start = self.shadow.clone().zero_()
        return twin


@pytest.mark.parametrize("kind", [lambda tensor: tensor, torch.nn.Parameter])
def test_a_clone_that_an_object_makes_of_its_own_accord_is_one(kind):
    weights = kind(torch.ones(3))
    with torch.no_grad():
        twin = copy_sharing_storages({"w": weights, "average": Average(weights)})

    twin["average"].shadow.add_(1)
    assert twin["w"].tolist() == [1.0, 1.0, 1.0]
    assert twin["average"].start.tolist() == [0.0, 0.0, 0.0]


def test_a_part_of_a_storage_is_copied_with_its_storage(tmp_path):
    handle = save(tmp_path / "a.pt", {"s": torch.ones(3).untyped_storage()})["s"]

    twin = copy_sharing_storages([StorageView(handle, 1, 2), handle])

    assert (twin[0].offset, twin[0].size) == (1, 2)
    assert twin[0].root is twin[1]
    assert twin[1].container is not handle.container


def test_meta_tensors_keep_their_ties():
    base = torch.empty(4, device="meta")

    twin = copy_sharing_storages([base, base[1:]])

    assert twin[0].untyped_storage()._cdata == twin[1].untyped_storage()._cdata
    assert twin[1].storage_offset() == 1


VIEWS = {
    "conjugate": lambda base: base.conj(),
    "negative": lambda base: base.conj().imag,
    "real part": lambda base: torch.view_as_real(base),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_a_view_that_reads_another_way_stays_one(view):
    base = torch.tensor([1 + 2j, 3 - 4j])

    twin = copy_sharing_storages({"view": view(base), "base": base})

    assert torch.equal(twin["view"], view(base))
    twin["base"].mul_(2)
    assert torch.equal(twin["view"], view(base * 2))
    assert base.tolist() == [1 + 2j, 3 - 4j]


@pytest.mark.parametrize("names", [("storage", "tensor"), ("tensor", "storage")])
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("kind", ["untyped_storage", "_typed_storage"])
def test_a_storage_by_itself_stays_that_of_its_tensor(names, kind, caplog):
    tensor = torch.arange(4.0)
    parts = {"tensor": tensor, "storage": getattr(tensor, kind)()}

    with caplog.at_level(logging.INFO, "migrate_ckpt"):
        twin = copy_sharing_storages({name: parts[name] for name in names})

    twin["tensor"].fill_(7)
    found = twin["storage"]
    untyped = found if kind == "untyped_storage" else found._untyped_storage
    assert bytes(untyped.tolist()) == bytes(twin["tensor"].untyped_storage().tolist())
    assert tensor.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert ("copied 16 bytes" in caplog.text) == (names[0] == "storage")


KINDS = {
    "bfloat16": lambda: torch.ones(4, dtype=torch.bfloat16),
    "complex": lambda: torch.tensor([1 + 2j]),
    "conjugate": lambda: torch.tensor([1 + 2j]).conj(),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "compressed sparse": lambda: torch.eye(3).to_sparse_csr(),
    "computed": lambda: torch.eye(3).to_sparse().requires_grad_() * 2,
    "scalar": lambda: torch.tensor(3.0),
    "empty": lambda: torch.empty(0, 3),
    "expanded": lambda: torch.ones(1).expand(3, 4),
    "bool": lambda: torch.tensor([True]),
    "meta": lambda: torch.empty(3, device="meta"),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
def test_every_kind_of_tensor_is_copied_as_what_it_is(make):
    tensor = make()

    twin = copy_sharing_storages([tensor])[0]

    described = [(t.dtype, t.shape, t.layout, t.device) for t in (twin, tensor)]
    assert described[0] == described[1]
    if not tensor.is_meta:
        assert torch.equal(*(t.to_dense() for t in (twin, tensor)))
        assert twin.requires_grad == tensor.requires_grad


def test_foreign_memory_is_copied_once_and_the_log_says_how_much(caplog):
    array = numpy.arange(100.0)
    tensor = torch.from_numpy(array)

    with caplog.at_level(logging.INFO, "migrate_ckpt"):
        twin = copy_sharing_storages({"a": tensor, "view": tensor[5:]})

    assert "copied 800 bytes" in caplog.text
    assert "special kinds: a, view" in caplog.text
    twin["a"][5] = -1
    assert twin["view"][0] == -1
    assert array[5] == 5


def save(path, value):
    torch.save(value, path)
    return read_checkpoint(path)


def test_what_was_read_from_a_file_is_mapped_once_more(tmp_path, caplog):
    weights = torch.arange(1000.0)
    ckpt = save(tmp_path / "a.pt", {"w": weights, "view": weights[5:], "b": torch.zeros(1000)})
    ckpt["b"].fill_(3)

    with caplog.at_level(logging.INFO, "migrate_ckpt"):
        twin = copy_sharing_storages(ckpt)

    assert "copied 4000 bytes" in caplog.text
    assert "special kinds: b" in caplog.text
    assert torch.equal(twin["b"], torch.full((1000,), 3.0))
    twin["w"].add_(1)
    twin["b"].zero_()
    assert twin["view"][0] == 6.0
    assert ckpt["w"][0] == 0.0
    assert ckpt["b"][0] == 3.0
    ckpt["w"].mul_(-1)
    assert twin["w"][1] == 2.0
    write_checkpoint(twin, tmp_path / "b.pt")
    again = torch.load(tmp_path / "b.pt", weights_only=True)
    assert torch.equal(again["w"], weights + 1)
    assert again["view"].data_ptr() == again["w"].data_ptr() + 20
    assert again["b"].sum() == 0


def test_a_migration_in_memory_keeps_the_device_and_the_bytes_of_a_file(tmp_path):
    tagged = torch.serialization.location_tag
    torch.serialization.location_tag = lambda storage: "cuda:7"
    try:
        ckpt = save(tmp_path / "a.pt", {"w": torch.ones(3), "sparse": torch.eye(3).to_sparse()})
    finally:
        torch.serialization.location_tag = tagged

    migrated, _ = migrate_ckpt(ckpt, [Migration("0", lambda ckpt: {"x": ckpt["w"], **ckpt})])
    write_checkpoint(migrated, tmp_path / "b.pt")

    with zipfile.ZipFile(tmp_path / "b.pt") as archive:
        data = archive.read("a/data.pkl")
    assert b"cuda:7" in data
    assert b"cpu" not in data


@pytest.mark.parametrize("source", ["what torch allocated", "a file"])
def test_migrations_on_a_large_checkpoint_copy_no_tensor_bytes(source, tmp_path):
    program = """
        import sys
        import torch
        from migrate_ckpt import Migration, migrate_ckpt, read_checkpoint, write_checkpoint

        def anonymous():
            for line in open("/proc/self/status"):
                if line.startswith("RssAnon"):
                    return int(line.split()[1]) // 1024

        def rename(ckpt):
            ckpt["state_dict"] = {"x." + key: value for key, value in ckpt["state_dict"].items()}
            return ckpt

        ckpt = {"state_dict": {str(i): torch.full((4 << 20,), 1.0) for i in range(16)}}
        if sys.argv[1] == "a file":
            torch.save(ckpt, sys.argv[2] + "/a.pt")
            ckpt = read_checkpoint(sys.argv[2] + "/a.pt")
        migrate_ckpt({}, [Migration("0", rename_nothing := lambda ckpt: ckpt)])
        before = anonymous()
        ckpt, done = migrate_ckpt(ckpt, [Migration(str(i), rename) for i in range(3)])
        during = anonymous()
        torch.save(ckpt, "/dev/null")
        if sys.argv[1] == "a file":
            write_checkpoint(ckpt, sys.argv[2] + "/b.pt")
        print(before, during - before, anonymous() - before, len(done))
    """

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), source, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=True,
    )

    before, during, after, count = map(int, done.stdout.split())
    assert count == 3
    assert source == "a file" or before >= 256
    assert during < 40
    assert after < 40


def test_a_failing_migration_leaves_what_was_passed_in_as_it_was():
    original = {"w": torch.zeros(3)}

    def fail(ckpt):
        ckpt["w"].add_(1)
        raise ValueError("no")

    with pytest.raises(Exception, match="no"):
        migrate_ckpt(original, [Migration("fail", fail)])

    assert original["w"].tolist() == [0.0, 0.0, 0.0]
