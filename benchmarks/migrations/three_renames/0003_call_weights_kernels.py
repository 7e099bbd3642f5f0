"""Call what was `weight` at the end of the names `kernel`.

Why: three migrations in a row show whether each of them costs a copy.
Reference: `checkpoints.py` has the names before and after.
"""

from migrate_ckpt import CkptType


def handle(ckpt: CkptType) -> CkptType:
    weights = ckpt["state_dict"]
    for key in list(weights):
        weights[key.removesuffix("weight") + "kernel"] = weights.pop(key)
    return ckpt
