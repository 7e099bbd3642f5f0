"""What MLflow 3 tells of (mlflow/webhooks/types.py), and which of it is a version to migrate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.errors import ServiceError
from app.hooks.receiving import Ignored
from app.jobs.model_tags import MIGRATED_FROM
from app.registry.versions import ModelVersion

# What `MlflowClient.test_webhook` sends: nothing in it is there, and nothing says so.
TEST_NAME = "example_model"
TEST_SOURCES = ("models:/123", "runs:/abcd1234abcd5678/model")


def read_event(said: Mapping[str, Any]) -> ModelVersion:
    """Return the version that a delivery tells of, where it is one to migrate.

    Raises:
        Ignored: it tells of something else, is a test, or of a version that we have made.
        ServiceError: it is not what MLflow sends.
    """
    event = f"{said.get('entity')}.{said.get('action')}"
    if event != "model_version.created":
        raise Ignored(f"{event} asks for nothing.")
    data = said.get("data")
    if not isinstance(data, dict) or not _is_version(data):
        message = 'Its "data" has no "name" and "version" of a model version.'
        raise ServiceError("malformed_delivery", message)
    if data["name"] == TEST_NAME and data.get("source") in TEST_SOURCES:
        raise Ignored("It is MLflow's test, and has arrived.")
    tags = data.get("tags")
    if isinstance(tags, dict) and MIGRATED_FROM in tags:
        raise Ignored(f"Version {data['version']} was made by a migration.")
    return ModelVersion(data["name"], str(data["version"]))


def _is_version(data: Mapping[str, Any]) -> bool:
    name, version = data.get("name"), data.get("version")
    return isinstance(name, str) and bool(name) and str(version).isdecimal()


def sample(name: str = TEST_NAME) -> dict[str, Any]:
    """Return what MLflow sends to try a webhook out."""
    return {
        "entity": "model_version",
        "action": "created",
        "timestamp": "2025-07-31T08:27:32.080217+00:00",
        "data": {
            "name": name,
            "version": "1",
            "source": TEST_SOURCES[0],
            "run_id": "abcd1234abcd5678",
            "tags": {"example_key": "example_value"},
            "description": "An example model version",
        },
    }
