"""What the web process tells the fork server when it starts it, and what it hears back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

IN_FORCE: Final = "in force"


@dataclass(frozen=True, slots=True)
class SandboxSettings:
    """The same for all runs; plain data, it travels as JSON.

    Attributes:
        timeout_seconds: what one run may take.
        memory_bytes: what one run may hold in memory, and write beside its upload.
        scratch_root: where the scratch folders of the runs will lie.
        uid: whom to run as where the service is root; None: the kernel's user that owns nothing.
    """

    timeout_seconds: float
    memory_bytes: int
    scratch_root: str
    uid: int | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """One thing that runs are kept from, whether they are, and by what; or why not."""

    name: str
    state: Literal["in force", "not available", "failed"]
    detail: str

    def __str__(self) -> str:
        return f"{self.state}: {self.detail}"
