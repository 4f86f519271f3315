"""The prroi_pool reference against numbers worked by hand and against quadrature."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from harness import assert_close, assert_same
from torch import Tensor

from cvkernels import reference
from cvkernels.reference import prroi_pool

pytestmark = pytest.mark.native  # no kernel runs here


def plane(height: int, width: int) -> Tensor:
    """x[y, w] = 10 y + w: bilinear interpolation gives 10 y + x anywhere inside."""
    y = torch.arange(float(height), dtype=torch.float64)[:, None]
    return (10 * y + torch.arange(float(width), dtype=torch.float64)).reshape(1, 1, height, width)


def rows(*boxes: tuple[float, ...]) -> Tensor:
    return torch.tensor(boxes, dtype=torch.float64)


def bump() -> Tensor:
    """One column of ones in the middle of nine rows and columns: the kernel max(0, 1 - |x - 4|)."""
    x = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    x[..., 4] = 1
    return x


def test_a_plane_has_the_values_of_the_centres() -> None:
    # Centres of the four bins: x and y are 1 and 2.
    out = prroi_pool(plane(5, 5), rows((0, 0.5, 0.5, 2.5, 2.5)), 2)
    assert_close(out.flatten(), torch.tensor([11.0, 12, 21, 22]), torch.float64)
    # The same at a stride of 4.
    out = prroi_pool(plane(5, 5), rows((0, 2, 2, 10, 10)), 2, 0.25)
    assert_close(out.flatten(), torch.tensor([11.0, 12, 21, 22]), torch.float64)


def test_integrals_of_the_kernel() -> None:
    # Over [4, 5] half the kernel, 1/2. Over [3.5, 4.5] twice the integral of 1 - t from 0 to 1/2,
    # 3/4. Over [2, 6] all of it, 1, divided by 4. Over [4.5, 5.5] that of 1 - t from 1/2 to 1, 1/8.
    boxes = rows(*[(0, a, 2, b, 5) for a, b in ((4, 5), (3.5, 4.5), (2, 6), (4.5, 5.5), (5, 7))])
    out = prroi_pool(bump(), boxes, 1).flatten()
    assert_close(out, torch.tensor([0.5, 0.75, 0.25, 0.125, 0]), torch.float64)


def test_the_map_fades_out_over_a_pixel() -> None:
    # Ones, 4 wide. Bins of one pixel from -2 on: 0; half a kernel; ones; half a kernel; 0.
    x = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    out = prroi_pool(x, rows((0, -2, 1, 5, 2)), (1, 7)).flatten()
    assert_close(out, torch.tensor([0, 0.5, 1, 1, 1, 0.5, 0]), torch.float64)


def test_no_area_is_zero() -> None:
    boxes = rows((0, 2, 2, 2, 4), (0, 2, 2, 4, 2), (0, 4, 4, 2, 2), (0, 4, 1, 2, 3))
    boxes.requires_grad_()
    out = prroi_pool(plane(8, 8) + 1, boxes, 2)
    assert (out == 0).all()
    out.sum().backward()
    assert boxes.grad is not None
    assert (boxes.grad == 0).all()


def test_gradient_of_the_map() -> None:
    # [1, 2] in x and [0.5, 1.5] in y: weights 1/2 1/2 by 1/8 3/4 1/8.
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    prroi_pool(x, rows((0, 1, 0.5, 2, 1.5)), 1).backward(torch.full((1, 1, 1, 1), 16.0).double())
    expected = torch.zeros(4, 4, dtype=torch.float64)
    expected[0, 1:3] = expected[2, 1:3] = 1
    expected[1, 1:3] = 6
    assert x.grad is not None
    assert_same(x.grad[0, 0], expected)


def test_gradient_of_boxes() -> None:
    # Of a plane the mean is the value at the centre.
    boxes = rows((0, 1, 2, 5, 4)).requires_grad_()
    prroi_pool(plane(8, 8), boxes, 1, 0.5).backward()
    assert boxes.grad is not None
    assert_close(boxes.grad, rows((0, 0.25, 2.5, 0.25, 2.5)), torch.float64)
    # Of the mean m over [a, b] it is (m - f(a)) / (b - a) and (f(b) - m) / (b - a): over [3.5, 4.5]
    # m is 3/4 and f is 1/2 at both ends.
    boxes = rows((0, 3.5, 2, 4.5, 5)).requires_grad_()
    prroi_pool(bump(), boxes, 1).backward()
    assert boxes.grad is not None
    assert_close(boxes.grad, rows((0, 0.25, 0, -0.25, 0)), torch.float64)
    # Over [4, 5], where the kernel falls from 1 to 0, m is 1/2.
    boxes = rows((0, 4, 2, 5, 5)).requires_grad_()
    prroi_pool(bump(), boxes, 1).backward()
    assert boxes.grad is not None
    assert_close(boxes.grad, rows((0, -0.5, 0, -0.5, 0)), torch.float64)


def random_problem(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 4, 13, 17, generator=generator, dtype=torch.float64)
    u = torch.rand(20, 5, generator=generator, dtype=torch.float64)
    corner = u[:, 1:3] * torch.tensor([20.0, 16.0]) - 3
    return x, torch.cat([(u[:, :1] * 3).floor(), corner, corner + 0.1 + u[:, 3:] * 12], 1)


def nodes(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of a quadrature that is exact for what is linear between whole numbers.

    Two Gauss nodes in each part of [low, high]; they move with the ends.
    """
    knots = torch.arange(int(low.floor()) + 1, int(high.ceil()), dtype=torch.float64)
    ends = torch.cat([low[None], knots, high[None]])
    middle, half = (ends[1:] + ends[:-1]) / 2, (ends[1:] - ends[:-1]) / 2
    root = 3**-0.5
    return torch.cat([middle - root * half, middle + root * half]), torch.cat([half, half])


