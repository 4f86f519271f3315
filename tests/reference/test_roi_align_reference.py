"""The roi_align reference against numbers worked by hand and against torch's grid_sample."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from harness import assert_close, assert_same
from torch import Tensor

from cvkernels import reference
from cvkernels.reference import roi_align

pytestmark = pytest.mark.native  # no kernel runs here


def plane(height: int, width: int) -> Tensor:
    """x[y, w] = 10 y + w: bilinear interpolation gives 10 y + x anywhere inside."""
    y = torch.arange(float(height), dtype=torch.float64)[:, None]
    return (10 * y + torch.arange(float(width), dtype=torch.float64)).reshape(1, 1, height, width)


def rows(*boxes: tuple[float, ...]) -> Tensor:
    return torch.tensor(boxes, dtype=torch.float64)


def test_average_of_four_samples() -> None:
    # Box (1, 2)-(5, 4) in x, y; two bins across, one down; 2 samples per bin and axis. Legacy rule:
    # width 4, so bins are 2 wide with samples at x = 1.5, 2.5 | 3.5, 4.5; y = 2.5, 3.5.
    # Means: y = 3; x = 2 | 4: 10 * 3 + 2 = 32 | 34.
    out = roi_align(plane(8, 8), rows((0, 1, 2, 5, 4)), (1, 2), sampling_ratio=2)
    assert out.flatten().tolist() == [32, 34]
    # Aligned: everything half a pixel up and left: y = 2.5, x = 1.5 | 3.5: 26.5 | 28.5.
    out = roi_align(plane(8, 8), rows((0, 1, 2, 5, 4)), (1, 2), sampling_ratio=2, aligned=True)
    assert out.flatten().tolist() == [26.5, 28.5]


def test_maximum_of_four_samples() -> None:
    # The same samples; a plane's maximum is its last sample: y = 3.5, x = 2.5 | 4.5.
    out = roi_align(plane(8, 8), rows((0, 1, 2, 5, 4)), (1, 2), sampling_ratio=2, mode="max")
    assert out.flatten().tolist() == [37.5, 39.5]


def test_spatial_scale_multiplies_coordinates() -> None:
    # (4, 8)-(20, 16) at a stride of 4 is (1, 2)-(5, 4).
    out = roi_align(plane(8, 8), rows((0, 4, 8, 20, 16)), (1, 2), 0.25, 2)
    assert out.flatten().tolist() == [32, 34]


def test_legacy_boxes_are_at_least_one_pixel() -> None:
    # A point at (3, 3), legacy: stretched to (3, 3)-(4, 4), one sample at (3.5, 3.5): 35 + 3.5.
    assert roi_align(plane(8, 8), rows((0, 3, 3, 3, 3)), 1, sampling_ratio=1).item() == 38.5
    # Aligned: no stretch; the sample is at (2.5, 2.5).
    out = roi_align(plane(8, 8), rows((0, 3, 3, 3, 3)), 1, sampling_ratio=1, aligned=True)
    assert out.item() == 27.5
    # And an adaptive grid over a point has no sample at all.
    assert roi_align(plane(8, 8), rows((0, 3, 3, 3, 3)), 1, aligned=True).item() == 0


def test_border_rule() -> None:
    # One row 0 1 2 3; samples (one per bin, bins 1 wide, aligned) at x = -2, -1, ..., 5 and y = 0.
    # -2 and 5 lie outside [-1, 4] and count 0; -1 reads pixel 0; 4 reads the last pixel.
    x = torch.arange(4.0, dtype=torch.float64).reshape(1, 1, 1, 4)
    out = roi_align(x, rows((0, -2, 0, 6, 1)), (1, 8), sampling_ratio=1, aligned=True)
    assert out.flatten().tolist() == [0, 0, 0, 1, 2, 3, 3, 0]


def test_outside_samples_count_in_the_divisor() -> None:
    # Legacy box x in (-3, 1), y in (0, 1) of ones: 4 samples at x = -2.5, -1.5, -0.5, 0.5; half are
    # in.
    x = torch.ones(1, 1, 1, 4, dtype=torch.float64)
    out = roi_align(x, rows((0, -3, 0, 1, 1)), 1, sampling_ratio=4)
    assert out.item() == 0.5


def test_adaptive_grid_rounds_up() -> None:
    # 5 pixels over 2 bins: ceil(2.5) = 3 samples per bin, each 2.5 / 3 apart. A map that is 1 at
    # column 0 only: samples at 0.41667, 1.25, 2.08333 weigh 1 - 0.41667 = 7 / 12, 0, 0: mean 7 /
    # 36.
    x = torch.zeros(1, 1, 1, 8, dtype=torch.float64)
    x[..., 0] = 1
    out = roi_align(x, rows((0, 0, 0, 5, 1)), (1, 2))
    assert_close(out.flatten(), torch.tensor([7 / 36, 0], dtype=torch.float64), torch.float64)


def test_gradient_of_one_sample() -> None:
    # Sample at y = 1.25, x = 2.5: weights 0.75, 0.25 by 0.5, 0.5.
    x = torch.zeros(1, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    roi_align(x, rows((0, 2, 0.75, 3, 1.75)), 1, sampling_ratio=1).backward(
        torch.full((1, 1, 1, 1), 8.0, dtype=torch.float64)
    )
    expected = torch.zeros(4, 5, dtype=torch.float64)
    expected[1, 2:4] = 3
    expected[2, 2:4] = 1
    assert_same(x.grad[0, 0], expected)


def test_maximum_gives_the_gradient_to_the_first_of_equal_samples() -> None:
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    # Aligned box (0, 0)-(4, 4), one bin, samples at 0.5 and 2.5: the first reads pixels 0 and 1.
    roi_align(x, rows((0, 0, 0, 4, 4)), 1, sampling_ratio=2, aligned=True, mode="max").backward()
    expected = torch.zeros(4, 4, dtype=torch.float64)
    expected[:2, :2] = 0.25
    assert_same(x.grad[0, 0], expected)


def test_gradient_of_boxes() -> None:
    # Of a plane the mean over a bin is the value at its centre: (x1 + x2) / 2, (y1 + y2) / 2.
    boxes = rows((0, 1, 2, 5, 4)).requires_grad_()
    roi_align(plane(8, 8), boxes, 1, 0.5, sampling_ratio=2, aligned=True).backward()
    assert boxes.grad is not None
    assert boxes.grad.tolist() == [[0, 0.25, 2.5, 0.25, 2.5]]
    # Half a pixel wide, legacy: stretched to one pixel in x, and so fixed to x1.
    boxes = rows((0, 1, 2, 1.5, 4)).requires_grad_()
    roi_align(plane(8, 8), boxes, 1, sampling_ratio=2).backward()
    assert boxes.grad is not None
    assert boxes.grad.tolist() == [[0, 1, 5, 0, 5]]
    # Exactly one pixel is not stretched.
    boxes = rows((0, 1, 2, 2, 4)).requires_grad_()
    roi_align(plane(8, 8), boxes, 1, sampling_ratio=2).backward()
    assert boxes.grad is not None
    assert boxes.grad.tolist() == [[0, 0.5, 5, 0.5, 5]]


def test_gradient_of_boxes_at_kinks() -> None:
    # A row 0 1 4 9 and one sample in the middle of boxes two pixels wide. At a pixel's centre the
    # derivative is the one to the right; where the coordinate is clamped it is 0.
    x = torch.tensor([0.0, 1, 4, 9], dtype=torch.float64).reshape(1, 1, 1, 4)
    middles = (-1, -0.5, 0, 0.5, 1, 2, 3, 3.5, 4, 4.5)
    boxes = rows(*[(0, m - 0.5, 0, m + 1.5, 1) for m in middles]).requires_grad_()
    roi_align(x, boxes, 1, sampling_ratio=1, aligned=True).sum().backward()
    assert boxes.grad is not None
    wanted = [0, 0, 1, 1, 3, 5, 0, 0, 0, 0]
    assert boxes.grad[:, 1].tolist() == boxes.grad[:, 3].tolist() == [w / 2 for w in wanted]


def random_problem(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 4, 13, 17, generator=generator, dtype=torch.float64)
    u = torch.rand(20, 5, generator=generator, dtype=torch.float64)
    corner = u[:, 1:3] * torch.tensor([20.0, 16.0]) - 3
    return x, torch.cat([(u[:, :1] * 3).floor(), corner, corner + u[:, 3:] * 12], 1)


def by_grid_sample(
    x: Tensor, boxes: Tensor, bins: tuple[int, int], ratio: int, mode: str
) -> Tensor:
    """Aligned RoI Align through torch's own sampler, its border rule restored by hand."""
    height, width = x.shape[2:]
    out = []
    for box in boxes:
        x1, y1, x2, y2 = box[1:] - 0.5
        ys = y1 + (torch.arange(bins[0] * ratio, dtype=torch.float64) + 0.5) * (y2 - y1) / (
            bins[0] * ratio
        )
        xs = x1 + (torch.arange(bins[1] * ratio, dtype=torch.float64) + 0.5) * (x2 - x1) / (
            bins[1] * ratio
        )
        gy, gx = torch.meshgrid(ys, xs, indexing="ij")
        grid = torch.stack([(2 * gx + 1) / width - 1, (2 * gy + 1) / height - 1], -1)[None]
        image = x[int(box[0])][None]
        value = F.grid_sample(image, grid, "bilinear", "border", align_corners=False)
        inside = (gy >= -1) & (gy <= height) & (gx >= -1) & (gx <= width)
        value = torch.where(inside, value, 0.0)
        pool = F.avg_pool2d if mode == "avg" else F.max_pool2d
        out.append(pool(value, ratio))
    return torch.cat(out)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_equals_grid_sample(ratio: int, mode: str) -> None:
    for seed in range(3):
        leaves = [t.requires_grad_() for t in random_problem(seed)]
        actual = roi_align(*leaves, (3, 2), 1.0, ratio, True, mode=mode)
        expected = by_grid_sample(*leaves, (3, 2), ratio, mode)
        assert_close(actual, expected, torch.float64)
        upstream = torch.randn(actual.shape, dtype=torch.float64)
        ours = torch.autograd.grad(actual, leaves, upstream)
        theirs = torch.autograd.grad(expected, leaves, upstream)
        for a, e in zip(ours, theirs, strict=True):
            assert_close(a, e, torch.float64)


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_gradcheck(mode: str) -> None:
    x, boxes = random_problem(7)
    leaves = x[:, :1, :5, :6].clone().requires_grad_(), boxes[:4, 1:].clone().requires_grad_()

    def pool(t: Tensor, corners: Tensor) -> Tensor:
        rows = torch.cat([boxes[:4, :1], corners], 1)
        return roi_align(t, rows, 2, 0.5, -1, False, mode=mode)

    assert torch.autograd.gradcheck(pool, leaves)
    assert torch.autograd.gradgradcheck(pool, leaves)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [-1, 2])
