"""ps_roi_align: the generic matrix, then what is particular to the operator."""

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
from cvkernels.ps_roi_align import PSRoIAlign, ps_roi_align


def case(
    name: str,
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: int | tuple[int, int],
    scale: float,
    sampling_ratio: int = -1,
    **options: Any,
) -> Case:
    def make() -> Args:
        return {
            "input": input.clone(),
            "boxes": [b.clone() for b in boxes] if isinstance(boxes, list) else boxes.clone(),
            "output_size": output_size,
            "spatial_scale": scale,
            "sampling_ratio": sampling_ratio,
        }

    return Case(name, make, **options)


def make_cases() -> list[Case]:
    return [
        *pooling_cases(case, 6, (2, 3)),
        case("two samples", features(2, 6, 14, 17), random_boxes(9, 2, (56, 68)), (2, 3), 0.25, 2),
        case("one sample", features(1, 8, 9, 9), random_boxes(5, 1, (9, 9)), 2, 1.0, 1),
        case("large grid", features(1, 1, 40, 44), random_boxes(2, 1, (40, 44), 6, 0), 1, 1.0, 0),
        case("many bins", features(1, 90, 5, 6), random_boxes(2, 1, (5, 6)), (1, 90), 1.0, 2),
    ]


def defaults() -> Args:
    return {"input": torch.ones(2, 49, 8, 8), "boxes": torch.ones(4, 5), "output_size": 7}


ERRORS = [
    *pooling_errors("ps_roi_align", defaults),
    ErrorCase(
        "channels",
        good(defaults, input=lambda: torch.ones(2, 50, 8, 8)),
        "ps_roi_align: expected input of channels divisible by the bins (49), got 50",
    ),
    ErrorCase(
        "sampling huge",
        good(defaults, sampling_ratio=32769),
        "ps_roi_align: expected sampling_ratio of at most 32768, got 32769",
    ),
    ErrorCase(
        "sampling type",
        good(defaults, sampling_ratio=None),
        "ps_roi_align: expected sampling_ratio to be an integer, got NoneType",
        TypeError,
    ),
]


def make_samples() -> list[Sample]:
    def forward(dtype: torch.dtype) -> tuple[Any, ...]:
        x = features(2, 12, 6, 5).to(dtype).requires_grad_()
        return x, random_boxes(3, 2, (12, 10)).float(), 0.5, 2, 3, 2

    def backward(dtype: torch.dtype) -> tuple[Any, ...]:
        _, boxes, *rest = forward(dtype)
        grad = features(3, 2, 2, 3).to(dtype).requires_grad_()
        return grad, boxes, *rest[:3], 2, 12, 6, 5, *rest[3:]

    return [
        *pooling_samples("ps_roi_align", forward),
        Sample("ps_roi_align_backward", "plain", backward),
    ]


class TestPSRoIAlign(PoolingTests):
    spec = OpSpec(
        name="ps_roi_align",
        op=ps_roi_align,
        reference=reference.ps_roi_align,
        cases=make_cases(),
        differentiable=("input",),
        memory_format_of="input",
        second_order=lambda args: True,
        errors=ERRORS,
        samples=make_samples(),
        vmaps=pooling_vmaps(lambda x, boxes: ps_roi_align(x, boxes, 2, 0.5), 8),
    )


# --------------------------------------------------------------------------------------------------
# Hand-worked numbers. The reference has its own in tests/reference; these reach the kernels.


def planes(channels: int, device: str) -> Tensor:
    """100 c + 10 y + x on 8 x 8 pixels."""
    c = 100 * torch.arange(float(channels), device=device)[:, None, None]
    y = 10 * torch.arange(8.0, device=device)[:, None]
    return (c + y + torch.arange(8.0, device=device))[None]


def test_hand_worked_channels(device: str) -> None:
    # Box (1, 1)-(5, 5), bins of 2 x 2 pixels, 2 x 2 samples each, half a pixel up and left: bin
    # (i, j) is centred on (2 i + 1.5, 2 j + 1.5), where a linear map has its mean: 16.5 more 20 i
    # and 2 j; and of output channel o it reads channel 4 o + 2 i + j.
    out = ps_roi_align(planes(8, device), box((0, 1, 1, 5, 5)).float().to(device), 2, 1.0, 2)
    assert out[0, 0].tolist() == [[16.5, 118.5], [236.5, 338.5]]
    assert out[0, 1].tolist() == [[416.5, 518.5], [636.5, 738.5]]


def test_hand_worked_gradient(device: str) -> None:
    # One sample for each bin, at 0.5 and 1.5 along both axes: every bin spreads over four pixels of
    # the channel that it reads.
    x = torch.zeros(1, 4, 3, 3, device=device, requires_grad=True)
    out = ps_roi_align(x, box((0, 0.5, 0.5, 2.5, 2.5)).float().to(device), 2, 1.0, 1)
    (grad,) = torch.autograd.grad(
        out, x, torch.tensor([[4.0, 8], [12, 16]], device=device)[None, None]
    )
    expected = torch.zeros(4, 3, 3)
    for channel, (y, x0) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        expected[channel, y : y + 2, x0 : x0 + 2] = channel + 1
    assert grad[0].tolist() == expected.tolist()


def test_a_bin_without_samples_is_zero(device: str) -> None:
    """An adaptive grid over a point has none; torchvision divides zero by zero."""
    x = torch.ones(1, 4, 5, 5, device=device, requires_grad=True)
    out = ps_roi_align(x, box((0, 2, 2, 2, 2)).float().to(device), 2)
    assert out.flatten().tolist() == [0, 0, 0, 0]
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad.abs().sum().item() == 0


# --------------------------------------------------------------------------------------------------
# The modules, torchvision


def test_module_is_the_function(device: str) -> None:
    x, boxes = features(2, 12, 8, 9).to(device), random_boxes(4, 2, (16, 18)).to(device)
    module = PSRoIAlign((3, 2), 0.5, 2)
    assert_same(module(x, boxes), ps_roi_align(x, boxes, (3, 2), 0.5, 2))
    assert "output_size=(3, 2), spatial_scale=0.5" in repr(module)
    assert list(module.state_dict()) == []
    assert ps_roi.ps_roi_align is ps_roi_align and ps_roi.PSRoIAlign is PSRoIAlign


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
    arguments = (boxes, bins, 1 / 16, (-1, 2)[seed % 2])
    expected, actual = ops.ps_roi_align(theirs, *arguments), ps_roi_align(ours, *arguments)
    assert_close(actual, expected, dtype)
    upstream = features(*expected.shape, seed=5).to(device, dtype)
    (e,) = torch.autograd.grad(expected, theirs, upstream)
    (a,) = torch.autograd.grad(actual, ours, upstream)
    assert_close(a, e, dtype)
