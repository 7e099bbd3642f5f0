"""Goes through the opcodes of a pickle before the C unpickler does, and refuses what would hurt it.

The unpickler hashes what the file calls a key, makes room for what the file calls a length, and cannot be stopped
while it does (`migrate_ckpt.formats.keys`). So each object that the pickle would build stands here as one small
number, its shadow, made of:

* its weight: how many values a hash or a comparison of it visits; 0 for what cannot be hashed;
* whether its hash could be chosen by whoever made the file;
* whether calling it gives a value that is hashed by content, and not an object that is hashed by identity;
* its level: how deep lists, calls and states are nested in it. What is put into an object after the object itself
  was put elsewhere does not count, as it does not count for the recursion of a pickler either.

Opcodes and their arguments are described in CPython's `Lib/pickletools.py`.
"""

from __future__ import annotations

import contextlib
import pickle
import struct
from collections import Counter
from collections.abc import Callable
from typing import NoReturn

from migrate_ckpt.errors import TooLarge, UnreadableCheckpoint, UnsafePickle
from migrate_ckpt.formats.keys import (
    MAX_KEY_BYTES,
    MAX_KEY_WEIGHT,
    MAX_SAFE_KEY_WEIGHT,
    refuse_heavy,
    refuse_many_chosen,
)

MAX_DEPTH = 400
MAX_COLLIDING_INTS = 100
MAX_OBJECT_BYTES = 2 << 30
"""For containers and recorded calls, which take up to 300 times the bytes of their opcodes."""

# The shadow: the weight in the lower 13 bits, then the two answers, above them the level.
_WEIGHT = (1 << 13) - 1
_CHOSEN = 1 << 13
_GIVES_VALUE = 1 << 14
_LEVEL_BITS = 16
_LEVEL = 1 << _LEVEL_BITS
_ATOM = 1
_HEAVY = MAX_KEY_WEIGHT + 1
_CONTAINER = _LEVEL
_TOO_DEEP = (MAX_DEPTH + 1) << _LEVEL_BITS

# Shorter integers have hashes of their own: CPython's are modulo 2**61 - 1.
_SAFE_INT_BYTES = 7
_SAFE_INT_DIGITS = 20
_MAX_DIGITS = 4000

# The functions that are answered with a value which is hashed by content, as the lines of a GLOBAL.
_VALUE_FUNCTIONS = frozenset(
    (
        b"builtins\nfrozenset\n",
        b"__builtin__\nfrozenset\n",
        b"builtins\ncomplex\n",
        b"__builtin__\ncomplex\n",
        b"torch\nSize\n",
    )
)

# Bytes in memory on a 64-bit machine, roughly.
_SET_BYTES, _DICT_BYTES, _LIST_BYTES, _TUPLE_BYTES, _CALL_BYTES = 216, 64, 56, 56, 320

_u1 = struct.Struct("<B").unpack_from
_u4 = struct.Struct("<I").unpack_from
_i4 = struct.Struct("<i").unpack_from
_u8 = struct.Struct("<Q").unpack_from


def check_pickle(data: bytes) -> int:
    """Check the pickle that `data` begins with; gives its length. What comes after it is not looked at.

    Raises:
        UnsafePickle: It does what no pickler writes, or names a key that would be too much to hash.
        TooLarge: It is nested too deeply or makes too many objects or keys.
        UnreadableCheckpoint: It is cut off, or holds what is no opcode.
    """
    try:
        return _Shadows(data).follow()
    except (IndexError, struct.error) as error:
        raise UnreadableCheckpoint(
            "the pickle inside is damaged: it is cut off, or takes from its stack what is not there"
        ) from error


