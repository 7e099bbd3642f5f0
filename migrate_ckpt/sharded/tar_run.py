"""Runs a set of migrations on a sharded checkpoint in a tar; the result is a tar again, of ranges of the old one."""

from __future__ import annotations

from dataclasses import replace

from migrate_ckpt.file_run import Run, RunOptions
from migrate_ckpt.folder import MigrationSet
from migrate_ckpt.formats.pieces import whole
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.formats.verification import Verification
from migrate_ckpt.report import Report
from migrate_ckpt.runner import OnStep
from migrate_ckpt.sharded.files import TarFiles
from migrate_ckpt.sharded.kind import Kind, refuse_other_format
from migrate_ckpt.sharded.new_set import NewSet, lay_out_tar


class TarRun(Run):
    """A run whose pieces are of a tar; it holds what they are written from."""

    def __init__(self, new: NewSet, files: TarFiles, source: FileSource) -> None:
        has_work = new.report.plan.has_work
        pieces = lay_out_tar(new, files) if has_work else whole(source)
        facts = {
            side: {
                **(facts or {}),
                "format": f"{(facts or {}).get('format')} in a tar",
                "size": size,
            }
            for side, facts, size in (
                ("source", new.report.source, source.size),
                ("target", new.report.target, pieces.size),
            )
        }
        if not has_work:
            facts["target"] = facts["source"]
        report = replace(new.report, source=facts["source"], target=facts["target"])
        # Those of the shards that were written anew were compared when they were laid out.
        super().__init__(report, pieces, source, Verification(source, ()))
        self._new = new

    def verify(self) -> Report:
        return self.report

    def close(self) -> None:
        self._new.close()
        super().close()


def start_tar_run(
    source: FileSource,
    files: TarFiles,
    kind: Kind,
    migrations: MigrationSet,
    options: RunOptions,
    on_step: OnStep | None,
) -> Run:
    """Run a set on a tar; the run owns it from then on. Raises what `run_file` does."""
    refuse_other_format(options)
    new = kind.run(migrations, options, in_place=False, taken=(), on_step=on_step)
    return TarRun(new, files, source)
