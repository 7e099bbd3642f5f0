"""Take off the wrappers of the training.

Why: the weights were saved from the compiled model inside of the trainer's module.
"""

from migrate_ckpt.operations import strip_prefix

operations = [strip_prefix("model", "_orig_mod")]
