"""Migrations that do what none should: each harms its own answer and nothing else."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch

from tests.acceptance.conftest import (
    AT_ONCE_SECONDS,
    MEMORY_BYTES,
    Service,
    children,
    connect,
    eventually,
    head,
    is_alive,
    leave_during_run,
    running_service,
    sleeping_run,
    write_sets,
)

pytestmark = pytest.mark.acceptance


def migrate(service: Service, old: Path, set_name: str = "default") -> httpx.Response:
    url = f"{service.url}/migrate?set={set_name}"
    return httpx.post(url, content=old.read_bytes(), timeout=60)


def assert_unharmed(service: Service, old: Path) -> None:
    assert migrate(service, old).status_code == 200
    assert eventually(lambda: not service.runs())
    assert eventually(lambda: not service.scratch_folders())


@pytest.mark.parametrize(
    ("set_name", "status", "error_type", "words"),
    [
        pytest.param("sleeps", 504, "timeout", "2 seconds", id="too long"),
        pytest.param("eats", 422, "out_of_memory", str(MEMORY_BYTES), id="too much memory"),
        pytest.param("crashes", 422, "crashed", "signal 11", id="crash"),
        pytest.param("exits", 422, "crashed", "status 0", id="exit"),
        pytest.param("breeds", 422, "too_many_processes", "64", id="too many processes"),
        pytest.param(
            "eats-in-children", 422, "out_of_memory", str(MEMORY_BYTES), id="children's memory"
        ),
        pytest.param("fills", 422, "too_much_output", str(MEMORY_BYTES), id="too many bytes"),
        pytest.param(
            "fills-nameless", 422, "too_much_output", str(MEMORY_BYTES), id="deleted files"
        ),
        pytest.param("litters", 422, "too_much_output", str(MEMORY_BYTES), id="too many files"),
    ],
)
def test_run_that_does_not_end_well_is_named_and_leaves_nothing(
    service: Service, old: Path, set_name: str, status: int, error_type: str, words: str
) -> None:
    answer = migrate(service, old, set_name)

    problem = answer.json()
    assert (answer.status_code, problem["error_type"]) == (status, error_type)
    assert words in problem["detail"]
    assert (problem["migration"], problem["position"], problem["count"]) == ("0001_first", 1, 1)
    assert_unharmed(service, old)


def test_file_that_grows_too_large_is_named(service: Service, old: Path) -> None:
    answer = migrate(service, old, "fills-one-file")

    # The migration meets the limit as an error of its own.
    assert answer.json()["error_type"] in ("migration_failed", "too_much_output")
    assert "File too large" in answer.json()["detail"] or str(MEMORY_BYTES) in answer.text
    assert_unharmed(service, old)


@pytest.mark.parametrize("set_name", ["shares-with-children", "digs"])
def test_odd_but_modest_migration_is_let_be(service: Service, old: Path, set_name: str) -> None:
    answer = migrate(service, old, set_name)

    assert answer.status_code == 200, answer.text
    assert_unharmed(service, old)


def test_what_a_migration_prints_goes_to_the_log_and_only_the_end_of_it(
    service: Service, old: Path
) -> None:
    before = service.log.stat().st_size

    answer = migrate(service, old, "prints")

    assert answer.status_code == 200
    log = service.log.read_text()[before:]
    assert "its last words" in log
    assert f"run {answer.headers['x-request-id']} printed" in log
    assert len(log) < 16_384


def test_noise_on_every_descriptor_harms_only_the_run_that_makes_it(
    service: Service, old: Path
) -> None:
    answer = migrate(service, old, "chatters")

    assert (answer.status_code, answer.json()["error_type"]) == (422, "crashed")
    assert_unharmed(service, old)


@pytest.mark.parametrize("set_name", ["forks", "escapes"])
def test_children_of_a_migration_die_with_it(service: Service, old: Path, set_name: str) -> None:
    fork_server = service.fork_server()

    answer = migrate(service, old, set_name)

    assert answer.status_code == 200
    assert eventually(lambda: not service.runs() and not sleepers(), seconds=AT_ONCE_SECONDS)
    assert service.fork_server() == fork_server


def sleepers() -> list[int]:
    """Processes of the fork server's making that have lost their parent."""
    return [
        pid
        for pid in children(1)
        if b"app.forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes() and is_alive(pid)
    ]


def test_run_sees_no_secret_and_shares_no_session(service: Service, old: Path) -> None:
    answer = migrate(service, old, "looks")

    assert answer.status_code == 200
    new = service.scratch.parent / "new.ckpt"
    new.write_bytes(answer.content)
    seen = json.loads(torch.load(new, weights_only=True)["seen"])
    assert "hunter2" not in json.dumps(seen["environment"])
    assert seen["folder"].startswith(str(service.scratch))
    assert seen["session"] == seen["pid"]
    assert not {"fastapi", "uvicorn", "pydantic"} & set(seen["modules"])


def test_migration_that_deletes_its_input_changes_no_answer(service: Service, old: Path) -> None:
    answer = migrate(service, old, "wipes")

    assert answer.status_code == 200
    assert len(answer.content) > 3 * 4096 * 4


def test_web_process_loads_neither_torch_nor_a_migration(service: Service, old: Path) -> None:
    assert migrate(service, old).status_code == 200

    maps = Path(f"/proc/{service.pid}/maps").read_text()

    assert "torch" not in maps
    assert "numpy" not in maps


def test_fork_server_has_one_thread_after_a_run(service: Service, old: Path) -> None:
    assert migrate(service, old).status_code == 200

    assert len(os.listdir(f"/proc/{service.fork_server()}/task")) == 1


def test_child_waits_for_the_next_run_while_there_is_none(service: Service, old: Path) -> None:
    assert eventually(service.is_idle)
    (waiting,) = children(service.fork_server())

    with sleeping_run(service, old):
        assert service.runs() == [waiting]
        assert children(service.fork_server()) == [waiting]

    assert eventually(service.is_idle)
    assert children(service.fork_server()) != [waiting]


def test_child_that_waits_has_no_socket_but_that_of_its_orders(service: Service) -> None:
    assert eventually(service.is_idle)
    (waiting,) = children(service.fork_server())

    opened = [os.readlink(path) for path in Path(f"/proc/{waiting}/fd").iterdir()]

    assert len([name for name in opened if name.startswith("socket:")]) == 1


def test_next_run_is_done_where_the_child_that_waits_has_died(service: Service, old: Path) -> None:
    assert eventually(service.is_idle)
    (waiting,) = children(service.fork_server())
    os.kill(waiting, signal.SIGKILL)
    assert eventually(lambda: not is_alive(waiting))

    assert migrate(service, old).status_code == 200

    assert eventually(service.is_idle)


def test_fork_server_that_died_is_started_again(service: Service, old: Path) -> None:
    first = service.fork_server()
    os.kill(first, signal.SIGKILL)
    assert eventually(lambda: not is_alive(first))

    assert eventually(lambda: migrate(service, old).status_code == 200)

    assert service.fork_server() != first


def test_client_that_hangs_up_while_the_fork_server_starts_is_not_run(
    service: Service, old: Path
) -> None:
    os.kill(service.fork_server(), signal.SIGKILL)
    assert eventually(lambda: not children(service.pid))
    before = service.log.stat().st_size

    with connect(service) as connection:
        body = old.read_bytes()
        connection.sendall(head("/migrate?set=sleeps", len(body)) + body)

    assert eventually(
        lambda: "the client has gone" in service.log.read_text()[before:], seconds=AT_ONCE_SECONDS
    )
    assert eventually(lambda: migrate(service, old).status_code == 200)
    assert len(children(service.pid)) == 1


def test_run_dies_with_the_fork_server(service: Service, old: Path) -> None:
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(migrate, service, old, "sleeps")
        assert eventually(service.begun_sleeps)
        (run,) = service.runs()

        os.kill(service.fork_server(), signal.SIGKILL)

        problem = answer.result().json()
    assert (answer.result().status_code, problem["error_type"]) == (503, "sandbox_lost")
    assert problem["migration"] == "0001_first"
    assert eventually(lambda: not is_alive(run), seconds=AT_ONCE_SECONDS)
    assert eventually(lambda: migrate(service, old).status_code == 200)


def test_client_that_hangs_up_takes_its_run_down(service: Service, old: Path) -> None:
    before = service.log.stat().st_size

    leave_during_run(service, old)

    assert eventually(lambda: not service.runs(), seconds=AT_ONCE_SECONDS)
    assert eventually(lambda: not service.scratch_folders(), seconds=AT_ONCE_SECONDS)
    assert eventually(lambda: "was cancelled" in service.log.read_text()[before:])
    assert "began was 0001_first (1 of 1)" in service.log.read_text()[before:]


def test_client_that_hangs_up_in_its_upload_leaves_no_scratch(service: Service) -> None:
    with connect(service) as connection:
        connection.sendall(head("/migrate", 10_000_000) + b"x" * 100_000)
        assert eventually(service.scratch_folders)

    assert eventually(lambda: not service.scratch_folders(), seconds=AT_ONCE_SECONDS)


def test_client_that_hangs_up_in_its_answer_leaves_no_scratch(
    service: Service, tmp_path: Path
) -> None:
    large = tmp_path / "large.ckpt"
    torch.save({"state_dict": {"model.w": torch.zeros(2**24)}}, large)
    with connect(service) as connection:
        body = large.read_bytes()
        connection.sendall(head("/migrate", len(body)) + body)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        assert service.scratch_folders()

    assert eventually(lambda: not service.scratch_folders(), seconds=AT_ONCE_SECONDS)


def test_nothing_is_left_after_twenty_runs_some_of_them_killed(service: Service, old: Path) -> None:
    assert_unharmed(service, old)
    assert eventually(service.is_idle)
    before = open_files(service)

    for number in range(20):
        if number % 4 == 0:
            leave_during_run(service, old)
        else:
            migrate(service, old, ("default", "eats", "crashes", "fails")[number % 4])

    assert_unharmed(service, old)
    assert eventually(lambda: open_files(service) <= before)


def open_files(service: Service) -> tuple[int, int]:
    """How many descriptors the web process and the fork server have."""
    web, fork_server = (
        len(os.listdir(f"/proc/{pid}/fd")) for pid in (service.pid, service.fork_server())
    )
    return web, fork_server


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_service_that_ends_takes_its_processes_along(
    tmp_path: Path, old: Path, end: signal.Signals
) -> None:
    write_sets(tmp_path / "migrations")
    with running_service(tmp_path, MIGRATE_CKPT_RUN_TIMEOUT_SECONDS="3") as service:
        fork_server = service.fork_server()
        with sleeping_run(service, old):
            (run,) = service.runs()

            service.process.send_signal(end)

            status = service.process.wait(20)

    assert status == (0 if end == signal.SIGTERM else -signal.SIGKILL)
    assert eventually(lambda: not is_alive(fork_server) and not is_alive(run))
    if end == signal.SIGTERM:
        assert list(service.scratch.iterdir()) == []


def test_runs_at_once_are_no_more_than_allowed(service: Service, old: Path) -> None:
    connections = [connect(service) for _ in range(4)]
    body = old.read_bytes()
    for connection in connections:
        connection.sendall(head("/migrate?set=sleeps", len(body)) + body)
    assert eventually(lambda: len(service.runs()) == 2)

    time.sleep(0.5)

    assert len(service.runs()) == 2
    for connection in connections:
        connection.close()
    assert_unharmed(service, old)
