"""A training with Lightning goes on in the refactored network, with all else that its checkpoint holds."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from migrate_ckpt.files import migrate_file

from .networks import WIDTH, HeadFirst, Network, Old, Split, contents

# Lightning's own: about workers, loggers and devices that a test has no use for.
pytestmark = pytest.mark.filterwarnings("ignore")

SPLIT = '''"""Split the projections."""
from migrate_ckpt.operations import split

operations = [split("net.qkv.{n}", ["net.q.{n}", "net.k.{n}", "net.v.{n}"])]
'''
HEAD_FIRST = '''"""Put the head first."""
from migrate_ckpt.operations import follow, rename

operations = [rename("net.head.{n}", "net.out.{n}")]
optimizer = follow(order_after=["net.out", "net.layers", "net.first", "net.qkv"])
'''


@pytest.fixture(scope="module")
def lightning() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("lightning.pytorch")


def fit(lightning: Any, network: type[Network], root: Path, epochs: int, **resume: Any) -> Any:
    """Train a network; gives the last checkpoint and the losses."""

    class Training(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.losses: list[float] = []

        def training_step(self, batch: Any, _: int) -> Any:
            loss = functional.mse_loss(self.net(batch[0]), batch[1])
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.01, amsgrad=True)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    torch.manual_seed(0)
    training = Training()
    data = torch.utils.data.TensorDataset(
        *(torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    )
    checkpointing = importlib.import_module(f"{lightning.__name__}.callbacks").ModelCheckpoint
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[checkpointing(root, save_last=True)],
    )
    trainer.fit(training, torch.utils.data.DataLoader(data, batch_size=4), **resume)
    return root / "last.ckpt", training.losses


@pytest.mark.parametrize(
    ("network", "text"), [(Split, SPLIT), (HeadFirst, HEAD_FIRST)], ids=["split", "another order"]
)
def test_training_goes_on_bit_for_bit(
    network: type[Network], text: str, lightning: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "0001_x.py").write_text(text)
    whole, losses = fit(lightning, Old, tmp_path / "whole", 4)
    half, first = fit(lightning, Old, tmp_path / "half", 2)

    report = migrate_file(half, tmp_path / "half.ckpt", folder=folder)
    resumed, second = fit(
        lightning,
        network,
        tmp_path / "resumed",
        4,
        ckpt_path=str(tmp_path / "half.ckpt"),
        weights_only=False,
    )

    assert report.optimizer_followed == ("0001_x",)
    assert first + second == losses
    migrate_file(whole, whole, folder=folder)
    expected, found = (torch.load(file, weights_only=False) for file in (whole, resumed))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert contents(found[part]) == contents(expected[part])
