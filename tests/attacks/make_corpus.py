"""Writes the hostile corpus: one file for each attack, and an index of what must become of it.

    python -m tests.attacks.make_corpus FOLDER

The files hold live payloads that create `FOLDER/marker` wherever they are run. Nothing here loads them.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from tests.attacks import code, containers, exhaustion, sharded, tensors, texts
from tests.attacks.attack import Attack

FAMILIES = (code, exhaustion, tensors, containers, texts, sharded)


def attacks(marker: Path) -> list[Attack]:
    """Every attack; whoever runs the payload of one creates the marker."""
    command = f"touch {marker}"
    return [attack for family in FAMILIES for attack in family.attacks(command)]


def write_corpus(folder: Path) -> dict[str, Attack]:
    """Write all files into a folder; gives the attacks by the name of their file."""
    found = {f"{attack.name}.ckpt": attack for attack in attacks(folder / "marker")}
    for name, attack in found.items():
        (folder / name).write_bytes(attack.data)
    index = {
        name: {key: value for key, value in asdict(attack).items() if key != "data"}
        for name, attack in found.items()
    }
    (folder / "index.json").write_text(json.dumps(index, indent=1), encoding="ascii")
    return found


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    print(len(write_corpus(target.resolve())), "files")
