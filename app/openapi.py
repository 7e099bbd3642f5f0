"""What OpenAPI says that FastAPI does not see: bodies read as streams, headers, problems, and who may call what."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from fastapi import FastAPI

from app.access import ROUTES
from app.errors import STATUSES
from app.forms import FILE_PART
from app.parameters import CALLBACK, FORMATS, POLICIES, RUN_PARAMETERS

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
    "inspection": {
        "description": "Say what is in the file, as /inspect does, too.",
        "schema": {"type": "boolean", "default": False},
    },
    "callback": {
        "description": "Of a job: the URL that is told when it has ended.",
        "schema": {"type": "string"},
    },
    "format": {
        "description": "The format to answer with; the one that came in where it is absent.",
        "schema": {"type": "string", "enum": list(FORMATS)},
    },
}

_DIGEST = "(RFC 9530): the sha-256 or sha-512 of the body, which is refused where it is another."
_HEADERS: dict[str, str] = {
    "Prefer": "`respond-async` for a job, `wait=N` to wait N seconds for its end first (RFC 7240).",
    "Idempotency-Key": "A text in double quotes; the same request with the same key is the same job.",
    "Want-Repr-Digest": "`sha-256=1` or `sha-512=1` for a Repr-Digest of the answer (RFC 9530).",
    "Content-Digest": f"A digest {_DIGEST}",
    "Repr-Digest": f"A digest {_DIGEST}",
    "Range": "The bytes to answer with, as in `bytes=0-1023` (RFC 9110, 14.2).",
    "If-None-Match": "The entity tag of a result that is there already (RFC 9110, 13.1.2).",
}
BODY_HEADERS = ("Content-Digest", "Repr-Digest")
_EXAMPLES = {
    "Prefer": "respond-async, wait=10",
    "Want-Repr-Digest": "sha-256=1",
    "Range": "bytes=0-99",
}

_REQUEST_ID = {
    "description": "The id of the request, in the log too: the client's own, or a new one.",
    "required": True,
    "schema": {"type": "string"},
}

PROBLEM = {
    "description": "A problem (RFC 9457).",
    "headers": {
        "Retry-After": {
            "description": "Where the same request may succeed later: in how many seconds.",
            "schema": {"type": "integer"},
        },
        "WWW-Authenticate": {
            "description": "With 401 and 403: what kind of token is wanted.",
            "schema": {"type": "string"},
        },
    },
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
                    "error_type": {"type": "string", "enum": list(STATUSES)},
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
    parameters: Collection[str] = RUN_PARAMETERS,
    *,
    headers: Iterable[str] = BODY_HEADERS,
    order: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the part of an operation that says which body and which parameters it takes."""
    content: dict[str, Any] = {
        "application/octet-stream": {"schema": _BYTES},
        # Whom to tell is no field of the form.
        "multipart/form-data": {"schema": _form([p for p in parameters if p != CALLBACK])},
    }
    if order is not None:
        content["application/json"] = {"schema": order}
    in_query = [{"name": name, "in": "query", **_PARAMETERS[name]} for name in parameters]
    return {
        "parameters": [*in_query, *takes_headers(*headers)["parameters"]],
        "requestBody": {"required": True, "content": content},
    }


def takes_headers(*names: str) -> dict[str, Any]:
    """Return the part of an operation that says which headers of a request mean something."""
    return {"parameters": [_header(name) for name in names]}


def _header(name: str) -> dict[str, Any]:
    schema = {"type": "string"}
    declared = {"name": name, "in": "header", "description": _HEADERS[name], "schema": schema}
    return declared | ({"example": _EXAMPLES[name]} if name in _EXAMPLES else {})


def answers(model: Any, description: str) -> dict[int | str, dict[str, Any]]:
    """Return the responses of an operation that answers with a document, or with a problem."""
    return {200: {"model": model, "description": description}, **PROBLEMS}


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


def complete_description(app: FastAPI, *, with_access: bool) -> None:
    """Have the interface's description say what is true of every operation, and which ask for an access token."""
    describe = app.openapi

    def describe_all() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = describe()
            for operations in schema["paths"].values():
                for operation in operations.values():
                    _add_request_ids(operation)
            if with_access:
                _add_access(schema)
        return describe()

    # As FastAPI documents it: what it calls for the description is this attribute.
    app.openapi = describe_all  # type: ignore[method-assign]


def _add_request_ids(operation: dict[str, Any]) -> None:
    for response in operation["responses"].values():
        response["headers"] = {"X-Request-Id": _REQUEST_ID, **response.get("headers", {})}


def _add_access(schema: dict[str, Any]) -> None:
    schemes = schema.setdefault("components", {}).setdefault("securitySchemes", {})
    schemes["token"] = {"type": "http", "scheme": "bearer"}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            scope = ROUTES.get(f"{method.upper()} {path}")
            if scope != "open":
                operation["security"] = [{"token": [scope] if scope else []}]
