"""The callback in a real training: its modules are imported late, for they take seconds."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from migrate_ckpt import migrate_from_folder, plan_file, read_set
from migrate_ckpt.errors import FolderError
from migrate_ckpt.lightning import stamp_migrations

HANDLE = '"""Do nothing."""\n\n\ndef handle(ckpt):\n    return ckpt\n'

# Lightning's own: about workers, loggers and devices that a test has no use for.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def lightning(request: pytest.FixtureRequest) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(request.param)


@pytest.fixture
def folder(write_folder: Any) -> Path:
    return write_folder({"0001_x.py": HANDLE, "0002_y.py": HANDLE})


def new_module(lightning: Any) -> Any:
    class Net(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch: Any, batch_index: int) -> Any:
            return self.layer(batch).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    return Net()


def train(lightning: Any, folder: Path, root: Path, *, epochs: int, resume: str | None = None):
    checkpointing = importlib.import_module(f"{lightning.__name__}.callbacks").ModelCheckpoint
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[stamp_migrations(folder), checkpointing(root, save_last=True)],
    )
    trainer.fit(
        new_module(lightning),
        torch.utils.data.DataLoader(torch.ones(4, 2), batch_size=2),
        ckpt_path=resume,
    )
    return trainer


def test_what_a_training_saves_has_nothing_to_be_migrated_and_resumes(
    lightning: Any, folder: Path, tmp_path: Path
) -> None:
    train(lightning, folder, tmp_path, epochs=1)
    saved = str(tmp_path / "last.ckpt")

    plan = plan_file(saved, read_set(folder))
    resumed = train(lightning, folder, tmp_path / "again", epochs=2, resume=saved)

    assert plan.applied == ("0001_x", "0002_y")
    assert not plan.has_work
    assert resumed.current_epoch == 2
    module = new_module(lightning)
    module.load_state_dict(torch.load(saved, weights_only=True)["state_dict"], strict=True)


def test_the_migrations_are_those_of_the_start(
    lightning: Any, folder: Path, write_folder: Any
) -> None:
    callback = stamp_migrations(folder)
    write_folder({"0003_z.py": HANDLE})
    checkpoint: dict[str, Any] = {"epoch": 1}

    callback.on_save_checkpoint(None, None, checkpoint)

    _, done = migrate_from_folder(checkpoint, folder)
    assert [migration.name for migration in done] == ["0003_z"]


def test_the_callback_travels_to_a_spawned_process(lightning: Any, folder: Path) -> None:
    callback = pickle.loads(pickle.dumps(stamp_migrations(folder)))

    assert isinstance(callback, lightning.Callback)
    assert callback.migrations == read_set(folder)


def test_a_folder_that_cannot_be_read_is_told_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(FolderError):
        stamp_migrations(tmp_path / "nowhere")


def test_importing_the_module_imports_no_lightning() -> None:
    code = (
        "import sys, migrate_ckpt.lightning\n"
        "raise SystemExit(', '.join({'torch', 'lightning', 'pytorch_lightning'} & set(sys.modules)) or 0)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
