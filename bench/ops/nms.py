"""NMS and batched NMS: proposals, detections, and boxes from sparse to crowded."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench import workloads
from bench.harness import EXACT, Case, Context, Trial
from bench.libraries import TORCHVISION, load
from bench.machine import Cost
from bench.workloads import NmsInput

_REFERENCE_BOXES = 1000  # above it the pure-PyTorch reference would only slow the bench
_TORCHVISION_BOXES = 100_000  # above it torchvision takes minutes, and on CUDA gigabytes


def cases() -> list[Case]:
    """Every NMS case; those with classes are calls of batched_nms."""
    found = []
    for n in (10, 100, 1000, 4000, 12_000, 100_000):
        make = partial(workloads.uniform, n)
        found.append(_case(f"uniform_{n}", make, quick=n <= 12_000))
    for n in (10, 100, 1000, 10_000, 30_000):
        make = partial(workloads.crowded, n)
        found.append(_case(f"crowded_{n}", make, quick=n in (10, 1000)))
    for n in (1000, 10_000, 100_000, 1_000_000):
        make = partial(workloads.constant_density, n)
        # torchvision keeps, and so compares, nearly all of them: a minute at 100,000.
        found.append(_case(f"constant_density_{n}", make, peer_limit=10_000))
    for n in (10, 100, 1000, 10_000, 100_000):
        make = partial(workloads.uniform, n, classes=80)
        found.append(_case(f"batched_80_uniform_{n}", make, quick=n in (10, 1000)))
    found.append(_case("batched_aerial_1000", workloads.aerial))
    found.append(_case("batched_rpn_1000", workloads.rpn, quick=True))
    found.append(_case("batched_rpn_2000", partial(workloads.rpn, 2000)))
    found.append(_case("batched_retinanet", workloads.retinanet))
    found.append(_case("batched_yolo_8400", workloads.yolo, quick=True))
    return found


def _case(
    workload: str,
    make: Callable[[], NmsInput],
    *,
    quick: bool = False,
    peer_limit: int = _TORCHVISION_BOXES,
) -> Case:
    def build(context: Context) -> Trial:
        return trial(context, make(), peer_limit=peer_limit)

    return Case("nms", "fwd", "float32", workload, build, quick=quick)


def trial(context: Context, data: NmsInput, *, peer_limit: int = _TORCHVISION_BOXES) -> Trial:
    """Calls for one workload; classes make it batched_nms.

    The truth of batched_nms is a loop over classes: torchvision's coordinate trick rounds. Above
    `peer_limit` boxes torchvision does not take part.
    """
    n = len(data.boxes)
    batched = data.idxs is not None
    function = "batched_nms" if batched else "nms"
    peers = context.libraries.find("nms", function)
    if n > _REFERENCE_BOXES:
        peers.pop("reference", None)
    if n > peer_limit:
        peers.pop("torchvision", None)
    arguments = [data.boxes.to(context.device), data.scores.to(context.device)]
    if data.idxs is not None:
        arguments.append(data.idxs.to(context.device))
    truth = _per_class if batched and peers and load(TORCHVISION, "nms", "nms") else None

    def call(implementation: Callable[..., Any]) -> Callable[[], Any]:
        return lambda: implementation(*arguments, data.threshold)

    return Trial(
        ours=call(context.libraries.our("nms", function)),
        peers={name: call(peer) for name, peer in peers.items()},
        cost=cost(n),
        match=EXACT,
        expected=None if truth is None else call(truth),
        note=_strategy(n, context.device) if batched and "torchvision" in peers else "",
    )


def _per_class(
    boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, threshold: float
) -> torch.Tensor:
    """Exact batched NMS: torchvision's NMS on each class by itself."""
    from torchvision.ops import nms

    kept = []
    for label in torch.unique(idxs):
        members = (idxs == label).nonzero()[:, 0]
        kept.append(members[nms(boxes[members], scores[members], threshold)])
    keep = torch.cat(kept)
    return keep[scores[keep].argsort(descending=True, stable=True)]


def _strategy(n: int, device: torch.device) -> str:
    """Which of its two ways torchvision's batched_nms takes."""
    limit = 4000 if device.type == "cpu" else 100_000
    return f"torchvision: {'loop over classes' if 4 * n > limit else 'coordinate trick'}"


def cost(n: int) -> Cost:
    """Least work of an exact NMS on boxes that hardly touch; crowded boxes need far more.

    Read the boxes and scores, order them (n log2 n comparisons), test each box once (13
    operations), and write the kept indices.
    """
    return Cost(bytes=(16 + 4 + 8) * n, flops=n * math.log2(max(n, 2)) + 13 * n)
