"""What is wrong with the code of one migration, read from its syntax tree: MC005 to MC009."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping

Found = tuple[int, str, str]
"""Line, code, message."""

# Verbs of `migrate_ckpt.operations` whose result lacks something of what was there; a test asks each of them.
LOSSY_OPERATIONS = frozenset({"cast", "drop", "normalise"})
_COARSE_DTYPES = ("float16", "half", "bfloat16", "float8")
_COARSENING_METHODS = frozenset({"half", "bfloat16"})

_FORBIDDEN_MODULES = frozenset(
    [
        "aiohttp",
        "http",
        "httpx",
        "random",
        "requests",
        "secrets",
        "socket",
        "subprocess",
        "time",
        "urllib",
        "uuid",
    ]
)
_RANDOM_NAMES = re.compile(
    r"""(torch|np|numpy)\.(rand\w*|normal|bernoulli|multinomial|random\..+)
    |(torch\.)?nn\.init\..+
    |(datetime\.)*(datetime|date)\.(now|today|utcnow)
    |os\.(urandom|environ|getenv).*""",
    re.VERBOSE,
)
_RANDOM_METHODS = frozenset({"normal_", "uniform_", "random_", "bernoulli_", "exponential_"})


def look_at_code(tree: ast.Module) -> Iterator[Found]:
    """Find what can be told from one file alone."""
    docstring = ast.get_docstring(tree) or ""
    if not docstring:
        yield 1, "MC006", "has no docstring: say what it does in the first line, and below it why"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "handle":
            yield from _missing_returns(node)
    if "lossy" not in docstring.lower():
        for line, what in _losses(tree):
            yield (
                line,
                "MC007",
                f"{what}, and the docstring has no line such as `Lossy: what goes, and why it may`",
            )
    yield from _unanchored(tree)
    yield from _outside_influences(tree)


def _missing_returns(handle: ast.FunctionDef) -> Iterator[Found]:
    for node in _own_nodes(handle):
        if isinstance(node, ast.Return) and (
            node.value is None
            or (isinstance(node.value, ast.Constant) and node.value.value is None)
        ):
            yield node.lineno, "MC005", "`handle` returns nothing here: write `return ckpt`"
    if _falls_through(handle.body):
        yield handle.lineno, "MC005", "`handle` can end without a return: end it with `return ckpt`"


def _own_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    stack: list[ast.AST] = [*function.body]
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            stack += ast.iter_child_nodes(node)


def _falls_through(body: list[ast.stmt]) -> bool:
    """Whether what follows these statements may be reached."""
    return not any(_ends(statement) for statement in body)


def _ends(statement: ast.stmt) -> bool:
    if isinstance(statement, (ast.Return, ast.Raise)):
        return True
    if isinstance(statement, ast.If):
        return not _falls_through(statement.body) and not _falls_through(statement.orelse)
    if isinstance(statement, ast.With):
        return not _falls_through(statement.body)
    if isinstance(statement, ast.While):
        is_endless = isinstance(statement.test, ast.Constant) and bool(statement.test.value)
        return is_endless and not any(isinstance(node, ast.Break) for node in ast.walk(statement))
    if isinstance(statement, ast.Try):
        if not _falls_through(statement.finalbody):
            return True
        blocks = [handler.body for handler in statement.handlers]
        return not any(map(_falls_through, [*blocks, statement.body + statement.orelse]))
    if isinstance(statement, ast.Match):
        has_default = any(
            isinstance(case.pattern, ast.MatchAs)
            and case.pattern.pattern is None
            and not case.guard
            for case in statement.cases
        )
        return has_default and not any(_falls_through(case.body) for case in statement.cases)
    return False


def _losses(tree: ast.Module) -> Iterator[tuple[int, str]]:
    read = {
        ast.dump(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Delete):
            for target in node.targets:
                # What was read before it goes has most likely been put elsewhere.
                if isinstance(target, ast.Subscript) and _as_read(target) not in read:
                    yield node.lineno, f"`del {ast.unparse(target)}` drops a value"
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            call = node.value
            if isinstance(call.func, ast.Attribute) and call.func.attr == "pop" and call.args:
                taken = ast.Subscript(call.func.value, call.args[0], ast.Load())
                if ast.dump(taken) not in read:
                    yield node.lineno, f"`{ast.unparse(call)}` drops a value"
        if isinstance(node, ast.Call) and (verb := _lossy_verb(node)):
            yield node.lineno, f"`{verb}` loses data"


def _as_read(target: ast.Subscript) -> str:
    return ast.dump(ast.Subscript(target.value, target.slice, ast.Load()))


def _lossy_verb(call: ast.Call) -> str:
    """How a call that loses data is written, or nothing."""
    name = _dotted(call.func)
    if name.removeprefix("operations.") in LOSSY_OPERATIONS:
        return name
    if name.removeprefix("operations.") == "follow":
        return next((f"follow({ast.unparse(k)})" for k in call.keywords if _gives_up(k)), "")
    if not isinstance(call.func, ast.Attribute):
        return ""
    method = call.func.attr
    if method in _COARSENING_METHODS and not call.args:
        return f".{method}()"
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    for path in map(_dotted, values):
        if method in ("to", "type") and path.removeprefix("torch.").startswith(_COARSE_DTYPES):
            return f".{method}({path})"
    return ""


def _gives_up(keyword: ast.keyword) -> bool:
    """Whether what `follow` is told gives up an optimizer, or a state of it."""
    value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
    return keyword.arg in ("states", "uncarried") and value == "drop"


def _unanchored(tree: ast.Module) -> Iterator[Found]:
    """Find replacements that also hit in the middle: `module.` is in `my_module.fc`, too."""
    compiled = _compiled_patterns(tree)
    for node in ast.walk(tree):
        text = _replaced_text(node, compiled) if isinstance(node, ast.Call) else None
        if isinstance(node, ast.Call) and isinstance(text, str) and not _is_anchored(text):
            message = (
                f"{text!r} is replaced wherever it stands, in the middle of a longer name as well. Use `strip_prefix`, "
                "`rename` with a template, `removeprefix`, or a pattern that begins with `^`"
            )
            yield node.lineno, "MC008", message


def _compiled_patterns(tree: ast.Module) -> dict[str, object]:
    """The patterns that `name = re.compile("...")` gives a name, whatever they are."""
    return {
        target.id: _constant(node.value, 0)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and _dotted(node.value.func) == "re.compile"
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _replaced_text(call: ast.Call, compiled: Mapping[str, object]) -> object:
    """What a call replaces, if it is one that replaces."""
    if not isinstance(call.func, ast.Attribute):
        return None
    if call.func.attr == "replace":
        return _constant(call, 0) if len(call.args) > 1 else None
    if call.func.attr in ("sub", "subn"):
        owner = _dotted(call.func.value)
        return _constant(call, 0) if owner == "re" else compiled.get(owner)
    return None


def _constant(call: ast.Call, position: int) -> object:
    found = call.args[position] if len(call.args) > position else None
    return found.value if isinstance(found, ast.Constant) else None


def _is_anchored(pattern: str) -> bool:
    """Whether it can only hit at one place, or has no letter and so is no part of a name."""
    if not re.search(r"\w", pattern):
        return True
    return any(mark in pattern for mark in ("^", r"\A", "$", r"\Z", r"\b", "(?<"))


def _outside_influences(tree: ast.Module) -> Iterator[Found]:
    advice = "The same checkpoint must give the same result every time"
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for name in _imported(node):
                if name.partition(".")[0] in _FORBIDDEN_MODULES:
                    yield node.lineno, "MC009", f"imports `{name}`. {advice}"
        elif isinstance(node, ast.Attribute):
            path = _dotted(node)
            if node.attr in _RANDOM_METHODS or _RANDOM_NAMES.fullmatch(path):
                yield node.lineno, "MC009", f"uses `{path or '.' + node.attr}`. {advice}"


def _imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if not node.level else []


def _dotted(node: ast.expr) -> str:
    """`a.b.c` of the expression a.b.c; empty for any other."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        owner = _dotted(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return ""
