"""What a request may say about a run, in its query or its form: which set, how far, how, and into what format."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar, get_args

from app.errors import ServiceError
from migrate_ckpt import Format, Policy

_SHARED_PARAMETERS = ("set", "to", "policy", "allow_unknown_history")
PLAN_PARAMETERS = (*_SHARED_PARAMETERS, "changes", "inspection")
RUN_PARAMETERS = (*_SHARED_PARAMETERS, "format")
CALLBACK = "callback"
JOB_PARAMETERS = (*RUN_PARAMETERS, CALLBACK)

# Longer than any file name, which all of them are or resemble.
MAX_VALUE_CHARACTERS = 512

T = TypeVar("T")

POLICIES: tuple[Policy, ...] = get_args(Policy)
FORMATS: tuple[Format, ...] = get_args(Format)
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class RunParameters:
    """The defaults are those of the library; no policy means the operator's."""

    set: str = "default"
    to: str | None = None
    policy: Policy | None = None
    allow_unknown_history: bool = False
    format: Format | None = None
    changes: bool = False
    inspection: bool = False


def check_query(given: Iterable[tuple[str, str]], known: Collection[str]) -> None:
    """Refuse a query parameter that means nothing here, or is empty: a script's variable was, most likely.

    Raises:
        ServiceError: it names the parameter, and those there are.
    """
    for name, value in given:
        if name not in known:
            there_are = f"there are: {', '.join(known)}" if known else "there are none here"
            message = f'The query parameter "{name}" means nothing here; {there_are}.'
            raise ServiceError("unknown_parameter", message, parameter=name)
        if not value:
            raise _invalid(name, "is empty; leave it out, or give it a value")


def read_parameters(given: Iterable[tuple[str, str]]) -> RunParameters:
    """Read what stands in the query and in the form, each name at most once.

    Raises:
        ServiceError: a parameter is given twice or its value is none of those allowed.
    """
    values: dict[str, str] = {}
    for name, value in given:
        if name in values:
            raise _invalid(name, "is given more than once")
        if len(value) > MAX_VALUE_CHARACTERS:
            raise _invalid(name, f"is longer than {MAX_VALUE_CHARACTERS} characters")
        values[name] = value
    # An HTML form sends the fields that nobody filled in as well.
    values = {name: value for name, value in values.items() if value}
    return RunParameters(
        set=values.get("set", "default"),
        to=values.get("to"),
        policy=_choice("policy", values, {policy: policy for policy in POLICIES}),
        allow_unknown_history=_choice("allow_unknown_history", values, _BOOLEANS) or False,
        format=_choice("format", values, {format: format for format in FORMATS}),
        changes=_choice("changes", values, _BOOLEANS) or False,
        inspection=_choice("inspection", values, _BOOLEANS) or False,
    )


def _choice(name: str, values: Mapping[str, str], choices: Mapping[str, T]) -> T | None:
    if name not in values:
        return None
    if values[name] not in choices:
        raise _invalid(name, f'is "{values[name]}"; it may be {", ".join(choices)}')
    return choices[values[name]]


def _invalid(name: str, what: str) -> ServiceError:
    return ServiceError("invalid_parameter", f'The parameter "{name}" {what}.', parameter=name)
