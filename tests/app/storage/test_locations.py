"""A URL is understood in one way, or refused."""

from __future__ import annotations

import pytest

from app.storage.locations import InvalidLocation, is_below, parse_folder, parse_location


@pytest.mark.parametrize(
    ("text", "scheme", "authority", "path"),
    [
        ("file:///models/a%20b.ckpt", "file", "", "/models/a b.ckpt"),
        ("file:/models/a.ckpt", "file", "", "/models/a.ckpt"),
        ("file://localhost/a.ckpt", "file", "", "/a.ckpt"),
        ("s3://models/team/a.ckpt", "s3", "models", "team/a.ckpt"),
        ("s3://models/a%20b", "s3", "models", "a%20b"),
        ("gs://models/a", "gs", "models", "a"),
        ("az://models/a", "az", "models", "a"),
        ("https://Example.ORG:443/a/b.ckpt", "https", "example.org", "a/b.ckpt"),
        ("https://example.org:8443/a?sig=1", "https", "example.org:8443", "a"),
        ("https://example.org./a", "https", "example.org", "a"),
        ("http://127.0.0.1:80/a", "http", "127.0.0.1", "a"),
        ("https://[::1]/a", "https", "[::1]", "a"),
        ("https://xn--bcher-kva.example/a", "https", "xn--bcher-kva.example", "a"),
    ],
)
def test_location_is_taken_apart(text: str, scheme: str, authority: str, path: str) -> None:
    location = parse_location(text)

    assert (location.scheme, location.authority, location.path) == (scheme, authority, path)
    assert parse_location(location.url) == location


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ftp://example.org/a",
        "models/a.ckpt",
        "/models/a.ckpt",
        "file://elsewhere/a",
        "file:///a/../b",
        "file:///a/%2e%2e/b",
        "file:///a//b",
        "file:///a/",
        "file:///a%00b",
        "file:///a%ff",
        "file:///a?b",
        "s3://models",
        "s3://models/",
        "s3://Models/a",
        "s3://models/../a",
        "s3://key:secret@models/a",
        "s3:/models/a",
        "s3://models/a?versionId=1",
        "https://user@example.org/a",
        "https://user:password@example.org/a",
        "https://example.org/a#b",
        "https://example.org/a/%2e%2e/b",
        "https://example.org/a%2fb",
        "https://example.org/a%5cb",
        "https://example.org/a%00",
        "https://example.org\\@other.org/a",
        "https://example.org/a b",
        "https://exämple.org/a",
        "https://xn--a/a",
        "https://models.xn--a.example/a",
        "https://example.org:port/a",
        "https://example.org:99999/a",
        "https:///a",
        "https://127.1/a",
        "https://0x7f.0.0.1/a",
        "https://0x7f000001/a",
        "https://2130706433/a",
        "https://0177.0.0.1/a",
        "https://[fe80::1%25eth0]/a",
        "https://-example.org/a",
        "https://example.org/a\r\nHost: other",
        "https://example.org/" + "a" * 3000,
    ],
)
def test_what_could_be_understood_otherwise_is_refused(text: str) -> None:
    with pytest.raises(InvalidLocation):
        parse_location(text)


@pytest.mark.parametrize(
    ("text", "folder", "expected"),
    [
        ("s3://models/team/a", "s3://models/team", True),
        ("s3://models/team/a", "s3://models/team/", True),
        ("s3://models/team/a", "s3://models", True),
        ("s3://models/teamwork/a", "s3://models/team", False),
        ("s3://models/team", "s3://models/team", False),
        ("s3://models2/team/a", "s3://models", False),
        ("gs://models/team/a", "s3://models", False),
        ("file:///models/a", "file:///models", True),
        ("file:///modelsx/a", "file:///models", False),
        ("file:///models/a", "file:///", True),
        ("https://example.org/a/b", "https://example.org/a", True),
        ("https://example.org:8443/a/b", "https://example.org/a", False),
        ("http://example.org/a/b", "https://example.org/a", False),
        ("https://cdn.example.org/a", "https://*.example.org", True),
        ("https://example.org/a", "https://*.example.org", False),
        ("https://notexample.org/a", "https://*.example.org", False),
        ("https://example.org.evil.net/a", "https://example.org", False),
    ],
)
def test_folder_is_compared_by_whole_names(text: str, folder: str, expected: bool) -> None:
    assert is_below(parse_location(text), parse_folder(folder)) is expected


def test_signature_is_not_shown() -> None:
    location = parse_location("https://example.org/a?X-Amz-Signature=secret")

    assert "secret" not in str(location)
    assert location.url.endswith("?X-Amz-Signature=secret")
