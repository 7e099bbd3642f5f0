"""Where a pickle ends that other bytes follow."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate_ckpt import TooLarge, UnreadableCheckpoint
from migrate_ckpt.formats import pickle_stream
from migrate_ckpt.formats.pickle_stream import pickle_at

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


class Bytes:
    """A source in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, offset: int, count: int) -> bytes:
        return self._data[offset : offset + count]


@given(before=st.binary(), value=plain, after=st.binary(), protocol=st.integers(0, 5))
def test_a_pickle_is_found_between_other_bytes(before, value, after, protocol):
    data = pickle.dumps(value, protocol=protocol)

    assert pickle_at(Bytes(before + data + after), len(before)) == data


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_of_many_windows_is_found(protocol):
    data = pickle.dumps(["x" * 300_000, b"y" * 300_000, len, 1 << 9000], protocol=protocol)

    assert pickle_at(Bytes(data + b"."), 0) == data


@given(value=plain, protocol=st.integers(0, 5), data=st.data())
def test_a_pickle_that_is_cut_off_is_refused(value, protocol, data):
    whole = pickle.dumps(value, protocol=protocol)
    cut = data.draw(st.integers(0, len(whole) - 1))

    with pytest.raises(UnreadableCheckpoint):
        pickle_at(Bytes(whole[:cut]), 0)


def test_a_pickle_over_the_limit_is_refused(monkeypatch):
    monkeypatch.setattr(pickle_stream, "MAX_PICKLE_BYTES", 1000)

    with pytest.raises(TooLarge):
        pickle_at(Bytes(pickle.dumps(b"x" * 100_000)), 0)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x80\x02\xff.", id="no opcode"),
        pytest.param(b"\x80\x04\x8e" + b"\xff" * 8 + b"short.", id="an impossible length"),
        pytest.param(b"\x80\x02T\xff\xff\xff\xffshort.", id="a negative length"),
        pytest.param(b"cos\nsystem", id="half a global"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_what_is_no_pickle_is_refused(data):
    with pytest.raises(UnreadableCheckpoint):
        pickle_at(Bytes(data), 0)
