"""Greedy hard NMS on arrays, and its variants by threshold, order and result."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvkernels.numpy import _checks
from cvkernels.numpy._extension import call, kernels, rounded, settled

Indices = NDArray[np.int64]


def nms(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    iou_threshold: float,
    *,
    max_output: int | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> Indices:
    """Keeps the boxes that overlap no better box by more than ``iou_threshold``.

    As :func:`cvkernels.nms.nms`.

    Args:
        boxes: shape [N, 4], rows (x1, y1, x2, y2), float16, float32 or float64, any strides.
        scores: shape [N], float16, float32 or float64; NaN is never kept.
        iou_threshold: a finite number.
        max_output: stop after this many boxes; None keeps all.
        criterion: how overlap is measured: "iou", "giou", "diou" or "ciou".
        beta: exponent of the centre-distance term of "diou" and "ciou".

    Returns:
        int64 array [M] of kept indices by descending score, ties by index.

    Raises:
        ValueError: an argument of the wrong shape or dtype or out of its range.
        TypeError: an argument of the wrong type.

    Determinism:
        The same indices on every machine, and as the torch function gives on any device.

    Source:
        Girshick et al., Rich feature hierarchies, 2014 (arXiv 1311.2524).

    Example:
        >>> import numpy as np
        >>> boxes = np.array([[0.0, 0, 10, 10], [1.0, 0, 11, 10], [20.0, 0, 30, 10]])
        >>> nms(boxes, np.array([0.8, 0.9, 0.5]), 0.5)
        array([1, 2])
    """
    arguments = boxes, scores, None, iou_threshold, max_output, criterion, beta
    keep: Indices = call(kernels.nms, _checks.nms, "nms", *arguments)
    return keep


def batched_nms(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    idxs: NDArray[Any],
    iou_threshold: float,
    *,
    max_output: int | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> Indices:
    """:func:`nms` within each class: boxes of different classes never suppress each other.

    As :func:`cvkernels.nms.batched_nms`.

    Args:
        boxes: shape [N, 4], rows (x1, y1, x2, y2), float16, float32 or float64, any strides.
        scores: shape [N], float16, float32 or float64.
        idxs: shape [N], class (or image) of each box, uint8, int8, int16, int32 or int64.
        iou_threshold: a finite number.
        max_output: stop after this many boxes over all classes; None keeps all.
        criterion: "iou", "giou", "diou" or "ciou", as in :func:`nms`.
        beta: exponent of the centre-distance term of "diou" and "ciou".

    Returns:
        int64 array [M] of kept indices by descending score.

    Raises:
        ValueError: an argument of the wrong shape or dtype or out of its range.
        TypeError: an argument of the wrong type.

    Determinism:
        As for :func:`nms`.

    Source:
        Girshick et al., 2014 (arXiv 1311.2524), applied class by class.

    Example:
        >>> import numpy as np
        >>> boxes = np.array([[0.0, 0, 10, 10], [1.0, 0, 11, 10], [0.0, 0, 10, 10]])
        >>> batched_nms(boxes, np.array([0.8, 0.9, 0.5]), np.array([0, 0, 1]), 0.5)
        array([1, 2])
    """
    arguments = boxes, scores, idxs, iou_threshold, max_output, criterion, beta
    keep: Indices = call(kernels.batched_nms, _checks.nms, "batched_nms", *arguments)
    return keep


def nms_padded(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    iou_threshold: float,
    max_output: int,
    *,
    idxs: NDArray[Any] | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> tuple[Indices, Indices]:
    """:func:`nms` of a batch of images with an output of fixed size.

    As :func:`cvkernels.nms.nms_padded`.

    Args:
        boxes: shape [B, N, 4], float16, float32 or float64, any strides. Images with fewer boxes
            are padded with boxes of score NaN.
        scores: shape [B, N], float16, float32 or float64.
        iou_threshold: a finite number.
        max_output: most boxes to keep per image.
        idxs: shape [B, N], optional classes as in :func:`batched_nms`.
        criterion: "iou", "giou", "diou" or "ciou", as in :func:`nms`.
        beta: exponent of the centre-distance term of "diou" and "ciou".

    Returns:
        keep: int64 [B, max_output], the kept indices of each image by descending score, then -1.
        count: int64 [B], how many were kept.

    Raises:
        ValueError: an argument of the wrong shape or dtype or out of its range.
        TypeError: an argument of the wrong type.

    Determinism:
        As for :func:`nms`.

    Source:
        Girshick et al., 2014 (arXiv 1311.2524).

    Example:
        >>> import numpy as np
        >>> boxes = np.array([[[0.0, 0, 10, 10], [1.0, 0, 11, 10], [20.0, 0, 30, 10]]])
        >>> nms_padded(boxes, np.array([[0.8, 0.9, 0.5]]), 0.5, 3)
        (array([[ 1,  2, -1]]), array([2]))
    """
    arguments = boxes, scores, idxs, iou_threshold, max_output, criterion, beta
    keep, count = call(kernels.nms_padded, _checks.nms, "nms_padded", *arguments)
    return keep, count


def diou_nms(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    iou_threshold: float,
    *,
    beta: float = 1.0,
    idxs: NDArray[Any] | None = None,
    max_output: int | None = None,
) -> Indices:
    """:func:`nms` by DIoU: of two boxes that overlap alike, the one with the farther centre stays.

    As :func:`cvkernels.nms.diou_nms`, and as ``nms(..., criterion="diou")``.

    Args:
        boxes: shape [N, 4], rows (x1, y1, x2, y2), float16, float32 or float64, any strides.
        scores: shape [N], float16, float32 or float64.
        iou_threshold: a finite number, compared with the DIoU.
        beta: exponent of the distance term, finite and positive; below 1 it weighs more.
        idxs: shape [N], class of each box; boxes of different classes never suppress each other.
        max_output: stop after this many boxes; None keeps all.

    Returns:
        int64 array [M] of kept indices by descending score.

    Raises:
        ValueError: an argument of the wrong shape or dtype or out of its range.
        TypeError: an argument of the wrong type.

    Determinism:
        As for :func:`nms`.

    Source:
        Zheng et al., Distance-IoU loss, 2020 (arXiv 1911.08287).

    Example:
        >>> import numpy as np
        >>> boxes, scores = np.array([[0.0, 0, 10, 10], [4.0, 0, 14, 10]]), np.array([0.9, 0.8])
        >>> nms(boxes, scores, 0.4), diou_nms(boxes, scores, 0.4)
        (array([0]), array([0, 1]))
    """
    arguments = boxes, scores, idxs, iou_threshold, max_output, "diou", beta
    keep: Indices = call(kernels.nms, _checks.nms, "diou_nms", *arguments)
    return keep


def diou_nms_padded(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    iou_threshold: float,
    max_output: int,
    *,
    beta: float = 1.0,
    idxs: NDArray[Any] | None = None,
) -> tuple[Indices, Indices]:
    """:func:`diou_nms` of a batch of images with an output of fixed size.

    As :func:`cvkernels.nms.diou_nms_padded`.

    Args:
        boxes: shape [B, N, 4], float16, float32 or float64; pad with boxes of score NaN.
        scores: shape [B, N], float16, float32 or float64.
        iou_threshold: a finite number, compared with the DIoU.
        max_output: most boxes to keep per image.
        beta: exponent of the distance term, finite and positive.
        idxs: shape [B, N], optional classes.

    Returns:
        keep: int64 [B, max_output], the kept indices of each image by descending score, then -1.
        count: int64 [B], how many were kept.

    Raises:
        ValueError: an argument of the wrong shape or dtype or out of its range.
        TypeError: an argument of the wrong type.

    Determinism:
        As for :func:`nms`.

    Source:
        Zheng et al., Distance-IoU loss, 2020 (arXiv 1911.08287).

    Example:
        >>> import numpy as np
        >>> boxes = np.array([[[0.0, 0, 10, 10], [4.0, 0, 14, 10]]])
        >>> diou_nms_padded(boxes, np.array([[0.9, 0.8]]), 0.4, 3)
        (array([[ 0,  1, -1]]), array([2]))
    """
    arguments = boxes, scores, idxs, iou_threshold, max_output, "diou", beta
    keep, count = call(kernels.nms_padded, _checks.nms, "diou_nms_padded", *arguments)
    return keep, count


def adaptive_nms(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    densities: NDArray[Any],
    iou_threshold: float,
    *,
    idxs: NDArray[Any] | None = None,
    max_output: int | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> Indices:
    """:func:`nms` whose threshold is the larger of ``iou_threshold`` and the kept box's density.

    As :func:`cvkernels.nms.adaptive_nms`.

    Args:
        boxes: shape [N, 4], rows (x1, y1, x2, y2), float16, float32 or float64, any strides.
        scores: shape [N], float16, float32 or float64.
        densities: shape [N], float16, float32 or float64; NaN counts as no density.
        iou_threshold: a finite number.
        idxs: shape [N], class of each box; boxes of different classes never suppress each other.
        max_output: stop after this many boxes; None keeps all.
        criterion: "iou", "giou", "diou" or "ciou", as in :func:`nms`.
        beta: exponent of the centre-distance term of "diou" and "ciou".

    Returns:
        int64 array [M] of kept indices by descending score.

    Raises:
        ValueError: an argument of the wrong shape or dtype or out of its range.
        TypeError: an argument of the wrong type.

    Determinism:
        As for :func:`nms`.

    Source:
        Liu et al., Adaptive NMS: refining pedestrian detection in a crowd, 2019 (arXiv 1904.03629).

    Example:
        >>> import numpy as np
        >>> boxes, scores = np.array([[0.0, 0, 10, 10], [2.0, 0, 12, 10]]), np.array([0.9, 0.8])
        >>> for density in (0.3, 0.7):
        ...     print(adaptive_nms(boxes, scores, np.array([density, 0.0]), 0.5))
        [0]
        [0 1]
    """
    arguments = boxes, scores, idxs, densities, iou_threshold, max_output, criterion, beta
    keep: Indices = call(kernels.adaptive_nms, _checks.adaptive_nms, "adaptive_nms", *arguments)
    return keep


def nms_match(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    iou_threshold: float,
    *,
    idxs: NDArray[Any] | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> list[Indices]:
    """Groups boxes: each kept box of :func:`nms` with the boxes that it suppresses.

    As :func:`cvkernels.nms.nms_match`: like in mmcv a box is suppressed at overlap >=
    ``iou_threshold``.

    Args:
        boxes: shape [N, 4], rows (x1, y1, x2, y2), float16, float32 or float64, any strides.
        scores: shape [N], float16, float32 or float64; a box with a NaN score is in no group.
        iou_threshold: a finite number.
        idxs: shape [N], class of each box; a group is of one class.
        criterion: "iou", "giou", "diou" or "ciou", as in :func:`nms`.
        beta: exponent of the centre-distance term of "diou" and "ciou".

    Returns:
        A list of int64 arrays by descending score of the kept box: its index, then those of its
        group by descending score.

    Raises:
        ValueError: an argument of the wrong shape or dtype or out of its range.
        TypeError: an argument of the wrong type.

    Determinism:
        As for :func:`nms`.

    Source:
        mmcv.ops.nms_match.

    Example:
        >>> import numpy as np
        >>> boxes = np.array([[0.0, 0, 10, 10], [1.0, 0, 11, 10], [20.0, 0, 30, 10]])
        >>> nms_match(boxes, np.array([0.8, 0.9, 0.5]), 0.5)
        [array([1, 0]), array([2])]
    """
    below = _below(iou_threshold)
    groups: list[Indices] | None = kernels.nms_match(boxes, scores, idxs, below, criterion, beta)
    if groups is None:
        _checks.nms("nms_match", boxes, scores, idxs, iou_threshold, None, criterion, beta)
        below = _below(float(iou_threshold))
        groups = settled(kernels.nms_match, boxes, scores, idxs, below, criterion, beta)
    return groups


def _below(threshold: object) -> float | None:
    """What an overlap is above where it is at least ``threshold``, which is a finite float."""
    if not isinstance(threshold, float) or not math.isfinite(threshold):
        return None
    return max(math.nextafter(threshold, -math.inf), -sys.float_info.max)


def iou_guided_nms(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    localization: NDArray[Any],
    iou_threshold: float,
    *,
    idxs: NDArray[Any] | None = None,
    max_output: int | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> tuple[Indices, NDArray[Any]]:
    """:func:`nms` by predicted localization; a kept box takes the best score of its cluster.

    As :func:`cvkernels.nms.iou_guided_nms`.

    Args:
        boxes: shape [N, 4], rows (x1, y1, x2, y2), float16, float32 or float64, any strides.
        scores: shape [N], classification scores, float16, float32 or float64.
        localization: shape [N], predicted IoU of each box with its object, float16, float32 or
            float64. A box with NaN here or in ``scores`` takes no part.
        iou_threshold: a finite number.
        idxs: shape [N], class of each box; boxes of different classes never suppress each other.
        max_output: stop after this many boxes; None keeps all.
        criterion: "iou", "giou", "diou" or "ciou", as in :func:`nms`.
        beta: exponent of the centre-distance term of "diou" and "ciou".

    Returns:
        keep: int64 [M], kept indices by descending localization, ties by index.
        scores: [M], the best score of each cluster, in the dtype of ``scores``.

    Raises:
        ValueError: an argument of the wrong shape or dtype or out of its range.
        TypeError: an argument of the wrong type.

    Determinism:
        As for :func:`nms`.

    Source:
        Jiang et al., Acquisition of localization confidence, 2018 (arXiv 1807.11590).

    Example:
        >>> import numpy as np
        >>> boxes = np.array([[0.0, 0, 10, 10], [1.0, 0, 11, 10], [20.0, 0, 30, 10]])
        >>> scores, localization = np.array([0.9, 0.6, 0.5]), np.array([0.4, 0.8, 0.7])
        >>> iou_guided_nms(boxes, scores, localization, 0.5)
        (array([1, 2]), array([0.9, 0.5]))
    """
    arguments = boxes, scores, idxs, localization, iou_threshold, max_output, criterion, beta
    keep, best = call(kernels.iou_guided_nms, _checks.iou_guided_nms, "iou_guided_nms", *arguments)
    return keep, rounded(best, scores)
