"""Two others that bring a checkpoint from one place of a bucket to another.

    python bucket_peers.py copy BUCKET SOURCE TARGET      downloads and uploads it, and changes nothing
    python bucket_peers.py naive BUCKET SOURCE TARGET     loads it with torch in between, renames, and saves

Both stream by way of obstore and a file. They print the seconds that it took, imports left out.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import obstore
from obstore.store import S3Store

PREFIX = "model."
PART_BYTES = 16 << 20
PARTS_AT_ONCE = 3


def main(kind: str, bucket: str, source: str, target: str) -> None:
    store = S3Store(bucket, client_options={"allow_http": True})
    if kind == "naive":
        import torch  # noqa: F401
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        with path.open("wb") as file:
            for block in obstore.get(store, source).stream(min_chunk_size=4 << 20):
                file.write(block)
        if kind == "naive":
            rename(path)
        with path.open("rb") as file:
            obstore.put(store, target, file, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)
    print(time.perf_counter() - begun)


def rename(path: Path) -> None:
    import torch

    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    weights = checkpoint["state_dict"]
    checkpoint["state_dict"] = {key.removeprefix(PREFIX): weight for key, weight in weights.items()}
    torch.save(checkpoint, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
