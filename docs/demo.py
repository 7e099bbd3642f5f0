"""Migrate a checkpoint over HTTP, and show what changed in it.

Makes an old checkpoint like a training framework's, starts the service with the repository's
`migrations/`, sends the checkpoint there with the README's curl line, and compares what comes back.
Leaves nothing behind. `make demo` runs it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parent.parent
START_SECONDS = 60
CURL_WITH_HEADER_OUTPUT = (7, 84)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="migrate-ckpt-demo-") as name:
        folder = Path(name)
        say("An old checkpoint: weights below `model.`, hyper-parameters in an argparse.Namespace.")
        before = make_old_checkpoint(folder / "old.ckpt")
        show_checkpoint(before)

        with service(folder / "service.log") as address:
            say(f"The service is up on {address}, with the migrations of migrations/.")
            show_migrations(address)
            say("One curl:")
            report = migrate(folder, address, "old.ckpt", "new.ckpt")
            show_report(report)
            after = load(folder / "new.ckpt")
            say("The new checkpoint, loaded with torch:")
            show_changes(before, after)
            say("Once more, with the new one: it carries its history, so there is nothing to do.")
            again = migrate(folder, address, "new.ckpt", "newer.ckpt")
            show_report(again)

    check(
        report["ran"] == ["0001_strip_the_model_prefix", "0002_rename_learning_rate"],
        "two migrations ran",
    )
    check(again["ran"] == [], "no migration runs twice")
    check_result(before, after)
    say("Done. Every tensor is what it was.")
    return 0


def make_old_checkpoint(path: Path) -> dict:
    """What a training module with an attribute `model` saves."""
    torch.manual_seed(0)
    module = torch.nn.ModuleDict({"model": make_network()})
    torch.save(
        {
            "epoch": 7,
            "global_step": 1234,
            "state_dict": module.state_dict(),
            "hyper_parameters": Namespace(lr=3e-4, batch_size=64, width=32),
        },
        path,
    )
    return load(path)


def make_network() -> torch.nn.Module:
    layers = {
        "encoder": torch.nn.Linear(16, 32),
        "norm": torch.nn.BatchNorm1d(32),
        "head": torch.nn.Linear(32, 4),
    }
    return torch.nn.Sequential(OrderedDict(layers))


def load(path: Path) -> dict:
    """Load a file that this demo made; the one class it names beside torch's is allowed by name."""
    with torch.serialization.safe_globals([Namespace]):
        return torch.load(path, weights_only=True)


@contextlib.contextmanager
def service(log_path: Path) -> Iterator[str]:
    """The service on a free port, stopped by its process id at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ours = {name for name in os.environ if name.startswith("MIGRATE_CKPT_")}
    environment = {name: os.environ[name] for name in os.environ if name not in ours}
    environment |= {"HOST": "127.0.0.1", "PORT": str(port)}
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "serve"],
            cwd=REPOSITORY,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until_ready(process, f"http://127.0.0.1:{port}", log_path)
        yield f"localhost:{port}"
    finally:
        stop(process)


def stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def wait_until_ready(process: subprocess.Popen, url: str, log_path: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(f"{url}/readyz", timeout=5).close()
            return
        time.sleep(0.1)
    raise SystemExit(f"The service did not start. It said:\n{log_path.read_text()}")


def migrate(folder: Path, address: str, source: str, target: str) -> dict:
    """Send a file with curl and return the report that stands in the answer's header."""
    fail, show = ("--fail-with-body", ["-w", r"%header{migration-report}\n"])
    if curl_version() < CURL_WITH_HEADER_OUTPUT:
        fail, show = ("--fail", ["-D", "-"])
    command = ["curl", fail, "-F", f"file=@{source}", f"{address}/migrate", "-o", target, *show]
    print(f"  $ {shlex.join(command)}\n")
    done = subprocess.run([*command, "-sS"], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        problem = folder / target
        reason = problem.read_text(errors="replace") if problem.exists() else ""
        raise SystemExit(f"curl ended with {done.returncode}: {done.stderr}{reason}")
    return json.loads(done.stdout[done.stdout.index("{") : done.stdout.rindex("}") + 1])


def curl_version() -> tuple[int, ...]:
    try:
        done = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise SystemExit("The demo needs curl, and there is none here.") from None
    return tuple(int(part) for part in re.findall(r"\d+", done.stdout)[:2])


def show_checkpoint(checkpoint: dict) -> None:
    for key, tensor in checkpoint["state_dict"].items():
        print(f"  {key:30} {tuple(tensor.shape)}")
    print(f"  {'hyper_parameters':30} {checkpoint['hyper_parameters']}")


def show_migrations(address: str) -> None:
    with urllib.request.urlopen(f"http://{address}/migrations/default", timeout=5) as answer:
        for migration in json.load(answer)["migrations"]:
            print(f"  {migration['name']:30} {migration['title']}")


def show_report(report: dict) -> None:
    for line in json.dumps(report, indent=2).splitlines():
        print(f"  {line}")


def show_changes(before: dict, after: dict) -> None:
    weights = zip(before["state_dict"].items(), after["state_dict"].items(), strict=True)
    for (old, old_tensor), (new, new_tensor) in weights:
        verdict = "same values" if torch.equal(old_tensor, new_tensor) else "DIFFERENT"
        print(f"  {old:30} -> {new:24} {verdict}")
    print(f"  {'hyper_parameters':30} -> {after['hyper_parameters']}")


def check_result(before: dict, after: dict) -> None:
    """Stop unless the new checkpoint is what the two migrations promise, and a network loads it."""
    old, new = before["state_dict"], after["state_dict"]
    check(list(new) == [key.removeprefix("model.") for key in old], "the names lose the prefix")
    check(all(map(torch.equal, old.values(), new.values())), "every tensor is what it was")
    check(
        list(new._metadata) == ["", "encoder", "norm", "head"], "module versions follow the names"
    )
    options = vars(after["hyper_parameters"])
    check(options == {"learning_rate": 3e-4, "batch_size": 64, "width": 32}, "lr is renamed")
    make_network().load_state_dict(new, strict=True)


def check(is_true: bool, claim: str) -> None:
    if not is_true:
        raise SystemExit(f"The demo failed: this does not hold: {claim}.")


def say(sentence: str) -> None:
    print(f"\n{sentence}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
