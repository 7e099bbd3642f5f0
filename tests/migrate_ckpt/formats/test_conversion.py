"""From one format to another: what goes, what is refused by name, and what is said to be left out."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from migrate_ckpt import UnwritableCheckpoint
from migrate_ckpt.formats import open_container
from migrate_ckpt.formats.container import Container
from migrate_ckpt.formats.conversion import lay_out_as, written_format
from migrate_ckpt.formats.pieces import Pieces, replace_file
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.formats.tensors import MappedTensors
from migrate_ckpt.history import History, Record, read_history, write_history


def opened(path: Path) -> tuple[Container, Any]:
    container = open_container(FileSource(path))
    return container, container.read(MappedTensors(container)).value


def convert(
    source: Path, target: Path, format: Any, change: Any = None
) -> tuple[str, tuple[str, ...], Pieces]:
    container, value = opened(source)
    value = change(value) if change else value
    pieces, written, left_out = lay_out_as(value, container, 2, format)
    replace_file(target, pieces, container.source)
    return written, left_out, pieces


def saved_as_zip(value: Any, path: Path) -> None:
    torch.save(value, path)


def saved_as_stream(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def saved_as_safetensors(value: Any, path: Path) -> None:
    safetensors.torch.save_file(dict(value), path, {"format": "pt"})


SAVES = {
    "torch": saved_as_zip,
    "torch-legacy": saved_as_stream,
    "safetensors": saved_as_safetensors,
}


def weights() -> dict[str, torch.Tensor]:
    return {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.tensor(True),
        "c": torch.empty(0, 2, dtype=torch.int64),
        "d": torch.arange(5).to(torch.bfloat16),
    }


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "old", tmp_path / "new"


@pytest.mark.parametrize(
    ("kind", "asked", "expected"),
    [
        ("torch", None, "torch"),
        ("torch-legacy", None, "torch"),
        ("safetensors", None, "safetensors"),
        ("torch", "safetensors", "safetensors"),
        ("torch-legacy", "safetensors", "safetensors"),
        ("safetensors", "torch", "torch"),
        ("torch", "torch", "torch"),
        ("safetensors", "safetensors", "safetensors"),
    ],
)
def test_every_format_becomes_the_one_that_is_asked_for(paths, kind, asked, expected):
    source, target = paths
    SAVES[kind](weights(), source)

    written, _, pieces = convert(source, target, asked)

    container, again = opened(target)
    assert written == container.format == expected
    assert written_format(opened(source)[0], asked) == expected
    assert set(again) == set(weights())
    assert all(torch.equal(again[name], tensor) for name, tensor in weights().items())
    assert all(again[name].dtype is tensor.dtype for name, tensor in weights().items())
    # The bytes themselves: 24 of a, 1 of b, 10 of d.
    assert pieces.copied_bytes >= 35


@pytest.mark.parametrize("kind", ["torch", "torch-legacy"])
def test_a_state_dict_comes_back_from_safetensors_as_it_was(paths, tmp_path, kind):
    source, target = paths
    layer = torch.nn.Linear(2, 2)
    module = torch.nn.Sequential(layer, torch.nn.BatchNorm1d(2), layer)
    SAVES[kind](module.state_dict(), source)

    convert(source, target, "safetensors")
    convert(target, tmp_path / "back", "torch")

    back = torch.load(tmp_path / "back", weights_only=True)
    assert back._metadata == module.state_dict()._metadata
    assert torch.nn.Module.load_state_dict(module, back, strict=True)
    assert back["0.weight"].data_ptr() == back["2.weight"].data_ptr()


def test_the_history_goes_along_in_both_directions(paths, tmp_path):
    source, target = paths
    history = History((Record("0001_x", "default", "1:ab"),))
    saved_as_zip(write_history(OrderedDict(weights()), history, in_metadata=True), source)

    convert(source, target, "safetensors")
    convert(target, tmp_path / "back", "torch")

    assert read_history(opened(target)[1]).records == history.records
    assert read_history(opened(tmp_path / "back")[1]).records == history.records


def test_the_text_of_a_header_goes_along_in_both_directions(paths, tmp_path):
    source, target = paths
    safetensors.torch.save_file(weights(), source, {"format": "pt", "base": "llama"})

    _, left_out, _ = convert(source, target, "torch")
    convert(target, tmp_path / "back", "safetensors")

    with safetensors.safe_open(tmp_path / "back", "pt") as file:
        assert file.metadata() == {"format": "pt", "base": "llama"}
    assert left_out == ()


def test_text_of_a_header_that_a_migration_drops_is_said(paths):
    source, target = paths
    safetensors.torch.save_file(weights(), source, {"base": "llama"})

    _, left_out, _ = convert(source, target, "torch", change=dict)

    assert left_out == ("The text of the header is not in the new file: 'base'.",)


def test_a_new_safetensors_file_says_that_it_is_of_torch(paths):
    source, target = paths
    saved_as_zip(weights(), source)

    convert(source, target, "safetensors")

    with safetensors.safe_open(target, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_what_cannot_go_is_named(paths):
    source, target = paths
    saved_as_zip({"state_dict": weights(), "epoch": 3, "when": OrderedDict, **weights()}, source)

    with pytest.raises(UnwritableCheckpoint) as raised:
        convert(source, target, "safetensors")

    message = str(raised.value)
    assert (
        "'state_dict' (dict), 'epoch' (int), 'when' (foreign, collections.OrderedDict)" in message
    )
    assert "'a'" not in message
    assert raised.value.where == "state_dict"


def test_device_tags_that_cannot_go_are_said(paths):
    source, target = paths
    saved_as_stream(weights(), source)
    source.write_bytes(source.read_bytes().replace(b"\3\0\0\0cpu", b"\3\0\0\0mps"))

    _, left_out, _ = convert(source, target, "safetensors")

    assert any("'a' was on mps" in sentence for sentence in left_out)


def test_attributes_of_a_state_dict_that_cannot_go_are_said(paths):
    source, target = paths
    state = OrderedDict(weights())
    state._metadata, state.epoch = {"": {"version": 1}}, 3
    saved_as_zip(state, source)

    _, left_out, _ = convert(source, target, "safetensors")

    said = [sentence for sentence in left_out if "Attributes" in sentence]
    assert said == ["Attributes of the state dict that are not in the new file: 'epoch'."]


def test_a_stream_is_said_to_have_become_a_zip(paths):
    source, target = paths
    saved_as_stream(weights(), source)

    _, left_out, _ = convert(source, target, None)

    assert len(left_out) == 1
    assert "1.6" in left_out[0]


def test_source_code_that_is_left_out_is_said(paths):
    source, target = paths
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Couldn't retrieve source code")
        saved_as_stream({"model": torch.nn.Linear(2, 2)}, source)

    _, left_out, _ = convert(source, target, None)

    assert any("torch.nn.modules.linear.Linear" in sentence for sentence in left_out)


def test_names_of_tensors_are_no_names_of_records(paths):
    source, target = paths
    tensors = {"../../etc/passwd": torch.ones(2), "a/b": torch.ones(3), "\n": torch.ones(4)}
    saved_as_safetensors(tensors, source)

    convert(source, target, "torch")

    again = torch.load(target, weights_only=True)
    assert {name: t.numel() for name, t in again.items()} == {
        n: t.numel() for n, t in tensors.items()
    }


def test_the_same_bytes_come_out_under_any_name(tmp_path):
    made = []
    for name in ("first", "second.pt"):
        saved_as_safetensors(weights(), tmp_path / name)
        convert(tmp_path / name, tmp_path / "torch", "torch")
        convert(tmp_path / name, tmp_path / "safetensors", None)
        made.append(((tmp_path / "torch").read_bytes(), (tmp_path / "safetensors").read_bytes()))

    assert made[0] == made[1]
