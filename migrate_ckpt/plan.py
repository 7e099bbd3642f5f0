"""The plan: a set's migrations held against a checkpoint's history, before anything runs.

A migration is **applied** if the history has its name with a record that names this set or none,
and **changed** if the record's digest shows that its code was another one then. The last applied
one is the one furthest in folder order. What follows it is **pending**; what precedes it and is
not applied is **missed**. A record that counts in this set and is no migration of it is
**unknown**; records of other sets are none of this set's business.

An unknown record whose digest equals that of a migration without a record is that migration,
**renamed**: it counts as applied. So does one whose name another file has got, such as where the
files were renumbered; that other file is **changed** then, unless it was renamed to it as well.

A squashed migration and those that it replaces are not both for one checkpoint: whichever has its
work done by the other is **replaced** (`stand_ins`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, get_args

from migrate_ckpt.digest import is_different
from migrate_ckpt.errors import HistoryRefused, UnknownMigration
from migrate_ckpt.history import History
from migrate_ckpt.stand_ins import StandIns, find_stand_ins

if TYPE_CHECKING:
    from migrate_ckpt.changes import Preview

Policy: TypeAlias = Literal["skip-missed", "strict", "run-missed"]
"""What to do about missed migrations.

`skip-missed` leaves them, as the original library does; `run-missed` runs them, in folder order;
`strict` refuses a history with missed, unknown or changed ones.
"""
State: TypeAlias = Literal["applied", "pending", "missed", "unknown", "changed", "replaced"]


class PlannedMigration(Protocol):
    """What a plan needs to know of a migration: a file of a folder has it, loaded or not."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def digest(self) -> str | None: ...
    @property
    def replaces(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class Step:
    """One migration in a plan; the digest of an unknown one is what the history says.

    The preview tells what it would change, where somebody has tried it out.
    """

    name: str
    title: str
    digest: str | None
    state: State
    will_run: bool
    preview: Preview | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "digest": self.digest,
            "state": self.state,
            "will_run": self.will_run,
            **({} if self.preview is None else self.preview.to_dict()),
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """The set's migrations in folder order, then the unknown ones in the history's order.

    `to` is the migration to stop after; `renamed` holds pairs of old and new name.
    """

    set_name: str
    set_digest: str | None
    policy: Policy
    to: str | None
    steps: tuple[Step, ...]
    renamed: tuple[tuple[str, str], ...] = ()

    def names(self, state: State) -> tuple[str, ...]:
        return tuple(step.name for step in self.steps if step.state == state)

    @property
    def applied(self) -> tuple[str, ...]:
        return self.names("applied")

    @property
    def pending(self) -> tuple[str, ...]:
        return self.names("pending")

    @property
    def missed(self) -> tuple[str, ...]:
        return self.names("missed")

    @property
    def unknown(self) -> tuple[str, ...]:
        return self.names("unknown")

    @property
    def changed(self) -> tuple[str, ...]:
        return self.names("changed")

    @property
    def to_run(self) -> tuple[str, ...]:
        return tuple(step.name for step in self.steps if step.will_run)

    @property
    def has_work(self) -> bool:
        """Whether running the plan changes the checkpoint: its content or the names it keeps."""
        return bool(self.to_run or self.renamed)

    @property
    def failing(self) -> Step | None:
        """The step that failed when it was tried out."""
        return next((s for s in self.steps if s.preview is not None and s.preview.error), None)

    @property
    def has_unknown_history(self) -> bool:
        """Whether there is a history that names none of the set's migrations."""
        return bool(self.unknown) and not self.applied and not self.changed

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader should know before running it, a sentence each."""
        skipped = [s.name for s in self.steps if s.state == "missed" and not s.will_run]
        sentences = (
            (skipped, "Missed, and will not run: {}."),
            (self.unknown, "In the history, but not in the folder: {}."),
            (self.changed, "Edited since they were applied, and will not run again: {}."),
            ([f"{old} is now {new}" for old, new in self.renamed], "Renamed: {}."),
        )
        return tuple(text.format(_listed(names)) for names, text in sentences if names)

    def to_dict(self) -> dict[str, Any]:
        return {
            "set": self.set_name,
            "set_digest": self.set_digest,
            "policy": self.policy,
            "to": self.to,
            "applied": list(self.applied),
            "pending": list(self.pending),
            "missed": list(self.missed),
            "unknown": list(self.unknown),
            "changed": list(self.changed),
            "to_run": list(self.to_run),
            "renamed": [{"from": old, "to": new} for old, new in self.renamed],
            "steps": [step.to_dict() for step in self.steps],
            "warnings": list(self.warnings),
        }


def make_plan(
    migrations: Sequence[PlannedMigration],
    history: History,
    *,
    set_name: str = "default",
    set_digest: str | None = None,
    policy: Policy = "skip-missed",
    to: str | None = None,
    allow_unknown_history: bool = False,
) -> Plan:
    """Plan what to run; `migrations` are in folder order.

    `allow_unknown_history` is for a checkpoint that comes from elsewhere: names this set lacks
    are then no reason to refuse, not even if it knows none, and not under `strict` either.

    Raises:
        HistoryRefused: The history counts in this set and names none of its migrations, or the
            policy is `strict` and the history is not a prefix of the set, or it has some of those that a
            squashed migration replaces, and the set lacks the others.
        UnknownMigration: `to` is no migration of the set.
        ValueError: Two migrations have one name, or the policy is none.
    """
    if policy not in get_args(Policy):
        raise ValueError(f"The policy {policy!r} is none of {_listed(get_args(Policy))}.")
    names = [migration.name for migration in migrations]
    _check_names(names, to)
    records = [record for record in history.records if record.counts_in(set_name)]
    renamed = _find_renamed(migrations, history, set_name)
    recorded = {record.name for record in records} | set(dict(renamed).values())
    stand_ins = find_stand_ins(migrations, recorded, to)
    states = _states(migrations, history, dict(renamed), stand_ins, set_name)
    end = len(names) if to is None else names.index(to) + 1
    runs = {"pending", "missed"} if policy == "run-missed" else {"pending"}
    steps = [
        Step(m.name, m.title, m.digest, state, will_run=state in runs and i < end)
        for i, (m, state) in enumerate(zip(migrations, states, strict=True))
    ]
    known = {*names, *dict(renamed), *stand_ins.known}
    steps += [Step(r.name, "", r.digest, "unknown", False) for r in records if r.name not in known]
    plan = Plan(set_name, set_digest, policy, to, tuple(steps), tuple(renamed))
    _check_stand_ins(plan, stand_ins)
    _check_policy(plan, allow_unknown_history=allow_unknown_history)
    return plan


def _check_names(names: Sequence[str], to: str | None) -> None:
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"Two migrations have one name: {', '.join(twice)}.")
    if to is not None and to not in names:
        raise UnknownMigration(
            f"There is no migration {to!r} to stop after. The set has: {_listed(names)}.",
            name=to,
            names=names,
        )


def _find_renamed(
    migrations: Sequence[PlannedMigration], history: History, set_name: str
) -> list[tuple[str, str]]:
    """Pair each record that is no migration under its own name with the migration of its digest.

    Of several migrations with one digest the first without a record of its own is taken; where
    all have one, an unknown name is what a renaming left behind in the list, and goes.
    """
    digests = {m.name: m.digest for m in migrations}
    names = {name for m in migrations for name in (m.name, *m.replaces)}
    known = history.counting_in(set_name)
    own = {name for name, r in known.items() if not is_different(r.digest, digests.get(name))}
    renamed: dict[str, str] = {}
    for name, record in known.items():
        if record.digest is None or (name in names and name in own):
            continue
        same = [n for n, digest in digests.items() if digest == record.digest]
        free = [n for n in same if n not in own and n not in renamed.values()]
        # One whose record shows another code may have got its name from another file.
        free.sort(key=lambda n: n in known)
        if free or (same and name not in names):
            renamed[name] = (free or same)[0]
    return list(renamed.items())


def _states(
    migrations: Sequence[PlannedMigration],
    history: History,
    renamed: dict[str, str],
    stand_ins: StandIns,
    set_name: str,
) -> list[State]:
    states: list[State] = []
    for migration in migrations:
        record = history.find(migration.name, set_name=set_name)
        if record is None and migration.name in stand_ins.replaced:
            states.append("replaced")
        elif migration.name in renamed.values():
            states.append("applied")
        elif record is None:
            states.append("applied" if migration.name in stand_ins.done else "pending")
        else:
            changed = is_different(record.digest, migration.digest)
            states.append("changed" if changed else "applied")
    last = max((i for i, s in enumerate(states) if s in ("applied", "changed")), default=-1)
    return ["missed" if s == "pending" and i < last else s for i, s in enumerate(states)]


def _check_stand_ins(plan: Plan, stand_ins: StandIns) -> None:
    for name, lacking in stand_ins.missing:
        raise HistoryRefused(
            f"The checkpoint has had some of the migrations that {name} replaces, and needs the others one by one, "
            f"which are not in the folder: {_listed(lacking)}. Use the folder that still has them.",
            plan=plan,
        )


def _check_policy(plan: Plan, *, allow_unknown_history: bool) -> None:
    unknown = () if allow_unknown_history else plan.unknown
    if unknown and plan.has_unknown_history:
        raise HistoryRefused(
            f"The checkpoint's history names none of the migrations of the set {plan.set_name!r}: "
            f"it has {_listed(unknown)}. It was migrated with another folder. Use that one, or "
            "allow an unknown history to run all migrations of this one.",
            plan=plan,
        )
    if plan.policy == "strict":
        wrong = {"missed": plan.missed, "unknown": unknown, "changed": plan.changed}
        found = "; ".join(f"{state}: {_listed(names)}" for state, names in wrong.items() if names)
        if found:
            raise HistoryRefused(
                f"The policy is strict, and the history differs from the folder ({found}). "
                "Use the folder it was migrated with, or another policy.",
                plan=plan,
            )


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more
