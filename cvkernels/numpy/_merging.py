"""NMS that merges, on arrays: each kept box takes a mean of the boxes that it stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvkernels.numpy import _checks
from cvkernels.numpy._extension import best_first, call, kernels, rounded

Array = NDArray[Any]
Indices = NDArray[np.int64]


def weighted_nms(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    iou_threshold: float,
    *,
    idxs: NDArray[Any] | None = None,
    max_output: int | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> tuple[Array, Array, Indices]:
    """:func:`cvkernels.numpy.nms` in which each kept box becomes the mean of its cluster.

    As :func:`cvkernels.weighted_nms.weighted_nms`.

    Args:
        boxes: shape [N, 4], rows (x1, y1, x2, y2), float16, float32 or float64, any strides.
        scores: shape [N], float16, float32 or float64, not negative; NaN takes no part.
        iou_threshold: a finite number.
        idxs: shape [N], class of each box, uint8, int8, int16, int32 or int64.
        max_output: stop after this many boxes; None keeps all.
        criterion: "iou", "giou", "diou" or "ciou", as in :func:`cvkernels.numpy.nms`.
        beta: exponent of the centre-distance term of "diou" and "ciou".

    Returns:
        boxes: [M, 4] merged boxes in the dtype of ``boxes``, by descending score.
        scores: [M], scores of the kept boxes.
        keep: int64 [M], kept indices.

    Raises:
        ValueError: an argument of the wrong shape or dtype or out of its range.
        TypeError: an argument of the wrong type.

    Determinism:
        As the torch function on the CPU, bit for bit; the indices as on any device.

    Source:
        Zhou et al., CAD: scale invariant framework for real-time object detection, 2017.

    Example:
        >>> import numpy as np
        >>> boxes = np.array([[0.0, 0, 10, 10], [0.0, 0, 10, 20]])
        >>> weighted_nms(boxes, np.array([0.75, 0.5]), 0.3)
        (array([[ 0. ,  0. , 10. , 12.5]]), array([0.75]), array([0]))
    """
    rest = idxs, iou_threshold, max_output, criterion, beta
    merged, best, keep = call(
        kernels.weighted_nms, _checks.nms, "weighted_nms", boxes, scores, *rest
    )
    return rounded(merged, boxes), rounded(best, scores), keep


def weighted_nms_padded(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    iou_threshold: float,
    max_output: int,
    *,
    idxs: NDArray[Any] | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> tuple[Array, Array, Indices, Indices]:
    """:func:`weighted_nms` of a batch of images with an output of fixed size.

    As :func:`cvkernels.weighted_nms.weighted_nms_padded`.

    Args:
        boxes: shape [B, N, 4], float16, float32 or float64; pad with boxes of score NaN.
        scores: shape [B, N], float16, float32 or float64.
        iou_threshold: a finite number.
        max_output: most boxes to keep per image.
        idxs: shape [B, N], optional classes.
        criterion: "iou", "giou", "diou" or "ciou", as in :func:`cvkernels.numpy.nms`.
        beta: exponent of the centre-distance term of "diou" and "ciou".

    Returns:
        boxes: [B, max_output, 4] merged boxes, then 0.
        scores: [B, max_output], scores of the kept boxes, then 0.
        keep: int64 [B, max_output], kept indices, then -1.
        count: int64 [B], how many were kept.

    Raises:
        ValueError: an argument of the wrong shape or dtype or out of its range.
        TypeError: an argument of the wrong type.

    Determinism:
        As for :func:`weighted_nms`.

    Source:
        Zhou et al., CAD: scale invariant framework for real-time object detection, 2017.

    Example:
        >>> import numpy as np
        >>> boxes = np.array([[[0.0, 0, 10, 10], [0.0, 0, 10, 20]]])
        >>> weighted_nms_padded(boxes, np.array([[0.75, 0.5]]), 0.3, 2)[1:]
        (array([[0.75, 0.  ]]), array([[ 0, -1]]), array([1]))
    """
    rest = idxs, iou_threshold, max_output, criterion, beta
    merged, best, keep, count = call(
        kernels.weighted_nms_padded, _checks.nms, "weighted_nms_padded", boxes, scores, *rest
    )
    return rounded(merged, boxes), rounded(best, scores), keep, count


def softer_nms(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    variances: NDArray[Any],
    iou_threshold: float,
    *,
    sigma_t: float = 0.02,
    method: str = "hard",
    sigma: float = 0.5,
    min_score: float = 1e-3,
    idxs: NDArray[Any] | None = None,
    max_output: int | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> tuple[Array, Array, Indices]:
    """Hard or Soft-NMS, then variance voting over the place of each kept box.

    As :func:`cvkernels.weighted_nms.softer_nms`.

    Args:
        boxes: shape [N, 4], rows (x1, y1, x2, y2), float16, float32 or float64, any strides.
        scores: shape [N], float16, float32 or float64; a box with a NaN score takes no part.
        variances: shape [N, 4], predicted variance of each coordinate, float16, float32 or float64.
            One that is not positive and finite does not vote.
        iou_threshold: a finite number, for "hard" and "linear".
        sigma_t: how far voters may be, finite and positive.
        method: "hard" selects as nms does, "linear" and "gaussian" as soft_nms.
        sigma: width of the decay of "gaussian", finite and positive.
        min_score: scores that "linear" and "gaussian" drop; finite, at least 0.
        idxs: shape [N], class of each box.
        max_output: stop after this many boxes; None keeps all.
        criterion: how overlap is measured in the selection; the vote goes by IoU.
        beta: exponent of the centre-distance term of "diou" and "ciou".

    Returns:
        boxes: [M, 4] voted boxes in the dtype of ``boxes``, in the order of selection.
        scores: [M], their scores, decayed for "linear" and "gaussian".
        keep: int64 [M], selected indices.

    Raises:
        ValueError: an argument of the wrong shape or dtype or out of its range.
        TypeError: an argument of the wrong type.

    Determinism:
        As for :func:`weighted_nms`.

    Source:
        He et al., Bounding box regression with uncertainty, 2019 (arXiv 1809.08545).

    Example:
        >>> import numpy as np
        >>> boxes = np.array([[0.0, 0, 10, 10], [0.0, 0, 10, 11]])
        >>> variances = np.array([[1.0, 1, 1, 4], [1.0, 1, 1, 1]])
        >>> softer_nms(boxes, np.array([0.9, 0.8]), variances, 0.5)[0].round(4)
        array([[ 0.    ,  0.    , 10.    , 10.7257]])
    """
    settings = iou_threshold, sigma, min_score, sigma_t, max_output, method, criterion, beta
    arguments = boxes, scores, idxs, variances, *settings
    voted, best, keep = call(kernels.softer_nms, _checks.softer_nms, "softer_nms", *arguments)
    return rounded(voted, boxes), rounded(best, scores), keep


def cluster_nms(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    iou_threshold: float,
    *,
    mode: str = "hard",
    sigma: float = 0.2,
    min_score: float = 1e-3,
    idxs: NDArray[Any] | None = None,
    max_output: int | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> tuple[Array, Array, Indices]:
    """Cluster-NMS: the boxes at which repeated Fast NMS comes to rest, and what they do to others.

    As :func:`cvkernels.weighted_nms.cluster_nms`.

    Args:
        boxes: shape [N, 4], rows (x1, y1, x2, y2), float16, float32 or float64, any strides.
        scores: shape [N], float16, float32 or float64; a box with a NaN score takes no part.
        iou_threshold: a finite number.
        mode: "hard", "score_penalty" or "weighted".
        sigma: width of the penalty, finite and positive.
        min_score: penalised scores below it are left out; finite, at least 0.
        idxs: shape [N], class of each box; boxes of different classes never interact.
        max_output: return at most this many boxes; None returns all.
        criterion: "iou", "giou", "diou" or "ciou", as in :func:`cvkernels.numpy.nms`.
        beta: exponent of the centre-distance term of "diou" and "ciou".

    Returns:
        boxes: [M, 4] in the dtype of ``boxes``, by descending score.
        scores: [M], penalised in that mode.
        keep: int64 [M], their indices.

    Raises:
        ValueError: an argument of the wrong shape or dtype or out of its range.
        TypeError: an argument of the wrong type.

    Determinism:
        As for :func:`weighted_nms`.

    Source:
        Zheng et al., Enhancing geometric factors, 2020 (arXiv 2005.03572).

    Example:
        >>> import numpy as np
        >>> boxes = np.array([[0.0, 0, 10, 10], [0.0, 0, 10, 20]])
        >>> cluster_nms(boxes, np.array([0.75, 0.5]), 0.3, mode="score_penalty")[1].round(4)
        array([0.75  , 0.1433])
    """
    rest = idxs, iou_threshold, sigma, min_score, max_output, mode, criterion, beta
    result = call(kernels.cluster_nms, _checks.cluster_nms, "cluster_nms", boxes, scores, *rest)
    if mode == "score_penalty":
        keep, new_scores = best_first(rounded(result, scores), min_score, max_output)
        return rounded(np.asarray(boxes).take(keep, 0), boxes), new_scores, keep
    selected, best, keep = result
    return rounded(selected, boxes), rounded(best, scores), keep
