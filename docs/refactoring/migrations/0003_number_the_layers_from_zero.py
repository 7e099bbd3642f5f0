"""Number the layers from zero.

Why: the blocks are a `ModuleList` called `layers` now; before, they were attributes numbered from one.
"""

from migrate_ckpt.operations import reindex, rename

operations = [
    reindex("blocks.{i}", shift=-1),
    rename("blocks.{i}.attn.{module}.{kind}", "layers.{i}.attn.{module}.{kind}"),
    rename("blocks.{i}.norm.{kind}", "layers.{i}.norm.{kind}"),
]
