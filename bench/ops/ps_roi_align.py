"""Position-sensitive RoI Align: the heads of R-FCN, forward and with its gradient."""

from __future__ import annotations

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


def cases() -> list[Case]:
    """Every case of the operator."""
    found = []
    dtypes = [
        ("float32", False, True),
        ("float32", True, True),
        ("bfloat16", False, False),
        ("float16", False, False),
        ("float64", False, False),
    ]
    for direction in ("fwd", "fwd+bwd"):
        for dtype, channels_last, quick in dtypes:
            found.append(
                _case("rfcn_490", workloads.rfcn, direction, dtype, channels_last, quick=quick)
            )
        voc = partial(workloads.rfcn, output_channels=21)
        found.append(_case("rfcn_1029", voc, direction))
        found.append(_case("rfcn_1029", voc, direction, channels_last=True))
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
    return Case("ps_roi_align", direction, dtype, name, build, quick=quick)


def trial(
    context: Context, data: RoiInput, direction: str, dtype: str, *, channels_last: bool = False
) -> Trial:
    """Calls for one workload, all libraries on the same tensors and on the layout as given."""
    calls = Calls(data, direction, getattr(torch, dtype), context.device, channels_last)
    libraries = context.libraries
    peers = libraries.find("ps_roi_align", "ps_roi_align")
    if len(data.levels[0].boxes) > 10:
        peers.pop("reference", None)  # it would only slow the bench
    # torchvision computes half in half and has no bfloat16: the truth for both is its float32.
    truth = load(TORCHVISION, "ps_roi_align", "ps_roi_align")
    narrow = dtype in ("float16", "bfloat16")
    return Trial(
        ours=calls.of(libraries.our("ps_roi_align", "ps_roi_align")),
        peers={name: calls.of(function) for name, function in peers.items()},
        cost=cost(data, direction, calls.dtype.itemsize),
        match=dtype,
        expected=calls.widened().of(truth) if narrow and truth is not None else None,
    )


class Calls(roi_align.Calls):
    """The tensors of one workload, and calls on them."""

    def channels(self, level: RoiLevel) -> int:
        """One for all bins of an output channel."""
        return level.shape[1] // (self.data.output_size[0] * self.data.output_size[1])

    def arguments(self) -> tuple[Any, ...]:
        """Samples are always aligned."""
        return (self.data.sampling_ratio,)


def cost(data: RoiInput, direction: str, itemsize: int) -> Cost:
    """Least work: a value for each channel and box, from the samples of one bin.

    The gradient reads the output's gradient and writes the whole map, with as much arithmetic.
    """
    total = Cost(0, 0)
    for level in data.levels:
        n, c, h, w = level.shape
        boxes = len(level.boxes)
        pooled, rois = boxes * c * itemsize, 5 * boxes * itemsize
        touched = roi_align.touched_pixels(level) * c * itemsize
        flops = 8.0 * boxes * c * data.sampling_ratio**2
        total += Cost(touched + pooled + rois, flops)
        if direction == "fwd+bwd":
            total += Cost(pooled + rois + n * c * h * w * itemsize, flops)
    return total
