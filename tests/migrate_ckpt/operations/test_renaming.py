from __future__ import annotations

import re
from collections import OrderedDict

import pytest
import torch

from migrate_ckpt import KeyCollision, KeysNotFound
from migrate_ckpt.operations import add_prefix, rename, strip_prefix


def state_dict(*keys: str) -> OrderedDict[str, torch.Tensor]:
    return OrderedDict((key, torch.full((2,), float(i))) for i, key in enumerate(keys))


def ckpt_of(*keys: str) -> dict[str, OrderedDict[str, torch.Tensor]]:
    return {"state_dict": state_dict(*keys)}


def versions(model: torch.nn.Module) -> dict[str, object]:
    return dict(model.state_dict()._metadata)


def test_renamed_key_keeps_its_place_and_its_tensor() -> None:
    ckpt = ckpt_of("a.weight", "head.weight", "z.weight")
    before = list(ckpt["state_dict"].values())

    rename("head.weight", "classifier.weight")(ckpt)

    assert list(ckpt["state_dict"]) == ["a.weight", "classifier.weight", "z.weight"]
    assert all(x is y for x, y in zip(before, ckpt["state_dict"].values(), strict=True))


def test_names_in_one_mapping_change_places() -> None:
    ckpt = ckpt_of("norm0.weight", "norm1.weight")

    rename({"norm0.weight": "norm1.weight", "norm1.weight": "norm0.weight"})(ckpt)

    assert list(ckpt["state_dict"]) == ["norm1.weight", "norm0.weight"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("layers.{i}.fc.weight", "blocks.{i}.mlp.weight"),
        ("layers.{i:int}.fc.weight", "blocks.{i:int}.mlp.weight"),
        (re.compile(r"layers\.(\d+)\.fc\.weight"), r"blocks.\1.mlp.weight"),
    ],
    ids=["template", "template of a number", "regex"],
)
def test_pattern_renames_every_key_that_it_matches_as_a_whole(
    old: str | re.Pattern[str], new: str
) -> None:
    ckpt = ckpt_of("layers.0.fc.weight", "x.layers.0.fc.weight", "layers.10.fc.weight")

    rename(old, new)(ckpt)

    assert list(ckpt["state_dict"]) == [
        "blocks.0.mlp.weight",
        "x.layers.0.fc.weight",
        "blocks.10.mlp.weight",
    ]


def test_placeholder_is_one_component_and_a_number_only_where_it_says_so() -> None:
    ckpt = ckpt_of("a.b.weight", "a.b.c.weight", "n.x.weight", "n.7.weight")

    rename({"a.{name}.weight": "A.{name}.weight", "n.{i:int}.weight": "N.{i}.weight"})(ckpt)

    assert list(ckpt["state_dict"]) == ["A.b.weight", "a.b.c.weight", "n.x.weight", "N.7.weight"]


def test_name_that_no_key_has_is_an_error_that_names_what_is_close() -> None:
    ckpt = ckpt_of("encoder.weight", "encoder.bias")

    with pytest.raises(KeysNotFound, match=r"close to it is 'encoder.weight'") as caught:
        rename({"encoder.wieght": "x", "encoder.bias": "y"})(ckpt)

    assert caught.value.keys == ("encoder.wieght",)
    assert caught.value.operation.startswith("rename(")
    assert list(ckpt["state_dict"]) == ["encoder.weight", "encoder.bias"]


def test_missing_names_may_be_skipped() -> None:
    ckpt = ckpt_of("b")

    rename({"a": "x", "b": "y"}, missing="skip")(ckpt)

    assert list(ckpt["state_dict"]) == ["y"]


