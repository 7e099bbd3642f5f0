"""Goes through the opcodes of a pickle before the C unpickler does, and refuses what would hurt it.

The unpickler hashes what the file calls a key, makes room for what the file calls a length, and cannot be stopped
while it does (`migrate_ckpt.formats.keys`). So each object that the pickle would build stands here as one small
number, its shadow (`migrate_ckpt.formats.shadows`).

Opcodes and their arguments are described in CPython's `Lib/pickletools.py`.
"""

from __future__ import annotations

import struct

from migrate_ckpt.errors import UnreadableCheckpoint, UnsafePickle
from migrate_ckpt.formats.shadow_opcodes import ATOM_LENGTHS, OTHERS
from migrate_ckpt.formats.shadow_runs import EntryRuns
from migrate_ckpt.formats.shadows import (
    ATOM,
    CALL_BYTES,
    HEAVY,
    PLAIN_TENSOR,
    PLAIN_TENSOR_BYTES,
    TUPLE_BYTES,
    Shadows,
    call_of,
    refuse_index,
    tuple_of,
)
from migrate_ckpt.formats.tensor_matches import TensorMatches

_u4 = struct.Struct("<I").unpack_from


def check_pickle(data: bytes, tensors: TensorMatches | None = None) -> int:
    """Check the pickle that `data` begins with; gives its length. What comes after it is not looked at.

    The plain tensors in it are taken as a whole by `tensors`, where there is one for this pickle.

    Raises:
        UnsafePickle: It does what no pickler writes, or names a key that would be too much to hash.
        TooLarge: It is nested too deeply or makes too many objects or keys.
        UnreadableCheckpoint: It is cut off, or holds what is no opcode.
    """
    try:
        return _follow(Shadows(data, tensors))
    except (IndexError, struct.error) as error:
        raise UnreadableCheckpoint(
            "the pickle inside is damaged: it is cut off, or takes from its stack what is not there"
        ) from error


def _follow(shadows: Shadows) -> int:
    """Follow the opcodes up to STOP."""
    # Long, and with the frequent opcodes spelt out in the order of their frequency, because it runs once for
    # each of some millions of opcodes: a call for each would take three times as long.
    data, stack, marks, memo = shadows.data, shadows.stack, shadows.marks, shadows.memo
    push, pop, recall = stack.append, stack.pop, memo.get
    atoms, others = ATOM_LENGTHS, OTHERS
    # No pickler numbers its memo above its bytes; ours uses the numbers behind those of its pickler early on.
    size = len(data)
    position = tuples = calls = memoized = 0
    has_put = False
    last_length = -1
    runs = EntryRuns(data)
    tensors = shadows.tensors
    fetched = shadows.fetched
    while True:
        code = data[position]
        if code == 0x72:  # LONG_BINPUT
            (index,) = _u4(data, position + 1)
            if index >= size:
                refuse_index()
            if stack[-1] != ATOM:
                memo[index] = stack[-1]
            has_put = True
            position += 5
        elif atoms[code]:
            push(ATOM)
            position += atoms[code]
        elif code == 0x68:  # BINGET
            if tensors is not None and data[position + 2] == 0x28 == data[position + 3]:
                end = tensors.take(position)
                if end:
                    push(PLAIN_TENSOR)
                    position = end
                    continue
            index = data[position + 1]
            fetched.add(index)
            push(recall(index, ATOM))
            position += 2
        elif code == 0x58:  # BINUNICODE
            (length,) = _u4(data, position + 1)
            if length == last_length:
                position, pushed = runs.take(position, length)
                if pushed:
                    stack += pushed
                    has_put = True
                    continue
            last_length = length
            push(ATOM)
            position += 5 + length
        elif code == 0x28:  # MARK
            marks.append(len(stack))
            position += 1
        elif code == 0x86:  # TUPLE2
            last = pop()
            weight = last + stack[-1] + 1
            stack[-1] = weight if weight < HEAVY else tuple_of([stack[-1], last])
            tuples += 1
            position += 1
        elif code == 0x74:  # TUPLE
            mark = marks.pop()
            items = stack[mark:]
            weight = sum(items) + 1
            del stack[mark:]
            push(weight if weight < HEAVY else tuple_of(items))
            tuples += 1
            position += 1
        elif code == 0x52:  # REDUCE
            args = pop()
            stack[-1] = call_of(stack[-1], args)
            calls += 1
            position += 1
        elif code == 0x71:  # BINPUT
            index = data[position + 1]
            if index >= size:
                refuse_index()
            if stack[-1] != ATOM:
                memo[index] = stack[-1]
            has_put = True
            position += 2
        elif code == 0x8C:  # SHORT_BINUNICODE
            push(ATOM)
            position += 2 + data[position + 1]
        elif code == 0x94:  # MEMOIZE
            if stack[-1] != ATOM:
                memo[memoized] = stack[-1]
            memoized += 1
            position += 1
        elif code == 0x6A:  # LONG_BINGET
            if tensors is not None and data[position + 5] == 0x28 == data[position + 6]:
                end = tensors.take(position)
                if end:
                    push(PLAIN_TENSOR)
                    position = end
                    continue
            (index,) = _u4(data, position + 1)
            fetched.add(index)
            push(recall(index, ATOM))
            position += 5
        elif code == 0x85:  # TUPLE1
            weight = stack[-1] + 1
            stack[-1] = weight if weight < HEAVY else tuple_of([stack[-1]])
            tuples += 1
            position += 1
        elif code == 0x2E:  # STOP
            break
        else:
            position = others[code](shadows, position + 1)
    if memoized and (has_put or shadows.has_put):
        raise UnsafePickle("the pickle counts its memo in two ways at once")
    shadows.object_bytes += tuples * TUPLE_BYTES + calls * CALL_BYTES
    if tensors is not None:
        tensors.is_usable = tensors.is_usable and not memoized
        shadows.object_bytes += len(tensors) * PLAIN_TENSOR_BYTES
    shadows.check_sums()
    return position + 1
