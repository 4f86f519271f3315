"""Soft-NMS: the definition, one selection after another."""

from __future__ import annotations

import torch
from torch import Tensor

from cvkernels import _checks
from cvkernels.reference._overlap import (
    Corners,
    arithmetic,
    at_least,
    corners,
    divisor,
    exponential,
    multiplied,
    overlap,
    stacked,
    weight,
)


def _factors(
    best: Corners,  # of one box
    boxes: Corners,  # of [N] boxes
    method: str,
    iou_threshold: float,
    sigma: float,
    criterion: str,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """[N] what the selected box multiplies scores by, and whether it removes a box at once."""
    value = overlap(best, boxes, criterion, beta)
    above = value.double() > iou_threshold  # as real numbers; false for NaN
    none = torch.zeros_like(above)
    w = weight(value)
    if method == "linear":
        return torch.where(above, 1 - w, 1.0), none
    if method == "gaussian":
        decay = exponential(-(w * w) / divisor(sigma, w.dtype))
        return torch.where(w > 0, decay, 1.0), none
    assert method == "hard"
    return torch.ones_like(w), above


def select(
    boxes: Tensor,  # [N, 4]
    scores: Tensor,  # [N]
    idxs: Tensor | None,  # [N]
    method: str,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    max_output: int | None,
    criterion: str,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """The loop of the paper for one image: indices and scores in the order of selection."""
    dtype = arithmetic(boxes, scores)
    sides = corners(boxes.detach().to(dtype))
    current = multiplied(scores).to(dtype)
    remaining = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    kept: list[int] = []
    selected: list[Tensor] = []
    while max_output is None or len(kept) < max_output:
        values = current.detach()
        remaining = remaining & at_least(values, min_score)
        if not bool(remaining.any()):
            break
        largest = values[remaining].max()
        best = int((remaining & (values == largest)).nonzero()[0])
        kept.append(best)
        selected.append(current[best])
        remaining[best] = False
        factors, removed = _factors(
            sides.at(best), sides, method, iou_threshold, sigma, criterion, beta
        )
        if idxs is not None:
            others = idxs != idxs[best]
            factors, removed = torch.where(others, 1.0, factors), removed & ~others
        current = current * factors
        remaining &= ~removed
    keep = torch.tensor(kept, dtype=torch.int64, device=scores.device)
    new_scores = torch.stack(selected) if selected else current[:0]
    return keep, new_scores.to(scores.dtype)


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    method: str = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    max_output: int | None = None,
    idxs: Tensor | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Repeatedly selects the box of the highest current score, and lowers those it overlaps.

    Args:
        boxes: [N, 4] corners (x1, y1, x2, y2), any float dtype.
        scores: [N], any float dtype. A NaN score takes no part.
        method: "linear" multiplies by 1 - overlap where overlap > iou_threshold, "gaussian" by
            exp(-overlap^2 / sigma), "hard" removes where overlap > iou_threshold.
        iou_threshold: any finite number.
        sigma: above 0.
        min_score: a box whose current score is not at least this is dropped for good; at least 0.
        max_output: stop after this many boxes over all classes; None has no limit.
        idxs: [N] classes, any integer dtype; boxes of different classes never interact.
        criterion: "iou", "giou", "diou" or "ciou": how overlap is measured.
        beta: exponent of the centre distance in "diou" and "ciou".

    Returns:
        keep: int64 [M], indices in the order of selection; of equal scores the lower index first.
        new_scores: [M] in the dtype of ``scores``, the current score of each at its selection.

    Raises:
        ValueError: wrong shape, dtype, device or value.
        TypeError: an argument of a wrong type.

    Gradient:
        new_scores to scores: the product of the weights, which count as constants; 0 where the
        score is 0 or infinite.

    Determinism:
        Exact.

    Source:
        Bodla et al. 2017, Soft-NMS (arXiv 1704.04503), figure 2 and equations 1 and 2.
    """
    _checks.soft_nms(
        boxes,
        scores,
        idxs,
        method,
        iou_threshold,
        sigma,
        min_score,
        max_output,
        criterion,
        beta,
    )
    return select(
        boxes,
        scores,
        idxs,
        method,
        iou_threshold,
        sigma,
        min_score,
        max_output,
        criterion,
        beta,
    )


def soft_nms_padded(
    boxes: Tensor,
    scores: Tensor,
    max_output: int,
    *,
    method: str = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    idxs: Tensor | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`soft_nms` of B images at once with a result of fixed size.

    Args:
        boxes: [B, N, 4] corners (x1, y1, x2, y2), any float dtype.
        scores: [B, N], any float dtype. A NaN score takes no part.
        max_output: columns of the result.
        method: "linear" multiplies by 1 - overlap where overlap > iou_threshold, "gaussian" by
            exp(-overlap^2 / sigma), "hard" removes where overlap > iou_threshold.
        iou_threshold: any finite number.
        sigma: above 0.
        min_score: a box whose current score is not at least this is dropped for good; at least 0.
        idxs: [B, N] classes, any integer dtype; boxes of different classes never interact.
        criterion: "iou", "giou", "diou" or "ciou": how overlap is measured.
        beta: exponent of the centre distance in "diou" and "ciou".

    Returns:
        keep: int64 [B, max_output], each row as :func:`soft_nms` gives it, followed by -1.
        new_scores: [B, max_output] in the dtype of ``scores``, followed by 0.
        count: int64 [B], how many of them are selected.

    Raises:
        ValueError: wrong shape, dtype, device or value.
        TypeError: an argument of a wrong type.

    Gradient:
        As :func:`soft_nms`.

    Determinism:
        Exact.

    Source:
        Bodla et al. 2017 (arXiv 1704.04503).
    """
    _checks.soft_nms(
        boxes,
        scores,
        idxs,
        method,
        iou_threshold,
        sigma,
        min_score,
        max_output,
        criterion,
        beta,
        op="soft_nms_padded",
    )
    rows = [
        select(
            boxes[image],
            scores[image],
            None if idxs is None else idxs[image],
            method,
            iou_threshold,
            sigma,
            min_score,
            max_output,
            criterion,
            beta,
        )
        for image in range(len(boxes))
    ]
    keep, new_scores = ([row[i] for row in rows] for i in (0, 1))
    indices = torch.zeros(len(boxes), 0, dtype=torch.int64, device=boxes.device)
    return (
        stacked(keep, max_output, -1, like=indices),
        stacked(new_scores, max_output, 0, like=scores),
        torch.tensor([len(row) for row in keep], dtype=torch.int64, device=boxes.device),
    )
