"""Rotated boxes: NMS of aerial and of evenly spread ones, IoU of all with all and of pairs."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench import workloads
from bench.harness import EXACT, Case, Context, Trial
from bench.machine import Cost
from bench.workloads import NmsInput
from cvkernels import reference

_REFERENCE_KEPT = 100  # the pure-PyTorch loop takes 5 ms for each box that it keeps
_CHECKED_BOXES = 2000  # above it the matrix of all overlaps in PyTorch takes seconds


def cases() -> list[Case]:
    """Every case; those named iou are calls of box_iou_rotated."""
    found = []
    for n in (10, 100, 1000, 10_000, 100_000, 1_000_000):
        make = partial(workloads.rotated_uniform, n)
        found.append(_nms(f"uniform_{n}", make, n, quick=n in (10, 1000)))
    for n in (2000, 20_000):
        make = partial(workloads.rotated_aerial, n)
        found.append(_nms(f"aerial_{n}", make, n // 8, quick=n == 2000))
    found.append(_iou("iou_1000x1000", _uniform_pair, quick=True))
    found.append(_iou("iou_anchors_21824x64", workloads.rotated_anchors))
    found.append(_iou("iou_aligned_100000", _aligned_pair, aligned=True))
    return found


def _nms(workload: str, make: Callable[[], NmsInput], objects: int, *, quick: bool = False) -> Case:
    def build(context: Context) -> Trial:
        data = make()
        n = len(data.boxes)
        boxes, scores = data.boxes.to(context.device), data.scores.to(context.device)
        idxs = None if data.idxs is None else data.idxs.to(context.device)
        peers = context.libraries.find("nms_rotated", "nms_rotated")
        if objects > _REFERENCE_KEPT:
            peers.pop("reference", None)

        def call(function: Callable[..., Tensor]) -> Callable[[], Tensor]:
            return lambda: function(boxes, scores, data.threshold, idxs=idxs)

        return Trial(
            ours=call(context.libraries.our("nms_rotated", "nms_rotated")),
            peers={name: call(peer) for name, peer in peers.items()},
            # Read the boxes and scores, order them, take sine and cosine (40 operations), test each
            # box once, and write the kept indices.
            cost=Cost(bytes=(20 + 4 + 8) * n, flops=n * (math.log2(max(n, 2)) + 40 + 200)),
            match=EXACT,
            expected=partial(_by_matrix, data) if n <= _CHECKED_BOXES else None,
        )

    return Case("nms_rotated", "fwd", "float32", workload, build, quick=quick)


def _by_matrix(data: NmsInput) -> Tensor:
    """The greedy rule on the reference's overlaps of all boxes with all."""
    over = reference.box_iou_rotated(data.boxes, data.boxes) > data.threshold
    if data.idxs is not None:
        over &= data.idxs[:, None] == data.idxs
    alive, kept = torch.ones(len(data.boxes), dtype=torch.bool), []
    for i in data.scores.argsort(descending=True, stable=True).tolist():
        if alive[i]:
            kept.append(i)
            alive &= ~over[i]
    return torch.tensor(kept, dtype=torch.int64)


def _iou(
    workload: str,
    make: Callable[[], tuple[Tensor, Tensor]],
    *,
    aligned: bool = False,
    quick: bool = False,
) -> Case:
    def build(context: Context) -> Trial:
        boxes1, boxes2 = (boxes.to(context.device) for boxes in make())
        n, m = len(boxes1), len(boxes2)
        pairs = n if aligned else n * m
        peers = context.libraries.find("nms_rotated", "box_iou_rotated")

        def call(function: Callable[..., Tensor]) -> Callable[[], Tensor]:
            return lambda: function(boxes1, boxes2, aligned=aligned)

        return Trial(
            ours=call(context.libraries.our("nms_rotated", "box_iou_rotated")),
            peers={name: call(peer) for name, peer in peers.items()},
            # Sine and cosine of each box; two coordinates tell most pairs apart.
            cost=Cost(bytes=20 * (n + m) + 4 * pairs, flops=40 * (n + m) + 4 * pairs),
            match="float32",
        )

    return Case("nms_rotated", "fwd", "float32", workload, build, quick=quick)


def _uniform_pair() -> tuple[Tensor, Tensor]:
    return workloads.rotated_uniform(1000).boxes, workloads.rotated_uniform(1000, seed=1).boxes


def _aligned_pair() -> tuple[Tensor, Tensor]:
    boxes = workloads.rotated_aerial(100_000).boxes
    return boxes, boxes + 0.25
