"""context_aware_roi_pool: the generic matrix, then what is particular to the operator."""

from __future__ import annotations

from typing import Any

import harness
import pytest
import torch
from harness import (
    DTYPES,
    EMULATED,
    Args,
    Case,
    ErrorCase,
    OpSpec,
    assert_close,
    assert_same,
)
from roi_family import (
    box,
    features,
    good,
    pooling_cases,
    pooling_errors,
    random_boxes,
)
from roi_maxima import LAYOUTS, MaximaTests, maxima_samples, maxima_vmaps
from torch import Tensor

from cvkernels import context_roi_pool, ops, reference
from cvkernels.context_aware_roi_pool import ContextAwareRoIPool, context_aware_roi_pool


def case(
    name: str,
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: int | tuple[int, int],
    scale: float,
    **options: Any,
) -> Case:
    def make() -> Args:
        return {
            "input": input.clone(),
            "boxes": [b.clone() for b in boxes] if isinstance(boxes, list) else boxes.clone(),
            "output_size": output_size,
            "spatial_scale": scale,
        }

    return Case(name, make, **options)


def sizes(largest: int) -> Tensor:
    """Boxes of 1 ... largest pixels a side, every width with every height."""
    rows = [
        (0, x, y, x + w, y + h)
        for x, w in enumerate(range(largest))
        for y, h in enumerate(range(largest))
    ]
    return box(*rows)


def unlike_features(images: int, channels: int, height: int, width: int) -> Tensor:
    """Numbers of which no two neighbours are equal, in any dtype.

    Between equal pixels all cells are equal but for rounding, which then says what is greatest.
    """
    y, x = torch.arange(height)[:, None] % 3, torch.arange(width) % 3
    draw = features(images, channels, height, width, seed=2)
    return draw.sign() * (1 + draw.abs() % 1) * torch.exp2(3.0 * y + x - 4)


def make_cases() -> list[Case]:
    return [
        *pooling_cases(case, 3, (2, 3)),
        case("every size", unlike_features(1, 5, 16, 16), sizes(8), 7, 1.0),
        case("tiny boxes", unlike_features(2, 19, 9, 10), random_boxes(20, 2, (3, 3)), (7, 5), 1.0),
        case("one axis", unlike_features(1, 9, 4, 30), random_boxes(9, 1, (3, 30), 3), (5, 4), 1.0),
        case(
            "over the rim", unlike_features(2, 3, 3, 3), random_boxes(30, 2, (4, 4), 5, 1.0), 7, 1.0
        ),
        case("many bins", unlike_features(1, 2, 5, 6), random_boxes(2, 1, (5, 6)), (3, 150), 1.0),
    ]


def defaults() -> Args:
    return {"input": torch.ones(2, 3, 8, 8), "boxes": torch.ones(4, 5), "output_size": 7}


ERRORS = [
    *pooling_errors("context_aware_roi_pool", defaults),
    ErrorCase(
        "pixels",
        good(
            defaults,
            input=lambda: torch.ones(1, 1, 1, 1).expand(0, 3, 2**15, 2**15),
            boxes=lambda: torch.ones(0, 5),
        ),
        "context_aware_roi_pool: expected input of at most 715827882 pixels (height * width), "
        "got 1073741824",
    ),
]


