from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from migrate_ckpt import Verdict, manifest_of


class Model(nn.Module):
    """One of everything that a state dict can have."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("unsaved", torch.zeros(3), persistent=False)

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 3}

    def set_extra_state(self, state: object) -> None:
        pass


def compare(change) -> Verdict:
    """The verdict over the state dict of a model that was changed."""
    model = Model()
    state_dict = copy.deepcopy(model.state_dict())
    state_dict = change(state_dict) or state_dict
    with torch.no_grad():
        verdict = Verdict.of(manifest_of(Model()), manifest_of(state_dict))
        try:
            Model().load_state_dict(state_dict)
        except RuntimeError:
            assert not verdict.loads_strictly
        else:
            assert verdict.loads_strictly
    return verdict


def drop(*keys: str):
    return lambda state_dict: [state_dict.pop(key) for key in keys] and None


def put(**values):
    return lambda state_dict: state_dict.update(
        {key.replace("__", "."): value for key, value in values.items()}
    )


def forget_metadata(state_dict):
    del state_dict["norm.num_batches_tracked"]
    return dict(state_dict)


@pytest.mark.parametrize(
    ("change", "expected", "loads"),
    [
        (lambda state_dict: None, [], True),
        (drop("norm.bias"), [("missing", "norm.bias")], False),
        (drop("norm.num_batches_tracked"), [("missing", "norm.num_batches_tracked")], False),
        (forget_metadata, [("missing", "norm.num_batches_tracked")], True),
        (put(more=torch.zeros(1)), [("unexpected", "more")], False),
        (put(unsaved=torch.zeros(3)), [("unexpected", "unsaved")], False),
        (drop("_extra_state"), [("missing", "_extra_state")], False),
        (put(norm__bias=torch.zeros(5)), [("shape", "norm.bias")], False),
        (put(norm__bias=torch.zeros(4, 1)), [("shape", "norm.bias")], False),
        (put(norm__bias=torch.zeros(4).half()), [("dtype", "norm.bias")], True),
        (put(scale=torch.ones(1)), [("shape", "scale")], True),
        (put(scale=torch.ones(1, 1)), [("shape", "scale")], False),
        (put(scale=3.0), [("kind", "scale")], False),
        (put(head__weight=torch.zeros(10, 4)), [("tie", "embed.weight head.weight")], True),
    ],
    ids=[
        "nothing", "a missing key", "the counter of a norm", "the counter of an old norm", "a key too many",
        "a buffer that is not saved", "the extra state", "another size", "another dimension", "another dtype",
        "a scalar of old", "a scalar that was never one", "no tensor", "an untied weight",
    ],
)  # fmt: skip
def test_difference_is_found_and_loading_foretold(change, expected, loads):
    verdict = compare(change)

    assert [(each.kind, " ".join(each.keys)) for each in verdict.differences] == expected
    assert verdict.loads_strictly is loads


def test_tie_that_the_model_does_not_have_is_found():
    shared = torch.zeros(2)
    found = manifest_of({"a": shared, "b": shared, "c": shared[:1], "d": torch.zeros(2)})
    expected = manifest_of({key: torch.zeros(1 + (key != "c")) for key in "abcd"})

    (difference,) = Verdict.of(expected, found).differences

    assert difference.kind == "tie"
    assert difference.keys == ("a", "b")
    assert difference.expected == "tensors of their own"


def test_group_that_is_only_part_of_another_is_found():
    one, other = torch.zeros(2), torch.zeros(2)
    expected = manifest_of({"a": one, "b": one, "c": one})
    found = manifest_of({"a": one, "b": one, "c": other})

    (difference,) = Verdict.of(expected, found).differences

    assert difference.keys == ("a", "b", "c")


def test_model_on_meta_has_the_manifest_of_the_real_one():
    with torch.device("meta"):
        model = Model()

    assert manifest_of(model) == manifest_of(Model())


def test_what_is_no_dense_tensor_is_a_value():
    found = manifest_of({"a": torch.eye(2).to_sparse(), "b": 3})

    assert found.values == {"a", "b"}
    assert not found.tensors


def test_manifest_of_something_else_is_a_type_error():
    with pytest.raises(TypeError, match="A list is neither a module nor a state dict"):
        manifest_of([])
