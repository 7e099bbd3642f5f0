"""The commands about manifests: write one, and hold checkpoints to one."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from migrate_ckpt.cli.batch import Outcome, act_on_each
from migrate_ckpt.cli.exit_codes import ANSWER_IS_NO, DONE, refuse_usage
from migrate_ckpt.cli.model_factory import build_model
from migrate_ckpt.cli.output import Line, shown
from migrate_ckpt.cli.progress import Progress
from migrate_ckpt.cli.sections import section_of
from migrate_ckpt.cli.sources import SourceFile, find_sources
from migrate_ckpt.differences import Difference, summarise
from migrate_ckpt.errors import TargetExists
from migrate_ckpt.folder import read_set
from migrate_ckpt.manifest import MANIFEST_NAME, Manifest, read_manifest
from migrate_ckpt.manifest_files import manifest_of_file, verify_file
from migrate_ckpt.manifest_sources import manifest_of
from migrate_ckpt.outline import printable
from migrate_ckpt.verifying import Verdict

MAX_LINES = 50

_MARKS = {"missing": "-", "unexpected": "+", "kind": "~", "shape": "~", "dtype": "~", "tie": "="}
_STYLES = {"missing": "red", "unexpected": "green", "tie": "cyan"}
_FACTORY = re.compile(r"[\w.]+:[\w.]+")


def manifest(options: Namespace) -> int:
    made = _make(options).with_prefix(options.prefix)
    if options.checks:
        made = replace(made, checks=tuple(options.checks))
    if options.output is None:
        print(made.to_json(), end="")
        return DONE
    if options.output.exists() and not options.force:
        raise TargetExists(
            f"{options.output} exists already. Choose another target, or replace it with --force.",
            path=options.output,
        )
    options.output.write_text(made.to_json(), encoding="utf-8")
    print(f"{shown(options.output)}: {len(made.tensors)} tensors, {len(made.ties)} ties")
    return DONE


def _make(options: Namespace) -> Manifest:
    is_there = Path(options.source).exists()
    if not is_there and _FACTORY.fullmatch(options.source):
        model = build_model(options.source, allocate=options.allocate)
        try:
            return replace(manifest_of(model), section=section_of(options))
        except TypeError as error:
            refuse_usage(f"{options.source}() gave no model: {error}")
    return manifest_of_file(options.source, section=section_of(options))


def verify(options: Namespace) -> int:
    expected = _read(options)
    section = section_of(options)

    def verify_one(source: SourceFile, progress: Progress) -> Outcome:
        verdict = verify_file(source.path, expected, section=section)
        lines = list(_describe(source.path, verdict))
        if verdict.differences:
            return Outcome("different", lines, verdict.to_dict(), ANSWER_IS_NO)
        return Outcome("as expected", lines, verdict.to_dict())

    return act_on_each(options, find_sources(options.sources), verify_one)


def _read(options: Namespace) -> Manifest:
    if options.manifest is not None:
        return read_manifest(options.manifest)
    declared = read_set(options.folder, options.set_name).manifest
    if declared is None:
        refuse_usage(
            f"the set {options.set_name} has no {MANIFEST_NAME}. Name one with --manifest FILE, or "
            "write it with `migrate-ckpt manifest`."
        )
    return declared


def _describe(path: Path, verdict: Verdict) -> Iterator[Line]:
    if not verdict.differences:
        yield Line(f"{shown(path)}: as expected")
        return
    yield Line(f"{shown(path)}: {summarise(verdict.differences)}")
    for difference in verdict.differences[:MAX_LINES]:
        text = f"  {_MARKS[difference.kind]} {_describe_difference(difference)}"
        yield Line(printable(text), _STYLES.get(difference.kind, "yellow"))
    if len(verdict.differences) > MAX_LINES:
        yield Line(f"  and {len(verdict.differences) - MAX_LINES} more (--json has all)")
    taken = "takes" if verdict.loads_strictly else "refuses"
    yield Line(f"  load_state_dict(strict=True) {taken} it")


def _describe_difference(difference: Difference) -> str:
    where = f"{difference.kind} {', '.join(difference.keys)}: "
    if difference.kind == "missing":
        return f"{where}{difference.expected}"
    if difference.kind == "unexpected":
        return f"{where}{difference.found}"
    return f"{where}{difference.found}, expected {difference.expected}"
