"""roi_pool: the generic matrix, then what is particular to the operator."""

from __future__ import annotations

from typing import Any

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
    whole_features,
)
from roi_maxima import LAYOUTS, MaximaTests, maxima_samples, maxima_vmaps
from torch import Tensor

from cvkernels import reference
from cvkernels.roi_pool import RoIPool, roi_pool


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


def make_cases() -> list[Case]:
    # Sizes of which a bin's share is no binary fraction: float32 rounds where bins begin and end.
    sevenths = box(*[(i % 2, 1, 2, 1 + 3 * k, 2 + 5 * k) for i, k in enumerate((1, 2, 3, 4, 5))])
    return [
        *pooling_cases(case, 3, (2, 3)),
        case("seven bins", features(2, 5, 24, 16), sevenths, 7, 1.0),
        case("ties", whole_features(2, 3, 9, 10), random_boxes(20, 2, (9, 10)), 3, 1.0),
        case("all equal", torch.ones(2, 2, 9, 10).double(), random_boxes(9, 2, (9, 10)), 2, 1.0),
        case("many bins", features(1, 2, 5, 6), random_boxes(2, 1, (5, 6)), (3, 150), 1.0),
        case("large plane", features(1, 2, 256, 260), random_boxes(3, 1, (256, 260)), 2, 1.0),
    ]


def defaults() -> Args:
    return {"input": torch.ones(2, 3, 8, 8), "boxes": torch.ones(4, 5), "output_size": 7}


ERRORS = [
    *pooling_errors("roi_pool", defaults),
    ErrorCase(
        "pixels",
        good(
            defaults,
            input=lambda: torch.ones(1, 1, 1, 1).expand(0, 3, 2**16, 2**15),
            boxes=lambda: torch.ones(0, 5),
        ),
        "roi_pool: expected input of at most 2147483647 pixels (height * width), got 2147483648",
    ),
]


class TestRoIPool(MaximaTests):
    most = 2**15 - 1
    spec = OpSpec(
        name="roi_pool",
        op=roi_pool,
        reference=reference.roi_pool,
        cases=make_cases(),
        exact=True,
        differentiable=("input",),
        memory_format_of="input",
        errors=ERRORS,
        samples=maxima_samples("roi_pool"),
        vmaps=maxima_vmaps("roi_pool", lambda x, boxes: roi_pool(x, boxes, 2, 0.5)),
    )


# --------------------------------------------------------------------------------------------------
# Hand-worked numbers. The reference has its own in tests/reference; these reach the kernels.


def plane(height: int, width: int, device: str) -> Tensor:
    """10 y + x."""
    y = 10 * torch.arange(float(height), device=device)[:, None]
    return (y + torch.arange(float(width), device=device)).reshape(1, 1, height, width)


def test_hand_worked_bins(device: str) -> None:
    # Corners (1, 1) and (4, 4): 4 x 4 pixels, bins of 2: the far pixels of each are the greatest.
    x = plane(8, 8, device)
    out = roi_pool(x, box((0, 1, 1, 4, 4)).float().to(device), 2)
    assert out.flatten().tolist() == [22, 24, 42, 44]
    # 5 pixels in 2 bins: floor(2.5) = 2 and ceil(2.5) = 3, so the middle pixel is in both.
    out = roi_pool(x, box((0, 1, 1, 5, 5)).float().to(device), 2)
    assert out.flatten().tolist() == [33, 35, 53, 55]


def test_hand_worked_rounding(device: str) -> None:
    # Halves away from zero: 0.5 -> 1, 2.5 -> 3, -0.5 -> -1; 0.49 -> 0, 2.49 -> 2.
    x = plane(8, 8, device)
    boxes = box((0, 0.5, 0.5, 2.5, 2.5), (0, 0.49, 0.49, 2.49, 2.49), (0, -0.5, -0.5, 0, 0))
    out = roi_pool(x, boxes.float().to(device), 1)
    assert out.flatten().tolist() == [33, 22, 0]
    # The third has pixels -1 and 0; of its 2 x 2 bins only the last is on the map.
    out = roi_pool(x + 1, boxes[2:].float().to(device), 2)
    assert out.flatten().tolist() == [0, 0, 0, 1]


