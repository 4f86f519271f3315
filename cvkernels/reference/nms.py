"""Non-maximum suppression: the definition, as a plain greedy loop."""

from __future__ import annotations

import torch
from torch import Tensor

from cvkernels import _checks
from cvkernels.reference._overlap import arithmetic, corners, overlap, visit_order


def greedy(
    boxes: Tensor,  # [N, 4]
    order: Tensor,  # indices of the boxes that take part, best first
    idxs: Tensor | None,  # [N]
    iou_threshold: float,
    max_output: int | None,
    criterion: str = "iou",
    beta: float = 1.0,
    *,
    densities: Tensor | None = None,  # [N]
    at_least: bool = False,  # suppress at the threshold too
) -> tuple[Tensor, Tensor]:
    """Kept indices in ``order``, and [N] who stands for a box: a place in them, or -1 for nobody.

    A box belongs to the first kept box that suppresses it. What the last kept box of a limited
    output suppresses still belongs to it. The arithmetic is float64 for float64 boxes, whatever the
    scores, so that all that select greedily select the same; densities are rounded to it.
    """
    b = boxes.detach().to(arithmetic(boxes))
    densities = None if densities is None else densities.detach().to(b.dtype)
    sides = corners(b).at(order)
    classes = None if idxs is None else idxs[order]
    owner = torch.full((len(order),), -1, dtype=torch.int64, device=boxes.device)
    kept: list[int] = []
    for i in range(len(order)):
        if max_output is not None and len(kept) >= max_output:
            break
        if owner[i] >= 0:
            continue
        later = slice(i + 1, None)
        value = overlap(sides.at(i), sides.at(later), criterion, beta).double()
        threshold = float(iou_threshold)
        if densities is not None and float(densities[order[i]]) > threshold:  # not if NaN
            threshold = float(densities[order[i]])
        suppressed = value >= threshold if at_least else value > threshold  # not if NaN
        if classes is not None:
            suppressed &= classes[later] == classes[i]
        owner[later][suppressed & (owner[later] < 0)] = len(kept)
        owner[i] = len(kept)
        kept.append(i)
    everyone = torch.full((len(boxes),), -1, dtype=torch.int64, device=boxes.device)
    everyone[order] = owner
    return order[kept], everyone


def greedy_by_score(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    max_output: int | None,
    criterion: str,
    beta: float,
    *,
    densities: Tensor | None = None,
) -> Tensor:
    """The loop of nms."""
    order = visit_order(scores.detach())
    return greedy(
        boxes, order, idxs, iou_threshold, max_output, criterion, beta, densities=densities
    )[0]


def _padded(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    max_output: int,
    criterion: str,
    beta: float,
) -> tuple[Tensor, Tensor]:
    keep = torch.full((len(boxes), max_output), -1, dtype=torch.int64, device=boxes.device)
    count = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    for image in range(len(boxes)):
        classes = None if idxs is None else idxs[image]
        row = greedy_by_score(
            boxes[image], scores[image], classes, iou_threshold, max_output, criterion, beta
        )
        keep[image, : len(row)] = row
        count[image] = len(row)
    return keep, count


def nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    max_output: int | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> Tensor:
    """Keeps, in score order, each box that no better kept box overlaps by more than a threshold.

    Args:
        boxes: [N, 4] corners (x1, y1, x2, y2), any float dtype.
        scores: [N], any float dtype. A NaN score is never kept and suppresses nothing.
        iou_threshold: suppress when overlap > iou_threshold; any finite number.
        max_output: stop after this many boxes; None keeps all.
        criterion: "iou", "giou", "diou" or "ciou": how overlap is measured.
        beta: exponent of the centre distance in "diou" and "ciou".

    Returns:
        int64 indices of the kept boxes by descending score, equal scores by ascending index.

    Raises:
        ValueError: wrong shape, dtype, device or value.
        TypeError: an argument of a wrong type.

    Gradient:
        None: the result is a set of indices.

    Determinism:
        Exact.

    Source:
        The greedy rule of torchvision.ops.nms 0.29.1; the criteria from Rezatofighi et al. 2019
        (arXiv 1902.09630) and Zheng et al. 2020 (arXiv 1911.08287).
    """
    _checks.nms(boxes, scores, None, iou_threshold, max_output, criterion, beta)
    return greedy_by_score(boxes, scores, None, iou_threshold, max_output, criterion, beta)


