"""The context_aware_roi_pool reference against hand-worked numbers and torch's convolutions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from harness import assert_close, assert_same
from roi_family import box, features, random_boxes
from torch import Tensor

from cvkernels import reference
from cvkernels.reference import context_aware_roi_pool

pytestmark = pytest.mark.native  # no kernel runs here


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, 1, -1)


def pooled(x: Tensor, corners: tuple[float, ...], bins: tuple[int, int]) -> list[float]:
    result: list[float] = context_aware_roi_pool(x, box((0, *corners)), bins).flatten().tolist()
    return result


def test_a_small_box_is_enlarged_by_a_whole_factor() -> None:
    # Two pixels and four bins: twice. The bilinear kernel of 4 taps is (1, 3, 3, 1) / 4.
    assert pooled(row(9, 0, 8, 9), (1, 0, 2, 0), (1, 4)) == [0, 2, 6, 8]
    # Six bins: three times, with the kernel (1, 2, 3, 2, 1) / 3.
    found = torch.tensor(pooled(row(0, 6), (0, 0, 1, 0), (1, 6)))
    assert_close(found, torch.tensor([0.0, 0, 2, 4, 6, 6]), torch.float32)
    # One pixel is the same everywhere.
    assert pooled(row(9, 5, 9), (1, 0, 1, 0), (2, 3)) == [5] * 6


def test_bins_of_an_enlarged_box_may_have_more_than_one_cell() -> None:
    # Three pixels and five bins: six cells 0, 2, 6, 6, 2, 0 in bins [0, 2), [1, 3), [2, 4), ...
    assert pooled(row(0, 8, 0), (0, 0, 2, 0), (1, 5)) == [2, 6, 6, 6, 2]


def test_pixels_outside_the_box_have_no_part() -> None:
    assert pooled(row(100, 0, 8, 100), (1, 0, 2, 0), (1, 4)) == [0, 2, 6, 8]
    # Nor those outside the map: the box has one pixel there, the second two bins.
    assert pooled(row(5, 100), (-1, 0, 0, 0), (1, 4)) == [0, 0, 5, 5]


def test_each_axis_goes_by_itself() -> None:
    x = torch.tensor([[0.0, 1, 2, 3], [8, 9, 10, 11]], dtype=torch.float64).reshape(1, 1, 2, 4)
    assert pooled(x, (0, 0, 3, 1), (4, 2)) == [1, 3, 3, 5, 7, 9, 9, 11]


def test_the_gradient_is_shared_by_the_pixels_of_a_cell() -> None:
    x = row(0, 8).requires_grad_()
    out = context_aware_roi_pool(x, box((0, 0, 0, 1, 0)), (1, 4))
    (grad,) = torch.autograd.grad(out, x, torch.tensor([1.0, 10, 100, 1000]).view_as(out).double())
    assert grad.flatten().tolist() == [1 + 7.5 + 25, 2.5 + 75 + 1000]


def by_convolution(x: Tensor, boxes: Tensor, bins: tuple[int, int]) -> Tensor:
    """As the paper has it: torch's transposed convolution, its kernel the usual bilinear one.

    For boxes of whole pixels on the map; their rims are repeated, so that the kernel's sum is one.
    """

    def kernel(factor: int) -> Tensor:
        taps = 2 * factor - factor % 2
        centre = factor - 1 if factor % 2 else factor - 0.5
        return 1 - (torch.arange(taps, dtype=x.dtype) - centre).abs() / factor

    def along(crop: Tensor, factor: int) -> Tensor:
        """[C, L, W] along L."""
        if factor == 1:
            return crop
        padded = torch.cat([crop[:, :1], crop, crop[:, -1:]], 1)[:, None]
        weight = kernel(factor)[None, None, :, None]
        grown = F.conv_transpose2d(padded, weight, stride=(factor, 1))[:, 0]
        begin = factor + factor // 2  # of cells of the first pixel
        return grown[:, begin : begin + factor * crop.shape[1]]

    results = []
    for n, x1, y1, x2, y2 in boxes.int().tolist():
        crop = x[n, :, y1 : y2 + 1, x1 : x2 + 1]
        y_factor, x_factor = (
            -(-count // size) if size < count else 1
            for count, size in zip(bins, crop.shape[1:], strict=True)
        )
        cells = along(along(crop, y_factor).mT, x_factor).mT
        results.append(F.adaptive_max_pool2d(cells, bins))
    return torch.stack(results)


@pytest.mark.parametrize("bins", [(1, 1), (2, 3), (7, 7), (14, 5)])
def test_equals_a_transposed_convolution_and_adaptive_pooling(bins: tuple[int, int]) -> None:
    for seed, extent in enumerate([(12, 16), (5, 5), (2, 12), (12, 3)]):
        x = features(3, 4, 13, 17, seed=seed).requires_grad_()
        boxes = random_boxes(20, 3, extent, seed=seed, spill=0.0).round()
        actual, expected = context_aware_roi_pool(x, boxes, bins), by_convolution(x, boxes, bins)
        assert_close(actual, expected, torch.float64)
        upstream = features(*actual.shape, seed=9)
        (a,) = torch.autograd.grad(actual, x, upstream)
        (e,) = torch.autograd.grad(expected, x, upstream)
        assert_close(a, e, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_is_roi_pool_where_no_box_is_enlarged(dtype: torch.dtype) -> None:
    for seed in range(4):
        x = features(3, 2, 25, 34, seed=seed).to(dtype)
        boxes = random_boxes(60, 3, (25, 34), seed=seed).to(dtype)
        boxes[:, 3:] = torch.maximum(boxes[:, 3:], boxes[:, 1:3] + 4)
        assert_same(context_aware_roi_pool(x, boxes, (4, 3)), reference.roi_pool(x, boxes, (4, 3)))


def test_equals_bilinear_resizing_where_the_grid_is_a_multiple_of_the_box() -> None:
    x = features(1, 3, 9, 9)
    for height, width in ((1, 1), (2, 3), (3, 2), (6, 1)):
        crop = x[:, :, 2 : 2 + height, 1 : 1 + width]
        resized = F.interpolate(crop, (6, 6), mode="bilinear", align_corners=False)
        actual = context_aware_roi_pool(x, box((0, 1, 2, width, 1 + height)), 6)
        assert_close(actual, resized, torch.float64)


def test_gradcheck() -> None:
    x = features(2, 2, 5, 6).requires_grad_()
    boxes = random_boxes(4, 2, (10, 12))
    assert torch.autograd.gradcheck(lambda t: context_aware_roi_pool(t, boxes, 4, 0.5), x)