@pytest.mark.parametrize(
    "operation",
    [
        rename("a.w", "b.w"),
        rename({"a.w": "c.w", "b.w": "c.w"}),
        strip_prefix("m"),
        rename(re.compile(".*w"), "c.w"),
    ],
    ids=["on another key", "two on one", "prefix", "regex"],
)
def test_collision_is_an_error_and_changes_nothing(operation: object) -> None:
    ckpt = ckpt_of("a.w", "b.w", "m.b.w")
    keys = list(ckpt["state_dict"])

    with pytest.raises(KeyCollision) as caught:
        operation(ckpt)  # type: ignore[operator]

    assert caught.value.keys
    assert list(ckpt["state_dict"]) == keys


def test_prefixes_are_stripped_in_any_nesting_and_between_components_only() -> None:
    ckpt = ckpt_of("module._orig_mod.module.fc.weight", "my_module.fc.weight", "module")

    strip_prefix("module.", "_orig_mod")(ckpt)

    assert list(ckpt["state_dict"]) == ["fc.weight", "my_module.fc.weight", "module"]


def test_prefix_inside_of_a_key_is_stripped_on_demand() -> None:
    keys = ("encoder._orig_mod.fc.weight", "x_orig_mod.fc")
    front, everywhere = ckpt_of(*keys), ckpt_of(*keys)

    strip_prefix("_orig_mod", missing="skip")(front)
    strip_prefix("_orig_mod", anywhere=True)(everywhere)

    assert list(front["state_dict"]) == list(keys)
    assert list(everywhere["state_dict"]) == ["encoder.fc.weight", "x_orig_mod.fc"]


def test_versions_of_wrapped_model_become_those_of_the_bare_one() -> None:
    bare = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.BatchNorm1d(2))
    wrapped = torch.nn.Module()
    wrapped.module = torch.nn.Module()
    wrapped.module._orig_mod = bare
    ckpt = {"state_dict": wrapped.state_dict()}

    strip_prefix("module", "_orig_mod")(ckpt)

    assert list(ckpt["state_dict"]) == list(bare.state_dict())
    assert dict(ckpt["state_dict"]._metadata) == versions(bare)
    bare.load_state_dict(ckpt["state_dict"])


def test_versions_go_with_a_renamed_module_and_with_what_is_below_it() -> None:
    old = torch.nn.ModuleDict(
        {"enc": torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.ReLU())}
    )
    new = torch.nn.ModuleDict(
        {"net": torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.ReLU())}
    )
    ckpt = {"model": old.state_dict()}

    rename("enc.0.{name}", "net.0.{name}")(ckpt)

    assert dict(ckpt["model"]._metadata) == versions(new)


def test_prefix_is_added_to_keys_and_versions() -> None:
    bare = torch.nn.BatchNorm1d(2)
    wrapped = torch.nn.ModuleDict({"model": torch.nn.BatchNorm1d(2)})
    ckpt = {"state_dict": bare.state_dict()}

    add_prefix("model.")(ckpt)

    assert list(ckpt["state_dict"]) == list(wrapped.state_dict())
    assert dict(ckpt["state_dict"]._metadata) == {"model": {"version": 2}}
    wrapped.load_state_dict(ckpt["state_dict"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: rename("a.{i}", "b"),
        lambda: rename("a.{i}.{i}", "b.{i}"),
        lambda: rename("a.{", "b.{"),
        lambda: rename({}),
        lambda: strip_prefix(),
        lambda: strip_prefix("."),
        lambda: add_prefix(""),
    ],
    ids=["lost placeholder", "placeholder twice", "brace", "nothing", "no prefix", "dot", "empty"],
)
def test_what_cannot_be_meant_is_refused_when_it_is_written(make: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        make()  # type: ignore[operator]


def test_undoing_brings_back_the_versions_and_leaves_the_history_that_came_since() -> None:
    state_dict = torch.nn.BatchNorm1d(2).state_dict()
    operation = add_prefix("model")
    (inverse,) = operation.inverse(state_dict)

    operation(state_dict)
    state_dict._metadata["_migrate-ckpt-migrations"] = ["0001_x"]
    inverse(state_dict)

    assert dict(state_dict._metadata) == {
        "": {"version": 2},
        "_migrate-ckpt-migrations": ["0001_x"],
    }