class TestContextAwareRoIPool(MaximaTests):
    most = (2**15 - 1) // 3
    spec = OpSpec(
        name="context_aware_roi_pool",
        op=context_aware_roi_pool,
        reference=reference.context_aware_roi_pool,
        cases=make_cases(),
        differentiable=("input",),
        memory_format_of="input",
        errors=ERRORS,
        samples=maxima_samples("context_aware_roi_pool"),
        vmaps=maxima_vmaps(
            "context_aware_roi_pool", lambda x, boxes: context_aware_roi_pool(x, boxes, 5, 0.5)
        ),
    )

    @pytest.mark.native
    @pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
    def test_the_size_of_a_detector(
        self, channels_last: bool, dtype: torch.dtype, device: str
    ) -> None:
        """Half the boxes are enlarged along an axis; any number of threads gives the same bits."""
        x = unlike_features(2, 200, 50, 83).to(device, dtype)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        x.requires_grad_()
        small = random_boxes(40, 2, (70, 80), spill=0.0)
        small[:, 1:] += 640.0 * torch.arange(40)[:, None] / 40
        boxes = torch.cat([small, random_boxes(40, 2, (800, 1328))]).float().to(device)
        # On the CPU, as everywhere: of cells equal but for rounding, rounding says which is
        # greatest, and on CUDA torch divides by 3 as a product with the rounded 1/3.
        leaf = x.detach().cpu().requires_grad_()
        expected = reference.context_aware_roi_pool(leaf, boxes.cpu(), 7, 1 / 16)
        upstream = features(*expected.shape, seed=5).to(dtype)
        (grad,) = torch.autograd.grad(expected, leaf, upstream)
        upstream = upstream.to(device)
        results = []
        for count in (1, 2, 3):
            with harness.threads(count):
                ours = context_aware_roi_pool(x, boxes, 7, 1 / 16)
                results.append([ours, *torch.autograd.grad(ours, x, upstream)])
        assert_close(results[0][0], expected, dtype)
        assert_close(results[0][1], grad, dtype)
        for other in results[1:]:
            for a, e in zip(other, results[0], strict=True):
                assert_same(a, e)


# --------------------------------------------------------------------------------------------------
# Hand-worked numbers. The reference has its own in tests/reference; these reach the kernels.


def row(device: str, *values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device).reshape(1, 1, 1, -1)


def pooled(x: Tensor, corners: tuple[float, ...], bins: tuple[int, int]) -> list[float]:
    boxes = box((0, *corners)).float().to(x.device)
    result: list[float] = context_aware_roi_pool(x, boxes, bins).flatten().tolist()
    return result


def test_hand_worked_enlargement(device: str) -> None:
    # Two pixels, 0 and 8, enlarged twice: cells at -1/4, 1/4, 3/4 and 5/4 of the way.
    x = row(device, 0, 8, 100)
    assert pooled(x, (0, 0, 1, 0), (1, 4)) == [0, 2, 6, 8]
    # Three bins of 4/3 cells: [0, 2), [1, 3), [2, 4).
    assert pooled(x, (0, 0, 1, 0), (1, 3)) == [2, 6, 8]
    assert pooled(row(device, 8, 0), (0, 0, 1, 0), (1, 3)) == [8, 6, 2]
    # Two bins: not enlarged.
    assert pooled(x, (0, 0, 1, 0), (1, 2)) == [0, 8]
    # Along both axes; the rows of the box are 16 apart.
    x = torch.tensor([[0.0, 8], [16, 24]], device=device).reshape(1, 1, 2, 2)
    cells = [a + b for a in (0, 4, 12, 16) for b in (0, 2, 6, 8)]
    assert pooled(x, (0, 0, 1, 1), (4, 4)) == cells


def test_hand_worked_one_axis_enlarged_the_other_divided(device: str) -> None:
    x = torch.tensor([[0.0, 1, 2, 3], [8, 9, 10, 11]], device=device).reshape(1, 1, 2, 4)
    assert pooled(x, (0, 0, 3, 1), (4, 2)) == [1, 3, 3, 5, 7, 9, 9, 11]
    assert pooled(x.mT.contiguous(), (0, 0, 1, 3), (2, 4)) == [1, 3, 7, 9, 3, 5, 9, 11]


def test_hand_worked_rim(device: str) -> None:
    # Pixels -1 and 0, four bins: the first two are outside. Pixel 1 has no part in the others.
    assert pooled(row(device, 5, 70), (-1, 0, 0, 0), (1, 4)) == [0, 0, 5, 5]
    assert pooled(row(device, 70, 5), (1, 0, 2, 0), (1, 4)) == [5, 5, 0, 0]


