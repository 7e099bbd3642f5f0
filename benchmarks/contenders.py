"""Ways of migrating a checkpoint without a service; each is run in a process of its own.

    python benchmarks/contenders.py NAME OLD NEW SET

`contender_process.py` says what of them is measured.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from contender_process import work

if TYPE_CHECKING:
    from migrate_ckpt import CkptType, Migration

MIGRATIONS = Path(__file__).resolve().parent / "migrations"


def migrate_file(old: Path, new: Path, set_name: str) -> Iterator[None]:
    """Ours, file to file; flushes, and compares the checksums of what it copies."""
    import torch  # noqa: F401 - loaded on demand, and nobody's time to load it counts

    from migrate_ckpt import migrate_file

    yield
    migrate_file(old, new, folder=MIGRATIONS, set_name=set_name)


def load_copy_save(old: Path, new: Path, set_name: str) -> Iterator[None]:
    """With torch, on a deep copy, as a careful script does."""
    import torch

    migrations = migrations_of(set_name)
    yield
    ckpt = copy.deepcopy(torch.load(old, weights_only=True))
    torch.save(apply(ckpt, migrations), new)


def map_save(old: Path, new: Path, set_name: str) -> Iterator[None]:
    """With torch, on the mapped file and without a copy, as a thrifty script does."""
    import torch

    migrations = migrations_of(set_name)
    yield
    ckpt = torch.load(old, weights_only=True, mmap=True)
    torch.save(apply(ckpt, migrations), new)


def load_save(old: Path, new: Path, set_name: str) -> Iterator[None]:
    """With torch, nothing else."""
    import torch

    migrations = migrations_of(set_name)
    yield
    ckpt = torch.load(old, weights_only=True)
    torch.save(apply(ckpt, migrations), new)


def copy_file(old: Path, new: Path, set_name: str) -> Iterator[None]:
    """The limit: `cp`, and a flush; migrates nothing."""
    yield
    subprocess.run(["cp", old, new], check=True)
    descriptor = os.open(new, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def migrate_in_memory(old: Path, new: Path, set_name: str) -> Iterator[None]:
    """Ours, on a checkpoint that is in memory; then the result is saved and the input is gone."""
    import torch

    from migrate_ckpt import migrate_ckpt

    migrations = migrations_of(set_name)
    ckpt = torch.load(old, weights_only=True)
    yield
    ckpt, _ = migrate_ckpt(ckpt, migrations)
    torch.save(ckpt, new)


def copy_in_memory(old: Path, new: Path, set_name: str) -> Iterator[None]:
    """The same with a deep copy per migration, which is how the original library keeps its input."""
    import torch

    migrations = migrations_of(set_name)
    ckpt = torch.load(old, weights_only=True)
    yield
    ckpt = apply_to_copies(ckpt, migrations)
    torch.save(ckpt, new)


CONTENDERS: dict[str, Callable[[Path, Path, str], Iterator[None]]] = {
    way.__name__: way
    for way in (
        migrate_file,
        load_copy_save,
        map_save,
        load_save,
        copy_file,
        migrate_in_memory,
        copy_in_memory,
    )
}


def migrations_of(set_name: str) -> list[Migration]:
    """The functions that the others apply are those that ours finds in the folder."""
    from migrate_ckpt import get_folder_migrations

    return get_folder_migrations(MIGRATIONS if set_name == "default" else MIGRATIONS / set_name)


def apply(ckpt: CkptType, migrations: list[Migration]) -> CkptType:
    for migration in migrations:
        ckpt = migration.callback(ckpt)
    return ckpt


def apply_to_copies(ckpt: CkptType, migrations: list[Migration]) -> CkptType:
    for migration in migrations:
        ckpt = migration.callback(copy.deepcopy(ckpt))
    return ckpt


def main() -> None:
    name, old, new, set_name = sys.argv[1:]
    work(CONTENDERS[name](Path(old), Path(new), set_name))


if __name__ == "__main__":
    main()
