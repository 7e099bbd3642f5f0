"""Strip the prefix `model.` from the names of the weights.

Why: three migrations in a row show whether each of them costs a copy.
Reference: the set of one beside this folder begins with the same.
"""

from migrate_ckpt import CkptType


def handle(ckpt: CkptType) -> CkptType:
    weights = ckpt["state_dict"]
    ckpt["state_dict"] = {key.removeprefix("model."): weight for key, weight in weights.items()}
    return ckpt
