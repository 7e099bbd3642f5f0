from __future__ import annotations

import ast
import io

import pytest

from migrate_ckpt.digest import digest_of_file, digest_of_parts, digest_of_tree, is_different

RENAME = '''\
"""Rename the encoder."""

from __future__ import annotations

PREFIXES = {"encoder.": "backbone.", **{}}


def handle(ckpt, /, *, strict: bool = True):
    weights = ckpt["state_dict"]
    for old in [key for key in weights if key.startswith(tuple(PREFIXES))]:
        new = f"{PREFIXES['encoder.']}{{{old!r:>{10}}}}" f"" "end"
        weights[new] = weights.pop(old) if strict else None
    return ckpt
'''


def digest(source: str) -> str:
    return digest_of_tree(ast.parse(source))


# Records of these digests are in people's checkpoints. A test that fails here, on whatever
# Python, says that all their migrations would read as changed: mend the rule, not the literal.
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param(
            "",
            "1:fe6a539ea3db6916054fa24eec56e4c5b7f367fe3934aef09aea875b0b649618",
            id="nothing",
        ),
        pytest.param(
            RENAME,
            "1:5592c1fa092f663941de3d0ecd4e8967eb63e2063efbcf5d3590df6281f0c0a6",
            id="a migration",
        ),
        pytest.param(
            "x = 'é', b'\\xff', 10**5, 0x10, 1.5, 2j, True, None, ...",
            "1:e91db90700316755c09215223581f305a2c4e20e67b4228ee660b88efb46f0d3",
            id="constants",
        ),
        pytest.param(
            "x = '\\ud800'",
            "1:72bb88557f0d4c876793ad69d6d1bd4a1d548a72bb7cf8b0058ce432af71e676",
            id="a lone surrogate",
        ),
        pytest.param(
            "f'{x:}' f'{{' f'a{b=:>{c}}' '}' rf'\\d{e!s}'",
            "1:cd21c9b0454e96dd5ec87df42e8c07c26f96ff9a752386e200e60013d57042dc",
            id="f-strings",
        ),
        pytest.param(
            "f'{x:%H:%M}{y:{z}{w}}' f'{f\"{v}\"}'",
            "1:fa8e693b52e534c9b6ddbd8a445c99a23f6f31d78300c987bb4425c00a7f010e",
            id="nested f-strings",
        ),
        pytest.param(
            "class A(B): x: int",
            "1:44a88dd85f3b995de9005ab3c8be6068d465b073539f041fbd01b21aac5f8138",
            id="a class",
        ),
        pytest.param(
            "match x:\n case {'a': 1, **r} | [1, *_] if r: pass",
            "1:d6d4f7683e1c24f6f10cc0556be38543fb37fdf8685dc055404535f46c52cc59",
            id="a match",
        ),
        pytest.param(
            "async def f():\n async with a as b: await b",
            "1:52cd1ec62dec4b3f1b315005e7b182cf6712586a644b4eb20cc98a2e31d7b1ee",
            id="a coroutine",
        ),
    ],
)
def test_digest_is_the_same_on_every_python(source: str, expected: str) -> None:
    assert digest(source) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("x = 1", "x  =  1  # one", id="layout and comments"),
        pytest.param("x = 'a'", 'x = "a"', id="quotes"),
        pytest.param("x = 'a'", "x = u'a'", id="the u of a string"),
        pytest.param("x = 'ab'", "x = 'a' 'b'", id="a string in two pieces"),
        pytest.param("x = f'a{b}c'", "x = 'a' f'{b}' f'' 'c'", id="an f-string in pieces"),
        pytest.param("x = 16", "x = 0x10", id="the way to write a number"),
        pytest.param("f(1)", "\n\nf(\n    1,\n)", id="line breaks"),
        pytest.param("def f():\n  return", "def f():\n    return", id="indentation"),
        pytest.param("'''Title.'''\nx = 1", "'''Another title.'''\nx = 1", id="a docstring"),
        pytest.param("'''Title.'''\nx = 1", "x = 1", id="no docstring"),
        pytest.param(
            "def f():\n  'Doc.'\n  return 1", "def f():\n  return 1", id="a function's docstring"
        ),
        pytest.param("x = 1", "x = 1  # type: int", id="a type comment"),
    ],
)
def test_what_does_nothing_at_run_time_does_not_count(one: str, other: str) -> None:
    assert digest(one) == digest(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("x = 1", "x = 2", id="a number"),
        pytest.param("x = 1", "y = 1", id="a name"),
        pytest.param("x = 1", "x = 1.0", id="an integer and a float"),
        pytest.param("x = 1", "x = True", id="one and True"),
        pytest.param("x = 'a'", "x = b'a'", id="a string and bytes"),
        pytest.param("x = True", "x = b'True'", id="True and its name"),
        pytest.param("x = 'a'", "x = f'a'", id="a string and an f-string"),
        pytest.param("x = f'{a}'", "x = f'{a!r}'", id="a conversion"),
        pytest.param("x = f'{a}'", "x = f'{a:>3}'", id="a format"),
        pytest.param("def f(): return", "def f(): return None", id="nothing and None"),
        pytest.param("f(a, b)", "f((a, b))", id="two arguments and a tuple"),
        pytest.param("x = ['a', 'b']", "x = ['a'], 'b'", id="nesting"),
        pytest.param("a; b", "b; a", id="the order"),
        pytest.param("x = {'a': b}", "x = {**b}", id="a key and an unpacked mapping"),
        pytest.param("if a:\n b\nc", "if a:\n b\n c", id="a statement's block"),
        pytest.param("x = 1\n'text'", "x = 1\n'other'", id="a string that is no docstring"),
    ],
)
def test_what_does_something_counts(one: str, other: str) -> None:
    assert digest(one) != digest(other)


def test_tree_deeper_than_the_stack_has_a_digest() -> None:
    tree = ast.parse("x = a")
    assignment = tree.body[0]
    assert isinstance(assignment, ast.Assign)
    for _ in range(10_000):
        assignment.value = ast.UnaryOp(ast.Not(), assignment.value)

    assert digest_of_tree(tree).startswith("1:")


def test_number_too_long_for_decimal_text_has_a_digest() -> None:
    assert digest(f"x = 0x{'f' * 10_000}") != digest(f"x = 0x{'f' * 10_001}")


def test_parts_do_not_run_together() -> None:
    assert digest_of_parts(["ab", "c"]) != digest_of_parts(["a", "bc"])


def test_file_of_more_than_one_block_is_read_whole() -> None:
    zeros = bytes(3_000_000)

    assert digest_of_file(io.BytesIO(zeros)) != digest_of_file(io.BytesIO(zeros[:-1]))


@pytest.mark.parametrize(
    ("one", "other", "different"),
    [
        ("1:aa", "1:bb", True),
        ("1:aa", "1:aa", False),
        ("1:aa", None, False),
        (None, "1:aa", False),
        ("1:aa", "2:bb", False),
    ],
)
def test_digests_tell_a_difference_only_within_one_scheme(
    one: str | None, other: str | None, different: bool
) -> None:
    assert is_different(one, other) is different
