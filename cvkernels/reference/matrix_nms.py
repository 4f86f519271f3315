"""Matrix NMS: the definition, over the whole matrix of overlaps."""

from __future__ import annotations

import torch
from torch import Tensor

from cvkernels import _checks
from cvkernels.reference._overlap import (
    arithmetic,
    best_first,
    divisor,
    exponential,
    multiplied,
    overlap_matrix,
    same_class,
    visit_order,
    weight,
)


def _decay(overlaps: Tensor, kernel: str, sigma: float) -> Tensor:
    """[N] factors from overlaps [N, N] of boxes in score order, NaN where they do not interact."""
    count = len(overlaps)
    before = torch.ones_like(overlaps, dtype=torch.bool).triu(1)  # row i before column j
    o = torch.where(before, weight(overlaps), 0.0)
    if count == 0:
        return overlaps.new_ones(0)
    compensation = o.max(0).values[:, None]  # of i, by the boxes before it
    if kernel == "gaussian":
        difference = torch.where(before, o * o - compensation * compensation, 0.0)
        largest = difference.nan_to_num(nan=0.0).clamp(min=0).max(0).values
        return exponential(-largest / divisor(sigma, o.dtype))
    assert kernel == "linear"
    counts = before & (compensation < 1)
    ratio = (1 - o) / torch.where(compensation < 1, 1 - compensation, 1.0)
    return torch.where(counts, ratio, 1.0).clamp(0, 1).min(0).values


def _rescored(
    overlaps: Tensor,  # [n, n] of the boxes in `order`, arithmetic type
    order: Tensor,  # [n]
    scores: Tensor,  # [N]
    kernel: str,
    sigma: float,
    min_score: float,
    max_output: int | None,
) -> tuple[Tensor, Tensor]:
    new_scores = torch.full_like(scores, torch.nan, dtype=overlaps.dtype)
    decayed = multiplied(scores)[order].to(overlaps.dtype) * _decay(overlaps, kernel, sigma)
    new_scores = new_scores.index_put((order,), decayed).to(scores.dtype)
    keep = best_first(new_scores.detach(), min_score, max_output)
    return keep, new_scores[keep]


def matrix_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    kernel: str = "gaussian",
    sigma: float = 0.5,
    min_score: float = 1e-3,
    max_output: int | None = None,
    idxs: Tensor | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Lowers every score at once, by the overlaps with better boxes.

    With f(x) = 1 - x (linear) or exp(-x^2 / sigma) (gaussian) of an overlap that counts as 0 where
    it is negative or NaN, a score is multiplied by the least f(overlap(i, j)) / f(compensation_i)
    over the better boxes i of its class, at most 1; compensation_i is the largest overlap of i
    with a box better than i. A linear compensation of 1 makes i say nothing.

    Args:
        boxes: [N, 4] corners (x1, y1, x2, y2), any float dtype.
        scores: [N], any float dtype. A NaN score takes no part.
        kernel: "linear" or "gaussian".
        sigma: of the gaussian kernel, above 0. SOLOv2's code multiplies by 2.0, which is 0.5 here.
        min_score: new scores that are not at least this are left out; at least 0.
        max_output: most boxes of the result over all classes; None has no limit.
        idxs: [N] classes, any integer dtype; boxes of different classes never interact.
        criterion: "iou", "giou", "diou" or "ciou": how overlap is measured.
        beta: exponent of the centre distance in "diou" and "ciou".

    Returns:
        keep: int64 [M], indices by descending new score, equal ones by index.
        new_scores: [M] in the dtype of ``scores``.

    Raises:
        ValueError: wrong shape, dtype, device or value.
        TypeError: an argument of a wrong type.

    Gradient:
        new_scores to scores, the decay being a constant; 0 where the score is 0 or infinite.

    Determinism:
        Exact.

    Source:
        Wang et al. 2020, SOLOv2 (arXiv 2003.10152), equations 4 and 5.
    """
    _checks.matrix_nms(boxes, scores, idxs, sigma, min_score, max_output, kernel, criterion, beta)
    order = visit_order(scores.detach())
    b = boxes.detach().to(arithmetic(boxes, scores))
    overlaps = overlap_matrix(b, idxs, order, order, criterion, beta)
    return _rescored(overlaps, order, scores, kernel, sigma, min_score, max_output)


def matrix_nms_from_overlaps(
    overlaps: Tensor,
    scores: Tensor,
    *,
    kernel: str = "gaussian",
    sigma: float = 0.5,
    min_score: float = 1e-3,
    max_output: int | None = None,
    idxs: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`matrix_nms` over overlaps that are given, of masks for instance.

    Args:
        overlaps: [N, N], any float dtype. overlaps[i, j] is read where i is ranked before j.
        scores: [N], any float dtype. A NaN score takes no part.
        kernel: "linear" or "gaussian".
        sigma: of the gaussian kernel, above 0.
        min_score: new scores that are not at least this are left out; at least 0.
        max_output: most boxes of the result over all classes; None has no limit.
        idxs: [N] classes, any integer dtype; boxes of different classes never interact.

    Returns:
        keep: int64 [M], indices by descending new score, equal ones by index.
        new_scores: [M] in the dtype of ``scores``.

    Raises:
        ValueError: wrong shape, dtype, device or value.
        TypeError: an argument of a wrong type.

    Gradient:
        new_scores to scores, the decay being a constant; 0 where the score is 0 or infinite.

    Determinism:
        Exact.

    Source:
        Wang et al. 2020 (arXiv 2003.10152).
    """
    _checks.matrix_nms_from_overlaps(overlaps, scores, idxs, sigma, min_score, max_output, kernel)
    order = visit_order(scores.detach())
    o = overlaps.detach().to(arithmetic(overlaps, scores))[order][:, order]
    o = torch.where(same_class(idxs, order, order), o, torch.nan)
    return _rescored(o, order, scores, kernel, sigma, min_score, max_output)
