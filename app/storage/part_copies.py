"""Assembles an object in S3 from ranges of another one, which the store copies by itself, and from new bytes.

Of a multipart upload each part but the last has at least 5 MiB, each at most 5 GiB, and there are at most 10,000
(Amazon S3 User Guide, "Multipart upload limits"). So new bytes that are fewer are filled up with those around them.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from app.copying import Tell
from app.errors import ServiceError
from app.responses import Extent, read_blocks
from app.storage.buckets import FINGERPRINT
from app.storage.locations import Location
from app.storage.part_fetching import RemoteObject, RemoteRange
from app.threads import Check

logger = logging.getLogger(__name__)

MIN_PART_BYTES = 5 * 2**20
MAX_COPY_BYTES = 5 * 2**30
MAX_UPLOAD_BYTES = 64 * 2**20
MAX_PARTS = 10_000

AnyExtent: TypeAlias = Extent | RemoteRange

# How stores say that they do not copy parts, or not from there.
_NO_PART_COPIES = ("NotImplemented", "InvalidRequest", "MethodNotAllowed", "InvalidArgument")
_NOT_FOUND = ("NoSuchKey", "NoSuchBucket", "404")
_REFUSED = ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch")


class NoPartCopies(Exception):
    """The store does not take this object in parts that it copies."""


@dataclass(slots=True)
class Part:
    """One part: a range that the store copies, or bytes that are sent."""

    copied: RemoteRange | None = None
    sent: list[AnyExtent] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.copied.count if self.copied else sum(extent.count for extent in self.sent)


@dataclass(slots=True)
class Moved:
    """How many bytes were moved: by the store itself, from there to here, and from here to there."""

    copied_bytes: int = 0
    fetched_bytes: int = 0
    sent_bytes: int = 0


def plan_parts(extents: Iterable[AnyExtent]) -> list[Part]:
    """Return the parts of an object: copied wherever that is allowed, and as few bytes as may be sent.

    Raises:
        NoPartCopies: there would be too many.
    """
    parts: list[Part] = []
    sending = Part()
    for extent in extents:
        if isinstance(extent, Extent):
            sending = _send(parts, sending, extent)
            continue
        filling = max(MIN_PART_BYTES - sending.count, 0) if sending.sent else 0
        if extent.count - filling < MIN_PART_BYTES:
            # What would be left is too short for a part, unless it were the last; it is not worth finding that out.
            sending = _send(parts, sending, extent)
            continue
        if sending.sent:
            if filling:
                sending.sent.append(RemoteRange(extent.source, extent.offset, filling))
            parts.append(sending)
            sending = Part()
        parts += _copies(extent, filling)
    if sending.sent:
        parts.append(sending)
    if len(parts) > MAX_PARTS:
        raise NoPartCopies(f"it would take {len(parts)} parts")
    return parts


def _send(parts: list[Part], sending: Part, extent: AnyExtent) -> Part:
    """Add an extent to the part that is sent next; one that is long enough is closed."""
    done = 0
    while done < extent.count:
        count = min(extent.count - done, MAX_UPLOAD_BYTES - sending.count)
        sending.sent.append(_part_of(extent, done, count))
        done += count
        if sending.count >= MAX_UPLOAD_BYTES:
            parts.append(sending)
            sending = Part()
    return sending


def _part_of(extent: AnyExtent, begin: int, count: int) -> AnyExtent:
    if isinstance(extent, RemoteRange):
        return RemoteRange(extent.source, extent.offset + begin, count)
    return Extent(extent.descriptor, extent.offset + begin, count)


def _copies(extent: RemoteRange, begin: int) -> list[Part]:
    """Return the parts that copy a range from one of its bytes on; all of about one length."""
    count = extent.count - begin
    number = -(-count // MAX_COPY_BYTES)
    bounds = [begin + count * n // number for n in range(number + 1)]
    return [
        Part(RemoteRange(extent.source, extent.offset + start, end - start))
        for start, end in itertools.pairwise(bounds)
    ]


class PartCopies:
    """Writes objects of S3 in parts."""

    def __init__(self, client: Any) -> None:
        self._client = client

    @classmethod
    def from_environment(cls) -> PartCopies | None:
        """Return what uses the credentials of the environment; None where boto3 is not installed."""
        try:
            import boto3
            from botocore.config import Config
        except ModuleNotFoundError:
            return None
        # Of the region boto3 knows one of the names only that obstore knows.
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        config = Config(
            connect_timeout=10,
            read_timeout=600,
            retries={"mode": "standard", "max_attempts": 5},
            # Stores that are like S3 do not all know its newer checksums.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return cls(boto3.client("s3", region_name=region or "us-east-1", config=config))

    def write(
        self,
        destination: Location,
        extents: Sequence[AnyExtent],
        fingerprint: str,
        tell: Tell,
        check: Check,
    ) -> Moved:
        """Write an object; it is there when all of it is. `check` may end it.

        Raises:
            NoPartCopies: the store does not do that; nothing is there.
            ServiceError: it cannot be written.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        parts = plan_parts(extents)
        target = {"Bucket": destination.authority, "Key": destination.path}
        try:
            begun = self._client.create_multipart_upload(
                **target,
                ContentType="application/octet-stream",
                Metadata={FINGERPRINT: fingerprint},
            )
            upload = {**target, "UploadId": begun["UploadId"]}
            try:
                return self._write_parts(upload, parts, tell, check)
            except BaseException:
                # What went wrong first is what is told; a rule of the bucket ends what is left over.
                with contextlib.suppress(ClientError, BotoCoreError):
                    self._client.abort_multipart_upload(**upload)
                raise
        except ClientError as error:
            raise _translated(error, destination, parts) from error
        except BotoCoreError as error:
            logger.warning("%s cannot be used: %s", destination, error)
            message = f"{destination} cannot be used at the moment; the log says why."
            raise ServiceError("destination_unavailable", message, retryable=True) from error

    def _write_parts(
        self, upload: Mapping[str, str], parts: Sequence[Part], tell: Tell, check: Check
    ) -> Moved:
        moved, tags, done = Moved(), [], 0
        for number, part in enumerate(parts, 1):
            check()
            if part.copied is not None:
                tag = self._copy(upload, number, part.copied)
                moved.copied_bytes += part.count
            else:
                tag = self._send(upload, number, part, moved)
            tags.append({"PartNumber": number, "ETag": tag})
            done += part.count
            tell(done)
        self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": tags})
        return moved

    def _copy(self, upload: Mapping[str, str], number: int, piece: RemoteRange) -> str:
        answer = self._client.upload_part_copy(
            **upload,
            PartNumber=number,
            CopySource=_place(piece.source),
            CopySourceIfMatch=piece.source.e_tag,
            CopySourceRange=f"bytes={piece.offset}-{piece.offset + piece.count - 1}",
        )
        tag: str = answer["CopyPartResult"]["ETag"]
        return tag

    def _send(self, upload: Mapping[str, str], number: int, part: Part, moved: Moved) -> str:
        body = bytearray()
        for extent in part.sent:
            if isinstance(extent, RemoteRange):
                body += self._read(extent)
                moved.fetched_bytes += extent.count
            else:
                for block in read_blocks([extent]):
                    body += block
        moved.sent_bytes += len(body)
        answer = self._client.upload_part(**upload, PartNumber=number, Body=body)
        tag: str = answer["ETag"]
        return tag

    def _read(self, piece: RemoteRange) -> bytes:
        answer = self._client.get_object(
            **_place(piece.source),
            IfMatch=piece.source.e_tag,
            Range=f"bytes={piece.offset}-{piece.offset + piece.count - 1}",
        )
        data: bytes = answer["Body"].read()
        return data


