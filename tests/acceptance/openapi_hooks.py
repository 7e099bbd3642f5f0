"""Read by schemathesis: what it sends as a file is a checkpoint as often as not."""

from __future__ import annotations

import io

import schemathesis
import torch
from hypothesis import strategies as st


def checkpoint(epoch: int) -> bytes:
    """A checkpoint that the default set migrates."""
    file = io.BytesIO()
    torch.save({"state_dict": {"model.weight": torch.zeros(2)}, "epoch": epoch}, file)
    return file.getvalue()


UPLOADS = st.sampled_from([checkpoint(1), checkpoint(2)]) | st.binary(max_size=64)

schemathesis.openapi.format("binary", UPLOADS)
schemathesis.openapi.media_type("application/octet-stream", UPLOADS)
