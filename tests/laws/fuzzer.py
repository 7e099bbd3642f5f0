"""Makes up pickles, and loads those that pass the check. Runs in a process of its own, which may die of it.

    python -m tests.laws.fuzzer SEED COUNT

Before each load it says which one it is, so that whoever finds it dead knows what it died of.
"""

from __future__ import annotations

import json
import pickle
import random
import resource
import struct
import sys
import time
from pathlib import Path

from migrate_ckpt import MigrateCkptError
from migrate_ckpt.formats.shadow import check_pickle
from tests.migrate_ckpt.formats.test_pickles import VALUES, read

MEMORY_BYTES = 2 << 30

ATOMS = (
    *(
        b"N",
        b"\x88",
        b")",
        b"]",
        b"}",
        b"\x8f",
        b"K\0",
        b"K\1",
        b"J\xff\xff\xff\xff",
        b"U\1a",
        b"C\1a",
    ),
    *(b"X\0\0\0\0", b"X\1\0\0\0a", b"\x8c\1a", b"G" + struct.pack(">d", 0.5), b"L7L\n", b"F.5\n"),
    *(b"Vx\n", b"S'x'\n", b"I1\n", b"I01\n", b"\x8a\x08" + b"\x7f" * 8, b"\x8a\x40" + b"\x7f" * 64),
    b"\x96" + struct.pack("<Q", 1) + b"a",
)
GLOBALS = (
    *(b"cbuiltins\nset\n", b"cbuiltins\nfrozenset\n", b"cbuiltins\ncomplex\n", b"ca\nb\n"),
    *(
        b"ccollections\nOrderedDict\n",
        b"cbuiltins\ngetattr\n",
        b"c_codecs\nencode\n",
        b"ctorch\nSize\n",
    ),
    *(b"cbuiltins\nbytearray\n", b"X\1\0\0\0aX\1\0\0\0b\x93"),
)
LOOSE = (
    *(b"0", b"1", b"2", b"(", b"t", b"l", b"d", b"e", b"u", b"\x90", b"\x91", b"o", b"ia\nb\n"),
    *(
        b"\x85",
        b"\x86",
        b"\x87",
        b"R",
        b"\x81",
        b"b",
        b"a",
        b"s",
        b"\x92",
        b"\x93",
        b"\x94",
        b"Q",
        b"p3\n",
        b"g3\n",
        b".",
    ),
)


def random_pickle(draw: random.Random) -> bytes:
    """A well-formed value, mostly, that nests, repeats and doubles what it is made of."""
    parts = [value(draw, draw.randrange(6)) for _ in range(draw.randrange(1, 4))]
    if draw.random() < 0.4:
        parts.insert(draw.randrange(len(parts) + 1), draw.choice(LOOSE))
    if draw.random() < 0.5:
        parts = [b"}", *(part + b"Ns" for part in parts)]
    protocol = bytes((draw.randrange(6),))
    return b"\x80" + protocol + b"N0" * 20 + b"".join(parts) + b"."


def value(draw: random.Random, depth: int) -> bytes:
    """Opcodes that push one object."""
    made = _compound(draw, depth) if depth else draw.choice(ATOMS)
    how = draw.randrange(30)
    slot = draw.randrange(4)
    if how < 5:
        return made + b"q%c" % slot
    if how < 8:
        return b"h%c" % slot
    if how == 8:
        return made + b"q\5h\5\x86" * draw.randrange(80)
    if how == 9:
        return made + b"\x85" * draw.choice((1, 30, 390, 2000))
    if how == 10:
        return b"(" + made + b"2" * draw.choice((1, 30, 3000)) + draw.choice((b"t", b"l"))
    if how == 11:
        return made + b"q\5(h\5q\6h\6\x85\x91" * draw.randrange(40)
    if how == 12:
        return draw.choice(GLOBALS) + made + b"\x85R" + b")R" * draw.choice((0, 1, 300, 2000))
    return made


def _compound(draw: random.Random, depth: int) -> bytes:
    parts = [value(draw, depth - 1) for _ in range(draw.randrange(5))]
    pairs = parts[: len(parts) // 2 * 2]
    function = draw.choice(GLOBALS)
    forms = (
        b"(" + b"".join(parts) + b"t",
        b"](" + b"".join(parts) + b"e",
        b"}(" + b"".join(pairs) + b"u",
        b"\x8f(" + b"".join(parts) + b"\x90",
        b"(" + b"".join(parts) + b"\x91",
        function + b"(" + b"".join(parts) + b"tR",
        function + b"](" + b"".join(parts) + b"e\x85R",
        function + b"(" + b"".join(parts) + b"t\x81}(" + b"".join(pairs) + b"ub",
        b"(" + function + b"".join(parts) + b"o",
        b"(" + b"".join(parts) + b"ibuiltins\nfrozenset\n",
        function + b")R(" + b"".join(pairs) + b"u",
    )
    return draw.choice(forms)


def mutated(draw: random.Random, originals: list[bytes]) -> bytes:
    """A real pickle with some bytes changed, dropped, inserted or doubled."""
    data = bytearray(draw.choice(originals))
    for _ in range(draw.randrange(1, 4)):
        place, end = sorted(draw.choices(range(len(data) + 1), k=2))
        how = draw.randrange(5)
        if how == 0 and place < len(data):
            data[place] = draw.randrange(256)
        elif how == 1:
            del data[place : min(end, place + 8)]
        elif how == 2:
            data[place:place] = draw.choice((*ATOMS, *GLOBALS, *LOOSE))
        elif how == 3:
            data[place:place] = data[place:end] * draw.choice((1, 3, 50))
        else:
            other = draw.choice(originals)
            data[place:end] = other[len(other) // 3 : len(other) // 2]
    return bytes(data)


def load(data: bytes) -> str:
    try:
        check_pickle(data)
    except MigrateCkptError:
        return "refused"
    try:
        read(data)
    except MigrateCkptError:
        return "passed"
    return "loaded"


def main() -> None:
    seed, count = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    originals = [
        pickle.dumps(value, protocol)
        for value in VALUES.values()
        for protocol in range(6)
        if protocol > 1 or not type(value).__module__.startswith("tests")
    ]
    counts = dict.fromkeys(("refused", "passed", "loaded"), 0)
    slowest = (0.0, 0)
    for index in range(seed * count, (seed + 1) * count):
        draw = random.Random(index)
        data = random_pickle(draw) if index % 2 else mutated(draw, originals)
        sys.stderr.write(f"{index}\n")
        began = time.monotonic()
        counts[load(data)] += 1
        slowest = max(slowest, (time.monotonic() - began, index))
    # Not getrusage: what it says counts the process that this one was forked from.
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    print(json.dumps({**counts, "slowest": slowest, "peak": peak}))


if __name__ == "__main__":
    main()
