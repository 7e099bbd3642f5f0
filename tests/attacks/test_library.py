"""Every file of the hostile corpus through the library, in a process that may die of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.assemble import dict_of, number, pickled, text, torch_zip
from tests.attacks.attack import PRESERVED, Attack
from tests.attacks.make_corpus import attacks, write_corpus
from tests.attacks.pool import Worker

MEMORY_BYTES = 1 << 30
# Of the processor: how busy the machine is says nothing of a file.
SECONDS = 15

# Whatever it does, a good run of it rewrites the file: the history is new.
MIGRATION = '''"""Look at the checkpoint."""


def handle(ckpt):
    len(ckpt)
    return ckpt
'''

NAMES = [f"{attack.name}.ckpt" for attack in attacks(Path("marker"))]


class Tries:
    """The corpus, and what became of the files that were asked for."""

    def __init__(self, folder: Path, corpus: dict[str, Attack], worker: Worker) -> None:
        self.folder = folder
        self.corpus = corpus
        self._worker = worker

    def of(self, name: str) -> tuple[Attack, dict[str, Any]]:
        return self.corpus[name], self._worker.try_file(self.folder / "corpus" / name)


@pytest.fixture(scope="module")
def tries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tries]:
    folder = tmp_path_factory.mktemp("attacks")
    (folder / "corpus").mkdir()
    (folder / "migrations").mkdir()
    (folder / "migrations" / "0001_first.py").write_text(MIGRATION)
    (folder / "good.ckpt").write_bytes(torch_zip(pickled(dict_of((text("epoch"), number(1))))))
    worker = Worker(folder)
    yield Tries(folder, write_corpus(folder / "corpus"), worker)
    worker.stop()


@pytest.mark.parametrize("name", NAMES)
def test_hostile_file_is_refused_or_carried_along_and_never_run(tries: Tries, name: str) -> None:
    attack, result = tries.of(name)

    assert "died" not in result, result
    assert not (tries.folder / "corpus" / "marker").exists()
    assert result["seen"] == []
    assert result["migrate"]["outcome"] in attack.outcomes, result
    assert result["seconds"] < SECONDS
    assert result["memory"] < MEMORY_BYTES
    for action in ("inspect", "plan", "migrate"):
        unclean = [said for said in result[action]["texts"] if not said.isprintable()]
        assert unclean == [], (action, unclean)
    if result["migrate"]["outcome"] == PRESERVED:
        assert set(attack.keeps) <= set(result["kept"])
        assert not set(attack.drops) & set(result["kept"])


def test_corpus_has_files_for_every_threat_that_a_file_can_be() -> None:
    threats = {name.partition("-")[0] for name in NAMES}

    # T22, many files at once, is a matter of the service and is tested there.
    assert threats == {f"T{row}" for row in range(1, 27) if row != 22}
    assert len(NAMES) == len(set(NAMES)) > 150
