"""What stands below the options in each command's help: a word on it, and examples."""

from __future__ import annotations

from migrate_ckpt.linting.findings import CODES

EPILOG = """exit codes:
  0    done, or nothing to do
  1    the answer is no: migrations are pending, or there are findings or differences
  2    wrong usage, folder or path
  3    a checkpoint cannot be read
  4    a checkpoint's history was refused, or it cannot be reverted
  5    a migration failed
  130  interrupted

examples:
  migrate-ckpt plan old.ckpt
  migrate-ckpt run old.ckpt -o new.ckpt
  migrate-ckpt run runs --output-dir migrated
"""

RUN_EXAMPLES = """A SOURCE is a file, a folder (all checkpoints below it, by their content), or a pattern in quotes.

examples:
  migrate-ckpt run old.ckpt -o new.ckpt
  migrate-ckpt run old.ckpt --in-place
  migrate-ckpt run runs --output-dir migrated          sub-folders are kept
  migrate-ckpt run 'runs/**/*.ckpt' --output-dir migrated --report report.json

The same command again goes on where it was interrupted: in --output-dir, what is migrated already is skipped.
"""

REVERT_EXAMPLES = """examples:
  migrate-ckpt run model.ckpt --in-place --keep-undo   model.ckpt.undo has what the new file lacks
  migrate-ckpt revert model.ckpt --in-place            and removes it again
  migrate-ckpt revert new.ckpt -o old.ckpt
  migrate-ckpt revert new.ckpt -o old.ckpt --to 0003_rename_encoder

With its undo bundle, NAME.undo, a file is put back byte for byte, whatever the migrations did. Without one, or if it
was trained on since, each migration is taken back by its operations, or by the revert(ckpt) in its file; what would
lose something is refused, and nothing is written.
"""

COMPLETION_EXAMPLES = """examples:
  migrate-ckpt completion bash > ~/.local/share/bash-completion/completions/migrate-ckpt
  migrate-ckpt completion zsh > ~/.zfunc/_migrate-ckpt      with ~/.zfunc in fpath
"""

PLAN_EXAMPLES = """examples:
  migrate-ckpt plan old.ckpt --verbose
  migrate-ckpt plan runs --policy strict
  migrate-ckpt plan 'runs/**/*.ckpt' --json
"""

INSPECT_EXAMPLES = """example:
  migrate-ckpt inspect old.ckpt
"""

STAMP_EXAMPLES = """For checkpoints that are known to be of today's code.

example:
  migrate-ckpt stamp fresh.ckpt --in-place
"""

NEW_EXAMPLES = """A folder's _template.py is copied, if there is one, with the title in the place of {title}.

examples:
  migrate-ckpt new rename_encoder                      migrations/0003_rename_encoder.py
  migrate-ckpt new rename_encoder --handle             with a function in place of a list of operations
"""

AUTOGENERATE_EXAMPLES = """OLD and NEW are checkpoints, state dicts or manifests (.json).
Best is a NEW that holds what OLD holds: equal content proves what became of each tensor.
Names and shapes only make it likely, and what could be one or another is left to you: exit code 1, and a TODO
in the file.

examples:
  migrate-ckpt autogenerate old.ckpt new.ckpt --name fuse_attention
  migrate-ckpt autogenerate old.json new.json --print
"""

TEST_EXAMPLES = """The fixture of a migration is fixtures/NAME.json beside it:
a small checkpoint of before, and what must come of it.

examples:
  migrate-ckpt test                                    for CI: --require-fixtures refuses a migration without one
  migrate-ckpt test 0003_rename_encoder
  migrate-ckpt test --write old.ckpt                   makes those that are not there, of a checkpoint in small
"""

SQUASH_EXAMPLES = """Who has had none of them gets the new one in their place.
Who has had some gets the rest of them, one by one. They stay in the folder until no checkpoint is in between any more.

examples:
  migrate-ckpt squash 0001_first..0004_last            writes migrations/0004_last_squashed.py
"""

REPAIR_EXAMPLES = """For migrations that were edited since they ran, by what changes nothing for these checkpoints.

examples:
  migrate-ckpt repair runs --in-place
  migrate-ckpt repair old.ckpt -o new.ckpt --accept 0002_rename_encoder
"""

ADOPT_EXAMPLES = """A SOURCE is a folder of the original library's or of anemoi's scripts,
or a file with an index by version, such as Lightning's. Nothing of it is imported or run.
docs/leaving-others.md says what comes along.

examples:
  migrate-ckpt adopt old/migrations --folder migrations
  migrate-ckpt adopt lightning/pytorch/utilities/migration/migration.py --folder migrations
"""

LINT_EPILOG = (
    "codes:\n"
    + "".join(f"  {code}  {text}\n" for code, text in CODES.items())
    + """
A line that ends with "# noqa: MC008" is meant so; what concerns the whole file stands at its first line.

examples:
  migrate-ckpt lint
  migrate-ckpt lint --against 'runs/**/*.ckpt'         also finds what was edited since it was applied there
"""
)

CHECK_EXAMPLES = """Reads the folder and imports every migration, as a run would. In checkpoints, all that is
pending is tried out in memory; nothing is written. Missed, unknown and changed migrations in
their histories count as findings.

examples:
  migrate-ckpt check
  migrate-ckpt check tests/checkpoints                 for CI: old checkpoints that must stay migratable
"""

MANIFEST_EXAMPLES = """A SOURCE is a checkpoint's file, or module:factory, a function that builds the model.

examples:
  migrate-ckpt manifest mypackage.model:build -o migrations/manifest.json
  migrate-ckpt manifest new.ckpt -o model.json --checks keys shapes

In a folder of migrations, manifest.json says what each run of them must come to.
"""

VERIFY_EXAMPLES = """examples:
  migrate-ckpt verify new.ckpt                         against the set's own manifest.json
  migrate-ckpt verify migrated --manifest model.json
"""
