"""Says what a file is that is no checkpoint read here, by its content, and what to do with it.

Only for the sentence of the refusal: nothing is decided here, and nothing unpacked.
"""

from __future__ import annotations

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
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file, as Keras and others write it",
        "Convert it to a state dict of torch, or to safetensors",
    ),
    (
        0,
        b"\x93NUMPY",
        "a NumPy array (.npy)",
        "Save it as a tensor, in a dict, with torch.save or safetensors",
    ),
    (
        257,
        b"ustar",
        "a tar archive",
        f"{_UNPACK}. If an early torch (0.1) wrote it: {_RESAVE[0].lower()}{_RESAVE[1:]}",
    ),
)

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
    if start[0] == 0x80 and len(start) > 1 and start[1] <= 5:
        return _sentence(
            "a bare pickle, as pickle.dump or joblib write it, and not what torch.save writes",
            _RESAVE,
        )
    if _is_text(start):
        return _describe_text(start.lstrip())
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
    length = int.from_bytes(start[26:28], "little")
    name = start[_LOCAL_NAME_OFFSET : _LOCAL_NAME_OFFSET + min(length, 80)]
    first = repr(name.decode("utf-8", "replace"))
    return _sentence(f"a zip whose first record is {first}, and no checkpoint of torch", _UNPACK)


def _sentence(what: str, advice: str) -> str:
    return f"the file is {what}. {advice}"


def _is_text(start: bytes) -> bool:
    try:
        # The last character may be cut off.
        text = (
            start.decode("utf-8")
            if len(start) < START_BYTES
            else start[:-4].decode("utf-8", "ignore")
        )
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\t\n\r\f" for character in text)


def _describe_text(start: bytes) -> str:
    again = "Fetch the checkpoint again, and look at what the server says"
    begin = start[:15].lower()
    if begin.startswith((b"<!doctype html", b"<html")):
        return _sentence("a web page, likely what a server showed in place of the file", again)
    if begin.startswith(b"<?xml"):
        return _sentence("an XML document, likely an error of a file store", again)
    if begin.startswith((b"{", b"[")):
        return _sentence(
            "JSON text, such as a configuration or the index of a checkpoint in several files",
            "Give the checkpoint itself; of several files each by itself",
        )
    return _sentence("text", "Give a checkpoint as torch.save or safetensors write it")
