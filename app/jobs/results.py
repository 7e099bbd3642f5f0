"""The port to where results are kept: each under its fingerprint, for so long, and all of them in so many bytes.

The results of one service lie in a folder of its machine (`local_results.py`), those of many processes in
a bucket that all of them reach (`bucket_results.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import Response

from app.copying import Tell
from app.errors import ServiceError
from app.responses import Extent


@dataclass(frozen=True, slots=True)
class KeptResult(ABC):
    """One migrated checkpoint; `facts` are what was said of it when it was kept, `expires` is seconds since 1970."""

    fingerprint: str
    size: int
    facts: Mapping[str, Any]
    expires: float

    @abstractmethod
    def blocks(self) -> AsyncIterator[bytes]:
        """Hand out its bytes.

        Raises:
            ServiceError: it has expired meanwhile, or what keeps it does not answer.
        """

    @abstractmethod
    async def open(self, stack: ExitStack) -> Extent:
        """Return its bytes in a file of this machine, which is there until the stack is unwound.

        Raises:
            ServiceError: as above.
        """

    @abstractmethod
    def answer(self, headers: Mapping[str, str], media_type: str) -> Response:
        """Return an answer of it, whole or of the range that the request asks for."""


class Results(Protocol):
    async def find(self, fingerprint: str) -> KeptResult | None:
        """Return this result if it is kept, and has not expired."""

    async def renew(self, fingerprint: str) -> KeptResult | None:
        """Return this result, which from now on is kept as long as a new one."""

    async def keep(
        self, fingerprint: str, facts: Mapping[str, Any], extents: Iterable[Extent], tell: Tell
    ) -> KeptResult:
        """Keep a result that these extents make up; what makes room for it are the oldest ones.

        Args:
            fingerprint: its name.
            facts: what to say of it later, as JSON.
            extents: its bytes.
            tell: is told how many are there.

        Raises:
            ServiceError: it is too large, or cannot be kept at the moment.
        """

    async def remove_expired(self) -> None:
        """Make an end of what nobody finds any more."""


def refuse_too_large(size: int, max_bytes: int) -> None:
    """Refuse a result that has no room where there is nothing else.

    Raises:
        ServiceError: it is larger than all results together may be.
    """
    if size > max_bytes:
        message = f"The result has {size} bytes, and the service keeps {max_bytes}."
        raise ServiceError("too_large", message, max_result_bytes=max_bytes)


def expired() -> ServiceError:
    """Return the refusal of a result that was there a moment ago."""
    return ServiceError("result_expired", "The result has just expired.")
