"""What holds for every folder, every history and every policy."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, get_args

from hypothesis import given
from hypothesis import strategies as st

from migrate_ckpt.history import History, Record, ckpt_migration_key, read_history, write_history
from migrate_ckpt.in_memory import migrate_ckpt
from migrate_ckpt.migration import CkptType, Migration
from migrate_ckpt.plan import Plan, Policy, make_plan
from migrate_ckpt.runner import run_plan

NAMES = st.text("abcdefgh", min_size=1, max_size=2)
FOLDERS = st.lists(NAMES, unique=True, max_size=8).map(sorted)
RECORDS = st.builds(
    Record,
    NAMES,
    st.sampled_from([None, "default", "other"]),
    st.none() | st.sampled_from(["1:0", "1:1", "2:0"]),
)
HISTORIES = st.lists(RECORDS, unique_by=lambda r: (r.name, r.set), max_size=8).map(
    lambda records: History(tuple(records))
)
NAME_LISTS = st.lists(NAMES, unique=True, max_size=8)
POLICIES = st.sampled_from([p for p in get_args(Policy) if p != "strict"])


def note(name: str) -> Migration:
    """Make a migration that notes that it ran."""

    def handle(ckpt: CkptType) -> CkptType:
        ckpt.setdefault("ran", []).append(name)
        return ckpt

    return Migration(name, handle, digest=f"1:{len(name) % 2}")


def plan(folder: list[str], history: History, policy: Policy, to: str | None = None) -> Plan:
    migrations = [note(name) for name in folder]
    return make_plan(migrations, history, policy=policy, to=to, allow_unknown_history=True)


@given(FOLDERS, HISTORIES, POLICIES)
def test_each_migration_has_one_state_and_the_folders_order_is_kept(
    folder: list[str], history: History, policy: Policy
) -> None:
    made = plan(folder, history, policy)

    assert [step.name for step in made.steps if step.state != "unknown"] == folder
    known = (*made.applied, *made.pending, *made.missed, *made.changed)
    assert sorted(known) == folder
    assert not set(made.unknown) & set(folder)


@given(FOLDERS, HISTORIES, POLICIES)
def test_missed_comes_before_and_pending_after_the_last_applied(
    folder: list[str], history: History, policy: Policy
) -> None:
    made = plan(folder, history, policy)

    last = max((folder.index(n) for n in (*made.applied, *made.changed)), default=-1)
    assert all(folder.index(name) < last for name in made.missed)
    assert all(folder.index(name) > last for name in made.pending)


@given(FOLDERS, HISTORIES, POLICIES)
def test_name_in_the_history_never_runs_again(
    folder: list[str], history: History, policy: Policy
) -> None:
    counted = {record.name for record in history.records if record.counts_in("default")}

    assert not counted & set(plan(folder, history, policy).to_run)


@given(FOLDERS.filter(bool), HISTORIES, POLICIES, st.data())
def test_stopping_early_and_going_on_is_running_at_once(
    folder: list[str], history: History, policy: Policy, data: Any
) -> None:
    to = data.draw(st.sampled_from(folder))
    migrations = [note(name) for name in folder]

    def run(ckpt: CkptType, to: str | None) -> CkptType:
        made = make_plan(
            migrations, read_history(ckpt), policy=policy, to=to, allow_unknown_history=True
        )
        return run_plan(ckpt, made, migrations)[0]

    ckpt = {ckpt_migration_key: [r.name for r in history.records if r.set is None]}

    assert run(run(deepcopy(ckpt), to), None) == run(deepcopy(ckpt), None)


@given(FOLDERS, NAME_LISTS)
def test_second_run_has_nothing_to_do(folder: list[str], names: list[str]) -> None:
    migrations = [note(name) for name in folder]
    before = make_plan(
        migrations,
        History(tuple(map(Record, names))),
        policy="run-missed",
        allow_unknown_history=True,
    )
    ckpt, _ = run_plan({ckpt_migration_key: names}, before, migrations)

    after = plan(folder, read_history(ckpt), "run-missed")

    assert not after.has_work


@given(FOLDERS, NAME_LISTS)
def test_original_functions_run_what_the_original_library_would(
    folder: list[str], names: list[str]
) -> None:
    last = max((i for i, name in enumerate(folder) if name in names), default=-1)
    ckpt = {ckpt_migration_key: list(names)}

    plan_of_ours = plan(folder, History(tuple(map(Record, names))), "skip-missed")
    expected = folder[last + 1 :]

    assert list(plan_of_ours.to_run) == expected
    if last >= 0 or not names:
        migrated, done = migrate_ckpt(ckpt, [Migration(n, note(n).callback) for n in folder])
        assert [m.name for m in done] == expected
        assert migrated.get("ran", []) == expected
        assert ckpt == {ckpt_migration_key: names}


@given(
    st.integers(2, 6),
    st.integers(0, 6),
    st.integers(1, 6),
    st.sets(st.integers(0, 7)),
    POLICIES,
)
def test_squashed_migration_does_the_same_for_every_history(
    count: int, start: int, length: int, had: set[int], policy: Policy
) -> None:
    names = [f"{n}" for n in range(count)]
    inside = names[start : start + length]
    originals = [note(name) for name in names]
    history = History(tuple(Record(names[n]) for n in sorted(had) if n < count))
    ckpt = {ckpt_migration_key: list(history.names)}
    squashed = [*originals]
    if inside:
        position = names.index(inside[-1]) + 1
        squashed.insert(position, _squashed(inside))

    by_old_way, _ = migrate_with(ckpt, originals, history, policy)
    by_new_way, made = migrate_with(ckpt, squashed, history, policy)

    assert by_old_way.get("ran") == by_new_way.get("ran")
    again = make_plan(squashed, read_history(by_new_way), policy=policy)
    assert again.to_run == ()
    assert again.missed == tuple(n for n in made.missed if policy != "run-missed")


@given(
    st.integers(1, 6),
    st.lists(st.integers(0, 11), unique=True, min_size=1, max_size=8),
    POLICIES,
)
def test_what_ran_is_applied_whatever_number_its_file_has_got(
    had: int, contents: list[int], policy: Policy
) -> None:
    history = History(tuple(Record(f"{n}", "default", f"1:{n}") for n in range(had)))
    folder = [
        Migration(f"{n}", note(f"code {content}").callback, digest=f"1:{content}")
        for n, content in enumerate(contents)
    ]
    ran = [f"{n}" for n, content in enumerate(contents) if content < had]

    made = make_plan(folder, history, policy=policy, allow_unknown_history=True)
    ckpt, _ = run_plan(write_history({}, history, in_metadata=False), made, folder)

    assert set(ran) <= set(made.applied)
    assert not {f"code {n}" for n in range(had)} & set(ckpt.get("ran", []))
    again = make_plan(folder, read_history(ckpt), policy=policy, allow_unknown_history=True)
    assert not again.has_work
    assert set(ran) <= set(again.applied)


def _squashed(names: list[str]) -> Migration:
    def handle(ckpt: CkptType) -> CkptType:
        ckpt.setdefault("ran", []).extend(names)
        return ckpt

    return Migration(f"{names[-1]}_squashed", handle, replaces=tuple(names))


def migrate_with(
    ckpt: CkptType, migrations: list[Migration], history: History, policy: Policy
) -> tuple[CkptType, Plan]:
    made = make_plan(migrations, history, policy=policy)
    migrated, _ = run_plan(deepcopy(ckpt), made, migrations)
    return migrated, made
