"""The stream of before 1.6: as torch writes it when asked to, and made by hand where torch cannot any more."""

from __future__ import annotations

import io
import os
import pickle
import struct
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from migrate_ckpt import (
    UnreadableCheckpoint,
    UnwritableCheckpoint,
    inspect_file,
    read_checkpoint,
    write_checkpoint,
)
from migrate_ckpt.formats import open_container
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.formats.tensors import HANDLE
from migrate_ckpt.formats.torch_legacy import TorchLegacy

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
MACHINE = {
    "protocol_version": 1001,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}


def load(path: Path) -> Any:
    return torch.load(path, weights_only=False, map_location="cpu")


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


def layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    return (tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset(), bits(tensor))


@pytest.fixture
def save_stream(save):
    """Save with torch as before 1.6."""

    def save_value(value: Any, **options: Any) -> Path:
        return save(value, "old.pth", _use_new_zipfile_serialization=False, **options)

    return save_value


class Id:
    """Stands for what a persistent id names."""

    def __init__(self, *pid: Any) -> None:
        self.pid = pid


class Call:
    """Is pickled as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


class IdPickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.pid if isinstance(obj, Id) else None


def tensor_of(storage: Id, offset: int, *size: int, hooks: Any = ()) -> Call:
    stride = torch.empty(size, device="meta").stride()
    hooks = OrderedDict() if hooks == () else hooks
    rebuild = torch._utils._rebuild_tensor_v2
    return Call(rebuild, storage, offset, size, stride, False, hooks)


@pytest.fixture
def write_stream(tmp_path):
    """Write a stream by hand: the value, and the elements of each storage as bytes by key."""

    def write(
        value: Any,
        storages: dict[str, tuple[int, bytes]],
        *,
        version: Any = 1001,
        machine: Any = MACHINE,
        keys: Any = None,
    ) -> Path:
        buffer = io.BytesIO()
        for plain in (MAGIC_NUMBER, version, machine):
            pickle.dump(plain, buffer, protocol=2)
        IdPickler(buffer, protocol=2).dump(value)
        pickle.dump(list(storages) if keys is None else keys, buffer, protocol=2)
        for count, data in storages.values():
            buffer.write(struct.pack("<q", count) + data)
        path = tmp_path / "made.pth"
        path.write_bytes(buffer.getvalue())
        return path

    return write


FLOATS = struct.pack("<6f", *range(6))
FLOAT_STORAGE = Id("storage", torch.FloatStorage, "1", "cpu", 6, None)

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64,
    torch.complex128, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.bool,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back_bit_for_bit(save_stream, dtype):
    tensors = {
        "a": torch.arange(16, dtype=torch.uint8).repeat(8).view(dtype).reshape(2, -1),
        "b": torch.arange(3.0),
    }

    found = read_checkpoint(save_stream(tensors))

    assert {name: layout(t) for name, t in found.items()} == {
        name: layout(t) for name, t in tensors.items()
    }


LAYOUTS = {
    "scalar": lambda: torch.tensor(5.0),
    "empty": lambda: torch.empty(0),
    "empty with a shape": lambda: torch.empty(3, 0, 2),
    "transposed": lambda: torch.arange(6.0).reshape(2, 3).t(),
    "expanded": lambda: torch.arange(3.0).expand(4, 3),
    "view with an offset": lambda: torch.arange(10.0)[3:7],
    "requires grad": lambda: torch.ones(2, requires_grad=True),
    "parameter": lambda: torch.nn.Parameter(torch.ones(2)),
}


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_stream_becomes_a_zip_with_the_same_tensors(save_stream, tmp_path, make):
    tensor = make()
    target = tmp_path / "new.ckpt"

    write_checkpoint(read_checkpoint(save_stream({"t": tensor, "n": 3})), target)

    again = load(target)
    assert layout(again["t"]) == layout(tensor)
    assert type(again["t"]) is type(tensor)
    assert again["t"].requires_grad == tensor.requires_grad
    assert target.read_bytes()[:4] == b"PK\3\4"


def test_tensors_that_share_a_storage_go_on_sharing_it(save_stream, tmp_path):
    whole = torch.arange(10.0)
    target = tmp_path / "new.ckpt"

    write_checkpoint(
        read_checkpoint(save_stream({"a": whole, "b": whole[2:4], "c": whole})), target
    )

    again = load(target)
    again["a"][2] = 99.0
    assert again["b"][0] == again["c"][2] == 99.0


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_every_protocol_is_read(save_stream, protocol):
    path = save_stream({"a": torch.arange(5), "b": {"lr": 0.1}}, pickle_protocol=protocol)

    found = read_checkpoint(path)

    assert found["a"].tolist() == [0, 1, 2, 3, 4]
    assert found["b"] == {"lr": 0.1}


def test_the_device_tag_is_kept(save_stream, tmp_path):
    path = save_stream({"a": torch.ones(2)})
    path.write_bytes(path.read_bytes().replace(b"\3\0\0\0cpu", b"\3\0\0\0mps"))
    target = tmp_path / "new.ckpt"

    write_checkpoint(read_checkpoint(path), target)

    again = read_checkpoint(target)
    assert getattr(again["a"].untyped_storage(), HANDLE).location == "mps"


def test_a_whole_module_is_read_without_its_class_and_written_back(save_stream, tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    path, target = save_stream({"model": module}), tmp_path / "new.ckpt"

    write_checkpoint(read_checkpoint(path), target)

    again = load(target)["model"]
    assert str(again) == str(module)
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(
            again.state_dict().values(), module.state_dict().values(), strict=True
        )
    )


def test_the_classes_whose_source_code_it_carries_are_known(save_stream):
    with FileSource(save_stream({"model": torch.nn.Linear(2, 3)})) as source:
        container = open_container(source)

    assert isinstance(container, TorchLegacy)
    assert container.sources_of == ("torch.nn.modules.linear.Linear",)


def test_nothing_that_the_stream_names_is_called(write_stream, tmp_path):
    marker = tmp_path / "marker"
    path = write_stream({"a": Call(os.system, f"touch {marker}")}, {})

    inspection = inspect_file(path)

    assert not marker.exists()
    assert f"{os.system.__module__}.system" in inspection.globals


def test_a_part_of_a_storage_is_a_view_of_the_whole(write_stream, tmp_path):
    part = Id("storage", torch.FloatStorage, "1", "cpu", 6, ("2", 2, 3))
    path = write_stream(
        {"whole": tensor_of(FLOAT_STORAGE, 0, 6), "part": tensor_of(part, 1, 2)}, {"1": (6, FLOATS)}
    )
    target = tmp_path / "new.ckpt"

    write_checkpoint(read_checkpoint(path), target)

    theirs, again = load(path), load(target)
    assert again["part"].tolist() == theirs["part"].tolist() == [3.0, 4.0]
    again["whole"][3] = 99.0
    assert again["part"][0] == 99.0


@pytest.mark.parametrize(
    ("view", "offset"),
    [
        (("2", 2, 3), 2),
        (("2", 5, 3), 0),
        (("2", -1, 3), 0),
        (("2", 0, -3), 0),
        (("2",), 0),
        ("x", 0),
    ],
    ids=["tensor past it", "past the storage", "before it", "negative", "no numbers", "text"],
)
def test_a_part_that_is_not_in_its_storage_is_refused(write_stream, view, offset):
    part = Id("storage", torch.FloatStorage, "1", "cpu", 6, view)

    with pytest.raises(UnreadableCheckpoint):
        read_checkpoint(write_stream({"a": tensor_of(part, offset, 2)}, {"1": (6, FLOATS)}))


def test_a_part_outside_a_tensor_cannot_be_written(write_stream, tmp_path):
    part = Id("storage", torch.FloatStorage, "1", "cpu", 6, ("2", 2, 3))
    ckpt = read_checkpoint(write_stream({"a": part}, {"1": (6, FLOATS)}))

    with pytest.raises(UnwritableCheckpoint, match="outside any tensor"):
        write_checkpoint(ckpt, tmp_path / "new.ckpt")


def test_none_for_no_hooks_is_a_plain_tensor(write_stream):
    path = write_stream({"a": tensor_of(FLOAT_STORAGE, 0, 6, hooks=None)}, {"1": (6, FLOATS)})

    assert read_checkpoint(path)["a"].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_stream_cut_off_anywhere_is_refused(save_stream):
    path = save_stream({"a": torch.arange(5), "b": torch.ones(2), "c": [1, 2, {"d": "text"}]})
    whole = path.read_bytes()

    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UnreadableCheckpoint):
            read_checkpoint(path)


GOOD = {"a": tensor_of(FLOAT_STORAGE, 0, 6)}
BROKEN: dict[str, tuple[Any, dict[str, tuple[int, bytes]], dict[str, Any]]] = {
    "more elements than the file has": (GOOD, {"1": (1 << 40, FLOATS)}, {}),
    "an impossible number of elements": (GOOD, {"1": ((1 << 63) - 1, FLOATS)}, {}),
    "a negative number of elements": (GOOD, {"1": (-6, FLOATS)}, {}),
    "fewer elements than the pickle says": (GOOD, {"1": (5, FLOATS[:20])}, {}),
    "bytes behind": (GOOD, {"1": (6, FLOATS + b"more")}, {}),
    "no storage": (GOOD, {}, {}),
    "a storage that nobody names": (GOOD, {"1": (6, FLOATS), "2": (0, b"")}, {}),
    "a storage twice": (GOOD, {"1": (6, FLOATS)}, {"keys": ["1", "1"]}),
    "keys that are no list": (GOOD, {"1": (6, FLOATS)}, {"keys": "1"}),
    "a key that is no text": (GOOD, {"1": (6, FLOATS)}, {"keys": [1]}),
    "another version": (GOOD, {"1": (6, FLOATS)}, {"version": 1002}),
    "no facts of the machine": (GOOD, {"1": (6, FLOATS)}, {"machine": None}),
    "a big-endian machine": (GOOD, {"1": (6, FLOATS)}, {"machine": {"little_endian": False}}),
    "a storage of an unknown type": ({"a": Id("storage", int, "1", "cpu", 6, None)}, {}, {}),
    "an id of five parts": ({"a": Id("storage", torch.FloatStorage, "1", "cpu", 6)}, {}, {}),
    "an id of another kind": ({"a": Id("file", "/etc/passwd")}, {}, {}),
    "source code of no class": ({"a": Id("module", "text", "file", "source")}, {}, {}),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_a_stream_that_contradicts_itself_is_refused(write_stream, broken):
    value, storages, options = broken

    with pytest.raises(UnreadableCheckpoint):
        read_checkpoint(write_stream(value, storages, **options))


@pytest.mark.parametrize("key", ["../../x", "a", "", "1" * 30, "1/2", "٣"])
def test_a_key_that_torch_does_not_write_is_refused(write_stream, key):
    storage = Id("storage", torch.FloatStorage, key, "cpu", 6, None)
    path = write_stream({"a": tensor_of(storage, 0, 6)}, {key: (6, FLOATS)})

    with pytest.raises(UnreadableCheckpoint, match="not one that torch writes"):
        read_checkpoint(path)


def test_a_huge_declaration_allocates_nothing(write_stream):
    huge = Id("storage", torch.DoubleStorage, "1", "cpu", 1 << 40, None)
    path = write_stream({"a": tensor_of(huge, 0, 1 << 40)}, {"1": (1 << 40, FLOATS)})

    with pytest.raises(UnreadableCheckpoint, match="past the end of the file"):
        read_checkpoint(path)


def test_the_storages_are_ranges_of_the_stream(save_stream, tmp_path):
    path = save_stream({"a": torch.ones(100_000)})
    with FileSource(path) as source:
        container = open_container(source)
        stored = next(iter(container.storages.values()))

    assert stored.size == 400_000
    assert path.read_bytes()[stored.data_offset :][:4] == struct.pack("<f", 1.0)


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    # torch says that it could not find the source of a class, which no test here is about.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Couldn't retrieve source code")
        yield
