"""The text of a Python file, edited at the places that its syntax tree names: statements go, and names are others."""

from __future__ import annotations

import ast
import re
import symtable
from collections.abc import Iterator
from itertools import accumulate


class NotEditable(Exception):
    """A place in a text is not as it must be for an edit."""


class SourceText:
    """A text and the edits that are to be made in it. Its lines end in a line feed, as `tokenize.open` gives them.

    Attributes:
        tree: Its syntax tree, before any edit.
        own_names: The names that the module itself gives to something.
    """

    def __init__(self, text: str) -> None:
        self.tree = ast.parse(text)
        symbols = symtable.symtable(text, "migration", "exec").get_symbols()
        self.own_names = {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}
        # Python counts columns in bytes, and takes no other character for the end of a line.
        self._bytes = text.encode("utf-8")
        lines = self._bytes.split(b"\n")
        self._starts = [0, *accumulate(len(line) + 1 for line in lines)]
        self._edits: list[tuple[int, int, bytes]] = []

    def remove(self, node: ast.stmt) -> None:
        """Take a statement out, with the lines on which it stands.

        Raises:
            NotEditable: Another one stands there too.
        """
        decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
        first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
        last = node.end_lineno or node.lineno
        start, stop = self._starts[first - 1], min(self._starts[last], len(self._bytes))
        shares_line = any(
            other is not node and other.lineno <= last and first <= (other.end_lineno or 0)
            for other in self.tree.body
        )
        if shares_line:
            raise NotEditable(f"has more than one statement on line {last}")
        self._edits.append((start, stop, b""))

    def rename(self, old: str, new: str) -> None:
        """Give a function another name, where it is defined and wherever the name is read.

        Raises:
            NotEditable: The name does not stand where the tree says.
        """
        name = re.escape(old).encode()
        defined = re.compile(rb"def(?:[ \t\f]|\\\n)+(%s)\b" % name)
        read = re.compile(rb"(%s)\b" % name)
        for statement in self.tree.body:
            if isinstance(statement, ast.FunctionDef) and statement.name == old:
                self._replace(defined, statement, new)
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name) and node.id == old:
                self._replace(read, node, new)

    def edited(self) -> str:
        """Return the text with all edits made."""
        pieces, place = [], 0
        for start, stop, text in sorted(self._edits):
            # A name in a statement that goes is not renamed any more.
            if start >= place:
                pieces += [self._bytes[place:start], text]
                place = stop
        return b"".join([*pieces, self._bytes[place:]]).decode("utf-8")

    def _replace(self, pattern: re.Pattern[bytes], node: ast.stmt | ast.expr, new: str) -> None:
        place = self._starts[node.lineno - 1] + node.col_offset
        found = pattern.match(self._bytes, place)
        edit = found and (found.start(1), found.end(1), new.encode())
        # Before Python 3.12 the places within an f-string are not those of the file.
        if edit is None or edit in self._edits:
            raise NotEditable(f"has a name on line {node.lineno} that cannot be found there")
        self._edits.append(edit)


def bound_names(tree: ast.Module) -> Iterator[str]:
    """Yield the names that a file gives to something, wherever in it, as often as it does; methods are not names."""
    methods = {
        item for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for item in node.body
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if node not in methods:
                yield node.name
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            yield from node.names
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.name
        elif isinstance(node, ast.MatchMapping) and node.rest:
            yield node.rest
