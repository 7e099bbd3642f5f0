"""Receives callbacks of migrate-ckpt: checks their signatures and prints each message once.

Standard library only, to run as it is or to copy `verify` from:

    CALLBACK_SECRET=whsec_… python docs/receiver.py 9000
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

TOLERANCE_SECONDS = 300
MAX_DIGITS = 12
MAX_BODY_BYTES = 2**20
REMEMBERED_IDS = 10_000


class NotGenuine(Exception):
    """A message that none of our secrets has signed, or that is too old or too new."""


def verify(secrets: Iterable[str], headers: Mapping[str, str], body: bytes, *, now: float) -> str:
    """Return the id of a message that one of the secrets has signed (Standard Webhooks 1.0.0).

    Args:
        secrets: `whsec_` and base64; several while one is replaced.
        headers: of the request; the names are compared as the mapping does.
        body: as it was received, not parsed and written anew.
        now: seconds since 1970.

    Raises:
        NotGenuine: nobody who knows a secret has sent it within the last five minutes.
    """
    message_id = headers.get("webhook-id") or ""
    timestamp = headers.get("webhook-timestamp") or ""
    is_number = timestamp.isascii() and timestamp.isdecimal() and len(timestamp) <= MAX_DIGITS
    if not message_id or not is_number:
        raise NotGenuine("It has no webhook-id, or no webhook-timestamp.")
    if abs(now - int(timestamp)) > TOLERANCE_SECONDS:
        raise NotGenuine("It is too old or too new; are both clocks right?")
    signed = f"{message_id}.{timestamp}.".encode() + body
    given = (headers.get("webhook-signature") or "").encode().split()
    is_genuine = False
    for secret in secrets:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        expected = b"v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256))
        for signature in given:
            # How long it takes says nothing of how much of it is right.
            is_genuine |= hmac.compare_digest(expected, signature)
    if not is_genuine:
        raise NotGenuine("None of its signatures is made with a secret of ours.")
    return message_id


class Receiver(http.server.BaseHTTPRequestHandler):
    secrets: ClassVar[tuple[str, ...]] = ()
    seen: ClassVar[OrderedDict[str, None]] = OrderedDict()
    timeout = 30

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            self._answer(413)
            return
        body = self.rfile.read(int(length))
        try:
            message_id = verify(self.secrets, self.headers, body, now=time.time())
        except NotGenuine as error:
            print(f"refused: {error}", file=sys.stderr, flush=True)
            self._answer(401)
            return
        # A message comes again where our answer to it was lost.
        if message_id not in self.seen:
            self.seen[message_id] = None
            if len(self.seen) > REMEMBERED_IDS:
                self.seen.popitem(last=False)
            print(body.decode(), flush=True)
        self._answer(204)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing of requests: what is printed are the messages."""


def main() -> None:
    Receiver.secrets = tuple(os.environ.get("CALLBACK_SECRET", "").split())
    if not Receiver.secrets or len(sys.argv) != 2:
        sys.exit("Usage: CALLBACK_SECRET=whsec_… python docs/receiver.py PORT")
    with http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver) as server:
        print(f"Listening on http://127.0.0.1:{server.server_port}/", file=sys.stderr, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
