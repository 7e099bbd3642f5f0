"""`verify` foretells what `load_state_dict(strict=True)` says of a file, for whatever model and whatever file."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from migrate_ckpt import manifest_of, verify_file

PARTS = {
    "linear": lambda rng: nn.Linear(rng.randint(1, 3), rng.randint(1, 3), bias=rng.random() < 0.5),
    "norm": lambda rng: nn.BatchNorm1d(
        rng.randint(1, 3), affine=rng.random() < 0.7, track_running_stats=rng.random() < 0.7
    ),
    "layer_norm": lambda rng: nn.LayerNorm(rng.randint(1, 3)),
    "group_norm": lambda rng: nn.GroupNorm(1, rng.randint(1, 3)),
    "instance_norm": lambda rng: nn.InstanceNorm1d(rng.randint(1, 3), affine=True),
    "embedding": lambda rng: nn.Embedding(rng.randint(1, 4), rng.randint(1, 3)),
    "attention": lambda rng: nn.MultiheadAttention(2, 1, bias=rng.random() < 0.5),
    "lstm": lambda rng: nn.LSTM(2, rng.randint(1, 3), num_layers=rng.randint(1, 2)),
    "scalar": lambda rng: nn.PReLU(),
}


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("count", torch.tensor(0))


def make_model(rng: random.Random) -> nn.Module:
    parts: dict[str, nn.Module] = {}
    for number in range(rng.randint(1, 5)):
        name = rng.choice(list(PARTS))
        parts[f"{name}_{number}"] = PARTS[name](rng)
    if rng.random() < 0.5:
        parts["scale"] = Scale()
    if rng.random() < 0.5:
        parts["again"] = rng.choice(list(parts.values()))
    if rng.random() < 0.3:
        parts = {"inner": nn.ModuleDict(parts), "beside": nn.Conv2d(1, 2, 1)}
    return nn.ModuleDict(parts)


def damage(state_dict, rng: random.Random):
    """Return the state dict with up to two things changed, mostly one."""
    for _ in range(rng.choice([0, 1, 1, 2])):
        key = rng.choice(list(state_dict))
        match rng.randrange(8):
            case 0:
                del state_dict[key]
            case 1:
                state_dict[key + "_more"] = torch.zeros(1)
            case 2:
                state_dict[key] = state_dict[key].double()
            case 3:
                state_dict[key] = state_dict[key].unsqueeze(0)
            case 4:
                state_dict[key] = torch.zeros([size + 1 for size in state_dict[key].shape])
            case 5:
                state_dict[key] = state_dict[key].clone()
            case 6:
                state_dict = dict(state_dict)
            case 7:
                state_dict.pop(next((k for k in state_dict if "num_batches" in k), key))
        if not state_dict:
            break
    return state_dict


@pytest.mark.parametrize("seed", range(100))
def test_verdict_is_that_of_strict_loading(tmp_path, seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    model = make_model(rng)
    expected = manifest_of(model)
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": damage(model.state_dict(), rng), "epoch": 1}, path)

    verdict = verify_file(path, expected)

    assert verdict.loads_strictly is loads(model, path), verdict.differences
    assert verdict.loads_strictly or verdict.differences


def loads(model: nn.Module, path) -> bool:
    try:
        model.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    except RuntimeError:
        return False
    return True


def test_both_verdicts_are_met():
    outcomes = set()
    for seed in range(100):
        rng = random.Random(seed)
        model = make_model(rng)
        state_dict = damage(model.state_dict(), rng)
        try:
            model.load_state_dict(state_dict)
        except RuntimeError:
            outcomes.add(False)
        else:
            outcomes.add(True)

    assert outcomes == {True, False}
