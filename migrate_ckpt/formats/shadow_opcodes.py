"""The opcodes of a pickle that are not frequent, and what each does to the shadows.

They are called for one opcode each, with the position after it, and give the position of the next.
"""

from __future__ import annotations

import contextlib
import pickle
import struct
from collections.abc import Callable
from typing import NoReturn, TypeAlias

from migrate_ckpt.errors import TooLarge, UnreadableCheckpoint, UnsafePickle
from migrate_ckpt.formats.keys import MAX_KEY_BYTES
from migrate_ckpt.formats.shadows import (
    ATOM,
    CALL_BYTES,
    CHOSEN,
    CONTAINER,
    DICT_BYTES,
    GIVES_VALUE,
    HEAVY,
    LEVEL,
    LEVEL_BITS,
    LIST_BYTES,
    SET_BYTES,
    TUPLE_BYTES,
    Shadows,
    call_of,
    checked,
    refuse_index,
    tuple_of,
)

Follow: TypeAlias = Callable[[Shadows, int], int]

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

_u1 = struct.Struct("<B").unpack_from
_u4 = struct.Struct("<I").unpack_from
_i4 = struct.Struct("<i").unpack_from
_u8 = struct.Struct("<Q").unpack_from


def _unknown(shadows: Shadows, position: int) -> NoReturn:
    raise UnreadableCheckpoint("the pickle inside is damaged: it holds what is no instruction")


def _unsafe(shadows: Shadows, position: int) -> NoReturn:
    raise UnsafePickle(
        "the pickle refers to something outside itself in a way that torch never does"
    )


def _protocol(shadows: Shadows, position: int) -> int:
    return position + 1


def _frame(shadows: Shadows, position: int) -> int:
    (length,) = _u8(shadows.data, position)
    if length > len(shadows.data) - position - 8:
        raise IndexError
    if shadows.tensors is not None:
        shadows.tensors.is_usable = False
    return position + 8


def _push(shadow: int, length: int = 0, memory: int = 0) -> Follow:
    """An opcode that pushes an object, after an argument of so many bytes."""

    def follow(shadows: Shadows, position: int) -> int:
        shadows.stack.append(shadow)
        shadows.object_bytes += memory
        return position + length

    return follow


def _push_counted(read: Callable[[bytes, int], tuple[int]], width: int, shadow: int) -> Follow:
    """An opcode that pushes bytes or text, after their number."""

    def follow(shadows: Shadows, position: int) -> int:
        (length,) = read(shadows.data, position)
        if length < 0:
            raise UnsafePickle("the pickle has a text of negative length")
        shadows.stack.append(shadow)
        return position + width + length

    return follow


def _push_long(read: Callable[[bytes, int], tuple[int]], width: int) -> Follow:
    def follow(shadows: Shadows, position: int) -> int:
        (length,) = read(shadows.data, position)
        if length < 0:
            raise UnsafePickle("the pickle has a number of negative length")
        start = position + width
        if length <= _SAFE_INT_BYTES:
            shadow = ATOM
        elif length <= MAX_KEY_BYTES:
            shadow = ATOM | CHOSEN
            shadows.wide_ints.add(shadows.data[start : start + length])
        else:
            shadow = HEAVY
        shadows.stack.append(shadow)
        return start + length

    return follow


def _push_line(shadows: Shadows, position: int) -> int:
    """A text in a line."""
    shadows.stack.append(ATOM)
    return _line_end(shadows.data, position)


def _push_digits(shadows: Shadows, position: int) -> int:
    """An integer in a line."""
    end = _number_end(shadows.data, position)
    length = end - position
    shadows.stack.append(ATOM if length <= _SAFE_INT_DIGITS else HEAVY)
    if _SAFE_INT_DIGITS < length <= MAX_KEY_BYTES * 2:
        # What is no number at all the unpickler itself refuses.
        with contextlib.suppress(ValueError):
            value = int(shadows.data[position:end].rstrip(b"L\n"), 0)
            shadows.wide_ints.add(value.to_bytes(MAX_KEY_BYTES, "little", signed=True))
        shadows.stack[-1] = ATOM | CHOSEN
    return end


def _push_fraction(shadows: Shadows, position: int) -> int:
    """A float in a line."""
    shadows.stack.append(ATOM | CHOSEN)
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


def _global(shadows: Shadows, position: int) -> int:
    end = _line_end(shadows.data, _line_end(shadows.data, position))
    shadows.stack.append(_function(shadows.data[position:end]))
    return end


def _function(lines: bytes) -> int:
    return ATOM | GIVES_VALUE if lines in _VALUE_FUNCTIONS else ATOM


def _stack_global(shadows: Shadows, position: int) -> int:
    # Its name stands somewhere else, so it may be any.
    shadows.stack.pop()
    shadows.stack[-1] = ATOM | GIVES_VALUE
    return position


def _get(shadows: Shadows, position: int) -> int:
    end = _line_end(shadows.data, position)
    index = _index(shadows, position, end)
    shadows.fetched.add(index)
    shadows.stack.append(shadows.memo.get(index, ATOM))
    return end


def _put(shadows: Shadows, position: int) -> int:
    end = _line_end(shadows.data, position)
    index = _index(shadows, position, end)
    if index >= len(shadows.data):
        refuse_index()
    shadows.memo[index] = shadows.stack[-1]
    shadows.has_put = True
    return end


def _index(shadows: Shadows, position: int, end: int) -> int:
    line = shadows.data[position : end - 1]
    if len(line) > 10 or not line.isdigit():
        refuse_index()
    return int(line)


