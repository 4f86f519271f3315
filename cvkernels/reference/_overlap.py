"""What the references of the NMS family share: arithmetic, overlaps, order and classes.

A selection depends on rounding, so these references do not compute in float64: they compute in the
arithmetic type of their inputs, with one rounding per operation. Thresholds and least scores are
compared as real numbers (both sides widened to float64). Elementary functions are evaluated in
float64 and rounded once.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Corners(NamedTuple):
    """The sides of boxes and their areas, each of the shape of the boxes without its last size."""

    x1: Tensor
    y1: Tensor
    x2: Tensor
    y2: Tensor
    area: Tensor

    def at(self, *index: Any) -> Corners:
        """Those boxes."""
        return Corners(*(side[index] for side in self))


def arithmetic(*tensors: Tensor) -> torch.dtype:
    """The type in which tensors of these dtypes are computed with: float64 if any of them is."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def corners(boxes: Tensor) -> Corners:
    """The sides of boxes [..., 4]."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return Corners(x1, y1, x2, y2, (x2 - x1) * (y2 - y1))


def power(x: Tensor, exponent: float) -> Tensor:
    """``x ** exponent`` for x >= 0; at 0 the gradient counts as 0."""
    positive = x > 0
    safe = torch.where(positive, x, 1.0)
    return torch.where(positive, (safe.double() ** exponent).to(x.dtype), x)


def exponential(x: Tensor) -> Tensor:
    """The number e to the power of x <= 0; 0 from -87 (float64: -708) on, ahead of subnormals."""
    least = -708.0 if x.dtype == torch.float64 else -87.0
    return torch.where(x > least, x.clamp(min=least).double().exp().to(x.dtype), 0.0)


def divisor(sigma: float, dtype: torch.dtype) -> float:
    """``sigma`` as a divisor in ``dtype``, in which it must become neither 0 nor infinite."""
    limits = torch.finfo(dtype)
    return min(max(sigma, limits.tiny), limits.max)


def overlap(a: Corners, b: Corners, criterion: str = "iou", beta: float = 1.0) -> Tensor:
    """How much boxes overlap, at most their IoU; shapes broadcast. NaN (0/0) is no overlap."""
    width = (torch.minimum(a.x2, b.x2) - torch.maximum(a.x1, b.x1)).clamp(min=0)
    height = (torch.minimum(a.y2, b.y2) - torch.maximum(a.y1, b.y1)).clamp(min=0)
    intersection = width * height
    union = a.area + b.area - intersection
    iou = intersection / union
    if criterion == "iou":
        return iou
    # The smallest box that encloses both.
    width = torch.maximum(a.x2, b.x2) - torch.minimum(a.x1, b.x1)
    height = torch.maximum(a.y2, b.y2) - torch.minimum(a.y1, b.y1)
    if criterion == "giou":
        enclosing = width * height
        return iou - ((enclosing - union) / enclosing).clamp(min=0)  # below 0 by rounding only
    dx = ((a.x1 + a.x2) - (b.x1 + b.x2)) / 2  # between the centres
    dy = ((a.y1 + a.y2) - (b.y1 + b.y2)) / 2
    apart = (dx * dx + dy * dy) / (width * width + height * height)
    diou = iou - (apart if beta == 1 else power(apart, beta))
    if criterion == "diou":
        return diou
    assert criterion == "ciou"
    angle_a = ((a.x2 - a.x1) / (a.y2 - a.y1)).double().atan().to(iou.dtype)
    angle_b = ((b.x2 - b.x1) / (b.y2 - b.y1)).double().atan().to(iou.dtype)
    angle = angle_a - angle_b
    v = angle * angle * (4 / math.pi**2)
    differs = v > 0
    penalty = v * v / torch.where(differs, (1 - iou) + v, 1.0)
    return torch.where(differs, diou - penalty, diou)


def weight(overlap: Tensor) -> Tensor:
    """An overlap as a weight: 0 where it is negative or NaN."""
    return torch.where(overlap > 0, overlap, 0.0)


def multiplied(scores: Tensor) -> Tensor:
    """Scores that are to be multiplied by factors, those of 0 and infinity without a gradient."""
    return torch.where((scores == 0) | scores.isinf(), scores.detach(), scores)


def visit_order(scores: Tensor) -> Tensor:
    """Indices by descending score, equal scores by ascending index, NaN scores left out."""
    candidates = (~scores.isnan()).nonzero().flatten()
    return candidates[scores[candidates].sort(descending=True, stable=True).indices]


def at_least(scores: Tensor, min_score: float) -> Tensor:
    """Whether scores are >= min_score, as real numbers; not if NaN."""
    return scores.double() >= min_score


def best_first(new_scores: Tensor, min_score: float, max_output: int | None) -> Tensor:
    """Indices of scores >= min_score by descending score, equal ones by ascending index."""
    order = visit_order(new_scores)
    order = order[at_least(new_scores[order], min_score)]
    return order if max_output is None else order[:max_output]


def same_class(idxs: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """[len(a), len(b)]: whether boxes a[i] and b[j] are of one class."""
    if idxs is None:
        return torch.ones(len(a), len(b), dtype=torch.bool, device=a.device)
    return idxs[a][:, None] == idxs[b][None, :]


def overlap_matrix(
    boxes: Tensor,  # [N, 4], arithmetic type
    idxs: Tensor | None,  # [N]
    a: Tensor,  # [A] indices
    b: Tensor,  # [B] indices
    criterion: str,
    beta: float,
) -> Tensor:
    """[A, B] overlaps of boxes a[i] and b[j], NaN for boxes of different classes."""
    sides = corners(boxes)
    matrix = overlap(sides.at(a, None), sides.at(None, b), criterion, beta)
    return torch.where(same_class(idxs, a, b), matrix, math.nan)


def stacked(rows: list[Tensor], length: int, fill: float, *, like: Tensor) -> Tensor:
    """Tensors [M_b, ...] as one [B, length, ...], filled up; where B is 0, from ``like``."""
    if not rows:
        return like.reshape(0, length, *like.shape[2:])
    return torch.stack(
        [torch.cat([r, r.new_full((length - len(r), *r.shape[1:]), fill)]) for r in rows]
    )
