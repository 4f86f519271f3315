"""prroi_pool: the generic matrix, then what is particular to the operator."""

from __future__ import annotations

import importlib
from typing import Any

import harness
import pytest
import torch
from harness import (
    EMULATED,
    Args,
    Case,
    OpSpec,
    Sample,
    VmapCase,
    assert_close,
    assert_same,
)
from roi_family import (
    BAD_BOXES,
    PoolingTests,
    box,
    features,
    pooling_cases,
    pooling_errors,
    pooling_samples,
    pooling_vmaps,
    random_boxes,
)
from torch import Tensor

from cvkernels import reference, roi_align
from cvkernels.prroi_pool import PrRoIPool, prroi_pool


def off_centre(boxes: Tensor) -> Tensor:
    """The same boxes, with image indices that a numerical derivative does not carry over a step."""
    return boxes + torch.tensor([0.5, 0, 0, 0, 0], dtype=boxes.dtype)


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
            "boxes": [b.clone() for b in boxes] if isinstance(boxes, list) else off_centre(boxes),
            "output_size": output_size,
            "spatial_scale": scale,
        }

    return Case(name, make, **options)


def make_cases() -> list[Case]:
    # Ends of bins at pixel centres and halfway between.
    whole = box((0, 1, 1, 5, 5), (1, 0, 2, 8, 6), (0, -2, -2, 6, 6), (1, 4, 4.5, 12, 12.5))
    tiny = box((0, 3.25, 2, 3.375, 2.0625), (0, 2.96875, 3, 3.03125, 3.5), (0, 0, 0, 2**-9, 5))
    long = box((0, 0.75, 2.25, 384.75, 5.25), (0, -8.75, 1.25, 375.25, 4.25))
    return [
        *pooling_cases(case, 3, (2, 3)),
        case("whole ends", features(2, 3, 9, 10), whole, 4, 1.0),
        case("tiny boxes", features(1, 3, 6, 6), tiny, 2, 1.0),
        case("seven bins", features(2, 5, 24, 16), random_boxes(6, 2, (24, 16)), 7, 1.0),
        case("channel blocks", features(1, 128, 5, 5), random_boxes(3, 1, (5, 5)), 2, 1.0),
        case("many bins", features(1, 2, 5, 6), random_boxes(2, 1, (5, 6)), (3, 150), 1.0),
        case("long axis", features(1, 2, 8, 400), long, 2, 1.0),
    ]


def defaults() -> Args:
    return {"input": torch.ones(2, 3, 8, 8), "boxes": torch.ones(4, 5), "output_size": 7}


def make_samples() -> list[Sample]:
    def forward(dtype: torch.dtype) -> tuple[Any, ...]:
        x = features(2, 3, 6, 5).to(dtype).requires_grad_()
        return x, random_boxes(3, 2, (12, 10)).float(), 0.5, 2, 3

    def forward_boxes(dtype: torch.dtype) -> tuple[Any, ...]:
        x, boxes, *rest = forward(dtype)
        return x, boxes.requires_grad_(), *rest

    def backward(dtype: torch.dtype) -> tuple[Any, ...]:
        _, boxes, *rest = forward(dtype)
        return features(3, 3, 2, 3).to(dtype).requires_grad_(), boxes, *rest, 2, 3, 6, 5

    def boxes_backward(dtype: torch.dtype) -> tuple[Any, ...]:
        x, boxes, *rest = forward(dtype)
        return x.detach(), boxes, features(3, 3, 2, 3).to(dtype), *rest

    return [
        *pooling_samples("prroi_pool", forward),
        Sample("prroi_pool", "boxes' gradient", forward_boxes),
        Sample("prroi_pool_backward", "plain", backward),
        Sample("prroi_pool_boxes_backward", "plain", boxes_backward),
    ]


