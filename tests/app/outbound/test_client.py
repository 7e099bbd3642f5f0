"""The service connects to allowed addresses only, whatever names and redirects say."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from app.errors import ServiceError
from app.outbound.client import guarded_client
from app.outbound.networks import Networks

LOOPBACK = Networks([ipaddress.ip_network("127.0.0.0/8")])


@pytest.mark.parametrize(
    "text",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0"),
        *("100.64.0.1", "192.88.99.1", "198.18.0.1", "203.0.113.5", "224.0.0.1", "255.255.255.255"),
        *("::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
        *("2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:7f00:1::"),
        # What Python takes for global: site-local, IPv4 in disused forms, another's translator, routes, examples.
        *("fec0::1", "::127.0.0.1", "::ffff:0:7f00:1", "64:ff9b:1:7f00:0:1:808:808"),
        *("5f00::1", "3fff::1", "4000::1"),
    ],
)
def test_address_that_is_not_public_is_refused(text: str) -> None:
    assert not Networks().allow(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_address_is_allowed(text: str) -> None:
    assert Networks().allow(ipaddress.ip_address(text))


def test_listed_network_is_allowed_and_no_other() -> None:
    networks = Networks([ipaddress.ip_network("10.0.0.0/8")])

    assert networks.allow(ipaddress.ip_address("10.9.9.9"))
    assert networks.allow(ipaddress.ip_address("::ffff:10.9.9.9"))
    assert not networks.allow(ipaddress.ip_address("127.0.0.1"))


@dataclass
class Server:
    """Answers one connection; `received` is what came over it."""

    listener: socket.socket
    received: bytes = b""

    def serve(self) -> None:
        connection, _ = self.listener.accept()
        with connection:
            self.received = connection.recv(1000)
            if self.received:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")


def exchange(networks: Networks, host: str = "127.0.0.1", **options: Any) -> tuple[Server, Any]:
    """Send a request to a server of our own; return the server, and the answer or what was raised."""

    async def get(url: str) -> Any:
        async with guarded_client(networks, **options) as client:
            try:
                return await client.get(url)
            except (ServiceError, httpx.HTTPError) as error:
                return error

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        server = Server(listener)
        serving = threading.Thread(target=server.serve)
        serving.start()
        answer = asyncio.run(get(f"http://{host}:{listener.getsockname()[1]}/"))
        serving.join(30)
    return server, answer


def test_allowed_network_is_answered() -> None:
    server, answer = exchange(LOOPBACK)

    assert answer.text == "hi"
    assert b"User-Agent: migrate-ckpt" in server.received


def test_not_a_byte_goes_to_an_address_that_is_not_allowed() -> None:
    server, error = exchange(Networks())

    assert error.error_type == "address_not_allowed"
    assert server.received == b""


@pytest.fixture
def rebinding(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A name that is public when it is asked for first, and this machine's own from then on."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name == "rebinding.example":
            asked.append("8.8.8.8" if not asked else "127.0.0.1")
            return real(asked[-1], *arguments, **options)
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return asked


def test_name_that_resolves_to_something_else_the_second_time_gains_nothing(
    rebinding: list[str],
) -> None:
    # As one would check it before: it is public.
    assert socket.getaddrinfo("rebinding.example", 80)[0][4][0] == "8.8.8.8"

    server, error = exchange(Networks(), host="rebinding.example")

    assert rebinding[-1] == "127.0.0.1"
    assert error.error_type == "address_not_allowed"
    assert server.received == b""


def test_network_of_an_own_translator_is_allowed_where_it_is_listed() -> None:
    networks = Networks([ipaddress.ip_network("64:ff9b:1::/48")])

    assert networks.allow(ipaddress.ip_address("64:ff9b:1:7f00:0:1:808:808"))
    assert not networks.allow(ipaddress.ip_address("fec0::1"))


def test_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")

    _, answer = exchange(LOOPBACK)

    assert answer.text == "hi"
