"""Keys with braces in them, which a template cannot name: what becomes of them is left to a person and a regex."""

from __future__ import annotations

from migrate_ckpt.drafting.matching import Match

Group = tuple[tuple[str, ...], tuple[str, ...]]


def has_brace(key: str) -> bool:
    return "{" in key or "}" in key


def set_aside_braces(match: Match) -> list[Group]:
    """Take what would have to be written with braces out of a match; gives it as groups of old and new keys.

    What is made of the same tensor as another that is set aside is so, too.
    """
    groups: list[Group] = []
    touched = set(filter(has_brace, [*match.makings, *match.dropped, *match.added, *match.copies]))
    touched |= {key for m in match.makings.values() for key in m.sources if has_brace(key)}
    while True:
        found = [m for m in match.makings.values() if touched & {m.target, *m.sources}]
        if not found:
            break
        for making in found:
            del match.makings[making.target]
            touched |= set(making.sources)
            groups.append((making.sources, (making.target,)))
    groups += [((key,), ()) for key in match.dropped if key in touched]
    groups += [((), (key,)) for key in [*match.added, *match.copies] if key in touched]
    match.dropped = [key for key in match.dropped if key not in touched]
    match.added = [key for key in match.added if key not in touched]
    match.copies = {key: other for key, other in match.copies.items() if key not in touched}
    return groups
