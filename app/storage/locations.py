"""URLs of checkpoints, taken apart strictly: what could be read in two ways is refused."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import quote, unquote, urlsplit

import idna

Scheme = Literal["file", "s3", "gs", "az", "https", "http"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
BUCKETS: tuple[Scheme, ...] = ("s3", "gs", "az")
WEB: tuple[Scheme, ...] = ("https", "http")

MAX_CHARACTERS = 2048

# Amazon's rule for buckets, Google's, and Azure's for containers all lie within it.
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_HOST = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*"
)
_ENCODED_SEPARATOR = re.compile(r"%(2[eEfF]|5[cC]|25|00)")


class InvalidLocation(ValueError):
    """A text that is no URL of a checkpoint; says why, without the text."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where a checkpoint lies.

    Attributes:
        scheme: how it is come by.
        authority: the bucket, or the host with its port; empty for a file.
        path: the key in the bucket, the path on the host, or the absolute path of the file; no slash at its
            start but for a file's.
        query: of an address of the web.
    """

    scheme: Scheme
    authority: str
    path: str
    query: str = ""

    def __str__(self) -> str:
        """Return the URL without its query, which may hold a signature."""
        if self.scheme == "file":
            return f"file://{quote(self.path)}"
        return f"{self.scheme}://{self.authority}/{self.path}"

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def url(self) -> str:
        """The whole URL, for the request itself only."""
        return f"{self}?{self.query}" if self.query else str(self)


def parse_location(text: str) -> Location:
    """Take the URL of one checkpoint apart.

    Raises:
        InvalidLocation: it is none, or could be understood in more than one way.
    """
    location = _parse(text)
    if not location.path or location.path.endswith("/"):
        raise InvalidLocation("it names no file")
    return location


def parse_address(text: str) -> Location:
    """Take apart the URL of something on the web, which may be a host's first page.

    Raises:
        InvalidLocation: it is none.
    """
    if not text.startswith(("https://", "http://")):
        raise InvalidLocation("it does not begin with https:// or http://")
    return _parse(text)


def parse_folder(text: str) -> Location:
    """Take apart the URL of a folder, a bucket or a host, below which checkpoints may lie.

    Raises:
        InvalidLocation: it is none.
    """
    wildcard = text.startswith(("https://*.", "http://*."))
    location = _parse(text.replace("://*.", "://", 1) if wildcard else text)
    if location.query:
        raise InvalidLocation("a folder has no query")
    authority = f"*.{location.authority}" if wildcard else location.authority
    path = location.path.rstrip("/") or ("/" if location.scheme == "file" else "")
    return Location(location.scheme, authority, path)


def is_below(location: Location, folder: Location) -> bool:
    """Return whether a location lies in a folder, whole names compared."""
    if location.scheme != folder.scheme or not _is_authority(location.authority, folder.authority):
        return False
    path = location.path
    is_itself = location.scheme in WEB and path.rstrip("/") == folder.path
    return not folder.path.strip("/") or is_itself or path.startswith(f"{folder.path}/")


def _is_authority(authority: str, allowed: str) -> bool:
    if allowed.startswith("*."):
        return authority.endswith(allowed[1:]) and authority != allowed[2:]
    return authority == allowed


def _parse(text: str) -> Location:
    if len(text) > MAX_CHARACTERS:
        raise InvalidLocation(f"it has more than {MAX_CHARACTERS} characters")
    if not text.isprintable() or any(character in text for character in " \\"):
        raise InvalidLocation("it has characters that no URL has")
    scheme = next((each for each in SCHEMES if text.startswith(f"{each}:/")), None)
    if scheme is None:
        raise InvalidLocation(f"it begins with none of {', '.join(f'{s}://' for s in SCHEMES)}")
    if scheme == "file":
        return _parse_file(text)
    if not text.startswith(f"{scheme}://"):
        raise InvalidLocation(f"it begins with {scheme}:/ and not {scheme}://")
    if scheme in WEB:
        return _parse_web(scheme, text)
    bucket, _, key = text.removeprefix(f"{scheme}://").partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise InvalidLocation("its bucket has a name that no bucket has")
    if "?" in key or "#" in key:
        raise InvalidLocation("its key has a ? or # in it")
    return Location(scheme, bucket, _names(key))


def _parse_file(text: str) -> Location:
    path = text.removeprefix("file:")
    if path.startswith("//"):
        host, _, path = path.removeprefix("//").partition("/")
        path = f"/{path}"
        if host not in ("", "localhost"):
            raise InvalidLocation("it names a file of another machine")
    if "?" in path or "#" in path:
        raise InvalidLocation("its path has a ? or # that is not encoded")
    path = unquote(path, errors="strict") if _is_utf8(path) else ""
    if "\0" in path or not path:
        raise InvalidLocation("its path cannot be decoded")
    return Location("file", "", f"/{_names(path.removeprefix('/'))}")


def _is_utf8(path: str) -> bool:
    try:
        unquote(path, errors="strict")
    except UnicodeDecodeError:
        return False
    return True


def _parse_web(scheme: Scheme, text: str) -> Location:
    if not text.isascii():
        raise InvalidLocation("it has characters that are not ASCII: encode them")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise InvalidLocation(f"it is malformed: {error}") from error
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise InvalidLocation("it has a user name in it")
    if parts.fragment or text.endswith("#"):
        raise InvalidLocation("it has a fragment")
    if _ENCODED_SEPARATOR.search(parts.path):
        raise InvalidLocation("its path has an encoded dot, slash, backslash, percent sign or zero")
    host = (parts.hostname or "").removesuffix(".")
    is_default = port in (None, 443 if scheme == "https" else 80)
    authority = _host(host) + ("" if is_default else f":{port}")
    return Location(scheme, authority, _names(parts.path.removeprefix("/")), parts.query)


def _host(host: str) -> str:
    if "%" in host:
        raise InvalidLocation("its host has a zone, or is encoded")
    if ":" in host:
        try:
            return f"[{ipaddress.IPv6Address(host)}]"
        except ValueError as error:
            raise InvalidLocation("its host is no address") from error
    if not _HOST.fullmatch(host):
        raise InvalidLocation("its host has a name that no host has")
    if any(label.startswith("xn--") for label in host.split(".")):
        try:
            idna.decode(host)
        except UnicodeError as error:
            raise InvalidLocation("its host has an xn-- name that stands for none") from error
    # `127.1`, `0x7f.0.0.1` and `2130706433` are addresses to some resolvers.
    last = host.rpartition(".")[2]
    if last.isdecimal() or re.fullmatch(r"0x[0-9a-f]*", last):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError as error:
            raise InvalidLocation("its host is no address") from error
    return host


def _names(path: str) -> str:
    """Return a path of names, none of which is empty but the last, or means another folder."""
    *names, last = path.split("/")
    if any(name in ("", ".", "..") for name in names) or last in (".", ".."):
        raise InvalidLocation("its path has an empty name, . or .. in it")
    return path
