"""What OpenAPI says of the routes that take a checkpoint: they read the body as a stream, so it is declared by hand."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fastapi import FastAPI

from app.access import ROUTES
from app.forms import FILE_PART
from app.parameters import FORMATS, POLICIES, RUN_PARAMETERS

_BYTES = {"type": "string", "format": "binary"}

_PARAMETERS: dict[str, dict[str, Any]] = {
    "set": {
        "description": "Which set of migrations to run.",
        "schema": {"type": "string", "default": "default"},
    },
    "to": {
        "description": "The migration to stop after.",
        "schema": {"type": "string"},
    },
    "policy": {
        "description": "What becomes of migrations that were missed; the operator's choice where it is absent.",
        "schema": {"type": "string", "enum": list(POLICIES)},
    },
    "allow_unknown_history": {
        "description": "Go on although the checkpoint's history names none of the set's migrations.",
        "schema": {"type": "boolean", "default": False},
    },
    "changes": {
        "description": "Try the migrations out, and say for each what it would add, remove, change and rename.",
        "schema": {"type": "boolean", "default": False},
    },
    "format": {
        "description": "The format to answer with; the one that came in where it is absent.",
        "schema": {"type": "string", "enum": list(FORMATS)},
    },
}

PROBLEM = {
    "description": "A problem (RFC 9457).",
    "content": {
        "application/problem+json": {
            "schema": {
                "type": "object",
                "required": [
                    *("type", "title", "status", "detail", "instance"),
                    *("error_type", "retryable", "request_id"),
                ],
                "properties": {
                    "type": {"type": "string"},
                    "title": {"type": "string"},
                    "status": {"type": "integer"},
                    "detail": {"type": "string"},
                    "instance": {"type": "string"},
                    "error_type": {"type": "string"},
                    "retryable": {"type": "boolean"},
                    "request_id": {"type": "string"},
                    "migration": {"type": "string"},
                    "position": {"type": "integer"},
                    "count": {"type": "integer"},
                },
            }
        }
    },
}

PROBLEMS: dict[int | str, dict[str, Any]] = {"4XX": PROBLEM, "5XX": PROBLEM}


def takes_checkpoint(
    parameters: Collection[str] = RUN_PARAMETERS, *, is_form_allowed: bool = True
) -> dict[str, Any]:
    """Return the part of an operation that says which body and which parameters it takes."""
    content: dict[str, Any] = {"application/octet-stream": {"schema": _BYTES}}
    if is_form_allowed:
        content["multipart/form-data"] = {"schema": _form(parameters)}
    return {
        "parameters": [{"name": name, "in": "query", **_PARAMETERS[name]} for name in parameters],
        "requestBody": {"required": True, "content": content},
    }


def _form(parameters: Collection[str]) -> dict[str, Any]:
    fields = {
        name: {**_PARAMETERS[name]["schema"], "description": _PARAMETERS[name]["description"]}
        for name in parameters
    }
    return {
        "type": "object",
        "required": [FILE_PART],
        "properties": {FILE_PART: _BYTES, **fields},
    }


def declare_access(app: FastAPI) -> None:
    """Have the interface's description say which operations ask for an access token, and for which scope."""
    describe = app.openapi

    def describe_with_access() -> dict[str, Any]:
        if app.openapi_schema is None:
            _add_access(describe())
        return describe()

    # As FastAPI documents it: what it calls for the description is this attribute.
    app.openapi = describe_with_access  # type: ignore[method-assign]


def _add_access(schema: dict[str, Any]) -> None:
    schemes = schema.setdefault("components", {}).setdefault("securitySchemes", {})
    schemes["token"] = {"type": "http", "scheme": "bearer"}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            scope = ROUTES.get(f"{method.upper()} {path}")
            if scope != "open":
                operation["security"] = [{"token": [scope] if scope else []}]