class _Shadows:
    """The unpickler's stack, marks and memo, with shadows in place of objects."""

    __slots__ = (
        "chosen_keys",
        "data",
        "has_put",
        "marks",
        "memo",
        "object_bytes",
        "stack",
        "wide_ints",
    )

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.stack: list[int] = []
        self.marks: list[int] = []
        # An atom is not noted in it: what is not here is an atom, or the unpickler itself will refuse it.
        self.memo: dict[int, int] = {}
        self.has_put = False
        self.object_bytes = 0
        self.chosen_keys = 0
        self.wide_ints: set[bytes] = set()

    def follow(self) -> int:
        """Follow the opcodes up to STOP."""
        # Long, and with the frequent opcodes spelt out in the order of their frequency, because it runs once for
        # each of some millions of opcodes: a call for each would take three times as long.
        data, stack, marks, memo = self.data, self.stack, self.marks, self.memo
        push, pop, recall = stack.append, stack.pop, memo.get
        atoms, others = _ATOM_LENGTHS, _OTHERS
        # No pickler numbers its memo above its bytes; ours uses the numbers behind those of its pickler early on.
        size = len(data)
        position = tuples = calls = memoized = 0
        has_put = False
        while True:
            code = data[position]
            if code == 0x72:  # LONG_BINPUT
                (index,) = _u4(data, position + 1)
                if index >= size:
                    _refuse_index()
                if stack[-1] != _ATOM:
                    memo[index] = stack[-1]
                has_put = True
                position += 5
            elif atoms[code]:
                push(_ATOM)
                position += atoms[code]
            elif code == 0x68:  # BINGET
                push(recall(data[position + 1], _ATOM))
                position += 2
            elif code == 0x58:  # BINUNICODE
                push(_ATOM)
                (length,) = _u4(data, position + 1)
                position += 5 + length
            elif code == 0x28:  # MARK
                marks.append(len(stack))
                position += 1
            elif code == 0x86:  # TUPLE2
                last = pop()
                weight = last + stack[-1] + 1
                stack[-1] = weight if weight < _HEAVY else _tuple([stack[-1], last])
                tuples += 1
                position += 1
            elif code == 0x74:  # TUPLE
                mark = marks.pop()
                items = stack[mark:]
                weight = sum(items) + 1
                del stack[mark:]
                push(weight if weight < _HEAVY else _tuple(items))
                tuples += 1
                position += 1
            elif code == 0x52:  # REDUCE
                args = pop()
                stack[-1] = _call(stack[-1], args)
                calls += 1
                position += 1
            elif code == 0x71:  # BINPUT
                index = data[position + 1]
                if index >= size:
                    _refuse_index()
                if stack[-1] != _ATOM:
                    memo[index] = stack[-1]
                has_put = True
                position += 2
            elif code == 0x8C:  # SHORT_BINUNICODE
                push(_ATOM)
                position += 2 + data[position + 1]
            elif code == 0x94:  # MEMOIZE
                if stack[-1] != _ATOM:
                    memo[memoized] = stack[-1]
                memoized += 1
                position += 1
            elif code == 0x6A:  # LONG_BINGET
                (index,) = _u4(data, position + 1)
                push(recall(index, _ATOM))
                position += 5
            elif code == 0x85:  # TUPLE1
                weight = stack[-1] + 1
                stack[-1] = weight if weight < _HEAVY else _tuple([stack[-1]])
                tuples += 1
                position += 1
            elif code == 0x2E:  # STOP
                break
            else:
                position = others[code](self, position + 1)
        if memoized and (has_put or self.has_put):
            raise UnsafePickle("the pickle counts its memo in two ways at once")
        self.object_bytes += tuples * _TUPLE_BYTES + calls * _CALL_BYTES
        self.check_sums()
        return position + 1

    def take_marked(self) -> list[int]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def hold(self, shadow: int) -> None:
        """Note that the topmost object holds another one."""
        level = shadow >> _LEVEL_BITS
        top = self.stack[-1]
        if level >= top >> _LEVEL_BITS:
            self.stack[-1] = _checked((level + 1) << _LEVEL_BITS | (top & (_LEVEL - 1)))

    def check_keys(self, keys: list[int]) -> None:
        """Check keys of a dict or members of a set."""
        if keys.count(_ATOM) == len(keys):
            return
        for key in keys:
            weight = key & _WEIGHT
            if weight == 0:
                raise UnsafePickle(
                    "the pickle has a key that cannot be one: a list, a dict or a set"
                )
            if weight > MAX_KEY_WEIGHT:
                refuse_heavy()
            # Single numbers are looked at all together in the end.
            if weight > MAX_SAFE_KEY_WEIGHT or (key & _CHOSEN and weight > 1):
                self.chosen_keys += 1

    def check_sums(self) -> None:
        """Check in the end what only all opcodes together say."""
        if self.object_bytes > MAX_OBJECT_BYTES:
            raise TooLarge(
                f"the pickle makes objects of {self.object_bytes} bytes in memory; the limit is {MAX_OBJECT_BYTES}"
            )
        refuse_many_chosen(self.chosen_keys)
        if len(self.wide_ints) > MAX_COLLIDING_INTS:
            hashes = Counter(
                hash(int.from_bytes(raw, "little", signed=True)) for raw in self.wide_ints
            )
            if max(hashes.values()) > MAX_COLLIDING_INTS:
                raise TooLarge("the pickle has many long numbers that have the same hash")


