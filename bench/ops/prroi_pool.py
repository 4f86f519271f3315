"""Precise RoI Pooling: the workloads of RoI Align, forward and with both gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench import workloads
from bench.harness import Case, Context, Trial
from bench.machine import Cost
from bench.ops import roi_align
from bench.workloads import RoiInput, RoiLevel

_REFERENCE_BOXES = 100  # above which the reference would only slow the bench


def cases() -> list[Case]:
    """Every Precise RoI Pooling case; torchvision has no such operator."""
    found = []
    c4 = [
        ("float32", False, False),
        ("float32", True, False),
        ("bfloat16", False, False),
        ("bfloat16", True, False),
    ]
    few = partial(workloads.c4, 64)
    for direction in ("fwd", "fwd+bwd"):
        found.append(_case("c4_64", few, direction, quick=True))
        for dtype, channels_last, quick in c4:
            found.append(
                _case("c4_512", workloads.c4, direction, dtype, channels_last, quick=quick)
            )
        found.append(_case("fpn_box_1000", partial(workloads.fpn, 1000, 7), direction))
        found.append(_case("large_8", workloads.large, direction))
        found.append(_case("tiny_10", workloads.tiny, direction, quick=True))
    found.append(_case("c4_64", few, "fwd+bwd", boxes=True, quick=True))
    for channels_last in (False, True):
        found.append(
            _case("c4_512", workloads.c4, "fwd+bwd", channels_last=channels_last, boxes=True)
        )
    return found


def _case(
    workload: str,
    make: Callable[[], RoiInput],
    direction: str,
    dtype: str = "float32",
    channels_last: bool = False,
    *,
    boxes: bool = False,
    quick: bool = False,
) -> Case:
    def build(context: Context) -> Trial:
        return trial(context, make(), direction, dtype, channels_last=channels_last, boxes=boxes)

    name = workload + (" of boxes" if boxes else "") + (" channels_last" if channels_last else "")
    return Case("prroi_pool", direction, dtype, name, build, quick=quick)


def trial(
    context: Context,
    data: RoiInput,
    direction: str,
    dtype: str,
    *,
    channels_last: bool = False,
    boxes: bool = False,
) -> Trial:
    """Calls for one workload on the layout as given."""
    calls = Calls(data, direction, getattr(torch, dtype), context.device, channels_last, boxes)
    libraries = context.libraries
    peers = libraries.find("prroi_pool", "prroi_pool")
    if sum(len(level.boxes) for level in data.levels) > _REFERENCE_BOXES:
        peers.pop("reference", None)
    return Trial(
        ours=calls.of(libraries.our("prroi_pool", "prroi_pool")),
        peers={name: calls.of(function) for name, function in peers.items()},
        cost=cost(data, direction, calls.dtype.itemsize, boxes=boxes),
        match=dtype,
    )


class Calls(roi_align.Calls):
    """The tensors of one workload, and calls on them."""

    def arguments(self) -> tuple[Any, ...]:
        """Nothing follows the scale."""
        return ()


def cost(data: RoiInput, direction: str, itemsize: int, *, boxes: bool = False) -> Cost:
    """Least work: touched pixels read once, outputs written once, a multiply-add a tap.

    The gradient reads the output's gradient and writes the whole map, with as much arithmetic; that
    of the boxes reads the touched pixels again and writes next to nothing.
    """
    total = Cost(0, 0)
    for level in data.levels:
        n, c, h, w = level.shape
        pooled = len(level.boxes) * data.output_size[0] * data.output_size[1] * c * itemsize
        rois = 5 * len(level.boxes) * itemsize
        touched = roi_align.touched_pixels(level) * c * itemsize
        operations = 2.0 * c * _taps(level, data)
        total += Cost(touched + pooled + rois, operations)
        if direction == "fwd+bwd":
            rest = touched + rois if boxes else n * c * h * w * itemsize
            total += Cost(pooled + rois + rest, operations)
    return total


def _taps(level: RoiLevel, data: RoiInput) -> float:
    """Pixels under the kernels of all bins, per channel."""
    rows, columns = data.output_size
    scaled = level.boxes[:, 1:].double() * level.scale

    def along(low: torch.Tensor, high: torch.Tensor, bins: int, extent: int) -> torch.Tensor:
        ends = low[:, None] + (high - low)[:, None] * torch.arange(bins + 1) / bins
        first, last = ends[:, :-1].floor().clamp(min=0), ends[:, 1:].ceil().clamp(max=extent - 1)
        return (last - first + 1).clamp(min=0).sum(1)

    _, _, height, width = level.shape
    y = along(scaled[:, 1], scaled[:, 3], rows, height)
    return float((y * along(scaled[:, 0], scaled[:, 2], columns, width)).sum())
