from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from migrate_ckpt.operations import concat, merge_qkv, pad_rows, scale, stack

STATE = {
    "q": torch.randn(4, 3),
    "k": torch.randn(4, 3),
    "v": torch.randn(4, 3),
    "experts.0": torch.randn(2, 2),
    "experts.1": torch.randn(2, 2),
    "halves.0": torch.randn(2, 3, 5, dtype=torch.float16).transpose(0, 2),
    "halves.1": torch.randn(2, 3, 5, dtype=torch.float16).transpose(0, 2),
    "wide": torch.randn(2, 7, dtype=torch.float64),
    "turn": torch.randn(3, dtype=torch.complex64),
    "narrow": torch.randn(2, 1, dtype=torch.float64),
    "none": torch.empty(2, 0, dtype=torch.float64),
}
OPERATIONS = {
    "concat": concat(["q", "k", "v"], "made"),
    "concat along another": concat(["wide", "narrow", "none"], "made", dim=1),
    "concat from the end": concat(["halves.0", "halves.1"], "made", dim=-2),
    "stack": stack("experts.{e}", "made", over="e"),
    "stack at the end": stack("halves.{e}", "made", over="e", dim=-1),
    "stack in between": stack("halves.{e}", "made", over="e", dim=2),
    "merge": merge_qkv(["q", "k", "v"], "made", heads=2),
    "merge, grouped": merge_qkv(["q", "k", "v"], "made", heads=2, layout="grouped"),
    "pad": pad_rows("wide", 3),
    "scale": scale("wide", factor=0.5),
    "scale and shift": scale("turn", factor=2.0, shift=1.0),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_shapes_are_those_of_real_tensors(name) -> None:
    made = OPERATIONS[name](dict(STATE))
    shapes = OPERATIONS[name]({key: tensor.to("meta") for key, tensor in STATE.items()})

    assert {k: (t.shape, t.dtype, t.stride()) for k, t in made.items() if k not in STATE} == {
        k: (t.shape, t.dtype, t.stride()) for k, t in shapes.items() if k not in STATE
    }
    assert {k: (t.shape, t.dtype) for k, t in made.items()} == {
        k: (t.shape, t.dtype) for k, t in shapes.items()
    }
    assert all(tensor.is_meta for tensor in shapes.values())


def test_shapes_need_no_compiler() -> None:
    """It takes a second to import."""
    program = f"""
import sys
from {__name__} import OPERATIONS, STATE
for operation in OPERATIONS.values():
    operation({{key: tensor.to("meta") for key, tensor in STATE.items()}})
print("torch._dynamo" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert result.stdout == "False\n"
