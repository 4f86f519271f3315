"""Soft-NMS against the paper's loop in NumPy and in plain C++; on CUDA against nothing.

The loops run on the CPU: a device's clock would see them wait, so there they are the truth only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from bench import peers, workloads
from bench.harness import Case, Context, Trial
from bench.machine import Cost
from bench.workloads import NmsInput

_NUMPY_BOXES = 10_000  # above it the loops take seconds a call


def cases() -> list[Case]:
    """Both methods, spread and crowded boxes."""
    found = []
    for method in ("linear", "gaussian"):
        for n in (10, 100, 1000, 5000, 20_000, 100_000):
            make = partial(workloads.uniform, n)
            found.append(_case(f"{method}_uniform_{n}", method, make, quick=n in (100, 1000)))
        for n in (1000, 5000):
            found.append(_case(f"{method}_crowded_{n}", method, partial(workloads.crowded, n)))
    return found


def _case(workload: str, method: str, make: Callable[[], NmsInput], *, quick: bool = False) -> Case:
    return Case(
        "soft_nms", "fwd", "float32", workload, lambda c: trial(c, make(), method), quick=quick
    )


def trial(context: Context, data: NmsInput, method: str) -> Trial:
    """Ours and the loops on one workload; checked by their scores."""
    boxes, scores = data.boxes.to(context.device), data.scores.to(context.device)
    ours = context.libraries.our("soft_nms", "soft_nms")
    loops = {}
    if len(scores) <= _NUMPY_BOXES:
        loops = {
            "plain C++": lambda: peers.soft_nms_plain(data.boxes, data.scores, method)[1],
            "numpy": lambda: peers.soft_nms_numpy(data.boxes, data.scores, method)[1],
        }
    return Trial(
        ours=lambda: ours(boxes, scores, method=method)[1],
        peers=loops if context.device.type == "cpu" else {},
        cost=cost(len(scores)),
        match="float32",
        expected=loops.get("plain C++"),
    )


def cost(n: int) -> Cost:
    """Least work on boxes that hardly touch: that of hard NMS, and the scores written."""
    return Cost(bytes=(16 + 4 + 8 + 4) * n, flops=n * math.log2(max(n, 2)) + 13 * n)