def make_vmaps() -> list[VmapCase]:
    def make(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        boxes = torch.stack([random_boxes(4, 2, (12, 14), seed=s) for s in range(3)])
        return features(3, 2, 3, 6, 7), boxes.to(dtype), features(3, 4, 3, 2, 2, seed=4)

    def boxes_gradient(x: Tensor, boxes: Tensor, grad: Tensor) -> Tensor:
        result: Tensor = torch.ops.cvkernels.prroi_pool_boxes_backward(x, boxes, grad, 0.5, 2, 2)
        return result

    def input_gradient(boxes: Tensor, grad: Tensor) -> Tensor:
        result: Tensor = torch.ops.cvkernels.prroi_pool_backward(grad, boxes, 0.5, 2, 2, 2, 3, 6, 7)
        return result

    return [
        *pooling_vmaps(lambda x, boxes: prroi_pool(x, boxes, 2, 0.5), 3),
        VmapCase("boxes' gradient", boxes_gradient, lambda: make(torch.float64), (0, 0, 0)),
        VmapCase("half boxes' gradient", boxes_gradient, lambda: make(torch.float16), (0, 0, 0)),
        VmapCase("input's gradient", input_gradient, lambda: make(torch.float64)[1:], (0, 0)),
    ]


class TestPrRoIPool(PoolingTests):
    spec = OpSpec(
        name="prroi_pool",
        op=prroi_pool,
        reference=reference.prroi_pool,
        cases=make_cases(),
        differentiable=("input", "boxes"),
        memory_format_of="input",
        errors=pooling_errors("prroi_pool", defaults),
        samples=make_samples(),
        vmaps=make_vmaps(),
    )

    test_boxes_receive_no_gradient = None  # they do

    @pytest.mark.native
    @pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
    def test_the_size_of_a_detector(
        self, channels_last: bool, dtype: torch.dtype, device: str
    ) -> None:
        """Blocks of channels, bands of rows and threads meet their edges."""
        x = features(2, 200, 50, 83).to(device, dtype)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        boxes = random_boxes(100, 2, (800, 1328)).float().to(device)
        leaves = [t.detach().cpu().double().requires_grad_() for t in (x, boxes)]
        expected = reference.prroi_pool(*leaves, 7, 1 / 16)
        upstream = features(*expected.shape, seed=5).to(device, dtype)
        gradients = torch.autograd.grad(expected, leaves, upstream.cpu().double())
        x.requires_grad_()
        boxes.requires_grad_()
        results = []
        for count in (1, 2, 3):
            with harness.threads(count):
                ours = prroi_pool(x, boxes, 7, 1 / 16)
                results.append([ours, *torch.autograd.grad(ours, (x, boxes), upstream)])
        assert_close(results[0][0], expected, dtype)
        assert_close(results[0][1], gradients[0], dtype)
        assert_close(results[0][2], gradients[1], torch.float32)
        for other in results[1:]:
            for a, e in zip(other, results[0], strict=True):
                assert_same(a, e)


# --------------------------------------------------------------------------------------------------
# Hand-worked numbers. The reference has its own in tests/reference; these reach the kernels.


def plane(height: int, width: int, device: str) -> Tensor:
    """10 y + x."""
    y = 10 * torch.arange(float(height), device=device)[:, None]
    return (y + torch.arange(float(width), device=device)).reshape(1, 1, height, width)


def bump(device: str) -> Tensor:
    """Ones in column 4 of nine rows and columns: the kernel max(0, 1 - |x - 4|)."""
    x = torch.zeros(1, 1, 9, 9, device=device)
    x[..., 4] = 1
    return x


def test_hand_worked_means(device: str) -> None:
    # A plane has the values of the bins' centres; x and y are 1 and 2.
    out = prroi_pool(plane(5, 5, device), box((0, 0.5, 0.5, 2.5, 2.5)).float().to(device), 2)
    assert out.flatten().tolist() == [11, 12, 21, 22]
    # Half of the kernel, its middle, all of it over four pixels, a quarter of a half, nothing.
    ends = ((4, 5), (3.5, 4.5), (2, 6), (4.5, 5.5), (5, 7))
    boxes = box(*[(0, a, 2, b, 5) for a, b in ends]).float().to(device)
    assert prroi_pool(bump(device), boxes, 1).flatten().tolist() == [0.5, 0.75, 0.25, 0.125, 0]


def test_hand_worked_rim(device: str) -> None:
    # Ones, 4 wide; bins of one pixel from -2 on: the map fades out over one pixel.
    x = torch.ones(1, 1, 4, 4, device=device)
    out = prroi_pool(x, box((0, -2, 1, 5, 2)).float().to(device), (1, 7))
    assert out.flatten().tolist() == [0, 0.5, 1, 1, 1, 0.5, 0]


def test_hand_worked_gradients(device: str) -> None:
    # [1, 2] in x and [0.5, 1.5] in y: weights 1/2 1/2 by 1/8 3/4 1/8.
    x = torch.zeros(1, 1, 4, 4, device=device, requires_grad=True)
    out = prroi_pool(x, box((0, 1, 0.5, 2, 1.5)).float().to(device), 1)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert (16 * grad).tolist() == [[[[0, 1, 1, 0], [0, 6, 6, 0], [0, 1, 1, 0], [0, 0, 0, 0]]]]
    # Of the mean m over [a, b]: (m - f(a)) / (b - a) and (f(b) - m) / (b - a). Over [3.5, 4.5] m is
    # 3/4 and f is 1/2 at both ends, over [4, 5] m is 1/2 and f falls from 1 to 0.
    boxes = box((0, 3.5, 2, 4.5, 4), (0, 4, 2, 5, 4)).float().to(device).requires_grad_()
    (grad,) = torch.autograd.grad(prroi_pool(bump(device), boxes, 1).sum(), boxes)
    assert grad.tolist() == [[0, 0.25, 0, -0.25, 0], [0, -0.5, 0, -0.5, 0]]


def test_boxes_without_area_give_zeros(device: str) -> None:
    x = (plane(8, 8, device) + 1).requires_grad_()
    boxes = box((0, 2, 2, 2, 4), (0, 2, 2, 4, 2), (0, 4, 4, 2, 2), (0, 4, 1, 2, 3), (0, 1, 1, 4, 4))
    boxes = boxes.float().to(device).requires_grad_()
    out = prroi_pool(x, boxes, 2)
    assert (out[:4] == 0).all() and (out[4] > 0).all()
    grads = torch.autograd.grad(out[:4].sum(), (x, boxes))
    assert all((grad == 0).all() for grad in grads)


def test_tiny_bins_far_from_the_origin(device: str) -> None:
    """A bin of 2^-15 pixels is as exact at 3000 as at 0, in float32, though it has no extent."""
    x = features(1, 2, 3, 3001).float().to(device)
    for size in (2.0**-3, 2.0**-8, 2.0**-11):
        for at in (0.25, 2999.25, 2999 - size / 2):
            boxes = box((0, at, 1, at + size, 1.5)).float().to(device).requires_grad_()
            out = prroi_pool(x, boxes, 16)
            upstream = features(*out.shape, seed=2).float().to(device)
            (grad,) = torch.autograd.grad(out, boxes, upstream)
            leaf = boxes.detach().cpu().double().requires_grad_()
            expected = reference.prroi_pool(x.cpu().double(), leaf, 16)
            (wanted,) = torch.autograd.grad(expected, leaf, upstream.cpu().double())
            assert_close(out, expected, torch.float32)
            assert_close(grad[:, [1, 3]], wanted[:, [1, 3]], torch.float32)
            assert_close(grad[:, [2, 4]], wanted[:, [2, 4]], torch.float32)


def test_the_result_is_continuous_in_the_box(device: str) -> None:
    """Steps of a thousandth of a pixel across pixel centres change no value by much more."""
    x = features(1, 4, 8, 8).to(device)
    steps = torch.arange(0, 2, 0.001, dtype=torch.float64, device=device)
    boxes = box((0, 1, 1, 4, 3.5)).to(device) + steps[:, None] * box((0, 1, 1, 1, 1)).to(device)
    if EMULATED:
        boxes = boxes[980:1020]
    out = prroi_pool(x, boxes, 2)
    assert (out[1:] - out[:-1]).abs().max() < 0.01 * x.abs().max()


# --------------------------------------------------------------------------------------------------
# Gradients


def test_bad_boxes_have_no_gradient(device: str) -> None:
    x = features(1, 3, 6, 6).float().to(device)
    rows = [[0.0, *b] for b in BAD_BOXES]
    if EMULATED or device == "cuda":
        rows += [[index, 0, 0, 4, 4] for index in (1.0, -1.0, float("nan"), float("inf"))]
    boxes = torch.tensor([*rows, [0.0, 0, 0, 4, 4]], device=device, requires_grad=True)
    (grad,) = torch.autograd.grad(prroi_pool(x, boxes, 2).sum(), boxes)
    assert (grad[:-1] == 0).all()
    assert grad[-1].abs().max() > 0 and grad.isfinite().all()


def test_input_is_twice_differentiable(device: str) -> None:
    x = features(2, 2, 5, 6).to(device).requires_grad_()
    boxes = random_boxes(3, 2, (5, 6)).to(device)
    pool = lambda t: prroi_pool(t, boxes, 2).square()  # noqa: E731
    assert torch.autograd.gradgradcheck(pool, x, fast_mode=EMULATED)


def test_second_derivatives_with_boxes_are_refused(device: str) -> None:
    x, boxes = features(1, 2, 6, 6).to(device), random_boxes(3, 1, (6, 6)).to(device)
    x.requires_grad_()
    boxes.requires_grad_()
    for wanted in (x, boxes):
        (grad,) = torch.autograd.grad(
            prroi_pool(x, boxes, 2).square().sum(), wanted, create_graph=True
        )
        with pytest.raises(NotImplementedError, match=r"^prroi_pool: .*boxes"):
            grad.square().sum().backward()


def test_each_gradient_alone(device: str) -> None:
    x, boxes = features(2, 5, 8, 8).to(device), random_boxes(6, 2, (8, 8)).to(device)
    both = x.clone().requires_grad_(), boxes.clone().requires_grad_()
    expected = torch.autograd.grad(prroi_pool(*both, 3).square().sum(), both)
    one, other = x.clone().requires_grad_(), boxes.clone().requires_grad_()
    (a,) = torch.autograd.grad(prroi_pool(one, boxes, 3).square().sum(), one)
    (b,) = torch.autograd.grad(prroi_pool(x, other, 3).square().sum(), other)
    assert_same(a, expected[0])
    assert_same(b, expected[1])


def test_boxes_that_need_no_gradient_keep_no_map_alive(device: str) -> None:
    x, boxes = features(1, 2, 6, 6).to(device), random_boxes(3, 1, (6, 6)).to(device)
    out = prroi_pool(x.requires_grad_(), boxes, 2)
    saved = out.grad_fn.saved_tensors  # type: ignore[union-attr]
    assert [t is None or t.shape == boxes.shape for t in saved] == [True] * 2


# --------------------------------------------------------------------------------------------------
# The module, the other name


def test_module_is_the_function(device: str) -> None:
    x, boxes = features(2, 3, 8, 9).to(device), random_boxes(4, 2, (16, 18)).to(device)
    module = PrRoIPool((3, 2), 0.5)
    assert_same(module(x, boxes), prroi_pool(x, boxes, (3, 2), 0.5))
    assert "output_size=(3, 2), spatial_scale=0.5" in repr(module)
    assert list(module.state_dict()) == []


def test_roi_align_knows_it_too() -> None:
    assert roi_align.prroi_pool is prroi_pool and roi_align.PrRoIPool is PrRoIPool
    assert importlib.import_module("cvkernels.roi_align").prroi_pool is prroi_pool
    assert "prroi_pool" not in roi_align.__all__
    with pytest.raises(AttributeError, match=r"cvkernels\.roi_align.*other"):
        _ = roi_align.other
