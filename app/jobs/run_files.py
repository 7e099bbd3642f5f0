"""The files of a job's run: the source that it is given, and what it has left behind."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from app.copying import Tell
from app.errors import RunFailed
from app.responses import Extent
from app.run_request import NEW_BYTES_NAME, OUTCOME_NAME, UPLOAD_NAME
from app.runs import read_outcome
from app.scratch import open_left_file
from app.storage.local_files import open_file, refuse_changed
from app.storage.locations import Location
from app.storage.part_copies import AnyExtent
from app.storage.part_fetching import RemoteObject, RemoteRange
from app.threads import Check

DIGEST_BYTES = 4 * 2**20
MAX_RANGES = 100_000


@contextmanager
def opened_source(fetched: Mapping[str, Any]) -> Iterator[int | None]:
    """Hold a source that is a file open while it is migrated; None where it is an upload.

    Raises:
        ServiceError: it has changed since it was looked at.
    """
    if "file" not in fetched:
        yield None
        return
    with ExitStack() as stack:
        yield _open_source(fetched, stack)


def digest_file(location: Location, identity: Sequence[int], tell: Tell, check: Check) -> str:
    """Return the SHA-256 of a file, in hex; `check` may end it.

    Raises:
        ServiceError: it was changed meanwhile.
    """
    with ExitStack() as stack:
        fetched = {"file": location.path, "identity": identity}
        descriptor = _open_source(fetched, stack)
        digest = hashlib.sha256()
        done = 0
        while block := os.pread(descriptor, DIGEST_BYTES, done):
            check()
            digest.update(block)
            done += len(block)
            tell(done)
        refuse_changed(descriptor, identity, location)
    return digest.hexdigest()


def read_run_outcome(run: Path) -> dict[str, Any]:
    """Return what a run has written down in its folder."""
    return read_outcome(open_left_file(run / OUTCOME_NAME))


def needed_ranges(result: Mapping[str, Any], fetched: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return the ranges that a run says it needs of a source that was fetched in part; none where it has a result.

    Raises:
        RunFailed: it says what makes no sense; it was written where migrations run.
    """
    needs = result.get("needs", [])
    size: int = fetched["size"]
    try:
        ranges = [(int(offset), int(count)) for offset, count in needs]
    except (TypeError, ValueError):
        ranges = [(-1, 0)]
    is_sane = all(offset >= 0 and count > 0 and offset + count <= size for offset, count in ranges)
    if not is_sane or (ranges and "e_tag" not in fetched) or len(ranges) > MAX_RANGES:
        raise RunFailed("internal", "The run asked for bytes that there are not.")
    return ranges


def made_by(
    run: Path, fetched: Mapping[str, Any], stack: ExitStack
) -> tuple[dict[str, Any], list[Extent]]:
    """Open what a run has made; return what there is to say of it, and its bytes.

    Raises:
        RunFailed: it has made nothing.
        ServiceError: the source is a file that was changed meanwhile.
    """
    result = _result(run)
    is_file = "file" in fetched
    source = _open_source(fetched, stack) if is_file else _open(run / UPLOAD_NAME, stack)
    descriptors = {"source": source, "new": _open(run / NEW_BYTES_NAME, stack)}
    extents = [
        Extent(descriptors[which], offset, count) for which, offset, count in result["pieces"]
    ]
    return {"header": result["header"], "report": result["report"]}, extents


def made_in_part(
    run: Path, remote: RemoteObject, stack: ExitStack
) -> tuple[dict[str, Any], list[AnyExtent]]:
    """Do the same for a source that was fetched in part: what of it is in the result is left where it is.

    Raises:
        RunFailed: it has made nothing.
    """
    result = _result(run)
    new = _open(run / NEW_BYTES_NAME, stack)
    extents: list[AnyExtent] = [
        RemoteRange(remote, offset, count) if which == "source" else Extent(new, offset, count)
        for which, offset, count in result["pieces"]
    ]
    return {"header": result["header"], "report": result["report"]}, extents


def _result(run: Path) -> dict[str, Any]:
    outcome = read_run_outcome(run)
    if "error" in outcome:
        raise RunFailed.from_dict(outcome["error"])
    result: dict[str, Any] = outcome["result"]
    return result


def _open_source(fetched: Mapping[str, Any], stack: ExitStack) -> int:
    location = Location("file", "", fetched["file"])
    descriptor = open_file(location)
    stack.callback(os.close, descriptor)
    refuse_changed(descriptor, fetched["identity"], location)
    return descriptor


def _open(path: Path, stack: ExitStack) -> int:
    descriptor = open_left_file(path)
    stack.callback(os.close, descriptor)
    return descriptor
