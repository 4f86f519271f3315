"""Deformable RoI pooling: boxes with offsets on a detector's map, forward and with gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench import workloads
from bench.harness import Case, Context, Trial
from bench.machine import Cost
from bench.ops import roi_align
from bench.peers.rois import deform_roi_pool_torch
from bench.workloads import RoiInput

_REFERENCE_BOXES = 100  # the reference takes boxes one by one


def cases() -> list[Case]:
    """Every case."""
    found = []
    for direction in ("fwd", "fwd+bwd"):
        for dtype, channels_last, quick in (
            ("float32", False, True),
            ("float32", True, True),
            ("bfloat16", True, False),
            ("float16", False, False),
            ("float64", False, False),
        ):
            make = workloads.c4
            found.append(_case("c4_512", make, direction, dtype, channels_last, quick=quick))
        found.append(_case("c4_10", lambda: workloads.c4(10), direction))
    return found


def _case(
    workload: str,
    make: Callable[[], RoiInput],
    direction: str,
    dtype: str = "float32",
    channels_last: bool = False,
    *,
    quick: bool = False,
) -> Case:
    def build(context: Context) -> Trial:
        return trial(context, make(), direction, dtype, channels_last=channels_last)

    name = workload + (" channels_last" if channels_last else "")
    return Case("deform_roi_pool", direction, dtype, name, build, quick=quick)


def trial(
    context: Context, data: RoiInput, direction: str, dtype: str, *, channels_last: bool = False
) -> Trial:
    """Our call and, where the dtype is one that grid_sample computes in, the composition."""
    op = "deform_roi_pool"
    calls = Calls(data, direction, getattr(torch, dtype), context.device, channels_last)
    peers = context.libraries.find(op, op)
    if len(data.levels[0].boxes) > _REFERENCE_BOXES:
        peers.pop("reference", None)
    wide = dtype in ("float32", "float64")
    if wide:
        peers = {"grid_sample": deform_roi_pool_torch, **peers}
    return Trial(
        ours=calls.of(context.libraries.our(op, op)),
        peers={name: calls.of(function) for name, function in peers.items()},
        cost=cost(data, direction, calls.input.element_size()),
        match=dtype,
        expected=None if wide else calls.widened().of(deform_roi_pool_torch),
    )


class Calls:
    """The tensors of one workload, and calls on them.

    A forward call gives the pooled features, "fwd+bwd" the gradients of the map and the offsets.
    """

    def __init__(
        self,
        data: RoiInput,
        direction: str,
        dtype: torch.dtype,
        device: torch.device,
        channels_last: bool,
    ) -> None:
        g = torch.Generator().manual_seed(1)
        (level,) = data.levels
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.data, self.backward = data, direction == "fwd+bwd"
        input = torch.randn(level.shape, generator=g).to(device, dtype)
        self.input = input.contiguous(memory_format=layout).requires_grad_(self.backward)
        self.rois = level.boxes.to(device, dtype)
        offset = torch.randn(len(level.boxes), 2, *data.output_size, generator=g)
        self.offset = offset.to(device, dtype).requires_grad_(self.backward)
        pooled = (len(level.boxes), level.shape[1], *data.output_size)
        grad = torch.randn(pooled if self.backward else (0, 1, 1, 1), generator=g)
        self.grad = grad.to(device, dtype).contiguous(memory_format=layout)

    def widened(self) -> Calls:
        """The same numbers, rounded to the narrow dtype as they are, in float32."""
        wide = object.__new__(Calls)
        wide.data, wide.backward = self.data, self.backward
        wide.input = self.input.detach().float().requires_grad_(self.backward)
        wide.offset = self.offset.detach().float().requires_grad_(self.backward)
        wide.rois, wide.grad = self.rois.float(), self.grad.float()
        return wide

    def of(self, function: Callable[..., Tensor]) -> Callable[[], Any]:
        """One call of `function`, which has the operator's signature."""
        scale, ratio = self.data.levels[0].scale, self.data.sampling_ratio
        fixed = (self.input, self.rois, self.offset, self.data.output_size, scale, ratio)

        def forward_backward() -> tuple[Tensor, ...]:
            return torch.autograd.grad(function(*fixed), (self.input, self.offset), self.grad)

        return forward_backward if self.backward else lambda: function(*fixed)


def cost(data: RoiInput, direction: str, itemsize: int) -> Cost:
    """That of RoI Align and the offsets; their gradient reads the map once more.

    It multiplies the output's gradient with every pixel that a sample reads.
    """
    (level,) = data.levels
    offsets = Cost(2 * len(level.boxes) * data.output_size[0] * data.output_size[1] * itemsize, 0)
    total = roi_align.cost(data, direction, itemsize) + offsets
    if direction == "fwd+bwd":
        again = roi_align.cost(data, "fwd", itemsize)
        total += offsets + Cost(again.bytes, again.flops)
    return total
