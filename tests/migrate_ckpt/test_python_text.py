"""Calls laid out as a formatter does."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from migrate_ckpt.python_text import in_docstring, lay_out

LONG = "layers.{i}.attention.self.projection.weight"


@pytest.mark.parametrize(
    "call",
    [
        "rename('a', 'b')",
        f"rename({LONG!r}, {'new.' + LONG!r}, missing='skip')",
        f"concat([{LONG!r}, {LONG!r}, {LONG!r}], {LONG!r}, dim=-1)",
        f"rename({{{LONG!r}: {LONG + 'x'!r}, {'b' + LONG!r}: {LONG + 'y'!r}}})",
        f"set_value('a.b', [{', '.join(map(repr, [LONG] * 4))}])",
        """rename('it\\'s', 'a "b"')""",
    ],
)
def test_is_what_ruff_makes_of_it(call: str) -> None:
    text = f"operations = [\n    {lay_out(call, 4)},\n]\n"

    command = [sys.executable, "-m", "ruff", "format", "--line-length", "100", "-"]
    formatted = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    assert formatted.stdout == text


@pytest.mark.parametrize(
    "call",
    [
        f"rename(['{'a word and ' * 20}\"quoted\" '])",
        f"set_value('a', [b'{'bytes and ' * 20}'])",
        f"set_value('a', [{', '.join(['-1.5e-05j'] * 40)}])",
        f"set_value('a', [{'7' * 300}, 1, 2])",
        f"set_value('a', key={'7' * 300})",
    ],
    ids=["quotes", "bytes", "complex", "digits", "keyword"],
)
def test_lines_end_between_items_only(call: str) -> None:
    laid_out = ast.parse(lay_out(call, 4), mode="eval")

    assert ast.dump(laid_out) == ast.dump(ast.parse(call, mode="eval"))


def test_many_numbers_fill_lines() -> None:
    text = lay_out(f"permute_rows(['a'], {list(range(100))})", 4)

    assert max(map(len, text.splitlines())) <= 100
    assert len(text.splitlines()) < 12


@pytest.mark.parametrize(
    "text", ['"', 'a\\"', '"""', "a\\", "\\", "a\nb", "\udc80", "\u2028", "\0", "it's"]
)
def test_docstring_keeps_any_text(text: str) -> None:
    module = ast.parse(f'"""{in_docstring(text)}"""\n'.encode())

    assert ast.get_docstring(module, clean=False) == text
