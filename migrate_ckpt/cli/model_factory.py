"""Builds the model that `module:factory` names, on the author's machine, to know its state dict."""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import nullcontext
from typing import Any

from migrate_ckpt.cli.exit_codes import refuse_usage


def build_model(name: str, *, allocate: bool) -> Any:
    """Import the module, from the current folder first, and call its function without arguments.

    By default the model is built on the device `meta`, where parameters have no bytes.
    """
    module_name, _, path = name.partition(":")
    import torch

    sys.path.insert(0, os.getcwd())
    try:
        factory: Any = importlib.import_module(module_name)
        for attribute in path.split("."):
            factory = getattr(factory, attribute)
    except (ImportError, AttributeError) as error:
        refuse_usage(f"{name} cannot be found: {error}")
    try:
        with nullcontext() if allocate else torch.device("meta"):
            return factory()
    # Whatever the author's code raises is theirs to read.
    except Exception as error:
        advice = "" if allocate else " If it needs real tensors, add --allocate."
        refuse_usage(f"{name}() failed: {type(error).__name__}: {error}.{advice}")
