"""Drafts of migrations from two files: what is found, how sure it is, and what is left to a person."""

from __future__ import annotations

import json
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from migrate_ckpt import (
    Draft,
    InvalidManifest,
    SectionNotFound,
    draft_migration,
    manifest_of,
    migrate_from_folder,
    new_migration,
    read_checkpoint,
)

Save = Any


@pytest.fixture
def drafted(tmp_path: Path) -> Any:
    """Saves two checkpoints and compares them."""

    def draft(old: Any, new: Any, **options: Any) -> Draft:
        torch.save(old, tmp_path / "old.ckpt")
        torch.save(new, tmp_path / "new.ckpt")
        return draft_migration(tmp_path / "old.ckpt", tmp_path / "new.ckpt", **options)

    return draft


def written(draft: Draft) -> list[str]:
    return [each.operation.written() for each in draft.drafted]


def test_equal_content_proves_a_rename(drafted: Any) -> None:
    weight = torch.randn(3, 4)

    draft = drafted({"state_dict": {"fc.weight": weight}}, {"state_dict": {"head.w": weight}})

    assert written(draft) == ["rename('fc.weight', 'head.w')"]
    assert draft.is_proved
    assert draft.is_complete
    assert draft.likely == ()


def test_manifests_make_it_likely_only(tmp_path: Path) -> None:
    old, new = torch.nn.Linear(3, 4), torch.nn.Sequential(OrderedDict(head=torch.nn.Linear(3, 4)))
    for name, model in (("old", old), ("new", new)):
        (tmp_path / f"{name}.json").write_text(manifest_of(model).to_json())

    draft = draft_migration(tmp_path / "old.json", tmp_path / "new.json")

    assert written(draft) == ["add_prefix('head')"]
    assert set(draft.likely) == {"weight", "bias"}
    assert not draft.is_proved
    assert "# Likely, by names and shapes.\n    add_prefix" in draft.source("X", ("a", "b"))


def test_layers_of_manifests_are_paired_in_their_order(tmp_path: Path) -> None:
    for name, module, start in (("old", "blocks", 1), ("new", "layers", 0)):
        layers = {str(n + start): torch.nn.Linear(2, 2) for n in range(3)}
        model = torch.nn.ModuleDict({module: torch.nn.ModuleDict(layers)})
        (tmp_path / f"{name}.json").write_text(manifest_of(model).to_json())

    draft = draft_migration(tmp_path / "old.json", tmp_path / "new.json")

    assert written(draft) == [
        "reindex('blocks.{i}', shift=-1)",
        "rename('blocks.{i}.{kind}', 'layers.{i}.{kind}')",
    ]


def test_lists_of_layers_at_other_depths_are_found_by_their_length(tmp_path: Path) -> None:
    shapes = {"attn.q": [4, 4], "attn.k": [4, 4], "mlp.up": [8, 4], "mlp.down": [4, 8]}
    names = {"attn.q": "query", "attn.k": "key", "mlp.up": "ff.0", "mlp.down": "ff.2"}
    for name, start, of in (
        ("old", "encoder.layer", lambda key: key),
        ("new", "blocks", names.__getitem__),
    ):
        tensors = {
            f"{start}.{n}.{of(key)}.weight": {"dtype": "float32", "shape": shape}  # type: ignore[operator]
            for n in range(3)
            for key, shape in shapes.items()
        }
        text = json.dumps({"manifest": 1, "tensors": tensors})
        (tmp_path / f"{name}.json").write_text(text)

    draft = draft_migration(tmp_path / "old.json", tmp_path / "new.json")

    assert written(draft) == [
        "strip_prefix('encoder')",
        "rename('layer.{i}.mlp.up.weight', 'blocks.{i}.ff.0.weight')",
        "rename('layer.{i}.mlp.down.weight', 'blocks.{i}.ff.2.weight')",
    ]
    [(olds, news)] = draft.undecided
    assert len(olds) == len(news) == 6
    assert olds[0] == "layer.0.attn.q.weight"
    assert max(map(len, draft.source("X", ("a", "b")).splitlines())) <= 100


def test_manifest_with_an_open_size_is_refused(tmp_path: Path) -> None:
    text = '{"manifest": 1, "tensors": {"a": {"dtype": "float32", "shape": [null]}}}'
    (tmp_path / "old.json").write_text(text)

    with pytest.raises(InvalidManifest, match=r"old\.json cannot be compared: of 'a'"):
        draft_migration(tmp_path / "old.json", tmp_path / "old.json")


def test_what_could_be_either_is_left_to_a_person(drafted: Any) -> None:
    old = {"state_dict": {"a.weight": torch.ones(3), "b.weight": torch.ones(3)}}
    new = {"state_dict": {"x.weight": torch.ones(3), "y.weight": torch.ones(3)}}

    draft = drafted(old, new)

    assert not draft.is_complete
    assert draft.undecided == ((("a.weight", "b.weight"), ("x.weight", "y.weight")),)
    text = draft.source("X", ("old", "new"))
    assert "# TODO: which of these became which cannot be told:\n#   a.weight, b.weight\n" in text


