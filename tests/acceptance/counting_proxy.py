"""A proxy on loopback that counts the bytes that go through it, each way."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass
class Counted:
    """What went through since it was set to zero.

    Attributes:
        url: Where the proxy listens.
        sent: Bytes from the client to the server.
        received: Bytes from the server to the client.
    """

    url: str = ""
    sent: int = 0
    received: int = 0

    def reset(self) -> None:
        self.sent = self.received = 0


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


@contextlib.contextmanager
def counting_proxy(endpoint: str) -> Iterator[Counted]:
    """Stand before a server as long as the block lasts."""
    counted = Counted()
    target = urlsplit(endpoint)

    def relay(one: socket.socket, other: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(2**18):
                setattr(counted, way, getattr(counted, way) + len(data))
                other.sendall(data)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_WR)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((target.hostname or "", target.port or 0)) as there:
                back = threading.Thread(target=relay, args=(there, self.request, "received"))
                back.start()
                relay(self.request, there, "sent")
                back.join()

    with _Server(("127.0.0.1", 0), Handler) as server:
        counted.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield counted
        finally:
            server.shutdown()
