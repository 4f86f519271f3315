"""The im2col references against numbers worked by hand, as adjoints, and by indices."""

from __future__ import annotations

import pytest
import torch
from harness import assert_close, assert_same
from torch import Tensor

from cvkernels.reference import col2im, conv2d, conv2d_im2col, fold, im2col, unfold

pytestmark = pytest.mark.native  # no kernel runs here


def t(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_columns_by_hand() -> None:
    x = t([[[[1, 2, 3], [4, 5, 6]]]])
    assert im2col(x, (2, 2))[0].tolist() == [[1, 2], [2, 3], [4, 5], [5, 6]]
    assert im2col(x, (1, 2), padding=(0, 1), stride=(1, 2))[0].tolist() == [
        [0, 2, 0, 5],
        [1, 3, 4, 6],
    ]
    assert im2col(x, (1, 2), dilation=2)[0].tolist() == [[1, 4], [3, 6]]


def test_rows_are_channels_then_kernel_elements() -> None:
    x = t([[[[1, 2]], [[3, 4]]]])
    assert im2col(x, (1, 2))[0].flatten().tolist() == [1, 2, 3, 4]


def test_back_by_hand() -> None:
    columns = t([[[1, 2], [10, 20]]])  # kernel (1, 2) at two positions of three pixels
    assert col2im(columns, (1, 3), (1, 2)).flatten().tolist() == [1, 12, 20]
    # Stride 2 leaves a pixel that nothing reads.
    out = col2im(columns, (1, 5), (1, 2), stride=(1, 2))
    assert out.flatten().tolist() == [1, 10, 2, 20, 0]


def test_names_of_torch() -> None:
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    assert_same(unfold(x, 3, 1, 1, 2), im2col(x[None], 3, 1, 1, 2)[0])
    columns = im2col(x, 2)
    assert_same(fold(columns, (5, 4), 2), col2im(columns[None], (5, 4), 2)[0])


@pytest.mark.parametrize("seed", range(4))
def test_by_indices_and_as_adjoints(seed: int) -> None:
    """A map of its own pixel numbers says where each element comes from."""
    g = torch.Generator().manual_seed(seed)
    k, d, p, s = (
        tuple(torch.randint(low, high, (2,), generator=g).tolist())
        for low, high in ((1, 4), (1, 3), (0, 3), (1, 4))
    )
    x = torch.randn(2, 3, 9, 8, generator=g, dtype=torch.float64)
    numbers = torch.arange(1.0, 3 * 72 + 1, dtype=torch.float64).reshape(1, 3, 9, 8)
    index = im2col(numbers, k, d, p, s)[0].long()
    padded = torch.cat([x.new_zeros(2, 1), x.flatten(1)], 1)
    columns = im2col(x, k, d, p, s)
    assert_same(columns, padded[:, index.flatten()].unflatten(1, index.shape))
    y = torch.randn(columns.shape, generator=g, dtype=torch.float64)
    back = col2im(y, (9, 8), k, d, p, s)
    assert_close((columns * y).sum(), (x * back).sum(), torch.float64)


def test_convolution_by_columns() -> None:
    x = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    w = torch.randn(6, 2, 3, 2, dtype=torch.float64)
    columns = unfold(x, (3, 2), padding=1).reshape(2, 2, 12, -1)
    out = torch.einsum("gok,ngkl->ngol", w.reshape(2, 3, 12), columns).reshape(2, 6, 6, 8)
    assert_close(conv2d_im2col(x, w, padding=1, groups=2), out, torch.float64)
    assert_close(conv2d(x, w, padding=1, groups=2), out, torch.float64)
