"""Lays Python out as a formatter would: on one line where it fits, and with an item a line where it does not."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence

from migrate_ckpt.outline import printable

LINE_LENGTH = 100
_INDENT = 4


def lay_out(call: str, indent: int = 0) -> str:
    """Return a Python expression laid out; lines after the first are indented, the first one is not."""
    return _written(ast.parse(call, mode="eval").body, indent, "")


def _written(node: ast.expr, indent: int, after: str) -> str:
    flat = _flat(node)
    parts = _parts(node)
    if parts is None or indent + len(flat) + len(after) < LINE_LENGTH:
        return flat
    start, items, end = parts
    inner = indent + _INDENT
    pad = " " * inner
    if items and all(not name and _is_short(item) for name, item in items):
        lines = _filled([_flat(item) for _, item in items], pad)
    else:
        lines = [f"{pad}{name}{_written(item, inner, name + ',')}," for name, item in items]
    return "\n".join([start, *lines, " " * indent + end])


def _is_short(node: ast.expr) -> bool:
    """Tell whether something is a number or the like, of which many stand on a line."""
    value = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(value, ast.Constant) and not isinstance(value.value, str | bytes)


def _filled(items: Sequence[str], pad: str) -> list[str]:
    """Return lines with as many items as fit; an item is never broken, however long it is."""
    lines: list[str] = []
    for item in items:
        if lines and len(lines[-1]) + len(f" {item},") <= LINE_LENGTH:
            lines[-1] += f" {item},"
        else:
            lines.append(f"{pad}{item},")
    return lines


def _parts(node: ast.expr) -> tuple[str, list[tuple[str, ast.expr]], str] | None:
    """Return how something that can be broken begins, what it holds, each with what stands before it, and its end."""
    if isinstance(node, ast.Call):
        positional = [("", argument) for argument in node.args]
        keywords = [(f"{keyword.arg}=", keyword.value) for keyword in node.keywords]
        return f"{_flat(node.func)}(", positional + keywords, ")"
    if isinstance(node, ast.List):
        return "[", [("", item) for item in node.elts], "]"
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return "{", [(f"{_flat(key)}: ", value) for key, value in pairs if key is not None], "}"
    return None


def _flat(node: ast.expr) -> str:
    parts = _parts(node)
    if parts is not None:
        start, items, end = parts
        return start + ", ".join(name + _flat(item) for name, item in items) + end
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        # The quotes that a formatter would choose, where JSON and Python write a text alike.
        as_json = json.dumps(node.value)
        is_plain = '"' not in node.value and ast.literal_eval(as_json) == node.value
        return as_json if is_plain else repr(node.value)
    return ast.unparse(node)


def import_lines(verbs: Sequence[str]) -> Iterator[str]:
    """Yield the lines that import operations."""
    line = f"from migrate_ckpt.operations import {', '.join(verbs)}"
    if len(line) <= LINE_LENGTH:
        yield line
        return
    yield "from migrate_ckpt.operations import ("
    yield from (f"    {verb}," for verb in verbs)
    yield ")"


def in_docstring(text: str) -> str:
    """Return a text as it is written between three double quotes, on one line, so that it reads the same there."""
    return printable(text.replace("\\", "\\\\")).replace('"', '\\"')