def test_hand_worked_gradient(device: str) -> None:
    # Two pixels in three bins: [0, 1), [0, 2), [1, 2). The second pixel is greater and has two.
    x = torch.tensor([1.0, 2, 0], device=device).reshape(1, 1, 1, 3).requires_grad_()
    boxes = box((0, 0, 0, 1, 0)).float().to(device)
    out = roi_pool(x, boxes, (1, 3))
    assert out.flatten().tolist() == [1, 2, 2]
    (grad,) = torch.autograd.grad(out, x, torch.tensor([1.0, 10, 100], device=device).view_as(out))
    assert grad.flatten().tolist() == [1, 110, 0]


def test_the_first_of_equal_maxima_in_row_order_takes_the_gradient(device: str) -> None:
    x = torch.zeros(1, 1, 3, 3, device=device)
    x[0, 0, 1, 2] = x[0, 0, 2, 0] = 7
    x.requires_grad_()
    (grad,) = torch.autograd.grad(roi_pool(x, box((0, 0, 0, 2, 2)).float().to(device), 1).sum(), x)
    assert grad.flatten().tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0]


def test_nan_is_greatest_and_the_first_takes_the_gradient(device: str) -> None:
    for dtype in DTYPES:
        x = torch.tensor([[1.0, float("nan"), 9.0], [float("nan"), 2, 3]]).to(device, dtype)
        x = x.reshape(1, 1, 2, 3).requires_grad_()
        out = roi_pool(x, box((0, 0, 0, 2, 1)).float().to(device), 1)
        assert out.isnan().all()
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert grad.flatten().tolist() == [0, 1, 0, 0, 0, 0]


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
    expected = reference.roi_pool(x.cpu(), boxes.cpu(), 3).to(device)
    torch.testing.assert_close(roi_pool(x, boxes, 3), expected, rtol=0, atol=0, equal_nan=True)


def test_a_bin_of_minus_infinity(device: str) -> None:
    x = torch.full((1, 1, 2, 2), -float("inf"), device=device, requires_grad=True)
    out = roi_pool(x, box((0, 0, 0, 1, 1)).float().to(device), 1)
    assert out.item() == -float("inf")
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad.flatten().tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_size_equals_torchvision(
    dtype: torch.dtype, layout: torch.memory_format, device: str
) -> None:
    """Rounding gives the last bin of some sizes a pixel that the box does not have."""
    pytest.importorskip("torchvision")
    theirs = torch.ops.torchvision
    x = plane(70, 70, device).to(dtype).repeat(1, 19, 1, 1)  # the last pixel is the greatest
    x = x.contiguous(memory_format=layout)
    boxes = box(*[(0, 1, 2, k, k + 1) for k in range(1, 65)]).to(device, dtype)
    for bins in (3, 7, 10, 14):
        expected = theirs.roi_pool(x, boxes, 1.0, bins, bins)
        actual = torch.ops.cvkernels.roi_pool_argmax(x, boxes, 1.0, bins, bins)
        for a, e in zip(actual, expected, strict=True):
            assert_same(a.contiguous(), e)
        upstream = torch.ones_like(actual[0])
        arguments = boxes, 1.0, bins, bins, *x.shape
        grad = torch.ops.cvkernels.roi_pool_backward(upstream, actual[1], *arguments)
        truth = theirs._roi_pool_backward(upstream, boxes, expected[1], *arguments[1:])
        assert_same(grad.contiguous(), truth)


# --------------------------------------------------------------------------------------------------
# Indices


def test_indices_name_the_pixels_of_the_maxima(device: str) -> None:
    x = features(2, 3, 9, 10).to(device)
    boxes = random_boxes(12, 2, (9, 10)).to(device)
    for layout in LAYOUTS:
        out, argmax = torch.ops.cvkernels.roi_pool_argmax(
            x.contiguous(memory_format=layout), boxes, 1.0, 3, 2
        )
        assert argmax.dtype == torch.int32 and argmax.stride() == out.stride()
        values = x[boxes[:, 0].long()].flatten(2).gather(2, argmax.flatten(2).long().clamp(min=0))
        assert_same(torch.where(argmax.flatten(2) < 0, 0, values), out.flatten(2).contiguous())
        assert_same(
            out, torch.ops.cvkernels.roi_pool(x.contiguous(memory_format=layout), boxes, 1.0, 3, 2)
        )


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32], ids=str)
def test_foreign_indices_are_harmless(dtype: torch.dtype, device: str) -> None:
    """The backward operator takes any tensor as indices; what names no pixel is dropped."""
    boxes = box((0, 0, 0, 3, 3)).to(device)
    grad, ends = torch.ones(1, 2, 1, 4, device=device), torch.iinfo(dtype)
    for layout in LAYOUTS:
        argmax = torch.tensor([[ends.min, -2, 16, ends.max], [5, -1, 100, 5]], dtype=dtype)
        argmax = argmax.reshape(1, 2, 1, 4).to(device).contiguous(memory_format=layout)
        out = torch.ops.cvkernels.roi_pool_backward(
            grad.contiguous(memory_format=layout), argmax, boxes, 1.0, 1, 4, 1, 2, 4, 4
        )
        expected = torch.zeros(2, 16)
        expected[1, 5] = 2
        assert out.flatten(2)[0].tolist() == expected.tolist()


