from __future__ import annotations

from dataclasses import replace

import pytest

from migrate_ckpt import InvalidManifest, read_manifest
from migrate_ckpt.manifest import ExpectedTensor, Manifest

MANIFEST = Manifest(
    {
        "embed.weight": ExpectedTensor("float32", (10, 4)),
        "head.weight": ExpectedTensor("float32", (10, 4)),
        "norm.scale": ExpectedTensor("bfloat16", ()),
        'odd "key"\n': ExpectedTensor("int64", (None, 3)),
    },
    values=frozenset({"head._extra_state"}),
    ties=(("embed.weight", "head.weight"),),
    versions={"norm": 2},
    section=("ema", "model"),
    checks=("keys", "shapes"),
)


@pytest.mark.parametrize(
    "manifest",
    [MANIFEST, Manifest({}), replace(MANIFEST, section=())],
    ids=["full", "empty", "top"],
)
def test_manifest_comes_back_as_it_was_written(tmp_path, manifest):
    path = tmp_path / "manifest.json"
    path.write_text(manifest.to_json())

    assert read_manifest(path) == manifest
    assert list(read_manifest(path).tensors) == list(manifest.tensors)


def test_each_tensor_has_a_line_of_its_own():
    lines = MANIFEST.to_json().splitlines()

    assert '    "embed.weight": {"dtype": "float32", "shape": [10, 4]},' in lines


def test_what_may_be_left_out_may(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text('{"manifest": 1, "tensors": {"a": {"dtype": "int8", "shape": []}}}')

    assert read_manifest(path) == Manifest({"a": ExpectedTensor("int8", ())})


def test_prefix_goes_before_all_that_names_a_key():
    prefixed = MANIFEST.with_prefix("model.")

    assert next(iter(prefixed.tensors)) == "model.embed.weight"
    assert prefixed.values == {"model.head._extra_state"}
    assert prefixed.ties == (("model.embed.weight", "model.head.weight"),)
    assert prefixed.versions == {"model.norm": 2}
    assert MANIFEST.with_prefix("") == MANIFEST


TENSOR = '"a": {"dtype": "int8", "shape": []}'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", 'has no "manifest": 1'),
        ('{"manifest": 2, "tensors": {}}', 'has no "manifest": 1'),
        ('{"manifest": 1}', 'has no "tensors"'),
        ('{"manifest": 1, "tensors": {}, "tenors": 1}', "members that no manifest has: tenors"),
        ('{"manifest": 1, "tensors": {"a": {"dtype": "int8"}}}', "says of 'a' not its"),
        ('{"manifest": 1, "tensors": {"a": {"dtype": 3, "shape": []}}}', "says of 'a' not its"),
        ('{"manifest": 1, "tensors": {"a": {"dtype": "i", "shape": [-1]}}}', "says of 'a' not its"),
        ('{"manifest": 1, "tensors": {"a": {"dtype": "i", "shape": [true]}}}', "says of 'a'"),
        (f'{{"manifest": 1, "tensors": {{{TENSOR}}}, "ties": [["a", "b"]]}}', '"tensors": b'),
        (f'{{"manifest": 1, "tensors": {{{TENSOR}}}, "ties": [["a"], ["a"]]}}', "a key twice"),
        ('{"manifest": 1, "tensors": {}, "ties": "no"}', '"ties" that is no list'),
        ('{"manifest": 1, "tensors": {}, "values": [1]}', 'else than texts in "values"'),
        ('{"manifest": 1, "tensors": {}, "versions": {"a": "b"}}', '"versions" that are not'),
        ('{"manifest": 1, "tensors": {}, "checks": ["names"]}', "what is not known: names"),
    ],
)
def test_what_is_no_manifest_is_refused_with_what_is_wrong(tmp_path, text, sentence):
    path = tmp_path / "m.json"
    path.write_text(text)

    with pytest.raises(InvalidManifest) as caught:
        read_manifest(path)

    assert str(caught.value).startswith("The manifest m.json ")
    assert sentence in str(caught.value)
    assert caught.value.path == path


def test_missing_manifest_is_refused(tmp_path):
    with pytest.raises(InvalidManifest, match="cannot be read: No such file"):
        read_manifest(tmp_path / "no.json")
