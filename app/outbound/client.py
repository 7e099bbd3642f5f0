"""The HTTP client: the address of every connection is looked at after it is made and before a byte is sent.

So it does not matter what a name resolves to when somebody asks before: what counts is whom the socket is
connected to. No proxy of the environment is used, and a redirect is followed by the caller only, who checks
where it leads.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Mapping
from typing import Any

import httpx

from app.errors import ServiceError
from app.outbound.networks import Networks

CONNECT_SECONDS = 10.0
# No answer, or nothing more of one, for so long.
SILENCE_SECONDS = 60.0


def guarded_client(
    networks: Networks,
    *,
    headers: Mapping[str, str] | None = None,
    verify: ssl.SSLContext | bool = True,
    silence_seconds: float = SILENCE_SECONDS,
) -> httpx.AsyncClient:
    """Return a client that connects to allowed addresses only.

    Its requests raise what httpx raises, and ServiceError `address_not_allowed`.
    """

    async def refuse_astray(request: httpx.Request) -> None:
        request.extensions["trace"] = _Guard(networks)

    return httpx.AsyncClient(
        headers={"User-Agent": "migrate-ckpt", **(headers or {})},
        timeout=httpx.Timeout(silence_seconds, connect=CONNECT_SECONDS),
        follow_redirects=False,
        trust_env=False,
        verify=verify,
        event_hooks={"request": [refuse_astray]},
    )


class _Guard:
    """Called at each step of a request; looks at the socket as soon as there is one."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks

    async def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        if event == "connection.connect_unix_socket.started":
            raise _astray()
        if event != "connection.connect_tcp.complete":
            return
        stream = info["return_value"]
        peer = stream.get_extra_info("server_addr")
        # Of IPv6 with its zone, which is none of the address.
        address = ipaddress.ip_address(peer[0].partition("%")[0])
        if not self._networks.allow(address):
            await stream.aclose()
            raise _astray()


def _astray() -> ServiceError:
    # Which address it is would tell of the network that the service stands in.
    return ServiceError(
        "address_not_allowed",
        "The host has an address that this service may not connect to: it is not public, and the "
        "operator has not listed its network in MIGRATE_CKPT_ALLOWED_NETWORKS.",
    )
