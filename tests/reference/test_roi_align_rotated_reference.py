"""The roi_align_rotated reference against numbers worked by hand and against grid_sample."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from harness import assert_close, assert_same
from rois import features, plane, random_boxes, random_rotated, rows, turned
from torch import Tensor

from cvkernels.reference import roi_align, roi_align_rotated

pytestmark = pytest.mark.native  # no kernel runs here
PI = math.pi


def test_quarter_turns() -> None:
    # Box of 4 x 4 about (4, 4), aligned: centre (3.5, 3.5), one sample per bin, 1 from the centre
    # along both axes. y points down; counter-clockwise, the box's right side (u > 0) comes to the
    # top: bin (0, 0) (v = u = -1) lies at y = -u = +1, x = v = -1: 10 * 4.5 + 2.5.
    for turns, expected in (
        (0, [27.5, 29.5, 47.5, 49.5]),
        (1, [47.5, 27.5, 49.5, 29.5]),
        (2, [49.5, 47.5, 29.5, 27.5]),
        (3, [29.5, 49.5, 27.5, 47.5]),
    ):
        box = rows((0, 4, 4, 4, 4, turns * PI / 2), columns=6)
        out = roi_align_rotated(plane(8, 8), box, 2, sampling_ratio=1).flatten()
        assert_close(out, torch.tensor(expected, dtype=torch.float64), torch.float64)
        box[:, 5] *= -1
        same = roi_align_rotated(plane(8, 8), box, 2, sampling_ratio=1, clockwise=True).flatten()
        assert_same(same, out)


def test_an_arc_of_known_sine() -> None:
    # Angle with cosine 0.6 and sine 0.8. A box 10 wide and 0 high about pixel centre (5, 5), one
    # row of two bins with a sample each, at u = -2.5 and 2.5, v = 0: y = -u sin = +-2, x = u cos =
    # -+1.5. On 10 y + x: 10 * 7 + 3.5 and 10 * 3 + 6.5.
    angle = math.atan2(0.8, 0.6)
    box = rows((0, 5.5, 5.5, 10, 0, angle), columns=6)
    out = roi_align_rotated(plane(11, 11), box, (1, 2), sampling_ratio=1).flatten()
    assert_close(out, torch.tensor([73.5, 36.5], dtype=torch.float64), torch.float64)


def test_legacy_boxes_are_at_least_one_pixel_and_not_shifted() -> None:
    # Not aligned: the centre is the pixel (3, 4); a box without size has samples 0.25 around it.
    box = rows((0, 4, 3, 0, 0, 0), columns=6)
    out = roi_align_rotated(plane(8, 8), box, 1, sampling_ratio=2, aligned=False)
    assert out.item() == 34
    out = roi_align_rotated(plane(8, 8), box, 2, sampling_ratio=1, aligned=False)
    assert out.flatten().tolist() == [31.25, 31.75, 36.25, 36.75]
    # Aligned: it stays a point, whose adaptive grid has no sample.
    assert roi_align_rotated(plane(8, 8), box, 1).item() == 0


def test_border_rule() -> None:
    # A row of ones; a box 8 wide about its middle, turned by half a turn, bins 1 wide: samples at
    # x = -2, ..., 5 (1.5 +- 0.5, ...), from right to left. Outside [-1, 4] counts 0.
    x = torch.ones(1, 1, 1, 4, dtype=torch.float64)
    box = rows((0, 2, 0.5, 8, 0.5, PI), columns=6)
    out = roi_align_rotated(x, box, (1, 8), sampling_ratio=1).flatten()
    assert out.tolist() == [0, 1, 1, 1, 1, 1, 1, 0]


def test_adaptive_grid_follows_the_sides_not_the_bounds() -> None:
    # 5 wide over 2 bins: 3 samples per bin; 2 high over 1 bin: 2. As roi_align of the same size.
    upright = rows((0, 2, 2, 7, 4))
    expected = roi_align(plane(9, 9), upright, (1, 2), aligned=True)
    box = turned(upright, PI / 2)
    out = roi_align_rotated(plane(9, 9).rot90(1, (2, 3)), moved(box, 9), (1, 2))
    assert_close(out, expected, torch.float64)


def moved(box: Tensor, width: int) -> Tensor:
    """The box after the map was turned by rot90: pixel edge (y, x) comes to (width - x, y)."""
    after = box.clone()
    after[:, 1], after[:, 2] = box[:, 2], width - box[:, 1]
    return after


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [-1, 0, 1, 2])
def test_angle_zero_is_roi_align(ratio: int, aligned: bool) -> None:
    x = features(2, 3, 13, 17).requires_grad_()
    boxes = random_boxes(12, 2, (26, 34))
    # A box below 1 pixel is stretched about its centre here, from its corner there.
    boxes[:, 3:] = torch.maximum(boxes[:, 3:], boxes[:, 1:3] + 2)
    upright = roi_align(x, boxes, (3, 2), 0.5, ratio, aligned)
    rotated = roi_align_rotated(x, turned(boxes), (3, 2), 0.5, ratio, aligned)
    assert_close(rotated, upright, torch.float64)
    upstream = features(*upright.shape, seed=3)
    (a,) = torch.autograd.grad(rotated, x, upstream)
    (e,) = torch.autograd.grad(upright, x, upstream)
    assert_close(a, e, torch.float64)


def by_grid_sample(x: Tensor, boxes: Tensor, bins: tuple[int, int], ratio: int) -> Tensor:
    """Aligned, counter-clockwise, through affine_grid and torch's own sampler.

    Their border rule is another, so boxes must lie inside.
    """
    height, width = x.shape[2:]
    out = []
    for image, cx, cy, w, h, angle in boxes.tolist():
        cosine, sine = math.cos(angle), math.sin(angle)
        # From the box's [-1, 1] x [-1, 1] (u, v) to the map's, in grid_sample's units.
        theta = torch.tensor(
            [
                [w * cosine / width, h * sine / width, 2 * cx / width - 1],
                [-w * sine / height, h * cosine / height, 2 * cy / height - 1],
            ],
            dtype=torch.float64,
        )
        size = (1, x.shape[1], bins[0] * ratio, bins[1] * ratio)
        grid = F.affine_grid(theta[None], size, align_corners=False)
        value = F.grid_sample(x[int(image)][None], grid, align_corners=False)
        out.append(F.avg_pool2d(value, ratio))
    return torch.cat(out)


@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_equals_affine_grid_and_grid_sample(ratio: int) -> None:
    x = features(2, 3, 30, 34).requires_grad_()
    boxes = random_rotated(15, 2, (12, 16), spill=0)
    boxes[:, 1:3] += 9
    expected = by_grid_sample(x, boxes, (3, 2), ratio)
    actual = roi_align_rotated(x, boxes, (3, 2), sampling_ratio=ratio)
    assert_close(actual, expected, torch.float64)
    upstream = features(*actual.shape, seed=2)
    (a,) = torch.autograd.grad(actual, x, upstream)
    (e,) = torch.autograd.grad(expected, x, upstream)
    assert_close(a, e, torch.float64)


def test_gradcheck() -> None:
    x = features(2, 1, 5, 6).requires_grad_()
    boxes = random_rotated(4, 2, (10, 12))

    def pool(t: Tensor) -> Tensor:
        return roi_align_rotated(t, boxes, 2, 0.5)

    assert torch.autograd.gradcheck(pool, x)
    assert torch.autograd.gradgradcheck(pool, x)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    module = sys.modules["cvkernels.reference.roi_align_rotated"]
    x, boxes = features(2, 3, 13, 17), random_rotated(5, 2, (13, 17))
    whole = roi_align_rotated(x, boxes, 3)
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 1)
    assert_close(roi_align_rotated(x, boxes, 3), whole, torch.float64)