def test_hand_worked_gradient(device: str) -> None:
    # Six cells 0, 2, 6, 6, 2, 0 in five bins of 6/5: 1; 2; 2, before its equal 3; 3; 4.
    x = row(device, 0, 8, 0).requires_grad_()
    out = context_aware_roi_pool(x, box((0, 0, 0, 2, 0)).float().to(device), (1, 5))
    assert out.flatten().tolist() == [2, 6, 6, 6, 2]
    upstream = torch.tensor([1.0, 10, 100, 1000, 10000], device=device).view_as(out)
    (grad,) = torch.autograd.grad(out, x, upstream)
    assert grad.flatten().tolist() == [
        0.75 * 1 + 0.25 * 110,
        0.25 * 1 + 0.75 * 110 + 0.75 * 1000 + 0.25 * 10000,
        0.25 * 1000 + 0.75 * 10000,
    ]


def test_nan_reaches_the_cells_that_it_has_a_part_in(device: str) -> None:
    nan = float("nan")
    for dtype in DTYPES:
        x = row(device, 1, 1, nan, 1).to(dtype).requires_grad_()
        out = context_aware_roi_pool(x, box((0, 0, 0, 3, 0)).float().to(device), (1, 8))
        assert out.isnan().flatten().tolist() == [False] * 3 + [True] * 4 + [False]
        # Odd factors have cells on centres of pixels, which take nothing from their neighbours.
        out = context_aware_roi_pool(x, box((0, 0, 0, 3, 0)).float().to(device), (1, 12))
        assert out.isnan().flatten().tolist() == [False] * 5 + [True] * 5 + [False] * 2


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_features_that_are_not_finite(
    dtype: torch.dtype, layout: torch.memory_format, device: str
) -> None:
    x = features(2, 24, 9, 8)
    x[:, 0, 3, 3] = float("nan")
    x[1, 1] = float("nan")
    x[0, 2, ::2] = float("inf")
    x[0, 3, ::2] = -float("inf")
    x[0, 4:20, 4] = torch.tensor([float("inf"), -float("inf")]).repeat(4)
    x = x.to(device, dtype).contiguous(memory_format=layout)
    boxes = random_boxes(9, 2, (9, 8)).to(device)
    expected = reference.context_aware_roi_pool(x.cpu(), boxes.cpu(), 6).to(device)
    assert_close(context_aware_roi_pool(x, boxes, 6), expected, dtype)


