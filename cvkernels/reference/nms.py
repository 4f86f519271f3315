"""Non-maximum suppression: the definition, as a plain greedy loop."""

from __future__ import annotations

import torch
from torch import Tensor

from cvkernels import _checks


def _visit_order(scores: Tensor) -> Tensor:
    """Indices by descending score, equal scores by ascending index, NaN scores left out."""
    candidates = (~scores.isnan()).nonzero().flatten()
    return candidates[scores[candidates].sort(descending=True, stable=True).indices]


def _greedy(
    boxes: Tensor,  # [N, 4]
    scores: Tensor,  # [N]
    idxs: Tensor | None,  # [N]
    iou_threshold: float,
    max_output: int | None,
) -> Tensor:
    order = _visit_order(scores)
    # IoU is float32 arithmetic (float64 for float64 boxes), one rounding per operation, and is
    # compared with the threshold as a real number (both widened to float64).
    b = boxes.to(torch.promote_types(boxes.dtype, torch.float32))[order]
    x1, y1, x2, y2 = b.unbind(1)
    area = (x2 - x1) * (y2 - y1)
    classes = None if idxs is None else idxs[order]
    suppressed = torch.zeros(len(order), dtype=torch.bool, device=boxes.device)
    kept: list[int] = []
    for i in range(len(order)):
        if max_output is not None and len(kept) >= max_output:
            break
        if suppressed[i]:
            continue
        kept.append(i)
        width = (torch.minimum(x2[i], x2[i + 1 :]) - torch.maximum(x1[i], x1[i + 1 :])).clamp(min=0)
        height = (torch.minimum(y2[i], y2[i + 1 :]) - torch.maximum(y1[i], y1[i + 1 :])).clamp(
            min=0
        )
        inter = width * height
        iou = inter / (area[i] + area[i + 1 :] - inter)
        overlaps = iou.double() > iou_threshold  # false for NaN, so a NaN box overlaps nothing
        if classes is not None:
            overlaps &= classes[i + 1 :] == classes[i]
        suppressed[i + 1 :] |= overlaps
    return order[kept]


def nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, *, max_output: int | None = None
) -> Tensor:
    """Keeps, in score order, each box that no better kept box overlaps by more than a threshold.

    Args:
        boxes: [N, 4] corners (x1, y1, x2, y2), any float dtype.
        scores: [N], any float dtype. A NaN score is never kept and suppresses nothing.
        iou_threshold: suppress when IoU > iou_threshold; any finite number.
        max_output: stop after this many boxes; None keeps all.

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
        The greedy rule of torchvision.ops.nms 0.29.1.
    """
    _checks.nms(boxes, scores, None, iou_threshold, max_output)
    return _greedy(boxes.detach(), scores.detach(), None, iou_threshold, max_output)


def batched_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    iou_threshold: float,
    *,
    max_output: int | None = None,
) -> Tensor:
    """:func:`nms` in which boxes of different classes never interact.

    Args:
        boxes: [N, 4] corners (x1, y1, x2, y2), any float dtype.
        scores: [N], any float dtype.
        idxs: [N] class of each box, any integer dtype and any value.
        iou_threshold: suppress when IoU > iou_threshold; any finite number.
        max_output: stop after this many boxes over all classes; None keeps all.

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
    _checks.nms(boxes, scores, idxs, iou_threshold, max_output, op="batched_nms")
    return _greedy(boxes.detach(), scores.detach(), idxs, iou_threshold, max_output)


def nms_padded(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_output: int,
    *,
    idxs: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`nms` of B images at once with a result of fixed size.

    Args:
        boxes: [B, N, 4] corners (x1, y1, x2, y2), any float dtype.
        scores: [B, N], any float dtype.
        iou_threshold: suppress when IoU > iou_threshold; any finite number.
        max_output: columns of the result.
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
        Ours; each row is :func:`nms` with ``max_output``.
    """
    _checks.nms_padded(boxes, scores, idxs, iou_threshold, max_output)
    keep = torch.full((len(boxes), max_output), -1, dtype=torch.int64, device=boxes.device)
    count = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    for image in range(len(boxes)):
        classes = None if idxs is None else idxs[image]
        row = _greedy(
            boxes[image].detach(), scores[image].detach(), classes, iou_threshold, max_output
        )
        keep[image, : len(row)] = row
        count[image] = len(row)
    return keep, count
