"""Rotated boxes on arrays: intersection over union and exact greedy NMS."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvkernels.numpy import _checks
from cvkernels.numpy._extension import call, kernels, rounded


def nms_rotated(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    iou_threshold: float,
    *,
    idxs: NDArray[Any] | None = None,
    max_output: int | None = None,
    clockwise: bool = True,
) -> NDArray[np.int64]:
    """Keeps the rotated boxes that overlap no better box by more than ``iou_threshold``.

    As :func:`cvkernels.nms_rotated.nms_rotated`.

    Args:
        boxes: shape [N, 5], rows (centre x, centre y, width, height, angle in radians), float16,
            float32 or float64, any strides.
        scores: shape [N], float16, float32 or float64; NaN is never kept.
        iou_threshold: a finite number.
        idxs: shape [N], class of each box, uint8, int8, int16, int32 or int64.
        max_output: stop after this many boxes; None keeps all.
        clockwise: a positive angle turns clockwise where y points down; False: the other way.

    Returns:
        int64 array [M] of kept indices by descending score, ties by index.

    Raises:
        ValueError: an argument of the wrong shape or dtype or out of its range.
        TypeError: an argument of the wrong type.

    Determinism:
        The same indices on every machine, and as the torch function gives on any device.

    Source:
        mmcv.ops.nms_rotated 2.2.0; Ma et al., 2018 (arXiv 1703.01086).

    Example:
        >>> import numpy as np
        >>> boxes = np.array([[0, 0, 8, 2, 0.1], [0, 0, 8, 2, 0.2], [0, 0, 8, 2, 1.7]])
        >>> nms_rotated(boxes, np.array([0.8, 0.9, 0.5]), 0.5)
        array([1, 2])
    """
    arguments = boxes, scores, idxs, iou_threshold, max_output, clockwise
    keep: NDArray[np.int64] = call(
        kernels.nms_rotated, _checks.nms_rotated, "nms_rotated", *arguments
    )
    return keep


def box_iou_rotated(
    boxes1: NDArray[Any],
    boxes2: NDArray[Any],
    *,
    mode: str = "iou",
    aligned: bool = False,
    clockwise: bool = True,
) -> NDArray[Any]:
    """Intersection over union of rotated boxes, each with each or pair by pair.

    As :func:`cvkernels.nms_rotated.box_iou_rotated`.

    Args:
        boxes1: shape [N, 5], rows (centre x, centre y, width, height, angle in radians), float16,
            float32 or float64, any strides.
        boxes2: shape [M, 5], of any of these dtypes; N rows if ``aligned``.
        mode: "iou", or "iof": intersection over the area of the box in ``boxes1``.
        aligned: pair row i with row i instead of every row with every row.
        clockwise: a positive angle turns clockwise where y points down; False: the other way.

    Returns:
        Array [N, M], or [N] if ``aligned``, in the dtype of ``boxes1``.

    Raises:
        ValueError: an argument of the wrong shape or dtype or out of its range.
        TypeError: an argument of the wrong type.

    Determinism:
        The same bits on every machine, and as the torch function gives on any device.

    Source:
        mmcv.ops.box_iou_rotated 2.2.0 for the conventions.

    Example:
        >>> import numpy as np
        >>> square, turned = np.array([[0.0, 0, 1, 1, 0]]), np.array([[0.0, 0, 1, 1, np.pi / 4]])
        >>> box_iou_rotated(square, turned).round(4)
        array([[0.7071]])
    """
    overlaps = call(
        kernels.box_iou_rotated,
        _checks.box_iou_rotated,
        "box_iou_rotated",
        boxes1,
        boxes2,
        mode,
        aligned,
        clockwise,
    )
    return rounded(overlaps, boxes1)
