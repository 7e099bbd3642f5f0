"""The digest of a migration: a hash of its syntax tree that no Python version changes.

Layout, comments and docstrings do not count, nor does anything else that has no effect when the migration runs; so
its `revert` does not, which may be written long after. `ast.dump` will not do: its text changes with Python. The tree
is walked by our own rule, written down in `_tokens`, and the scheme's number stands before the hash, so that digests
made by another rule are never compared.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

SCHEME = "1"

_BLOCK_BYTES = 1 << 20

# Positions are attributes, not fields, and so never met. These fields are set for type checkers
# or for printing; the code runs the same without them.
_IGNORED_FIELDS = frozenset({"kind", "type_comment", "type_ignores"})
_MAY_HAVE_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def digest_of_tree(tree: ast.Module) -> str:
    """Return the digest of a parsed file."""
    digest = hashlib.sha256()
    for token in _tokens(tree):
        digest.update(token)
    return _with_scheme(digest.hexdigest())


def digest_of_file(file: BinaryIO) -> str:
    """Return the digest of what a file holds, whatever it is."""
    digest = hashlib.sha256()
    while block := file.read(_BLOCK_BYTES):
        digest.update(block)
    return _with_scheme(digest.hexdigest())


def digest_of_parts(parts: Iterable[str]) -> str:
    """Return one digest over several strings, in their order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(_sized(b"s", part))
    return _with_scheme(digest.hexdigest())


def is_different(one: str | None, other: str | None) -> bool:
    """Tell whether two digests show two contents; unknown or of two schemes, they show nothing."""
    if one is None or other is None:
        return False
    return one.partition(":")[0] == other.partition(":")[0] and one != other


def _with_scheme(hexdigest: str) -> str:
    return f"{SCHEME}:{hexdigest}"


def _tokens(tree: ast.Module) -> Iterator[bytes]:
    """Yield the tree as bytes, depth first.

    A node is `(`, its class, each field that is neither empty nor ignored in alphabetical order,
    `)`; a list is `[`, its items, `]`; a constant is its type, its length and its text.
    A stack instead of recursion: a sum of a thousand terms is a tree a thousand deep.
    """
    stack: list[Any] = [tree]
    while stack:
        item = stack.pop()
        if isinstance(item, _Token):
            yield item
        elif isinstance(item, ast.AST):
            yield _sized(b"(", type(item).__name__)
            stack.append(_Token(b")"))
            for name, value in reversed(_fields(item)):
                stack += [value, _Token(_sized(b".", name))]
        elif isinstance(item, list):
            yield b"["
            stack += [_Token(b"]"), *reversed(item)]
        else:
            yield _constant(item)


class _Token(bytes):
    """Bytes of the rule itself, to tell them from a bytes constant of the program."""


def _fields(node: ast.AST) -> list[tuple[str, Any]]:
    fields = []
    for name in sorted(set(node._fields) - _IGNORED_FIELDS):
        value: Any = getattr(node, name, None)
        if name == "body" and _has_docstring(node):
            value = value[1:]
        if name == "body" and isinstance(node, ast.Module):
            value = [statement for statement in value if not is_revert(statement)]
        elif isinstance(node, ast.JoinedStr):
            value = _joined(value)
        elif name == "format_spec" and value is not None and not _joined(value.values):
            value = None
        if value is not None and value != []:
            fields.append((name, value))
    return fields


def is_revert(statement: ast.stmt) -> bool:
    """Tell whether a statement of a migration's file defines what takes the migration back."""
    return isinstance(statement, ast.FunctionDef) and statement.name == "revert"


def _has_docstring(node: ast.AST) -> bool:
    return isinstance(node, _MAY_HAVE_DOCSTRING) and ast.get_docstring(node, False) is not None


def _joined(values: list[ast.expr]) -> list[Any]:
    """Return the parts of an f-string with its text in one piece between two fields.

    Python versions cut the text differently: at doubled braces, at the seam of two literals.
    """
    joined: list[Any] = []
    for value in values:
        part = value.value if isinstance(value, ast.Constant) else value
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part != "":
            joined.append(part)
    return joined


def _constant(value: object) -> bytes:
    tag = type(value).__name__.encode()
    if isinstance(value, str):
        return _sized(tag, value)
    if isinstance(value, bytes):
        return _sized(tag, value.hex())
    if isinstance(value, int):
        # The decimal text of a huge integer is refused by newer Pythons.
        return _sized(tag, hex(value))
    return _sized(tag, repr(value))


def _sized(tag: bytes, text: str) -> bytes:
    # A lone surrogate is legal in a Python literal and illegal in UTF-8.
    content = text.encode("utf-8", "surrogatepass")
    return b"%b%d:%b" % (tag, len(content), content)
