"""Each sender's signature, by its published or recomputed vector; and what is taken for none."""

from __future__ import annotations

import json

import pytest

from app.errors import ServiceError
from app.hooks.mlflow import sample
from app.hooks.signatures import (
    DATABRICKS,
    HUGGING_FACE,
    MLFLOW,
    STANDARD,
    WANDB,
    Scheme,
    verify,
)

MLFLOW_BODY = json.dumps(sample()).encode()
WANDB_BODY = b'{"event_type":"LINK_ARTIFACT"}'
VECTORS = {
    "mlflow": (
        MLFLOW,
        "test-secret-key",
        {
            "X-MLflow-Delivery-Id": "7c1f0b0e-6a52-4a54-9d1f-3a3f5c1f9f10",
            "X-MLflow-Timestamp": "1753950452",
            "X-MLflow-Signature": "v1,cRYN41zbOrv+3qEjnvN59SJNKq/SCaoqSERvR4M4wg4=",
        },
        MLFLOW_BODY,
    ),
    "standard": (
        STANDARD,
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        {
            "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "webhook-timestamp": "1614265330",
            "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        },
        b'{"test": 2432232314}',
    ),
    "wandb": (
        WANDB,
        "test-secret-key",
        {"X-Wandb-Signature": "/sioWhuX3wLBafd0A4Lf19xe4uFUta+NjZ/PhfQIuWc="},
        WANDB_BODY,
    ),
    "databricks": (
        DATABRICKS,
        "test-secret-key",
        {
            "X-Databricks-Signature": "fec8a85a1b97df02c169f7740382dfd7dc5ee2e154b5af8d8d9fcf85f408b967"
        },
        WANDB_BODY,
    ),
    "hugging face": (HUGGING_FACE, "the-secret", {"X-Webhook-Secret": "the-secret"}, b"{}"),
}
TIMED = ("mlflow", "standard")


def now_of(name: str) -> float:
    scheme, _, headers, _ = VECTORS[name]
    return float(headers[scheme.time_header]) if scheme.time_header else 0.0


def check(
    name: str, *, body: bytes | None = None, seconds: float = 0.0, secrets: tuple[str, ...] = ()
) -> str:
    scheme, secret, headers, signed = VECTORS[name]
    return verify(
        scheme,
        secrets or (secret,),
        headers,
        signed if body is None else body,
        now=now_of(name) + seconds,
    )


def test_sample_is_byte_for_byte_the_one_that_the_vector_was_made_of() -> None:
    # As MLflow's test sends it, with the standard library's separators.
    assert len(MLFLOW_BODY) == 288


@pytest.mark.parametrize("name", VECTORS)
def test_genuine_delivery_is_taken_and_its_id_told(name: str) -> None:
    scheme, _, headers, _ = VECTORS[name]

    assert check(name) == (headers[scheme.id_header] if scheme.id_header else "")


@pytest.mark.parametrize("name", VECTORS)
def test_one_of_two_secrets_is_enough(name: str) -> None:
    secret = VECTORS[name][1]
    other = "whsec_" + "A" * 32

    assert check(name, secrets=(other, secret)) == check(name, secrets=(secret, other))
    with pytest.raises(ServiceError) as caught:
        check(name, secrets=(other,))
    assert caught.value.error_type == "bad_signature"


@pytest.mark.parametrize("name", [name for name in VECTORS if name != "hugging face"])
def test_body_that_was_touched_is_refused(name: str) -> None:
    body = VECTORS[name][3]

    with pytest.raises(ServiceError) as caught:
        check(name, body=body + b" ")

    assert caught.value.error_type == "bad_signature"


@pytest.mark.parametrize("name", TIMED)
@pytest.mark.parametrize("seconds", [-301, 301, 10**9])
def test_what_was_signed_at_another_time_is_stale(name: str, seconds: float) -> None:
    assert check(name, seconds=299) == check(name, seconds=-299)

    with pytest.raises(ServiceError) as caught:
        check(name, seconds=seconds)

    assert caught.value.error_type == "stale_delivery"


@pytest.mark.parametrize("name", VECTORS)
def test_missing_header_is_refused(name: str) -> None:
    scheme, secret, headers, body = VECTORS[name]

    for missing in headers:
        fewer = {key: value for key, value in headers.items() if key != missing}
        with pytest.raises(ServiceError) as caught:
            verify(scheme, (secret,), fewer, body, now=now_of(name))
        assert caught.value.error_type == "bad_signature"


def test_one_of_several_signatures_is_enough() -> None:
    scheme, secret, headers, body = VECTORS["standard"]
    several = {**headers, "webhook-signature": "v1,no v1a,other " + headers["webhook-signature"]}

    assert verify(scheme, (secret,), several, body, now=now_of("standard"))


@pytest.mark.parametrize("time", ["", "now", "1e9", "-5", "1" * 40, "١٢٣"])
def test_time_that_is_none_is_refused(time: str) -> None:
    body = b"{}"
    headers = {
        "webhook-id": "a",
        "webhook-timestamp": time,
        "webhook-signature": STANDARD.sign(
            VECTORS["standard"][1], body=body, delivery_id="a", time=time
        ),
    }

    with pytest.raises(ServiceError) as caught:
        verify(STANDARD, (VECTORS["standard"][1],), headers, body, now=1e9)

    assert caught.value.error_type in ("bad_signature", "stale_delivery")


def test_old_form_of_mlflow_is_not_taken() -> None:
    # sha256=HEX over the body alone, as before its first release: it can be sent again for ever.
    plain = Scheme("X-MLflow-Signature", lambda digest: f"sha256={digest.hex()}")
    signature = plain.sign("test-secret-key", body=MLFLOW_BODY)
    headers = {**VECTORS["mlflow"][2], "X-MLflow-Signature": signature}

    with pytest.raises(ServiceError):
        verify(MLFLOW, ("test-secret-key",), headers, MLFLOW_BODY, now=now_of("mlflow"))
