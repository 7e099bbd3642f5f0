"""What the operator may set: environment variables that start with MIGRATE_CKPT_, checked before anything starts."""

from __future__ import annotations

import base64
import difflib
import os
import re
import tempfile
from collections.abc import Iterable
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    ByteSize,
    DirectoryPath,
    Field,
    FilePath,
    HttpUrl,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.linux import total_memory_bytes
from app.logs import LogFormat, LogLevel
from app.storage.locations import BUCKETS, InvalidLocation, parse_folder
from migrate_ckpt import read_allowed_globals

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

PREFIX = "MIGRATE_CKPT_"

# What Kubernetes puts into every container of a namespace that has a service "migrate-ckpt", or "migrate-ckpt-…".
_KUBERNETES = re.compile(
    r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)|PORT_\w+"
)


# As browsers send it: a scheme, a host, a port where it is not the usual one, and no path.
_ORIGIN = re.compile(r"\*|https?://[^/\s]+")


# What no message repeats.
_SECRETS = ("tokens", "callback_secret", "hook_secret", "mlflow_secret", "database_url")


class SettingsError(Exception):
    """A variable of ours is misspelt, or its value cannot be used."""


class Settings(BaseSettings):
    """The settings of one service; they do not change while it runs."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, validate_default=True
    )

    migrations_folder: DirectoryPath = Field(
        Path("migrations"),
        description="The folder of migrations; its sub-folders are further sets.",
    )
    scratch_folder: DirectoryPath = Field(
        default_factory=lambda: Path(tempfile.gettempdir()),
        description="Where uploads wait and new bytes are written; a disk, not memory.",
    )
    max_upload_bytes: ByteSize = Field(
        ByteSize(64 * 2**30), gt=0, description="The largest checkpoint that is taken."
    )
    max_concurrent_runs: PositiveInt = Field(
        default_factory=lambda: os.cpu_count() or 1,
        description="How many runs there are at once; further ones wait.",
    )
    max_queued_runs: NonNegativeInt = Field(
        32, description="How many requests are let in beside those; further ones are sent away."
    )
    run_timeout_seconds: float = Field(
        600, gt=0, allow_inf_nan=False, description="How long one run may take."
    )
    run_memory_bytes: ByteSize = Field(
        ByteSize(4 * 2**30),
        gt=0,
        description="What one run may hold in memory, beyond the loaded libraries and mapped file pages.",
    )
    memory_budget_bytes: ByteSize = Field(
        default_factory=lambda: ByteSize(total_memory_bytes() * 3 // 4),
        gt=0,
        description="What all runs at once may be expected to hold; further ones wait.",
    )
    shutdown_grace_seconds: float = Field(
        25,
        ge=0,
        allow_inf_nan=False,
        description="How long what is under way may go on when the service is told to stop.",
    )
    data_folder: Path | None = Field(
        None, description="Where jobs and their results are kept; without it, there are no jobs."
    )
    database_url: SecretStr | None = Field(
        None,
        description="The PostgreSQL database that many processes keep their jobs in, in place of that folder.",
    )
    results_url: str | None = Field(
        None,
        description="The bucket, or a folder in one, that they keep uploads and results in.",
    )
    result_ttl_seconds: float = Field(
        86400, gt=0, allow_inf_nan=False, description="How long the result of a job is kept."
    )
    fetch_timeout_seconds: float = Field(
        4 * 3600,
        gt=0,
        allow_inf_nan=False,
        description="How long a checkpoint may take to be fetched, with all attempts.",
    )
    max_queued_jobs: PositiveInt = Field(
        1000, description="How many jobs may wait; further ones are sent away."
    )
    max_result_bytes: ByteSize = Field(
        ByteSize(256 * 2**30),
        gt=0,
        description="What all kept results may take of the disk; the oldest go first.",
    )
    allowed_sources: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="The folders, buckets and hosts that jobs may fetch checkpoints from."
    )
    allowed_destinations: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="The folders and buckets that jobs may write results to."
    )
    allowed_callbacks: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="The hosts and paths that may be told when a job has ended."
    )
    callback_secret: SecretStr | None = Field(
        None,
        description="What callbacks are signed with: whsec_ and base64; several while one is replaced.",
    )
    callback_secret_file: FilePath | None = Field(
        None, description="The same, in a file that is read at the start."
    )
    # As Standard Webhooks proposes it: longer and longer, for four days.
    callback_delays_seconds: Annotated[tuple[NonNegativeFloat, ...], NoDecode] = Field(
        (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400),
        description="The pauses between the attempts of a callback.",
    )
    hook_secret: SecretStr | None = Field(
        None,
        description="What deliveries to /hooks/standard are signed with; several while one is replaced.",
    )
    hook_secret_file: FilePath | None = Field(
        None, description="The same, in a file that is read at the start."
    )
    mlflow_url: HttpUrl | None = Field(
        None, description="The MLflow server whose model versions are migrated."
    )
    mlflow_secret: SecretStr | None = Field(
        None,
        description="What MLflow signs its deliveries to /hooks/mlflow with; several while one is replaced.",
    )
    mlflow_secret_file: FilePath | None = Field(
        None, description="The same, in a file that is read at the start."
    )
    mlflow_models: Annotated[tuple[tuple[str, str], ...], NoDecode] = Field(
        (("*", "default"),),
        description="Which models are migrated, and by which set: patterns of their names.",
    )
    mlflow_files: Annotated[tuple[str, ...], NoDecode] = Field(
        ("*.ckpt", "*.pt", "*.pth", "*.safetensors"),
        description="Which files of a version are checkpoints: patterns of their names, or of their paths.",
    )
    mlflow_aliases: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Which aliases go over to the migrated version: patterns of their names."
    )
    mlflow_reconcile_seconds: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="How often versions are looked for whose delivery did not arrive; without it, never.",
    )
    fetch_whole: bool = Field(
        False,
        description="Fetch all of a checkpoint that lies in a bucket, and compare its checksums, also where a few of "
        "its bytes would do.",
    )
    allowed_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        (),
        description="The networks, beside public ones, that the service may connect to for a job.",
    )
    policy: Literal["skip-missed", "strict", "run-missed"] = Field(
        "skip-missed", description="What becomes of missed migrations where a request does not say."
    )
    allowed_globals_file: FilePath | None = Field(
        None,
        description="A list of the classes and functions that a file may name; without it, all.",
    )
    sandbox: Literal["available", "required"] = Field(
        "available",
        description="Whether the service starts where a layer of the sandbox is missing.",
    )
    run_uid: PositiveInt | None = Field(
        None, description="Whom the runs belong to where the service is root."
    )
    tokens_file: FilePath | None = Field(
        None, description="The access tokens, in a file that is read again when it changes."
    )
    tokens: SecretStr | None = Field(None, description="The access tokens themselves.")
    allow_anonymous: bool = Field(
        False,
        description="Listen on an address that other machines can reach, without access tokens.",
    )
    log_format: LogFormat = Field(
        "auto", description="Lines of JSON or of text; text on a terminal where it is auto."
    )
    log_level: LogLevel = Field("info", description="From where on the log says something.")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="The origins whose pages may call this service from a browser."
    )

    @field_validator("allowed_globals_file")
    @classmethod
    def _is_text(cls, path: Path | None) -> Path | None:
        # What cannot be read is refused at the start, not at the first request.
        if path is not None:
            path.read_text(encoding="utf-8")
        return path

    @field_validator("database_url")
    @classmethod
    def _is_postgresql(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and urlsplit(url.get_secret_value()).scheme != "postgresql":
            raise ValueError("a database is named as postgresql://user@host:5432/name")
        return url

    @field_validator("results_url")
    @classmethod
    def _is_bucket(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            folder = parse_folder(url)
        except InvalidLocation as error:
            raise ValueError(f"it is no bucket: {error}") from error
        if folder.scheme not in BUCKETS:
            raise ValueError(
                "results of many processes are kept in a bucket: s3://, gs:// or az://"
            )
        return str(folder).rstrip("/")

    @field_validator("mlflow_models", mode="before")
    @classmethod
    def _are_pairs(cls, text: object) -> object:
        if not isinstance(text, str):
            return text
        entries = text.replace(",", " ").split()
        pairs = [
            (pattern, set_name) for pattern, _, set_name in (e.partition("=") for e in entries)
        ]
        if not all(pattern and set_name for pattern, set_name in pairs):
            raise ValueError("a list of models looks like vision-*=vision *=default")
        return pairs

    @field_validator("callback_secret_file", "hook_secret_file")
    @classmethod
    def _holds_secrets(cls, path: Path | None) -> Path | None:
        if path is not None:
            _webhook_secrets(path.read_text(encoding="utf-8"))
        return path

    @field_validator("callback_secret", "hook_secret")
    @classmethod
    def _are_secrets(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            _webhook_secrets(secret.get_secret_value())
        return secret

    @cached_property
    def callback_secrets(self) -> tuple[str, ...]:
        """All secrets that callbacks are signed with, the first one first."""
        return _webhook_secrets(_joined(self.callback_secret, self.callback_secret_file))

    @cached_property
    def hook_secrets(self) -> tuple[str, ...]:
        """All secrets that deliveries to /hooks/standard may be signed with."""
        return _webhook_secrets(_joined(self.hook_secret, self.hook_secret_file))

    @cached_property
    def mlflow_secrets(self) -> tuple[str, ...]:
        """All secrets that MLflow may sign its deliveries with."""
        return tuple(_joined(self.mlflow_secret, self.mlflow_secret_file).split())

    @cached_property
    def allowed_globals(self) -> tuple[str, ...] | None:
        """What that file lists, read once."""
        if self.allowed_globals_file is None:
            return None
        return read_allowed_globals(self.allowed_globals_file.read_text(encoding="utf-8"))

    @field_validator(
        "cors_origins",
        "allowed_sources",
        "allowed_destinations",
        "allowed_callbacks",
        "callback_delays_seconds",
        "allowed_networks",
        "mlflow_files",
        "mlflow_aliases",
        mode="before",
    )
    @classmethod
    def _split(cls, texts: object) -> object:
        return texts.replace(",", " ").split() if isinstance(texts, str) else texts

    @field_validator("allowed_sources", "allowed_destinations", "allowed_callbacks")
    @classmethod
    def _are_folders(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            try:
                parse_folder(text)
            except InvalidLocation as error:
                raise ValueError(f"{text} is no folder, bucket or host: {error}") from error
        return texts

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin} is no origin; one looks like https://example.org:8443")
        return origins

    @field_validator("migrations_folder", "scratch_folder", "data_folder")
    @classmethod
    def _absolute(cls, folder: Path | None) -> Path | None:
        return folder and folder.resolve()


def _joined(secret: SecretStr | None, path: Path | None) -> str:
    texts = [] if secret is None else [secret.get_secret_value()]
    if path is not None:
        texts.append(path.read_text(encoding="utf-8"))
    return " ".join(texts)


def _webhook_secrets(text: str) -> tuple[str, ...]:
    """Return the secrets in a text; what is none is refused without being told."""
    secrets = tuple(text.replace(",", " ").split())
    for secret in secrets:
        try:
            key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except ValueError:
            key = b""
        if not secret.startswith("whsec_") or not 24 <= len(key) <= 64:
            raise ValueError("a secret is whsec_ and the base64 of 24 to 64 random bytes")
    return secrets


def read_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        SettingsError: a variable is misspelt or its value cannot be used; the message names it.
    """
    _refuse_misspelt(name for name in os.environ if name.upper().startswith(PREFIX))
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError("\n".join(map(_describe, error.errors()))) from error


def _refuse_misspelt(names: Iterable[str]) -> None:
    known = [PREFIX + field.upper() for field in Settings.model_fields]
    for name in sorted(names):
        bare = name.upper().removeprefix(PREFIX)
        if name.upper() in known or _KUBERNETES.fullmatch(bare):
            continue
        nearest = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0)
        raise SettingsError(f"{name} is no setting of this service; did you mean {nearest[0]}?")


def _describe(error: ErrorDetails) -> str:
    name = PREFIX + str(error["loc"][0]).upper()
    is_secret = str(error["loc"][0]) in _SECRETS
    value = "" if is_secret else f"={os.environ.get(name, error['input'])}"
    return f"{name}{value} cannot be used: {error['msg']}"
