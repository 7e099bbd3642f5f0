"""Files that take the time or the memory of whoever loads them (T8 to T11)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from tests.attacks.assemble import (
    BUILD,
    MARK,
    NONE,
    NOTHING,
    REDUCE,
    call,
    checkpoint,
    data_bytes,
    dict_of,
    fraction,
    get,
    list_of,
    named,
    number,
    ordered_dict,
    put,
    text,
    tuple_of,
)
from tests.attacks.attack import BOMB, DAMAGED, PRESERVED, UNSAFE, Attack

MODULUS = 2**61 - 1
"""CPython's hash of an integer is modulo this."""


def attacks(command: str) -> Iterator[Attack]:
    for name, opcodes in _heavy_keys():
        yield Attack(f"T8-{name}", checkpoint(opcodes, 4), (UNSAFE, BOMB, DAMAGED))
    for name, opcodes in _colliding_keys():
        yield Attack(f"T8-{name}", checkpoint(opcodes, 4), (BOMB,))
    for name, opcodes in _unhashable_keys():
        yield Attack(f"T8-{name}", checkpoint(opcodes, 5), (UNSAFE, DAMAGED))
    for name, opcodes in _deep():
        yield Attack(f"T9-{name}", checkpoint(opcodes), (BOMB, UNSAFE))
    yield from _deep_by_memo()
    for name, opcodes in _endless_as_a_tree():
        yield Attack(f"T10-{name}", checkpoint(opcodes), (PRESERVED,))
    for name, opcodes, outcome in _shared():
        yield Attack(f"T10-{name}", checkpoint(opcodes), (outcome,))
    for name, opcodes, outcome in _memory():
        yield Attack(f"T11-{name}", checkpoint(opcodes, 5), (outcome,))


def doubled(start: bytes, levels: int = 60) -> bytes:
    """A tuple that holds another one twice, and so on."""
    opcodes = start
    for index in range(10, 10 + levels):
        opcodes += put(index) + get(index) + b"\x86"
    return opcodes


def _shared() -> Iterator[tuple[str, bytes, str]]:
    """What is small in the file and large wherever it is looked at."""
    state = dict_of(*((text(f"name{i}"), NONE) for i in range(2000)))
    made = named("a", "B") + NOTHING + b"\x81"
    objects = (made + get(5) + b"b" for _ in range(2000))
    yield "one-state-of-many-objects", list_of(state + put(5), *objects), BOMB
    key = tuple_of(text("x" * 200_000), number(1)) + put(5)
    dicts = (dict_of((get(5), number(1))) for _ in range(500))
    yield "one-long-key-of-many", list_of(key, *dicts), PRESERVED
    table = call(named("collections", "defaultdict"), named("builtins", "list")) + put(5)
    yield "key-of-itself", table + get(5) + number(1) + b"s", PRESERVED


def _heavy_keys() -> Iterator[tuple[str, bytes]]:
    deep = NOTHING + b"\x85" * 30_000
    yield "deep-tuple-as-key", dict_of((deep, NONE))
    yield "deep-tuple-as-only-item", b"}" + deep + NONE + b"s"
    yield "deep-tuple-in-a-set", b"\x8f" + MARK + deep + b"\x90"
    yield "deep-tuple-in-a-frozenset", MARK + deep + b"\x91"
    yield (
        "deep-tuple-in-a-called-set",
        call(named("builtins", "set"), list_of(NOTHING + b"\x85" * 350)),
    )
    yield "doubled-tuple-as-key", dict_of((doubled(number(1)), NONE))
    yield "doubled-tuple-in-a-set", b"\x8f" + MARK + doubled(number(1)) + b"\x90"
    yield "doubled-tuple-in-a-frozenset", MARK + doubled(number(1)) + b"\x91"
    for name in ("set", "frozenset"):
        called = call(named("builtins", name), list_of(doubled(number(1))))
        yield f"doubled-tuple-in-a-called-{name}", called
    pairs = list_of(list_of(doubled(number(1)), NONE))
    yield "doubled-tuple-in-an-ordered-dict", ordered_dict(pairs)
    filled = b"]" + put(99) + list_of(list_of(doubled(number(1)), NONE)) + b"a0"
    later = filled + call(named("builtins", "set"), list_of(tuple_of(get(99))))
    yield "list-in-a-called-set", b"]" + later + b"0"
    sized = call(named("torch", "Size"), doubled(number(1)))
    yield "doubled-tuple-as-size-as-key", dict_of((sized, NONE))
    item = call(named("collections", "Counter"), NOTHING) + MARK + doubled(number(1)) + NONE + b"u"
    yield "doubled-tuple-as-key-of-a-foreign-object", item
    by_frozensets = MARK + number(1) + b"\x91"
    for level in range(30):
        index = 10 + level
        by_frozensets = MARK + by_frozensets + put(index) + get(index) + b"\x85" + b"\x91"
    yield "doubled-frozensets", dict_of((by_frozensets, NONE))
    long = b"\x8b" + struct.pack("<i", 100_000) + b"\x11" * 100_000 + put(99)
    yield "long-integer-as-key-again-and-again", dict_of((long, NONE), *[(get(99), NONE)] * 1000)
    yield "long-integer-in-a-called-set", call(named("builtins", "set"), list_of(long))
    yield "wide-tuple-as-key", dict_of((tuple_of(*[number(1)] * 1000), NONE))


