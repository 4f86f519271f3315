"""Tensors of more than 2^31 elements: every offset into memory must be 64 bits wide.

bfloat16 on the CPU, so that each test fits into 16 GiB. The maps are almost everywhere zero, and
memory that nobody touches costs nothing; the windows that boxes look at lie on both sides of the
boundary.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from harness import assert_close
from torch import Tensor

from cvkernels import reference
from cvkernels.context_aware_roi_pool import context_aware_roi_pool
from cvkernels.deform_roi_pool import deform_roi_pool
from cvkernels.prroi_pool import prroi_pool
from cvkernels.roi_align import roi_align
from cvkernels.roi_pool import roi_pool

BOUNDARY = 2**31
SIDE, CHANNELS, WINDOW = 8200, 33, 24


def available_gib() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20


pytestmark = [
    pytest.mark.slow,
    pytest.mark.native,
    pytest.mark.skipif(available_gib() < 14, reason="needs 14 GiB of free memory"),
]


@pytest.fixture(autouse=True)
def collect() -> Iterator[None]:
    yield
    gc.collect()


def corner_map(channels_last: bool) -> Tensor:
    """[1, 33, 8200, 8200] of zeros with random numbers in the windows at two corners."""
    shape = (1, SIDE, SIDE, CHANNELS) if channels_last else (1, CHANNELS, SIDE, SIDE)
    x = torch.zeros(shape, dtype=torch.bfloat16)
    if channels_last:
        x = x.permute(0, 3, 1, 2)
    assert x.numel() > BOUNDARY
    generator = torch.Generator().manual_seed(0)
    for window in (x[..., :WINDOW, :WINDOW], x[..., -WINDOW:, -WINDOW:]):
        window.copy_(torch.randn(window.shape, generator=generator))
    return x


# Boxes in a window. Four bins of eighths of a pixel with two samples each: the coordinates, which
# float32 holds to a thousandth around 8200, are exact.
LOCAL = torch.tensor(
    [[0.0, 1, 2, 9, 11], [0, 3.5, 0.25, 21, 22.75], [0, 2, 2, 5, 4], [0, 10, 6, 23, 23]]
)
BINS = 4


def expected(x: Tensor, mode: str, upstream: Tensor | None = None) -> list[Tensor]:
    """Pooled values (or gradients of the two windows) by the reference on crops."""
    out = []
    for i, window in enumerate((x[..., :WINDOW, :WINDOW], x[..., -WINDOW:, -WINDOW:])):
        leaf = window.double().contiguous().requires_grad_()
        pooled = reference.roi_align(leaf, LOCAL, BINS, 1.0, 2, True, mode=mode)
        if upstream is None:
            out.append(pooled.detach())
        else:
            rows = upstream[i * len(LOCAL) : (i + 1) * len(LOCAL)].double()
            out.append(torch.autograd.grad(pooled, leaf, rows)[0])
    return out


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_input_across_the_boundary(channels_last: bool, mode: str) -> None:
    x = corner_map(channels_last)
    shift = torch.tensor([0.0, 1, 1, 1, 1]) * (SIDE - WINDOW)
    boxes = torch.cat([LOCAL, LOCAL + shift])
    out = roi_align(x, boxes, BINS, 1.0, 2, True, mode=mode)
    assert_close(out, torch.cat(expected(x, mode)), torch.bfloat16)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_gradient_across_the_boundary(channels_last: bool) -> None:
    x = corner_map(channels_last).requires_grad_()
    shift = torch.tensor([0.0, 1, 1, 1, 1]) * (SIDE - WINDOW)
    boxes = torch.cat([LOCAL, LOCAL + shift])
    out = roi_align(x, boxes, BINS, 1.0, 2, True)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    wanted = expected(x.detach(), "avg", upstream)
    (grad,) = torch.autograd.grad(out, x, upstream)
    del out
    first, last = grad[..., :WINDOW, :WINDOW], grad[..., -WINDOW:, -WINDOW:]
    assert_close(first, wanted[0], torch.bfloat16)
    assert_close(last, wanted[1], torch.bfloat16)
    inside = int(first.count_nonzero() + last.count_nonzero())
    assert sum(int(plane.count_nonzero()) for plane in grad[0]) == inside  # and nowhere else


@pytest.mark.parametrize(
    ("op", "twin", "rest"),
    [
        (roi_align, reference.roi_align, (BINS, 1.0, 2, True)),
        (prroi_pool, reference.prroi_pool, (BINS,)),
    ],
    ids=["roi_align", "prroi_pool"],
)
def test_gradient_of_boxes_across_the_boundary(
    op: Callable[..., Tensor], twin: Callable[..., Tensor], rest: tuple[object, ...]
) -> None:
    x = corner_map(channels_last=False)
    shift = torch.tensor([0.0, 1, 1, 1, 1]) * (SIDE - WINDOW)
    boxes = torch.cat([LOCAL, LOCAL + shift]).requires_grad_()
    out = op(x, boxes, *rest)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    (actual,) = torch.autograd.grad(out, boxes, upstream)
    for i, window in enumerate((x[..., :WINDOW, :WINDOW], x[..., -WINDOW:, -WINDOW:])):
        leaf, rows = LOCAL.clone().requires_grad_(), slice(i * len(LOCAL), (i + 1) * len(LOCAL))
        pooled = twin(window.double().contiguous(), leaf, *rest)
        (wanted,) = torch.autograd.grad(pooled, leaf, upstream[rows].double())
        assert_close(out[rows], pooled, torch.bfloat16)
        assert_close(actual[rows], wanted, torch.float32)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("op", "twin"),
    [
        (roi_pool, reference.roi_pool),
        (context_aware_roi_pool, reference.context_aware_roi_pool),
    ],
    ids=["roi_pool", "context_aware_roi_pool"],
)
def test_maxima_across_the_boundary(
    op: Callable[..., Tensor], twin: Callable[..., Tensor], channels_last: bool
) -> None:
    x = corner_map(channels_last)
    shift = torch.tensor([0.0, 1, 1, 1, 1]) * (SIDE - WINDOW)
    bins = 8  # more than the smallest box has pixels
    out = op(x, torch.cat([LOCAL, LOCAL + shift]), bins)
    windows = (x[..., :WINDOW, :WINDOW], x[..., -WINDOW:, -WINDOW:])
    assert_close(out, torch.cat([twin(w, LOCAL, bins) for w in windows]), torch.bfloat16)


def test_output_across_the_boundary() -> None:
    channels, bins = 64, 49
    count = BOUNDARY // (channels * bins) + 100
    x = torch.randn(1, channels, 6, 6, generator=torch.Generator().manual_seed(2)).bfloat16()
    x.requires_grad_()
    boxes = torch.zeros(count, 5)
    boxes[:, 3:] = 5
    boxes[-50:, 1:3] = torch.linspace(0, 3, 50)[:, None]  # the last rows differ
    out = roi_align(x, boxes, 7, 1.0, 1, True)
    assert out.numel() > BOUNDARY
    same = reference.roi_align(x.double(), boxes[:1], 7, 1.0, 1, True).detach()
    tail = reference.roi_align(x.double(), boxes[-50:], 7, 1.0, 1, True).detach()
    assert_close(out[:1], same, torch.bfloat16)
    assert_close(out[-50:], tail, torch.bfloat16)
    middle = count // 2
    assert_close(out[middle : middle + 1], same, torch.bfloat16)
    # Only the last 50 rows carry a gradient, so that the sum over 700,000 rows stays exact.
    upstream = torch.zeros_like(out)
    upstream[-50:] = 1
    (grad,) = torch.autograd.grad(out, x, upstream)
    leaf = x.detach().double().requires_grad_()
    pooled = reference.roi_align(leaf, boxes[-50:], 7, 1.0, 1, True)
    assert_close(grad, torch.autograd.grad(pooled.sum(), leaf)[0], torch.bfloat16)


def test_layout_of_a_strided_view_beyond_the_boundary() -> None:
    """A window whose storage offset and strides exceed 31 bits."""
    x = corner_map(False)[..., -WINDOW:, -WINDOW:]
    assert x.storage_offset() > 0 and x.storage_offset() + x.stride(1) * (CHANNELS - 1) > BOUNDARY
    out = roi_align(x, LOCAL, BINS, 1.0, 2, True)
    assert_close(out, reference.roi_align(x.double(), LOCAL, BINS, 1.0, 2, True), torch.bfloat16)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_gradient_of_offsets_across_the_boundary(channels_last: bool) -> None:
    x = corner_map(channels_last)
    shift = torch.tensor([0.0, 1, 1, 1, 1]) * (SIDE - WINDOW)
    boxes = torch.cat([LOCAL, LOCAL + shift])
    # Shifted by a sixteenth of the box, a sample is exact as well, and inside its window.
    offset = torch.full((len(boxes), 2, BINS, BINS), 0.125).requires_grad_()
    rest = (BINS, 1.0, 2, 0.5)
    out = deform_roi_pool(x, boxes, offset, *rest)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    (actual,) = torch.autograd.grad(out, offset, upstream)
    for i, window in enumerate((x[..., :WINDOW, :WINDOW], x[..., -WINDOW:, -WINDOW:])):
        rows = slice(i * len(LOCAL), (i + 1) * len(LOCAL))
        leaf = offset[rows].detach().double().requires_grad_()
        pooled = reference.deform_roi_pool(window.double().contiguous(), LOCAL, leaf, *rest)
        (wanted,) = torch.autograd.grad(pooled, leaf, upstream[rows].double())
        assert_close(out[rows], pooled, torch.bfloat16)
        assert_close(actual[rows], wanted, torch.float32)