def test_the_operator_without_indices_is_differentiable_too(device: str) -> None:
    x = features(2, 3, 9, 10).to(device).requires_grad_()
    boxes = random_boxes(12, 2, (9, 10)).to(device)
    out = torch.ops.cvkernels.roi_pool(x, boxes, 1.0, 3, 2)
    upstream = features(*out.shape, seed=3).to(device)
    (actual,) = torch.autograd.grad(out, x, upstream)
    (expected,) = torch.autograd.grad(roi_pool(x, boxes, (3, 2)), x, upstream)
    assert_same(actual, expected)


@pytest.mark.parametrize("bad", ["shape", "dtype", "grad dtype", "grad shape"])
def test_backward_errors(bad: str, device: str) -> None:
    grad = torch.ones(1, 2, 2, 2, device=device)
    argmax = torch.zeros(1, 2, 2, 2, dtype=torch.int32, device=device)
    boxes = box((0, 0, 0, 3, 3)).to(device)
    if bad == "shape":
        argmax, message = argmax[:, :1], r"argmax of shape \(1, 2, 2, 2\), got \(1, 1, 2, 2\)"
    elif bad == "dtype":
        argmax, message = argmax.long(), "argmax of dtype int16 or int32, got int64"
    elif bad == "grad dtype":
        grad, message = grad.int(), "grad of dtype float16, bfloat16, float32 or float64, got int32"
    else:
        grad, message = grad[:, :1], r"grad of shape \(1, 2, 2, 2\), got \(1, 1, 2, 2\)"
    with pytest.raises(ValueError, match=f"^roi_pool: expected {message}$"):
        torch.ops.cvkernels.roi_pool_backward(grad, argmax, boxes, 1.0, 2, 2, 1, 2, 4, 4)


# --------------------------------------------------------------------------------------------------
# The module, torchvision


def test_module_is_the_function(device: str) -> None:
    x, boxes = features(2, 3, 8, 9).to(device), random_boxes(4, 2, (16, 18)).to(device)
    module = RoIPool((3, 2), 0.5)
    assert_same(module(x, boxes), roi_pool(x, boxes, (3, 2), 0.5))
    assert "output_size=(3, 2), spatial_scale=0.5" in repr(module)
    assert list(module.state_dict()) == []


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_torchvision(
    dtype: torch.dtype, layout: torch.memory_format, seed: int, device: str
) -> None:
    """Bit for bit: values, indices; gradients but for the order of additions."""
    pytest.importorskip("torchvision")
    theirs = torch.ops.torchvision
    size = 4 if EMULATED else 24
    make = whole_features if seed % 2 else features
    x = make(2, size, 25, 34, seed=seed).to(device, dtype)
    boxes = random_boxes(4 * size, 2, (400, 544), seed=seed).to(device, dtype)
    arguments = boxes, 1 / 16, *((7, 5), (1, 1), (3, 14), (7, 7))[seed]
    expected = theirs.roi_pool(x, *arguments)
    actual = torch.ops.cvkernels.roi_pool_argmax(x.contiguous(memory_format=layout), *arguments)
    for a, e in zip(actual, expected, strict=True):
        assert_same(a.contiguous(), e)
    upstream = features(*expected[0].shape, seed=5).to(device, dtype)
    _, *rest = arguments
    a = torch.ops.cvkernels.roi_pool_backward(upstream, actual[1], boxes, *rest, *x.shape)
    e = theirs._roi_pool_backward(upstream, boxes, expected[1], *rest, *x.shape)
    assert_close(a, e, dtype)
