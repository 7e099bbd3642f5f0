"""Room that is kept for a large upload which found none, until shortly after it was told to come again.

Without that, others that need less would take whatever comes free, again and again. One is kept room
for at a time, and only other large ones are held back by it: who it is is told by the size alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from app.turns import LARGE_FROM_BYTES


@dataclass(slots=True)
class Claims:
    """The one claim there is, if any."""

    clock: Callable[[], float]
    size: int = 0
    until: float = 0.0

    def add(self, size: int, *, seconds: float) -> None:
        """Keep room for a large upload that was sent away, unless it is kept for another already."""
        if size >= LARGE_FROM_BYTES and (self.size == size or not self._stands()):
            self.size, self.until = size, self.clock() + seconds

    def of_others(self, size: int) -> int:
        """Return the room that an upload of this size has to leave."""
        is_held_back = size >= LARGE_FROM_BYTES and size != self.size and self._stands()
        return self.size if is_held_back else 0

    def settle(self, size: int) -> None:
        """Forget the claim of the one that has come."""
        if size == self.size:
            self.size = 0

    def _stands(self) -> bool:
        return self.size > 0 and self.clock() < self.until
