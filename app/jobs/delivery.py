"""A callback on its way: one attempt of one delivery, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

DeliveryStatus = Literal["scheduled", "sending", "delivered", "failed"]


@dataclass(frozen=True, slots=True)
class Delivery:
    """One attempt; plain data, it is stored as JSON.

    Attributes:
        job_id: whose end it tells of.
        url: where to.
        number: 0 for the delivery that the job's end began, higher for those that were asked for later.
        attempt: how many there were before.
        due: when it is to be made, in seconds since 1970.
        event: what it tells, such as `migration.succeeded`; None until the first attempt has looked.
        body: what is sent, the same bytes on every attempt; None until then.
    """

    job_id: str
    url: str
    number: int = 0
    attempt: int = 0
    due: float = 0.0
    event: str | None = None
    body: str | None = None

    @property
    def id(self) -> str:
        """The same attempt has the same name, so it is not made twice."""
        return f"{self.job_id}.{self.number}.{self.attempt}"

    @property
    def webhook_id(self) -> str:
        """The same over all attempts, and over deliveries that are asked for again."""
        return f"msg_{self.job_id}"

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Delivery:
        return cls(**stored)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def next(self, *, due: float) -> Delivery:
        return replace(self, attempt=self.attempt + 1, due=due)


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of one attempt.

    Attributes:
        at: when it was made, in seconds since 1970.
        seconds: how long it took.
        status: what the receiver answered, if it did.
        error: why it did not, or why that is no success.
        delay_seconds: when the next one is made; None where none is: it was delivered, or is given up.
    """

    at: float
    seconds: float
    status: int | None = None
    error: str | None = None
    delay_seconds: float | None = None

    @property
    def is_delivered(self) -> bool:
        return self.error is None


@dataclass(frozen=True, slots=True)
class DeliveryState:
    """An attempt as it stands; without a result it is still to be made, or is being made."""

    delivery: Delivery
    is_running: bool = False
    attempt: Attempt | None = None
