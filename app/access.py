"""Who may do what: bearer tokens with scopes, the scope of each route, and the answer to all others."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from fastapi import Request
from starlette.datastructures import Headers
from starlette.routing import compile_path

from app.errors import ServiceError, problem
from app.settings import PREFIX, Settings, SettingsError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Send
    from starlette.types import Scope as ASGIScope

logger = logging.getLogger(__name__)

Scope = Literal["migrate", "read"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

# Every route there is, and the scope that it asks for: whoever adds one decides here who may use it.
# Probes carry no token, and the description of the interface holds no secret.
ROUTES: Mapping[str, Scope | Literal["open"]] = {
    "POST /migrate": "migrate",
    "PUT /migrate/{filename}": "migrate",
    "POST /plan": "migrate",
    "POST /inspect": "migrate",
    # Whoever may send checkpoints may see what became of them; there is one list of jobs for all.
    "POST /jobs": "migrate",
    "GET /jobs": "migrate",
    "GET /jobs/{job_id}": "migrate",
    "DELETE /jobs/{job_id}": "migrate",
    "GET /jobs/{job_id}/result": "migrate",
    "GET /jobs/{job_id}/events": "migrate",
    "GET /jobs/{job_id}/deliveries": "migrate",
    "POST /jobs/{job_id}/deliveries": "migrate",
    "GET /migrations": "read",
    "GET /migrations/{name}": "read",
    "GET /version": "read",
    "GET /metrics": "read",
    # Whoever can sign a delivery may send one; without a secret there is nothing there.
    "POST /hooks/mlflow": "open",
    "POST /hooks/standard": "open",
    "GET /livez": "open",
    "GET /readyz": "open",
    "GET /": "open",
    "GET /page/{asset}": "open",
    "GET /docs": "open",
    "GET /docs/start.js": "open",
    "GET /docs/{asset}": "open",
    "GET /openapi.json": "open",
}

_PATTERNS = [
    (route, method, compile_path(path)[0])
    for route, (method, path) in zip(ROUTES, map(str.split, ROUTES), strict=True)
]

# What a search for leaked secrets can look for.
TOKEN_PREFIX = "mck_"
# Fewer can be tried out.
MIN_TOKEN_CHARACTERS = 20

_ENTRY = re.compile(r"([A-Za-z0-9_.-]{1,64}):([a-z,]+):(?:sha256:([0-9a-fA-F]{64})|([^\s:]+))")
# RFC 6750, 2.1.
_CREDENTIALS = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Token:
    """Somebody's permission; of the token itself only the SHA-256 is kept."""

    name: str
    scopes: frozenset[Scope]
    digest: bytes


class InvalidTokens(Exception):
    """A list of tokens that cannot be used; the message holds no token."""


def read_tokens(text: str) -> tuple[Token, ...]:
    """Read entries `NAME:SCOPES:TOKEN` or `NAME:SCOPES:sha256:HEX`; `#` begins a comment.

    Raises:
        InvalidTokens: something else stands there, a token is too short, or there is none.
    """
    lines = (line.partition("#")[0] for line in text.splitlines())
    tokens = tuple(
        _read_entry(number, entry) for number, line in enumerate(lines, 1) for entry in line.split()
    )
    if not tokens:
        raise InvalidTokens("it lists no token")
    return tokens


def _read_entry(number: int, text: str) -> Token:
    entry = _ENTRY.fullmatch(text)
    if entry is None:
        raise InvalidTokens(
            f"line {number} is not NAME:SCOPES:TOKEN or NAME:SCOPES:sha256:HEX "
            "(python -m app token NAME makes one)"
        )
    name, names, digest, token = entry.groups()
    scopes = frozenset(scope for scope in SCOPES if scope in names.split(","))
    if len(scopes) != len(names.split(",")):
        raise InvalidTokens(f"line {number} has other scopes than {' and '.join(SCOPES)}")
    if digest is not None:
        return Token(name, scopes, bytes.fromhex(digest))
    if len(token) < MIN_TOKEN_CHARACTERS:
        raise InvalidTokens(
            f"the token in line {number} is shorter than {MIN_TOKEN_CHARACTERS} characters"
        )
    return Token(name, scopes, _digest(token))


def new_token(name: str, scopes: str) -> tuple[str, str]:
    """Return a new token and the entry for it, which does not hold it.

    Raises:
        InvalidTokens: the name or the scopes cannot be.
    """
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    entry = f"{name}:{scopes}:sha256:{_digest(token).hex()}"
    read_tokens(entry)
    return token, entry


