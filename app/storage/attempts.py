"""How often a transfer is tried, and with what pauses, where the other side may be there again later."""

from __future__ import annotations

from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from app.errors import ServiceError

ATTEMPTS = 5


def attempts() -> AsyncRetrying:
    """Return the attempts at one transfer; the last one's error is raised."""
    return AsyncRetrying(
        retry=retry_if_exception(_is_worth_another_try),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential_jitter(multiplier=0.5, max=20),
        reraise=True,
    )


def _is_worth_another_try(error: BaseException) -> bool:
    return (
        isinstance(error, ServiceError)
        and error.error_type.endswith("_unavailable")
        and error.retryable
    )
