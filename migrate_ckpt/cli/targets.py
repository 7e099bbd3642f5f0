"""Where the result of each source goes."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from migrate_ckpt.cli.exit_codes import refuse_usage
from migrate_ckpt.cli.output import shown
from migrate_ckpt.cli.sources import SourceFile


def find_targets(options: Namespace, sources: Sequence[SourceFile]) -> dict[Path, Path]:
    """The target of each source, or a usage error. Nothing is made yet."""
    if options.in_place:
        return {source.path: source.path for source in sources}
    if options.output is not None:
        if len(sources) > 1:
            refuse_usage("-o names one file: for several sources give --output-dir or --in-place")
        if not options.force and _is_same(sources[0].path, options.output):
            refuse_usage(
                f"-o would replace {shown(options.output)} itself: if you mean that, give --in-place"
            )
        return {sources[0].path: options.output}
    targets: dict[Path, Path] = {}
    by_target: dict[Path, Path] = {}
    for source in sources:
        target = options.output_dir / source.name
        other = by_target.setdefault(target, source.path)
        if other != source.path:
            refuse_usage(
                f"{str(other)!r} and {str(source.path)!r} would both become {str(target)!r}. Give the folder "
                "they are in, or a pattern in quotes: then their sub-folders are kept"
            )
        if _is_same(source.path, target):
            refuse_usage(
                f"--output-dir would replace {shown(source.path)} itself: if you mean that, give --in-place"
            )
        targets[source.path] = target
    return targets


def _is_same(source: Path, target: Path) -> bool:
    return source.exists() and target.exists() and target.samefile(source)


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make a folder for what will be written into it; if nothing is, take away again what was made."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in made:
            if not any(path.iterdir()):
                path.rmdir()
        raise
