from __future__ import annotations

import argparse
import collections
import copy
import pathlib
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import numpy
import pytest
import torch

from migrate_ckpt import (
    ForeignGlobal,
    ForeignObject,
    ForeignObjectError,
    UnwritableCheckpoint,
    read_checkpoint,
    recipe,
    write_checkpoint,
)


@pytest.fixture
def foreign(tmp_path):
    """Give the foreign object that a value becomes, and a way back to the real one."""
    path = tmp_path / "value.ckpt"

    def make(value, protocol=2):
        torch.save({"value": value}, path, pickle_protocol=protocol)
        return read_checkpoint(path)["value"]

    return make


@pytest.fixture
def real(tmp_path):
    def make(value):
        write_checkpoint({"value": value}, tmp_path / "real.ckpt")
        return torch.load(tmp_path / "real.ckpt", weights_only=False)["value"]

    return make


class Table(dict):
    """A dict with attributes."""


class Row(list):
    """A list with attributes."""


class Slotted:
    __slots__ = ("left", "right")

    def __eq__(self, other):
        return self.left == other.left


class SlottedBeside(Slotted):
    """One that has attributes beside its slots, mostly none."""


def a_table(**attributes):
    made = Table(a=1, b=[2])
    vars(made).update(attributes)
    return made


def a_row(**attributes):
    made = Row([1, 2])
    vars(made).update(attributes)
    return made


def slotted(kind):
    made = kind()
    made.left, made.right = 1, 2
    return made


def edit_namespace(args):
    args.learning_rate = args.lr
    del args.lr
    args.known = hasattr(args, "lr"), getattr(args, "lr", None), sorted(vars(args))
    return args


def ask_namespace(args):
    found = ["lr" in args, hasattr(args, "lr"), getattr(args, "lr", 7), bool(args), args == args]
    args.known = [*found, args == None, args == 3, args != copy.copy(args), "known" in args]  # noqa: E711
    return args


def edit_mapping(table):
    table["b"] = [*table.pop("a"), 2]
    table.setdefault("c", []).append(len(table))
    table["keys"] = [key for key in table if key in table]
    table["none"] = table.get("x"), table.get("x", 1), table.pop("x", 2), list(reversed(table))
    table["last"] = table.popitem()
    table.update(d=4)
    return table


def edit_table(table):
    table["c"] = table["a"], len(table), "a" in table, "x" in table, table.get("a"), sorted(table)
    del table["a"]
    return table


def edit_attribute(table):
    table.unit = [*table.unit, "kg"]
    del table.scale
    table.known = hasattr(table, "scale"), hasattr(table, "unit")
    return table


def edit_attribute_of_mapping(table):
    table.unit = [*table.unit, "kg"]
    del table.scale
    table["known"] = hasattr(table, "scale"), hasattr(table, "unit")
    return table


def miss_default(table):
    table["seen"].append(1)
    table["asked"] = table.get("never"), "never" in table, len(table)
    try:
        table.pop("never")
    except KeyError:
        table["refused"] = True
    return table


def count_default(table):
    table["a"] += 1
    return table


def count_text(table):
    table["a"] += "x"
    return table


def miss_nothing(table):
    try:
        table["missing"]
    except KeyError as error:
        table["error"] = error.args
    return table


def edit_deque(items):
    items.append(items[0])
    items.extend([len(items)])
    items[1] = "x"
    items.append("x" in items)
    items.reverse()
    return items


def edit_ends(items):
    items.appendleft("first")
    items.extendleft("ab")
    items.rotate(2)
    items.rotate(-3)
    taken = items.pop(), items.popleft(), items.maxlen, len(items), bool(items)
    items.append(taken)
    items.insert(0, "in")
    items.remove("in")
    return items


def overflow(items):
    for i in range(5):
        items.append(i)
    items.appendleft("x")
    try:
        items.insert(1, "y")
    except IndexError as error:
        items.append(str(error))
    return items


def slice_deque(items):
    try:
        items[0:1]
    except TypeError as error:
        items.append(str(error))
    return items


