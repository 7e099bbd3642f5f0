"""Plain tensors that are taken by one pattern are what they would be read as opcode by opcode."""

from __future__ import annotations

import pickle
import random
from typing import Any

import pytest
import torch

from migrate_ckpt.errors import MigrateCkptError, TooLarge, UnwritableCheckpoint
from migrate_ckpt.foreign import ForeignGlobal, ForeignObject
from migrate_ckpt.formats.opcodes import PlainTensor
from migrate_ckpt.formats.outline_tensors import OutlineTensors
from migrate_ckpt.formats.pickle_reader import read_pickle
from migrate_ckpt.formats.pickle_writer import _write_in_python, write_pickle
from migrate_ckpt.formats.placeholders import Placeholders
from migrate_ckpt.formats.shadow import check_pickle
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.formats.storages import StorageHandle
from migrate_ckpt.formats.tensor_matches import TensorMatches
from migrate_ckpt.formats.tensor_writer import TensorWriter
from migrate_ckpt.formats.tensors import MappedTensors
from migrate_ckpt.formats.torch_zip import TorchZip

WIDE = torch.arange(24.0)

CHECKPOINT = {
    "first": torch.ones(3),
    "same type": torch.ones(70_000),
    "two dimensions": torch.ones(2, 3),
    "three": torch.ones(2, 3, 4),
    "five": torch.ones(1, 2, 1, 2, 1),
    "scalar": torch.tensor(1.5),
    "empty": torch.empty(0),
    "no rows": torch.empty(0, 4),
    "transposed": torch.ones(2, 3).t(),
    "wide": WIDE,
    "view": WIDE[4:10],
    "steps": WIDE[1::2],
    "needs a gradient": torch.ones(2, requires_grad=True),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "half": torch.ones(4, dtype=torch.half),
    "half again": torch.ones(5, dtype=torch.half),
    "rare": torch.ones(4, dtype=torch.uint16),
    "rare again": torch.ones(5, dtype=torch.uint16),
    "tied": [WIDE, WIDE],
    "truth": torch.tensor([True, False]),
    "more truth": torch.tensor([True]),
}


class Plainly:
    """The same builder, without what it knows of whole tensors."""

    def __init__(self, builder: Any) -> None:
        self.storage, self.constant = builder.storage, builder.constant
        self.folds, self.finish = builder.folds, builder.finish


@pytest.fixture
def container(save) -> TorchZip:
    return TorchZip(FileSource(save(CHECKPOINT)))


def data_of(container: TorchZip) -> bytes:
    entry = container._records["data.pkl"]
    return container.source.read(entry.data_offset, entry.size)


