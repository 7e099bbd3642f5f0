"""Tensors as torch saved them, through our reader and writer and back into torch."""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
import textwrap
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from migrate_ckpt import (
    ForeignObjectError,
    UnreadableCheckpoint,
    UnsafePickle,
    UnwritableCheckpoint,
    migrate_file,
    read_checkpoint,
    write_checkpoint,
)
from migrate_ckpt.foreign import ForeignObject
from migrate_ckpt.formats.mapped import MappedSource
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.formats.storages import StorageHandle

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.complex64, torch.complex128, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
    torch.uint16, torch.uint32, torch.uint64, torch.bool,
    # Without a storage type of their own, and with few operations of torch's.
    torch.complex32, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu, torch.float4_e2m1fn_x2,
    torch.bits8, torch.bits16, torch.bits1x8, torch.bits2x4, torch.bits4x2,
]  # fmt: skip


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


def load(path: Path) -> Any:
    return torch.load(path, weights_only=False, map_location="cpu")


@pytest.fixture
def through(save, tmp_path):
    """Save with torch, read and write with ours, load with torch."""

    def go(value: Any) -> Any:
        source = save(value)
        target = tmp_path / "new.ckpt"
        write_checkpoint(read_checkpoint(source), target)
        return load(target)

    return go


@pytest.mark.filterwarnings("ignore:ComplexHalf support")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back_bit_for_bit(through, dtype):
    tensor = torch.arange(16, dtype=torch.uint8).repeat(8).view(dtype).reshape(2, -1)

    again = through({"t": tensor})["t"]

    assert (again.dtype, again.shape, again.stride()) == (dtype, tensor.shape, tensor.stride())
    assert bits(again) == bits(tensor)


