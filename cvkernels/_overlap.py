"""Overlap and the merge rules in torch, on pairs of boxes: what the backward passes differentiate.

The forward passes are the kernels; these formulas are those of csrc/common/box_overlap.h again,
and tests compare the two.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def overlap(a: Tensor, b: Tensor, criterion: str, beta: float) -> Tensor:
    """Overlap of boxes a [..., 4] and b [..., 4] that do intersect."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    size_a, size_b = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    inter = (high - low).prod(-1)
    union = size_a.prod(-1) + size_b.prod(-1) - inter
    iou = inter / union
    if criterion == "iou":
        return iou
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    if criterion == "giou":
        enclosing = hull.prod(-1)
        return iou - ((enclosing - union) / enclosing).clamp(min=0)  # below 0 by rounding only
    apart = ((a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) * 0.5).square().sum(-1)
    apart = apart / hull.square().sum(-1)
    if beta != 1:
        moved = apart > 0  # the power has no gradient at 0
        apart = torch.where(moved, torch.where(moved, apart, 1) ** beta, 0)
    if criterion == "diou":
        return iou - apart
    angle = torch.atan2(*size_a.unbind(-1)) - torch.atan2(*size_b.unbind(-1))
    v = angle.square() * (4 / math.pi**2)
    differ = v > 0
    bottom = torch.where(differ, 1 - iou + v, 1)
    return iou - apart - torch.where(differ, v * v / bottom, 0)


def touching(a: Tensor, b: Tensor) -> Tensor:
    """Whether boxes a [..., 4] and b [..., 4], finite and with an extent, intersect."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    solid = (a[..., 2:] > a[..., :2]).all(-1) & (b[..., 2:] > b[..., :2]).all(-1)
    finite = a.isfinite().all(-1) & b.isfinite().all(-1)
    return (high > low).all(-1) & solid & finite
