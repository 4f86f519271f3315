"""Rotated RoI Align: turned boxes on a detector's map, forward and with its gradient."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench import workloads
from bench.harness import Case, Context, Trial
from bench.machine import Cost
from bench.ops.roi_align import Calls
from bench.peers.rois import roi_align_rotated_torch
from bench.workloads import RoiInput, RoiLevel

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
            make = workloads.rotated_c4
            found.append(_case("c4_512", make, direction, dtype, channels_last, quick=quick))
        found.append(_case("aerial_1000", workloads.rotated_tile, direction))
        found.append(_case("aerial_1000", workloads.rotated_tile, direction, channels_last=True))
        tiny = partial(workloads.rotated_c4, 10)
        found.append(_case("c4_10", tiny, direction))
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
    return Case("roi_align_rotated", direction, dtype, name, build, quick=quick)


def trial(
    context: Context, data: RoiInput, direction: str, dtype: str, *, channels_last: bool = False
) -> Trial:
    """Our call and, where the dtype is one that grid_sample computes in, the composition."""
    op = "roi_align_rotated"
    calls = Calls(data, direction, getattr(torch, dtype), context.device, channels_last)
    peers = context.libraries.find(op, op)
    if sum(len(level.boxes) for level in data.levels) > _REFERENCE_BOXES:
        peers.pop("reference", None)
    wide = dtype in ("float32", "float64")
    if wide:
        peers = {"grid_sample": roi_align_rotated_torch, **peers}
    return Trial(
        ours=calls.of(context.libraries.our(op, op)),
        peers={name: calls.of(function) for name, function in peers.items()},
        cost=cost(data, direction, calls.dtype.itemsize),
        match=dtype,
        expected=None if wide else calls.widened().of(roi_align_rotated_torch),
    )


def cost(data: RoiInput, direction: str, itemsize: int) -> Cost:
    """Least work: touched pixels read once, outputs written once, four multiply-adds a sample.

    The gradient reads the output's gradient and writes the whole map, with as much arithmetic.
    """
    total = Cost(0, 0)
    for level in data.levels:
        n, c, h, w = level.shape
        bins = len(level.boxes) * data.output_size[0] * data.output_size[1]
        samples = bins * data.sampling_ratio**2
        pooled = bins * c * itemsize
        rois = 6 * len(level.boxes) * itemsize
        total += Cost(_touched_pixels(level) * c * itemsize + pooled + rois, 8.0 * samples * c)
        if direction == "fwd+bwd":
            total += Cost(pooled + rois + n * c * h * w * itemsize, 8.0 * samples * c)
    return total


def _touched_pixels(level: RoiLevel) -> int:
    """Pixels of the map whose centre is inside at least one box, per channel."""
    n, _, h, w = level.shape
    y = torch.arange(float(h))[:, None] + 0.5
    x = torch.arange(float(w)) + 0.5
    mask = torch.zeros(n, h, w, dtype=torch.bool)
    for image, cx, cy, width, height, angle in level.boxes:
        dx, dy = x - cx * level.scale, y - cy * level.scale
        v, u = _turn(dy, dx, angle)
        inside = (v.abs() <= height * level.scale / 2) & (u.abs() <= width * level.scale / 2)
        mask[int(image)] |= inside
    return int(mask.sum())


def _turn(dy: Tensor, dx: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Into the frame of a box turned counter-clockwise."""
    return dy * angle.cos() + dx * angle.sin(), dx * angle.cos() - dy * angle.sin()
