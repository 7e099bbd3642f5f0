"""Puts one file after the other through the library, and says what became of each. Runs in a process of its own.

Each line of standard input is the path of a file, each line of standard output what became of it.
"""

from __future__ import annotations

import encodings.unicode_escape  # noqa: F401
import importlib
import json
import pkgutil
import resource
import sys
import time
from pathlib import Path
from typing import Any

import migrate_ckpt.formats
from migrate_ckpt import MigrateCkptError, inspect_file, migrate_file, plan_file, read_folder

MEMORY_BYTES = 4 << 30
WATCHED = (
    "os.",
    "subprocess.",
    "socket.",
    "ctypes.",
    "pickle.",
    "shutil.",
    "exec",
    "import",
    "open",
)
HARMLESS = ("os.scandir", "os.listdir", "os.remove", "os.rename", "os.chmod", "os.utime")


class Watch:
    """Notes what this process does beyond computing."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if (
            event.startswith(WATCHED)
            and event not in HARMLESS
            and not self._is_own(event, arguments)
        ):
            self.seen.append(f"{event} {arguments!r:.200}")

    def _is_own(self, event: str, arguments: tuple[Any, ...]) -> bool:
        """Whether it is what reading a file and running a migration consist of."""
        if event == "open":
            is_read = arguments[1] in ("r", "rb") or arguments[2] & 3 == 0
            return is_read or str(arguments[0]).startswith(self.folder)
        if event == "import":
            return str(arguments[0]).startswith(("_migrate_ckpt_", "m_"))
        if event == "exec":
            return str(arguments[0].co_filename).startswith(self.folder)
        return event.startswith("ctypes.") and "dlopen" not in event


def outcome_of(action: Any) -> dict[str, Any]:
    """What an action comes to: PRESERVED, the type of its error, or one that is none of ours."""
    try:
        return {"outcome": "preserved", **(action() or {})}
    except MigrateCkptError as error:
        facts = error.to_dict()
        return {"outcome": facts["error_type"], "texts": texts_in(facts)}
    except Exception as error:
        return {"outcome": f"{type(error).__name__}: {error}"}


def texts_in(value: Any) -> list[str]:
    """Every text in what is to become JSON, with the names in it."""
    value = json.loads(json.dumps(value, allow_nan=False))
    found, left = [], [value]
    while left:
        part = left.pop()
        if isinstance(part, str):
            found.append(part)
        elif isinstance(part, dict):
            left += [*part, *part.values()]
        elif isinstance(part, list):
            left += part
    return [text for text in found if not text.isprintable()] or found[:1]


def try_file(path: Path, folder: Path) -> dict[str, Any]:
    target = folder / "out.ckpt"
    target.unlink(missing_ok=True)
    migrations = read_folder(folder / "migrations")

    def migrate() -> dict[str, Any]:
        report = migrate_file(path, target, folder=folder / "migrations")
        return {"texts": texts_in(report.to_dict())}

    def inspect() -> dict[str, Any]:
        facts = inspect_file(path).to_dict()
        return {"texts": texts_in(facts), "globals": facts["globals"]}

    return {
        "inspect": outcome_of(inspect),
        "plan": outcome_of(lambda: {"texts": texts_in(plan_file(path, migrations).to_dict())}),
        "migrate": outcome_of(migrate),
        "kept": list(inspect_file(target).globals) if target.exists() else [],
    }


def held_bytes() -> int:
    """The most memory that this process held since `forget_held_bytes`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def forget_held_bytes() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    folder = Path(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # What is loaded on first use is loaded before the watch begins.
    for module in pkgutil.iter_modules(migrate_ckpt.formats.__path__):
        importlib.import_module(f"migrate_ckpt.formats.{module.name}")
    try_file(folder / "good.ckpt", folder)
    watch = Watch(folder)
    print("ready", flush=True)
    for line in sys.stdin:
        forget_held_bytes()
        watch.seen.clear()
        before, began = held_bytes(), time.process_time()
        result = try_file(Path(line.strip()), folder)
        result["seconds"] = time.process_time() - began
        result["memory"] = held_bytes() - before
        result["seen"] = watch.seen[:5]
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
