"""Weighted, Softer and Cluster NMS; the peer is our own hard NMS, the price of the merging."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench import workloads
from bench.harness import EXACT, Case, Context, Trial
from bench.ops import nms as hard
from bench.workloads import NmsInput
from cvkernels import reference
from cvkernels.nms import nms

_REFERENCE_BOXES = 1000  # the pure-PyTorch loop takes a second above it


def cases() -> list[Case]:
    """Spread and crowded boxes."""
    found = []
    for function in ("weighted_nms", "softer_nms", "cluster_nms"):
        for name, make in (
            ("uniform", workloads.uniform),
            ("crowded", workloads.crowded),
        ):
            for n in (100, 1000, 10_000):
                workload = f"{function}_{name}_{n}"
                found.append(_case(workload, function, partial(make, n), quick=n == 1000))
    return found


def _case(
    workload: str, function: str, make: Callable[[], NmsInput], *, quick: bool = False
) -> Case:
    return Case(
        "weighted_nms",
        "fwd",
        "float32",
        workload,
        lambda c: trial(c, make(), function),
        quick=quick,
    )


def trial(context: Context, data: NmsInput, function: str) -> Trial:
    """One merging variant beside hard NMS on the same boxes; checked by the kept indices."""
    boxes, scores = data.boxes.to(context.device), data.scores.to(context.device)
    arguments: tuple[Any, ...] = (boxes, scores)
    options: dict[str, Any] = {}
    if function == "softer_nms":
        arguments = (boxes, scores, torch.full_like(boxes, 4.0))
    if function == "cluster_nms":
        options = {"mode": "weighted"}
    ours = context.libraries.our("weighted_nms", function)
    expected = None
    if len(scores) <= _REFERENCE_BOXES:
        twin = getattr(reference, function)
        expected = partial(twin, *(a.cpu() for a in arguments), data.threshold, **options)
    return Trial(
        ours=lambda: ours(*arguments, data.threshold, **options)[2],
        peers={"hard nms": lambda: nms(boxes, scores, data.threshold)},
        cost=hard.cost(len(scores)),
        match=EXACT,
        expected=(lambda: expected()[2]) if expected else None,
    )
