"""Room on the scratch disk, promised to requests by the size they declare, before a byte of it is there."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.claims import Claims
from app.turns import LARGE_FROM_BYTES

# Left over for what runs write beside the uploads.
SPARE_BYTES = 64 * 2**20
# Large bodies leave this part of the disk to small ones, and no more than one that is just not large takes.
KEPT_SHARE = 8

# There is room; there will be when others are done; there never is.
Verdict = Literal["now", "later", "never"]


@dataclass(slots=True)
class Place:
    """What one request holds of the disk, in bytes. One that does not say its size may be large."""

    is_large: bool
    reserved: int = 0
    received: int = 0

    @property
    def outstanding(self) -> int:
        """What is promised to it and not on the disk yet."""
        return max(self.reserved - self.received, 0)


class ScratchRoom:
    def __init__(self, free_bytes: Callable[[], int], claims: Claims) -> None:
        self.places: list[Place] = []
        self._free_bytes = free_bytes
        self._claims = claims

    def reserve(self, place: Place, size: int) -> Verdict:
        """Promise a place so much in all, if there is room for it now."""
        others = [other for other in self.places if other is not place]
        free = self._free_bytes()
        all_there_is = free + sum(other.received for other in others)
        needed = size - place.received + SPARE_BYTES
        if size >= LARGE_FROM_BYTES:
            needed += min(LARGE_FROM_BYTES, all_there_is // KEPT_SHARE)
        promised = sum(other.outstanding for other in others) + self._claims.of_others(size)
        if needed + promised <= free:
            self._claims.settle(size)
            place.reserved = size
            return "now"
        return "later" if needed <= all_there_is else "never"


def free_bytes(folder: Path) -> int:
    """Return what can still be written to the disk of this folder."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize
