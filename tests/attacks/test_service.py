"""Every file of the hostile corpus through the real service, and a good one right after it."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.acceptance.conftest import Service, eventually, running_service
from tests.attacks.assemble import dict_of, number, pickled, text, torch_zip
from tests.attacks.attack import PRESERVED, Attack
from tests.attacks.make_corpus import attacks, write_corpus

pytestmark = pytest.mark.acceptance

RUN_SECONDS = 60
RUN_MEMORY_BYTES = 1 << 30
SEEN_BYTES = 16 << 20
SERVICE_MEMORY_BYTES = 400 << 20

SETS = {
    "": """
        def handle(ckpt):
            len(ckpt)
            return ckpt
    """,
    "speaks": """
        def handle(ckpt):
            print(*ckpt, file=__import__("io").StringIO())
            raise ValueError(*ckpt, *ckpt.values())
    """,
}
# Loaded by every Python process of the service when it starts; it watches those that a run is forked into.
WATCH = """
import mmap
import os
import sys

STARTED_AS = os.getpid()
WATCHED = ("import", "os.", "subprocess.", "socket.", "ctypes.dlopen", "pickle.", "shutil.")
# What a run consists of: its scratch, its own session, its descriptors.
HARMLESS = ("os.listdir", "os.scandir", "os.chdir", "os.putenv", "os.remove", "os.rename")


# Memory that is shared with the test: a run may open no file out there, and keeps no descriptor. In front of the lines
# stands how long they are.
with open({seen!r}, "r+b") as file:
    SEEN = mmap.mmap(file.fileno(), 0)


def is_in_run():
    frame = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.endswith("app/child.py"):
        frame = frame.f_back
    return frame is not None


def watch(event, arguments):
    # What puts the layers of the sandbox up comes before a run, and reads nothing of the file.
    if (event.startswith(WATCHED) and event not in HARMLESS and os.getpid() != STARTED_AS
            and is_in_run()):
        line = f"{{event}} {{ascii(arguments[0])}}\\n".encode()
        end = int.from_bytes(SEEN[:8], "little")
        SEEN[8 + end : 8 + end + len(line)] = line
        SEEN[:8] = (end + len(line)).to_bytes(8, "little")


sys.addaudithook(watch)
"""
# What a run does by itself: import our own modules, the migrations and a codec for odd names, and ask the kernel to
# end it with its parent.
OWN_EVENTS = (
    "import 'app.",
    "import 'migrate_ckpt.",
    "import '_migrate_ckpt_",
    "import 'm_",
    "import 'encodings.unicode_escape'",
    "ctypes.dlopen None",
)
GOOD = torch_zip(pickled(dict_of((text("epoch"), number(1)))))
NAMES = [f"{attack.name}.ckpt" for attack in attacks(Path("marker"))]


@dataclass(frozen=True)
class Target:
    """The service, the corpus, and what is to stay as it is."""

    service: Service
    folder: Path
    corpus: dict[str, Attack]
    files: list[str]

    def send(self, data: bytes, route: str = "migrate") -> httpx.Response:
        url = f"{self.service.url}/{route}"
        return httpx.post(url, content=data, timeout=RUN_SECONDS + 10)

    @property
    def marker(self) -> Path:
        return self.folder / "corpus" / "marker"


def files_of(folder: Path) -> list[str]:
    """What is in the service's folder beside its log and its scratch, and what the watch writes."""
    return sorted(
        f"{path.relative_to(folder)} {path.stat().st_size}"
        for path in folder.rglob("*")
        if path.is_file()
        and not path.is_relative_to(folder / "scratch")
        and path.name not in ("log", "seen")
    )


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("attacked")
    for name, code in SETS.items():
        (folder / "migrations" / name).mkdir(parents=True, exist_ok=True)
        (folder / "migrations" / name / "0001_first.py").write_text(textwrap.dedent(code))
    (folder / "watch").mkdir()
    (folder / "watch" / "sitecustomize.py").write_text(WATCH.format(seen=str(folder / "seen")))
    (folder / "seen").write_bytes(bytes(SEEN_BYTES))
    (folder / "corpus").mkdir()
    corpus = write_corpus(folder / "corpus")
    with running_service(
        folder,
        MIGRATE_CKPT_RUN_TIMEOUT_SECONDS=str(RUN_SECONDS),
        MIGRATE_CKPT_RUN_MEMORY_BYTES=str(RUN_MEMORY_BYTES),
        MIGRATE_CKPT_MAX_CONCURRENT_RUNS="2",
        PYTHONPATH=str(folder / "watch"),
        # With it, a torch.load that leaves out weights_only would run what it loads.
        TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1",
    ) as service:
        yield Target(service, folder, corpus, files_of(folder))


def texts_in(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [*value, *(text for part in value.values() for text in texts_in(part))]
    return [text for part in value for text in texts_in(part)] if isinstance(value, list) else []


def assert_clean(answer: httpx.Response) -> None:
    """No text for people or programs holds what moves a terminal or breaks a line."""
    found = [f"{name}{value}" for name, value in answer.headers.items()]
    if "json" in answer.headers["content-type"]:
        found += texts_in(answer.json())
    if "migration-report" in answer.headers:
        found += texts_in(json.loads(answer.headers["migration-report"]))
    assert [said for said in found if not said.isprintable()] == []


def assert_unharmed(target: Target) -> None:
    assert target.send(GOOD).status_code == 200
    assert not target.marker.exists()


def peak_bytes(pid: int) -> int:
    """The most that a process ever held in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.parametrize("name", NAMES)
def test_hostile_file_gets_its_answer_and_harms_nobody(target: Target, name: str) -> None:
    attack = target.corpus[name]

    answer = target.send(attack.data)

    outcome = PRESERVED if answer.status_code == 200 else answer.json()["error_type"]
    assert outcome in attack.outcomes, answer.text[:1000]
    assert answer.status_code == 200 or 400 <= answer.status_code < 500
    assert_clean(answer)
    assert_unharmed(target)


@pytest.mark.parametrize("route", ["inspect", "plan"])
@pytest.mark.parametrize("name", NAMES)
def test_hostile_file_is_looked_into_without_harm(target: Target, name: str, route: str) -> None:
    answer = target.send(target.corpus[name].data, route)

    assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text[:1000]
    assert_clean(answer)
    assert not target.marker.exists()


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("as-key.ckpt")])
def test_what_a_migration_says_of_a_hostile_key_is_clean(target: Target, name: str) -> None:
    answer = target.send(target.corpus[name].data, "migrate?set=speaks")

    assert 400 <= answer.status_code < 500, answer.text[:1000]
    assert_clean(answer)


def test_many_hostile_files_at_once_leave_room_for_a_good_one(target: Target) -> None:
    names = NAMES[::10]

    with ThreadPoolExecutor(8) as pool:
        hostile = pool.map(lambda name: target.send(target.corpus[name].data).status_code, names)
        good = target.send(GOOD)
        statuses = set(hostile)

    assert good.status_code == 200
    assert max(statuses) < 500
    assert not target.marker.exists()


def test_no_run_imports_or_calls_what_a_file_names(target: Target) -> None:
    assert target.send(GOOD).status_code == 200

    data = (target.folder / "seen").read_bytes()
    seen = set(data[8 : 8 + int.from_bytes(data[:8], "little")].decode().splitlines())
    assert any(event.startswith(OWN_EVENTS) for event in seen)
    assert {event for event in seen if not event.startswith(OWN_EVENTS)} == set()


def test_after_all_of_them_nothing_is_left_behind(target: Target) -> None:
    assert eventually(lambda: not target.service.runs())
    assert eventually(lambda: not target.service.scratch_folders())
    assert files_of(target.folder) == target.files
    assert peak_bytes(target.service.pid) < SERVICE_MEMORY_BYTES
    assert peak_bytes(target.service.fork_server()) < SERVICE_MEMORY_BYTES
    assert "Traceback" not in target.service.log.read_text()
