"""Rotated boxes: intersection over union and exact greedy non-maximum suppression."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from cvkernels import _checks, _load

__all__ = ["box_iou_rotated", "nms_rotated"]

_load.load()
_op: Callable[..., Tensor] = torch.ops.cvkernels.nms_rotated.default
_op_iou: Callable[..., Tensor] = torch.ops.cvkernels.nms_rotated_iou.default


def nms_rotated(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    idxs: Tensor | None = None,
    max_output: int | None = None,
    clockwise: bool = True,
) -> Tensor:
    """Keeps the rotated boxes that overlap no better box by more than ``iou_threshold``.

    Boxes are visited by descending score, ties by ascending index; a box is kept unless its
    :func:`box_iou_rotated` with a box kept before exceeds the threshold.

    Args:
        boxes: shape [N, 5], rows (centre x, centre y, width, height, angle in radians), float16,
            bfloat16, float32 or float64; overlaps are evaluated in float32 (float64 for float64
            boxes).
        scores: shape [N], any of the four dtypes, not necessarily that of ``boxes``.
        iou_threshold: a finite number; 1 or more keeps everything.
        idxs: shape [N], class (or image) of each box, uint8, int8, int16, int32 or int64; boxes of
            different classes never suppress each other. None for one class.
        max_output: stop as soon as this many boxes are kept; None keeps all.
        clockwise: a positive angle turns clockwise where y points down, as in images; False turns
            the other way.

    Returns:
        int64 tensor [M] of kept indices by descending score. A box whose score is NaN is never
        kept; a box that overlaps nothing (see :func:`box_iou_rotated`) is kept.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range.
        TypeError: an argument of the wrong type.

    Gradient:
        None, the result is an index.

    Determinism:
        The same indices on CPU and CUDA, for any number of threads.

    Source:
        The greedy rule of mmcv.ops.nms_rotated 2.2.0; Ma et al., Arbitrary-oriented scene text
        detection via rotation proposals, 2018 (arXiv 1703.01086).

    Example:
        >>> import torch
        >>> from cvkernels.nms_rotated import nms_rotated
        >>> boxes = torch.tensor([[0, 0, 8, 2, 0.1], [0, 0, 8, 2, 0.2], [0, 0, 8, 2, 1.7]])
        >>> nms_rotated(boxes, torch.tensor([0.8, 0.9, 0.5]), 0.5)
        tensor([1, 2])
    """
    try:
        limit = -1 if max_output is None else max_output
        if max_output is not None:
            _checks.limit("nms_rotated", max_output)
        if clockwise is None:  # which the dispatcher takes for False
            raise TypeError
        return _op(boxes, scores, idxs, iou_threshold, limit, clockwise)
    except Exception:
        # The dispatcher refuses some arguments before our checks see them; say those in our words.
        _checks.nms_rotated(boxes, scores, idxs, iou_threshold, max_output, clockwise)
        raise


def box_iou_rotated(
    boxes1: Tensor,
    boxes2: Tensor,
    *,
    mode: str = "iou",
    aligned: bool = False,
    clockwise: bool = True,
) -> Tensor:
    """Intersection over union of rotated boxes, each with each or pair by pair.

    A box without extent, with a NaN or infinite value, with an area that is 0 or infinite in the
    arithmetic type, or with an angle beyond 2**20 overlaps nothing. Identical boxes have exactly
    1, touching ones 0, and no result is above 1.

    Args:
        boxes1: shape [N, 5], rows (centre x, centre y, width, height, angle in radians), float16,
            bfloat16, float32 or float64.
        boxes2: shape [M, 5], any of the four dtypes; N rows if ``aligned``. Evaluated in float64
            if one of the two is float64, else in float32.
        mode: "iou", or "iof": intersection over the area of the box in ``boxes1``.
        aligned: pair row i with row i instead of every row with every row.
        clockwise: a positive angle turns clockwise where y points down, as in images; False turns
            the other way, which is another overlap unless the boxes share a row or a column.

    Returns:
        Tensor [N, M], or [N] if ``aligned``, in the dtype of ``boxes1``.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range.
        TypeError: an argument of the wrong type.

    Gradient:
        None; the result does not require one.

    Determinism:
        The same bits on CPU and CUDA, for any number of threads.

    Source:
        The conventions of mmcv.ops.box_iou_rotated 2.2.0. The area is a sum over edges by Green's
        theorem (``csrc/kernels/nms_rotated/nms_rotated.h``).

    Example:
        >>> import math, torch
        >>> from cvkernels.nms_rotated import box_iou_rotated
        >>> square = torch.tensor([[0.0, 0, 1, 1, 0]])
        >>> turned = torch.tensor([[0.0, 0, 1, 1, math.pi / 4]])
        >>> box_iou_rotated(square, turned)
        tensor([[0.7071]])
    """
    try:
        if aligned is None or clockwise is None:  # which the dispatcher takes for False
            raise TypeError
        return _op_iou(boxes1, boxes2, mode, aligned, clockwise)
    except Exception:
        _checks.box_iou_rotated(boxes1, boxes2, mode, aligned, clockwise)
        raise


# ---- fake kernels


@torch.library.register_fake("cvkernels::nms_rotated")
def _(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    max_output: int,
    clockwise: bool,
) -> Tensor:
    _checks.nms_rotated(boxes, scores, idxs, iou_threshold, None, clockwise)
    kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty((kept,), dtype=torch.int64)


@torch.library.register_fake("cvkernels::nms_rotated_iou")
def _(boxes1: Tensor, boxes2: Tensor, mode: str, aligned: bool, clockwise: bool) -> Tensor:
    _checks.box_iou_rotated(boxes1, boxes2, mode, aligned, clockwise)
    rows = boxes1.shape[0]
    return boxes1.new_empty((rows,) if aligned else (rows, boxes2.shape[0]))


# ---- autograd


torch.library.register_autograd(
    "cvkernels::nms_rotated", lambda ctx, *grads: (None,) * 6, setup_context=None
)
torch.library.register_autograd(
    "cvkernels::nms_rotated_iou",
    lambda ctx, *grads: (None,) * 5,
    setup_context=lambda ctx, inputs, output: ctx.mark_non_differentiable(output),
)


# ---- vmap


@torch.library.register_vmap("cvkernels::nms_rotated")
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> NoReturn:
    raise NotImplementedError(
        "nms_rotated: expected no vmap, got a mapped call; each image may keep another number of "
        "boxes. Give the image of each box as its class: idxs"
    )


@torch.library.register_vmap("cvkernels::nms_rotated_iou")
def _(
    info: Any,
    in_dims: tuple[int | None, ...],
    boxes1: Tensor,
    boxes2: Tensor,
    mode: str,
    aligned: bool,
    clockwise: bool,
) -> tuple[Tensor, int]:
    size = info.batch_size

    def batch(boxes: Tensor, dim: int | None) -> Tensor:
        return boxes.expand(size, *boxes.shape) if dim is None else boxes.movedim(dim, 0)

    first, second = batch(boxes1, in_dims[0]), batch(boxes2, in_dims[1])
    if aligned:
        _checks.box_iou_rotated(first[0], second[0], mode, aligned, clockwise)
        flat = _op_iou(first.flatten(0, 1), second.flatten(0, 1), mode, True, clockwise)
        return flat.unflatten(0, (size, -1)), 0
    parts = [_op_iou(a, b, mode, False, clockwise) for a, b in zip(first, second, strict=True)]
    return torch.stack(parts), 0
