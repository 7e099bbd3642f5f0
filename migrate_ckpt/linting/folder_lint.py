"""Lints a folder with all its sets, and holds its digests against the histories of checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path

from migrate_ckpt.digest import is_different
from migrate_ckpt.errors import InvalidMigrationFile
from migrate_ckpt.folder import DEFAULT_SET, listed, sub_folders
from migrate_ckpt.history import History
from migrate_ckpt.linting.code import look_at_code
from migrate_ckpt.linting.findings import Finding, is_meant_so
from migrate_ckpt.linting.names import look_at_names
from migrate_ckpt.migration_file import is_candidate, parse, read_file


def lint_folder(
    path: str | PathLike[str], *, histories: Mapping[str, History] | None = None
) -> list[Finding]:
    """Find mistakes in the migrations of a folder and of its sets, by path and line.

    Args:
        path: The folder.
        histories: What checkpoints say was done to them, by a name for each, to find what was edited since.

    Raises:
        FolderError: There is no such folder.
    """
    folder = Path(path)
    sets = {DEFAULT_SET: folder}
    sets |= {sub.name: sub for sub in sub_folders(folder, with_migrations=True)}
    findings = [
        finding
        for name, set_folder in sets.items()
        for finding in _lint_set(name, set_folder, histories or {})
    ]
    return sorted(finding for finding in set(findings) if not _is_meant_so(finding))


def _lint_set(name: str, folder: Path, histories: Mapping[str, History]) -> Iterator[Finding]:
    paths = [path for path in listed(folder) if is_candidate(path)]
    yield from look_at_names(folder, paths, squashed=set(filter(_is_squashed, paths)))
    for path in paths:
        try:
            tree = parse(path)
        except InvalidMigrationFile as error:
            cause = error.__cause__
            line = cause.lineno if isinstance(cause, SyntaxError) and cause.lineno else 1
            yield Finding(path, line, "MC001", str(error))
            continue
        yield from (Finding(path, *found) for found in look_at_code(tree))
        yield from _look_at_file(name, path, histories)


def _is_squashed(path: Path) -> bool:
    try:
        return bool(read_file(path).replaces)
    except InvalidMigrationFile:
        return False


def _look_at_file(set_name: str, path: Path, histories: Mapping[str, History]) -> Iterator[Finding]:
    try:
        file = read_file(path)
    except InvalidMigrationFile as error:
        yield Finding(path, 1, "MC002", str(error))
        return
    edited = [
        checkpoint
        for checkpoint, history in histories.items()
        if (record := history.find(file.name, set_name=set_name)) is not None
        and is_different(record.digest, file.digest)
    ]
    if edited:
        more = f" and {len(edited) - 1} more" if len(edited) > 1 else ""
        message = (
            f"was another one when it was applied to {edited[0]}{more}, and will not run there again. Take the edit "
            "back, and add another migration"
        )
        yield Finding(path, 1, "MC010", message)


def _is_meant_so(finding: Finding) -> bool:
    try:
        lines = finding.path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return finding.line <= len(lines) and is_meant_so(lines[finding.line - 1], finding.code)
