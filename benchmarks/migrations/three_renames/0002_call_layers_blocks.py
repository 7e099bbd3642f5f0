"""Call what was `layers` in the names of the weights `blocks`.

Why: three migrations in a row show whether each of them costs a copy.
Reference: `checkpoints.py` has the names before and after.
"""

from migrate_ckpt import CkptType


def handle(ckpt: CkptType) -> CkptType:
    weights = ckpt["state_dict"]
    ckpt["state_dict"] = {
        key.replace("layers.", "blocks.", 1): weight for key, weight in weights.items()
    }
    return ckpt
