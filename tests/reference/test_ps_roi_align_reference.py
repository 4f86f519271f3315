"""The ps_roi_align reference against numbers worked by hand and against torch's grid_sample."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from harness import assert_close
from roi_family import box, features, random_boxes
from torch import Tensor

from cvkernels.reference import ps_roi_align

pytestmark = pytest.mark.native  # no kernel runs here


def test_each_bin_reads_a_channel_of_its_own() -> None:
    # Constant channels 0..11: six bins, of which output channel 0 has channels 0..5.
    x = torch.arange(12.0, dtype=torch.float64).reshape(1, 12, 1, 1).expand(-1, -1, 6, 6)
    out = ps_roi_align(x, box((0, 1, 1, 4, 4)), (2, 3))
    assert out.shape == (1, 2, 2, 3)
    assert out.flatten().tolist() == list(range(12))


def test_coordinates_are_shifted_by_half_a_pixel() -> None:
    # A map that is x: one bin over [2, 4), one sample in its middle at 3 - 0.5.
    x = torch.arange(8.0, dtype=torch.float64).reshape(1, 1, 1, 8)
    assert ps_roi_align(x, box((0, 2, 0, 4, 1)), 1, 1.0, 1).item() == 2.5
    # And a box may be narrower than a pixel: both samples of a point are at 3 - 0.5.
    assert ps_roi_align(x, box((0, 3, 0, 3, 1)), 1, 1.0, 2).item() == 2.5


def test_an_outside_sample_counts_as_zero() -> None:
    # Samples at -2, -1, 0, 1 of ones: the first is more than a pixel outside.
    x = torch.ones(1, 1, 1, 4, dtype=torch.float64)
    assert ps_roi_align(x, box((0, -2, 0, 2, 1)), 1, 1.0, 4).item() == 0.75


def test_a_bin_without_samples_is_zero() -> None:
    x = torch.ones(1, 4, 5, 5, dtype=torch.float64)
    assert ps_roi_align(x, box((0, 2, 2, 2, 2)), 2).flatten().tolist() == [0, 0, 0, 0]


def by_grid_sample(x: Tensor, boxes: Tensor, bins: tuple[int, int], ratio: int) -> Tensor:
    """Bin by bin through torch's own sampler, boxes inside the map."""
    height, width = x.shape[2:]
    out = x.new_zeros(len(boxes), x.shape[1] // (bins[0] * bins[1]), *bins)
    steps = (torch.arange(ratio, dtype=torch.float64) + 0.5) / ratio
    for k, (n, x1, y1, x2, y2) in enumerate(boxes.tolist()):
        for i in range(bins[0]):
            for j in range(bins[1]):
                ys = y1 - 0.5 + (i + steps) * (y2 - y1) / bins[0]
                xs = x1 - 0.5 + (j + steps) * (x2 - x1) / bins[1]
                gy, gx = torch.meshgrid(ys, xs, indexing="ij")
                grid = torch.stack([(2 * gx + 1) / width - 1, (2 * gy + 1) / height - 1], -1)[None]
                channels = x[int(n), i * bins[1] + j :: bins[0] * bins[1]][None]
                out[k, :, i, j] = F.grid_sample(channels, grid, "bilinear", "border").mean(
                    (0, 2, 3)
                )
    return out


@pytest.mark.filterwarnings("ignore:Default grid_sample")
@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_equals_grid_sample(ratio: int) -> None:
    for seed in range(3):
        x = features(3, 18, 13, 17, seed=seed).requires_grad_()
        boxes = random_boxes(12, 3, (13, 17), seed=seed, spill=0.0)
        actual = ps_roi_align(x, boxes, (3, 2), 1.0, ratio)
        expected = by_grid_sample(x, boxes, (3, 2), ratio)
        assert_close(actual, expected, torch.float64)
        upstream = features(*actual.shape, seed=9)
        (a,) = torch.autograd.grad(actual, x, upstream)
        (e,) = torch.autograd.grad(expected, x, upstream)
        assert_close(a, e, torch.float64)


def test_gradcheck() -> None:
    x = features(2, 8, 5, 6).requires_grad_()
    boxes = random_boxes(4, 2, (10, 12))
    assert torch.autograd.gradcheck(lambda t: ps_roi_align(t, boxes, 2, 0.5), x)
    assert torch.autograd.gradgradcheck(lambda t: ps_roi_align(t, boxes, 2, 0.5), x)


@pytest.mark.parametrize("ratio", [-1, 2])
def test_equals_torchvision(ratio: int) -> None:
    ops = pytest.importorskip("torchvision.ops")
    x, boxes = features(3, 24, 13, 17), random_boxes(20, 3, (13, 17))
    ours, theirs = (
        ps_roi_align(x, boxes, (4, 3), 0.75, ratio),
        ops.ps_roi_align(x, boxes, (4, 3), 0.75, ratio),
    )
    assert_close(ours, theirs, torch.float64)