def batched_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    iou_threshold: float,
    *,
    max_output: int | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> Tensor:
    """:func:`nms` in which boxes of different classes never interact.

    Args:
        boxes: [N, 4] corners (x1, y1, x2, y2), any float dtype.
        scores: [N], any float dtype.
        idxs: [N] class of each box, any integer dtype and any value.
        iou_threshold: suppress when overlap > iou_threshold; any finite number.
        max_output: stop after this many boxes over all classes; None keeps all.
        criterion: "iou", "giou", "diou" or "ciou": how overlap is measured.
        beta: exponent of the centre distance in "diou" and "ciou".

    Returns:
        int64 indices of the kept boxes of all classes by descending score.

    Raises:
        ValueError: wrong shape, dtype, device or value.
        TypeError: an argument of a wrong type.

    Gradient:
        None: the result is a set of indices.

    Determinism:
        Exact.

    Source:
        The intent of torchvision.ops.batched_nms 0.29.1, without its coordinate offsets.
    """
    _checks.nms(boxes, scores, idxs, iou_threshold, max_output, criterion, beta, op="batched_nms")
    return greedy_by_score(boxes, scores, idxs, iou_threshold, max_output, criterion, beta)


def nms_padded(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_output: int,
    *,
    idxs: Tensor | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """:func:`nms` of B images at once with a result of fixed size.

    Args:
        boxes: [B, N, 4] corners (x1, y1, x2, y2), any float dtype.
        scores: [B, N], any float dtype.
        iou_threshold: suppress when overlap > iou_threshold; any finite number.
        max_output: columns of the result.
        idxs: [B, N] classes, any integer dtype; None for one class.
        criterion: "iou", "giou", "diou" or "ciou": how overlap is measured.
        beta: exponent of the centre distance in "diou" and "ciou".

    Returns:
        keep int64 [B, max_output], each row the kept indices of its image followed by -1, and
        count int64 [B], how many of them are kept indices.

    Raises:
        ValueError: wrong shape, dtype, device or value.
        TypeError: an argument of a wrong type.

    Gradient:
        None: the result is a set of indices.

    Determinism:
        Exact.

    Source:
        Ours; each row is :func:`nms` with ``max_output``.
    """
    _checks.nms_padded(boxes, scores, idxs, iou_threshold, max_output, criterion, beta)
    return _padded(boxes, scores, idxs, iou_threshold, max_output, criterion, beta)


def diou_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    beta: float = 1.0,
    idxs: Tensor | None = None,
    max_output: int | None = None,
) -> Tensor:
    """:func:`nms` by IoU less the distance of the centres: two objects side by side both stay.

    Args:
        boxes: [N, 4] corners (x1, y1, x2, y2), any float dtype.
        scores: [N], any float dtype. A NaN score is never kept and suppresses nothing.
        iou_threshold: suppress when IoU - (d^2 / c^2)^beta > iou_threshold, d the distance of the
            two centres and c the diagonal of the smallest box around both; any finite number.
        beta: exponent of the distance, above 0.
        idxs: [N] classes, any integer dtype; None for one class.
        max_output: stop after this many boxes over all classes; None keeps all.

    Returns:
        int64 indices of the kept boxes by descending score, equal scores by ascending index.

    Raises:
        ValueError: wrong shape, dtype, device or value.
        TypeError: an argument of a wrong type.

    Gradient:
        None: the result is a set of indices.

    Determinism:
        Exact.

    Source:
        Zheng et al. 2020, Distance-IoU loss (arXiv 1911.08287), equation 12.
    """
    _checks.nms(boxes, scores, idxs, iou_threshold, max_output, "diou", beta, op="diou_nms")
    return greedy_by_score(boxes, scores, idxs, iou_threshold, max_output, "diou", beta)


