"""The type of every operation: a value that says what to do to a checkpoint, and does it when called."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any

from migrate_ckpt.errors import NotInvertible
from migrate_ckpt.migration import CkptType
from migrate_ckpt.operations.paths import Path


@dataclass(frozen=True)
class Operation(ABC):
    """One verb with its arguments, fit for `handle` (`operation(ckpt)`) and for a declared list.

    Calling it changes the checkpoint in place and returns it, or returns another one that takes
    its place. An operation that raises has changed nothing. Tensors on torch's device `meta` have
    all that is needed: what comes out has the structure that real tensors would give.
    """

    @abstractmethod
    def __call__(self, ckpt: CkptType) -> CkptType:
        """Apply it to a checkpoint.

        Raises:
            OperationError: It cannot do what it says to this checkpoint, which is as it was.
        """

    @abstractmethod
    def inverse(self, ckpt: CkptType) -> tuple[Operation, ...]:
        """Return what undoes it, in the order to apply; `ckpt` is as it is before it is applied.

        Raises:
            NotInvertible: Its result lacks something of what was there before.
        """

    def declared_inverse(self) -> tuple[Operation, ...]:
        """Return what undoes it, in the order to apply, as far as its arguments tell: for any checkpoint it made.

        Applied to what it made of a checkpoint, it gives one that this operation makes the same of again.

        Raises:
            NotInvertible: Its arguments do not tell what was there before.
        """
        raise self._not_invertible("it does not say what was there before")

    def _not_invertible(self, why: str) -> NotInvertible:
        return NotInvertible(f"{why}.", operation=str(self))

    def reads(self, ckpt: CkptType) -> tuple[Path, ...]:
        """Return the paths of the tensors whose data it looks at; the others are only carried along."""
        return ()

    def __str__(self) -> str:
        """The operation as it could be written in Python, cut short where it is long."""
        text = self._written_arguments()
        return f"{self.verb}({text if len(text) <= 200 else text[:197] + '...'})"

    def written(self) -> str:
        """Return the call that makes it, in Python; `re` and the verb must be imported where it stands."""
        return f"{self.verb}({self._written_arguments()})"

    def _written_arguments(self) -> str:
        options = [
            f"{field.name}={self.option(field.name)}"
            for field in fields(self)
            if field.kw_only and getattr(self, field.name) != field.default
        ]
        return ", ".join([*self.arguments(), *options])

    def option(self, name: str) -> str:
        """Return the value of a keyword argument as it could be written."""
        return shown(getattr(self, name))

    def arguments(self) -> list[str]:
        """Return the positional arguments as they could be written."""
        return [
            shown(getattr(self, field.name))
            for field in fields(self)
            if not field.kw_only and getattr(self, field.name) != field.default
        ]

    @property
    def verb(self) -> str:
        """The name of the function that makes it."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()


def shown(value: Any) -> str:
    """Return an argument as it could be written."""
    if isinstance(value, re.Pattern):
        flags = value.flags & ~re.UNICODE
        return f"re.compile({value.pattern!r}{f', {flags}' if flags else ''})"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(shown, value)) + "]"
    return literal(value)


def literal(value: Any) -> str:
    """Return a value as Python can evaluate it; what is no number, such as `inf`, has no such `repr`."""
    try:
        return _literal(value)
    except RecursionError:
        # A value of a checkpoint may hold itself, which cannot be written but is still shown.
        return repr(value)


def _literal(value: Any) -> str:
    if type(value) is float and not math.isfinite(value):
        return f'float("{value}")'
    if type(value) is complex:
        # Its `repr` is a sum, in which the sign of a zero is lost.
        return f"complex({_literal(value.real)}, {_literal(value.imag)})"
    if type(value) is dict:
        pairs = [f"{_literal(key)}: {_literal(item)}" for key, item in value.items()]
        return "{" + ", ".join(pairs) + "}"
    if type(value) is list:
        return "[" + ", ".join(map(_literal, value)) + "]"
    if type(value) is tuple:
        return "(" + ", ".join(map(_literal, value)) + ("," if len(value) == 1 else "") + ")"
    return repr(value)
