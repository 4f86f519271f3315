"""Weighted, Softer and Cluster NMS: the definitions, one kept box after another."""

from __future__ import annotations

import torch
from torch import Tensor

from cvkernels import _checks
from cvkernels.reference._overlap import (
    arithmetic,
    best_first,
    corners,
    divisor,
    exponential,
    multiplied,
    overlap,
    overlap_matrix,
    stacked,
    visit_order,
    weight,
)
from cvkernels.reference.nms import greedy, greedy_by_score
from cvkernels.reference.soft_nms import select


def _moved(box: Tensor, others: Tensor, own: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of a box [4] and others [M, 4], weights of shape [4] and [M, 4].

    The box as it is, per coordinate, where the weights sum to nothing positive.
    """
    total = own + weights.sum(0)
    pull = (weights * (others - box)).sum(0)
    return torch.where(total > 0, box + pull / torch.where(total > 0, total, 1.0), box)


def _merged(
    boxes: Tensor,  # [N, 4], arithmetic type
    scores: Tensor,  # [N], arithmetic type
    k: Tensor,  # index of the kept box
    members: Tensor,  # indices of the others
    criterion: str,
    beta: float,
) -> Tensor:
    """The kept box as the mean of its cluster, each weighted by score and overlap with it."""
    value = overlap(corners(boxes[k]), corners(boxes[members]), criterion, beta).detach()
    members = members[value > 0]  # the others weigh nothing, and their overlap has no gradient
    box = boxes[k] if len(members) > 0 else boxes[k].detach()  # an odd box: 0 * NaN
    w = scores[members] * overlap(corners(box), corners(boxes[members]), criterion, beta)
    return _moved(boxes[k], boxes[members], scores[k], w[:, None])


def _rows(boxes: Tensor, rows: list[Tensor], other: Tensor) -> Tensor:
    """[M, 4] of rows that depend on ``boxes`` and ``other``, if there are none too."""
    return torch.stack(rows) if rows else boxes[:0] + other.reshape(-1)[:0].reshape(0, 1)


def _weighted(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    max_output: int | None,
    criterion: str,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Merged boxes, scores and indices of one image."""
    dtype = arithmetic(boxes, scores)
    b, s = boxes.to(dtype), scores.to(dtype)
    order = visit_order(scores.detach())
    keep, owner = greedy(boxes, order, idxs, iou_threshold, max_output, criterion, beta)
    merged = []
    for row, k in enumerate(keep):
        members = order[(owner[order] == row) & (order != k)]
        merged.append(_merged(b, s, k, members, criterion, beta))
    return _rows(b, merged, s).to(boxes.dtype), scores[keep], keep


def weighted_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    idxs: Tensor | None = None,
    max_output: int | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Greedy NMS in which each kept box becomes the mean of the boxes that it stands for.

    The cluster of a kept box k is itself and the boxes that it is the first to suppress, those
    ranked after the last kept box of a limited output too. A member j weighs score_j times its
    overlap with k, k itself score_k; where the weights sum to nothing positive, k stays as it is.

    Args:
        boxes: [N, 4] corners (x1, y1, x2, y2), any float dtype.
        scores: [N], any float dtype. A NaN score takes no part.
        iou_threshold: suppress when overlap > iou_threshold; any finite number.
        idxs: [N] classes, any integer dtype; boxes of different classes never interact.
        max_output: stop after this many boxes over all classes; None keeps all.
        criterion: "iou", "giou", "diou" or "ciou": how overlap is measured.
        beta: exponent of the centre distance in "diou" and "ciou".

    Returns:
        boxes: [M, 4] in the dtype of ``boxes``, the merged boxes by descending score.
        scores: [M], the scores of the kept boxes.
        keep: int64 [M], the kept indices, as :func:`cvkernels.reference.nms` gives them.

    Raises:
        ValueError: wrong shape, dtype, device or value.
        TypeError: an argument of a wrong type.

    Gradient:
        Merged boxes to boxes and scores, through the overlaps too; scores to scores.

    Determinism:
        The indices exactly; merged boxes on CPU bitwise.

    Source:
        Zhou et al. 2017, CAD: scale invariant framework for real-time object detection (the
        weighted NMS of Inceptive).
    """
    _checks.weighted_nms(boxes, scores, idxs, iou_threshold, max_output, criterion, beta)
    return _weighted(boxes, scores, idxs, iou_threshold, max_output, criterion, beta)


def weighted_nms_padded(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_output: int,
    *,
    idxs: Tensor | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`weighted_nms` of B images at once with a result of fixed size.

    Args:
        boxes: [B, N, 4] corners (x1, y1, x2, y2), any float dtype.
        scores: [B, N], any float dtype. A NaN score takes no part.
        iou_threshold: suppress when overlap > iou_threshold; any finite number.
        max_output: columns of the result.
        idxs: [B, N] classes, any integer dtype; boxes of different classes never interact.
        criterion: "iou", "giou", "diou" or "ciou": how overlap is measured.
        beta: exponent of the centre distance in "diou" and "ciou".

    Returns:
        boxes: [B, max_output, 4], each row as :func:`weighted_nms` gives it, followed by 0.
        scores: [B, max_output], followed by 0.
        keep: int64 [B, max_output], followed by -1.
        count: int64 [B], how many are kept.

    Raises:
        ValueError: wrong shape, dtype, device or value.
        TypeError: an argument of a wrong type.

    Gradient:
        As :func:`weighted_nms`.

    Determinism:
        As :func:`weighted_nms`.

    Source:
        Zhou et al. 2017.
    """
    _checks.weighted_nms(
        boxes,
        scores,
        idxs,
        iou_threshold,
        max_output,
        criterion,
        beta,
        op="weighted_nms_padded",
    )
    rows = [
        _weighted(
            boxes[image],
            scores[image],
            None if idxs is None else idxs[image],
            iou_threshold,
            max_output,
            criterion,
            beta,
        )
        for image in range(len(boxes))
    ]
    merged, kept_scores, keep = ([row[i] for row in rows] for i in range(3))
    indices = torch.zeros(len(boxes), 0, dtype=torch.int64, device=boxes.device)
    return (
        stacked(merged, max_output, 0, like=boxes),
        stacked(kept_scores, max_output, 0, like=scores),
        stacked(keep, max_output, -1, like=indices),
        torch.tensor([len(row) for row in keep], dtype=torch.int64, device=boxes.device),
    )


def _voted(
    boxes: Tensor,  # [N, 4], arithmetic type
    variances: Tensor,  # [N, 4], arithmetic type
    voters: Tensor,  # indices of the boxes of its class
    k: Tensor,  # index of the kept box
    sigma_t: float,
) -> Tensor:
    """The kept box as each coordinate's mean, weighted by closeness and certainty."""
    value = overlap(corners(boxes[k]), corners(boxes[voters])).detach()
    voters = voters[(value > 0) & (voters != k)]
    box = boxes[k] if len(voters) > 0 else boxes[k].detach()  # an odd box: 0 * NaN
    apart = 1 - overlap(corners(box), corners(boxes[voters]))
    closeness = exponential(-(apart * apart) / divisor(sigma_t, boxes.dtype))

    def vote(closeness: Tensor, variance: Tensor) -> Tensor:
        certain = (variance > 0) & variance.isfinite()
        certain &= (closeness.detach() / variance.detach()).isfinite()
        return torch.where(certain, closeness / torch.where(certain, variance, 1.0), 0.0)

    own = vote(torch.ones_like(boxes[k]), variances[k])
    return _moved(boxes[k], boxes[voters], own, vote(closeness[:, None], variances[voters]))


def softer_nms(
    boxes: Tensor,
    scores: Tensor,
    variances: Tensor,
    iou_threshold: float,
    *,
    sigma_t: float = 0.02,
    method: str = "hard",
    sigma: float = 0.5,
    min_score: float = 1e-3,
    idxs: Tensor | None = None,
    max_output: int | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """NMS in which every box near a kept one votes on its coordinates, certain ones the most.

    A box j of the class of a kept box k votes on coordinate c of k with the weight
    exp(-(1 - IoU)^2 / sigma_t) / variance_jc if its IoU with k is above 0, whether j is kept or
    not; k itself has IoU 1. The kept box takes the weighted mean.

    Args:
        boxes: [N, 4] corners (x1, y1, x2, y2), any float dtype.
        scores: [N], any float dtype. A NaN score takes no part.
        variances: [N, 4], any float dtype: predicted variance of each coordinate. One that is not
            positive and finite does not vote.
        iou_threshold: of the suppression; any finite number.
        sigma_t: width of the vote in IoU, above 0.
        method: "hard" suppresses as :func:`cvkernels.reference.nms`, "linear" and "gaussian" lower
            scores as :func:`cvkernels.reference.soft_nms`.
        sigma: of the gaussian method, above 0.
        min_score: of the linear and gaussian methods, at least 0; not looked at by "hard".
        idxs: [N] classes, any integer dtype; boxes of different classes never interact.
        max_output: stop after this many boxes over all classes; None keeps all.
        criterion: "iou", "giou", "diou" or "ciou": how overlap is measured in the suppression. The
            vote is by IoU.
        beta: exponent of the centre distance in "diou" and "ciou".

    Returns:
        boxes: [M, 4] in the dtype of ``boxes``, the voted boxes in the order of selection.
        scores: [M] in the dtype of ``scores``: as given ("hard"), else as lowered.
        keep: int64 [M], the kept indices.

    Raises:
        ValueError: wrong shape, dtype, device or value.
        TypeError: an argument of a wrong type.

    Gradient:
        Voted boxes to boxes and variances, through the IoU too; scores to scores.

    Determinism:
        The indices exactly; voted boxes on CPU bitwise.

    Source:
        He et al. 2019, Bounding box regression with uncertainty (arXiv 1809.08545), algorithm 1.
    """
    _checks.softer_nms(
        boxes,
        scores,
        idxs,
        variances,
        iou_threshold,
        sigma,
        min_score,
        sigma_t,
        max_output,
        method,
        criterion,
        beta,
    )
    if method == "hard":
        keep = greedy_by_score(boxes, scores, idxs, iou_threshold, max_output, criterion, beta)
        new_scores = scores[keep]
    else:
        keep, new_scores = select(
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
    dtype = arithmetic(boxes, scores)
    b, v = boxes.to(dtype), variances.to(dtype)
    takes_part = ~scores.detach().isnan()
    voted = []
    for k in keep:
        voters = takes_part if idxs is None else takes_part & (idxs == idxs[k])
        voted.append(_voted(b, v, voters.nonzero().flatten(), k, sigma_t))
    return _rows(b, voted, v).to(boxes.dtype), new_scores, keep


def _fixpoint(
    boxes: Tensor,
    order: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    criterion: str,
    beta: float,
) -> Tensor:
    """Fast NMS over the whole overlap matrix, repeated by those it leaves until nothing changes."""
    b = boxes.detach().to(arithmetic(boxes))
    matrix = overlap_matrix(b, idxs, order, order, criterion, beta).double()
    above = (matrix > iou_threshold).triu(1).double()  # row: the better box
    left = torch.ones(len(order), dtype=torch.float64, device=boxes.device)
    while True:
        # A column is suppressed if any row that is left is above the threshold in it.
        again = ((left @ above) == 0).double()
        if torch.equal(again, left):
            return order[left.bool()]
        left = again


def cluster_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    mode: str = "hard",
    sigma: float = 0.2,
    min_score: float = 1e-3,
    idxs: Tensor | None = None,
    max_output: int | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fast NMS repeated until it changes nothing, which keeps what greedy NMS keeps.

    Args:
        boxes: [N, 4] corners (x1, y1, x2, y2), any float dtype.
        scores: [N], any float dtype. A NaN score takes no part.
        iou_threshold: suppress when overlap > iou_threshold; any finite number.
        mode: "hard" gives the kept boxes; "score_penalty" removes none of them, and multiplies the
            score of each box by exp(-overlap^2 / sigma) of every kept box of its class before it;
            "weighted" gives the kept boxes, each the mean of itself and all boxes of its class
            after it with overlap > iou_threshold, weighted by score and overlap.
        sigma: of the penalty, above 0.
        min_score: of the penalty, at least 0: new scores that are not at least this are left out.
        idxs: [N] classes, any integer dtype; boxes of different classes never interact.
        max_output: most boxes of the result over all classes; None has no limit.
        criterion: "iou", "giou", "diou" or "ciou": how overlap is measured.
        beta: exponent of the centre distance in "diou" and "ciou".

    Returns:
        boxes: [M, 4] in the dtype of ``boxes``.
        scores: [M] in the dtype of ``scores``.
        keep: int64 [M], their indices by descending (new) score, equal ones by index.

    Raises:
        ValueError: wrong shape, dtype, device or value.
        TypeError: an argument of a wrong type.

    Gradient:
        Boxes to boxes and, "weighted", to scores; scores to scores, weights being constants, 0
        where a penalised score is 0 or infinite.

    Determinism:
        The indices exactly; weighted boxes on CPU bitwise.

    Source:
        Zheng et al. 2020, Enhancing geometric factors (arXiv 2005.03572), section 4.
    """
    _checks.cluster_nms(
        boxes, scores, idxs, iou_threshold, sigma, min_score, max_output, mode, criterion, beta
    )
    order = visit_order(scores.detach())
    keep = _fixpoint(boxes, order, idxs, iou_threshold, criterion, beta)
    dtype = arithmetic(boxes, scores)
    if mode == "score_penalty":
        matrix = overlap_matrix(boxes.detach().to(dtype), idxs, order, order, criterion, beta)
        w = weight(matrix.triu(1))[torch.isin(order, keep)]  # [K, N], K before N
        decay = exponential(-(w * w).sum(0) / divisor(sigma, dtype))
        penalised = torch.full_like(scores, torch.nan, dtype=dtype)
        penalised = penalised.index_put((order,), multiplied(scores)[order].to(dtype) * decay).to(
            scores.dtype
        )
        keep = best_first(penalised.detach(), min_score, max_output)
        return boxes[keep], penalised[keep], keep
    keep = keep if max_output is None else keep[:max_output]
    if mode == "hard":
        return boxes[keep], scores[keep], keep
    b, s = boxes.to(dtype), scores.to(dtype)
    place = torch.full((len(boxes),), -1, dtype=torch.int64, device=boxes.device)
    place[order] = torch.arange(len(order), device=boxes.device)
    matrix = overlap_matrix(b.detach(), idxs, keep, order, criterion, beta).double()
    merged = []
    for row, k in enumerate(keep):
        members = order[(matrix[row] > iou_threshold) & (place[order] > place[k])]
        merged.append(_merged(b, s, k, members, criterion, beta))
    return _rows(b, merged, s).to(boxes.dtype), scores[keep], keep
