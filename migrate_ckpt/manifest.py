"""The manifest: which tensors a model's state dict has, of which shape and dtype, and which of them are one.

It is a JSON file that stands beside the model's code, one tensor a line, so that a review shows what
changed. The format, version 1:

    {"manifest": 1,
     "section": ["state_dict"],            where in a checkpoint the state dict stands; null: where models have it
     "checks": ["keys", "shapes", "dtypes", "ties"],
     "tensors": {"head.weight": {"dtype": "float32", "shape": [10, 512]}},
     "values": ["head._extra_state"],      keys of what is no tensor
     "ties": [["embed.weight", "head.weight"]],
     "versions": {"norm": 2}}              of modules that have another than 1, from the state dict's metadata

A size of `null` in a shape stands for any. `section`, `checks`, `values`, `ties` and `versions` may be left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from migrate_ckpt.errors import InvalidManifest

MANIFEST_NAME = "manifest.json"
"""What a set calls the manifest that its results must meet."""

Check: TypeAlias = Literal["keys", "shapes", "dtypes", "ties"]
CHECKS: tuple[Check, ...] = get_args(Check)

_VERSION = 1
_MEMBERS = ("manifest", "section", "checks", "tensors", "values", "ties", "versions")


class ExpectedTensor(NamedTuple):
    """The dtype is torch's name of it, such as `float32`; a size that is None may be any."""

    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sizes = ", ".join("any" if size is None else str(size) for size in self.shape)
        return f"{self.dtype} [{sizes}]"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a state dict has, or should have.

    Attributes:
        tensors: Each tensor by its key.
        values: The keys of what is no dense tensor, such as `_extra_state`.
        ties: Groups of keys under which one tensor stands; each key is in one group at most.
        versions: The versions of modules, by their names, that are not 1.
        section: The path of the state dict in a checkpoint; None is wherever models have it.
        checks: What is compared of all this.
    """

    tensors: Mapping[str, ExpectedTensor]
    values: frozenset[str] = frozenset()
    ties: tuple[tuple[str, ...], ...] = ()
    versions: Mapping[str, int] = field(default_factory=dict)
    section: tuple[str, ...] | None = None
    checks: tuple[Check, ...] = CHECKS

    def with_prefix(self, prefix: str) -> Manifest:
        """Return the same with a prefix before each key, as of a model that is a part of another."""
        module = prefix.removesuffix(".")
        return replace(
            self,
            tensors={prefix + key: tensor for key, tensor in self.tensors.items()},
            values=frozenset(prefix + key for key in self.values),
            ties=tuple(tuple(prefix + key for key in group) for group in self.ties),
            versions={f"{module}.{name}".strip("."): n for name, n in self.versions.items()},
        )

    def to_json(self) -> str:
        """Return the text of the file."""
        return "".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f'{{\n  "manifest": {_VERSION},\n'
        yield f'  "section": {json.dumps(self.section)},\n'
        yield f'  "checks": {json.dumps(self.checks)},\n'
        tensors = [
            f"{json.dumps(key)}: {json.dumps(tensor._asdict())}"
            for key, tensor in self.tensors.items()
        ]
        yield from _block('"tensors": {', tensors, "},\n")
        yield from _block('"values": [', map(json.dumps, sorted(self.values)), "],\n")
        yield from _block('"ties": [', map(json.dumps, self.ties), "],\n")
        versions = [f"{json.dumps(name)}: {number}" for name, number in self.versions.items()]
        yield from _block('"versions": {', versions, "}\n}\n")


def read_manifest(path: str | PathLike[str]) -> Manifest:
    """Read a manifest file.

    Raises:
        InvalidManifest: It cannot be read, or is no manifest; says where it is not.
    """
    file = Path(path)
    try:
        data = json.loads(file.read_bytes())
    except OSError as error:
        raise _invalid(file, f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _invalid(file, f"is no JSON: {error}") from error
    try:
        return _from_data(data)
    except _Unusable as error:
        raise _invalid(file, str(error)) from error


class _Unusable(ValueError):
    """What is wrong with the content of a manifest file."""


def _from_data(data: Any) -> Manifest:
    if not isinstance(data, dict) or data.get("manifest") != _VERSION:
        raise _Unusable(f'is no manifest of version {_VERSION}: it has no "manifest": {_VERSION}')
    if unknown := sorted(set(data) - set(_MEMBERS)):
        raise _Unusable(f"has members that no manifest has: {', '.join(unknown)}")
    tensors = data.get("tensors")
    if not isinstance(tensors, dict):
        raise _Unusable('has no "tensors"')
    manifest = Manifest(
        {key: _tensor(key, entry) for key, entry in tensors.items()},
        frozenset(_texts(data.get("values", []), "values")),
        tuple(_texts(group, "ties") for group in _list(data.get("ties", []), "ties")),
        _versions(data.get("versions", {})),
        None if data.get("section") is None else _texts(data["section"], "section"),
        _checks(data.get("checks", list(CHECKS))),
    )
    tied = [key for group in manifest.ties for key in group]
    if strangers := [key for key in tied if key not in manifest.tensors]:
        raise _Unusable(f'ties keys that are not among its "tensors": {", ".join(strangers)}')
    if len(tied) != len(set(tied)):
        raise _Unusable('has a key twice in "ties"')
    return manifest


def _tensor(key: str, entry: Any) -> ExpectedTensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*sizes]} if all(map(_is_size, sizes)):
            return ExpectedTensor(dtype, tuple(sizes))
    raise _Unusable(f'says of {key!r} not its "dtype", a name, and "shape", a list of sizes')


def _is_size(size: Any) -> bool:
    return size is None or (type(size) is int and size >= 0)


def _list(value: Any, member: str) -> list[Any]:
    if not isinstance(value, list):
        raise _Unusable(f'has a "{member}" that is no list')
    return value


def _texts(value: Any, member: str) -> tuple[str, ...]:
    texts = _list(value, member)
    if not all(isinstance(text, str) for text in texts):
        raise _Unusable(f'has something else than texts in "{member}"')
    return tuple(texts)


def _versions(value: Any) -> dict[str, int]:
    if not isinstance(value, dict) or not all(type(number) is int for number in value.values()):
        raise _Unusable('has "versions" that are not numbers by the names of modules')
    return value


def _checks(value: Any) -> tuple[Check, ...]:
    asked = _texts(value, "checks")
    if unknown := sorted(set(asked) - set(CHECKS)):
        raise _Unusable(f"checks what is not known: {', '.join(unknown)}; there is {CHECKS}")
    return tuple(check for check in CHECKS if check in asked)


def _invalid(path: Path, what: str) -> InvalidManifest:
    return InvalidManifest(f"The manifest {path.name} {what}.", path=path)


def _block(start: str, items: Iterable[str], end: str) -> Iterator[str]:
    lines = ",\n".join(f"    {item}" for item in items)
    yield f"  {start}\n{lines}\n  {end}" if lines else f"  {start}{end}"
