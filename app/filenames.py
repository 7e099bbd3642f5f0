"""The names of files: what a client calls its upload, and what we call the answer."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import quote

DEFAULT_NAME = "checkpoint.ckpt"

# File systems end at 255 bytes; ".migrated" and the extension still have to fit.
_MAX_STEM_CHARACTERS = 60
_MAX_EXTENSION_CHARACTERS = 16

# Outside these a quoted string needs escapes that clients read differently.
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9 ._()+=@~-]")


def migrated_name(name: str | None, *, extension: str | None = None) -> str:
    """Return NAME.migrated.EXT for an upload of this name, which may be a path of any system."""
    stem, own_extension = _split(_clean(name or ""))
    return f"{stem[:_MAX_STEM_CHARACTERS]}.migrated{extension or own_extension}"


def attachment(name: str) -> str:
    """Return the Content-Disposition that has a client save the body under this name.

    curl takes the plain name and nothing else, and stops where its characters are not plain.
    """
    plain = _NOT_PLAIN.sub("_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _clean(name: str) -> str:
    """Keep the last part of a path, without what is no character to read: controls, line ends."""
    name = unicodedata.normalize("NFC", re.split(r"[/\\]", name)[-1])
    kept = (c for c in name if c == " " or unicodedata.category(c)[0] not in "CZ")
    return "".join(kept).strip(" .")


def _split(name: str) -> tuple[str, str]:
    stem, dot, extension = name.rpartition(".")
    if not name:
        return _split(DEFAULT_NAME)
    if not dot or not stem or len(extension) > _MAX_EXTENSION_CHARACTERS:
        return name, ""
    return stem, dot + extension
