"""The examples of the documents: what they say to others is what those understand."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from app.access import ROUTES
from app.errors import STATUSES
from app.settings import PREFIX, Settings
from migrate_ckpt.cli.grammar import parser

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
REPOSITORY = Path(__file__).resolve().parent.parent
EXAMPLES = REPOSITORY / "docs" / "examples"


@pytest.fixture
def container() -> Any:
    deployment = next(yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text()))
    [found] = deployment["spec"]["template"]["spec"]["containers"]
    return found


def test_settings_in_kubernetes_can_be_used(container: Any, tmp_path: Path) -> None:
    values = {each["name"]: each["value"] for each in container["env"]}

    settings = {name.removeprefix(PREFIX).lower(): value for name, value in values.items()}
    settings |= {"tokens_file": str(EXAMPLES / "kubernetes.yaml")}
    assert set(settings) <= set(Settings.model_fields)
    Settings(migrations_folder=tmp_path, scratch_folder=tmp_path, **settings)


def test_probes_in_kubernetes_are_routes_that_need_no_token(container: Any) -> None:
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        assert ROUTES[f"GET {container[probe]['httpGet']['path']}"] == "open"


def test_mounts_in_kubernetes_are_where_the_image_has_its_folders(container: Any) -> None:
    image = (REPOSITORY / "Dockerfile").read_text()

    for mount in container["volumeMounts"]:
        if mount["name"] != "tokens":
            assert re.search(rf"\b\w+_FOLDER={mount['mountPath']}\b", image), mount
    deployment, claim, _ = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
    volumes = {v["name"]: v for v in deployment["spec"]["template"]["spec"]["volumes"]}
    assert set(volumes) == {mount["name"] for mount in container["volumeMounts"]}
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_commands_of_the_workflow_are_ours() -> None:
    workflow = yaml.safe_load((EXAMPLES / "github-actions.yml").read_text())
    commands = [step["run"] for step in workflow["jobs"]["check"]["steps"] if "run" in step]

    ours = [command for command in commands if command.startswith("migrate-ckpt ")]
    assert len(ours) == 2
    for command in ours:
        parser().parse_args(shlex.split(command)[1:])


def test_nginx_understands_its_file(tmp_path: Path) -> None:
    text = (EXAMPLES / "nginx.conf").read_text()
    assert "proxy_request_buffering off;" in text
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed")
    plain = re.sub(r"listen 443 ssl;|ssl_certificate.*", "", text)
    (tmp_path / "nginx.conf").write_text(f"events {{}} http {{ {plain} }}")
    done = subprocess.run(
        ["nginx", "-t", "-p", tmp_path, "-c", tmp_path / "nginx.conf"],
        capture_output=True,
        text=True,
    )
    assert "syntax is ok" in done.stderr, done.stderr


def test_errors_in_the_text_are_there() -> None:
    text = (REPOSITORY / "docs" / "operating.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)

    assert len(rows) > 3
    assert set(rows) <= set(STATUSES)


def test_metrics_in_the_text_are_there() -> None:
    text = (REPOSITORY / "docs" / "operating.md").read_text()
    named = set(re.findall(r"`(migrate_ckpt_\w+)`", text))
    known = (REPOSITORY / "README.md").read_text()

    assert named
    for name in named:
        assert f"`{name}" in known
