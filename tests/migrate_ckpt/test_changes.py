from __future__ import annotations

import pytest

from migrate_ckpt.changes import Preview, apply_changes, find_changes
from migrate_ckpt.outline import OutlineEntry


def tensor(path: str, content: object = None, shape: tuple[int, ...] = (2,)) -> OutlineEntry:
    return OutlineEntry(
        tuple(path.split("/")), "tensor", "float32", shape, nbytes=8, content=content
    )


def leaf(path: str, text: str) -> OutlineEntry:
    return OutlineEntry(tuple(path.split("/")), "int", text=text)


def told(before: list[OutlineEntry], after: list[OutlineEntry]) -> list[tuple[str, str, str]]:
    """The changes as kind, old path, new path."""

    def path(entry: OutlineEntry | None) -> str:
        return "/".join(entry.path) if entry else ""

    return [(c.kind, path(c.before), path(c.after)) for c in find_changes(before, after)]


CASES = {
    "nothing": ([leaf("a", "1")], [leaf("a", "1")], []),
    "another order": ([leaf("a", "1"), leaf("b", "1")], [leaf("b", "1"), leaf("a", "1")], []),
    "added": ([], [leaf("a", "1")], [("added", "", "a")]),
    "removed": ([leaf("a", "1")], [], [("removed", "a", "")]),
    "another value": ([leaf("a", "1")], [leaf("a", "2")], [("changed", "a", "a")]),
    "another shape": ([tensor("a")], [tensor("a", shape=(1, 2))], [("changed", "a", "a")]),
    "other bytes": ([tensor("a", 1)], [tensor("a", 2)], [("changed", "a", "a")]),
    "renamed": ([tensor("a", 1)], [tensor("b", 1)], [("renamed", "a", "b")]),
    "another tensor of that shape": (
        [tensor("a", 1)],
        [tensor("b", 2)],
        [("removed", "a", ""), ("added", "", "b")],
    ),
    "a value that looks alike": (
        [leaf("a", "1")],
        [leaf("b", "1")],
        [("removed", "a", ""), ("added", "", "b")],
    ),
    "swapped": (
        [tensor("a", 1), tensor("b", 2)],
        [tensor("a", 2), tensor("b", 1)],
        [("renamed", "b", "a"), ("renamed", "a", "b")],
    ),
    "moved along": (
        [tensor("n0", 1), tensor("n1", 2)],
        [tensor("n1", 1), tensor("n2", 2)],
        [("renamed", "n0", "n1"), ("renamed", "n1", "n2")],
    ),
    "in the place of one that is gone": (
        [tensor("a", 1), tensor("b", 2)],
        [tensor("b", 1)],
        [("removed", "b", ""), ("renamed", "a", "b")],
    ),
    "renamed, and another one put in its place": (
        [tensor("a", 1)],
        [tensor("a", 2), tensor("b", 1)],
        [("added", "", "a"), ("renamed", "a", "b")],
    ),
    "tied": (
        [tensor("a", 1), tensor("b", 1)],
        [tensor("c", 1), tensor("b", 1)],
        [("renamed", "a", "c")],
    ),
    "tied anew": ([tensor("a", 1)], [tensor("a", 1), tensor("b", 1)], [("added", "", "b")]),
}


@pytest.mark.parametrize(("before", "after", "expected"), CASES.values(), ids=CASES)
def test_the_changes_say_what_happened_and_lead_from_one_outline_to_the_other(
    before, after, expected
):
    assert told(before, after) == expected
    assert apply_changes(before, find_changes(before, after)) == set(after)


def test_a_preview_keeps_the_first_changes_and_counts_all():
    changes = find_changes([], [leaf(str(i), "0") for i in range(5)])

    preview = Preview.of(changes, max_changes=2).to_dict()

    assert [change["after"]["path"] for change in preview["changes"]] == [["0"], ["1"]]
    assert preview["counts"] == {"added": 5}
    assert preview["truncated"] is True
