"""The refactoring that docs/refactoring works through: three ways to run it, one result, and it loads."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from migrate_ckpt import (
    RequirementsNotMet,
    inspect_file,
    migrate_file,
    migrate_from_folder,
    read_checkpoint,
    read_set,
)
from migrate_ckpt.comparison import find_unlike
from tests.acceptance.conftest import running_service

pytestmark = pytest.mark.acceptance

PAGE = Path(__file__).parents[2] / "docs" / "refactoring"
MIGRATIONS = PAGE / "migrations"


class OldAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(
            self.q_proj(x), self.k_proj(x), self.v_proj(x)
        )


class NewAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(*self.qkv(x).chunk(3, dim=-1))


class Block(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attn, self.norm = attention, nn.BatchNorm1d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.norm(self.attn(x).transpose(1, 2)).transpose(1, 2)
        return normed


class OldNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({"1": Block(OldAttention()), "2": Block(OldAttention())})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.blocks["2"](self.blocks["1"](x))
        return y


class NewNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(NewAttention()) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture(scope="module")
def network() -> OldNetwork:
    torch.manual_seed(0)
    network = OldNetwork()
    network(torch.rand(16, 5, 8))
    return network.eval()


@pytest.fixture
def old(network: OldNetwork, tmp_path: Path) -> Iterator[Path]:
    """The file, saved while there was a package `trainer`."""
    config_class = type("Config", (), {"__module__": "trainer.config"})
    package, module = types.ModuleType("trainer"), types.ModuleType("trainer.config")
    module.Config = config_class  # type: ignore[attr-defined]
    config: Any = config_class()
    config.n_heads, config.dim = 1, 8
    compiled, trainer = nn.Module(), nn.Module()
    compiled._orig_mod = network
    trainer.model = compiled
    sys.modules.update({"trainer": package, "trainer.config": module})
    try:
        ckpt = {"state_dict": trainer.state_dict(), "hyper_parameters": {"config": config}}
        torch.save(ckpt, tmp_path / "old.ckpt")
    finally:
        del sys.modules["trainer"], sys.modules["trainer.config"]
    return tmp_path / "old.ckpt"


@pytest.fixture
def network_package(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = types.ModuleType("network")
    module.Config = type("Config", (), {"__module__": "network"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "network", module)
    return module


def test_library_command_and_service_give_the_same_bytes(old: Path, tmp_path: Path) -> None:
    migrate_file(old, tmp_path / "library.ckpt", folder=MIGRATIONS)
    command = [sys.executable, "-m", "migrate_ckpt.cli", "run", old, "--folder", MIGRATIONS]
    subprocess.run([*command, "-o", tmp_path / "command.ckpt"], check=True, capture_output=True)
    shutil.copytree(MIGRATIONS, tmp_path / "migrations", ignore=shutil.ignore_patterns("__*"))
    with running_service(tmp_path) as service:
        curl = ["curl", "--silent", "--fail-with-body", "-F", f"file=@{old}"]
        subprocess.run(
            [*curl, f"{service.url}/migrate", "-o", tmp_path / "service.ckpt"], check=True
        )

    library, by_command, by_service = (
        (tmp_path / f"{name}.ckpt").read_bytes() for name in ("library", "command", "service")
    )
    assert library == by_command == by_service


def test_result_loads_into_the_new_network_and_computes_the_same(
    old: Path, network: OldNetwork, network_package: Any, tmp_path: Path
) -> None:
    migrate_file(old, tmp_path / "new.ckpt", folder=MIGRATIONS)

    ckpt = torch.load(tmp_path / "new.ckpt", weights_only=False)
    new = NewNetwork().eval()
    new.load_state_dict(ckpt["state_dict"])
    x = torch.rand(3, 5, 8)
    assert torch.allclose(new(x), network(x), atol=1e-6)
    assert list(ckpt["state_dict"]) == list(new.state_dict())
    assert dict(ckpt["state_dict"]._metadata) == dict(new.state_dict()._metadata)
    assert type(ckpt["hyper_parameters"]["config"]) is network_package.Config
    assert vars(ckpt["hyper_parameters"]["config"]) == {"num_heads": 1, "dim": 8}
    assert "trainer.config.Config" not in inspect_file(tmp_path / "new.ckpt").globals


def test_a_second_run_finds_nothing_to_do(old: Path, tmp_path: Path) -> None:
    migrate_file(old, old, folder=MIGRATIONS)

    assert migrate_file(old, old, folder=MIGRATIONS).ran == ()


def test_checkpoint_of_another_network_is_refused_with_the_key_that_it_lacks() -> None:
    ckpt = {"state_dict": {"model.fc.weight": torch.ones(2)}}

    with pytest.raises(RequirementsNotMet, match=r"no key 'blocks\.\{i\}\.attn\.q_proj\.weight'"):
        migrate_from_folder(ckpt, MIGRATIONS)


def test_command_writes_the_whole_refactoring_by_itself(old: Path, tmp_path: Path) -> None:
    new, folder = tmp_path / "new.ckpt", tmp_path / "written"
    migrate_file(old, new, folder=MIGRATIONS)

    command = [sys.executable, "-m", "migrate_ckpt.cli", "autogenerate", old, new]
    options = ["--name", "the_refactoring", "--folder", folder]
    done = subprocess.run([*command, *options], check=True, capture_output=True, text=True)

    assert "proved: they make NEW's state dict of OLD's, bit by bit" in done.stdout
    shown = (PAGE / "README.md").read_text().partition("<!-- generated -->\n```python\n")[2]
    assert (folder / "0001_the_refactoring.py").read_text() == shown.partition("```")[0]
    migrate_file(old, tmp_path / "again.ckpt", folder=folder)
    ckpts = [read_checkpoint(path) for path in (new, tmp_path / "again.ckpt")]
    assert find_unlike(*ckpts) == []


def test_page_shows_the_migrations_as_they_are() -> None:
    page = (PAGE / "README.md").read_text().partition("## Written by itself")[0]
    shown = re.findall(r"```python\n(.*?)```", page, re.DOTALL)

    files = read_set(MIGRATIONS).files
    assert all(file.is_declared for file in files)
    assert len(shown) == len(files)
    for code, file in zip(shown, files, strict=True):
        assert file.path.read_text().endswith(code)
