"""The service's own commands: python -m app serve and worker, and for its operator token, reconcile and hook-test."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import os
import sys
import threading
import time

import uvicorn

from app.access import SCOPES, InvalidTokens, new_token
from app.errors import ServiceError
from app.instance import instance_folder
from app.jobs.opening import Role
from app.logs import log_config
from app.main import create_app
from app.sandbox import Sandbox
from app.server import Server
from app.settings import PREFIX, Settings, SettingsError, read_settings
from migrate_ckpt import FolderError, read_sets

# What threads that have something to end yet are given for it.
LAST_THREADS_SECONDS = 2.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m app", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="start the service on HOST and PORT (127.0.0.1:8000)")
    commands.add_parser(
        "worker",
        help="carry out the jobs of a database that is shared; probes and metrics on HOST and PORT (a free one)",
    )
    token = commands.add_parser(
        "token", help="make an access token: the line for the service's list on standard output"
    )
    token.add_argument("name", metavar="NAME", help="whose it is, as the log will call them")
    token.add_argument("--scopes", default=",".join(SCOPES), help="what it allows (%(default)s)")
    reconciling = commands.add_parser(
        "reconcile", help="tell a running service of the MLflow versions that it was never told of"
    )
    reconciling.add_argument(
        "--with-failed", action="store_true", help="and of those whose migration failed"
    )
    test = commands.add_parser("hook-test", help="send a signed sample to a running service")
    test.add_argument("kind", choices=["mlflow", "standard"], help="as whose it is signed")
    for command in (reconciling, test):
        command.add_argument(
            "--url", default="http://127.0.0.1:8000", help="of the service (%(default)s)"
        )
    arguments = parser.parse_args()
    try:
        if arguments.command == "token":
            print_new_token(arguments.name, arguments.scopes)
        elif arguments.command == "hook-test":
            return test_hook(arguments.kind, arguments.url)
        elif arguments.command == "reconcile":
            return reconcile(arguments.url, with_failed=arguments.with_failed)
        else:
            serve(arguments.command)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def print_new_token(name: str, scopes: str) -> None:
    """Print the line for the list on standard output, and the token itself beside it.

    Raises:
        SettingsError: the name or the scopes cannot be.
    """
    try:
        token, entry = new_token(name, scopes)
    except InvalidTokens as error:
        raise SettingsError(
            f"{name}:{scopes} cannot be: a name is 1 to 64 letters, digits, dots, dashes and "
            f"underscores; scopes are {','.join(SCOPES)} or one of them."
        ) from error
    print(entry)
    print(
        f"The token, to be kept by whoever uses it; it is stored nowhere:\n{token}", file=sys.stderr
    )


def test_hook(kind: str, url: str) -> int:
    """Send a signed sample and print what is answered; 1 where it is not taken.

    Raises:
        SettingsError: there is nothing to sign it with.
    """
    from app.hooks.sending import send_sample

    is_taken, answer = send_sample(read_settings(), kind, url.rstrip("/"))
    print(answer, file=sys.stdout if is_taken else sys.stderr)
    return 0 if is_taken else 1


def reconcile(url: str, *, with_failed: bool) -> int:
    """Tell the service of what it was never told, and print a line for each; 1 where one is not taken.

    Raises:
        SettingsError: there is no registry, or nothing to sign with.
    """
    from app.hooks.sending import send_unseen

    try:
        found = asyncio.run(send_unseen(read_settings(), url.rstrip("/"), with_failed=with_failed))
    except ServiceError as error:
        print(error, file=sys.stderr)
        return 1
    for version, is_taken, answer in found:
        print(f"{version}: {answer}", file=sys.stdout if is_taken else sys.stderr)
    print(f"{len(found)} versions were never seen.", file=sys.stderr)
    return 0 if all(is_taken for _, is_taken, _ in found) else 1


def read_address(default_port: int) -> tuple[str, int]:
    """Read HOST and PORT.

    Raises:
        SettingsError: PORT is none.
    """
    port = os.environ.get("PORT") or str(default_port)
    if not port.isdecimal() or int(port) > 65535:
        raise SettingsError(f"PORT={port} cannot be used: it is no number from 0 to 65535.")
    return os.environ.get("HOST") or "127.0.0.1", int(port)


def refuse_open_address(host: str, settings: Settings) -> None:
    """Refuse to serve other machines unless the operator has said so.

    Raises:
        SettingsError: it names both ways out.
    """
    has_tokens = settings.tokens is not None or settings.tokens_file is not None
    if has_tokens or settings.allow_anonymous or _is_loopback(host):
        return
    raise SettingsError(
        f"HOST={host} can be reached by other machines, and whoever reaches the service may use it. "
        f"List access tokens in {PREFIX}TOKENS_FILE, listen on HOST=127.0.0.1, or set "
        f"{PREFIX}ALLOW_ANONYMOUS=true if that is what you want."
    )


def check_migrations(settings: Settings) -> None:
    """Refuse a folder that the service could not serve, before anything is started for it.

    Raises:
        SettingsError: what is wrong in the folder.
    """
    try:
        read_sets(settings.migrations_folder)
    except FolderError as error:
        folder = settings.migrations_folder
        raise SettingsError(
            f"{PREFIX}MIGRATIONS_FOLDER={folder} cannot be used: {error}"
        ) from error


def check_sandbox(settings: Settings) -> None:
    """Refuse a machine that lacks a layer of the sandbox, where all are required.

    Raises:
        SettingsError: it names the layer.
    """
    if settings.sandbox != "required":
        return
    try:
        with instance_folder(settings.scratch_folder) as folder:
            asyncio.run(_try_sandbox(Sandbox.from_settings(settings, folder)))
    except ServiceError as error:
        raise SettingsError(f"{PREFIX}SANDBOX=required cannot be met here: {error}") from error


async def _try_sandbox(sandbox: Sandbox) -> None:
    await sandbox.start()
    await sandbox.stop()


def serve(role: Role) -> None:
    """Serve, or carry out jobs, until told to stop.

    Raises:
        SettingsError: a setting cannot be used.
    """
    settings = read_settings()
    # Of workers there may be many on a machine.
    host, port = read_address(8000 if role == "serve" else 0)
    refuse_open_address(host, settings)
    check_migrations(settings)
    check_sandbox(settings)
    app = create_app(settings, role)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        # A line for each request is ours to write.
        access_log=False,
        log_config=log_config(settings.log_format, settings.log_level),
        server_header=False,
    )
    grace_seconds = settings.shutdown_grace_seconds
    Server(config, admission=app.state.admission, grace_seconds=grace_seconds).run()
    leave_threads_behind()


def leave_threads_behind() -> None:
    """End this process although threads go on: those of the engine wait for a database that is away, for good."""
    deadline = time.monotonic() + LAST_THREADS_SECONDS
    others = [each for each in threading.enumerate() if each is not threading.current_thread()]
    for thread in others:
        thread.join(max(0.0, deadline - time.monotonic()))
    # A pool waits for its threads even where they are daemons.
    if any(thread.is_alive() for thread in others):
        logging.shutdown()
        os._exit(0)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    sys.exit(main())
