"""The differences between what a manifest asks for and what a state dict has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from migrate_ckpt.manifest import Check, ExpectedTensor, Manifest

DifferenceKind: TypeAlias = Literal["missing", "unexpected", "kind", "shape", "dtype", "tie"]

_CHECK_OF: dict[DifferenceKind, Check] = {
    "missing": "keys",
    "unexpected": "keys",
    "kind": "keys",
    "shape": "shapes",
    "dtype": "dtypes",
    "tie": "ties",
}
_VALUE = "a value that is no dense tensor"


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as the manifest says.

    Attributes:
        kind: `missing` and `unexpected` keys; `kind` where only one side has a tensor; another `shape` or `dtype`;
            a `tie` that only one side has.
        keys: The key; of a tie all keys of the group that are there.
        expected: What the manifest says, if anything.
        found: What the state dict has, if anything.
        breaks_loading: Whether `load_state_dict(strict=True)` refuses the state dict for it.
    """

    kind: DifferenceKind
    keys: tuple[str, ...]
    expected: str | None = None
    found: str | None = None
    breaks_loading: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        return {
            "kind": self.kind,
            "keys": list(self.keys),
            "expected": self.expected,
            "found": self.found,
            "breaks_loading": self.breaks_loading,
        }


def find_differences(expected: Manifest, found: Manifest) -> tuple[Difference, ...]:
    """Compare what a state dict has with what it should have, as far as the manifest says to."""
    differences = (
        *_of_keys(expected, found),
        *_of_tensors(expected.tensors, found.tensors),
        *_of_ties(expected, found),
    )
    return tuple(each for each in differences if _CHECK_OF[each.kind] in expected.checks)


def loads_strictly(expected: Manifest, found: Manifest) -> bool:
    """Tell whether a model that the manifest describes takes the state dict with `load_state_dict(strict=True)`.

    The rule is `torch.nn.Module`'s: no key missing, none unexpected, and the same shapes; dtypes are converted, and
    ties are the model's own. Modules with a `_load_from_state_dict` of their own may take more or less; of those only
    batch normalisation is known here, which makes up a counter that state dicts of before its version 2 do not have.
    """
    differences = (*_of_keys(expected, found), *_of_tensors(expected.tensors, found.tensors))
    return not any(each.breaks_loading for each in differences)


def summarise(differences: Iterable[Difference]) -> str:
    """Return how many there are of each kind, as in `2 missing, 1 shape`."""
    counts = Counter(each.kind for each in differences)
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


def _of_keys(expected: Manifest, found: Manifest) -> Iterator[Difference]:
    wanted, there = _all_of(expected), _all_of(found)
    for key, what in wanted.items():
        if key not in there:
            breaks = not _is_made_up(key, expected.versions, found.versions)
            yield Difference("missing", (key,), expected=what, breaks_loading=breaks)
        elif (key in expected.tensors) is not (key in found.tensors):
            yield Difference("kind", (key,), what, there[key])
    for key, what in there.items():
        if key not in wanted:
            yield Difference("unexpected", (key,), found=what)


def _all_of(manifest: Manifest) -> dict[str, str]:
    tensors = {key: str(tensor) for key, tensor in manifest.tensors.items()}
    return tensors | dict.fromkeys(sorted(manifest.values), _VALUE)


def _is_made_up(key: str, wanted: Mapping[str, int], there: Mapping[str, int]) -> bool:
    """Tell whether batch normalisation fills this key in itself: it came with version 2 of the module."""
    module, _, name = key.rpartition(".")
    return name == "num_batches_tracked" and wanted.get(module, 1) >= 2 and there.get(module, 1) < 2


def _of_tensors(
    expected: Mapping[str, ExpectedTensor], found: Mapping[str, ExpectedTensor]
) -> Iterator[Difference]:
    for key, wanted in expected.items():
        there = found.get(key)
        if there is None:
            continue
        if not _is_of_shape(there.shape, wanted.shape):
            # A scalar was saved as a tensor of one dimension before torch 0.4, and loading still takes it.
            is_old_scalar = not wanted.shape and len(there.shape) == 1 and there.shape[0] != 0
            yield Difference(
                "shape", (key,), str(wanted), str(there), breaks_loading=not is_old_scalar
            )
        if there.dtype != wanted.dtype:
            yield Difference("dtype", (key,), wanted.dtype, there.dtype, breaks_loading=False)


def _is_of_shape(shape: tuple[int | None, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        size is None or size == other for size, other in zip(wanted, shape, strict=True)
    )


def _of_ties(expected: Manifest, found: Manifest) -> Iterator[Difference]:
    common = expected.tensors.keys() & found.tensors.keys()
    one, apart = "one tensor", "tensors of their own"
    for group in _split_groups(expected.ties, found.ties, common):
        yield Difference("tie", group, one, apart, breaks_loading=False)
    for group in _split_groups(found.ties, expected.ties, common):
        yield Difference("tie", group, apart, one, breaks_loading=False)


def _split_groups(
    groups: Iterable[tuple[str, ...]], others: Iterable[tuple[str, ...]], common: Iterable[str]
) -> Iterator[tuple[str, ...]]:
    """Yield each group, without keys that are not common, that is not one among the others."""
    known = frozenset(common)
    group_of = {key: number for number, group in enumerate(others) for key in group}
    for group in groups:
        members = tuple(key for key in group if key in known)
        if len({group_of.get(key, key) for key in members}) > 1:
            yield members