def test_equals_torchvision(ratio: int, aligned: bool) -> None:
    ops = pytest.importorskip("torchvision.ops")
    x, boxes = random_problem(11)
    x.requires_grad_()
    ours = roi_align(x, boxes, (4, 3), 0.75, ratio, aligned)
    theirs = ops.roi_align(x, boxes, (4, 3), 0.75, ratio, aligned)
    assert_close(ours, theirs, torch.float64)
    upstream = torch.randn(ours.shape, dtype=torch.float64)
    (a,) = torch.autograd.grad(ours, x, upstream)
    (b,) = torch.autograd.grad(theirs, x, upstream)
    assert_close(a, b, torch.float64)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    module = sys.modules["cvkernels.reference.roi_align"]
    x, boxes = random_problem(2)
    whole = [roi_align(x, boxes, 3, mode=mode) for mode in ("avg", "max")]
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 1)
    for mode, expected in zip(("avg", "max"), whole, strict=True):
        assert_close(roi_align(x, boxes, 3, mode=mode), expected, torch.float64)


def test_precision_chooses_the_arithmetic() -> None:
    x, boxes = random_problem(3)
    double = roi_align(x.float(), boxes.float(), 3)
    with reference.precision(torch.float32):
        single = roi_align(x.float(), boxes.float(), 3)
    assert not torch.equal(double, single)
    assert_close(single, double, torch.float32)
    assert_same(roi_align(x.float(), boxes.float(), 3), double)  # restored
    with (
        pytest.raises(ValueError, match="precision: expected dtype"),
        reference.precision(torch.half),
    ):
        pass
