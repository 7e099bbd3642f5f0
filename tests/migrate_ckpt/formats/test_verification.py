from __future__ import annotations

import zlib

import pytest

from migrate_ckpt.errors import UnreadableCheckpoint
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.formats.verification import Checksum, Verification


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(bytes(range(256)) * 20_000)
    with FileSource(path) as opened:
        yield opened


def checksums(source, ranges):
    return [
        Checksum(f"record {offset}", offset, size, zlib.crc32(source.read(offset, size)))
        for offset, size in ranges
    ]


RANGES = {
    "small": [(index * 100, 90) for index in range(500)],
    "large": [(0, 3_000_000), (3_000_000, 2_000_000)],
    "mixed": [(0, 10), (10, 3_000_000), (3_000_010, 10), (3_000_020, 0), (3_000_030, 70)],
}


@pytest.mark.parametrize("ranges", RANGES.values(), ids=RANGES.keys())
def test_sound_bytes_pass(source, ranges):
    assert Verification(source, checksums(source, ranges)).finish() is True


@pytest.mark.parametrize("ranges", RANGES.values(), ids=RANGES.keys())
def test_each_record_is_looked_at(source, ranges):
    known = checksums(source, ranges)
    for index, checksum in enumerate(known[:5]):
        if checksum.size:
            wrong = [*known[:index], checksum._replace(crc=checksum.crc ^ 1), *known[index + 1 :]]

            with pytest.raises(UnreadableCheckpoint, match=checksum.name):
                Verification(source, wrong, threads=2).finish()


def test_a_record_without_a_checksum_is_not_called_verified(source):
    known = checksums(source, RANGES["mixed"])

    assert Verification(source, [*known, Checksum("none", 0, 5, 0)]).finish() is False


def test_a_source_without_checksums_is_not_called_verified(source):
    assert Verification(source, []).finish() is False


def test_a_cancelled_look_ends_without_a_word(source):
    verification = Verification(source, [Checksum("wrong", 0, 5_000_000, 1)])

    verification.cancel()
