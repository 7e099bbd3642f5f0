"""The service's own command: python -m app serve."""

from __future__ import annotations

import argparse
import copy
import ipaddress
import os
import signal
import sys
from typing import Any

import uvicorn
import uvicorn.config

from app.main import create_app
from app.settings import PREFIX, Settings, SettingsError, read_settings

# What runs in flight get when the service is told to stop.
GRACE_SECONDS = 30


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m app", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="start the service on HOST and PORT (127.0.0.1:8000)")
    parser.parse_args()
    try:
        settings = read_settings()
        host, port = read_address()
        refuse_open_address(host, settings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    serve(settings, host, port)
    return 0


def read_address() -> tuple[str, int]:
    """Read HOST and PORT.

    Raises:
        SettingsError: PORT is none.
    """
    port = os.environ.get("PORT") or "8000"
    if not port.isdecimal() or int(port) > 65535:
        raise SettingsError(f"PORT={port} cannot be used: it is no number from 0 to 65535.")
    return os.environ.get("HOST") or "127.0.0.1", int(port)


def refuse_open_address(host: str, settings: Settings) -> None:
    """Refuse to serve other machines unless the operator has said so.

    Raises:
        SettingsError: it names both ways out.
    """
    if settings.allow_anonymous or _is_loopback(host):
        return
    raise SettingsError(
        f"HOST={host} can be reached by other machines, and whoever reaches the service may use it. "
        f"Listen on HOST=127.0.0.1, or set {PREFIX}ALLOW_ANONYMOUS=true if that is what you want."
    )


def serve(settings: Settings, host: str, port: int) -> None:
    """Serve until told to stop."""
    # The server raises the signal that stopped it once more: being told to stop is no failure.
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(0))
    uvicorn.run(
        create_app(settings),
        host=host,
        port=port,
        log_config=_log_config(),
        timeout_graceful_shutdown=GRACE_SECONDS,
        server_header=False,
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _log_config() -> dict[str, Any]:
    """Return the server's own logging, with ours beside it on standard error."""
    log_config = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    log_config["loggers"]["app"] = {"handlers": ["default"], "level": "INFO"}
    return log_config


if __name__ == "__main__":
    sys.exit(main())
