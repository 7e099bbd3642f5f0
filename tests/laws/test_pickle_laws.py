"""What holds for every graph of objects: what is read and written again is what was there before."""

from __future__ import annotations

import argparse
import copy
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migrate_ckpt import read_checkpoint, write_checkpoint
from migrate_ckpt.formats.shadow import check_pickle
from tests.laws import oracle
from tests.laws.graphs import LEAVES, Keeper, Member, difference, graphs
from tests.migrate_ckpt.formats.test_pickles import read, write

# How many graphs each law is tried on; set it higher for a longer search.
EXAMPLES = int(os.environ.get("LAW_EXAMPLES", "150"))
tried_often = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

PROTOCOLS = st.integers(2, 5)
SHARED = [1]
WEIGHTS = torch.arange(4.0)


@st.composite
def tensors(draw: st.DrawFn) -> Any:
    """A tensor, sometimes a view, sometimes a parameter."""
    dtypes = [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]
    made = torch.arange(12).to(draw(st.sampled_from([*dtypes, torch.float8_e5m2, torch.uint16])))
    shape = draw(st.sampled_from([(12,), (3, 4), (0,), (), (2, 1, 3)]))
    made = made[: int(torch.tensor(shape).prod())].reshape(shape)
    if made.dim() == 2 and draw(st.booleans()):
        made = made.t()[1:]
    if made.is_floating_point() and draw(st.booleans()):
        made = torch.nn.Parameter(made, requires_grad=draw(st.booleans()))
    return made


@tried_often
@given(graphs(), PROTOCOLS)
def test_a_graph_that_was_read_and_written_loads_as_the_original_does(
    graph: Any, protocol: int
) -> None:
    original = pickle.dumps(graph, protocol)

    contents = read(original)
    again = pickle.loads(write(contents.value, contents.protocol))

    assert difference(again, pickle.loads(original)) == ""


@tried_often
@given(graphs(), PROTOCOLS)
def test_the_writer_writes_what_the_plain_one_writes(graph: Any, protocol: int) -> None:
    original = pickle.dumps(graph, protocol)

    ours = write(read(original).value, protocol)
    plain = oracle.write(read(original).value, protocol)

    assert difference(pickle.loads(ours), pickle.loads(plain)) == ""
    # Protocols 4 and 5 have opcodes for sets, which the writer does without to give them an order.
    sets = {"builtins.set", "builtins.frozenset"}
    assert set(read(ours).globals) - sets == set(read(plain).globals) - sets


@tried_often
@given(graphs(), PROTOCOLS)
def test_the_same_bytes_are_written_again_from_what_was_written(graph: Any, protocol: int) -> None:
    first = write(read(pickle.dumps(graph, protocol)).value, protocol)

    second = write(read(first).value, protocol)

    assert write(read(second).value, protocol) == second


@tried_often
@given(graphs(), st.integers(0, 5))
def test_whatever_pickle_writes_passes_the_check(graph: Any, protocol: int) -> None:
    data = pickle.dumps(graph, protocol)

    assert check_pickle(data + b"more") == len(data)


@settings(tried_often, max_examples=max(EXAMPLES // 2, 1))
@given(graphs(LEAVES | tensors()), PROTOCOLS)
def test_tensors_come_back_with_their_bits_and_ties(graph: Any, protocol: int) -> None:
    again, original = through_a_file(graph, protocol)

    assert difference(again, original) == ""


@settings(tried_often, max_examples=max(EXAMPLES // 2, 1))
@given(graphs(LEAVES | tensors()), PROTOCOLS)
def test_a_deep_copy_of_what_was_read_is_written_as_the_original(graph: Any, protocol: int) -> None:
    again, original = through_a_file(graph, protocol, copy.deepcopy)

    assert difference(again, copy.deepcopy(original)) == ""


def through_a_file(graph: Any, protocol: int, change: Any = None) -> tuple[Any, Any]:
    """Save with torch, read and write with ours, load with torch; and load what was saved."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "a.pt", Path(folder) / "b.pt"
        torch.save(graph, source, pickle_protocol=protocol)
        value = read_checkpoint(source)
        write_checkpoint(change(value) if change else value, target)
        again = torch.load(target, weights_only=False)
        return again, torch.load(source, weights_only=False)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1], [True]),
        ([0.0], [-0.0]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ([SHARED, SHARED], [SHARED, [1]]),
        ([SHARED, [1]], [SHARED, SHARED]),
        (argparse.Namespace(a=[1]), argparse.Namespace(a=[2])),
        (torch.ones(2), torch.ones(2, dtype=torch.float64)),
        ({Member(0, SHARED)}, {Member(0, [2])}),
        ([Keeper(SHARED), SHARED], [Keeper(SHARED), [1]]),
        (WEIGHTS[:2], WEIGHTS[:2].clone()),
        ([WEIGHTS, WEIGHTS[1:]], [WEIGHTS, WEIGHTS.clone()[1:]]),
    ],
)
def test_a_difference_between_two_graphs_is_seen(one: Any, other: Any) -> None:
    assert difference(one, other) != ""