def _colliding_keys() -> Iterator[tuple[str, bytes]]:
    nothing_of = [(number(1 + index * MODULUS), NONE) for index in range(20_000)]
    yield "integers-of-one-hash", dict_of(*nothing_of)
    negative = [(number(-1 - index * MODULUS), NONE) for index in range(20_000)]
    yield "negative-integers-of-one-hash", dict_of(*negative)
    members = list_of(*(key for key, _ in nothing_of))
    yield "integers-of-one-hash-in-a-set", call(named("builtins", "set"), members)
    yield (
        "integers-of-one-hash-in-an-ordered-dict",
        ordered_dict(list_of(*(tuple_of(key, NONE) for key, _ in nothing_of))),
    )

    def bits(index: int, zero: bytes, one: bytes) -> bytes:
        return tuple_of(*((zero, one)[index >> bit & 1] for bit in range(14)))

    variants = {
        "minus-one-and-minus-two": (number(-1), number(-2)),
        "empty-text-and-zero": (text(""), number(0)),
        "text-and-bytes": (text("a"), data_bytes(b"a")),
        "narrow-and-wide-text": (text("aa"), text("\u6161")),
    }
    for name, (zero, one) in variants.items():
        yield f"tuples-of-{name}", dict_of(*((bits(i, zero, one), NONE) for i in range(12_000)))
    zero, one = variants["minus-one-and-minus-two"]
    tuples = list_of(*(bits(index, zero, one) for index in range(12_000)))
    yield "tuples-of-one-hash-in-a-called-set", call(named("builtins", "set"), tuples)
    # hash(complex(re, im)) is hash(re) + 1000003 * hash(im).
    numbers = [
        call(named("builtins", "complex"), fraction(-1000003.0 * i), fraction(float(i)))
        for i in range(12_000)
    ]
    yield "complex-numbers-of-one-hash", dict_of(*((key, NONE) for key in numbers))
    yield "complex-numbers-of-one-hash-in-a-set", call(named("builtins", "set"), list_of(*numbers))
    halves = [(tuple_of(fraction(i + 0.5), number(i)), NONE) for i in range(12_000)]
    yield "tuples-with-fractions", dict_of(*halves)
    sets = [(MARK + number(i) + number(i + 1) + b"\x91", NONE) for i in range(12_000)]
    yield "frozensets-as-keys", dict_of(*sets)
    called = [
        (call(named("builtins", "frozenset"), list_of(number(i))), NONE) for i in range(12_000)
    ]
    yield "called-frozensets-as-keys", dict_of(*called)


def _unhashable_keys() -> Iterator[tuple[str, bytes]]:
    yield "list-as-key", dict_of((b"]", NONE))
    yield "dict-as-key", dict_of((b"}", NONE))
    yield "set-as-key", dict_of((b"\x8f", NONE))
    yield "bytearray-as-key", dict_of((b"\x96" + struct.pack("<Q", 1) + b"a", NONE))
    yield "tuple-of-a-list-as-key", dict_of((tuple_of(b"]"), NONE))
    yield "list-in-a-frozenset", MARK + b"]" + b"\x91"
    yield "ordered-dict-as-key", dict_of((ordered_dict(), NONE))


def _deep() -> Iterator[tuple[str, bytes]]:
    levels = 20_000
    yield "lists", b"]" * levels + b"a" * (levels - 1)
    yield "lists-in-batches", b"](" * levels + b"e" * levels
    yield "dicts", b"}N" * levels + b"}" + b"s" * levels
    yield "tuples", NOTHING + b"\x85" * levels
    yield "calls-in-calls", named("a", "b") * levels + NOTHING + b"R\x85" * (levels - 1) + b"R"
    yield "calls-of-calls", named("a", "b") + b")R" * levels
    yield "states-in-states", (named("a", "b") + b")\x81") * levels + b"b" * (levels - 1)
    yield "ordered-dicts", (ordered_dict() + NONE) * levels + NONE + b"s" * levels
    yield "frozensets", b"(" * levels + b"\x91" * levels
    nested = named("a", "B")
    for _ in range(450):
        nested = call(named("builtins", "getattr"), nested, text("x"))
    yield "nested-classes", nested


