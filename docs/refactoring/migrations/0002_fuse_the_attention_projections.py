"""Fuse the attention projections.

Why: `Attention` computes query, key and value in one product, in this order.
"""

from migrate_ckpt.operations import concat, requires_key

requires = requires_key("blocks.{i}.attn.q_proj.weight", shape=[None, None])

operations = [
    concat(
        [
            "blocks.{i}.attn.q_proj.{kind}",
            "blocks.{i}.attn.k_proj.{kind}",
            "blocks.{i}.attn.v_proj.{kind}",
        ],
        "blocks.{i}.attn.qkv.{kind}",
    ),
]
