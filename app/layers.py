"""Which layers of the sandbox this machine has: each is tried in a throw-away process, then all of them from inside."""

from __future__ import annotations

import importlib
import json
import os
import platform
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from app.confinement import (
    ROOM_BYTES,
    Confinement,
    code_paths,
    confine,
    detach,
    folder_of_libraries,
    open_readable,
)
from app.landlock import has_signal_scope, landlock_abi, restrict_files
from app.linux import gain_no_privileges, gains_no_privileges, libc
from app.privileges import OwnProcesses, become, has_capabilities, leave_network, overflow_uid
from app.reach import open_way
from app.run_request import UPLOAD_NAME
from app.sandbox_settings import IN_FORCE, Layer, SandboxSettings
from app.system_calls import architecture, restrict_system_calls

NAMES = ("privileges", "user", "system_calls", "files", "network", "processes")

_OUTSIDE_NAME = "outside"
_SCRATCH_NAME = "scratch"
_MIGRATIONS_NAME = "migrations"
_PTRACE_TRACEME = 0


@dataclass(frozen=True, slots=True)
class _Obstacles:
    """Why a mechanism cannot be used here; empty where it can."""

    user: str
    system_calls: str
    files: str
    own_network: str
    own_processes: str


def raise_layers(settings: SandboxSettings) -> tuple[Confinement, tuple[Layer, ...]]:
    """Find out what can be put around the runs of this process, and move it to a network of its own.

    Raises:
        OSError: there is no room to try it in, or no process to try it with.
    """
    with tempfile.TemporaryDirectory(prefix="trial-", dir=settings.scratch_root) as folder:
        _make_trial_folder(Path(folder))
        obstacles = _find_obstacles(settings, folder)
        confinement = _make_confinement(settings, obstacles)
        look = partial(_look_from_inside, confinement, Path(folder), parent_pid=os.getpid())
        answer = _ask_child(look, confinement)
    try:
        open_ways = json.loads(answer)
    except ValueError:
        # Together they do not work. Better runs without them, and a report that says so, than none.
        return Confinement(), tuple(Layer(name, "failed", answer) for name in NAMES)
    return confinement, _judge(confinement, obstacles, open_ways)


def _make_trial_folder(folder: Path) -> None:
    folder.chmod(0o711)
    (folder / _OUTSIDE_NAME).write_text("for everybody but a run")
    (folder / _SCRATCH_NAME).mkdir(mode=0o700)
    (folder / _SCRATCH_NAME / UPLOAD_NAME).touch(mode=0o600)
    (folder / _MIGRATIONS_NAME).mkdir(mode=0o755)


def _find_obstacles(settings: SandboxSettings, folder: str) -> _Obstacles:
    own_network = _ask_child(leave_network)
    if os.geteuid() == 0:
        open_up = partial(open_way, _uid(settings), [*code_paths(), settings.scratch_root])
        if not _ask_child(open_up):
            open_up()
    if not own_network:
        leave_network()
    return _Obstacles(
        user=_ask_child(partial(_try_user, settings, folder)) if os.geteuid() == 0 else "",
        system_calls=_ask_child(_try_system_calls),
        files=_ask_child(_try_files),
        own_network=own_network,
        own_processes=_ask_child(_try_own_processes),
    )


def _make_confinement(settings: SandboxSettings, obstacles: _Obstacles) -> Confinement:
    return Confinement(
        uid=_uid(settings) if os.geteuid() == 0 and not obstacles.user else None,
        landlock_abi=0 if obstacles.files else landlock_abi(),
        architecture=None if obstacles.system_calls else architecture(),
        own_processes=None if obstacles.own_processes else OwnProcesses(),
        readable=() if obstacles.files else open_readable(),
    )


