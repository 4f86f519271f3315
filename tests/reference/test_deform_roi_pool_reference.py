"""The deform_roi_pool reference against numbers worked by hand, grid_sample and roi_align."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from harness import assert_close, assert_same
from rois import features, plane, random_boxes, rows
from torch import Tensor

from cvkernels.reference import deform_roi_pool, roi_align

pytestmark = pytest.mark.native  # no kernel runs here


def offsets(*values: float) -> Tensor:
    """[1, 2, 1, bins]: first those along x, then those along y."""
    return torch.tensor(values, dtype=torch.float64).reshape(1, 2, 1, -1)


def test_shifted_bins() -> None:
    # Map 10 y + x. Box (1, 1)-(5, 3), aligned: from (0.5, 0.5), 4 x 2; two bins across, one sample
    # each at x = 1.5, 3.5, y = 1.5. Offsets of gamma = 0.25 times 4 and 2 pixels: bin 0 by (2, 0):
    # x = 3.5; bin 1 by (-1, 3): x = 2.5, y = 3.
    box = rows((0, 1, 1, 5, 3))
    out = deform_roi_pool(plane(8, 8), box, offsets(2, -1, 0, 3), (1, 2), 1.0, 1, 0.25)
    assert out.flatten().tolist() == [18.5, 32.5]
    # The scale of the boxes moves start and size alike, offsets are in units of the size.
    out = deform_roi_pool(plane(8, 8), box * 4, offsets(2, -1, 0, 3), (1, 2), 0.25, 1, 0.25)
    assert out.flatten().tolist() == [18.5, 32.5]


def test_defaults() -> None:
    # gamma 0.1, adaptive: 4 wide over 2 bins is 2 samples, 2 high over 1 is 2. Means lie in the
    # bins' centres, shifted by 0.1 * 4 * 5 = 2 and 0.1 * 2 * 10 = 2.
    out = deform_roi_pool(plane(8, 8), rows((0, 1, 1, 5, 3)), offsets(5, 0, 0, 10), (1, 2))
    assert_close(out.flatten(), torch.tensor([18.5, 38.5], dtype=torch.float64), torch.float64)


def test_a_box_has_no_least_size() -> None:
    # A point: one sample with a ratio of 1 (offsets do not move it), none in an adaptive grid.
    point = rows((0, 3, 3, 3, 3))
    assert deform_roi_pool(plane(8, 8), point, offsets(9, 9), 1, 1.0, 1).item() == 27.5
    assert deform_roi_pool(plane(8, 8), point, offsets(9, 9), 1).item() == 0


def test_border_rule() -> None:
    # A row 1 2 3 4, bins 1 wide with a sample each, moved so that they lie at x = -2, -1, ..., 5.
    x = torch.arange(1.0, 5.0, dtype=torch.float64).reshape(1, 1, 1, 4)
    box = rows((0, 0, 0, 8, 1))  # samples at 0, 1, ..., 7
    out = deform_roi_pool(x, box, offsets(*[-2.5] * 8, *[0] * 8), (1, 8), 1.0, 1)
    assert out.flatten().tolist() == [0, 1, 1, 2, 3, 4, 4, 0]


def test_outside_samples_count_in_the_divisor() -> None:
    x = torch.ones(1, 1, 1, 4, dtype=torch.float64)
    # Samples at 0.5 - 2 = -1.5, -0.5 + 0, ... of one bin 4 wide: x = -2, -1, 0, 1: one is outside.
    out = deform_roi_pool(x, rows((0, 0, 0, 4, 1)), offsets(-5, 0), 1, 1.0, 4)
    assert out.item() == 0.75


def test_gradient_of_the_offsets() -> None:
    # 10 y + x: along x 1 per pixel, along y 10; an offset of 1 is 0.25 * 4 = 1 and 0.25 * 2 = 0.5.
    shift = offsets(2, -1, 0, 3).requires_grad_()
    out = deform_roi_pool(plane(8, 8), rows((0, 1, 1, 5, 3)), shift, (1, 2), 1.0, 1, 0.25)
    (grad,) = torch.autograd.grad(out, shift, torch.tensor([[[[1.0, 2.0]]]]).double())
    assert grad.flatten().tolist() == [1, 2, 5, 10]


def test_gradient_of_the_offsets_at_kinks() -> None:
    # x = -0.5 and 7.5 are clamped, so is the last pixel's centre 7; at 0 and 6 it is to the right.
    for x, slope in ((-0.5, 0), (0.0, 1), (0.5, 1), (6.0, 1), (7.0, 0), (7.5, 0)):
        shift = offsets((x - 3.5) / 2, 0).requires_grad_()
        out = deform_roi_pool(plane(8, 8), rows((0, 3, 2, 5, 3)), shift, 1, 1.0, 1, 1.0)
        (grad,) = torch.autograd.grad(out, shift)
        assert grad.flatten().tolist() == [2 * slope, 10]


def random_problem(seed: int, bins: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    boxes = random_boxes(12, 3, (13, 17), seed=seed)
    return features(3, 4, 13, 17, seed=seed), boxes, features(12, 2, *bins, seed=seed + 1)


@pytest.mark.parametrize("ratio", [0, 2])
def test_without_offsets_it_is_roi_align(ratio: int) -> None:
    x, boxes, shift = random_problem(3, (3, 2))
    expected = roi_align(x, boxes, (3, 2), 0.75, ratio, True)
    assert_close(deform_roi_pool(x, boxes, None, (3, 2), 0.75, ratio), expected, torch.float64)
    empty = deform_roi_pool(x, boxes, torch.zeros(0), (3, 2), 0.75, ratio)
    assert_close(empty, expected, torch.float64)
    still = deform_roi_pool(x, boxes, shift, (3, 2), 0.75, ratio, 0.0)
    assert_close(still, expected, torch.float64)


@pytest.mark.parametrize("ratio", [0, 1, 3])
def test_a_bin_is_roi_align_of_the_shifted_bin(ratio: int) -> None:
    x, boxes, shift = random_problem(5, (2, 3))
    size = boxes[:, 3:] - boxes[:, 1:3]
    bin_size = size / torch.tensor([3.0, 2.0])
    bins = []
    for i in range(2):
        for j in range(3):
            corner = boxes[:, 1:3] + torch.tensor([float(j), float(i)]) * bin_size
            corner = corner + 0.25 * size * shift[:, :, i, j]
            shifted = torch.cat([boxes[:, :1], corner, corner + bin_size], 1)
            bins.append(roi_align(x, shifted, 1, 1.0, ratio, True))
    expected = torch.stack(bins, -1).reshape(12, 4, 2, 3)
    out = deform_roi_pool(x, boxes, shift, (2, 3), 1.0, ratio, 0.25)
    assert_close(out, expected, torch.float64)


def by_grid_sample(x: Tensor, boxes: Tensor, shift: Tensor, ratio: int, gamma: float) -> Tensor:
    """Through torch's own sampler, whose gradient of the grid is that of the clamped coordinate."""
    height, width = x.shape[2:]
    rows_of_bins, columns = shift.shape[2:]
    out = []
    for box, offset in zip(boxes, shift, strict=True):
        start, size = box[1:3] - 0.5, box[3:] - box[1:3]

        def places(bins: int) -> Tensor:
            return (torch.arange(bins * ratio, dtype=torch.float64) + 0.5) / (bins * ratio)

        moved = offset.repeat_interleave(ratio, 1).repeat_interleave(ratio, 2) * gamma
        gx = start[0] + size[0] * (places(columns)[None, :] + moved[0])
        gy = start[1] + size[1] * (places(rows_of_bins)[:, None] + moved[1])
        grid = torch.stack([(2 * gx + 1) / width - 1, (2 * gy + 1) / height - 1], -1)
        value = F.grid_sample(
            x[int(box[0])][None], grid[None], "bilinear", "border", align_corners=False
        )
        inside = (gy >= -1) & (gy <= height) & (gx >= -1) & (gx <= width)
        out.append(F.avg_pool2d(torch.where(inside, value, 0.0), ratio))
    return torch.cat(out)