def _tuple(items: list[int]) -> int:
    """The shadow of a tuple that is more than a few atoms."""
    weight, chosen = 1, 0
    for item in items:
        if not item & _WEIGHT:
            weight = 0
            break
        weight += item & _WEIGHT
        chosen |= item & _CHOSEN
    level = (max(items) >> _LEVEL_BITS) + 1
    return _checked(level << _LEVEL_BITS | chosen | min(weight, _HEAVY))


def _call(function: int, args: int) -> int:
    """The shadow of what a call gives: mostly an object that is hashed by its identity."""
    level = (max(function, args) >> _LEVEL_BITS) + 1
    shadow = _ATOM
    if function & _GIVES_VALUE:
        weight = args & _WEIGHT
        # A frozenset comes as a call with a list.
        shadow = (args & _CHOSEN) | min(weight + 1, _HEAVY) if weight else _CHOSEN | 2
    return _checked(level << _LEVEL_BITS | shadow)


def _checked(shadow: int) -> int:
    if shadow >= _TOO_DEEP:
        raise TooLarge(f"the pickle nests objects more than {MAX_DEPTH} levels deep")
    return shadow


def _refuse_index() -> NoReturn:
    raise UnsafePickle("the pickle numbers its memo in a way that no pickler does")


# What follows is called for one opcode each, with the position after it, and gives the position of the next.
_Follow = Callable[[_Shadows, int], int]


def _unknown(shadows: _Shadows, position: int) -> NoReturn:
    raise UnreadableCheckpoint("the pickle inside is damaged: it holds what is no instruction")


def _unsafe(shadows: _Shadows, position: int) -> NoReturn:
    raise UnsafePickle(
        "the pickle refers to something outside itself in a way that torch never does"
    )


def _protocol(shadows: _Shadows, position: int) -> int:
    return position + 1


def _frame(shadows: _Shadows, position: int) -> int:
    (length,) = _u8(shadows.data, position)
    if length > len(shadows.data) - position - 8:
        raise IndexError
    return position + 8


def _push(shadow: int, length: int = 0, memory: int = 0) -> _Follow:
    """An opcode that pushes an object, after an argument of so many bytes."""

    def follow(shadows: _Shadows, position: int) -> int:
        shadows.stack.append(shadow)
        shadows.object_bytes += memory
        return position + length

    return follow


def _push_counted(read: Callable[[bytes, int], tuple[int]], width: int, shadow: int) -> _Follow:
    """An opcode that pushes bytes or text, after their number."""

    def follow(shadows: _Shadows, position: int) -> int:
        (length,) = read(shadows.data, position)
        if length < 0:
            raise UnsafePickle("the pickle has a text of negative length")
        shadows.stack.append(shadow)
        return position + width + length

    return follow


def _push_long(read: Callable[[bytes, int], tuple[int]], width: int) -> _Follow:
    def follow(shadows: _Shadows, position: int) -> int:
        (length,) = read(shadows.data, position)
        if length < 0:
            raise UnsafePickle("the pickle has a number of negative length")
        start = position + width
        if length <= _SAFE_INT_BYTES:
            shadow = _ATOM
        elif length <= MAX_KEY_BYTES:
            shadow = _ATOM | _CHOSEN
            shadows.wide_ints.add(shadows.data[start : start + length])
        else:
            shadow = _HEAVY
        shadows.stack.append(shadow)
        return start + length

    return follow


def _push_line(shadows: _Shadows, position: int) -> int:
    """A text in a line."""
    shadows.stack.append(_ATOM)
    return _line_end(shadows.data, position)


def _push_digits(shadows: _Shadows, position: int) -> int:
    """An integer in a line."""
    end = _number_end(shadows.data, position)
    length = end - position
    shadows.stack.append(_ATOM if length <= _SAFE_INT_DIGITS else _HEAVY)
    if _SAFE_INT_DIGITS < length <= MAX_KEY_BYTES * 2:
        # What is no number at all the unpickler itself refuses.
        with contextlib.suppress(ValueError):
            value = int(shadows.data[position:end].rstrip(b"L\n"), 0)
            shadows.wide_ints.add(value.to_bytes(MAX_KEY_BYTES, "little", signed=True))
        shadows.stack[-1] = _ATOM | _CHOSEN
    return end


def _push_fraction(shadows: _Shadows, position: int) -> int:
    """A float in a line."""
    shadows.stack.append(_ATOM | _CHOSEN)
    return _number_end(shadows.data, position)


