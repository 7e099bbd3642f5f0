"""Hashes of tensors by content, whole and slice by slice."""

from __future__ import annotations

import pytest
import torch

from migrate_ckpt import content_hashes
from migrate_ckpt.content_hashes import hash_slices, hash_whole, is_constant

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.uint16,
    torch.int64,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float64,
    torch.complex64,
    torch.complex128,
]


@pytest.fixture(params=[7, 1 << 19], ids=["small blocks", "one block"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_hashes, "BLOCK_ELEMENTS", request.param)


@pytest.mark.usefixtures("_blocks")
def test_slice_has_the_hash_that_it_has_by_itself() -> None:
    tensor = torch.randn(4, 5, 6)

    for dim in range(3):
        slices = [hash_whole(tensor.select(dim, n).clone()) for n in range(tensor.shape[dim])]
        assert hash_slices(tensor, dim) == slices


@pytest.mark.usefixtures("_blocks")
def test_view_has_the_hash_of_its_copy() -> None:
    tensor = torch.randn(4, 5, 6)

    assert hash_whole(tensor.permute(2, 0, 1)) == hash_whole(tensor.permute(2, 0, 1).contiguous())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_element_makes_another_hash(dtype: torch.dtype) -> None:
    tensor = torch.zeros(3, 4).to(dtype)
    other = tensor.clone()
    other[1, 2] = 1

    assert hash_whole(tensor) != hash_whole(other)


def test_two_elements_in_each_others_place_make_another_hash() -> None:
    tensor = torch.arange(12.0).reshape(3, 4)

    assert hash_whole(tensor) != hash_whole(tensor[[1, 0, 2]])
    assert hash_whole(tensor) != hash_whole(tensor[:, [1, 0, 2, 3]])


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.zeros(30), True),
        (torch.tensor(3.0), True),
        (torch.zeros(0, 4), True),
        (torch.full((2, 9), float("nan")), True),
        (torch.cat([torch.zeros(29), torch.ones(1)]), False),
        (torch.tensor([0.0, -0.0]), False),
    ],
    ids=["zeros", "scalar", "empty", "nan", "last differs", "signs of zero"],
)
def test_constant_is_what_has_the_same_bits_all_over(tensor: torch.Tensor, expected: bool) -> None:
    assert is_constant(tensor) is expected