def mutate_while_reading(items):
    try:
        for _ in items:
            items.append(0)
    except RuntimeError as error:
        items.append(str(error))
    try:
        for _ in reversed(items):
            items.pop()
    except RuntimeError as error:
        items.append(str(error))
    for position, item in enumerate(items):
        items[position] = [item]
    try:
        items.pop(0)
    except TypeError:
        items.append("no position")
    return items


def compare_deque(items):
    items.append([items == collections.deque([1, 2]), items == [1, 2], items != [1, 2]])
    return items


def compare_mapping(table):
    table["seen"] = table == {"a": [1]}, table == [], table != {"a": [1]}
    return table


def fill(items):
    items.append(len(items))
    return items


def edit_row(row):
    row.append(row[0:1])
    row += [len(row), row.index(2), 2 in row, row.count(1)]
    row.insert(0, row.pop())
    return row


def edit_slots(made):
    made.left = made.right + 1
    del made.right
    return made


# What was saved, and a migration of it.
EDITS = {
    "namespace": (argparse.Namespace(lr=0.1, epochs=3), edit_namespace),
    "namespace asked": (argparse.Namespace(lr=0.1), ask_namespace),
    "empty namespace": (argparse.Namespace(), ask_namespace),
    "simple namespace": (types.SimpleNamespace(lr=0.1, epochs=3), edit_namespace),
    "defaultdict": (collections.defaultdict(list, {"a": [1]}), edit_mapping),
    "defaultdict, missing": (collections.defaultdict(list, {"a": [1]}), miss_default),
    "defaultdict, empty": (collections.defaultdict(list), miss_default),
    "defaultdict of int": (collections.defaultdict(int), count_default),
    "defaultdict of str": (collections.defaultdict(str), count_text),
    "defaultdict of OrderedDict": (
        collections.defaultdict(collections.OrderedDict),
        lambda table: table["a"].update(b=1) or table,
    ),
    "defaultdict without a factory": (collections.defaultdict(None, a=1), miss_nothing),
    "dict subclass": (a_table(), edit_table),
    "dict subclass with attributes": (a_table(unit=["m"], scale=2), edit_attribute_of_mapping),
    "list subclass": (a_row(), edit_row),
    "list subclass with attributes": (a_row(unit=["m"], scale=2), edit_attribute),
    "deque": (collections.deque([1, 2, 3]), edit_deque),
    "deque, changed while it is read": (
        collections.deque([1, 2, 3, 4, 5]),
        mutate_while_reading,
    ),
    "deque, compared": (collections.deque([1, 2]), compare_deque),
    "defaultdict, compared": (collections.defaultdict(list, {"a": [1]}), compare_mapping),
    "deque, ends": (collections.deque([1, 2, 3]), edit_ends),
    "deque, slice": (collections.deque([1, 2, 3]), slice_deque),
    "deque, full": (collections.deque([1, 2, 3], maxlen=4), overflow),
    "deque of none": (collections.deque(maxlen=0), fill),
    "deque, empty": (collections.deque(maxlen=2), overflow),
    "slots": (slotted(Slotted), edit_slots),
    "slots and attributes": (slotted(SlottedBeside), edit_slots),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(("value", "edit"), EDITS.values(), ids=EDITS.keys())
def test_one_edit_gives_the_same_on_the_real_object_and_on_the_foreign_one(
    foreign, real, value, edit, protocol
):
    edited_foreign = real(edit(foreign(value, protocol)))

    edited_real = edit(copy.deepcopy(value))

    assert edited_foreign == edited_real
    assert type(edited_foreign) is type(edited_real)
    assert getattr(edited_foreign, "__dict__", 0) == getattr(edited_real, "__dict__", 0)


class Odd(dict):
    """A dict whose attributes are its items."""

    __setattr__ = dict.__setitem__
    __getattr__ = dict.__getitem__


class Mirrored(dict):
    """A dict that keeps each item as an attribute, too."""

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        super().__setitem__(name, value)

    __setitem__ = __setattr__


def mirrored():
    made = Mirrored()
    made.lr = 1
    return made


class MyNamespace(argparse.Namespace):
    """A class that may compare otherwise."""


# What only the class knows.
UNKNOWN = {
    "whether one of a subclass is equal": (
        [argparse.Namespace(a=1), MyNamespace(a=1)],
        lambda both: both[0] == both[1],
    ),
    "an array": (numpy.float64(3.0), numpy.asarray),
    "an attribute that may be an item": (Odd(lr=1), lambda odd: setattr(odd, "lr", 2)),
    "the reading of one": (Odd(lr=1), lambda odd: odd.lr),
    "an item that is an attribute, too": (mirrored(), lambda both: both.__setitem__("lr", 2)),
    "and the attribute": (mirrored(), lambda both: setattr(both, "lr", 2)),
    "a missing one of a factory of its own": (
        collections.defaultdict(pathlib.PurePosixPath, a=1),
        lambda table: table["b"],
    ),
    "a method of a dict": (a_table(), lambda table: table.copy()),
    "one, asked for": (a_table(unit=1), lambda table: hasattr(table, "copy")),
    "a method of a list": (a_row(), lambda row: row.sort()),
    "whether what is empty is a dict": (Table(), lambda table: table.get("a")),
    "the setting of an item of it": (Table(), lambda table: table.__setitem__("a", 1)),
    "the deletion of one": (Table(), lambda table: table.__delitem__("a")),
    "the setting of an attribute of a path": (
        pathlib.PurePosixPath("a"),
        lambda path: setattr(path, "name", "b"),
    ),
}


@pytest.mark.parametrize(("value", "ask"), UNKNOWN.values(), ids=UNKNOWN.keys())
def test_what_only_the_class_knows_is_an_error_and_no_guess(foreign, value, ask):
    with pytest.raises(ForeignObjectError, match="kept without importing its class"):
        ask(foreign(value))


def test_a_deque_takes_no_attributes(foreign):
    with pytest.raises(AttributeError, match="no attribute 'unit'"):
        foreign(collections.deque()).unit = 1


@pytest.mark.parametrize("value", [slotted(Slotted), slotted(SlottedBeside), Slotted()])
def test_a_new_attribute_goes_into_a_slot(foreign, real, value):
    made = foreign(value)
    for name in list(vars(made)):
        delattr(made, name)

    made.left = 7

    again = real(made)
    assert again.left == 7
    assert not hasattr(again, "right")
    assert not getattr(again, "__dict__", None)


@pytest.mark.parametrize(
    "value",
    [argparse.Namespace(), collections.deque(), collections.defaultdict(list)],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_in_a_set_is_not_written_in_one(foreign, real, value):
    with pytest.raises(UnwritableCheckpoint, match="a set holds <foreign"):
        real({foreign(value)})


class Frozen(dict):
    """A dict that can be a key."""

    def __hash__(self):
        return 3


def test_an_object_with_items_may_be_a_key(foreign, real):
    value = {Frozen(a=1): 1, "ordered": collections.OrderedDict({Frozen(b=2): 2})}

    assert real(copy.deepcopy(foreign(value))) == value


def test_names_are_shown_in_short_and_without_control_characters(foreign):
    args = foreign(argparse.Namespace(**{"\x1b[2J\n": 1, **{f"name{i}": i for i in range(10_000)}}))

    with pytest.raises(AttributeError) as raised:
        _ = args.lr

    for text in (str(raised.value), repr(args)):
        assert text.isprintable()
        assert "name8 and 9991 more" in text


def test_a_copy_does_not_ask_attributes_of_the_file(foreign):
    args = foreign(argparse.Namespace(__deepcopy__="x", __copy__="y"))

    assert vars(copy.deepcopy(args)) == vars(copy.copy(args)) == vars(args)


def test_names_of_our_own_are_nothing_that_an_object_has(foreign):
    args = foreign(argparse.Namespace(_methods=1, _refuse_mirrored=2))

    assert not hasattr(args, "missing")
    assert (args._methods, args._refuse_mirrored) == (1, 2)
    assert not any(
        hasattr(foreign(argparse.Namespace()), name) for name in ("_methods", "_missing")
    )


class Outer:
    class Inner:
        pass


class WithKeywords:
    def __new__(cls, *, size):
        made = super().__new__(cls)
        made.made_of = size
        return made

    def __getnewargs_ex__(self):
        return (), {"size": 3}


@pytest.mark.parametrize(
    ("value", "protocol"),
    [
        *(
            (value, p)
            for value in (Outer.Inner, Outer.Inner(), WithKeywords(size=3), {Outer.Inner})
            for p in (2, 4)
        ),
        (torch.channels_last, 4),  # Torch itself cannot save it in protocol 2.
    ],
)
def test_what_protocol_2_cannot_say_is_written_all_the_same(foreign, real, value, protocol):
    again = real(foreign(value, protocol))

    assert type(again) is type(value)
    assert not isinstance(value, set) or again == value
    assert getattr(again, "made_of", None) == getattr(value, "made_of", None)


def test_a_class_may_be_renamed_to_a_nested_one(foreign, real):
    value = foreign(argparse.Namespace())

    recipe(value).function = ForeignGlobal.named(Outer.__module__, "Outer.Inner")

    assert type(real(value)) is Outer.Inner


def test_checkpoints_that_share_classes_can_be_written_by_several_threads(tmp_path):
    torch.save(
        {"class": Outer, "all": [argparse.Namespace(i=i) for i in range(50)]}, tmp_path / "a"
    )
    ckpt = read_checkpoint(tmp_path / "a")
    copies = [ckpt, *(copy.deepcopy(ckpt) for _ in range(3))]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(len(copies)) as pool:
            for _ in range(5):
                paths = [tmp_path / f"{i}.pt" for i in range(len(copies))]
                list(pool.map(write_checkpoint, copies, paths))
                written = {path.read_bytes() for path in paths}
                assert len(written) == 1
    finally:
        sys.setswitchinterval(interval)
    assert copies[0]["class"].__module__ == Outer.__module__


class Keeper:
    """An object that keeps the very state that it is given."""

    def __init__(self, state):
        self.kept = state

    def __getstate__(self):
        return self.kept

    def __setstate__(self, state):
        self.kept = state


def test_a_state_that_several_refer_to_stays_one(foreign, real):
    state = {"a": [1]}
    state["me"] = state

    one, other, plain = real(foreign([Keeper(state), Keeper(state), state]))

    assert one.kept is other.kept is plain
    assert plain["me"] is plain


def test_an_edit_of_a_shared_state_is_of_that_object_alone(foreign, real):
    state = {"a": [1], "b": 2}
    objects = foreign([Keeper(state), Keeper(state)])

    objects[0].b = 3

    one, other = real(objects)
    assert (one.kept["b"], other.kept["b"]) == (3, 2)
    assert one.kept["a"] is other.kept["a"]


@pytest.mark.parametrize("state", [({}, {"b": 1}), (None, {"b": 1}), ({"a": 1}, {"b": 1}), {}])
def test_a_state_of_slots_comes_back_as_it_was(foreign, real, state):
    assert real(foreign(Keeper(state))).kept == state


def test_a_state_that_nothing_else_refers_to_is_not_kept(foreign):
    state = {"a": 1}

    assert recipe(foreign(slotted(SlottedBeside))).state is None
    assert recipe(foreign(argparse.Namespace(a=1))).state is None
    assert recipe(foreign([Keeper(state), state])[0]).state == state


def test_slots_that_several_refer_to_stay_one(foreign, real):
    plain, slots = {"a": 1}, {"b": 1}
    both = plain, slots

    one, other, third = real(foreign([Keeper(both), Keeper(both), Keeper((plain, slots))]))

    assert one.kept is other.kept
    assert one.kept is not third.kept
    assert one.kept[0] is third.kept[0]
    assert one.kept[1] is third.kept[1]


def test_a_deep_copy_keeps_a_shared_state(foreign, real):
    state = {"a": [1]}

    one, other = real(copy.deepcopy(foreign([Keeper(state), Keeper(state)])))

    assert one.kept is other.kept


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
    with pytest.raises(AttributeError, match=r"no attribute 'x'; it holds lr"):
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
