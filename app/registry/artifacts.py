"""The artifacts of one model version, wherever its registry says that they lie: behind its server, or in a bucket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from app.errors import ServiceError
from app.registry.mlflow import MlflowClient
from app.storage import buckets
from app.storage.attempts import attempts
from app.storage.locations import BUCKETS, Location
from app.storage.transfers import Transfers

PROXIED = "mlflow-artifacts:"
MODEL_FILE = "MLmodel"
MAX_FILES = 10_000


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file: its path below the version's artifacts, and its size in bytes."""

    path: str
    size: int


class Artifacts(Protocol):
    async def list(self) -> list[Artifact]:
        """Return all files, in the order of their paths."""

    def read(self, path: str) -> AsyncIterator[bytes]:
        """Hand out the bytes of a file."""

    async def write(
        self, path: str, new_blocks: Callable[[], AsyncIterator[bytes]], size: int
    ) -> None:
        """Write a file; what is there is replaced."""


def open_artifacts(uri: str, client: MlflowClient, transfers: Transfers, *, role: str) -> Artifacts:
    """Return what is at a URI.

    Raises:
        ServiceError: it is a place that this service does not reach, or may not.
    """
    if uri.startswith(PROXIED):
        return ProxiedArtifacts(client, uri.removeprefix(PROXIED).lstrip("/"))
    scheme = uri.partition(":")[0]
    if scheme in BUCKETS:
        allowed = transfers.sources if role == "source" else transfers.destinations
        # What is allowed are places of files: those of this folder are, if any one is.
        file = allowed.parse(f"{uri.rstrip('/')}/{MODEL_FILE}")
        folder = file.path.removesuffix(f"/{MODEL_FILE}")
        return BucketArtifacts(Location(file.scheme, file.authority, folder))
    message = (
        f"The artifacts lie at {scheme}:, where this service does not reach them: "
        "they have to be in a bucket, or served by MLflow (mlflow-artifacts:)."
    )
    raise ServiceError("registry_refused", message)


class ProxiedArtifacts:
    """Behind MLflow's server."""

    def __init__(self, client: MlflowClient, root: str) -> None:
        self._client = client
        self._root = root

    async def list(self) -> list[Artifact]:
        found: list[Artifact] = []
        folders = [""]
        while folders:
            folder = folders.pop()
            for each in await self._client.list_artifacts(_join(self._root, folder)):
                path = _join(folder, each["path"])
                if each["is_dir"]:
                    folders.append(path)
                else:
                    found.append(Artifact(path, int(each.get("file_size") or 0)))
            _refuse_too_many(found)
        return sorted(found, key=lambda each: each.path)

    async def read(self, path: str) -> AsyncIterator[bytes]:
        async for block in self._client.read_artifact(_join(self._root, path)):
            yield block

    async def write(
        self, path: str, new_blocks: Callable[[], AsyncIterator[bytes]], size: int
    ) -> None:
        async for attempt in attempts():
            with attempt:
                await self._client.write_artifact(_join(self._root, path), new_blocks(), size)


class BucketArtifacts:
    """In a bucket, with the service's own credentials."""

    def __init__(self, root: Location) -> None:
        self._root = root

    async def list(self) -> list[Artifact]:
        prefix = f"{self._root.path.rstrip('/')}/"
        found = [
            Artifact(key.removeprefix(prefix), size)
            async for key, size in buckets.list_objects(self._root, prefix)
        ]
        _refuse_too_many(found)
        return sorted(found, key=lambda each: each.path)

    async def read(self, path: str) -> AsyncIterator[bytes]:
        _, blocks = await buckets.open_object(self._at(path))
        async for block in blocks:
            yield block

    async def write(
        self, path: str, new_blocks: Callable[[], AsyncIterator[bytes]], size: int
    ) -> None:
        async for attempt in attempts():
            with attempt:
                await buckets.put_object(self._at(path), new_blocks(), size)

    def _at(self, path: str) -> Location:
        key = _join(self._root.path.rstrip("/"), path)
        return Location(self._root.scheme, self._root.authority, key)


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def _refuse_too_many(found: list[Artifact]) -> None:
    if len(found) > MAX_FILES:
        message = f"The version has more than {MAX_FILES} files."
        raise ServiceError("registry_refused", message)
