from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app import child
from app.child import run, spill
from app.run_request import RunRequest
from migrate_ckpt import Range


def test_new_bytes_are_spilled_and_ranges_are_not(tmp_path: Path) -> None:
    pieces = (b"head", Range(100, 2**40), memoryview(b"xtailx")[1:5], b"!")

    located = spill(pieces, tmp_path / "new")

    assert (tmp_path / "new").read_bytes() == b"headtail!"
    assert located == [["new", 0, 4], ["source", 100, 2**40], ["new", 4, 4], ["new", 8, 1]]


@pytest.mark.parametrize(
    ("error", "error_type"),
    [
        (MemoryError(), "out_of_memory"),
        (OSError(28, "No space left on device"), "no_space"),
        (OSError(27, "File too large"), "too_much_output"),
        (OSError(13, "Permission denied"), "internal"),
        (ValueError("/secret/path"), "internal"),
    ],
    ids=["memory", "disk full", "file too large", "other", "bug"],
)
def test_failure_that_is_not_the_librarys_is_classified_and_tells_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, error_type: str
) -> None:
    def fail(path: Path) -> Any:
        raise error

    monkeypatch.setattr(child, "inspect_file", fail)

    run(RunRequest("inspect", str(tmp_path)), lambda *_: None)

    outcome = (tmp_path / "outcome.json").read_text()
    assert f'"error_type": "{error_type}"' in outcome
    assert "secret" not in outcome


def test_set_that_changed_since_the_upload_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "0001_x.py").write_text("def handle(ckpt):\n    return ckpt\n")
    request = RunRequest(
        "plan", str(tmp_path), migrations_folder=str(tmp_path), set_digest="1:of another day"
    )

    run(request, lambda *_: None)

    assert '"migrations_changed"' in (tmp_path / "outcome.json").read_text()
