"""ps_roi_pool: the generic matrix, then what is particular to the operator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import EMULATED, Args, Case, ErrorCase, OpSpec, Sample, assert_close, assert_same
from roi_family import (
    PoolingTests,
    box,
    features,
    good,
    pooling_cases,
    pooling_errors,
    pooling_samples,
    pooling_vmaps,
    random_boxes,
)
from torch import Tensor

from cvkernels import ps_roi, reference
from cvkernels.ps_roi_pool import PSRoIPool, ps_roi_pool


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
    sevenths = box(*[(i % 2, 1, 2, 1 + 3 * k, 2 + 5 * k) for i, k in enumerate((1, 2, 3, 4, 5))])
    return [
        *pooling_cases(case, 6, (2, 3)),
        case("seven bins", features(2, 98, 24, 16), sevenths, 7, 1.0),
        case("many bins", features(1, 150, 5, 6), random_boxes(2, 1, (5, 6)), (1, 150), 1.0),
        case("to the rim", features(1, 8, 6, 6), box((0, 0, 0, 6, 6), (0, 5, 5, 6, 6)), 2, 1.0),
    ]


def defaults() -> Args:
    return {"input": torch.ones(2, 49, 8, 8), "boxes": torch.ones(4, 5), "output_size": 7}


ERRORS = [
    *pooling_errors("ps_roi_pool", defaults),
    ErrorCase(
        "channels",
        good(defaults, input=lambda: torch.ones(2, 50, 8, 8)),
        "ps_roi_pool: expected input of channels divisible by the bins (49), got 50",
    ),
]


def make_samples() -> list[Sample]:
    def forward(dtype: torch.dtype) -> tuple[Any, ...]:
        x = features(2, 12, 6, 5).to(dtype).requires_grad_()
        return x, random_boxes(3, 2, (12, 10)).float(), 0.5, 2, 3

    def backward(dtype: torch.dtype) -> tuple[Any, ...]:
        _, boxes, *rest = forward(dtype)
        grad = features(3, 2, 2, 3).to(dtype).requires_grad_()
        return grad, boxes, *rest[:3], 2, 12, 6, 5, *rest[3:]

    return [
        *pooling_samples("ps_roi_pool", forward),
        Sample("ps_roi_pool_backward", "plain", backward),
    ]


class TestPSRoIPool(PoolingTests):
    spec = OpSpec(
        name="ps_roi_pool",
        op=ps_roi_pool,
        reference=reference.ps_roi_pool,
        cases=make_cases(),
        selects=True,  # where bins begin and end depends on rounding
        differentiable=("input",),
        memory_format_of="input",
        second_order=lambda args: True,
        errors=ERRORS,
        samples=make_samples(),
        vmaps=pooling_vmaps(lambda x, boxes: ps_roi_pool(x, boxes, 2, 0.5), 8),
    )

    def detector_boxes(self) -> Tensor:
        """At the rim torchvision's gradient is not the derivative of its result."""
        return random_boxes(300, 2, (770, 1300), spill=0.0)


# --------------------------------------------------------------------------------------------------
# Hand-worked numbers. The reference has its own in tests/reference; these reach the kernels.


def planes(channels: int, device: str) -> Tensor:
    """100 c + 10 y + x on 8 x 8 pixels."""
    c = 100 * torch.arange(float(channels), device=device)[:, None, None]
    y = 10 * torch.arange(8.0, device=device)[:, None]
    return (c + y + torch.arange(8.0, device=device))[None]


def test_hand_worked_channels(device: str) -> None:
    # Box (1, 1)-(5, 5): pixels 1..4, the far ones left out; bins of 2 x 2 pixels with means 16.5
    # more 20 i and 2 j; of output channel o bin (i, j) reads channel 4 o + 2 i + j.
    out = ps_roi_pool(planes(8, device), box((0, 1, 1, 5, 5)).float().to(device), 2)
    assert out[0, 0].tolist() == [[16.5, 118.5], [236.5, 338.5]]
    assert out[0, 1].tolist() == [[416.5, 518.5], [636.5, 738.5]]