def _number_end(data: bytes, position: int) -> int:
    end = _line_end(data, position)
    if end - position > _MAX_DIGITS:
        raise TooLarge("the pickle spells a number with thousands of digits")
    return end


def _line_end(data: bytes, position: int) -> int:
    end = data.find(b"\n", position) + 1
    if not end:
        raise IndexError
    return end


def _global(shadows: _Shadows, position: int) -> int:
    end = _line_end(shadows.data, _line_end(shadows.data, position))
    shadows.stack.append(_function(shadows.data[position:end]))
    return end


def _function(lines: bytes) -> int:
    return _ATOM | _GIVES_VALUE if lines in _VALUE_FUNCTIONS else _ATOM


def _stack_global(shadows: _Shadows, position: int) -> int:
    # Its name stands somewhere else, so it may be any.
    shadows.stack.pop()
    shadows.stack[-1] = _ATOM | _GIVES_VALUE
    return position


def _get(shadows: _Shadows, position: int) -> int:
    end = _line_end(shadows.data, position)
    shadows.stack.append(shadows.memo.get(_index(shadows, position, end), _ATOM))
    return end


def _put(shadows: _Shadows, position: int) -> int:
    end = _line_end(shadows.data, position)
    index = _index(shadows, position, end)
    if index >= len(shadows.data):
        _refuse_index()
    shadows.memo[index] = shadows.stack[-1]
    shadows.has_put = True
    return end


def _index(shadows: _Shadows, position: int, end: int) -> int:
    line = shadows.data[position : end - 1]
    if len(line) > 10 or not line.isdigit():
        _refuse_index()
    return int(line)


def _pop(shadows: _Shadows, position: int) -> int:
    if shadows.marks and shadows.marks[-1] == len(shadows.stack):
        shadows.marks.pop()
    else:
        shadows.stack.pop()
    return position


def _pop_mark(shadows: _Shadows, position: int) -> int:
    shadows.take_marked()
    return position


def _dup(shadows: _Shadows, position: int) -> int:
    shadows.stack.append(shadows.stack[-1])
    return position


def _persistent_id(shadows: _Shadows, position: int) -> int:
    # A storage, or in old streams a class.
    shadows.stack[-1] = _ATOM | _GIVES_VALUE
    return position


def _tuple3(shadows: _Shadows, position: int) -> int:
    stack = shadows.stack
    last, middle = stack.pop(), stack.pop()
    weight = stack[-1] + middle + last + 1
    stack[-1] = weight if weight < _HEAVY else _tuple([stack[-1], middle, last])
    shadows.object_bytes += _TUPLE_BYTES
    return position


def _list(shadows: _Shadows, position: int) -> int:
    items = shadows.take_marked()
    shadows.stack.append(_CONTAINER)
    shadows.object_bytes += _LIST_BYTES
    return _fill(shadows, items, position)


def _dict(shadows: _Shadows, position: int) -> int:
    items = shadows.take_marked()
    shadows.check_keys(items[::2])
    shadows.stack.append(_CONTAINER)
    shadows.object_bytes += _DICT_BYTES
    return _fill(shadows, items, position)


def _frozenset(shadows: _Shadows, position: int) -> int:
    items = shadows.take_marked()
    shadows.check_keys(items)
    shadows.stack.append((_tuple(items) if items else _LEVEL | _ATOM) | _CHOSEN)
    shadows.object_bytes += _SET_BYTES
    return position


def _fill(shadows: _Shadows, items: list[int], position: int) -> int:
    if items:
        highest = max(items)
        if highest >= _LEVEL:
            shadows.hold(highest)
    return position


def _append(shadows: _Shadows, position: int) -> int:
    shadows.hold(shadows.stack.pop())
    return position


def _appends(shadows: _Shadows, position: int) -> int:
    return _fill(shadows, shadows.take_marked(), position)


def _set_item(shadows: _Shadows, position: int) -> int:
    value, key = shadows.stack.pop(), shadows.stack.pop()
    shadows.check_keys([key])
    shadows.hold(max(key, value))
    return position


def _set_items(shadows: _Shadows, position: int) -> int:
    items = shadows.take_marked()
    shadows.check_keys(items[::2])
    return _fill(shadows, items, position)


def _add_items(shadows: _Shadows, position: int) -> int:
    items = shadows.take_marked()
    shadows.check_keys(items)
    return _fill(shadows, items, position)


def _build(shadows: _Shadows, position: int) -> int:
    shadows.hold(shadows.stack.pop())
    return position


