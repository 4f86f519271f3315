"""Soft-NMS and Matrix NMS on arrays: scores decay, boxes stay where they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvkernels.numpy import _checks
from cvkernels.numpy._extension import best_first, call, kernels, rounded

Indices = NDArray[np.int64]


def soft_nms(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    *,
    method: str = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    max_output: int | None = None,
    idxs: NDArray[Any] | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> tuple[Indices, NDArray[Any]]:
    """Selects the box of the highest current score, lowers those that it overlaps, and repeats.

    As :func:`cvkernels.soft_nms.soft_nms`.

    Args:
        boxes: shape [N, 4], rows (x1, y1, x2, y2), float16, float32 or float64, any strides.
        scores: shape [N], float16, float32 or float64; NaN is never selected.
        method: "linear" (1 - overlap above the threshold), "gaussian" (exp(-overlap^2 / sigma)) or
            "hard".
        iou_threshold: a finite number, for "linear" and "hard".
        sigma: width of the decay of "gaussian", finite and positive.
        min_score: scores below it are dropped, before and while decaying; finite, at least 0.
        max_output: stop after this many boxes; None selects all.
        idxs: shape [N], class of each box, uint8, int8, int16, int32 or int64.
        criterion: "iou", "giou", "diou" or "ciou"; a negative overlap counts as none.
        beta: exponent of the centre-distance term of "diou" and "ciou".

    Returns:
        keep: int64 [M], indices in the order of selection, ties by index.
        new_scores: [M], their scores at selection, descending, in the dtype of ``scores``.

    Raises:
        ValueError: an argument of the wrong shape or dtype or out of its range.
        TypeError: an argument of the wrong type.

    Determinism:
        The same results on every machine, and as the torch function gives on any device.

    Source:
        Bodla et al., Soft-NMS, 2017 (arXiv 1704.04503).

    Example:
        >>> import numpy as np
        >>> boxes = np.array([[0.0, 0, 10, 10], [0.0, 0, 10, 20], [50.0, 0, 60, 10]])
        >>> soft_nms(boxes, np.array([0.9, 0.8, 0.5]))
        (array([0, 2, 1]), array([0.9, 0.5, 0.4]))
    """
    rest = idxs, method, iou_threshold, sigma, min_score, max_output, criterion, beta
    keep, new_scores = call(kernels.soft_nms, _checks.soft_nms, "soft_nms", boxes, scores, *rest)
    return keep, rounded(new_scores, scores)


def soft_nms_padded(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    max_output: int,
    *,
    method: str = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    idxs: NDArray[Any] | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> tuple[Indices, NDArray[Any], Indices]:
    """:func:`soft_nms` of a batch of images with an output of fixed size.

    As :func:`cvkernels.soft_nms.soft_nms_padded`.

    Args:
        boxes: shape [B, N, 4], float16, float32 or float64; pad with boxes of score NaN.
        scores: shape [B, N], float16, float32 or float64.
        max_output: most boxes to select per image.
        method: "linear", "gaussian" or "hard".
        iou_threshold: a finite number, for "linear" and "hard".
        sigma: width of the decay of "gaussian", finite and positive.
        min_score: scores below it are dropped; finite, at least 0.
        idxs: shape [B, N], optional classes.
        criterion: "iou", "giou", "diou" or "ciou".
        beta: exponent of the centre-distance term of "diou" and "ciou".

    Returns:
        keep: int64 [B, max_output], indices of each image in the order of selection, then -1.
        new_scores: [B, max_output], their scores at selection, then 0.
        count: int64 [B], how many were selected.

    Raises:
        ValueError: an argument of the wrong shape or dtype or out of its range.
        TypeError: an argument of the wrong type.

    Determinism:
        As for :func:`soft_nms`.

    Source:
        Bodla et al., Soft-NMS, 2017 (arXiv 1704.04503).

    Example:
        >>> import numpy as np
        >>> boxes = np.array([[[0.0, 0, 10, 10], [0.0, 0, 10, 20]]])
        >>> soft_nms_padded(boxes, np.array([[0.9, 0.8]]), 3)
        (array([[ 0,  1, -1]]), array([[0.9, 0.4, 0. ]]), array([2]))
    """
    rest = idxs, method, iou_threshold, sigma, min_score, max_output, criterion, beta
    keep, new_scores, count = call(
        kernels.soft_nms_padded, _checks.soft_nms, "soft_nms_padded", boxes, scores, *rest
    )
    return keep, rounded(new_scores, scores), count


def matrix_nms(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    *,
    kernel: str = "gaussian",
    sigma: float = 0.5,
    min_score: float = 1e-3,
    max_output: int | None = None,
    idxs: NDArray[Any] | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> tuple[Indices, NDArray[Any]]:
    """Lowers every score by its overlaps with better boxes, less where those are overlapped too.

    As :func:`cvkernels.matrix_nms.matrix_nms`.

    Args:
        boxes: shape [N, 4], rows (x1, y1, x2, y2), float16, float32 or float64, any strides.
        scores: shape [N], float16, float32 or float64; a box with a NaN score takes no part.
        kernel: "gaussian" or "linear".
        sigma: width of the gaussian, finite and positive; 0.5 is the 2.0 of SOLOv2's code.
        min_score: new scores below it are left out; finite, at least 0.
        max_output: return at most this many boxes; None returns all.
        idxs: shape [N], class of each box; boxes of different classes do not lower each other.
        criterion: "iou", "giou", "diou" or "ciou"; a negative overlap counts as none.
        beta: exponent of the centre-distance term of "diou" and "ciou".

    Returns:
        keep: int64 [M], indices by descending new score, ties by index.
        new_scores: [M], in the dtype of ``scores``.

    Raises:
        ValueError: an argument of the wrong shape or dtype or out of its range.
        TypeError: an argument of the wrong type.

    Determinism:
        The same results on every machine, and as the torch function gives on any device.

    Source:
        Wang et al., SOLOv2, 2020 (arXiv 2003.10152).

    Example:
        >>> import numpy as np
        >>> boxes = np.array([[0.0, 0, 10, 10], [0.0, 0, 10, 20], [50.0, 0, 60, 10]])
        >>> matrix_nms(boxes, np.array([0.9, 0.8, 0.5]), kernel="linear")
        (array([0, 2, 1]), array([0.9, 0.5, 0.4]))
    """
    rest = idxs, sigma, min_score, max_output, kernel, criterion, beta
    new_scores = call(kernels.matrix_nms, _checks.matrix_nms, "matrix_nms", boxes, scores, *rest)
    return best_first(rounded(new_scores, scores), min_score, max_output)


def matrix_nms_from_overlaps(
    overlaps: NDArray[Any],
    scores: NDArray[Any],
    *,
    kernel: str = "gaussian",
    sigma: float = 0.5,
    min_score: float = 1e-3,
    max_output: int | None = None,
    idxs: NDArray[Any] | None = None,
) -> tuple[Indices, NDArray[Any]]:
    """:func:`matrix_nms` over given overlaps, of masks for example.

    As :func:`cvkernels.matrix_nms.matrix_nms_from_overlaps`.

    Args:
        overlaps: shape [N, N], overlap of i and j, float16, float32 or float64. Only [i, j] with i
            before j by score is read; negative values and NaN count as 0.
        scores: shape [N], float16, float32 or float64; a NaN score takes no part.
        kernel: "gaussian" or "linear".
        sigma: width of the gaussian, finite and positive.
        min_score: new scores below it are left out; finite, at least 0.
        max_output: return at most this many; None returns all.
        idxs: shape [N], class of each; different classes do not lower each other.

    Returns:
        keep: int64 [M], indices by descending new score, ties by index.
        new_scores: [M], in the dtype of ``scores``.

    Raises:
        ValueError: an argument of the wrong shape or dtype or out of its range.
        TypeError: an argument of the wrong type.

    Determinism:
        As for :func:`matrix_nms`.

    Source:
        Wang et al., SOLOv2, 2020 (arXiv 2003.10152).

    Example:
        >>> import numpy as np
        >>> overlaps = np.array([[1.0, 0.25], [0.25, 1.0]])
        >>> matrix_nms_from_overlaps(overlaps, np.array([0.75, 0.5]), kernel="linear")
        (array([0, 1]), array([0.75 , 0.375]))
    """
    op, entry = "matrix_nms_from_overlaps", kernels.matrix_nms_from_overlaps
    rest = idxs, sigma, min_score, max_output, kernel
    new_scores = call(entry, _checks.matrix_nms, op, overlaps, scores, *rest)
    return best_first(rounded(new_scores, scores), min_score, max_output)