@pytest.mark.parametrize("extra", [{}, {"tags": {1, 2}}], ids=["plain", "with a set"])
def test_what_a_read_and_a_write_needed_is_gone_before_garbage_is_collected(through, extra):
    def handles() -> int:
        return sum(type(found) is StorageHandle for found in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = handles()
        through({"weight": torch.rand(3), "bias": torch.rand(2), **extra})

        assert handles() == before
    finally:
        gc.enable()


def test_the_payload_of_a_nan_is_kept(through):
    tensor = torch.tensor([0x7FC00001, -0x003FFFFF], dtype=torch.int32).view(torch.float32)

    assert bits(through({"t": tensor})["t"]) == bits(tensor)


LAYOUTS = {
    "scalar": lambda: torch.tensor(5.0),
    "empty": lambda: torch.empty(0),
    "empty with a shape": lambda: torch.empty(3, 0, 2),
    "transposed": lambda: torch.arange(6.0).reshape(2, 3).t(),
    "expanded": lambda: torch.arange(3.0).expand(4, 3),
    "view with an offset": lambda: torch.arange(10.0)[3:7],
    "every second": lambda: torch.arange(10.0)[::2],
    "requires grad": lambda: torch.ones(2, requires_grad=True),
    "parameter": lambda: torch.nn.Parameter(torch.ones(2)),
    "frozen parameter": lambda: torch.nn.Parameter(torch.ones(2), requires_grad=False),
}


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layout_and_kind_of_a_tensor_are_kept(through, make):
    tensor = make()

    again = through({"t": tensor})["t"]

    assert type(again) is type(tensor)
    assert (again.shape, again.stride(), again.storage_offset()) == (
        tensor.shape,
        tensor.stride(),
        tensor.storage_offset(),
    )
    assert again.requires_grad == tensor.requires_grad
    assert again.untyped_storage().nbytes() == tensor.untyped_storage().nbytes()
    assert torch.equal(again, tensor)


def test_views_of_one_storage_share_it_and_it_is_written_once(save, tmp_path):
    base = torch.arange(1000.0)
    source = save({"head": base[:10], "tail": base[990:], "tie": base})
    target = tmp_path / "new.ckpt"

    write_checkpoint(read_checkpoint(source), target)

    again = load(target)
    assert len({tensor.untyped_storage().data_ptr() for tensor in again.values()}) == 1
    assert target.stat().st_size < source.stat().st_size + 1000


def test_one_tensor_in_two_places_stays_one(through):
    tensor = torch.ones(3)

    again = through({"a": tensor, "b": [tensor]})

    assert again["a"] is again["b"][0]


def test_a_second_dtype_of_one_storage_is_read_as_that_dtype(tmp_path):
    floats = torch.ones(4)
    target = tmp_path / "new.ckpt"

    write_checkpoint({"floats": floats, "bits": floats.view(torch.int32)}, target)

    again = load(target)
    assert again["bits"].tolist() == [0x3F800000] * 4
    assert (
        again["floats"].untyped_storage().data_ptr() == again["bits"].untyped_storage().data_ptr()
    )


@pytest.mark.parametrize("location", ["cuda:7", "mps", "cpu"])
def test_a_device_tag_survives_on_a_machine_without_the_device(save, tmp_path, location):
    source = save({"weights": torch.ones(3), "empty": torch.empty(0)})
    # No such device is here to save from: the tag is put where the reader keeps it.
    value = read_checkpoint(source)
    for tensor in value.values():
        tensor.untyped_storage()._migrate_ckpt_handle.location = location
    write_checkpoint(value, source)

    target = tmp_path / "new.ckpt"
    write_checkpoint(
        {"renamed": read_checkpoint(source)["weights"], "e": read_checkpoint(source)["empty"]},
        target,
    )

    seen = []
    torch.load(
        target, weights_only=True, map_location=lambda storage, tag: seen.append(tag) or storage
    )
    assert seen == [location] * 2


def test_kinds_of_tensor_that_are_not_plain_are_carried_along(through):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.quantize_per_tensor(torch.arange(3.0), 0.5, 0, torch.qint8)
        tagged = torch.ones(2)
        tagged.note = "mine"
        values = {
            "sparse": torch.eye(3).to_sparse(),
            "quantised": quantised,
            "conjugate": torch.tensor([1 + 2j]).conj(),
            "tagged": tagged,
        }

        again = through(values)

    assert torch.equal(again["sparse"].to_dense(), torch.eye(3))
    assert torch.equal(again["quantised"].int_repr(), quantised.int_repr())
    assert torch.equal(again["conjugate"], values["conjugate"])
    assert again["tagged"].note == "mine"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_nested_tensors_are_carried_along(through):
    parts = [torch.arange(3.0), torch.ones(2)]
    values = {
        "strided": torch.nested.nested_tensor(parts),
        "jagged": torch.nested.nested_tensor(parts, layout=torch.jagged),
    }

    again = through(values)

    for name, value in values.items():
        assert again[name].layout is value.layout
        for one, other in zip(again[name].unbind(), parts, strict=True):
            assert torch.equal(one, other)


def test_a_distributed_tensor_is_carried_along(save, tmp_path):
    program = """
        import os
        import sys
        import torch
        import torch.distributed as dist
        from torch.distributed.tensor import DTensor, Replicate, distribute_tensor, init_device_mesh
        from migrate_ckpt import ForeignObject, read_checkpoint, write_checkpoint

        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        mesh = init_device_mesh("cpu", (1,))
        tensor = distribute_tensor(torch.arange(6.0), mesh, [Replicate()])
        torch.save({"w": tensor}, sys.argv[1])
        ckpt = read_checkpoint(sys.argv[1])
        assert isinstance(ckpt["w"], ForeignObject)
        write_checkpoint({"moved": ckpt["w"]}, sys.argv[2])
        again = torch.load(sys.argv[2], weights_only=False)["moved"]
        assert type(again) is DTensor and again.placements == tensor.placements
        assert torch.equal(again.to_local(), torch.arange(6.0))
        # Torch's threads now and then abort a process that takes them down.
        os._exit(0)
    """
    arguments = [tmp_path / "a.pt", tmp_path / "b.pt"]

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr


def test_a_parameter_keeps_its_state(through):
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.shard = {"axis": 1}

    again = through({"p": parameter, "tie": parameter})

    assert type(again["p"]) is torch.nn.Parameter
    assert again["p"].shard == {"axis": 1}
    assert again["tie"] is again["p"]


def test_tensors_of_a_kind_that_is_not_built_are_foreign_objects(save):
    value = read_checkpoint(save({"sparse": torch.eye(3).to_sparse()}))

    assert isinstance(value["sparse"], ForeignObject)


ASKED = {
    "len": len,
    "items": list,
    "an item": lambda storage: storage[0],
    "values": lambda storage: storage.tolist(),
    "truth": bool,
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED.keys())
def test_a_storage_by_itself_says_that_it_is_not_read(save, ask):
    storage = read_checkpoint(save({"s": torch.ones(3).untyped_storage()}))["s"]

    with pytest.raises(ForeignObjectError, match=r"UntypedStorage of 12 elements, is not read"):
        ask(storage)


def test_a_storage_by_itself_stays_that_of_its_tensor(through):
    tensor = torch.arange(4, dtype=torch.uint8)

    again = through({"storage": tensor.untyped_storage(), "tensor": tensor})

    assert again["storage"].data_ptr() == again["tensor"].untyped_storage().data_ptr()


def test_a_tensor_that_reaches_out_of_its_storage_is_not_written(save, tmp_path):
    ckpt = read_checkpoint(save({"w": torch.arange(4.0), "t": torch.ones(2, 3).t()}))
    with pytest.raises(RuntimeError, match="resize"):
        ckpt["w"].resize_(9)

    with pytest.raises(UnwritableCheckpoint, match=r"shape \(9,\) reaches out"):
        write_checkpoint(ckpt, tmp_path / "new.ckpt")


def test_a_checkpoint_of_a_big_endian_machine_is_refused_by_name(save, monkeypatch):
    monkeypatch.setattr(sys, "byteorder", "big")
    source = save({"w": torch.ones(2)})

    with pytest.raises(UnreadableCheckpoint, match="big-endian machine"):
        read_checkpoint(source)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (torch.ones(2).untyped_storage(), "a storage by itself"),
        (OrderedDict, r"the class or function collections\.OrderedDict"),
        (torch.ones(2), "a Tensor"),
    ],
)
def test_a_file_that_is_one_value_is_refused_by_what_it_is(save, tmp_path, value, what):
    (tmp_path / "migrations").mkdir()

    with pytest.raises(UnreadableCheckpoint, match=f"holds {what}"):
        migrate_file(save(value), tmp_path / "new.ckpt", folder=tmp_path / "migrations")


