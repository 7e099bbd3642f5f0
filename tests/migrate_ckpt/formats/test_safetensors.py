"""Safetensors files: what their library writes we read, what we write it reads, what it refuses we refuse."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migrate_ckpt import InvalidHistory, TooLarge, UnreadableCheckpoint, UnwritableCheckpoint
from migrate_ckpt.formats import open_container, safetensors_writer
from migrate_ckpt.formats.outline_tensors import OutlineTensors
from migrate_ckpt.formats.pieces import Pieces, Range, replace_file
from migrate_ckpt.formats.safetensors import Safetensors
from migrate_ckpt.formats.safetensors_header import DTYPES
from migrate_ckpt.formats.safetensors_writer import lay_out_safetensors
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.formats.tensors import MappedTensors
from migrate_ckpt.history import History, Record, read_history, write_history
from migrate_ckpt.outline import TensorOutline

# The fixture only gives a folder, and each example writes the same file in it anew.
examples = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80
)


def made(header: Any, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def opened(path: Path) -> Safetensors:
    container = open_container(FileSource(path))
    assert isinstance(container, Safetensors)
    return container


def read(path: Path) -> Any:
    container = opened(path)
    return container.read(MappedTensors(container)).value


def write(value: Any, base: Safetensors, path: Path) -> tuple[Pieces, tuple[str, ...]]:
    pieces, left_out = lay_out_safetensors(value, base)
    replace_file(path, pieces, base.source)
    return pieces, left_out


def metadata_of(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, "pt") as file:
        return file.metadata() or {}


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


def facts(tensors: Any) -> dict[str, tuple[Any, ...]]:
    return {name: (t.dtype, tuple(t.shape), bits(t)) for name, t in tensors.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "old.safetensors"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "new.safetensors"


TORCH_DTYPES = sorted({dtype for dtype, bits in DTYPES.values() if dtype and bits >= 8})


@st.composite
def state_dicts(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    found = {}
    for name in draw(st.sets(names.filter(lambda name: name != "__metadata__"), max_size=6)):
        dtype = getattr(torch, draw(st.sampled_from(TORCH_DTYPES)))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        count = torch.Size(shape).numel() * dtype.itemsize
        data = draw(st.binary(min_size=count, max_size=count))
        raw = torch.frombuffer(bytearray(data or b"x"), dtype=torch.uint8)[:count]
        found[name] = torch.empty(shape, dtype=dtype).view(-1)
        found[name].untyped_storage().copy_(raw.clone().untyped_storage())
        found[name] = found[name].reshape(shape)
    return found


# The library (0.8.0) writes broken JSON for no tensors and empty metadata, which it cannot read either.
METADATA = st.none() | st.dictionaries(st.text("abc"), st.text("xyz"), min_size=1)


@examples
@given(tensors=state_dicts(), metadata=METADATA)
def test_what_the_library_writes_is_read_bit_for_bit(tmp_path, tensors, metadata):
    path = tmp_path / "theirs"
    safetensors.torch.save_file(tensors, path, metadata)

    found = read(path)

    assert facts(found) == facts(tensors)


@examples
@given(tensors=state_dicts(), added=state_dicts())
def test_what_is_written_the_library_reads_bit_for_bit(tmp_path, tensors, added):
    path, target = tmp_path / "theirs", tmp_path / "ours"
    safetensors.torch.save_file(tensors, path)
    value = read(path)
    value.update(added)

    write(value, opened(path), target)

    assert facts(safetensors.torch.load_file(target)) == facts({**tensors, **added})


@examples
@given(tensors=state_dicts())
def test_a_file_that_is_read_and_written_again_and_again_stays_the_same(tmp_path, tensors):
    path, first, second = tmp_path / "theirs", tmp_path / "first", tmp_path / "second"
    safetensors.torch.save_file(tensors, path, {"format": "pt"})

    write(read(path), opened(path), first)
    write(read(first), opened(first), second)

    assert second.read_bytes() == first.read_bytes()


@pytest.mark.parametrize("dtype", [torch.float4_e2m1fn_x2, torch.float8_e8m0fnu], ids=str)
def test_the_smallest_floats_come_back(path, target, dtype):
    tensor = torch.arange(6, dtype=torch.uint8).reshape(2, 3).view(dtype)
    safetensors.torch.save_file({"a": tensor}, path)

    write(read(path), opened(path), target)

    with safetensors.safe_open(target, "pt") as file:
        again = file.get_tensor("a")
    assert (again.dtype, again.shape) == (dtype, tensor.shape)
    assert again.view(torch.uint8).tolist() == tensor.view(torch.uint8).tolist()


def test_a_dtype_that_torch_does_not_have_is_refused_by_name(path):
    path.write_bytes(
        made({"a": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}, b"abc")
    )

    with pytest.raises(UnreadableCheckpoint, match="F6_E2M3"):
        read(path)


def test_half_an_element_in_the_last_dimension_is_refused(path):
    path.write_bytes(made({"a": {"dtype": "F4", "shape": [2, 3], "data_offsets": [0, 3]}}, b"abc"))

    with pytest.raises(UnreadableCheckpoint, match="whole bytes"):
        read(path)


def test_bytes_that_are_not_aligned_are_read(path):
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    path.write_bytes(
        made(header, b"\7" + bytes(torch.tensor([1.5, 2.5]).view(torch.uint8).tolist()))
    )

    found = read(path)

    assert (found["b"] * 2).tolist() == [3.0, 5.0]


def test_an_outline_needs_no_tensor(path):
    safetensors.torch.save_file({"a": torch.ones(2, 3), "b": torch.ones(2).to(torch.bool)}, path)
    container = opened(path)

    found = container.read(OutlineTensors(container)).value

    assert dict(found) == {
        "a": TensorOutline("float32", (2, 3), 4),
        "b": TensorOutline("bool", (2,), 1),
    }


ONE = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}
REFUSED: dict[str, bytes] = {
    "cut off in the length": b"\1\0\0\0\0",
    "cut off in the header": made({"a": ONE})[:-4],
    "cut off in a tensor": made({"a": ONE}, b"x"),
    "bytes behind": made({"a": ONE}, b"xyz"),
    "bytes and no tensor": made({}, b"x"),
    "no text": made(b'{"\xff":1}'),
    "no JSON": made(b'{"a":'),
    "two values": made(b"{}{}"),
    "a list": made(b"[]"),
    "deep lists": made(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "a hole": made({"a": {**ONE, "data_offsets": [1, 3]}}, b"xyz"),
    "an overlap": made({"a": ONE, "b": {**ONE, "data_offsets": [1, 3]}}, b"xyz"),
    "an empty tensor inside another": made(
        {"a": ONE, "b": {"dtype": "U8", "shape": [0], "data_offsets": [1, 1]}}, b"xy"
    ),
    "offsets the wrong way": made({"a": {**ONE, "data_offsets": [2, 0]}}, b"xy"),
    "three offsets": made({"a": {**ONE, "data_offsets": [0, 2, 2]}}, b"xy"),
    "another size than the shape's": made({"a": {**ONE, "shape": [3]}}, b"xy"),
    "an impossible product": made({"a": {**ONE, "shape": [1 << 32, 1 << 32, 0]}}, b"xy"),
    "a number over 64 bits": made({"a": {**ONE, "shape": [1 << 64, 0]}}, b"xy"),
    "a number of a thousand digits": made(b'{"a":{"dtype":"U8","shape":[' + b"9" * 1000 + b"]}}"),
    "a negative number": made({"a": {**ONE, "shape": [-1, -2]}}, b"xy"),
    "minus zero": made(b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[-0,2]}}', b"xy"),
    "a fraction": made({"a": {**ONE, "shape": [2.0]}}, b"xy"),
    "not a number": made(b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,2]}}', b"xy"),
    "true for a number": made({"a": {**ONE, "shape": [2, True]}}, b"xy"),
    "a shape that is no list": made({"a": {**ONE, "shape": "2"}}, b"xy"),
    "an unknown dtype": made({"a": {**ONE, "dtype": "F7"}}, b"xy"),
    "a dtype that is no text": made({"a": {**ONE, "dtype": ["U8"]}}, b"xy"),
    "no shape": made({"a": {"dtype": "U8", "data_offsets": [0, 2]}}, b"xy"),
    "a tensor that is no object": made({"a": 1}),
    "metadata that is no text": made({"__metadata__": {"a": 1}}),
    "metadata that is no object": made({"__metadata__": "text"}),
    "a tensor called __metadata__": made({"__metadata__": ONE}, b"xy"),
    "half a character as a name": made(b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
    "half a character as metadata": made(b'{"__metadata__":{"a":"\\ud800"}}'),
    "a field twice": made(b'{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
    "a control character": made(b'{"a\n":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
}  # fmt: skip


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_what_the_library_refuses_is_refused(path, data):
    path.write_bytes(data)

    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(data)
    with pytest.raises(UnreadableCheckpoint):
        read(path)


STRICTER: dict[str, bytes] = {
    "blanks before the object": made(b" {}"),
    "a tensor twice": made(
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    ),
    "metadata twice": made(b'{"__metadata__":{"a":"1","a":"2"}}'),
    "an unknown field": made({"a": {**ONE, "device": "cuda"}}, b"xy"),
    "a tensor as a list": made({"a": ["U8", [2], [0, 2]]}, b"xy"),
}


@pytest.mark.parametrize("data", STRICTER.values(), ids=STRICTER.keys())
def test_what_two_readers_could_understand_differently_is_refused_too(path, data):
    path.write_bytes(data)

    safetensors.deserialize(data)
    with pytest.raises(UnreadableCheckpoint):
        read(path)


def test_a_header_over_the_limit_is_refused_unread(path):
    with path.open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little") + b'{"a":')
        file.truncate(100_000_100)

    with FileSource(path) as source, pytest.raises(TooLarge):
        Safetensors(source)


@st.composite
def broken_files(draw: st.DrawFn) -> bytes:
    """A file of two tensors with one number, field or stretch of bytes replaced."""
    value = st.integers(0, 9) | st.sampled_from(
        ["U8", "F32", None, [], {}, [1], [0, 2], [2, 4], -1, 1 << 63]
    )
    header = {"a": dict(ONE), "b": {"dtype": "U16", "shape": [1], "data_offsets": [2, 4]}}
    name = draw(st.sampled_from(["a", "b", "c", "__metadata__"]))
    field = draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))
    header.setdefault(name, {})[field] = draw(value)
    data = bytearray(made(header, draw(st.sampled_from([b"wxyz", b"wxy", b"wxyz!"]))))
    if draw(st.booleans()):
        start = draw(st.integers(0, len(data)))
        data[start : start + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data)


@settings(examples, max_examples=400)
@given(data=broken_files())
def test_what_is_accepted_the_library_accepts_and_reads_alike(tmp_path, data):
    path = tmp_path / "broken"
    path.write_bytes(data)

    try:
        found = read(path)
    except UnreadableCheckpoint:
        return

    theirs = {name: bytes(view["data"]) for name, view in safetensors.deserialize(data)}
    assert {name: bits(tensor) for name, tensor in found.items()} == theirs


def weights() -> dict[str, torch.Tensor]:
    return {f"layer.{i}.weight": torch.full((10, i), float(i)) for i in range(1, 20)}


def test_renaming_all_tensors_copies_their_bytes_as_one_range(path, target):
    safetensors.torch.save_file(weights(), path, {"format": "pt"})
    base = opened(path)
    # The tensors must be those of this container, or their bytes are not known to be the same.
    renamed = {f"renamed.{name}": t for name, t in base.read(MappedTensors(base)).value.items()}
    pieces, _ = write(renamed, base, target)

    new, copied = pieces
    assert isinstance(copied, Range)
    assert copied.offset == base.header.data_offset
    assert copied.offset + copied.count == base.source.size
    assert (len(new) - copied.offset) % 64 == 0
    assert facts(safetensors.torch.load_file(target)) == facts(renamed)


def test_only_a_tensor_that_was_changed_is_written_anew(path, target):
    safetensors.torch.save_file(weights(), path)
    base = opened(path)
    value = base.read(MappedTensors(base)).value
    value["layer.5.weight"].add_(1)
    value["new"] = torch.ones(3)

    pieces, _ = write(value, base, target)

    assert base.source.size - base.header.data_offset - pieces.copied_bytes == 10 * 5 * 4
    assert facts(safetensors.torch.load_file(target)) == facts(value)


def test_the_bytes_of_every_tensor_are_aligned(path, target):
    tensors = {
        "a": torch.ones(3, dtype=torch.uint8),
        "b": torch.ones(3),
        "c": torch.ones(3, dtype=torch.float16),
    }
    safetensors.torch.save_file(tensors, path)
    value = {"new": torch.ones(1, dtype=torch.float64), "odd": torch.ones(5, dtype=torch.bool)}

    write({**value, **read(path)}, opened(path), target)

    entries = opened(target).header.tensors.values()
    assert all(entry.data_offset % (DTYPES[entry.dtype][1] // 8) == 0 for entry in entries)


def test_the_order_of_the_keys_is_kept(path, target):
    safetensors.torch.save_file({"a": torch.ones(1), "b": torch.ones(2).double()}, path)
    value = {"z": torch.ones(1), **read(path), "c": torch.ones(2).half()}

    write(value, opened(path), target)

    assert list(read(target)) == list(value)


def test_what_is_not_contiguous_is_made_so_and_said(path, target):
    path.write_bytes(made({}))
    tensor = torch.arange(6.0).reshape(2, 3).t()

    _, left_out = write({"a": tensor}, opened(path), target)

    assert torch.equal(safetensors.torch.load_file(target)["a"], tensor)
    assert any("contiguous now: 'a'" in sentence for sentence in left_out)


def test_a_view_takes_its_own_bytes_and_not_those_of_the_storage(path, target):
    path.write_bytes(made({}))

    pieces, _ = write({"a": torch.arange(1_000_000.0)[7:9]}, opened(path), target)

    assert safetensors.torch.load_file(target)["a"].tolist() == [7.0, 8.0]
    assert pieces.size < 1000


def test_a_conjugate_is_written_as_what_it_is(path, target):
    path.write_bytes(made({}))
    tensor = torch.tensor([1 + 2j])

    write({"a": tensor, "b": tensor.conj(), "c": tensor.conj().imag}, opened(path), target)

    again = safetensors.torch.load_file(target)
    assert (again["a"].item(), again["b"].item(), again["c"].item()) == (1 + 2j, 1 - 2j, -2.0)


def test_a_tie_is_written_once_and_comes_back(path, target):
    path.write_bytes(made({}))
    tied = torch.arange(100.0)

    _, left_out = write({"a": tied, "b": torch.ones(1), "c": tied}, opened(path), target)
    again = read(target)

    assert "c" not in safetensors.torch.load_file(target)
    assert again["c"] is again["a"]
    assert any("'c' is 'a'" in sentence for sentence in left_out)


def test_a_tie_survives_a_second_migration_that_renames(path, target, tmp_path):
    path.write_bytes(made({}))
    tied = torch.arange(100.0)
    write({"a": tied, "b": tied}, opened(path), target)
    renamed = {f"new.{name}": tensor for name, tensor in read(target).items()}

    write(renamed, opened(target), tmp_path / "third")

    again = read(tmp_path / "third")
    assert list(again) == ["new.a", "new.b"]
    assert again["new.a"] is again["new.b"]


@pytest.mark.parametrize(
    "ties",
    ['{"b":"gone"}', '{"a":"a"}', '{"b":1}', "[]", "no JSON"],
    ids=["dangling", "of a tensor that is there", "no text", "a list", "no JSON"],
)
def test_a_tie_that_fits_no_tensor_is_left_out(path, ties):
    path.write_bytes(made({"__metadata__": {"_migrate-ckpt-ties": ties}, "a": ONE}, b"xy"))

    assert list(read(path)) == ["a"]


def test_memory_that_two_tensors_share_in_part_is_said(path, target):
    path.write_bytes(made({}))
    whole = torch.arange(10.0)

    _, left_out = write({"a": whole, "b": whole[2:4]}, opened(path), target)

    assert any("share memory" in sentence and "'a', 'b'" in sentence for sentence in left_out)


def test_gradients_are_left_out_and_said(path, target):
    path.write_bytes(made({}))

    _, left_out = write({"a": torch.nn.Parameter(torch.ones(2))}, opened(path), target)

    assert not read(target)["a"].requires_grad
    assert any("gradients: 'a'" in sentence for sentence in left_out)


class Tagged(torch.Tensor):
    """A tensor that knows more than its elements."""


UNWRITABLE = {
    "a dict": ({"w": torch.ones(1)}, "dict"),
    "a number": (3, "int"),
    "sparse": (torch.ones(2).to_sparse(), "sparse"),
    "complex128": (torch.ones(1, dtype=torch.complex128), "complex128"),
    "without bytes": (torch.empty(2, device="meta"), "without bytes"),
    "of a subclass": (torch.ones(1).as_subclass(Tagged), "Tagged"),
}  # fmt: skip


@pytest.mark.parametrize(("value", "why"), UNWRITABLE.values(), ids=UNWRITABLE.keys())
def test_what_safetensors_cannot_hold_is_refused_by_name(path, value, why):
    path.write_bytes(made({}))

    with pytest.raises(UnwritableCheckpoint, match=f"'b' .*{why}") as raised:
        lay_out_safetensors({"a": torch.ones(1), "b": value}, opened(path))

    assert raised.value.where == "b"


@pytest.mark.parametrize("name", [3, "__metadata__", "\ud800"], ids=["int", "reserved", "half"])
def test_a_key_that_can_be_no_name_is_refused(path, name):
    path.write_bytes(made({}))

    with pytest.raises(UnwritableCheckpoint, match="not usable as a name"):
        lay_out_safetensors({name: torch.ones(1)}, opened(path))


def test_a_tensor_with_attributes_is_refused(path):
    path.write_bytes(made({}))
    tensor = torch.ones(1)
    tensor.tag = "mine"

    with pytest.raises(UnwritableCheckpoint, match="attributes"):
        lay_out_safetensors({"a": tensor}, opened(path))


def test_a_header_that_nobody_could_read_is_not_written(path, monkeypatch):
    path.write_bytes(made({}))
    monkeypatch.setattr(safetensors_writer, "MAX_HEADER_BYTES", 100)

    with pytest.raises(UnwritableCheckpoint, match="limit is 100"):
        lay_out_safetensors({"a" * 100: torch.ones(1)}, opened(path))


def test_many_refusals_are_counted(path):
    path.write_bytes(made({}))

    with pytest.raises(UnwritableCheckpoint, match="and 20 more"):
        lay_out_safetensors({str(i): i for i in range(30)}, opened(path))


def test_other_text_of_the_header_is_carried_along(path, target):
    safetensors.torch.save_file({"a": torch.ones(1)}, path, {"format": "pt", "base": "llama\nö"})

    write({"b": read(path)["a"]}, opened(path), target)

    assert metadata_of(target) == {"format": "pt", "base": "llama\nö"}


def test_a_migration_can_change_the_text_of_the_header(path, target):
    safetensors.torch.save_file({"a": torch.ones(1)}, path, {"format": "pt", "base": "llama"})
    value = read(path)
    value._metadata["__metadata__"]["base"] = "new"

    write(value, opened(path), target)

    assert metadata_of(target) == {"format": "pt", "base": "new"}


def test_text_of_the_header_that_is_none_is_refused(path):
    safetensors.torch.save_file({"a": torch.ones(1)}, path, {"base": "llama"})
    value = read(path)
    value._metadata["__metadata__"]["base"] = 3

    with pytest.raises(UnwritableCheckpoint, match="must be text"):
        lay_out_safetensors(value, opened(path))


def test_the_history_travels_in_the_header(path, target):
    safetensors.torch.save_file({"a": torch.ones(1)}, path, {"format": "pt"})
    history = History((Record("0001_x", "default", "1:ab"), Record("0002_y")))
    value = write_history(read(path), history, in_metadata=True)

    write(value, opened(path), target)

    again = read(target)
    assert json.loads(metadata_of(target)["_migrate-ckpt-migrations"]) == ["0001_x", "0002_y"]
    assert read_history(again) == History(history.records, "metadata")
    assert list(again) == ["a"]


def test_a_history_under_the_key_becomes_one_in_the_header(path, target):
    path.write_bytes(made({}))
    value = {"a": torch.ones(1), "_migrate-ckpt-migrations": ["0001_x"]}

    write(value, opened(path), target)

    assert read_history(read(target)).names == ("0001_x",)


@pytest.mark.parametrize(
    "text", ["no JSON", "3", '{"a":1}', "[1]", "[" * 100_000, "9" * 10_000], ids=lambda t: t[:8]
)
def test_a_history_that_is_none_is_refused(path, text):
    path.write_bytes(made({"__metadata__": {"_migrate-ckpt-migrations": text}}))

    with pytest.raises(InvalidHistory):
        read_history(read(path))


def test_the_versions_of_modules_come_back(path, target):
    path.write_bytes(made({}))
    value = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).state_dict()

    write(value, opened(path), target)

    assert read(target)._metadata == value._metadata


@pytest.mark.parametrize("version", [(1, 2), {1}, float("nan"), {1: 2}], ids=str)
def test_metadata_of_a_state_dict_that_is_no_json_is_refused(path, version):
    path.write_bytes(made({}))
    value = OrderedDict(a=torch.ones(1))
    value._metadata = {"": {"version": version}}

    with pytest.raises(UnwritableCheckpoint, match="_metadata") as raised:
        lay_out_safetensors(value, opened(path))

    assert raised.value.where == "_metadata"


def test_the_file_is_not_changed_by_what_is_done_to_its_tensors(path):
    safetensors.torch.save_file({"a": torch.zeros(2)}, path)

    read(path)["a"].add_(1)

    assert safetensors.torch.load_file(path)["a"].tolist() == [0.0, 0.0]


def test_a_storage_of_another_file_is_written_from_memory(path, target, tmp_path):
    other = tmp_path / "other"
    safetensors.torch.save_file({"a": torch.zeros(2)}, path)
    safetensors.torch.save_file({"b": torch.ones(2)}, other)

    write({**read(path), **read(other)}, opened(path), target)
    os.unlink(other)

    assert safetensors.torch.load_file(target)["b"].tolist() == [1.0, 1.0]
