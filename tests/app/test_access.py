from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from app.access import (
    ROUTES,
    Access,
    InvalidTokens,
    needed_scope,
    new_token,
    read_tokens,
)
from app.errors import ServiceError
from app.main import create_app
from app.settings import Settings, SettingsError
from tests.app.conftest import Client

CI = "mck_" + "c" * 30
GRAFANA = "mck_" + "g" * 30
HASHED = hashlib.sha256(GRAFANA.encode()).hexdigest()
LIST = f"""\
# Who may use the service.
ci:migrate,read:{CI}

grafana:read:sha256:{HASHED}   # its token is in the vault
"""


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def write(path: Path, text: str) -> Path:
    """Put another file in this one's place, as editors and secret stores do."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    return beside.rename(path)


def test_list_holds_tokens_and_digests_of_tokens() -> None:
    ci, grafana = read_tokens(LIST)

    assert (ci.name, ci.scopes) == ("ci", {"migrate", "read"})
    assert ci.digest == hashlib.sha256(CI.encode()).digest()
    assert (grafana.name, grafana.scopes) == ("grafana", {"read"})
    assert grafana.digest.hex() == HASHED


def test_entries_may_stand_in_one_line() -> None:
    assert len(read_tokens(f"a:read:{CI} b:read:{GRAFANA}")) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no token"),
        ("# nothing but a remark\n", "no token"),
        (f"\n{CI}\n", "line 2 is not"),
        (f"ci:{CI}", "line 1 is not"),
        (f"c*i:read:{CI}", "line 1 is not"),
        (f"ci:write:{CI}", "other scopes than migrate and read"),
        (f"ci:read,read:{CI}", "other scopes"),
        ("ci:read:secret", "shorter than 20"),
        (f"ci:read:sha256:{HASHED[:-1]}", "line 1 is not"),
        (f"ci:read:sha512:{HASHED}", "line 1 is not"),
    ],
)
def test_list_that_cannot_be_used_is_refused_without_naming_a_token(text: str, words: str) -> None:
    with pytest.raises(InvalidTokens, match=words) as caught:
        read_tokens(text)

    assert CI not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_new_token_is_let_in_by_its_entry_which_does_not_hold_it() -> None:
    token, entry = new_token("ci", "migrate")

    access = Access(read_tokens(entry))

    found = access.check(f"Bearer {token}", "migrate")
    assert found is not None
    assert found.name == "ci"
    assert token not in entry
    assert new_token("ci", "migrate") != (token, entry)


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Basic {CI}",
        CI,
        f"Bearer {CI} {CI}",
        f"Bearer {CI}x",
        f"Bearer {CI[:-1]}",
        f"Bearer {HASHED}",
        f"Bearer sha256:{HASHED}",
    ],
)
def test_what_is_no_token_of_the_list_is_refused(authorization: str | None) -> None:
    access = Access(read_tokens(LIST))

    with pytest.raises(ServiceError) as caught:
        access.check(authorization, "read")

    assert caught.value.error_type == "unauthorized"


def test_scheme_may_be_written_in_any_case() -> None:
    assert Access(read_tokens(LIST)).check(f"bearer {CI}", "migrate") is not None


def test_token_without_the_scope_is_refused_by_name() -> None:
    access = Access(read_tokens(LIST))

    with pytest.raises(ServiceError, match=r'"grafana".*scope migrate') as caught:
        access.check(f"Bearer {GRAFANA}", "migrate")

    assert caught.value.error_type == "insufficient_scope"


def test_without_tokens_everybody_may_do_everything() -> None:
    assert Access().is_open
    assert Access().check(None, "migrate") is None


def test_changed_file_is_read_again(tmp_path: Path) -> None:
    file = write(tmp_path / "tokens", LIST)
    access = Access.from_settings(Settings(migrations_folder=tmp_path, tokens_file=file))
    write(file, f"ci:read:{GRAFANA}")

    access.reload()

    assert access.check(f"Bearer {GRAFANA}", "read") is not None
    with pytest.raises(ServiceError):
        access.check(f"Bearer {CI}", "read")


def test_file_of_a_config_map_is_read_again_when_its_link_is_set_anew(tmp_path: Path) -> None:
    # As the kubelet does it: the file is a link through ..data, and that is what changes.
    for name, token in (("..1", CI), ("..2", GRAFANA)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokens").write_text(f"ci:read:{token}")
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "tokens").symlink_to("..data/tokens")
    settings = Settings(migrations_folder=tmp_path, tokens_file=tmp_path / "tokens")
    access = Access.from_settings(settings)
    (tmp_path / "..data_tmp").symlink_to("..2")
    os.rename(tmp_path / "..data_tmp", tmp_path / "..data")

    access.reload()

    assert access.check(f"Bearer {GRAFANA}", "read") is not None


@pytest.mark.parametrize("text", ["", "ci:read:short", None], ids=["empty", "broken", "gone"])
def test_broken_file_leaves_the_tokens_as_they_are(tmp_path: Path, text: str | None) -> None:
    file = write(tmp_path / "tokens", LIST)
    access = Access.from_settings(Settings(migrations_folder=tmp_path, tokens_file=file))
    if text is None:
        file.unlink()
    else:
        write(file, text)

    access.reload()

    assert access.check(f"Bearer {CI}", "read") is not None
    assert access.problem is not None
    assert "tokens before it still hold" in access.problem
    write(file, LIST)
    access.reload()
    assert access.problem is None


def test_settings_that_name_tokens_twice_are_refused(tmp_path: Path) -> None:
    settings = Settings(
        migrations_folder=tmp_path, tokens=LIST, tokens_file=write(tmp_path / "tokens", LIST)
    )

    with pytest.raises(SettingsError, match="set one of them"):
        create_app(settings)


def test_unusable_tokens_are_refused_at_the_start_by_the_name_of_their_variable(
    tmp_path: Path,
) -> None:
    with pytest.raises(SettingsError, match="MIGRATE_CKPT_TOKENS cannot be used: the token"):
        create_app(Settings(migrations_folder=tmp_path, tokens="ci:read:secret"))


def test_every_route_has_a_scope_and_no_other_has() -> None:
    app = create_app(Settings(migrations_folder=Path("migrations")))

    routes = {
        f"{method} {route.path}"
        for route in iter_route_contexts(app.routes)
        for method in route.methods or ()
        if method != "HEAD"
    }

    assert set(ROUTES) == routes


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", "/migrate", "migrate"),
        ("PUT", "/migrate/a b.ckpt", "migrate"),
        ("GET", "/migrations/vision", "read"),
        ("GET", "/livez", "open"),
        ("HEAD", "/livez", "open"),
        ("POST", "/livez", None),
        ("GET", "/livez/", None),
        ("GET", "/migrations/a/b", None),
        ("GET", "//livez", None),
        ("GET", "/nowhere", None),
    ],
)
def test_scope_of_a_path_is_that_of_its_route(method: str, path: str, scope: str | None) -> None:
    assert needed_scope(method, path) == scope


@pytest.fixture(scope="module")
def client(start: Callable[[FastAPI], Client], tmp_path_factory: pytest.TempPathFactory) -> Client:
    settings = Settings(
        migrations_folder=tmp_path_factory.mktemp("migrations"),
        scratch_folder=tmp_path_factory.mktemp("scratch"),
        tokens=LIST,
        cors_origins=("https://ui.example.org",),
    )
    return start(create_app(settings))


def test_refusals_are_problems_that_say_what_to_send(client: Client) -> None:
    missing = client.get("/migrations")
    wrong = client.get("/migrations", headers=bearer(CI + "x"))
    narrow = client.post("/migrate", headers=bearer(GRAFANA))

    for answer, status, challenge in [
        (missing, 401, 'Bearer realm="migrate-ckpt"'),
        (wrong, 401, 'Bearer realm="migrate-ckpt", error="invalid_token"'),
        (
            narrow,
            403,
            'Bearer realm="migrate-ckpt", error="insufficient_scope", scope="migrate"',
        ),
    ]:
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["www-authenticate"] == challenge
        assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_right_token_is_let_in(client: Client) -> None:
    assert client.get("/migrations", headers=bearer(GRAFANA)).status_code == 200
    assert client.post("/inspect", headers=bearer(CI)).json()["error_type"] == "empty_file"


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/docs", "/openapi.json"])
def test_open_routes_need_no_token(client: Client, path: str) -> None:
    assert client.get(path).status_code == 200


def test_nobody_learns_without_a_token_what_is_not_there(client: Client) -> None:
    assert client.get("/nowhere").status_code == 401
    assert client.get("/nowhere", headers=bearer(GRAFANA)).status_code == 404
    assert client.post("/livez", headers=bearer(GRAFANA)).status_code == 405


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/livez"), ("GET", "/migrations"), ("POST", "/nowhere")]
)
def test_every_answer_tells_a_browser_to_do_nothing_with_it(
    client: Client, method: str, path: str
) -> None:
    headers = client.request(method, path).headers

    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_description_says_which_operations_need_a_token(client: Client) -> None:
    schema = client.get("/openapi.json").json()

    assert schema["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert schema["paths"]["/migrate"]["post"]["security"] == [{"token": ["migrate"]}]
    assert schema["paths"]["/migrations"]["get"]["security"] == [{"token": ["read"]}]
    assert "security" not in schema["paths"]["/livez"]["get"]


def test_pages_of_listed_origins_may_call_and_no_others(client: Client) -> None:
    def preflight(origin: str) -> dict[str, str]:
        asked = {
            "Origin": origin,
            "Access-Control-Request-Method": "PUT",
            "Access-Control-Request-Headers": "authorization",
        }
        return dict(client.request("OPTIONS", "/migrate/a", headers=asked).headers)

    listed, other = preflight("https://ui.example.org"), preflight("https://evil.example")

    assert listed["access-control-allow-origin"] == "https://ui.example.org"
    assert "authorization" in listed["access-control-allow-headers"].lower()
    assert "access-control-allow-origin" not in other
