"""RoI Pool: the boxes of Fast R-CNN and of an FPN, forward and with its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench import workloads
from bench.harness import Case, Context, Trial
from bench.libraries import TORCHVISION, load
from bench.machine import Cost
from bench.ops import roi_align
from bench.workloads import RoiInput, RoiLevel

_REFERENCE_BINS = 5000  # above which the reference would only slow the bench


def cases() -> list[Case]:
    """Every RoI Pool case."""
    found = []
    c4 = [
        ("float32", False, True),
        ("float32", True, True),
        ("bfloat16", False, False),
        ("float16", False, False),
        ("float64", False, False),
    ]
    for direction in ("fwd", "fwd+bwd"):
        for dtype, channels_last, quick in c4:
            found.append(
                _case("c4_512", workloads.c4, direction, dtype, channels_last, quick=quick)
            )
        found.append(_case("fpn_box_1000", partial(workloads.fpn, 1000, 7), direction))
        found.append(_case("large_8", workloads.large, direction))
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
    return Case("roi_pool", direction, dtype, name, build, quick=quick)


def trial(
    context: Context, data: RoiInput, direction: str, dtype: str, *, channels_last: bool = False
) -> Trial:
    """Calls for one workload, all libraries on the same tensors and on the layout as given."""
    calls = Calls(data, direction, getattr(torch, dtype), context.device, channels_last)
    libraries = context.libraries
    peers = libraries.find("roi_pool", "roi_pool")
    bins = data.output_size[0] * data.output_size[1]
    if sum(len(level.boxes) for level in data.levels) * bins > _REFERENCE_BINS:
        peers.pop("reference", None)
    # torchvision computes half in half and has no bfloat16: the truth for both is its float32.
    truth = load(TORCHVISION, "roi_pool", "roi_pool")
    narrow = dtype in ("float16", "bfloat16")
    return Trial(
        ours=calls.of(libraries.our("roi_pool", "roi_pool")),
        peers={name: calls.of(function) for name, function in peers.items()},
        cost=cost(data, direction, calls.dtype.itemsize),
        match=dtype,
        expected=calls.widened().of(truth) if narrow and truth is not None else None,
    )


class Calls(roi_align.Calls):
    """The tensors of one workload, and calls on them."""

    def arguments(self) -> tuple[Any, ...]:
        """Nothing follows the scale."""
        return ()


def cost(data: RoiInput, direction: str, itemsize: int, indices_per_pixel: int = 1) -> Cost:
    """Least work: touched pixels read once, outputs written once, one comparison a pixel and bin.

    With a gradient to come the indices are written, and read again with the output's gradient; they
    take 16 bits where every index fits.
    """
    total = Cost(0, 0)
    for level in data.levels:
        n, c, h, w = level.shape
        pooled = len(level.boxes) * data.output_size[0] * data.output_size[1] * c
        rois = 5 * len(level.boxes) * itemsize
        touched = roi_align.touched_pixels(level) * c * itemsize
        total += Cost(touched + pooled * itemsize + rois, float(c * _compared(level, data)))
        if direction == "fwd+bwd":
            indices = (2 if indices_per_pixel * h * w < 2**15 else 4) * pooled
            gradient = indices + pooled * itemsize + rois + n * c * h * w * itemsize
            total += Cost(indices + gradient, float(pooled))
    return total


def _compared(level: RoiLevel, data: RoiInput) -> int:
    """Pixels of all bins, per channel."""
    _, _, height, width = level.shape
    corners = (level.boxes[:, 1:] * level.scale).round().int().tolist()
    return sum(
        along(y1, y2, data.output_size[0], height) * along(x1, x2, data.output_size[1], width)
        for x1, y1, x2, y2 in corners
    )


def along(first: int, last: int, bins: int, extent: int) -> int:
    """Pixels of a box's bins along one axis, those in two bins counted twice."""
    size = max(last - first + 1, 1)
    found = 0
    for bin in range(bins):
        low = first + math.floor(bin * size / bins)
        high = first + math.ceil((bin + 1) * size / bins)
        found += max(min(high, extent) - max(low, 0), 0)
    return found
