"""Says what a file is that is no checkpoint read here, by its content, and what to do with it.

Only for the sentence of the refusal: nothing is decided here, and nothing unpacked.
"""

from __future__ import annotations

import codecs
import re
import tarfile

from migrate_ckpt.formats.source import Source

START_BYTES = 512
_TAIL_BYTES = 1 << 16
_LOCAL_NAME_OFFSET = 30
_RESAVE = "Load it in a process that trusts it, and save a dict or state dict of it with torch.save"
_AGAIN = "Fetch or save the checkpoint again"
_UNPACK = "Unpack it, and give the checkpoint inside"

# Offset and bytes that a kind of file has there, what it is, what to do.
_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x1f\x8b", "gzip data", f"{_UNPACK} (gunzip)"),
    (0, b"BZh", "bzip2 data", f"{_UNPACK} (bunzip2)"),
    (0, b"\xfd7zXZ\0", "xz data", f"{_UNPACK} (unxz)"),
    (0, b"\x28\xb5\x2f\xfd", "Zstandard data", f"{_UNPACK} (unzstd)"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (0, b"PK\5\6", "an empty zip", _AGAIN),
    (0, b"PK\7\x08", "a part of a split zip", "Join the parts first"),
    (
        0,
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer, which stands for the checkpoint and does not hold it",
        "Fetch the file itself with `git lfs pull`",
    ),
    (
        0,
        b"migrate-ckpt undo ",
        "an undo bundle, which is of a migrated checkpoint and none itself",
        "Give it to `migrate-ckpt revert` with that checkpoint",
    ),
    (0, b"GGUF", "a GGUF file of llama.cpp", "Migrate the checkpoint it was made from"),
    (
        0,
        b"\x93NUMPY",
        "a NumPy array (.npy)",
        "Save it as a tensor, in a dict, with torch.save or safetensors",
    ),
)

_BARE_PICKLE = (
    "a bare pickle, as pickle.dump or joblib write it, and not what torch.save writes",
    _RESAVE,
)
_TAR = (
    "a tar archive",
    f"{_UNPACK}. If an early torch (0.1) wrote it: {_RESAVE[0].lower()}{_RESAVE[1:]}",
)
_HDF5 = (
    "an HDF5 file, as Keras and others write it",
    "Convert it to a state dict of torch, or to safetensors",
)
_WEB_PAGE = (
    "a web page, likely what a server showed in place of the file",
    "Fetch the checkpoint again, and look at what the server says",
)

# Protocols 0 and 1: a dict or list that is put into the memo, or a class.
_OLD_PICKLE = re.compile(rb"\([dl]p\d+\n|[}\]]q.|c[\w.]+\n[\w.]+\n[(p)q]", re.DOTALL)
# What a page may begin with: a byte order mark, space, comments; and then its first element. A comment ends at its
# first end only: else there would be as many ways to try as there are subsets of the comments.
_PAGE = re.compile(
    rb"(?:\xef\xbb\xbf)?(?:\s|<\?xml[^>]*>|<!--(?:(?!-->).)*-->)*"
    rb"<(?:!doctype html|(?:html|head|body|title|meta|script)\b)",
    re.DOTALL | re.IGNORECASE,
)
# The signature is at the beginning, or behind a block of the user's own, of 512 bytes or twice as many and so on
# (HDF5 File Format Specification, "Disk Format: Level 0A").
_HDF5_MARK = b"\x89HDF\r\n\x1a\n"
_HDF5_OFFSETS = (0, 512, 1024, 2048)

# What the names of a zip's records give away: at its end, where its directory is.
_ZIP_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (
        b"/.data/extern_modules",
        "a torch.package archive, which holds code and is no checkpoint",
        _RESAVE,
    ),
    (
        b".npyPK",
        "a NumPy archive (.npz)",
        "Save its arrays as tensors, in a dict, with torch.save or safetensors",
    ),
    (b"[Content_Types].xml", "an Office document", "Give a checkpoint"),
    (b"META-INF/MANIFEST.MF", "a Java archive", "Give a checkpoint"),
)


def describe(source: Source) -> str:
    """The sentence for a file that is of no format read here."""
    start = source.read(0, START_BYTES)
    if not start:
        return f"the file is empty. {_AGAIN}"
    for offset, mark, what, advice in _SIGNATURES:
        if start.startswith(mark, offset):
            return _sentence(what, advice)
    if any(source.read(offset, len(_HDF5_MARK)) == _HDF5_MARK for offset in _HDF5_OFFSETS):
        return _sentence(*_HDF5)
    if _is_tar(start):
        return _sentence(*_TAR)
    if (start[0] == 0x80 and len(start) > 1 and start[1] <= 5) or _OLD_PICKLE.match(start):
        return _sentence(*_BARE_PICKLE)
    if _PAGE.match(start):
        return _sentence(*_WEB_PAGE)
    if _is_text(start):
        return _describe_text(start.removeprefix(codecs.BOM_UTF8).lstrip())
    return _sentence(
        "none that is known here",
        "Checkpoints are read as torch.save writes them, and as safetensors",
    )


def describe_zip(source: Source) -> str | None:
    """The sentence for a zip that is known and no checkpoint of torch; None where it may well be one.

    To be asked when it was refused already: a record of a checkpoint may have any of these names.
    """
    tail = source.read(max(0, source.size - _TAIL_BYTES), _TAIL_BYTES)
    # In a directory the name of a record is followed by the next entry.
    for mark, what, advice in _ZIP_SIGNATURES:
        if mark in tail:
            return _sentence(what, advice)
    start = source.read(0, START_BYTES)
    if b"data.pkl" in start or b"data.pkl" in tail:
        return None
    length = min(int.from_bytes(start[26:28], "little"), 80)
    name = start[_LOCAL_NAME_OFFSET : _LOCAL_NAME_OFFSET + length]
    if not name or len(name) < length:
        return None
    first = repr(name.decode("utf-8", "replace"))
    return _sentence(f"a zip whose first record is {first}, and no checkpoint of torch", _UNPACK)


def _sentence(what: str, advice: str) -> str:
    return f"the file is {what}. {advice}"


def _is_tar(start: bytes) -> bool:
    """Whether the first header is one: its checksum is right, which old ones without a signature have, too."""
    try:
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def _is_text(start: bytes) -> bool:
    try:
        # The last character may be cut off.
        text = codecs.getincrementaldecoder("utf-8")().decode(start.removeprefix(codecs.BOM_UTF8))
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\t\n\r\f" for character in text)


def _describe_text(start: bytes) -> str:
    if start.startswith(b"<?xml"):
        return _sentence("an XML document, likely an error of a file store", _WEB_PAGE[1])
    if start.startswith((b"{", b"[")):
        return _sentence(
            "JSON text, such as a configuration or the index of a checkpoint in several files",
            "Give the checkpoint itself; of several files each by itself",
        )
    return _sentence("text", "Give a checkpoint as torch.save or safetensors write it")
