"""Every error answer: the status of each error_type, and where exceptions become problems.

    ServiceError              a request the service itself refuses, or cannot carry out
    └── RunFailed             what a run in the sandbox came to instead of a result

The library's errors keep their own error_type. A problem is RFC 9457's application/problem+json.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route

from app.ascii_json import AsciiJSONResponse
from app.security_headers import SECURITY_HEADERS
from migrate_ckpt import MigrateCkptError

logger = logging.getLogger(__name__)

# 4xx: mend the request, the checkpoint or the migration. 5xx: the same request may succeed later.
STATUSES: Mapping[str, int] = {
    "bad_request": 400,
    "unknown_parameter": 400,
    "invalid_parameter": 400,
    "malformed_upload": 400,
    "malformed_range": 400,
    "no_file": 400,
    "invalid_order": 400,
    "invalid_location": 400,
    "several_files": 400,
    "empty_file": 400,
    "invalid_digest": 400,
    "digest_mismatch": 400,
    "stale_delivery": 400,
    "malformed_delivery": 400,
    "unauthorized": 401,
    "bad_signature": 401,
    "insufficient_scope": 403,
    "source_not_allowed": 403,
    "destination_not_allowed": 403,
    "address_not_allowed": 403,
    "callback_not_allowed": 403,
    "not_found": 404,
    "unknown_set": 404,
    "unknown_job": 404,
    "method_not_allowed": 405,
    "not_acceptable": 406,
    "upload_stalled": 408,
    "job_not_ended": 409,
    "cancelled": 409,
    "result_delivered": 409,
    "no_callback": 409,
    "destination_exists": 409,
    "result_expired": 410,
    "too_large": 413,
    "unsupported_encoding": 415,
    "range_not_satisfiable": 416,
    "not_a_checkpoint": 422,
    "unsafe_pickle": 422,
    "bomb": 422,
    "refused_globals": 422,
    "unwritable": 422,
    "history": 422,
    "invalid_history": 422,
    "incompatible_history": 422,
    "unknown_migration": 422,
    "migration_failed": 422,
    "requirements_not_met": 422,
    "manifest_not_met": 422,
    "operation_failed": 422,
    "section_not_found": 422,
    "keys_not_found": 422,
    "incomplete_group": 422,
    "key_collision": 422,
    "not_invertible": 422,
    "optimizer_not_followed": 422,
    "foreign_object": 422,
    "out_of_memory": 422,
    "too_much_output": 422,
    "too_many_processes": 422,
    "crashed": 422,
    "given_up": 422,
    "upload_lost": 422,
    "key_reused": 422,
    "source_not_found": 422,
    "source_refused": 422,
    "source_changed": 422,
    "destination_not_found": 422,
    "destination_refused": 422,
    "registry_not_found": 422,
    "registry_refused": 422,
    "registry_unloadable": 422,
    "internal": 500,
    "invalid_folder": 500,
    "invalid_migration": 500,
    "invalid_manifest": 500,
    "invalid_fixture": 500,
    "order_mismatch": 500,
    "no_jobs": 501,
    "sandbox_lost": 503,
    "jobs_unavailable": 503,
    "results_unavailable": 503,
    "not_ready": 503,
    "queue_full": 503,
    "stopping": 503,
    "migrations_changed": 503,
    "registry_unavailable": 502,
    "source_unavailable": 502,
    "destination_unavailable": 502,
    "timeout": 504,
    "no_space": 507,
}

_HTTP_ERRORS = {
    404: ("not_found", "There is nothing at {path}; /docs lists what there is."),
    405: ("method_not_allowed", "{path} does not answer {method}; the Allow header says what."),
}

# Facts of the error that no problem repeats: they have members of their own.
_OWN_MEMBERS = ("error_type", "message", "retryable")


class ServiceError(Exception):
    """A request that the service refuses or cannot carry out; the data goes into the problem."""

    def __init__(
        self, error_type: str, message: str, *, retryable: bool = False, **data: object
    ) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.retryable = retryable
        self.data = data

    def to_dict(self) -> dict[str, Any]:
        """Return the same members as the library's errors have."""
        return {
            "error_type": self.error_type,
            "message": str(self),
            "retryable": self.retryable,
            **self.data,
        }


class RunFailed(ServiceError):
    """A run came to an error, or was ended before it came to anything."""

    @classmethod
    def from_dict(cls, error: Mapping[str, Any]) -> RunFailed:
        """Make one from what the sandbox wrote down."""
        data = {name: value for name, value in error.items() if name not in _OWN_MEMBERS}
        return cls(
            error["error_type"], error["message"], retryable=bool(error["retryable"]), **data
        )


def problem(
    request: Request, error: Mapping[str, Any], *, headers: Mapping[str, str] | None = None
) -> Response:
    """Answer with what a `to_dict` of an error says."""
    # For the log and the metrics.
    request.state.error = error
    status = HTTPStatus(STATUSES.get(error["error_type"], 500))
    body = {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        "detail": error["message"],
        "instance": request.url.path,
        "error_type": error["error_type"],
        "retryable": error["retryable"],
        "request_id": request.state.request_id,
        **{name: value for name, value in error.items() if name not in _OWN_MEMBERS},
    }
    if "retry_after" in error:
        headers = {**(headers or {}), "Retry-After": str(error["retry_after"])}
    # Set here too: an answer to an unforeseen exception passes no middleware of ours.
    headers = {**(headers or {}), **SECURITY_HEADERS, "X-Request-Id": request.state.request_id}
    return AsciiJSONResponse(body, status.value, headers, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    """Make every error of this application a problem."""
    app.add_exception_handler(ServiceError, _answer_known)
    app.add_exception_handler(MigrateCkptError, _answer_known)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    app.add_exception_handler(Exception, _answer_unforeseen)


async def _answer_known(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError | MigrateCkptError)
    return problem(request, error.to_dict())


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code in _HTTP_ERRORS:
        error_type, template = _HTTP_ERRORS[error.status_code]
        message = template.format(method=request.method, path=request.url.path)
    else:
        error_type, message = "bad_request", error.detail
    headers = error.headers
    if error.status_code == 405:
        headers = {**(headers or {}), "Allow": ", ".join(_methods_of(request))}
    return problem(request, ServiceError(error_type, message).to_dict(), headers=headers)


def _methods_of(request: Request) -> list[str]:
    """Return every method that the path answers; the router names those of its first route only."""
    app: FastAPI = request.app
    routes = [route for route in app.routes if isinstance(route, Route)]
    there = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in there for method in route.methods or ()})


async def _answer_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # The text of the error itself names our source files.
    wrong = [f'The parameter "{found["loc"][-1]}": {found["msg"]}.' for found in error.errors()]
    return problem(request, ServiceError("invalid_parameter", " ".join(wrong)).to_dict())


async def _answer_nobody(request: Request, error: Exception) -> Response:
    """Answer a client that has gone: the server sends nothing of it."""
    logger.info("request %s: the client has gone", request.state.request_id)
    return Response(status_code=499)


async def _answer_unforeseen(request: Request, error: Exception) -> Response:
    logger.error("request %s failed unforeseen", request.state.request_id)
    message = "The service failed; its log has the reason under this request_id."
    return problem(request, ServiceError("internal", message, retryable=True).to_dict())
