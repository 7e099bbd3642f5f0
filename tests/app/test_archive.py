from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

import pytest

from app import archive
from app.archive import StoredZip

LONG = b"checkpoint" * 1000


def assemble(stored: StoredZip, long: bytes) -> bytes:
    return stored.head() + long + stored.tail(zlib.crc32(long))


@pytest.fixture(params=["zip", "zip64"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "zip64":
        monkeypatch.setattr(archive, "_ZIP64_FROM", 0)


@pytest.mark.usefixtures("layout")
def test_archive_is_read_back_by_the_standard_library() -> None:
    stored = StoredZip("report.json", b"{}", "модель.migrated.ckpt", len(LONG))

    with zipfile.ZipFile(io.BytesIO(assemble(stored, LONG))) as read:
        assert read.testzip() is None
        assert read.namelist() == ["report.json", "модель.migrated.ckpt"]
        assert read.read("report.json") == b"{}"
        assert read.read("модель.migrated.ckpt") == LONG


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("long", [b"", b"x", LONG], ids=["empty", "byte", "long"])
def test_size_is_known_before_the_bytes_are(long: bytes) -> None:
    stored = StoredZip("report.json", b"{}", "new.ckpt", len(long))

    assert stored.size == len(assemble(stored, long))


@pytest.mark.parametrize("size", [2**32 - 2**24 - 1, 2**32 - 1, 5 * 2**30])
def test_archive_around_and_beyond_four_gigabytes_has_its_places_right(
    tmp_path: Path, size: int
) -> None:
    stored = StoredZip("report.json", b"{}", "new.ckpt", size)
    path = tmp_path / "sparse.zip"
    with path.open("wb") as file:
        file.write(stored.head())
        file.seek(size, io.SEEK_CUR)
        file.write(stored.tail(0))

    with zipfile.ZipFile(path) as read:
        assert read.getinfo("new.ckpt").file_size == size
        assert read.read("report.json") == b"{}"
        with read.open("new.ckpt") as member:
            assert member.read(4) == bytes(4)
    assert path.stat().st_size == stored.size