@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_equals_grid_sample(ratio: int) -> None:
    for seed in range(3):
        x, boxes, shift = random_problem(seed, (3, 2))
        leaves = (x.requires_grad_(), shift.requires_grad_())
        actual = deform_roi_pool(x, boxes, shift, (3, 2), 1.0, ratio, 0.3)
        expected = by_grid_sample(x, boxes, shift, ratio, 0.3)
        assert_close(actual, expected, torch.float64)
        upstream = features(*actual.shape, seed=9)
        found = torch.autograd.grad(actual, leaves, upstream)
        for a, e in zip(found, torch.autograd.grad(expected, leaves, upstream), strict=True):
            assert_close(a, e, torch.float64)


def test_gradcheck() -> None:
    x, boxes, shift = random_problem(7, (2, 2))
    x = x[:, :1, :5, :6].clone().requires_grad_()
    shift = shift[:4].clone().requires_grad_()

    def pool(t: Tensor, offset: Tensor) -> Tensor:
        return deform_roi_pool(t, boxes[:4], offset, 2, 0.5)

    assert torch.autograd.gradcheck(pool, (x, shift))
    assert torch.autograd.gradgradcheck(pool, (x, shift))


def test_a_list_of_boxes_is_one_tensor() -> None:
    x, boxes, shift = random_problem(2, (2, 2))
    boxes = boxes[boxes[:, 0].argsort(stable=True)]
    groups = [boxes[boxes[:, 0] == n, 1:] for n in range(3)]
    assert_same(
        deform_roi_pool(x, groups, shift, 2, 1.0, 2), deform_roi_pool(x, boxes, shift, 2, 1.0, 2)
    )
