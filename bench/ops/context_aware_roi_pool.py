"""Context-aware RoI Pool: boxes of which many are smaller than their grid, with their gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

from bench import workloads
from bench.harness import Case, Context, Trial
from bench.machine import Cost
from bench.ops import roi_pool
from bench.workloads import RoiInput, RoiLevel

_REFERENCE_BINS = 5000  # above which the reference would only slow the bench


def cases() -> list[Case]:
    """Every case; no other library has the operator."""
    found = []
    few = partial(workloads.c4, 64)
    for direction in ("fwd", "fwd+bwd"):
        found.append(_case("c4_64", few, direction, quick=True))
        for dtype in ("float32", "bfloat16"):
            for channels_last in (False, True):
                found.append(_case("c4_512", workloads.c4, direction, dtype, channels_last))
        found.append(_case("fpn_box_1000", partial(workloads.fpn, 1000, 7), direction))
        found.append(_case("tiny_10", workloads.tiny, direction, quick=True))
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
    return Case("context_aware_roi_pool", direction, dtype, name, build, quick=quick)


def trial(
    context: Context, data: RoiInput, direction: str, dtype: str, *, channels_last: bool = False
) -> Trial:
    """Calls for one workload on the layout as given."""
    op = "context_aware_roi_pool"
    calls = roi_pool.Calls(data, direction, getattr(torch, dtype), context.device, channels_last)
    libraries = context.libraries
    peers = libraries.find(op, op)
    bins = data.output_size[0] * data.output_size[1]
    if sum(len(level.boxes) for level in data.levels) * bins > _REFERENCE_BINS:
        peers.pop("reference", None)
    return Trial(
        ours=calls.of(libraries.our(op, op)),
        peers={name: calls.of(function) for name, function in peers.items()},
        cost=cost(data, direction, calls.dtype.itemsize),
        match=dtype,
    )


def cost(data: RoiInput, direction: str, itemsize: int) -> Cost:
    """Least work: the traffic of RoI Pool; for each cell of a bin its taps and a comparison.

    The gradient goes to the taps of one cell a bin.
    """
    total = Cost(roi_pool.cost(data, direction, itemsize, indices_per_pixel=3).bytes, 0)
    for level in data.levels:
        channels = level.shape[1]
        compared, spread = _operations(level, data)
        total += Cost(0, float(channels * compared))
        if direction == "fwd+bwd":
            total += Cost(0, float(channels * spread))
    return total


def _operations(level: RoiLevel, data: RoiInput) -> tuple[int, int]:
    """Per channel, of all boxes: operations on the cells of bins, and on the taps of one each."""
    _, _, height, width = level.shape
    bins = data.output_size
    corners = (level.boxes[:, 1:] * level.scale).round().int().tolist()
    compared = spread = 0
    for x1, y1, x2, y2 in corners:
        rows, row_taps = _along(y1, y2, bins[0], height)
        columns, column_taps = _along(x1, x2, bins[1], width)
        taps = row_taps * column_taps
        compared += rows * columns * (2 * taps if taps > 1 else 1)
        spread += bins[0] * bins[1] * (2 * taps if taps > 1 else 1)
    return compared, spread


def _along(first: int, last: int, bins: int, extent: int) -> tuple[int, int]:
    """Cells of a box's bins along one axis, those in two bins counted twice, and taps of a cell."""
    size = max(last - first + 1, 1)
    stretch = math.ceil(bins / size)  # 1 for a box that is large enough
    cells = roi_pool.along(first * stretch, (last + 1) * stretch - 1, bins, extent * stretch)
    return cells, 2 if stretch > 1 and size > 1 else 1