def _new(shadows: _Shadows, position: int) -> int:
    """NEWOBJ: an object that is hashed by its identity."""
    args = shadows.stack.pop()
    return _made_new(shadows, args, position)


def _new_with_names(shadows: _Shadows, position: int) -> int:
    named, args = shadows.stack.pop(), shadows.stack.pop()
    return _made_new(shadows, max(named, args), position)


def _made_new(shadows: _Shadows, args: int, position: int) -> int:
    level = (max(shadows.stack[-1], args) >> _LEVEL_BITS) + 1
    shadows.stack[-1] = _checked(level << _LEVEL_BITS | _ATOM)
    shadows.object_bytes += _CALL_BYTES
    return position


def _obj(shadows: _Shadows, position: int) -> int:
    function, *args = shadows.take_marked() or [_ATOM]
    return _called(shadows, function, args, position)


def _inst(shadows: _Shadows, position: int) -> int:
    end = _line_end(shadows.data, _line_end(shadows.data, position))
    return _called(shadows, _function(shadows.data[position:end]), shadows.take_marked(), end)


def _called(shadows: _Shadows, function: int, args: list[int], position: int) -> int:
    shadows.stack.append(_call(function, _tuple(args) if args else _ATOM))
    shadows.object_bytes += _CALL_BYTES
    return position


_ATOM_LENGTHS = [0] * 256
"""Of the opcodes that push an atom and have an argument of fixed length, by opcode; with the opcode itself."""
for _code, _length in (
    (pickle.NONE, 1),
    (pickle.NEWTRUE, 1),
    (pickle.NEWFALSE, 1),
    (pickle.EMPTY_TUPLE, 1),
    (pickle.BININT1, 2),
    (pickle.BININT2, 3),
    (pickle.BININT, 5),
):
    _ATOM_LENGTHS[_code[0]] = _length

_OTHERS: list[_Follow] = [_unknown] * 256
for _code, _follow in {
    pickle.PROTO: _protocol,
    pickle.FRAME: _frame,
    pickle.BINFLOAT: _push(_ATOM | _CHOSEN, 8),
    pickle.FLOAT: _push_fraction,
    pickle.INT: _push_digits,
    pickle.LONG: _push_digits,
    pickle.LONG1: _push_long(_u1, 1),
    pickle.LONG4: _push_long(_i4, 4),
    pickle.STRING: _push_line,
    pickle.UNICODE: _push_line,
    pickle.SHORT_BINSTRING: _push_counted(_u1, 1, _ATOM),
    pickle.BINSTRING: _push_counted(_i4, 4, _ATOM),
    pickle.SHORT_BINBYTES: _push_counted(_u1, 1, _ATOM),
    pickle.BINBYTES: _push_counted(_u4, 4, _ATOM),
    pickle.BINBYTES8: _push_counted(_u8, 8, _ATOM),
    pickle.BINUNICODE8: _push_counted(_u8, 8, _ATOM),
    pickle.BYTEARRAY8: _push_counted(_u8, 8, _CONTAINER),
    pickle.EMPTY_LIST: _push(_CONTAINER, memory=_LIST_BYTES),
    pickle.EMPTY_DICT: _push(_CONTAINER, memory=_DICT_BYTES),
    pickle.EMPTY_SET: _push(_CONTAINER, memory=_SET_BYTES),
    pickle.GLOBAL: _global,
    pickle.STACK_GLOBAL: _stack_global,
    pickle.GET: _get,
    pickle.PUT: _put,
    pickle.POP: _pop,
    pickle.POP_MARK: _pop_mark,
    pickle.DUP: _dup,
    pickle.BINPERSID: _persistent_id,
    pickle.TUPLE3: _tuple3,
    pickle.LIST: _list,
    pickle.DICT: _dict,
    pickle.FROZENSET: _frozenset,
    pickle.APPEND: _append,
    pickle.APPENDS: _appends,
    pickle.SETITEM: _set_item,
    pickle.SETITEMS: _set_items,
    pickle.ADDITEMS: _add_items,
    pickle.BUILD: _build,
    pickle.NEWOBJ: _new,
    pickle.NEWOBJ_EX: _new_with_names,
    pickle.OBJ: _obj,
    pickle.INST: _inst,
    pickle.PERSID: _unsafe,
    pickle.EXT1: _unsafe,
    pickle.EXT2: _unsafe,
    pickle.EXT4: _unsafe,
    pickle.NEXT_BUFFER: _unsafe,
    pickle.READONLY_BUFFER: _unsafe,
}.items():
    _OTHERS[_code[0]] = _follow