def diou_nms_padded(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_output: int,
    *,
    beta: float = 1.0,
    idxs: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`diou_nms` of B images at once with a result of fixed size.

    Args:
        boxes: [B, N, 4] corners (x1, y1, x2, y2), any float dtype.
        scores: [B, N], any float dtype.
        iou_threshold: as in :func:`diou_nms`.
        max_output: columns of the result.
        beta: exponent of the distance, above 0.
        idxs: [B, N] classes, any integer dtype; None for one class.

    Returns:
        keep int64 [B, max_output], each row the kept indices of its image followed by -1, and
        count int64 [B], how many of them are kept indices.

    Raises:
        ValueError: wrong shape, dtype, device or value.
        TypeError: an argument of a wrong type.

    Gradient:
        None: the result is a set of indices.

    Determinism:
        Exact.

    Source:
        Zheng et al. 2020 (arXiv 1911.08287).
    """
    _checks.nms_padded(
        boxes, scores, idxs, iou_threshold, max_output, "diou", beta, op="diou_nms_padded"
    )
    return _padded(boxes, scores, idxs, iou_threshold, max_output, "diou", beta)


def adaptive_nms(
    boxes: Tensor,
    scores: Tensor,
    densities: Tensor,
    iou_threshold: float,
    *,
    idxs: Tensor | None = None,
    max_output: int | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> Tensor:
    """:func:`nms` with a higher threshold where objects are crowded.

    Args:
        boxes: [N, 4] corners (x1, y1, x2, y2), any float dtype.
        scores: [N], any float dtype. A NaN score is never kept and suppresses nothing.
        densities: [N], any float dtype: the largest overlap of each box's object with another
            object, as predicted. NaN counts as no density.
        iou_threshold: a kept box suppresses at overlap > max(iou_threshold, its density); any
            finite number.
        idxs: [N] classes, any integer dtype; None for one class.
        max_output: stop after this many boxes over all classes; None keeps all.
        criterion: "iou", "giou", "diou" or "ciou": how overlap is measured.
        beta: exponent of the centre distance in "diou" and "ciou".

    Returns:
        int64 indices of the kept boxes by descending score, equal scores by ascending index.

    Raises:
        ValueError: wrong shape, dtype, device or value.
        TypeError: an argument of a wrong type.

    Gradient:
        None: the result is a set of indices.

    Determinism:
        Exact.

    Source:
        Liu et al. 2019, Adaptive NMS (arXiv 1904.03629), equations 3 and 4.
    """
    _checks.nms(
        boxes,
        scores,
        idxs,
        iou_threshold,
        max_output,
        criterion,
        beta,
        densities,
        op="adaptive_nms",
    )
    return greedy_by_score(
        boxes,
        scores,
        idxs,
        iou_threshold,
        max_output,
        criterion,
        beta,
        densities=densities,
    )


def nms_match(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    idxs: Tensor | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> list[Tensor]:
    """The boxes that each kept box stands for.

    Args:
        boxes: [N, 4] corners (x1, y1, x2, y2), any float dtype.
        scores: [N], any float dtype. A box with a NaN score is in no group.
        iou_threshold: suppress when overlap >= iou_threshold; any finite number.
        idxs: [N] classes, any integer dtype; None for one class.
        criterion: "iou", "giou", "diou" or "ciou": how overlap is measured.
        beta: exponent of the centre distance in "diou" and "ciou".

    Returns:
        One int64 tensor per kept box, by descending score: its index, then the indices of the
        boxes that it was the first to suppress, by descending score, equal scores by index.

    Raises:
        ValueError: wrong shape, dtype, device or value.
        TypeError: an argument of a wrong type.

    Gradient:
        None: the result is a set of indices.

    Determinism:
        Exact.

    Source:
        mmcv.ops.nms_match 2.2.0.
    """
    _checks.nms_match(boxes, scores, idxs, iou_threshold, criterion, beta)
    order = visit_order(scores.detach())
    keep, owner = greedy(boxes, order, idxs, iou_threshold, None, criterion, beta, at_least=True)
    return [order[owner[order] == k] for k in range(len(keep))]


def iou_guided_nms(
    boxes: Tensor,
    scores: Tensor,
    localization: Tensor,
    iou_threshold: float,
    *,
    idxs: Tensor | None = None,
    max_output: int | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Keeps the best placed box of each cluster, with the best score in the cluster.

    Args:
        boxes: [N, 4] corners (x1, y1, x2, y2), any float dtype.
        scores: [N], any float dtype. A NaN score takes no part.
        localization: [N], any float dtype: predicted IoU of each box with its object, by which
            boxes are ranked. A box whose localization is NaN takes no part.
        iou_threshold: suppress when overlap > iou_threshold; any finite number.
        idxs: [N] classes, any integer dtype; None for one class.
        max_output: stop after this many boxes over all classes; None keeps all.
        criterion: "iou", "giou", "diou" or "ciou": how overlap is measured.
        beta: exponent of the centre distance in "diou" and "ciou".

    Returns:
        keep: int64 [M], the kept indices by descending localization, equal ones by index.
        new_scores: [M] in the dtype of ``scores``, the largest score among a kept box and the
        boxes that it was the first to suppress.

    Raises:
        ValueError: wrong shape, dtype, device or value.
        TypeError: an argument of a wrong type.

    Gradient:
        new_scores to scores: of the box that gives the score, shared evenly by equal ones.

    Determinism:
        Exact.

    Source:
        Jiang et al. 2018, IoU-Net (arXiv 1807.11590), algorithm 1.
    """
    _checks.iou_guided_nms(
        boxes, scores, idxs, localization, iou_threshold, max_output, criterion, beta
    )
    no_part = scores.detach().isnan()
    order = visit_order(torch.where(no_part, torch.nan, localization.detach()))
    keep, owner = greedy(boxes, order, idxs, iou_threshold, max_output, criterion, beta)
    best = [scores[owner == k].amax() for k in range(len(keep))]
    return keep, torch.stack(best) if best else scores[:0]