def test_hand_worked_rim(device: str) -> None:
    # The last row and column are never read: of pixels 5..8 bin 0 has 5, 6 and bin 1 nothing.
    out = ps_roi_pool(planes(4, device), box((0, 5, 5, 9, 9)).float().to(device), 2)
    assert out.flatten().tolist() == [60.5, 0, 0, 0]


def test_hand_worked_gradient(device: str) -> None:
    # Three pixels in two bins of 1.5, [0, 2) and [1, 3), along both axes: four pixels each.
    x = torch.zeros(1, 4, 5, 5, device=device, requires_grad=True)
    out = ps_roi_pool(x, box((0, 0, 0, 3, 3)).float().to(device), 2)
    (grad,) = torch.autograd.grad(
        out, x, torch.tensor([[4.0, 8], [12, 16]], device=device)[None, None]
    )
    expected = torch.zeros(4, 5, 5)
    for channel, (y, x0) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        expected[channel, y : y + 2, x0 : x0 + 2] = channel + 1
    assert grad[0].tolist() == expected.tolist()


# --------------------------------------------------------------------------------------------------
# The modules, torchvision


def test_module_is_the_function(device: str) -> None:
    x, boxes = features(2, 12, 8, 9).to(device), random_boxes(4, 2, (16, 18)).to(device)
    module = PSRoIPool((3, 2), 0.5)
    assert_same(module(x, boxes), ps_roi_pool(x, boxes, (3, 2), 0.5))
    assert "output_size=(3, 2), spatial_scale=0.5" in repr(module)
    assert list(module.state_dict()) == []
    assert ps_roi.ps_roi_pool is ps_roi_pool and ps_roi.PSRoIPool is PSRoIPool


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_torchvision(
    dtype: torch.dtype, layout: torch.memory_format, seed: int, device: str
) -> None:
    ops = pytest.importorskip("torchvision.ops")
    count = 8 if EMULATED else 60
    bins = ((7, 5), (1, 1), (3, 4), (7, 7))[seed]
    x = features(2, 10 * bins[0] * bins[1], 25, 34, seed=seed).to(device, dtype)
    boxes = random_boxes(count, 2, (400, 544), seed=seed).to(device, dtype)
    theirs = x.clone().requires_grad_()
    ours = x.contiguous(memory_format=layout).requires_grad_()
    arguments = (boxes, bins, 1 / 16)
    expected, actual = ops.ps_roi_pool(theirs, *arguments), ps_roi_pool(ours, *arguments)
    assert_same(actual.contiguous(), expected)  # bit for bit
    # The gradient, away from the rim: there torchvision's is not the derivative of its result.
    boxes = random_boxes(count, 2, (360, 500), seed=seed, spill=0.0).to(device, dtype)
    expected, actual = (
        ops.ps_roi_pool(theirs, boxes, bins, 1 / 16),
        ps_roi_pool(ours, boxes, bins, 1 / 16),
    )
    upstream = features(*expected.shape, seed=5).to(device, dtype)
    (e,) = torch.autograd.grad(expected, theirs, upstream)
    (a,) = torch.autograd.grad(actual, ours, upstream)
    assert_close(a, e, dtype)


def test_the_gradient_is_the_derivative_at_the_rim_too(device: str) -> None:
    # Pixel (2, 2) is all that the box reads of 4 x 4; torchvision's gradient reaches (3, 3).
    x = features(1, 1, 4, 4).to(device).requires_grad_()
    out = ps_roi_pool(x, box((0, 2, 2, 4, 4)).to(device), 1)
    assert out.item() == x[0, 0, 2, 2].item()
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad.nonzero().tolist() == [[0, 0, 2, 2]] and grad.sum().item() == 1
