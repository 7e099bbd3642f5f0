"""Rename the hyper-parameter `lr` to `learning_rate`.

Why: the training script spells its options out now, and reads `learning_rate` when it resumes.
Reference: the hyper-parameters are an `argparse.Namespace`. The service keeps such an object
without importing its class, and its attributes can be read, set and deleted like the real one's.
"""

from migrate_ckpt import CkptType


def handle(ckpt: CkptType) -> CkptType:
    hyper_parameters = ckpt.get("hyper_parameters")
    if hasattr(hyper_parameters, "lr"):
        hyper_parameters.learning_rate = hyper_parameters.lr
        del hyper_parameters.lr
    return ckpt
