"""Files that attack by what they say: histories, and texts that end up in reports and headers (T20, T21, T25)."""

from __future__ import annotations

from collections.abc import Iterator

from tests.attacks.assemble import (
    BUILD,
    NONE,
    NOTHING,
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
    pickled,
    put,
    storage,
    system,
    tensor,
    text,
    torch_zip,
    tuple_of,
)
from tests.attacks.attack import (
    BOMB,
    DAMAGED,
    FAILED,
    HISTORY,
    PRESERVED,
    UNKNOWN_HISTORY,
    UNSAFE,
    Attack,
)

NAMES, RECORDS = "_migrate-ckpt-migrations", "_migrate-ckpt-records"
NASTY = {
    "line-breaks": "a\r\nSet-Cookie: x=1\r\n\r\n<html>",
    "escapes": "\x1b]0;x\x07\x1b[31m",
    "nul": "a\0b",
    "markup": "<script>alert(1)</script>",
    "surrogate": "\ud800\udfff\udc80",
    "bidi": "\u202etxt.exe\u2066",
    "line-separators": "a\u2028b\u2029c\x85d",
    "format": "%s%n{0}{epoch}%(x)s",
    "long": "x" * 1_000_000,
    "dunder": "__class__",
    "path": "../../../../etc/passwd",
}


def attacks(command: str) -> Iterator[Attack]:
    for name, value in _histories(command):
        yield Attack(f"T20-{name}", _with_history(value), (HISTORY,))
    for name in ("\x1b[31m", "a\r\nb", "\ud800", "x" * 300, ""):
        data = _with_history(list_of(text(name)))
        yield Attack(f"T20-name-{ascii(name)[1:12]}", data, (HISTORY,))
    unknown = _with_history(list_of(text("../../etc/passwd"), text("9999_x")))
    yield Attack("T20-unknown-names", unknown, (UNKNOWN_HISTORY,))
    for name, value in _records(command):
        yield Attack(
            f"T20-records-{name}", _with_history(list_of(text("0001_x")), value), (HISTORY,)
        )
    flat = (
        ordered_dict()
        + dict_of((text("_metadata"), dict_of((text(NAMES), system(command)))))
        + BUILD
    )
    yield Attack("T20-in-the-metadata", torch_zip(pickled(flat)), (HISTORY,))
    odd = ordered_dict() + dict_of((text("_metadata"), system(command))) + BUILD
    yield Attack("T20-metadata-that-is-a-call", torch_zip(pickled(odd)), (PRESERVED,))
    for name, value in NASTY.items():
        yield from _said_everywhere(name, value)
    yield from _unprintable_numbers()
    yield from _whole_files(command)


def _with_history(names: bytes, said: bytes | None = None) -> bytes:
    pairs = [(text("epoch"), number(1)), (text(NAMES), names)]
    return torch_zip(pickled(dict_of(*pairs, *([(text(RECORDS), said)] if said else [])), 4))


def _histories(command: str) -> Iterator[tuple[str, bytes]]:
    yield "text", text("0001_first")
    yield "number", number(1)
    yield "nothing", NONE
    yield "dict", dict_of((text("0001_first"), NONE))
    yield "tuple", tuple_of(text("0001_first"))
    yield "bytes", data_bytes(b"0001_first")
    yield "list-of-numbers", list_of(number(1))
    yield "list-of-bytes", list_of(data_bytes(b"0001_first"))
    yield "list-of-lists", list_of(list_of(text("0001_first")))
    yield "list-of-calls", list_of(system(command))
    yield "call", system(command)
    yield "ordered-dict", ordered_dict()
    yield "foreign-list", call(named("collections", "UserList"), NOTHING) + text("a") + b"a"
    yield "list-in-itself", b"]" + put(5) + get(5) + b"a"
    yield "twenty-thousand-names", list_of(*(text(f"{i}_x") for i in range(20_000)))