def describe(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        layout = value.dtype, value.shape, value.stride(), value.storage_offset()
        handle = storage._migrate_ckpt_handle
        facts = handle.key, handle.location, handle.dtype_name, storage.nbytes(), id(storage)
        return type(value), *layout, value.requires_grad, facts[:4]
    if isinstance(value, dict):
        return [(describe(key), describe(part)) for key, part in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [describe(part) for part in value]
    if isinstance(value, ForeignObject):
        return repr(value), describe(value.__recipe__.args)
    return repr(value)


def outcome(data: bytes, builder: Any) -> Any:
    """What is read, or how it is refused."""
    try:
        contents = read_pickle(data, builder)
    except MigrateCkptError as error:
        return type(error)
    return describe(contents.value), contents.globals, len(contents.calls), contents.protocol


def both(data: bytes, container: TorchZip) -> tuple[Any, Any]:
    return (
        outcome(data, MappedTensors(container)),
        outcome(data, Plainly(MappedTensors(container))),
    )


def matches(data: bytes) -> TensorMatches:
    tensors = TensorMatches(data)
    check_pickle(data, tensors)
    return tensors


def test_most_of_the_tensors_that_torch_writes_are_matched(container):
    data = data_of(container)

    # All but the first of each type, and those of dtypes without a typed storage.
    assert len(matches(data)) == 15
    matched, plain = both(data, container)
    assert matched == plain


def test_the_tensors_that_ours_writes_are_matched(container, tmp_path):
    from migrate_ckpt import read_checkpoint, write_checkpoint

    target = tmp_path / "new.ckpt"
    write_checkpoint(read_checkpoint(container.source.path), target)
    written = TorchZip(FileSource(target))
    data = data_of(written)

    assert len(matches(data)) >= 15
    matched, plain = both(data, written)
    assert matched == plain


def test_outlines_are_the_same(container):
    data = data_of(container)

    assert outcome(data, OutlineTensors(container)) == outcome(
        data, Plainly(OutlineTensors(container))
    )


def test_storages_are_shared_as_the_file_says(container):
    value = read_pickle(data_of(container), MappedTensors(container)).value

    storages = {value[name].untyped_storage().data_ptr() for name in ("wide", "view", "steps")}
    assert len(storages) == 1
    assert value["tied"][0] is value["tied"][1] is value["wide"]


def test_a_matched_tensor_does_not_let_opcodes_reach_its_methods(container):
    data = data_of(container)
    (end,) = [i for i in range(len(data)) if data[i:] == b"u."]
    name = data.index(b"two dimensions")
    put = data.index(b"R", data.index(b"\x89", name))
    put = data.index(b"R", put + 1) + 1
    assert data[put : put + 1] in b"qr"

    # BUILD of what stands there: a tensor has a `__setstate__`.
    attacked = data[:put] + b"Nb" + data[put:]

    assert end
    assert both(attacked, container) == (outcome(attacked, MappedTensors(container)),) * 2
    assert issubclass(outcome(attacked, MappedTensors(container)), MigrateCkptError)


def simple(
    *, before: bytes = b"", after: bytes = b"", tensor: bytes = b"", key: bytes = b"0"
) -> bytes:
    """A pickle in the way of torch's: what its tensors use stands in the memo, then come two of them."""
    names = (
        b"ctorch._utils\n_rebuild_tensor_v2\nq\0"
        b"0X\7\0\0\0storageq\x010ctorch\nFloatStorage\nq\x020X\3\0\0\0cpuq\x030"
        b"ccollections\nOrderedDict\nq\x040"
    )
    tensor = (
        tensor
        or b"h\0((h\1h\2X\1\0\0\0%bq\5h\3K\3tq\6QK\0K\3\x85q\7K\1\x85q\x08\x89h\4)Rq\x09tq\x0aRq\x0b"
        % key
    )
    return b"\x80\2(" + names + before + tensor + after + b"l."


NEAR = {
    "the plain one": {},
    "the function is another": {"before": b"cos\nsystem\nq\x000"},
    "the function is a text": {"before": b"X\1\0\0\0aq\x000"},
    "the text is another": {"before": b"X\7\0\0\0storagf\x71\x010"},
    "the text is a list": {"before": b"]q\x010"},
    "the type is another": {"before": b"ctorch\nHalfStorage\nq\x020"},
    "the type is no storage": {"before": b"cbuiltins\nset\nq\x020"},
    "the type is a number": {"before": b"K\1q\x020"},
    "the type is of quantised numbers": {"before": b"ctorch\nQInt32Storage\nq\x020"},
    "the device is a number": {"before": b"K\1q\x030"},
    "the device is another": {"before": b"X\6\0\0\0cuda:7q\x030"},
    "the hooks are another dict": {"before": b"cbuiltins\ndict\nq\x040"},
    "the hooks' function is a list": {"before": b"]q\x040"},
    "a storage that is not there": {"key": b"9"},
    "the size is fetched again": {"after": b"h\7"},
    "the size is fetched again as text": {"after": b"g7\n"},
    "the size is fetched again in four bytes": {"after": b"j\7\0\0\0"},
    "the hooks are fetched again": {"after": b"h\x09"},
    "the hooks are filled": {"after": b"h\x09K\1K\2s"},
    "the arguments are fetched again": {"after": b"h\x0a"},
    "the key is fetched again": {"after": b"h\5"},
    "the tensor is fetched again": {"after": b"h\x0bh\x0b"},
    "what is left out was put before and is fetched after": {
        "before": b"K\7q\x070", "after": b"h\7",
    },
    "an id as the shortened ones": {"after": b"(h\0h\1h\2X\1\0\0\0000h\3h\4tQ"},
    "an id as the shortened ones, before": {"before": b"(h\0h\1h\2X\1\0\0\0000h\3h\4tQ0"},
    "an id with another length": {"before": b"(h\0h\1tQ0"},
    "the tensor is in a text": {"tensor": b"X\x10\0\0\0h\0((h\1h\2X\1\0\0\0000K\1"},
    "hooks": {"tensor": b"h\0((h\1h\2X\1\0\0\0000h\3K\3tQK\0K\3\x85K\1\x85\x89h\4)R(K\1K\2utR"},
    "a negative offset": {"tensor": b"h\0((h\1h\2X\1\0\0\0000h\3K\3tQJ\xff\xff\xff\xffK\3\x85K\1\x85\x89h\4)RtR"},
    "a size past the end": {"tensor": b"h\0((h\1h\2X\1\0\0\0000h\3K\3tQK\1K\3\x85K\1\x85\x89h\4)RtR"},
    "a negative count": {"tensor": b"h\0((h\1h\2X\1\0\0\0000h\3J\xff\xff\xff\xfftQK\1K\3\x85K\1\x85\x89h\4)RtR"},
    "another count": {"tensor": b"h\0((h\1h\2X\1\0\0\0000h\3K\4tQK\0K\3\x85K\1\x85\x89h\4)RtR"},
    "fewer strides than sizes": {"tensor": b"h\0((h\1h\2X\1\0\0\0000h\3K\3tQK\0K\3\x85)\x89h\4)RtR"},
    "too long a key": {"tensor": b"h\0((h\1h\2X\2\0\0\0000h\3K\3tQK\0K\3\x85K\1\x85\x89h\4)RtR"},
    "half a tensor": {"tensor": b"h\0((h\1h\2X\1\0\0\0000h\3K\3tQK\0K\3\x85K\1"},
    "memoised in both ways": {"after": b"N\x94"},
    "the size is one of many numbers": {
        "tensor": b"h\0((h\1h\2X\1\0\0\0000h\3K\3tQK\0(" + b"K\1" * 65 + b"tK\1\x85\x89h\4)RtR"
    },
    "marked sizes": {"tensor": b"h\0((h\1h\2X\1\0\0\0000h\3K\3tQK\0(K\1M\3\0t(J\3\0\0\0K\1t\x88h\4)RtR"},
}  # fmt: skip


@pytest.mark.parametrize("parts", NEAR.values(), ids=NEAR.keys())
def test_what_is_nearly_a_tensor_is_read_as_it_is_without_the_pattern(container, parts):
    data = simple(**parts)

    matched, plain = both(data, container)

    assert matched == plain


def test_the_plain_example_is_matched_and_read(container):
    assert len(matches(simple())) == 1
    assert isinstance(both(simple(), container)[0], tuple)


def test_a_frame_has_no_length_to_be_wrong_after_the_tensors_are_shortened(container):
    data = simple()
    framed = b"\x80\4\x95" + (len(data) - 2).to_bytes(8, "little") + data[2:]

    assert matches(framed).shorten() is None
    matched, plain = both(framed, container)
    assert matched == plain
    assert isinstance(matched, tuple)


@pytest.mark.parametrize("depth", range(390, 404))
def test_a_matched_tensor_is_as_deep_as_another(container, depth):
    data = simple(before=b"(" * depth, after=b"l" * depth)

    matched, plain = both(data, container)

    assert matched == plain
    assert (matched is TooLarge) == (plain is TooLarge)


def test_the_depths_that_are_tried_are_on_both_sides_of_the_limit(container):
    outcomes = [both(simple(before=b"(" * n, after=b"l" * n), container)[0] for n in (390, 403)]

    assert outcomes[0] is not TooLarge
    assert outcomes[1] is TooLarge


def test_a_matched_tensor_as_a_key_is_taken_like_another(container):
    data = simple(before=b"}", after=b"Ns")

    matched, plain = both(data, container)

    assert matched == plain


@pytest.mark.parametrize("seed", range(8))
def test_a_changed_byte_changes_both_readings_alike(container, seed):
    data = data_of(container)
    chosen = random.Random(seed)
    seen = set()

    for _ in range(300):
        changed = bytearray(data)
        for _ in range(chosen.choice((1, 1, 2))):
            place = chosen.randrange(2, len(data))
            changed[place] = chosen.choice(
                (chosen.randrange(256), data[chosen.randrange(len(data))])
            )
        matched, plain = both(bytes(changed), container)
        assert matched == plain, bytes(changed)
        seen.add(isinstance(matched, tuple))

    assert seen == {True, False}


def test_the_fast_writer_and_the_one_in_python_write_the_same_tensors(container):
    value = read_pickle(data_of(container), MappedTensors(container)).value

    fast = write_pickle(value, TensorWriter(container))
    plain = _write_in_python(value, TensorWriter(container), 2)

    assert outcome(fast, MappedTensors(container)) == outcome(plain, MappedTensors(container))
    assert outcome(fast, MappedTensors(container))[0] == describe(value)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data, token: data.replace(token, b"", 1),
        lambda data, token: data + token,
        lambda data, token: data.replace(b"\x85", b"\x86"),
        lambda data, token: data.replace(b"\x8a", b"\x8b"),
    ],
    ids=["one is missing", "one too many", "not a call", "not a number"],
)
def test_a_tensor_that_the_pickler_writes_unexpectedly_is_an_error(spoil):
    placeholders = Placeholders()
    storage = StorageHandle(ForeignGlobal.named("torch", "FloatStorage"), "0", "cpu", 3, None)
    _, (number,) = placeholders.add_tensor(PlainTensor(storage, 0, (3,), (1,), False, None, False))
    data = pickle.dumps((number,), 2)[2:-1] + b"R."
    assert b"FloatStorage" in placeholders.replace(data, free_memo=7)

    with pytest.raises(UnwritableCheckpoint, match="unexpected"):
        placeholders.replace(spoil(data, placeholders._token), free_memo=7)