# --------------------------------------------------------------------------------------------------
# RoI Pool, indices


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_large_boxes_are_pooled_as_by_roi_pool(layout: torch.memory_format, device: str) -> None:
    """Bit for bit, with its indices."""
    size = 4 if EMULATED else 24
    x = features(2, size, 25, 34).float().to(device).contiguous(memory_format=layout)
    boxes = random_boxes(4 * size, 2, (25, 34), spill=0.4).float().to(device)
    boxes[:, 3:] = torch.maximum(boxes[:, 3:], boxes[:, 1:3] + 3)  # three pixels at least
    operators = torch.ops.cvkernels
    actual = operators.context_aware_roi_pool_argmax(x, boxes, 1.0, 3, 2)
    for a, e in zip(actual, operators.roi_pool_argmax(x, boxes, 1.0, 3, 2), strict=True):
        assert_same(a, e)
    upstream = features(*actual[0].shape, seed=5).float().to(device)
    arguments = upstream, actual[1], boxes, 1.0, 3, 2, *x.shape
    assert_same(
        operators.context_aware_roi_pool_backward(*arguments),
        operators.roi_pool_backward(*arguments),
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_size(dtype: torch.dtype, layout: torch.memory_format, device: str) -> None:
    """Rounding gives the last bin of some large boxes a pixel more, and of no small one."""
    y = 10 * torch.arange(70.0)[:, None]
    x = (y + torch.arange(70.0)).to(device, dtype).expand(1, 19, 70, 70)  # the last is the greatest
    x = x.contiguous(memory_format=layout).requires_grad_()
    boxes = box(*[(0, 1, 2, k, 2 + 7 * k % 60) for k in range(1, 65)]).to(device, dtype)
    for bins in (7, 14):
        actual = context_aware_roi_pool(x, boxes, bins)
        expected = reference.context_aware_roi_pool(x, boxes, bins)
        assert_close(actual, expected, dtype)
        grads = [torch.autograd.grad(out.sum(), x)[0] for out in (actual, expected)]
        assert_close(*grads, dtype)


def test_indices_are_those_of_pixels_or_of_cells(device: str) -> None:
    x = torch.arange(12.0, device=device).reshape(1, 1, 3, 4)
    boxes = box((0, 0, 0, 3, 2), (0, 0, 0, 1, 2), (0, 9, 9, 9, 9)).float().to(device)
    for layout in LAYOUTS:
        argmax = torch.ops.cvkernels.context_aware_roi_pool_argmax(
            x.contiguous(memory_format=layout), boxes, 1.0, 1, 3
        )[1]
        assert argmax.dtype == torch.int32
        # Columns [0, 2), [1, 3), [2, 4) of the last row; cells 1 of two in the last of three rows.
        assert argmax.flatten().tolist() == [9, 10, 11, 5, 5, 5, -1, -1, -1]


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32], ids=str)
def test_foreign_indices_are_harmless(dtype: torch.dtype, device: str) -> None:
    """The backward operator takes any tensor as indices; what names no cell is dropped."""
    boxes = box((0, 0, 0, 1, 1)).to(device)
    grad, ends = torch.ones(1, 2, 1, 4, device=device), torch.iinfo(dtype)
    for layout in LAYOUTS:
        argmax = torch.tensor([[ends.min, -2, 2, ends.max], [0, -1, 100, 1]], dtype=dtype)
        argmax = argmax.reshape(1, 2, 1, 4).to(device).contiguous(memory_format=layout)
        out = torch.ops.cvkernels.context_aware_roi_pool_backward(
            grad.contiguous(memory_format=layout), argmax, boxes, 1.0, 1, 4, 1, 2, 4, 4
        )
        # A bin has one cell across and the two rows of pixels: 0 is in row 0, 1 in row 1.
        expected = torch.zeros(2, 4, 4)
        expected[1, 0, 0] = expected[1, 1, 1] = 1
        assert out[0].tolist() == expected.tolist()


def test_the_operator_without_indices_is_differentiable_too(device: str) -> None:
    x = features(2, 3, 9, 10).to(device).requires_grad_()
    boxes = random_boxes(12, 2, (9, 10)).to(device)
    out = torch.ops.cvkernels.context_aware_roi_pool(x, boxes, 1.0, 5, 4)
    upstream = features(*out.shape, seed=3).to(device)
    (actual,) = torch.autograd.grad(out, x, upstream)
    (expected,) = torch.autograd.grad(context_aware_roi_pool(x, boxes, (5, 4)), x, upstream)
    assert_same(actual, expected)


def test_a_second_derivative_is_refused_by_name(device: str) -> None:
    x = features(1, 2, 4, 4).to(device).requires_grad_()
    out = context_aware_roi_pool(x, box((0, 0, 0, 1, 1)).to(device), 3)
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"^context_aware_roi_pool: expected at most"):
        grad.sum().backward()


# --------------------------------------------------------------------------------------------------
# The module and the names


def test_module_is_the_function(device: str) -> None:
    x, boxes = features(2, 3, 8, 9).to(device), random_boxes(4, 2, (16, 18)).to(device)
    module = ContextAwareRoIPool((3, 2), 0.5)
    assert_same(module(x, boxes), context_aware_roi_pool(x, boxes, (3, 2), 0.5))
    assert "output_size=(3, 2), spatial_scale=0.5" in repr(module)
    assert list(module.state_dict()) == []


def test_names() -> None:
    assert context_roi_pool.context_aware_roi_pool is context_aware_roi_pool
    assert context_roi_pool.ContextAwareRoIPool is ops.ContextAwareRoIPool is ContextAwareRoIPool
