"""The parts of a multipart form, as the parser finds them: one file, a few short fields, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from python_multipart.multipart import parse_options_header

from app.errors import ServiceError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FILE_PART = "file"
MAX_FIELD_BYTES = 4096
MAX_FIELDS = 16

_HINT = (
    f'the checkpoint goes into a part named "{FILE_PART}", as curl -F {FILE_PART}=@old.ckpt does'
)


class FormReader:
    """Collects the fields and hands the file's bytes on without copying them."""

    def __init__(self, add_to_file: Callable[[memoryview], None], names: Collection[str]) -> None:
        self.filename: str | None = None
        self.fields: list[tuple[str, str]] = []
        self._add_to_file = add_to_file
        self._names = names
        self._has_file = False
        self._is_complete = False
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._field: tuple[str, bytearray] | None = None

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._take,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def check_complete(self) -> None:
        """Refuse a form that ends early or holds no file."""
        if not self._is_complete:
            raise ServiceError(
                "malformed_upload", "The multipart body ends before its last boundary."
            )
        if not self._has_file:
            raise ServiceError("no_file", f"The form holds no file: {_HINT}.")

    def _begin_part(self) -> None:
        self._disposition = b""
        self._field = None

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition.decode("latin-1"))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name == FILE_PART:
            self._begin_file(options.get(b"filename", b"").decode("utf-8", "replace"))
        else:
            self._begin_field(name)

    def _begin_file(self, filename: str) -> None:
        if self._has_file:
            raise ServiceError("several_files", "The form holds two files; send one at a time.")
        self._has_file = True
        self.filename = filename or None

    def _begin_field(self, name: str) -> None:
        if name not in self._names:
            message = f'The form has a field "{name}", which means nothing here; {_HINT}.'
            raise ServiceError("unknown_parameter", message, parameter=name)
        if len(self.fields) == MAX_FIELDS:
            raise ServiceError("malformed_upload", f"The form has more than {MAX_FIELDS} fields.")
        self._field = (name, bytearray())

    def _take(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self._add_to_file(memoryview(data)[start:end])
            return
        name, value = self._field
        value += data[start:end]
        if len(value) > MAX_FIELD_BYTES:
            message = f'The form field "{name}" is longer than {MAX_FIELD_BYTES} bytes.'
            raise ServiceError("invalid_parameter", message, parameter=name)

    def _end_part(self) -> None:
        if self._field is not None:
            name, value = self._field
            self.fields.append((name, value.decode("utf-8", "replace")))

    def _end(self) -> None:
        self._is_complete = True
