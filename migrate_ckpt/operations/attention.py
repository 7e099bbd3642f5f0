"""Operations on the joined query, key and value of an attention, whose rows lie in one of two layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from migrate_ckpt.operations.moves import Action
from migrate_ckpt.operations.operation import Operation
from migrate_ckpt.operations.paths import PathLike
from migrate_ckpt.operations.reshaping import Concat, Split
from migrate_ckpt.operations.sections import to_sections
from migrate_ckpt.operations.state_dict_operation import Missing
from migrate_ckpt.operations.tensor_transforms import Heads, Layout, MergeHeads, SplitHeads


@dataclass(frozen=True)
class SplitQkv(Split):
    """A split into query, key and value by their heads."""

    heads: int = field(kw_only=True)
    kv_heads: int | None = field(default=None, kw_only=True)
    layout: Layout = field(default="blocks", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("split_qkv", self.targets, self.heads, self.kv_heads, self.layout)

    def declared_inverse(self) -> tuple[Operation, ...]:
        return (
            MergeQkv(
                self.targets,
                self.source,
                heads=self.heads,
                kv_heads=self.kv_heads,
                layout=self.layout,
                section=self.section,
                missing=self.missing,
            ),
        )

    def action(self) -> Action:
        return SplitHeads(Heads(self.heads, self.kv_heads or self.heads, self.layout))


@dataclass(frozen=True)
class MergeQkv(Concat):
    """A join of query, key and value by their heads."""

    heads: int = field(kw_only=True)
    kv_heads: int | None = field(default=None, kw_only=True)
    layout: Layout = field(default="blocks", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("merge_qkv", self.sources, self.heads, self.kv_heads, self.layout)

    def declared_inverse(self) -> tuple[Operation, ...]:
        return (
            SplitQkv(
                self.target,
                self.sources,
                heads=self.heads,
                kv_heads=self.kv_heads,
                layout=self.layout,
                section=self.section,
                missing=self.missing,
            ),
        )

    def action(self) -> Action:
        return MergeHeads(Heads(self.heads, self.kv_heads or self.heads, self.layout))


def split_qkv(
    source: str,
    targets: Sequence[str],
    *,
    heads: int,
    kv_heads: int | None = None,
    layout: Layout = "blocks",
    section: PathLike | list[PathLike] | None = None,
    missing: Missing = "error",
) -> SplitQkv:
    """Cut the joined rows of query, key and value apart, whatever is behind the first dimension.

    `split_qkv("layers.{i}.qkv.weight", ["layers.{i}.q.weight", ...], heads=32, kv_heads=8, layout="grouped")`

    Args:
        source: A key or a template of tensors of (heads + 2 * kv_heads) * head_dim rows: weights and biases alike.
        targets: The names of query, key and value, in this order, with the same placeholders.
        heads: The heads of the query.
        kv_heads: The heads of key and value, of which each serves as many of the query's; None means as many.
        layout: "blocks" where query, key and value lie one behind the other; "grouped" where for each head of the
            key its query's heads, its key and its value do, as in Megatron-LM and GPT-NeoX.
        section: The path of the state dict, or a list of paths; None is the model's.
        missing: What to do where no key is found: "error", or "skip".
    """
    return SplitQkv(
        source,
        tuple(targets),
        heads=heads,
        kv_heads=kv_heads,
        layout=layout,
        section=to_sections(section),
        missing=missing,
    )


def merge_qkv(
    sources: Sequence[str],
    target: str,
    *,
    heads: int,
    kv_heads: int | None = None,
    layout: Layout = "blocks",
    section: PathLike | list[PathLike] | None = None,
    missing: Missing = "error",
) -> MergeQkv:
    """Join the rows of query, key and value, as `split_qkv` cuts them apart.

    Args:
        sources: The keys or templates of query, key and value, in this order.
        target: The name of the whole, with the same placeholders.
        heads: The heads of the query.
        kv_heads: The heads of key and value; None means as many.
        layout: How the rows of the whole lie: "blocks" or "grouped".
        section: The path of the state dict, or a list of paths; None is the model's.
        missing: What to do where no part is found at all: "error", or "skip".
    """
    return MergeQkv(
        tuple(sources),
        target,
        heads=heads,
        kv_heads=kv_heads,
        layout=layout,
        section=to_sections(section),
        missing=missing,
    )


def _check(
    verb: str, parts: Sequence[str], heads: int, kv_heads: int | None, layout: Layout
) -> None:
    if len(parts) != 3:
        raise ValueError(f"{verb} needs the names of query, key and value, and has {len(parts)}.")
    if heads < 1 or (kv_heads is not None and (kv_heads < 1 or heads % kv_heads)):
        raise ValueError(
            f"{heads} heads of the query do not share out among {kv_heads} of the key."
        )
    if layout not in ("blocks", "grouped"):
        raise ValueError(f'The layout is "blocks" or "grouped", and not {layout!r}.')
