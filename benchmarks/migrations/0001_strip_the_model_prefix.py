"""Strip the prefix `model.` from the names of the weights.

Why: the commonest migration, and the cheapest; what a run of it costs is moving the file.
Reference: `peers.py` does the same to its checkpoints.
"""

from migrate_ckpt import CkptType


def handle(ckpt: CkptType) -> CkptType:
    weights = ckpt["state_dict"]
    ckpt["state_dict"] = {key.removeprefix("model."): weight for key, weight in weights.items()}
    return ckpt
