from __future__ import annotations

from typing import Any

import pytest

from app.fingerprint import Versions, fingerprint, installed_versions

FACTS: dict[str, Any] = {
    "input_digest": "ab" * 32,
    "set_name": "default",
    "set_digest": "1:cd",
    "to": None,
    "policy": "skip-missed",
    "allow_unknown_history": False,
    "versions": Versions("0.1.0", "3.11.7", "2.13.0"),
}


def test_fingerprint_of_equal_facts_is_pinned() -> None:
    # A change here makes every stored result unfindable: it has to be meant.
    assert fingerprint(**FACTS) == EXPECTED


@pytest.mark.parametrize(
    "change",
    [
        {"input_digest": "ba" * 32},
        {"set_name": "vision"},
        {"set_digest": "1:dc"},
        {"to": "0001_x"},
        {"policy": "strict"},
        {"allow_unknown_history": True},
        {"format": "safetensors"},
        {"versions": Versions("0.2.0", "3.11.7", "2.13.0")},
        {"versions": Versions("0.1.0", "3.12.0", "2.13.0")},
        {"versions": Versions("0.1.0", "3.11.7", "2.14.0")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_fact_counts(change: dict[str, Any]) -> None:
    assert fingerprint(**{**FACTS, **change}) != fingerprint(**FACTS)


def test_installed_versions_are_those_of_this_process() -> None:
    import torch

    assert installed_versions().torch == str(torch.__version__)


EXPECTED = "c874e0cea6f0a93021dbf2e41f46e186a2ebedbb190b7112d121c81c05405179"
