"""Holds a checkpoint to a manifest, as a run does with what it has made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from migrate_ckpt.differences import Difference, find_differences, loads_strictly, summarise
from migrate_ckpt.errors import ManifestNotMet, SectionNotFound
from migrate_ckpt.manifest import MANIFEST_NAME, Manifest
from migrate_ckpt.manifest_sources import manifest_of_section
from migrate_ckpt.report import Report


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a comparison with a manifest came to.

    Attributes:
        differences: All that is not as the manifest says, as far as its `checks` go.
        loads_strictly: Whether the model takes the state dict with `load_state_dict(strict=True)`.
    """

    differences: tuple[Difference, ...]
    loads_strictly: bool

    @classmethod
    def of(cls, expected: Manifest, found: Manifest) -> Verdict:
        return cls(find_differences(expected, found), loads_strictly(expected, found))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        return {
            "differences": [difference.to_dict() for difference in self.differences],
            "loads_strictly": self.loads_strictly,
        }


def refuse_unmet(manifest: Manifest | None, ckpt: Any, report: Report) -> None:
    """Refuse what a run has made, if the set declares a manifest that it does not meet.

    A run that stopped before the last migration is not held to it.

    Raises:
        ManifestNotMet: Says how it differs, and carries the report.
    """
    if manifest is None or report.pending:
        return
    try:
        found = manifest_of_section(ckpt, manifest.section)
    except SectionNotFound as error:
        raise _not_met(f"it has no state dict to compare. {error}", (), report) from error
    differences = find_differences(manifest, found)
    if differences:
        first = differences[0]
        what = (
            f"{summarise(differences)}. The first is {first.kind} {', '.join(first.keys)}: "
            f"expected {first.expected or 'nothing'}, found {first.found or 'nothing'}."
        )
        raise _not_met(what, differences, report)


def _not_met(what: str, differences: tuple[Difference, ...], report: Report) -> ManifestNotMet:
    return ManifestNotMet(
        f"The migrated checkpoint is not what the set's {MANIFEST_NAME} says: {what}",
        differences=differences,
        report=report,
    )
