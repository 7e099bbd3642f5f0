"""Deliveries as their senders sign them: to try a service out, and to make up for those that did not arrive."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

import httpx

from app.hooks import mlflow, standard
from app.hooks.signatures import MLFLOW, STANDARD, Scheme
from app.jobs.model_tags import STATUS
from app.registry.mlflow import MlflowClient
from app.registry.reconciling import UNSUCCESSFUL, unseen
from app.settings import PREFIX, Settings, SettingsError

SECONDS = 30.0


def send_sample(settings: Settings, kind: str, url: str) -> tuple[bool, str]:
    """Send a signed sample to a running service; return whether it was taken, and what was answered.

    Raises:
        SettingsError: there is no secret to sign it with.
    """
    if kind == "mlflow":
        scheme, said = MLFLOW, mlflow.sample()
        secret = _first(settings.mlflow_secrets, "MLFLOW_SECRET")
    else:
        scheme, said = STANDARD, standard.sample()
        secret = _first(settings.hook_secrets, "HOOK_SECRET")
    is_taken, answer, _ = _send(scheme, secret, f"{url}/hooks/{kind}", said)
    return is_taken, answer


async def send_unseen(
    settings: Settings, url: str, *, with_failed: bool
) -> list[tuple[str, bool, str]]:
    """Tell a running service of each version that it was never told of; return what became of each.

    Raises:
        SettingsError: there is no registry, or no secret to sign with.
        ServiceError: the registry does not answer.
    """
    if settings.mlflow_url is None:
        raise SettingsError(f"There is nothing to reconcile with: set {PREFIX}MLFLOW_URL.")
    secret = _first(settings.mlflow_secrets, "MLFLOW_SECRET")
    client = MlflowClient(str(settings.mlflow_url))
    found = []
    try:
        async for version, _ in unseen(client, settings, with_failed=with_failed):
            said = mlflow.sample(version.name)
            said["data"] |= {"version": version.version, "source": str(version), "tags": {}}
            if STATUS in version.tags:
                said["again"] = str(uuid.uuid4())
            is_taken, answer, status = _send(MLFLOW, secret, f"{url}/hooks/mlflow", said)
            if status in UNSUCCESSFUL:
                # A job of it has failed, and could not even say so in the registry.
                said["again"] = str(uuid.uuid4())
                is_taken, answer, _ = _send(MLFLOW, secret, f"{url}/hooks/mlflow", said)
            found.append((str(version), is_taken, answer))
    finally:
        await client.close()
    return found


def _send(
    scheme: Scheme, secret: str, url: str, said: Mapping[str, Any]
) -> tuple[bool, str, str | None]:
    """Send a delivery; return whether it was taken, the answer, and the status of the job that it is."""
    body = json.dumps(said).encode()
    delivery_id, now = str(uuid.uuid4()), str(int(time.time()))
    assert scheme.id_header is not None
    assert scheme.time_header is not None
    headers = {
        "Content-Type": "application/json",
        scheme.id_header: delivery_id,
        scheme.time_header: now,
        scheme.signature_header: scheme.sign(secret, body=body, delivery_id=delivery_id, time=now),
    }
    try:
        answer = httpx.post(url, content=body, headers=headers, timeout=SECONDS)
    except httpx.HTTPError as error:
        return False, f"{url} cannot be reached: {error}", None
    status = answer.json()["status"] if answer.is_success else None
    return answer.is_success, f"{answer.status_code} {answer.text}", status


def _first(secrets: tuple[str, ...], name: str) -> str:
    if not secrets:
        raise SettingsError(f"There is nothing to sign with: set {PREFIX}{name}.")
    return secrets[0]