def _deep_by_memo() -> Iterator[Attack]:
    """Deep, though nothing is nested where it stands: each list holds the one that stands before it."""
    chain = b"](]" + put(10)
    for index in range(10, 5_010):
        chain += b"]" + put(index + 1) + get(index) + b"a"
    yield Attack("T9-chain-of-lists-beside-each-other", checkpoint(chain + b"e"), (PRESERVED,))
    last_only = b"]" + put(10)
    for index in range(10, 5_010):
        last_only += b"0]" + put(index + 1) + get(index) + b"a"
    outcomes = (PRESERVED, "unwritable", BOMB)
    yield Attack("T9-last-of-a-chain-of-lists", checkpoint(last_only), outcomes)
    calls = named("a", "b") + NOTHING + REDUCE + put(10)
    for index in range(10, 5_010):
        calls += b"0" + call(named("a", "b"), get(index)) + put(index + 1)
    yield Attack("T9-last-of-a-chain-of-calls", checkpoint(calls), outcomes)


def _endless_as_a_tree() -> Iterator[tuple[str, bytes]]:
    lists, dicts = b"]", b"}"
    for index in range(10, 70):
        lists += put(index) + b"0](" + get(index) * 2 + b"e"
        dicts += put(index) + b"0" + dict_of((text("a"), get(index)), (text("b"), get(index)))
    yield "lists", lists
    yield "dicts", dicts
    yield "tuples", doubled(b"]")
    state = named("a", "b") + NOTHING + b"\x81"
    objects = state
    for index in range(10, 70):
        both = dict_of((text("a"), get(index)), (text("b"), get(index)))
        objects += put(index) + b"0" + state + both + BUILD
    yield "objects", objects
    yield "list-in-itself", b"]" + put(5) + get(5) + b"a"
    yield "dict-in-itself", b"}" + put(5) + text("k") + get(5) + b"s"
    yield "object-in-itself", state + put(5) + dict_of((text("me"), get(5))) + BUILD
    yield "ordered-dict-in-itself", ordered_dict() + put(5) + text("k") + get(5) + b"s"
    shared = call(named("builtins", "set"), list_of(*map(number, range(5000)))) + put(100)
    yield "large-set-in-many-places", list_of(shared, *[get(100)] * 30_000)
    long = text("x" * 100_000) + put(100)
    yield "long-text-in-many-places", list_of(long, *[get(100)] * 30_000)


def _memory() -> Iterator[tuple[str, bytes, str]]:
    absurd = struct.pack("<Q", 1 << 62)
    yield "bytes-of-four-exbibytes", b"\x8e" + absurd, DAMAGED
    yield "text-of-four-exbibytes", b"\x8d" + absurd, DAMAGED
    yield "bytearray-of-four-exbibytes", b"\x96" + absurd, DAMAGED
    yield "frame-of-four-exbibytes", b"\x95" + absurd, DAMAGED
    yield "bytes-of-four-gibibytes", b"B" + b"\xff" * 4, DAMAGED
    yield "integer-of-two-gibibytes", b"\x8b" + b"\xff\xff\xff\x7f", DAMAGED
    yield "integer-of-negative-length", b"\x8b" + b"\xff" * 4, UNSAFE
    yield "text-of-negative-length", b"T" + b"\xff" * 4, UNSAFE
    yield "memo-of-two-gibibytes", NONE + put(1 << 27), UNSAFE
    yield "memo-of-64-gibibytes", NONE + put(0xFFFFFFFF), UNSAFE
    yield "memo-index-in-words", NONE + b"p99999999999999999999\n", UNSAFE
    yield "memo-index-below-zero", NONE + b"p-1\n", UNSAFE
    yield "memo-in-two-ways", NONE + put(3) + NONE + b"\x94\x86", UNSAFE
    # For the unpickler the second tuple has number 2, for who counts in one way only number 1.
    hidden = NONE + b"p7\n0" + number(1) + b"\x94\x85\x94"
    yield "memo-in-words-and-in-order", hidden, UNSAFE
    yield "integer-of-a-million-digits", b"L" + b"7" * 1_000_000 + b"L\n", BOMB
    yield "fraction-of-a-million-digits", b"F0." + b"7" * 1_000_000 + b"\n", BOMB
    yield "globals", b"(" + b"".join(named("a", f"b{i}") for i in range(30_000)) + b"l", BOMB
    yield "fifty-thousand-sets", b"(" + b"\x8f" * 50_000 + b"l", PRESERVED
    yield "ten-million-sets", b"(" + b"\x8f" * 10_000_000 + b"1" + NONE, BOMB
    yield "a-million-times-nothing", b"(" + NONE * 1_000_000 + b"1" + NONE, PRESERVED
    yield "copies-of-the-top", b"(" + NONE + b"2" * 1_000_000 + b"1" + NONE, PRESERVED
    yield "marks", NONE + b"(" * 1_000_000 + b"1" * 1_000_000, PRESERVED
    yield "text-that-is-no-utf-8", text(b"\xff\xfe"), DAMAGED
    yield "no-end", NONE * 10, DAMAGED
    yield "nothing-on-the-stack", b"0" * 10, DAMAGED
    yield "no-mark", b"t", DAMAGED
    yield "unknown-opcode", b"\xff", DAMAGED
    yield "protocol-200", b"\x80\xc8" + NONE, DAMAGED
    yield "no-line-end", b"cposix", DAMAGED
