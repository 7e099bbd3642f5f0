"""Whether a delivery is what somebody who knows a secret has sent, in each sender's way of saying so.

    MLFLOW        HMAC-SHA256 over id.time.body, "v1," and base64; the key is the secret's text
                  (MLflow 3, mlflow/webhooks/delivery.py)
    STANDARD      the same, where the key is what the base64 behind "whsec_" stands for, and several
                  signatures may be given (Standard Webhooks 1.0.0)
    WANDB         HMAC-SHA256 over the body alone, base64
    DATABRICKS    the same, in hex
    HUGGING_FACE  no signature: the secret itself

The first two have an id and a time, and can be told from their own repetition a year later. Of the others
each whoever uses them has to make an id of what is in the body.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from app.errors import ServiceError

# Standard Webhooks' own; MLflow's sample receiver allows as much for the past.
TOLERANCE_SECONDS = 300
MAX_ID_CHARACTERS = 256
MAX_TIME_DIGITS = 12


def _text_key(secret: str) -> bytes:
    return secret.encode()


def _standard_key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix("whsec_"), validate=True)


def _versioned_base64(digest: bytes) -> str:
    return "v1," + base64.b64encode(digest).decode()


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way of signing.

    Attributes:
        signature_header: where the signature stands, or several with spaces between them.
        encode: a digest as it stands there; None where it is the secret itself.
        key: of the HMAC, as it follows from the secret.
        id_header: where the delivery's id stands, if it has one.
        time_header: where the seconds since 1970 stand, if it has them.
    """

    signature_header: str
    encode: Callable[[bytes], str] | None
    key: Callable[[str], bytes] = _text_key
    id_header: str | None = None
    time_header: str | None = None

    def sign(self, secret: str, *, body: bytes, delivery_id: str = "", time: str = "") -> str:
        """Return the signature of a delivery."""
        if self.encode is None:
            return secret
        signed = body if self.id_header is None else f"{delivery_id}.{time}.".encode() + body
        return self.encode(hmac.digest(self.key(secret), signed, hashlib.sha256))


MLFLOW = Scheme(
    "X-MLflow-Signature",
    _versioned_base64,
    id_header="X-MLflow-Delivery-Id",
    time_header="X-MLflow-Timestamp",
)
STANDARD = Scheme(
    "webhook-signature",
    _versioned_base64,
    key=_standard_key,
    id_header="webhook-id",
    time_header="webhook-timestamp",
)
WANDB = Scheme("X-Wandb-Signature", lambda digest: base64.b64encode(digest).decode())
DATABRICKS = Scheme("X-Databricks-Signature", bytes.hex)
HUGGING_FACE = Scheme("X-Webhook-Secret", None)


def verify(
    scheme: Scheme, secrets: Iterable[str], headers: Mapping[str, str], body: bytes, *, now: float
) -> str:
    """Return the id of a delivery that one of the secrets has signed; empty where its sender gives none.

    Args:
        scheme: the sender's.
        secrets: several while one is replaced.
        headers: of the request, compared without regard to case.
        body: as it came, before anything is read from it.
        now: seconds since 1970.

    Raises:
        ServiceError: `bad_signature`: nobody who knows a secret has sent this; `stale_delivery`: not now.
    """
    delivery_id = _header(headers, scheme.id_header)
    time = _header(headers, scheme.time_header)
    given = headers.get(scheme.signature_header, "").encode().split()
    is_genuine = False
    for secret in secrets:
        expected = scheme.sign(secret, body=body, delivery_id=delivery_id, time=time).encode()
        for signature in given:
            # How long it takes says nothing of how much of it is right, or of which secret it was.
            is_genuine |= hmac.compare_digest(expected, signature)
    if not is_genuine:
        message = (
            f"No {scheme.signature_header} of this request is made with a secret of this service."
        )
        raise ServiceError("bad_signature", message)
    if scheme.time_header is not None:
        _refuse_stale(time, now)
    return delivery_id


def _header(headers: Mapping[str, str], name: str | None) -> str:
    if name is None:
        return ""
    value = headers.get(name, "")
    if not value or len(value) > MAX_ID_CHARACTERS:
        raise ServiceError("bad_signature", f"The request has no header {name} that is signed.")
    return value


def _refuse_stale(time: str, now: float) -> None:
    is_number = time.isascii() and time.isdecimal() and len(time) <= MAX_TIME_DIGITS
    if not is_number or abs(now - int(time)) > TOLERANCE_SECONDS:
        message = (
            f"The delivery was signed more than {TOLERANCE_SECONDS} seconds before or after now; "
            "are both clocks right?"
        )
        raise ServiceError("stale_delivery", message)
