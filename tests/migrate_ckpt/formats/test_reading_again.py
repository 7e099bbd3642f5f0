"""What we write is read again by ourselves, also where it is large enough for the pickle's longer opcodes."""

from __future__ import annotations

import argparse

import pytest
import torch

from migrate_ckpt import read_checkpoint, write_checkpoint


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_checkpoint_of_a_thousand_tensors_is_read_again_and_again(save, tmp_path, protocol):
    value = {
        "weights": {f"layer.{i}": torch.full((i % 7,), i) for i in range(1000)},
        "args": argparse.Namespace(a=1),
    }
    path = save(value, pickle_protocol=protocol)

    for round_number in range(3):
        read = read_checkpoint(path)
        path = tmp_path / f"{round_number}.ckpt"
        write_checkpoint(
            {"weights": {f"x.{k}": v for k, v in read["weights"].items()}, "args": read["args"]},
            path,
        )

    again = torch.load(path, weights_only=False)
    assert again["args"] == argparse.Namespace(a=1)
    assert [w.tolist() for w in again["weights"].values()] == [[i] * (i % 7) for i in range(1000)]
