"""Callbacks: a job that has ended is told to whom it names, signed as Standard Webhooks 1.0.0 says.

An attempt counts as delivered with a status of 2xx; 410 ends them, and so does the end of the schedule. What is
sent is composed once: every attempt, and every delivery that is asked for later, has the same id and body.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from standardwebhooks import Webhook

from app.errors import ServiceError
from app.jobs.answers import describe_briefly
from app.jobs.delivery import Attempt, Delivery
from app.jobs.job import Job
from app.outbound.client import guarded_client
from app.outbound.networks import Networks
from app.settings import PREFIX, Settings
from app.storage.allowed import AllowedLocations
from app.storage.locations import InvalidLocation, Location, parse_address

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 20.0
JITTER = 0.2
MAX_DELAY_SECONDS = 86400.0
GONE = 410
WAIT_FOR_END_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int | None = None
    error: str | None = None
    retry_after: float = 0.0


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What the operator lets be called back, and the secrets that it is signed with."""

    allowed: AllowedLocations
    networks: Networks
    secrets: tuple[str, ...]
    delays_seconds: Sequence[float]

    @classmethod
    def from_settings(cls, settings: Settings) -> Callbacks:
        return cls(
            AllowedLocations.of("callback", settings.allowed_callbacks),
            Networks(settings.allowed_networks),
            settings.callback_secrets,
            settings.callback_delays_seconds,
        )

    def refuse(self, url: str) -> None:
        """Refuse a callback that cannot be made.

        Raises:
            ServiceError: it is no URL, is not allowed, or there is nothing to sign it with.
        """
        location = self._parse(url)
        if not self.secrets:
            message = (
                f"This service calls nobody back: its operator has set no {PREFIX}CALLBACK_SECRET."
            )
            raise ServiceError("callback_not_allowed", message)
        self.allowed.refuse(location)

    async def attempt(self, delivery: Delivery) -> Attempt:
        """Make one attempt; whatever comes of it is told and not raised."""
        assert delivery.body is not None
        began, clock = time.time(), time.monotonic()
        answer = await self._send(delivery, delivery.body)
        is_last = (
            answer.error is None
            or answer.status == GONE
            or delivery.attempt >= len(self.delays_seconds)
        )
        delay = None if is_last else self._delay(delivery, answer)
        return Attempt(began, time.monotonic() - clock, answer.status, answer.error, delay)

    def _delay(self, delivery: Delivery, answer: _Answer) -> float:
        """Return the seconds until the next attempt: no two the same, and no fewer than the receiver asks for."""
        delay = self.delays_seconds[delivery.attempt] * random.uniform(1 - JITTER, 1 + JITTER)
        return min(max(delay, answer.retry_after), MAX_DELAY_SECONDS)

    async def _send(self, delivery: Delivery, body: str) -> _Answer:
        try:
            self.refuse(delivery.url)
            async with guarded_client(self.networks, silence_seconds=TIMEOUT_SECONDS) as client:
                request = client.build_request(
                    "POST",
                    self._parse(delivery.url).url,
                    content=body.encode(),
                    headers=self._headers(delivery, body),
                )
                # What the receiver says beside its status is of no use to us, and may have any size.
                response = await asyncio.wait_for(
                    client.send(request, stream=True), TIMEOUT_SECONDS
                )
                await response.aclose()
        except ServiceError as error:
            return _Answer(error=str(error))
        except asyncio.TimeoutError:
            return _Answer(error=f"There was no answer in {TIMEOUT_SECONDS:g} seconds.")
        except httpx.HTTPError as error:
            return _Answer(error=f"{type(error).__name__}: the receiver could not be reached.")
        except Exception:
            logger.exception("callback of job %s failed unforeseen", delivery.job_id)
            return _Answer(error="The service failed; its log has the reason under the job's id.")
        if response.is_success:
            return _Answer(response.status_code)
        return _Answer(
            response.status_code,
            f"The receiver answered {response.status_code}.",
            read_retry_after(response.headers.get("retry-after", "")),
        )

    def _headers(self, delivery: Delivery, body: str) -> dict[str, str]:
        now = datetime.now(timezone.utc).replace(microsecond=0)
        signatures = [
            Webhook(secret).sign(delivery.webhook_id, now, body) for secret in self.secrets
        ]
        return {
            "Content-Type": "application/json",
            "webhook-id": delivery.webhook_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signatures),
        }

    def _parse(self, url: str) -> Location:
        try:
            return parse_address(url)
        except InvalidLocation as error:
            message = f"The callback is no URL of the web: {error}."
            raise ServiceError("invalid_location", message, role="callback") from error


def read_retry_after(text: str) -> float:
    """Return the seconds that a Retry-After asks for, by number or by date; 0 where it says neither."""
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        when = parsedate_to_datetime(text)
        return max(when.timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return 0.0


async def compose(
    delivery: Delivery, find: Callable[[str], Awaitable[Job | None]]
) -> Delivery | None:
    """Return the delivery with what is to be sent, as soon as its job has ended; None where there is no job."""
    if delivery.body is not None:
        return delivery
    while (job := await find(delivery.job_id)) is not None:
        if job.has_ended:
            event, body = compose_event(job)
            return replace(delivery, event=event, body=body)
        # It is about to: the delivery is put on its way by the job's last step.
        await asyncio.sleep(WAIT_FOR_END_SECONDS)
    return None


def compose_event(job: Job) -> tuple[str, str]:
    """Return what a job's end is called, and the body that tells of it."""
    event = f"migration.{job.status}"
    document = describe_briefly(job)
    body: dict[str, Any] = {"type": event, "timestamp": document["ended"], "data": document}
    return event, json.dumps(body)
