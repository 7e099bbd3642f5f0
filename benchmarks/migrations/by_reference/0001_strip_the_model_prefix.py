"""Strip the prefix `model.` from the names of the weights, by an operation.

Why: what is declared tells that it reads no tensor, so that a job of a bucket need not fetch any.
"""

from migrate_ckpt.operations import strip_prefix

operations = [strip_prefix("model")]
