"""What drafts make of values that are no dense tensors, of odd keys, and of what is around the state dict."""

from __future__ import annotations

import ast
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from migrate_ckpt import Draft, draft_migration, manifest_of, migrate_from_folder, new_migration


@pytest.fixture
def drafted(tmp_path: Path) -> Any:
    def draft(old: Any, new: Any) -> Draft:
        torch.save(old, tmp_path / "old.ckpt")
        torch.save(new, tmp_path / "new.ckpt")
        return draft_migration(tmp_path / "old.ckpt", tmp_path / "new.ckpt")

    return draft


def written(draft: Draft) -> list[str]:
    return [each.operation.written() for each in draft.drafted]


def quantised(seed: int) -> torch.Tensor:
    values = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(values, 0.1, 0, torch.quint8)


OTHERS = {
    "bytes": (b"state", b"stale"),
    "sparse": (torch.eye(3).to_sparse(), 2 * torch.eye(3).to_sparse()),
    "quantised": (quantised(0), quantised(1)),
    "nan": (float("nan"), 1.0),
    "mapping": ({"scale": torch.ones(2)}, {"scale": torch.zeros(2)}),
    "list": ([1, "a"], [1, "b"]),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_value_is_compared(drafted: Any, kind: str) -> None:
    value, changed = OTHERS[kind]
    tensors = {"a.weight": torch.randn(2, 3)}

    same = drafted({**tensors, "a._extra_state": value}, {**tensors, "a._extra_state": value})
    other = drafted({**tensors, "a._extra_state": value}, {**tensors, "a._extra_state": changed})

    assert (same.is_proved, same.changed) == (True, ())
    assert (other.is_proved, other.changed, other.differing) == (
        False,
        ("a._extra_state",),
        ("a._extra_state",),
    )


def test_other_values_go_where_their_modules_go(drafted: Any) -> None:
    old = {f"m.{n}.weight": torch.randn(2, 3) for n in range(3)}
    old |= {f"m.{n}._extra_state": b"same" for n in range(3)}
    new = {key.replace("m.", "layers."): value for key, value in old.items()}

    draft = drafted(old, new)

    assert written(draft) == ["rename('m.{i}.{kind}', 'layers.{i}.{kind}')"]
    assert draft.is_proved
    assert draft.likely == tuple(f"m.{n}._extra_state" for n in range(3))


def test_template_spares_other_values_that_stay(drafted: Any) -> None:
    old = {f"l.{n}.{kind}": torch.randn(2, 3) for n in range(3) for kind in ("w", "v")}
    new = {key: tensor.t().contiguous() for key, tensor in old.items()}
    extra = {f"l.{n}._extra_state": b"x" for n in range(3)}

    draft = drafted({**old, **extra}, {**new, **extra})

    assert written(draft) == ["transpose(['l.{i}.w', 'l.{i}.v'])"]
    assert draft.is_proved


def test_other_values_that_went_and_came(drafted: Any) -> None:
    tensors = {"a.weight": torch.randn(2, 3)}

    draft = drafted({**tensors, "a.old": b"1"}, {**tensors, "a.new": b"2"})

    assert written(draft) == ["drop('a.old')"]
    assert draft.notes == ("No dense tensors, and only in the new state dict: 'a.new'.",)
    assert not draft.is_proved


def test_manifest_knows_the_names_of_other_values(tmp_path: Path) -> None:
    class Module(torch.nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"version": 2}

        def set_extra_state(self, state: Any) -> None:
            pass

    torch.save(Module(2, 3).state_dict(), tmp_path / "old.ckpt")
    model = torch.nn.ModuleDict({"head": Module(2, 3)})
    (tmp_path / "new.json").write_text(manifest_of(model).to_json())

    draft = draft_migration(tmp_path / "old.ckpt", tmp_path / "new.json")

    assert written(draft) == ["add_prefix('head')"]
    assert draft.is_complete
    assert draft.notes == ()


ODD_KEYS = {
    "lines": "x\nraise SystemExit\n#",
    "carriage return": "x\rraise SystemExit\r#",
    "surrogate": "x\udc80",
    "quotes": 'x"""\nraise SystemExit\n"""',
    "end of a comment": "x\\\nraise SystemExit",
}


@pytest.mark.parametrize("name", ODD_KEYS)
def test_keys_stay_text(drafted: Any, tmp_path: Path, name: str) -> None:
    key, weight = ODD_KEYS[name], torch.randn(3)
    others = {f"{key}.{n}": torch.randn(4, n + 2) for n in range(3)}

    for old, new in (
        ({"a": weight}, {"a": weight, **others}),
        ({"a": weight, key: others[f"{key}.0"]}, {"a": weight, "b": others[f"{key}.0"]}),
        ({"a": weight, "b": others[f"{key}.0"]}, {"a": weight, key: others[f"{key}.0"]}),
    ):
        text = drafted(old, new).source(key, (key, key))
        body = ast.parse(text.encode()).body

        assert {type(node) for node in body} <= {ast.Expr, ast.ImportFrom, ast.Assign}
        assert [node.targets[0].id for node in body if isinstance(node, ast.Assign)] == [  # type: ignore[attr-defined]
            "operations"
        ]


@pytest.mark.parametrize(
    ("old", "new"), [("a{b", "c"), ("a", "c{d}"), ("a{b}", None), (None, "{}")]
)
def test_keys_with_braces_are_left_to_a_person(drafted: Any, old: Any, new: Any) -> None:
    weight, other = torch.randn(3), torch.randn(2, 2)

    draft = drafted(
        {"x": other} | ({old: weight} if old else {}),
        {"y": other} | ({new: torch.zeros(2) if old is None else weight} if new else {}),
    )

    assert written(draft) == ["rename('x', 'y')"]
    assert draft.undecided == (((old,) if old else (), (new,) if new else ()),)
    assert (
        "A template cannot name keys with braces in them, but a compiled regex can." in draft.notes
    )


def test_key_with_braces_may_stay(drafted: Any) -> None:
    weight, other = torch.randn(3), torch.randn(2, 2)

    draft = drafted({"x": other, "{k}": weight}, {"y": other, "{k}": weight})

    assert written(draft) == ["rename('x', 'y')"]
    assert draft.is_proved
    assert draft.notes == ()


def test_state_dict_that_stands_elsewhere_is_said(drafted: Any) -> None:
    weight = torch.randn(3)

    wrapped = drafted({"a": weight}, {"state_dict": {"a": weight}})
    bare = drafted({"state_dict": {"a": weight}}, {"a": weight})

    assert wrapped.notes == (
        "The old file is a state dict itself, and the new one holds it under 'state_dict': "
        "if that is meant, add wrap('state_dict').",
    )
    assert bare.notes == (
        "The new file is a state dict itself, and the old one holds it under 'state_dict': "
        "if that is meant, add unwrap('state_dict').",
    )


def test_values_that_hold_themselves_are_compared(drafted: Any, tmp_path: Path) -> None:
    weight = torch.randn(3)
    old: dict[str, Any] = {"state_dict": {"a": weight}, "lr": 1.0}
    new: dict[str, Any] = {"state_dict": {"b": weight}, "rate": 1.0}
    for ckpt in (old, new):
        ckpt["self"] = ckpt
        ckpt["list"] = [1]
        ckpt["list"].append(ckpt["list"])
    new["new"] = new["list"]

    draft = drafted(old, new)

    assert written(draft) == ["rename('a', 'b')", "rename_value('lr', 'rate')"]
    new_migration(tmp_path / "m", "made", text=draft.source("Made", ("old", "new")))
    ckpt, _ = migrate_from_folder({"state_dict": {"a": weight}, "lr": 1.0}, tmp_path / "m")
    assert ckpt["rate"] == 1.0


def test_constants_tell_nothing_of_models_that_were_trained_apart(drafted: Any) -> None:
    """A norm starts with ones and zeros: in a new model that is no sign of new tensors."""

    def saved(name: str, *, is_trained: bool) -> dict[str, torch.Tensor]:
        layers = torch.nn.Sequential(
            torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.BatchNorm1d(4)
        )
        state = torch.nn.ModuleDict({name: layers}).state_dict()
        return {
            k: v + torch.rand(v.shape).to(v.dtype) if is_trained else v for k, v in state.items()
        }

    for trained in ("old", "new"):
        draft = drafted(
            saved("backbone", is_trained=trained == "old"),
            saved("encoder", is_trained=trained == "new"),
        )

        assert written(draft) == ["rename('backbone.{i}.{kind}', 'encoder.{i}.{kind}')"]
        assert len(draft.likely) == 9
        assert not draft.is_proved


def test_ties_are_said(drafted: Any) -> None:
    weight = torch.randn(3, 4)

    tied = drafted({"emb": weight, "head": weight.clone()}, {"a.emb": weight, "head": weight})
    untied = drafted({"emb": weight, "head": weight}, {"emb": weight, "head": weight.clone()})

    assert tied.notes == (
        "One tensor in the new state dict, and not in the old one: 'a.emb', 'head'; `tie` makes it so.",
    )
    assert untied.notes == (
        "One tensor in the old state dict, and not in the new one: 'emb', 'head'; `untie` makes it so.",
    )


def test_keys_that_are_no_text_are_said(drafted: Any) -> None:
    weight, other = torch.randn(3), torch.randn(2)

    draft = drafted({1: weight, 2: weight, "w": other}, {1: weight, 3: weight, "v": other})

    assert written(draft) == ["rename('w', 'v')"]
    assert draft.notes == ("Keys that are no text are not compared: '2', '3'.",)


def test_what_is_not_as_in_the_new_file_leaves_the_draft_open(drafted: Any) -> None:
    weight = torch.randn(3, 4)

    draft = drafted({"a": weight.half(), "b": weight}, {"a": weight * 1.001, "b": weight})

    assert written(draft) == ["cast('float32')"]
    assert draft.differing == draft.unexplained == ("a",)
    assert not draft.is_complete
    assert "# TODO: what the operations make of these is not what" in draft.source("X", ("a", "b"))


def test_tensors_that_were_renamed_and_trained_on_do_not_count_as_before(drafted: Any) -> None:
    draft = drafted(
        {"m.a": torch.randn(3, 4), "m.b": torch.randn(5)},
        {"n.a": torch.randn(3, 4), "n.b": torch.randn(5)},
    )

    assert set(draft.changed) == {"n.a", "n.b"}
    assert draft.kept == 0


def test_another_order_is_said_where_there_is_an_optimizer(drafted: Any) -> None:
    def saved(order: list[str], *, has_optimizer: bool) -> dict[str, Any]:
        torch.manual_seed(0)
        layers = {name: torch.nn.Linear(2, n + 2) for n, name in enumerate("ab")}
        model = torch.nn.ModuleDict({name: layers[name] for name in order})
        sum(layer.weight.sum() for layer in layers.values()).backward()
        optimizer = torch.optim.Adam(model.parameters())
        optimizer.step()
        beside = {"optimizer": optimizer.state_dict()} if has_optimizer else {}
        return {"state_dict": model.state_dict(), **beside}

    for has_optimizer in (True, False):
        same, other = (
            drafted(
                saved(["a", "b"], has_optimizer=has_optimizer),
                saved(order, has_optimizer=has_optimizer),
            )
            for order in (["a", "b"], ["b", "a"])
        )

        assert not any("order_after" in note for note in same.notes)
        assert any("order_after" in note for note in other.notes) == has_optimizer


def test_copy_of_the_model_is_said_once_and_an_optimizer_by_names_not_at_all(
    drafted: Any, tmp_path: Path
) -> None:
    def saved(module: str) -> dict[str, Any]:
        weights = {f"{module}.{n}.w": torch.full((n + 2,), 1.5) for n in range(3)}
        states = {key: {"exp_avg": tensor * 2, "step": 1} for key, tensor in weights.items()}
        groups = [{"params": list(weights), "lr": 0.1}]
        return {
            "model": {key: tensor + torch.arange(len(tensor)) for key, tensor in weights.items()},
            "ema": weights,
            "optimizer": {"state": states, "param_groups": groups},
        }

    draft = drafted(saved("enc"), saved("encoder"))

    assert written(draft) == ["rename('enc.{i}.w', 'encoder.{i}.w')"]
    assert draft.notes == (
        "The tensors under ema have other names, too. What is done to the model is done there, too, where it is "
        "named: optimizer = follow(copies=['ema']).",
    )
    text = draft.source("Made", ("old", "new")).replace("import rename", "import follow, rename")
    new_migration(tmp_path / "m", "made", text=text + "optimizer = follow(copies=['ema'])\n")
    ckpt, _ = migrate_from_folder(saved("enc"), tmp_path / "m")
    assert ckpt["ema"].keys() == saved("encoder")["ema"].keys()
    assert ckpt["optimizer"]["param_groups"] == saved("encoder")["optimizer"]["param_groups"]


def test_value_that_multiplies_by_sharing_is_looked_at_once(drafted: Any) -> None:
    """Written out it would have more parts than there are atoms."""
    shared: Any = [1]
    for _ in range(50):
        shared = [shared, shared]
    weight = torch.randn(3)

    draft = drafted(
        {"state_dict": {"a.w": weight, "a._extra_state": shared}, "config": shared},
        {"state_dict": {"b.w": weight, "b._extra_state": shared}, "settings": shared},
    )

    assert written(draft) == [
        "rename('a.{kind}', 'b.{kind}')",
        "rename_value('config', 'settings')",
    ]
    assert draft.is_proved


def test_order_of_names_in_a_value_does_not_count(drafted: Any) -> None:
    value = {"x": 1, "y": {2, 3}, "z": torch.ones(2)}

    draft = drafted(
        {"w": torch.ones(2), "_extra_state": value},
        {"w": torch.ones(2), "_extra_state": dict(reversed(value.items()))},
    )

    assert draft.is_proved
