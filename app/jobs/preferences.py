"""What a request says of when and how it wants its answer: Prefer (RFC 7240) and Idempotency-Key."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from app.errors import ServiceError

# No proxy on the way keeps a silent connection for longer.
MAX_WAIT_SECONDS = 60.0

_SECONDS = re.compile(r"\d{1,6}")
# A structured field's string (RFC 8941, 3.3.3), or the bare text that older clients send.
_KEY = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])+)"|([!#-~]+)')
MAX_KEY_CHARACTERS = 255


@dataclass(frozen=True, slots=True)
class Preferences:
    """Whether to answer before the work is done, and how many seconds to wait for it first."""

    is_async: bool = False
    wait_seconds: float = 0.0


def read_preferences(headers: Iterable[str]) -> Preferences:
    """Read the Prefer headers; what is unknown or makes no sense is passed over, as the RFC asks."""
    given: dict[str, str] = {}
    for preference in ",".join(headers).split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        # Of one that is given twice, the first counts.
        given.setdefault(name.strip().lower(), value.strip().strip('"'))
    wait = given.get("wait", "")
    seconds = float(wait) if _SECONDS.fullmatch(wait) else 0.0
    return Preferences("respond-async" in given, min(seconds, MAX_WAIT_SECONDS))


def read_idempotency_key(header: str | None) -> str | None:
    """Read the key by which a request that is sent again is known.

    Raises:
        ServiceError: it is no key.
    """
    if header is None:
        return None
    match = _KEY.fullmatch(header.strip())
    if match is None or len(header) > MAX_KEY_CHARACTERS:
        message = (
            'The header Idempotency-Key is no key: a text in double quotes, like "8e03978e-40d5", of '
            f"at most {MAX_KEY_CHARACTERS} ASCII characters."
        )
        raise ServiceError("invalid_parameter", message, parameter="Idempotency-Key")
    quoted, bare = match.groups()
    return bare or re.sub(r"\\(.)", r"\1", quoted)
