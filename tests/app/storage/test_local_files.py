"""A result is given its name in a folder without touching what others have there."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.errors import ServiceError
from app.responses import Extent
from app.storage.local_files import write_file
from app.storage.locations import Location

CONTENT = b"the result"


@pytest.fixture(params=["links", "no links"])
def write(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Write the result to a path, on a file system that has second names, and on one that has not."""
    if request.param == "no links":

        def refuse(*_: Any) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    source = tmp_path / "source"
    source.write_bytes(CONTENT)

    def write(path: Path, *, may_replace: bool = False) -> None:
        with source.open("rb") as file:
            write_file(
                Location("file", "", str(path)),
                [Extent(file.fileno(), 0, len(CONTENT))],
                lambda _: None,
                writer="job",
                may_replace=may_replace,
            )

    return write


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "new.ckpt"


def test_result_is_all_that_is_left(write: Callable[..., None], target: Path) -> None:
    # What this writer had begun before it was killed.
    target.with_name(".job.part").write_bytes(b"half")

    write(target)

    assert target.read_bytes() == CONTENT
    assert os.listdir(target.parent) == [target.name]


def test_name_may_be_as_long_as_names_can_be(write: Callable[..., None], target: Path) -> None:
    write(target.with_name("模" * 85))

    assert os.listdir(target.parent) == ["模" * 85]


def test_same_bytes_that_are_there_already_are_the_result(
    write: Callable[..., None], target: Path
) -> None:
    target.write_bytes(CONTENT)
    before = target.stat().st_ino

    write(target)

    assert target.stat().st_ino == before
    assert os.listdir(target.parent) == [target.name]


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_what_is_somebody_elses_is_left_alone(
    write: Callable[..., None], target: Path, kind: str
) -> None:
    if kind == "file":
        target.write_bytes(b"somebody's")
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to("nowhere")

    with pytest.raises(ServiceError) as caught:
        write(target)

    assert caught.value.error_type == "destination_exists"
    assert os.listdir(target.parent) == [target.name]
    assert kind != "file" or target.read_bytes() == b"somebody's"


def test_file_that_may_be_replaced_is(write: Callable[..., None], target: Path) -> None:
    target.write_bytes(b"somebody's")

    write(target, may_replace=True)

    assert target.read_bytes() == CONTENT
    assert os.listdir(target.parent) == [target.name]