def _judge(
    confinement: Confinement, obstacles: _Obstacles, open_ways: list[str]
) -> tuple[Layer, ...]:
    def layer(name: str, *means: str, obstacle: str) -> Layer:
        present = [mean for mean in means if mean]
        if not present:
            return Layer(name, "not available", obstacle)
        detail = "; ".join([" and ".join(present), *filter(None, [obstacle])])
        return Layer(name, "failed" if name in open_ways else IN_FORCE, detail)

    uid = os.geteuid() if confinement.uid is None else confinement.uid
    abi = confinement.landlock_abi
    has_filter = confinement.architecture is not None
    filters_signals = has_filter and not confinement.has_signal_scope
    return (
        layer("privileges", "no capabilities, none to gain", obstacle=""),
        layer("user", f"uid {uid}" if uid else "", obstacle=obstacles.user),
        layer(
            "system_calls",
            f"a filter for {platform.machine()}" if has_filter else "",
            obstacle=obstacles.system_calls,
        ),
        layer("files", f"Landlock, ABI {abi}" if abi else "", obstacle=obstacles.files),
        layer(
            "network",
            "no sockets" if has_filter else "",
            "" if obstacles.own_network else "a network namespace",
            obstacle=obstacles.own_network,
        ),
        layer(
            "processes",
            "a process namespace" if confinement.own_processes else "",
            "Landlock's scope for signals" if has_signal_scope(abi) else "",
            "a filter for signals" if filters_signals else "",
            obstacle=obstacles.own_processes,
        ),
    )


def _uid(settings: SandboxSettings) -> int:
    return settings.uid or overflow_uid()


def _try_user(settings: SandboxSettings, folder: str) -> None:
    """Become the user and reach, as it, what a run must reach: its scratch, the code, the libraries."""
    uid = _uid(settings)
    become(uid)
    for path in (os.path.join(folder, _OUTSIDE_NAME), __file__, os.__file__, folder_of_libraries()):
        try:
            os.close(os.open(path, os.O_RDONLY))
        except PermissionError as error:
            raise OSError(f"uid {uid} may not read {path}") from error


def _try_system_calls() -> None:
    arch = architecture()
    if arch is None:
        raise OSError(f"no filter is known for {platform.machine()}")
    gain_no_privileges()
    restrict_system_calls(arch)


def _try_files() -> None:
    abi = landlock_abi()
    if not abi:
        raise OSError("this kernel has no Landlock, or it is not switched on")
    gain_no_privileges()
    restrict_files(abi, [])


def _try_own_processes() -> None:
    pid = OwnProcesses().fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _look_from_inside(confinement: Confinement, folder: Path, *, parent_pid: int) -> str:
    """Confine this process like a run and return, as JSON, the names of the layers that do not hold."""
    detach(confinement, parent_pid=parent_pid, output=1, keep=[1])
    confine(
        confinement,
        folder / _SCRATCH_NAME,
        migrations_folder=str(folder / _MIGRATIONS_NAME),
        parent_pid=parent_pid,
        written_bytes=ROOM_BYTES,
    )
    _do_what_runs_do(folder / _MIGRATIONS_NAME)
    holds = {
        "privileges": gains_no_privileges() and not has_capabilities(),
        "user": os.geteuid() != 0,
        "system_calls": libc().ptrace(_PTRACE_TRACEME, 0, None, None) == -1,
        "files": _is_refused((folder / _OUTSIDE_NAME).read_bytes),
        "network": _is_refused(_reach_own_machine),
        "processes": _is_refused(partial(os.kill, parent_pid, 0)),
    }
    return json.dumps([name for name, is_held in holds.items() if not is_held])


def _do_what_runs_do(migrations_folder: Path) -> None:
    Path(UPLOAD_NAME).read_bytes()
    Path("new").write_bytes(b"x")
    os.listdir(migrations_folder)
    # One that nothing has loaded yet.
    importlib.import_module("colorsys")


def _reach_own_machine() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.connect(("127.0.0.1", 9))


def _is_refused(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return True
    return False


def _ask_child(work: Callable[[], str | None], confinement: Confinement | None = None) -> str:
    """Do this in a child, and return what it returned or why it could not; nothing: it worked."""
    read_end, write_end = os.pipe()
    pid = (confinement or Confinement()).fork()
    if pid == 0:
        _answer(work, write_end)
    os.close(write_end)
    with open(read_end, encoding="utf-8", errors="replace") as answers:
        answer = answers.read()
    _, status = os.waitpid(pid, 0)
    return answer or ("" if status == 0 else f"it ended with status {status}")


def _answer(work: Callable[[], str | None], descriptor: int) -> None:
    os.dup2(descriptor, 1)
    status = 1
    try:
        os.write(1, (work() or "").encode())
        status = 0
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        os.write(1, reason.encode())
    finally:
        os._exit(status)
