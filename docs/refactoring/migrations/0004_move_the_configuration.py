"""Move the configuration.

Why: `Config` left the trainer's package, and its field `n_heads` is called `num_heads`.
"""

from migrate_ckpt.operations import rename_class, rename_value

operations = [
    rename_class("trainer.config.Config", "network.Config"),
    rename_value("hyper_parameters.config.n_heads", "num_heads"),
]
