"""The ps_roi_pool reference against numbers worked by hand and against torch's adaptive pooling."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from harness import assert_close
from roi_family import box, features, random_boxes
from torch import Tensor

from cvkernels.reference import ps_roi_pool

pytestmark = pytest.mark.native  # no kernel runs here


def row(size: int) -> Tensor:
    """One channel and two rows that are x, of which only the first is ever read."""
    return torch.arange(float(size), dtype=torch.float64).expand(1, 1, 2, size)


def test_each_bin_reads_a_channel_of_its_own() -> None:
    x = torch.arange(12.0, dtype=torch.float64).reshape(1, 12, 1, 1).expand(-1, -1, 6, 6)
    out = ps_roi_pool(x, box((0, 1, 1, 4, 4)), (2, 3))
    assert out.shape == (1, 2, 2, 3)
    assert out.flatten().tolist() == list(range(12))


def test_the_far_pixel_does_not_belong_to_the_box() -> None:
    # (2, 0)-(5, 1): columns 2, 3, 4.
    assert ps_roi_pool(row(9), box((0, 2, 0, 5, 1)), 1).item() == 3


def test_bins_share_a_pixel_where_the_size_does_not_divide() -> None:
    # Columns 1..5 in two bins of 2.5: [1, 4) and [3, 6).
    x = row(9).expand(1, 2, 2, 9)
    assert ps_roi_pool(x, box((0, 1, 0, 6, 1)), (1, 2)).flatten().tolist() == [2, 4]


def test_halves_are_rounded_away_from_zero() -> None:
    # A scale of 1/2: 3 -> 1.5 -> 2, 9 -> 4.5 -> 5: columns 2, 3, 4.
    assert ps_roi_pool(row(9), box((0, 3, 0, 9, 1)), 1, 0.5).item() == 3


def test_a_box_is_at_least_one_pixel() -> None:
    assert ps_roi_pool(row(9), box((0, 5, 0, 5, 0)), 1).item() == 5
    assert ps_roi_pool(row(9), box((0, 5, 0, 2, 0)), 1).item() == 5


def test_the_last_pixel_of_the_map_is_never_read() -> None:
    # Columns 5..8 of 9: 5, 6, 7 are left.
    assert ps_roi_pool(row(9), box((0, 5, 0, 9, 1)), 1).item() == 6
    assert ps_roi_pool(row(9), box((0, 8, 0, 9, 1)), 1).item() == 0


def by_adaptive_pooling(x: Tensor, boxes: Tensor, bins: tuple[int, int]) -> Tensor:
    """Boxes of whole pixels away from the rim: torch cuts bins by the same rule."""
    crops = [x[int(n), :, int(y1) : int(y2), int(x1) : int(x2)] for n, x1, y1, x2, y2 in boxes]
    pooled = torch.stack([F.adaptive_avg_pool2d(crop, bins) for crop in crops])
    pooled = pooled.unflatten(1, (-1, *bins))
    return torch.einsum("koijij->koij", pooled)


@pytest.mark.parametrize("bins", [(1, 1), (2, 3), (7, 7)])
def test_equals_adaptive_pooling(bins: tuple[int, int]) -> None:
    for seed in range(4):
        x = features(3, 2 * bins[0] * bins[1], 13, 17, seed=seed).requires_grad_()
        boxes = random_boxes(20, 3, (11, 15), seed=seed, spill=0.0).round()
        boxes[:, 3:] = torch.maximum(boxes[:, 3:], boxes[:, 1:3] + 1)
        actual, expected = ps_roi_pool(x, boxes, bins), by_adaptive_pooling(x, boxes, bins)
        assert_close(actual, expected, torch.float64)
        upstream = features(*actual.shape, seed=9)
        (a,) = torch.autograd.grad(actual, x, upstream)
        (e,) = torch.autograd.grad(expected, x, upstream)
        assert_close(a, e, torch.float64)


def test_gradcheck() -> None:
    x = features(2, 8, 5, 6).requires_grad_()
    boxes = random_boxes(4, 2, (10, 12))
    assert torch.autograd.gradcheck(lambda t: ps_roi_pool(t, boxes, 2, 0.5), x)
    assert torch.autograd.gradgradcheck(lambda t: ps_roi_pool(t, boxes, 2, 0.5), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_torchvision(dtype: torch.dtype) -> None:
    """Sizes that are no multiple of the bins included: float32 rounds where bins begin and end."""
    ops = pytest.importorskip("torchvision.ops")
    for seed in range(4):
        x = features(3, 98, 25, 34, seed=seed).to(dtype)
        boxes = random_boxes(30, 3, (400, 544), seed=seed).to(dtype)
        assert_close(ps_roi_pool(x, boxes, 7, 1 / 16), ops.ps_roi_pool(x, boxes, 7, 1 / 16), dtype)
