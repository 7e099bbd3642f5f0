from __future__ import annotations

import argparse
import collections
import copy
import pathlib

import numpy
import pytest
import torch

from migrate_ckpt import (
    ForeignGlobal,
    ForeignObject,
    ForeignObjectError,
    read_checkpoint,
    recipe,
    write_checkpoint,
)


@pytest.fixture
def foreign(tmp_path):
    """Give the foreign object that a value becomes, and a way back to the real one."""
    path = tmp_path / "value.ckpt"

    def make(value):
        torch.save({"value": value}, path)
        return read_checkpoint(path)["value"]

    return make


@pytest.fixture
def real(tmp_path):
    def make(value):
        write_checkpoint({"value": value}, tmp_path / "real.ckpt")
        return torch.load(tmp_path / "real.ckpt", weights_only=False)["value"]

    return make


def edit_namespace(args):
    args.learning_rate = args.lr
    del args.lr
    args.known = hasattr(args, "lr"), getattr(args, "lr", None), sorted(vars(args))
    return args


def edit_defaultdict(table):
    table["b"] = [*table.pop("a"), 2]
    table.setdefault("c", []).append(len(table))
    table["keys"] = [key for key in table if key in table]
    return table


def edit_deque(items):
    items.append(items[0])
    items.extend([len(items)])
    items[1] = "x"
    items.append("x" in items)
    items.reverse()
    return items


EDITS = {
    "namespace": (argparse.Namespace(lr=0.1, epochs=3), edit_namespace),
    "defaultdict": (collections.defaultdict(list, {"a": [1]}), edit_defaultdict),
    "deque": (collections.deque([1, 2, 3]), edit_deque),
}


@pytest.mark.parametrize(("value", "edit"), EDITS.values(), ids=EDITS.keys())
def test_one_edit_gives_the_same_on_the_real_object_and_on_the_foreign_one(
    foreign, real, value, edit
):
    edited_foreign = real(edit(foreign(value)))

    edited_real = edit(value)

    assert edited_foreign == edited_real
    assert type(edited_foreign) is type(edited_real)


def test_the_class_is_named_without_being_imported(foreign):
    args = foreign(argparse.Namespace())

    assert args.__class__.__name__ == "Namespace"
    assert args.__class__.__module__ == "argparse"
    assert args.__class__ is not argparse.Namespace
    assert isinstance(args, ForeignObject)


def test_attributes_of_the_file_win_over_everything_but_the_object_itself(foreign):
    args = foreign(argparse.Namespace(items=1, recipe=2, args=3, state=4))

    assert (args.items, args.recipe, args.args, args.state) == (1, 2, 3, 4)


QUESTIONS = {
    "str": str,
    "bool": bool,
    "int": int,
    "float": float,
    "len": len,
    "iter": iter,
    "item": lambda value: value[0],
    "call": lambda value: value(),
    "membership": lambda value: "x" in value,
    "equality": lambda value: value == 3.0,
    "order": lambda value: value < 3.0,
    "attribute": lambda value: value.dtype,
}


@pytest.mark.parametrize("ask", QUESTIONS.values(), ids=QUESTIONS.keys())
def test_what_a_foreign_object_cannot_answer_is_an_error_that_names_it(foreign, ask):
    with pytest.raises(ForeignObjectError, match=r"numpy\.\S*scalar is a foreign object"):
        ask(foreign(numpy.float64(3.0)))


def test_a_missing_attribute_is_an_attribute_error_that_names_those_there_are(foreign):
    with pytest.raises(AttributeError, match=r"no attribute 'x'; it holds \['lr'\]"):
        _ = foreign(argparse.Namespace(lr=1)).x


def test_a_class_path_can_be_renamed_without_importing_either(foreign, real):
    path = foreign(pathlib.PurePosixPath("a/b"))

    recipe(path).function = ForeignGlobal.named("pathlib", "PureWindowsPath")

    assert real(path) == pathlib.PureWindowsPath("a/b")


def test_a_deep_copy_is_independent_and_keeps_cycles(foreign):
    args = foreign(argparse.Namespace(layers=[1]))
    args.me = args

    twin = copy.deepcopy(args)

    twin.layers.append(2)
    assert args.layers == [1]
    assert twin.me is twin


def test_a_shallow_copy_shares_its_values(foreign):
    args = foreign(argparse.Namespace(layers=[1]))

    twin = copy.copy(args)

    twin.other = 1
    assert twin.layers is args.layers
    assert not hasattr(args, "other")