def _place(source: RemoteObject) -> dict[str, str]:
    return {"Bucket": source.location.authority, "Key": source.location.path}


def _translated(error: Any, destination: Location, parts: Sequence[Part]) -> Exception:
    """Say what went wrong in our words: those of the store may hold keys and addresses."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    is_of_source = error.operation_name in ("GetObject", "UploadPartCopy")
    role = "source" if is_of_source else "destination"
    location = destination
    if is_of_source:
        location = next(
            extent.source.location
            for part in parts
            for extent in (part.copied, *part.sent)
            if isinstance(extent, RemoteRange)
        )
    logger.warning("%s: %s answered %s", location, error.operation_name, code)
    if code in ("PreconditionFailed", "412"):
        message = f"{location} was changed while it was migrated; send the job again."
        return ServiceError("source_changed", message, retryable=True)
    if error.operation_name == "UploadPartCopy" and code in _NO_PART_COPIES:
        return NoPartCopies(code)
    if code in _NOT_FOUND:
        return ServiceError(f"{role}_not_found", f"There is nothing at {location}.")
    if code in _REFUSED:
        message = f"The service's credentials do not let it use {location}."
        return ServiceError(f"{role}_refused", message)
    message = f"{location} cannot be used at the moment; the log says why."
    return ServiceError(f"{role}_unavailable", message, retryable=True)