def _records(command: str) -> Iterator[tuple[str, bytes]]:
    yield "text", text("x")
    yield "empty", b"}"
    yield "call", system(command)
    known = (text("format"), number(1))
    yield "of-another-format", dict_of((text("format"), number(99)), (text("records"), b"]"))
    yield "of-a-true-format", dict_of((text("format"), b"\x88"), (text("records"), b"]"))
    yield "without-a-list", dict_of(known, (text("records"), b"}"))
    yield "of-numbers", dict_of(known, (text("records"), list_of(number(1))))
    odd = dict_of((text("name"), system(command)))
    yield "of-calls", dict_of(known, (text("records"), list_of(odd)))
    more = dict_of((text("name"), text("0001_x")), (text("evil"), text("x")))
    yield "with-more-fields", dict_of(known, (text("records"), list_of(more)))


def _said_everywhere(name: str, value: str) -> Iterator[Attack]:
    said = text(value)
    top = torch_zip(pickled(dict_of((said, number(1)), (text("epoch"), said))))
    yield Attack(f"T21-{name}-as-key", top, (PRESERVED,))
    inside = dict_of((said, said), (tuple_of(said, number(1)), NONE))
    yield Attack(f"T21-{name}-inside", checkpoint(inside), (PRESERVED,))
    attribute = named("a", "B") + NOTHING + b"\x81" + dict_of((said, said)) + BUILD
    yield Attack(f"T21-{name}-as-attribute", checkpoint(attribute), (PRESERVED,))
    weights = dict_of((said, tensor(storage("0", 2))))
    flat = torch_zip(pickled(weights), [("0", bytes(8))])
    yield Attack(f"T21-{name}-as-name-of-a-tensor", flat, (PRESERVED,))


def _unprintable_numbers() -> Iterator[Attack]:
    digits = (10**6000).to_bytes(2600, "little")
    huge = b"\x8b" + (2600).to_bytes(4, "little") + digits
    values = {
        "not-a-number": fraction(float("nan")),
        "infinity": fraction(float("-inf")),
        "six-thousand-digits": huge,
    }
    for name, value in values.items():
        both = dict_of((text("a"), value), (text("b"), tuple_of(value, value)))
        yield Attack(f"T21-{name}", checkpoint(both), (PRESERVED,))
    keys = dict_of((values["not-a-number"], NONE), (values["infinity"], NONE), (NONE, NONE))
    yield Attack("T21-not-a-number-as-key", checkpoint(keys), (PRESERVED,))
    yield Attack("T21-six-thousand-digits-as-key", checkpoint(dict_of((huge, NONE))), (UNSAFE,))
    top = torch_zip(
        pickled(dict_of((number(1), NONE), (NONE, NONE), (data_bytes(b"\xff"), NONE)), 3)
    )
    yield Attack("T21-no-text-as-key", top, (PRESERVED,))


def _whole_files(command: str) -> Iterator[Attack]:
    """Whole files of other kinds than a mapping."""
    wholes = {
        "list": list_of(number(1)),
        "nothing": NONE,
        "number": number(1),
        "class": named("posix", "system"),
        "module": named("a.b", "Model") + NOTHING + b"\x81" + dict_of((text("x"), NONE)) + BUILD,
    }
    for name, value in wholes.items():
        yield Attack(f"T21-whole-file-is-a-{name}", torch_zip(pickled(value)), (FAILED, DAMAGED))
    for name in (number(1), text("__deepcopy__"), text("items")):
        odd = ordered_dict() + dict_of((name, NONE)) + BUILD
        yield Attack(f"T21-ordered-dict-with-{name!r:.20}", checkpoint(odd), (UNSAFE,))
    yield Attack("T24-page-of-comments", b"<!---->" * 70 + b"x", (DAMAGED,))
    yield Attack("T24-empty", b"", (DAMAGED, "empty_file"))
    yield Attack("T24-empty-checkpoint", torch_zip(pickled(b"}")), (PRESERVED,))
    # What torch would load without its safety where an environment variable says so.
    forced = checkpoint(system(command))
    yield Attack("T25-with-the-environment-set", forced, (PRESERVED,), ("posix.system",))
    deep = checkpoint(NOTHING + b"\x85" * 2000)
    yield Attack("T25-refused-with-the-environment-set", deep, (BOMB,))
