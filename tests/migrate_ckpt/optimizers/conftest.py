from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from .networks import Old, checkpoint, train


@pytest.fixture
def old() -> dict[str, Any]:
    """What a training with Adam over all parameters saves."""
    return trained(lambda model: torch.optim.Adam(model.parameters()))


def trained(make: Callable[[nn.Module], torch.optim.Optimizer]) -> dict[str, Any]:
    torch.manual_seed(0)
    model = Old()
    optimizer = make(model)
    train(model, optimizer, 0, 2)
    return checkpoint(model, optimizer)


def marked(
    keys: Sequence[str], *, names: Sequence[Sequence[str]] | None = None, **extra: Any
) -> dict[str, Any]:
    """A checkpoint whose parameters are numbered, and whose moments are the numbers again.

    Without names one group has them all, and nobody says what they are called.
    """
    weights = {key: torch.full((4, 4), float(place)) for place, key in enumerate(keys)}
    groups = [list(keys)] if names is None else [list(group) for group in names]
    flat = [key for group in groups for key in group]
    state = {
        place: {"step": torch.tensor(5.0), "exp_avg": weights[key].clone(), **extra}
        for place, key in enumerate(flat)
    }
    param_groups = []
    for group in groups:
        listed: dict[str, Any] = {"lr": 0.1, "params": [flat.index(key) for key in group]}
        if names is not None:
            listed["param_names"] = list(group)
        param_groups.append(listed)
    return {"state_dict": weights, "optimizer": {"state": state, "param_groups": param_groups}}


def moments(ckpt: dict[str, Any], path: str = "optimizer") -> list[float | None]:
    """The number that is in each moment, by position."""
    held = ckpt[path]
    positions = [position for group in held["param_groups"] for position in group["params"]]
    assert positions == list(range(len(positions)))
    states = [held["state"].get(position) for position in positions]
    return [None if not state else state["exp_avg"].flatten()[0].item() for state in states]
