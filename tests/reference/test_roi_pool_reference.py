"""The roi_pool reference against numbers worked by hand and against torch's adaptive pooling."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from harness import assert_close, assert_same
from roi_family import box, features, random_boxes
from torch import Tensor

from cvkernels.reference import roi_pool

pytestmark = pytest.mark.native  # no kernel runs here


def plane(height: int, width: int) -> Tensor:
    """10 y + x, so that a maximum tells its pixel."""
    y = torch.arange(float(height), dtype=torch.float64)[:, None]
    return (10 * y + torch.arange(float(width), dtype=torch.float64)).reshape(1, 1, height, width)


def test_both_corner_pixels_belong_to_the_box() -> None:
    # (1, 2)-(4, 3): columns 1..4, rows 2..3. Two bins across: columns 1..2 and 3..4.
    out = roi_pool(plane(8, 8), box((0, 1, 2, 4, 3)), (1, 2))
    assert out.flatten().tolist() == [32, 34]


def test_bins_share_a_pixel_where_the_size_does_not_divide() -> None:
    # Columns 0..4 in two bins of 2.5: [0, 3) and [2, 5).
    out = roi_pool(plane(8, 8), box((0, 0, 0, 4, 0)), (1, 2))
    assert out.flatten().tolist() == [2, 4]
    # In four bins of 1.25: [0, 2), [1, 3), [2, 4), [3, 5).
    out = roi_pool(plane(8, 8), box((0, 0, 0, 4, 0)), (1, 4))
    assert out.flatten().tolist() == [1, 2, 3, 4]


def test_a_box_smaller_than_the_grid_repeats_its_pixels() -> None:
    # Columns 3, 4 in five bins of 0.4: [0, 1), [0, 1), [0, 2), [1, 2), [1, 2) from column 3 on.
    out = roi_pool(plane(8, 8), box((0, 3, 0, 4, 0)), (1, 5))
    assert out.flatten().tolist() == [3, 3, 4, 4, 4]


def test_halves_are_rounded_away_from_zero() -> None:
    # A scale of 1/2: 3 -> 1.5 -> 2, 5 -> 2.5 -> 3; rows 1 -> 0.5 -> 1, 1.9 -> 0.95 -> 1.
    out = roi_pool(plane(8, 8), box((0, 3, 1, 5, 1.9)), (1, 2), 0.5)
    assert out.flatten().tolist() == [12, 13]
    # -1 -> -0.5 -> -1: columns -1, 0. Two bins: the first is outside the map.
    out = roi_pool(plane(8, 8) + 1, box((0, -1, 0, 0, 0)), (1, 2), 0.5)
    assert out.flatten().tolist() == [0, 1]


def test_a_box_is_at_least_one_pixel() -> None:
    out = roi_pool(plane(8, 8), box((0, 5, 5, 2, 2)), 2)
    assert out.flatten().tolist() == [55] * 4


def test_bins_are_cut_at_the_rim() -> None:
    # Columns 5..8 of a map with 7: bins [5, 7) and [7, 9), the second of which is empty.
    out = roi_pool(plane(3, 7), box((0, 5, 0, 8, 0)), (1, 2))
    assert out.flatten().tolist() == [6, 0]


def test_the_gradient_goes_to_the_first_of_equal_maxima() -> None:
    x = torch.tensor([[0.0, 2, 2], [2, 1, 0]], dtype=torch.float64).reshape(1, 1, 2, 3)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(roi_pool(x, box((0, 0, 0, 2, 1)), 1).sum(), x)
    assert grad.flatten().tolist() == [0, 1, 0, 0, 0, 0]


def by_adaptive_pooling(x: Tensor, boxes: Tensor, bins: tuple[int, int]) -> Tensor:
    """Boxes of whole pixels that lie on the map: torch cuts bins by the same rule."""
    crops = [
        x[int(n), :, int(y1) : int(y2) + 1, int(x1) : int(x2) + 1] for n, x1, y1, x2, y2 in boxes
    ]
    return torch.stack([F.adaptive_max_pool2d(crop, bins) for crop in crops])


@pytest.mark.parametrize("bins", [(1, 1), (2, 3), (7, 7)])
def test_equals_adaptive_pooling(bins: tuple[int, int]) -> None:
    for seed in range(4):
        x = features(3, 4, 13, 17, seed=seed).requires_grad_()
        boxes = random_boxes(20, 3, (12, 16), seed=seed, spill=0.0).round()
        actual, expected = roi_pool(x, boxes, bins), by_adaptive_pooling(x, boxes, bins)
        assert_same(actual, expected)
        upstream = features(*actual.shape, seed=9)
        (a,) = torch.autograd.grad(actual, x, upstream)
        (e,) = torch.autograd.grad(expected, x, upstream)
        assert_close(a, e, torch.float64)


def test_gradcheck() -> None:
    x = features(2, 2, 5, 6).requires_grad_()
    boxes = random_boxes(4, 2, (10, 12))
    assert torch.autograd.gradcheck(lambda t: roi_pool(t, boxes, 2, 0.5), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_torchvision(dtype: torch.dtype) -> None:
    """Sizes that are no multiple of the bins included: float32 rounds where bins begin and end."""
    ops = pytest.importorskip("torchvision.ops")
    for seed in range(4):
        x = features(3, 2, 25, 34, seed=seed).to(dtype)
        boxes = random_boxes(60, 3, (400, 544), seed=seed).to(dtype)
        assert_same(roi_pool(x, boxes, 7, 1 / 16), ops.roi_pool(x, boxes, 7, 1 / 16))