def by_quadrature(x: Tensor, boxes: Tensor, bins: tuple[int, int]) -> Tensor:
    """Through torch's own sampler with zeros around the map."""
    height, width = x.shape[2:]
    out = []
    for box in boxes:
        image = x[int(box[0])][None]
        for i in range(bins[0]):
            for j in range(bins[1]):
                bin_h, bin_w = (box[4] - box[2]) / bins[0], (box[3] - box[1]) / bins[1]
                ys, wy = nodes(box[2] + i * bin_h, box[2] + (i + 1) * bin_h)
                xs, wx = nodes(box[1] + j * bin_w, box[1] + (j + 1) * bin_w)
                gy, gx = torch.meshgrid(ys, xs, indexing="ij")
                grid = torch.stack([(2 * gx + 1) / width - 1, (2 * gy + 1) / height - 1], -1)[None]
                value = F.grid_sample(image, grid, "bilinear", "zeros", align_corners=False)
                out.append(torch.einsum("cyx,y,x->c", value[0], wy, wx) / (bin_h * bin_w))
    return torch.stack(out).unflatten(0, (len(boxes), *bins)).permute(0, 3, 1, 2)


def test_equals_quadrature() -> None:
    for seed in range(3):
        leaves = [t.requires_grad_() for t in random_problem(seed)]
        actual = prroi_pool(*leaves, (3, 2))
        expected = by_quadrature(*leaves, (3, 2))
        assert_close(actual, expected, torch.float64)
        upstream = torch.randn(actual.shape, dtype=torch.float64)
        ours = torch.autograd.grad(actual, leaves, upstream)
        theirs = torch.autograd.grad(expected, leaves, upstream)
        for a, e in zip(ours, theirs, strict=True):
            assert_close(a, e, torch.float64)


def test_many_samples_of_roi_align_come_close() -> None:
    # Inside the map the two differ by how finely they look, and by half a pixel of coordinates.
    x, boxes = random_problem(3)
    boxes = torch.cat([boxes[:6, :1], boxes[:6, 1:] * 0.3 + 4], 1)
    shifted = boxes + torch.tensor([0, 0.5, 0.5, 0.5, 0.5])
    expected = reference.roi_align(x, shifted, 3, 1.0, 256, True)
    assert_close(prroi_pool(x, boxes, 3), expected, torch.float32)


def test_gradcheck() -> None:
    x, boxes = random_problem(7)
    leaves = x[:, :1, :5, :6].clone().requires_grad_(), boxes[:4, 1:].clone().requires_grad_()

    def pool(t: Tensor, corners: Tensor) -> Tensor:
        return prroi_pool(t, torch.cat([boxes[:4, :1], corners], 1), 2, 0.5)

    assert torch.autograd.gradcheck(pool, leaves)
    assert torch.autograd.gradgradcheck(pool, leaves)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    module = sys.modules["cvkernels.reference.prroi_pool"]
    x, boxes = random_problem(2)
    whole = prroi_pool(x, boxes, 3)
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 1)
    assert_close(prroi_pool(x, boxes, 3), whole, torch.float64)


def test_precision_chooses_the_arithmetic() -> None:
    x, boxes = random_problem(3)
    double = prroi_pool(x.float(), boxes.float(), 3)
    with reference.precision(torch.float32):
        single = prroi_pool(x.float(), boxes.float(), 3)
    assert not torch.equal(double, single)
    assert_close(single, double, torch.float16)  # the definition subtracts two integrals