def _pop(shadows: Shadows, position: int) -> int:
    if shadows.marks and shadows.marks[-1] == len(shadows.stack):
        shadows.marks.pop()
    else:
        shadows.stack.pop()
    return position


def _pop_mark(shadows: Shadows, position: int) -> int:
    shadows.take_marked()
    return position


def _dup(shadows: Shadows, position: int) -> int:
    shadows.stack.append(shadows.stack[-1])
    return position


def _persistent_id(shadows: Shadows, position: int) -> int:
    # A storage, or in old streams a class.
    shadows.stack[-1] = ATOM | GIVES_VALUE
    return position


def _tuple3(shadows: Shadows, position: int) -> int:
    stack = shadows.stack
    last, middle = stack.pop(), stack.pop()
    weight = stack[-1] + middle + last + 1
    stack[-1] = weight if weight < HEAVY else tuple_of([stack[-1], middle, last])
    shadows.object_bytes += TUPLE_BYTES
    return position


def _list(shadows: Shadows, position: int) -> int:
    items = shadows.take_marked()
    shadows.stack.append(CONTAINER)
    shadows.object_bytes += LIST_BYTES
    return _fill(shadows, items, position)


def _dict(shadows: Shadows, position: int) -> int:
    items = shadows.take_marked()
    shadows.check_keys(items[::2])
    shadows.stack.append(CONTAINER)
    shadows.object_bytes += DICT_BYTES
    return _fill(shadows, items, position)


def _frozenset(shadows: Shadows, position: int) -> int:
    items = shadows.take_marked()
    shadows.check_keys(items)
    shadows.stack.append((tuple_of(items) if items else LEVEL | ATOM) | CHOSEN)
    shadows.object_bytes += SET_BYTES
    return position


def _fill(shadows: Shadows, items: list[int], position: int) -> int:
    if items:
        highest = max(items)
        if highest >= LEVEL:
            shadows.hold(highest)
    return position


def _append(shadows: Shadows, position: int) -> int:
    shadows.hold(shadows.stack.pop())
    return position


def _appends(shadows: Shadows, position: int) -> int:
    return _fill(shadows, shadows.take_marked(), position)


def _set_item(shadows: Shadows, position: int) -> int:
    value, key = shadows.stack.pop(), shadows.stack.pop()
    shadows.check_keys([key])
    shadows.hold(max(key, value))
    return position


def _set_items(shadows: Shadows, position: int) -> int:
    items = shadows.take_marked()
    # Mostly nothing of it is more than an atom.
    if items.count(ATOM) < len(items):
        shadows.check_keys(items[::2])
        _fill(shadows, items, position)
    return position


def _add_items(shadows: Shadows, position: int) -> int:
    items = shadows.take_marked()
    shadows.check_keys(items)
    return _fill(shadows, items, position)


def _build(shadows: Shadows, position: int) -> int:
    shadows.hold(shadows.stack.pop())
    return position


def _new(shadows: Shadows, position: int) -> int:
    """NEWOBJ: an object that is hashed by its identity."""
    args = shadows.stack.pop()
    return _made_new(shadows, args, position)


def _new_with_names(shadows: Shadows, position: int) -> int:
    named, args = shadows.stack.pop(), shadows.stack.pop()
    return _made_new(shadows, max(named, args), position)


def _made_new(shadows: Shadows, args: int, position: int) -> int:
    level = (max(shadows.stack[-1], args) >> LEVEL_BITS) + 1
    shadows.stack[-1] = checked(level << LEVEL_BITS | ATOM)
    shadows.object_bytes += CALL_BYTES
    return position


def _obj(shadows: Shadows, position: int) -> int:
    function, *args = shadows.take_marked() or [ATOM]
    return _called(shadows, function, args, position)


def _inst(shadows: Shadows, position: int) -> int:
    end = _line_end(shadows.data, _line_end(shadows.data, position))
    return _called(shadows, _function(shadows.data[position:end]), shadows.take_marked(), end)


def _called(shadows: Shadows, function: int, args: list[int], position: int) -> int:
    shadows.stack.append(call_of(function, tuple_of(args) if args else ATOM))
    shadows.object_bytes += CALL_BYTES
    return position


ATOM_LENGTHS = [0] * 256
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
    ATOM_LENGTHS[_code[0]] = _length

OTHERS: list[Follow] = [_unknown] * 256
for _code, _follow in {
    pickle.PROTO: _protocol,
    pickle.FRAME: _frame,
    pickle.BINFLOAT: _push(ATOM | CHOSEN, 8),
    pickle.FLOAT: _push_fraction,
    pickle.INT: _push_digits,
    pickle.LONG: _push_digits,
    pickle.LONG1: _push_long(_u1, 1),
    pickle.LONG4: _push_long(_i4, 4),
    pickle.STRING: _push_line,
    pickle.UNICODE: _push_line,
    pickle.SHORT_BINSTRING: _push_counted(_u1, 1, ATOM),
    pickle.BINSTRING: _push_counted(_i4, 4, ATOM),
    pickle.SHORT_BINBYTES: _push_counted(_u1, 1, ATOM),
    pickle.BINBYTES: _push_counted(_u4, 4, ATOM),
    pickle.BINBYTES8: _push_counted(_u8, 8, ATOM),
    pickle.BINUNICODE8: _push_counted(_u8, 8, ATOM),
    pickle.BYTEARRAY8: _push_counted(_u8, 8, CONTAINER),
    pickle.EMPTY_LIST: _push(CONTAINER, memory=LIST_BYTES),
    pickle.EMPTY_DICT: _push(CONTAINER, memory=DICT_BYTES),
    pickle.EMPTY_SET: _push(CONTAINER, memory=SET_BYTES),
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
    OTHERS[_code[0]] = _follow