def test_a_module_is_carried_along_with_its_weights(through):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))

    again = through({"model": module})["model"]

    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), module.parameters(), strict=True)
    )
    assert again.state_dict().keys() == module.state_dict().keys()


def test_dtypes_devices_and_sizes_are_real(save):
    value = read_checkpoint(
        save(
            {"dtype": torch.float16, "device": torch.device("cuda", 3), "size": torch.Size([1, 2])}
        )
    )

    assert value == {
        "dtype": torch.float16,
        "device": torch.device("cuda", 3),
        "size": torch.Size([1, 2]),
    }


def test_writing_to_a_read_tensor_leaves_the_file_as_it_is(save):
    source = save({"w": torch.zeros(10_000)})
    before = source.read_bytes()
    value = read_checkpoint(source)

    value["w"].add_(1)

    assert source.read_bytes() == before


WRITES = {
    "in place": lambda tensor: tensor.mul_(2),
    "through a view": lambda tensor: tensor[5:6].fill_(7),
    "through data": lambda tensor: tensor.data.add_(1),
    "through NumPy": lambda tensor: tensor.numpy().__setitem__(3, 9),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
@pytest.mark.parametrize("knows_pages", [True, False], ids=["page map", "no page map"])
def test_a_tensor_changed_in_place_is_written_with_its_new_values(
    save, tmp_path, monkeypatch, write, knows_pages
):
    if not knows_pages:
        monkeypatch.setattr(MappedSource, "_written_pages", lambda self: None)
    value = read_checkpoint(
        save({"before": torch.ones(3000), "w": torch.arange(3000.0), "after": torch.ones(3000)})
    )
    write(value["w"])
    expected = value["w"].clone()
    target = tmp_path / "new.ckpt"

    write_checkpoint(value, target)

    again = load(target)
    assert torch.equal(again["w"], expected)
    assert torch.equal(again["before"], torch.ones(3000))
    assert torch.equal(again["after"], torch.ones(3000))


def test_two_files_can_be_merged_into_one(save, tmp_path):
    first = read_checkpoint(
        save({"a": torch.arange(3), "sparse": torch.eye(2).to_sparse()}, "first")
    )
    second = read_checkpoint(
        save({"b": torch.arange(4), "sparse": torch.eye(3).to_sparse()}, "second")
    )
    target = tmp_path / "new.ckpt"

    write_checkpoint({"first": first, "second": second, "new": torch.zeros(2)}, target)

    again = load(target)
    assert torch.equal(again["first"]["a"], torch.arange(3))
    assert torch.equal(again["second"]["b"], torch.arange(4))
    assert torch.equal(again["second"]["sparse"].to_dense(), torch.eye(3))
    assert torch.equal(again["new"], torch.zeros(2))


def test_the_result_loads_with_weights_only_and_mapped(save, tmp_path):
    source = save({"state_dict": OrderedDict(w=torch.arange(5.0)), "epoch": 3})
    target = tmp_path / "new.ckpt"

    write_checkpoint({**read_checkpoint(source), "more": torch.ones(2)}, target)

    assert torch.equal(
        torch.load(target, weights_only=True, mmap=True)["state_dict"]["w"], torch.arange(5.0)
    )


def rebuild(offset: int, size: tuple, stride: tuple) -> Any:
    class Tensor:
        def __init__(self, storage: Any) -> None:
            self.storage = storage

        def __reduce__(self) -> tuple:
            return torch._utils._rebuild_tensor_v2, (
                self.storage,
                offset,
                size,
                stride,
                False,
                OrderedDict(),
            )

    return Tensor(torch.arange(4.0)._typed_storage())


OUTSIDE = {
    "offset": (4, (1,), (1,)),
    "size": (0, (5,), (1,)),
    "stride": (0, (2, 2), (4, 1)),
    "negative offset": (-1, (1,), (1,)),
    "negative stride": (3, (2,), (-1,)),
    "overflow": (0, (2**62, 4), (1, 1)),
    "size and stride of different length": (0, (1, 1), (1,)),
}


@pytest.mark.parametrize("layout", OUTSIDE.values(), ids=OUTSIDE.keys())
def test_a_tensor_that_reaches_out_of_its_storage_is_refused(save, layout):
    with pytest.raises(UnreadableCheckpoint):
        read_checkpoint(save({"t": rebuild(*layout)}))


def test_a_pickle_cannot_reach_the_methods_of_a_tensor(save):
    class Changed:
        def __reduce__(self) -> tuple:
            return (
                torch._utils._rebuild_tensor_v2,
                (*rebuild(0, (4,), (1,)).__reduce__()[1],),
                {"x": 1},
            )

    with pytest.raises(UnsafePickle):
        read_checkpoint(save({"t": Changed()}))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_deep_copy_of_what_has_a_storage_is_written_with_the_bytes_of_the_file(save, tmp_path):
    quantised = torch.quantize_per_tensor(torch.arange(64) * 0.05, 0.1, 0, torch.quint8)
    source = save({"q": quantised, "storage": torch.arange(3.0).untyped_storage()})
    ckpt = read_checkpoint(source)

    copied = {"a": copy.deepcopy(ckpt), "b": ckpt}
    # What a descriptor that was closed too early would be given to.
    opened = [source.open("rb") for _ in range(8)]
    write_checkpoint(copied, tmp_path / "new.ckpt")

    again = load(tmp_path / "new.ckpt")
    for part in again.values():
        assert torch.equal(part["q"].int_repr(), quantised.int_repr())
        assert bytes(part["storage"]) == bytes(torch.arange(3.0).untyped_storage())
    for file in opened:
        file.close()


def test_an_open_file_is_not_copied(save):
    with FileSource(save({})) as source:
        for copied in (copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="open file"):
                copied(source)

        assert source.read(0, 2) == b"PK"
