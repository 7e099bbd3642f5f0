"""A finding, the codes there are, and how a line of a file says that it is meant so."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CODES = {
    "MC001": "the file cannot be read as Python",
    "MC002": "no migration: neither `handle` nor `operations`, or both",
    "MC003": "two migrations have the same number",
    "MC004": "the alphabetical order is not that of the numbers",
    "MC005": "`handle` can end without returning the checkpoint",
    "MC006": "no docstring that says what the migration does and why",
    "MC007": "drops or coarsens data, and the docstring does not say that it is lossy",
    "MC008": "replaces a text wherever it stands in a key",
    "MC009": "depends on more than the checkpoint: time, randomness, network, environment",
    "MC010": "edited since it was applied to a checkpoint",
}
"""A code never gets another meaning."""

_NOQA = re.compile(r"#\s*noqa(?P<codes>\s*:\s*[A-Z]+[0-9]+(?:[\s,]+[A-Z]+[0-9]+)*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One finding; lines count from one."""

    path: Path
    line: int
    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.code} {self.message}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "line": self.line,
            "code": self.code,
            "message": self.message,
        }


def is_meant_so(line: str, code: str) -> bool:
    """Whether a line has `# noqa`, or `# noqa: MC005` for this code."""
    found = _NOQA.search(line)
    if found is None:
        return False
    return found["codes"] is None or code in found["codes"].upper()
