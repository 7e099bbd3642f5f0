"""What happens inside the sandbox: one run; its outcome and its new bytes go into its scratch."""

from __future__ import annotations

import errno
import json
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from app.run_request import NEW_BYTES_NAME, OUTCOME_NAME, PRESENT_NAME, UPLOAD_NAME, RunRequest
from app.timeline import Timeline
from migrate_ckpt import (
    BytesNeeded,
    Format,
    MigrateCkptError,
    MigrationFailed,
    MigrationSet,
    Policy,
    Range,
    inspect_file,
    plan_file,
    read_set,
    run_file,
)

OnStep = Callable[[int, int, str], None]

# The disk is full, or the quota is used up.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class _Failure(Exception):
    """A run that failed for a reason that is not the library's."""

    def __init__(self, error_type: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self._facts = {"error_type": error_type, "message": message, "retryable": retryable}

    def to_dict(self) -> dict[str, Any]:
        return self._facts


def run(request: RunRequest, on_step: OnStep, source: int | None = None) -> None:
    """Do what is asked and write the outcome: {"result": …} or {"error": …}, and its "timings".

    The checkpoint is the upload in the scratch folder, or the open file.
    """
    timeline = Timeline()
    outcome: dict[str, Any]
    try:
        outcome = {
            "result": _ACTIONS[request.action](_source(request, source), request, on_step, timeline)
        }
    except (MigrateCkptError, _Failure) as error:
        if isinstance(error, MigrationFailed):
            timeline.take(error.report)
        outcome = {"error": error.to_dict()}
    except Exception as error:
        # For the log; the client learns no more than what kind of failure it was.
        traceback.print_exc()
        outcome = {"error": _classify(error).to_dict()}
    text = json.dumps({**outcome, "timings": timeline.to_list()})
    (Path(request.scratch_folder) / OUTCOME_NAME).write_text(text, encoding="ascii")


def _classify(error: Exception) -> _Failure:
    if isinstance(error, MemoryError):
        return _Failure("out_of_memory", "The run asked for more memory than there is.")
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        message = "There was no room for the result on the service's scratch disk."
        return _Failure("no_space", message, retryable=True)
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return _Failure("too_much_output", "The run wrote a larger file than it may.")
    message = "The run failed in the service; its log has the reason under this request_id."
    return _Failure("internal", message, retryable=True)


def _migrate(
    source: Path | int, request: RunRequest, on_step: OnStep, timeline: Timeline
) -> dict[str, Any]:
    def begin_step(position: int, count: int, name: str) -> None:
        timeline.begin("migration", name)
        on_step(position, count, name)

    options = _options(request)
    present = _present(request)
    try:
        with run_file(
            source, _set(request), **options, present=present, on_step=begin_step
        ) as done:
            timeline.take(done.report)
            timeline.begin("write")
            pieces = spill(done.pieces, Path(request.scratch_folder) / NEW_BYTES_NAME)
            report = replace(done.verify(), fingerprint=request.fingerprint)
            return {"report": report.to_dict(), "header": report.to_header(), "pieces": pieces}
    except BytesNeeded as error:
        return {"needs": [list(each) for each in error.ranges]}


def _plan(
    source: Path | int, request: RunRequest, on_step: OnStep, timeline: Timeline
) -> dict[str, Any]:
    options = _options(request)
    plan = plan_file(source, _set(request), with_changes=request.changes, **options).to_dict()
    inspection = {"inspection": inspect_file(source).to_dict()} if request.inspection else {}
    return {**plan, **inspection}


def _inspect(
    source: Path | int, request: RunRequest, on_step: OnStep, timeline: Timeline
) -> dict[str, Any]:
    return inspect_file(source).to_dict()


_ACTIONS: dict[str, Callable[[Path | int, RunRequest, OnStep, Timeline], dict[str, Any]]] = {
    "migrate": _migrate,
    "plan": _plan,
    "inspect": _inspect,
}


def spill(pieces: Iterable[bytes | memoryview | Range], path: Path) -> list[list[Any]]:
    """Write all new bytes to one file and return for each piece where it lies, and how long it is."""
    located: list[list[Any]] = []
    with path.open("wb", buffering=0) as file:
        for piece in pieces:
            if isinstance(piece, Range):
                located.append(["source", piece.offset, piece.count])
                continue
            offset = file.tell()
            left = memoryview(piece).cast("B")
            located.append(["new", offset, len(left)])
            while left:
                left = left[file.write(left) :]
    return located


class _Options(TypedDict):
    to: str | None
    policy: Policy
    allow_unknown_history: bool
    format: Format | None
    allowed_globals: Sequence[str] | None


def _options(request: RunRequest) -> _Options:
    return {
        "to": request.to,
        "policy": request.policy,
        "allow_unknown_history": request.allow_unknown_history,
        "format": request.format,
        "allowed_globals": request.allowed_globals,
    }


def _source(request: RunRequest, opened: int | None) -> Path | int:
    return Path(request.scratch_folder) / UPLOAD_NAME if opened is None else opened


def _present(request: RunRequest) -> list[tuple[int, int]] | None:
    """Return what is there of an upload that was fetched in part; None where all of it is."""
    path = Path(request.scratch_folder) / PRESENT_NAME
    if not path.exists():
        return None
    return [(offset, count) for offset, count in json.loads(path.read_text("ascii"))]


def _set(request: RunRequest) -> MigrationSet:
    found = read_set(request.migrations_folder, request.set_name)
    if found.digest != request.set_digest:
        # A run before this one has written into the copy that they share.
        message = "The migrations are not those that the run was begun with; send it again."
        raise _Failure("migrations_changed", message, retryable=True)
    return found
