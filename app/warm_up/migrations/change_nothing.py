"""Change nothing.

Why: what a run costs beside its migrations is to be paid for before it begins.
"""

from migrate_ckpt import CkptType


def handle(ckpt: CkptType) -> CkptType:
    return ckpt
