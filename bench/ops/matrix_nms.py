"""Matrix NMS against its formulation with whole matrices in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from bench import peers, workloads
from bench.harness import Case, Context, Trial
from bench.machine import Cost
from bench.workloads import NmsInput

_MATRIX_BOXES = 5000  # above it the matrices take gigabytes


def cases() -> list[Case]:
    """Both kernels, spread and crowded boxes."""
    found = []
    for kernel in ("gaussian", "linear"):
        for n in (100, 500, 2000, 5000, 20_000):
            make = partial(workloads.uniform, n)
            found.append(_case(f"{kernel}_uniform_{n}", kernel, make, quick=n == 500))
        found.append(_case(f"{kernel}_crowded_2000", kernel, partial(workloads.crowded, 2000)))
    return found


def _case(workload: str, kernel: str, make: Callable[[], NmsInput], *, quick: bool = False) -> Case:
    return Case(
        "matrix_nms", "fwd", "float32", workload, lambda c: trial(c, make(), kernel), quick=quick
    )


def trial(context: Context, data: NmsInput, kernel: str) -> Trial:
    """Ours and the matrices on one workload; checked by their scores."""
    boxes, scores = data.boxes.to(context.device), data.scores.to(context.device)
    ours = context.libraries.our("matrix_nms", "matrix_nms")
    found = {}
    if len(scores) <= _MATRIX_BOXES:
        found = {"torch matrices": lambda: peers.matrix_nms_torch(boxes, scores, kernel)[1]}
    return Trial(
        ours=lambda: ours(boxes, scores, kernel=kernel)[1],
        peers=found,
        cost=cost(len(scores)),
        match="float32",
    )


def cost(n: int) -> Cost:
    """Least work on boxes that hardly touch: order them, test each once, write the scores."""
    return Cost(bytes=(16 + 4 + 8 + 4) * n, flops=n * math.log2(max(n, 2)) + 13 * n)
