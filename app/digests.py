"""Digest fields (RFC 9530): what a request says its body is, and what an answer says it is.

A body is never encoded here, so content and representation are the same bytes. Of a form these are
the whole body as it is sent; headers of its parts say nothing (RFC 7578, 4.8).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import http_sf

from app.errors import ServiceError

_ALGORITHMS = {"sha-256": "sha256", "sha-512": "sha512"}
_FIELDS = ("Content-Digest", "Repr-Digest")


class ExpectedDigests:
    """What the fields of a request say, held against its body once that is here."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        """Read the fields; algorithms that are not known here are passed over.

        Raises:
            ServiceError: a field cannot be read.
        """
        self._expected: list[tuple[str, str, bytes]] = []
        for field in _FIELDS:
            for algorithm, value in _read_field(field, headers.get(field, "")).items():
                if algorithm in _ALGORITHMS:
                    self._expected.append((field, algorithm, _read_digest(field, value)))
        used = {algorithm for _, algorithm, _ in self._expected}
        self._hashes = {algorithm: hashlib.new(_ALGORITHMS[algorithm]) for algorithm in used}

    def __bool__(self) -> bool:
        return bool(self._expected)

    def update(self, chunk: bytes) -> None:
        for one in self._hashes.values():
            one.update(chunk)

    def check(self) -> None:
        """Compare what came with what was said.

        Raises:
            ServiceError: it is something else.
        """
        for field, algorithm, digest in self._expected:
            if not hmac.compare_digest(digest, self._hashes[algorithm].digest()):
                raise ServiceError(
                    "digest_mismatch",
                    f"The body is not the one whose {algorithm} the {field} tells: send it again.",
                    retryable=True,
                    field=field,
                )


def wanted_algorithm(headers: Mapping[str, str]) -> str | None:
    """Return the algorithm that Want-Repr-Digest likes best of those known here."""
    try:
        wanted = _read_field("Want-Repr-Digest", headers.get("Want-Repr-Digest", ""))
    except ServiceError:
        # A wish that cannot be understood is none.
        return None
    weights = {
        algorithm: weight
        for algorithm, (weight, _) in wanted.items()
        if algorithm in _ALGORITHMS and type(weight) is int and 0 < weight <= 10
    }
    return max(weights, key=lambda algorithm: weights[algorithm], default=None)


def repr_digest(algorithm: str, blocks: Iterable[bytes]) -> str:
    """Return the value of the field Repr-Digest for an answer of these blocks."""
    digest = hashlib.new(_ALGORITHMS[algorithm])
    for block in blocks:
        digest.update(block)
    return http_sf.ser({algorithm: digest.digest()})


async def repr_digest_of(algorithm: str, blocks: AsyncIterator[bytes]) -> str:
    """Return the same for blocks that are still to come."""
    return http_sf.ser({algorithm: await digest_of(algorithm, blocks)})


async def digest_of(algorithm: str, blocks: AsyncIterator[bytes]) -> bytes:
    """Return the digest of blocks that are still to come, made by a thread."""
    digest = hashlib.new(_ALGORITHMS[algorithm])
    async for block in blocks:
        await asyncio.to_thread(digest.update, block)
    return digest.digest()


def _read_field(field: str, text: str) -> dict[str, Any]:
    try:
        found = http_sf.parse(text.encode("latin-1"), tltype="dictionary")
    except (ValueError, http_sf.StructuredFieldError) as error:
        raise _invalid(field) from error
    assert isinstance(found, dict)
    return found


def _read_digest(field: str, member: Any) -> bytes:
    value, _ = member
    if not isinstance(value, bytes):
        raise _invalid(field)
    return value


def _invalid(field: str) -> ServiceError:
    message = f"The {field} cannot be read; one looks like sha-256=:BASE64: (RFC 9530)."
    return ServiceError("invalid_digest", message, field=field)