class Access:
    """The tokens of this service, which may change while it runs; without any, everybody may do everything."""

    def __init__(self, tokens: tuple[Token, ...] = (), *, file: Path | None = None) -> None:
        self._tokens = tokens
        self._file = file
        self._seen = None if file is None else _stamp(file)
        self.problem: str | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Access:
        """Read the tokens that the settings name.

        Raises:
            SettingsError: they cannot be read; the message names the variable, and no token.
        """
        file, listed = settings.tokens_file, settings.tokens
        if file is not None and listed is not None:
            raise SettingsError(f"{PREFIX}TOKENS and {PREFIX}TOKENS_FILE: set one of them.")
        try:
            if file is not None:
                return cls(_read_file(file), file=file)
            if listed is not None:
                return cls(read_tokens(listed.get_secret_value()))
        except InvalidTokens as error:
            variable = "TOKENS" if file is None else f"TOKENS_FILE={file}"
            raise SettingsError(f"{PREFIX}{variable} cannot be used: {error}.") from error
        return cls()

    @property
    def is_open(self) -> bool:
        """Whether no token is asked for."""
        return not self._tokens

    def reload(self) -> None:
        """Read the file again if it has changed; a broken one leaves the tokens as they are."""
        if self._file is None or (stamp := _stamp(self._file)) == self._seen:
            return
        self._seen = stamp
        try:
            self._tokens = _read_file(self._file)
        except InvalidTokens as error:
            self.problem = f"{self._file} cannot be used: {error}; the tokens before it still hold."
            logger.error(self.problem)
        else:
            self.problem = None
            names = ", ".join(token.name for token in self._tokens)
            logger.info("%s has changed; the tokens are now those of: %s", self._file, names)

    def check(
        self, authorization: str | None, needed: Scope | Literal["open"] | None
    ) -> Token | None:
        """Return the token of a request that may go on, None where none is asked for.

        Args:
            authorization: the header of that name.
            needed: what `needed_scope` says.

        Raises:
            ServiceError: there is no such token, or it has not that scope.
        """
        if self.is_open or needed == "open":
            return None
        credentials = _CREDENTIALS.fullmatch(authorization or "")
        if credentials is None:
            message = "Send an access token, as in: Authorization: Bearer TOKEN."
            raise ServiceError("unauthorized", message)
        token = self._find(credentials[1])
        if token is None:
            raise ServiceError("unauthorized", "This access token is none of this service's.")
        if needed is not None and needed not in token.scopes:
            message = f'The token "{token.name}" may not do this: it has not the scope {needed}.'
            raise ServiceError("insufficient_scope", message, scope=needed)
        return token

    def _find(self, presented: str) -> Token | None:
        # All are compared, in constant time: how long it takes says nothing of any of them.
        digest, found = _digest(presented), None
        for token in self._tokens:
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found


class AccessMiddleware:
    """Lets a request in, or answers it before a byte of its body is asked for."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        needed = needed_scope(scope["method"], scope["path"])
        headers = Headers(scope=scope)
        try:
            token = self.access.check(headers.get("authorization"), needed)
        except ServiceError as error:
            request = Request(scope)
            logger.warning("request %s refused: %s", request.state.request_id, error)
            response = problem(request, error.to_dict(), headers=_challenge(error, headers))
            await response(scope, receive, send)
            return
        scope["state"]["token_name"] = token and token.name
        await self.app(scope, receive, send)


def needed_scope(method: str, path: str) -> Scope | Literal["open"] | None:
    """Return the scope that a request needs.

    None means that there is no such route: any token will do, for it gets no further than a 404.
    """
    route = find_route(method, path)
    return None if route is None else ROUTES[route]


def find_route(method: str, path: str) -> str | None:
    """Return the route of a request as `ROUTES` names it, None where there is none."""
    method = "GET" if method == "HEAD" else method
    for route, known, pattern in _PATTERNS:
        if method == known and pattern.match(path):
            return route
    return None


def _challenge(error: ServiceError, headers: Headers) -> dict[str, str]:
    """Return the header that tells a client what to send (RFC 6750, 3)."""
    challenge = 'Bearer realm="migrate-ckpt"'
    if error.error_type == "insufficient_scope":
        challenge += f', error="insufficient_scope", scope="{error.data["scope"]}"'
    elif "authorization" in headers:
        challenge += ', error="invalid_token"'
    return {"WWW-Authenticate": challenge}


def _digest(token: str) -> bytes:
    # Nothing slower is needed: a token is random, and nobody tries out 2**256 of them.
    return hashlib.sha256(token.encode("utf-8")).digest()


def _read_file(file: Path) -> tuple[Token, ...]:
    try:
        return read_tokens(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidTokens(f"it cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InvalidTokens("it is no UTF-8 text") from error


def _stamp(file: Path) -> tuple[int, ...] | None:
    """Return what changes when the file does, also when a link on the way to it is set anew."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns
