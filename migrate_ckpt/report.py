"""The report: what a run did, as a value, as JSON, and as the short line of a response header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from migrate_ckpt.plan import Plan

_HEADER_LISTS = (
    "ran",
    "not_applicable",
    "pending",
    "missed",
    "unknown",
    "changed",
    "optimizer_not_followed",
    "warnings",
)
_HEADER_FACTS = ("set", "set_digest", "fingerprint")


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did.

    The plan tells the states before the run. `pending`, `missed`, `applied` and `changed` tell
    those after it: each migration of the set is in exactly one of them. `recorded` are migrations
    that did not run because an earlier one of this run wrote their names into the history, and
    `not_applicable` those that did not because they require what this checkpoint does not have.
    In those in `optimizer_followed` the optimizer's states went with the parameters; after those in
    `optimizer_not_followed` they may not fit them, as nothing says what became of the parameters.
    `source`, `target`, `bytes_verified` and `fingerprint` are facts of files, known to whoever
    reads and writes them.
    """

    plan: Plan
    ran: tuple[str, ...] = ()
    seconds: tuple[float, ...] = ()
    """Of each migration in `ran`; not part of `to_dict`, which is the same for every run."""
    warnings: tuple[str, ...] = ()
    recorded: tuple[str, ...] = ()
    not_applicable: tuple[str, ...] = ()
    optimizer_followed: tuple[str, ...] = ()
    optimizer_not_followed: tuple[str, ...] = ()
    source: Mapping[str, Any] | None = None
    target: Mapping[str, Any] | None = None
    bytes_verified: bool | None = None
    fingerprint: str | None = None

    @property
    def applied(self) -> tuple[str, ...]:
        done = {*self.plan.applied, *self._done}
        return tuple(step.name for step in self.plan.steps if step.name in done)

    @property
    def pending(self) -> tuple[str, ...]:
        return self._left(self.plan.pending)

    @property
    def missed(self) -> tuple[str, ...]:
        return self._left(self.plan.missed)

    @property
    def unknown(self) -> tuple[str, ...]:
        return self.plan.unknown

    @property
    def changed(self) -> tuple[str, ...]:
        return self.plan.changed

    def to_dict(self) -> dict[str, Any]:
        """Return the whole report as plain data, ready for JSON."""
        return {
            "set": self.plan.set_name,
            "set_digest": self.plan.set_digest,
            "policy": self.plan.policy,
            "to": self.plan.to,
            "ran": list(self.ran),
            "not_applicable": list(self.not_applicable),
            "applied": list(self.applied),
            "pending": list(self.pending),
            "missed": list(self.missed),
            "unknown": list(self.unknown),
            "changed": list(self.changed),
            "renamed": [{"from": old, "to": new} for old, new in self.plan.renamed],
            "steps": [step.to_dict() for step in self.plan.steps],
            "optimizer": {
                "followed": list(self.optimizer_followed),
                "not_followed": list(self.optimizer_not_followed),
            },
            "warnings": list(self.warnings),
            "source": None if self.source is None else dict(self.source),
            "target": None if self.target is None else dict(self.target),
            "bytes_verified": self.bytes_verified,
            "fingerprint": self.fingerprint,
        }

    def to_header(self, max_bytes: int = 2048) -> str:
        """Return the report's core as one line of ASCII JSON of at most so many bytes.

        If it would be longer, the lists that take most are cut after their first entries, `"truncated"` is true
        and `"counts"` has the lists' true lengths.
        """
        full = self.to_dict() | {"optimizer_not_followed": list(self.optimizer_not_followed)}
        lists = {key: full[key] for key in _HEADER_LISTS}
        facts = {key: full[key] for key in _HEADER_FACTS}
        line = json.dumps({**lists, **facts})
        counts = {key: len(entries) for key, entries in lists.items()}
        while len(line) > max_bytes and any(lists.values()):
            longest = max(lists, key=lambda key: len(json.dumps(lists[key])))
            lists[longest] = lists[longest][: len(lists[longest]) // 2]
            line = json.dumps({**lists, **facts, "counts": counts, "truncated": True})
        return line

    def _left(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if name not in self._done)

    @property
    def _done(self) -> set[str]:
        return {*self.ran, *self.recorded, *self.not_applicable}
