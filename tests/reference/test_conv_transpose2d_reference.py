"""The conv_transpose2d reference against numbers worked by hand, and as the adjoint of conv2d."""

from __future__ import annotations

import pytest
import torch
from harness import assert_close, assert_same
from torch import Tensor

from cvkernels.reference import conv2d, conv_transpose2d

pytestmark = pytest.mark.native  # no kernel runs here


def t(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_one_pixel_paints_the_kernel() -> None:
    out = conv_transpose2d(t([[[[3]]]]), t([[[[1, 10], [100, 1000]]]]), t([0.5]))
    assert out[0, 0].tolist() == [[3.5, 30.5], [300.5, 3000.5]]


def test_overlap_stride_and_padding() -> None:
    row, kernel = t([[[[1, 2]]]]), t([[[[1, 10, 100]]]])
    assert conv_transpose2d(row, kernel).flatten().tolist() == [1, 12, 120, 200]
    assert conv_transpose2d(row, kernel, stride=2).flatten().tolist() == [1, 10, 102, 20, 200]
    # Stride 4: a gap that nothing reaches.
    out = conv_transpose2d(row, kernel, stride=(1, 4))
    assert out.flatten().tolist() == [1, 10, 100, 0, 2, 20, 200]
    # Padding cuts off, output_padding gives back on the right.
    out = conv_transpose2d(row, kernel, stride=2, padding=(0, 1))
    assert out.flatten().tolist() == [10, 102, 20]
    out = conv_transpose2d(row, kernel, stride=2, padding=(0, 1), output_padding=(0, 1))
    assert out.flatten().tolist() == [10, 102, 20, 200]
    out = conv_transpose2d(row, kernel, t([7]), stride=2, output_padding=(1, 1))
    assert out[0, 0].tolist() == [[8, 17, 109, 27, 207, 7], [7] * 6]


def test_dilation() -> None:
    out = conv_transpose2d(t([[[[1, 2]]]]), t([[[[1, 10]]]]), dilation=2)
    assert out.flatten().tolist() == [1, 2, 10, 20]


def test_channels_and_groups() -> None:
    pixel = t([1, 10]).reshape(1, 2, 1, 1)
    weight = t([[1, 2, 3], [4, 5, 6]]).reshape(2, 3, 1, 1)  # [C, O]
    assert conv_transpose2d(pixel, weight).flatten().tolist() == [41, 52, 63]
    assert conv_transpose2d(pixel, weight, groups=2).flatten().tolist() == [1, 2, 3, 40, 50, 60]


def test_unbatched() -> None:
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    w = torch.randn(3, 2, 2, 2, dtype=torch.float64)
    assert_same(conv_transpose2d(x, w), conv_transpose2d(x[None], w)[0])
    assert conv_transpose2d(x[None][:0], w).shape == (0, 2, 6, 5)


@pytest.mark.parametrize("seed", range(6))
def test_is_the_adjoint_of_conv2d(seed: int) -> None:
    """<conv2d(x), y> = <x, conv_transpose2d(y)> for any x and y."""
    g = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=g))

    groups, stride, dilation = pick(1, 3), (pick(1, 4), pick(1, 4)), (pick(1, 3), pick(1, 3))
    kernel = (pick(1, 4), pick(1, 4))
    padding = tuple(pick(0, dilation[i] * (kernel[i] - 1) + 1) for i in (0, 1))
    x = torch.randn(2, 2 * groups, 11, 12, generator=g, dtype=torch.float64)
    w = torch.randn(3 * groups, 2, *kernel, generator=g, dtype=torch.float64)
    out = conv2d(x, w, None, stride, padding, dilation, groups)
    y = torch.randn(out.shape, generator=g, dtype=torch.float64)
    # What of x no output reaches is output_padding.
    more = tuple(
        x.shape[2 + i]
        - ((out.shape[2 + i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (kernel[i] - 1) + 1)
        for i in (0, 1)
    )
    back = conv_transpose2d(y, w, None, stride, padding, more, groups, dilation)
    assert back.shape == x.shape
    assert_close((out * y).sum(), (x * back).sum(), torch.float64)
