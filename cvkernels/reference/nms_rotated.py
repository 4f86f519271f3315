"""Rotated boxes: overlap as an area integral along the edges, and the greedy loop over it."""

from __future__ import annotations

import torch
from torch import Tensor

from cvkernels import _checks
from cvkernels.reference._overlap import arithmetic, visit_order

# An angle beyond it has lost its digits (in float32 it steps by 1/8) and counts as infinite.
_MOST_ANGLE = 2.0**20


def _clamp(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """As the kernels clamp: NaN gives ``low``."""
    value = torch.where(value > low, value, low)
    return torch.where(value < high, value, high)


def _under_edge(
    x0: Tensor, y0: Tensor, y1: Tensor, dx_dy: Tensor, dy_dx: Tensor, half_w: Tensor, half_h: Tensor
) -> Tensor:
    """Twice the integral of clamp(x, -half_w, half_w) dy along an edge, within |y| <= half_h.

    The edge rises from (x0, y0) to y1 >= y0 and leans to the right, so it is left of the strip
    |x| <= half_w first, then inside, then right of it.
    """
    bottom, top = _clamp(y0, -half_h, half_h), _clamp(y1, -half_h, half_h)
    enters = _clamp(y0 + (-half_w - x0) * dy_dx, bottom, top)
    leaves = _clamp(y0 + (half_w - x0) * dy_dx, bottom, top)
    x_enters = _clamp(x0 + (enters - y0) * dx_dy, -half_w, half_w)
    x_leaves = _clamp(x0 + (leaves - y0) * dx_dy, -half_w, half_w)
    inside = (leaves - enters) * (x_enters + x_leaves)
    return inside + (half_w + half_w) * ((top - leaves) - (enters - bottom))


def _overlap(boxes1: Tensor, boxes2: Tensor, mode: str, clockwise: bool) -> Tensor:
    """IoU, or share of the first box, of boxes [..., 5] that broadcast against each other.

    Green's theorem: the area of box b inside box a is the integral of clamp(x, -w/2, w/2) dy around
    b, over the part of its edges with |y| <= h/2, all in the frame of a. Every rounding is the
    kernels': one per operation, in float32 (float64 for float64 boxes).
    """
    dtype = arithmetic(boxes1, boxes2)

    def prepared(boxes: Tensor) -> tuple[Tensor, ...]:
        x, y, w, h, angle = boxes.to(dtype).unbind(-1)
        angle = angle.double() if clockwise else -angle.double()
        half_w, half_h = w * 0.5, h * 0.5
        area = (half_w + half_w) * (half_h + half_h)
        sound = (half_w > 0) & (half_h > 0) & (area > 0) & (area < torch.inf)
        half_w = torch.where(sound & (angle.abs() <= _MOST_ANGLE), half_w, torch.nan)  # meets none
        return x, y, half_w, half_h, angle.cos().to(dtype), angle.sin().to(dtype), area

    ax, ay, aw, ah, a_cos, a_sin, a_area = prepared(boxes1)
    bx, by, bw, bh, b_cos, b_sin, b_area = prepared(boxes2)

    # b in the frame of a: its centre (x, y) and its angle. Turned by half a turn, or both mirrored,
    # the rectangles overlap as before, so that the angle is between 0 and 90 degrees.
    dx, dy = bx - ax, by - ay
    x, y = a_cos * dx + a_sin * dy, a_cos * dy - a_sin * dx
    cos, sin = a_cos * b_cos + a_sin * b_sin, a_cos * b_sin - a_sin * b_cos
    y = torch.where(cos * sin < 0, -y, y)
    cos, sin = cos.abs(), sin.abs()
    cos, sin = torch.where(sin == 0, 1.0, cos), torch.where(cos == 0, 1.0, sin)

    wc, ws, hc, hs = bw * cos, bw * sin, bh * cos, bh * sin
    reach_x, reach_y = wc + hs, ws + hc
    meet = (x.abs() < aw + reach_x) & (y.abs() < ah + reach_y)
    meet &= (x * cos + y * sin).abs() < bw + (aw * cos + ah * sin)
    meet &= (y * cos - x * sin).abs() < bh + (aw * sin + ah * cos)

    # Corners of b: lowest, leftmost, rightmost, highest; edges along its width lean right, those
    # along its height left, and are mirrored.
    cot, tan = cos / sin, sin / cos
    low_x, low_y = x - (wc - hs), y - reach_y
    left_x, left_y = x - reach_x, y + (hc - ws)
    right_x, right_y = x + reach_x, y + (ws - hc)
    high_y = y + reach_y
    twice = _under_edge(low_x, low_y, right_y, cot, tan, aw, ah)
    twice = twice - _under_edge(left_x, left_y, high_y, cot, tan, aw, ah)
    twice = twice + _under_edge(-low_x, low_y, left_y, tan, cot, aw, ah)
    twice = twice - _under_edge(-right_x, right_y, high_y, tan, cot, aw, ah)
    smaller = torch.where(a_area < b_area, a_area, b_area)
    area = _clamp(twice * 0.5, torch.zeros_like(twice), smaller)
    whole = a_area + b_area - area if mode == "iou" else a_area
    return torch.where(meet, area / whole, 0.0)


def box_iou_rotated(
    boxes1: Tensor,
    boxes2: Tensor,
    *,
    mode: str = "iou",
    aligned: bool = False,
    clockwise: bool = True,
) -> Tensor:
    """Intersection over union of rotated boxes, each with each or pair by pair.

    Args:
        boxes1: [N, 5] rows (centre x, centre y, width, height, angle in radians), any float dtype.
        boxes2: [M, 5], N of them if ``aligned``.
        mode: "iou", or "iof" for the intersection over the area of the box in ``boxes1``.
        aligned: pair row i with row i instead of every row with every row.
        clockwise: a positive angle turns clockwise where y points down; otherwise the other way.

    Returns:
        [N, M], or [N] if ``aligned``, in the dtype of ``boxes1``; 0 for a box without extent or
        with a value that is not finite.

    Raises:
        ValueError: wrong shape, dtype, device or value.
        TypeError: an argument of a wrong type.

    Gradient:
        None; the result is detached.

    Determinism:
        Exact.

    Source:
        The conventions of mmcv.ops.box_iou_rotated 2.2.0; the integral is ours.
    """
    _checks.box_iou_rotated(boxes1, boxes2, mode, aligned, clockwise)
    first, second = boxes1.detach(), boxes2.detach()
    if not aligned:
        first, second = first[:, None], second[None]
    return _overlap(first, second, mode, bool(clockwise)).to(boxes1.dtype)


def nms_rotated(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    idxs: Tensor | None = None,
    max_output: int | None = None,
    clockwise: bool = True,
) -> Tensor:
    """Keeps, in score order, each rotated box that no better kept box overlaps too much.

    Args:
        boxes: [N, 5] rows (centre x, centre y, width, height, angle in radians), any float dtype.
        scores: [N], any float dtype. A NaN score is never kept and suppresses nothing.
        iou_threshold: suppress when IoU > iou_threshold; any finite number.
        idxs: [N] classes, any integer dtype; boxes of different classes never interact.
        max_output: stop after this many boxes over all classes; None keeps all.
        clockwise: as in :func:`box_iou_rotated`.

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
        The greedy rule of mmcv.ops.nms_rotated 2.2.0.
    """
    _checks.nms_rotated(boxes, scores, idxs, iou_threshold, max_output, clockwise)
    order = visit_order(scores.detach())
    ranked = boxes.detach()[order]
    classes = None if idxs is None else idxs[order]
    suppressed = torch.zeros(len(order), dtype=torch.bool, device=boxes.device)
    kept: list[int] = []
    for i in range(len(order)):
        if max_output is not None and len(kept) >= max_output:
            break
        if suppressed[i]:
            continue
        kept.append(i)
        # Compared as real numbers: both widened to float64.
        overlaps = _overlap(ranked[i], ranked[i + 1 :], "iou", bool(clockwise))
        over = overlaps.double() > iou_threshold
        if classes is not None:
            over &= classes[i + 1 :] == classes[i]
        suppressed[i + 1 :] |= over
    return order[kept]