def test_new_tensor_that_nothing_makes_is_named(drafted: Any) -> None:
    shared = torch.randn(4)

    draft = drafted(
        {"state_dict": {"a.w": shared}}, {"state_dict": {"a.w": shared, "b.w": torch.randn(7)}}
    )

    assert draft.unknown == ("b.w",)
    assert not draft.is_complete
    assert "# TODO: nothing old makes these; `add` puts them in:\n#   b.w\n" in draft.source(
        "X", ()
    )


def test_tensors_that_were_trained_on_keep_their_names(drafted: Any) -> None:
    old = {"state_dict": {"fc.weight": torch.randn(3, 4), "gone.bias": torch.randn(9)}}
    new = {"state_dict": {"fc.weight": torch.randn(3, 4)}}

    draft = drafted(old, new)

    assert written(draft) == ["drop('gone.bias')"]
    assert draft.changed == ("fc.weight",)
    assert not draft.is_proved


def test_values_and_classes_beside_the_state_dict_are_compared(drafted: Any) -> None:
    weight = torch.randn(3)
    old = {"state_dict": {"w": weight}, "hyper": Namespace(lr=0.1, gone=7), "epoch": 3}
    new = {"state_dict": {"w": weight}, "hyper": Namespace(learning_rate=0.1, new=[1]), "epoch": 4}

    draft = drafted(old, new)

    assert written(draft) == [
        "rename_value('hyper.lr', 'learning_rate')",
        "drop_value('hyper.gone')",
        "set_value('hyper.new', [1])",
    ]
    assert draft.notes == ("The value of epoch is another one.",)


def test_bare_state_dict_leaves_what_is_around_the_old_one(drafted: Any) -> None:
    weight = torch.randn(3)

    draft = drafted({"state_dict": {"a.w": weight}, "epoch": 3}, {"b.w": weight})

    assert written(draft) == ["rename('a.w', 'b.w')"]


def test_section_may_be_named(drafted: Any) -> None:
    weight = torch.randn(3)
    old, new = ({"ema": {"net": {key: weight}}} for key in ("a.w", "b.w"))

    with pytest.raises(SectionNotFound):
        drafted(old, new)
    assert written(drafted(old, new, section="ema.net")) == [
        "rename('a.w', 'b.w', section='ema.net')"
    ]


def test_section_under_another_name_is_renamed_first(drafted: Any) -> None:
    weight = torch.randn(3)

    draft = drafted({"model": {"a.w": weight}}, {"state_dict": {"b.w": weight}})

    assert written(draft) == ["rename_value('model', 'state_dict')", "rename('a.w', 'b.w')"]


def test_biases_go_the_way_of_their_weights(drafted: Any) -> None:
    parts = {f"attn.{name}.weight": torch.randn(4, 6) for name in "qkv"}
    biases = {f"attn.{name}.bias": torch.zeros(4) for name in "qkv"}
    joined = {"attn.qkv.weight": torch.cat(list(parts.values())), "attn.qkv.bias": torch.zeros(12)}

    draft = drafted({**parts, **biases}, joined)

    assert written(draft) == [
        "concat(['attn.q.{kind}', 'attn.k.{kind}', 'attn.v.{kind}'], 'attn.qkv.{kind}')"
    ]
    assert draft.is_proved


def test_interleaved_heads_are_split_by_the_order_of_rows(drafted: Any) -> None:
    fused = torch.randn(24, 5)
    by_head = fused.reshape(4, 3, 2, 5)
    parts = {name: by_head[:, n].reshape(8, 5) for n, name in enumerate("qkv")}

    draft = drafted({"a.qkv": fused}, {f"a.{name}": part for name, part in parts.items()})

    assert [each.operation.verb for each in draft.drafted] == ["permute_rows", "split"]
    assert draft.is_proved


def test_file_runs_and_gives_the_new_checkpoint(drafted: Any, tmp_path: Path) -> None:
    weight, bias = torch.randn(3, 4), torch.randn(3)
    old = {"model.fc.weight": weight, "model.fc.bias": bias}
    new = {"head.weight": weight.t().contiguous().bfloat16(), "head.bias": bias.bfloat16()}

    draft = drafted(old, new)
    new_migration(tmp_path / "m", "made", text=draft.source("Made", ("old", "new")))

    ckpt, _ = migrate_from_folder(read_checkpoint(tmp_path / "old.ckpt"), tmp_path / "m")
    assert {key: ckpt[key].dtype for key in new} == dict.fromkeys(new, torch.bfloat16)
    assert all(torch.equal(ckpt[key], tensor) for key, tensor in new.items())


def test_tie_and_copy_are_told_apart(drafted: Any) -> None:
    weight = torch.randn(3, 4)

    tied = drafted({"a.w": weight}, {"a.w": weight, "b.w": weight})
    copied = drafted({"a.w": weight}, {"a.w": weight, "b.w": weight.clone()})

    assert written(tied) == ["tie('b.w', 'a.w')"]
    assert written(copied) == ["add('b.w', copy_of='a.w')"]


def test_threads_of_torch_are_given_back(drafted: Any, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        drafted({"a": torch.ones(2)}, {"b": torch.ones(2)})
        with pytest.raises(OSError, match=r"none\.ckpt"):
            draft_migration(tmp_path / "none.ckpt", tmp_path / "none.ckpt")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
