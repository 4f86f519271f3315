"""Non-maximum suppression: exact greedy, class-aware, batched, by any measure of overlap."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from cvkernels import _checks, _load, _nms

__all__ = [
    "adaptive_nms",
    "batched_nms",
    "diou_nms",
    "diou_nms_padded",
    "iou_guided_nms",
    "nms",
    "nms_match",
    "nms_padded",
]

_load.load()
_op: Callable[..., Tensor] = torch.ops.cvkernels.nms.default
_op_clusters: Callable[..., tuple[Tensor, Tensor]] = torch.ops.cvkernels.nms_clusters.default
_op_padded: Callable[..., tuple[Tensor, Tensor]] = torch.ops.cvkernels.nms_padded.default


def nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    max_output: int | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> Tensor:
    """Keeps the boxes that overlap no better box by more than ``iou_threshold``.

    Boxes are visited by descending score, ties by ascending index; a box is kept unless its
    intersection over union with a box kept before exceeds the threshold. The positional arguments
    and the results are those of :func:`torchvision.ops.nms`.

    Args:
        boxes: shape [N, 4], rows (x1, y1, x2, y2) in any unit, float16, bfloat16, float32 or
            float64; overlaps are evaluated in float32 (float64 for float64 boxes).
        scores: shape [N], any of the four dtypes, not necessarily that of ``boxes``.
        iou_threshold: a finite number; 1 or more keeps everything.
        max_output: stop as soon as this many boxes are kept; None keeps all.
        criterion: how overlap is measured: "iou", "giou" (Rezatofighi 2019), "diou" or "ciou"
            (Zheng 2020). All are at most the IoU, so the others suppress less.
        beta: exponent of the centre-distance term of "diou" and "ciou", finite and positive.

    Returns:
        int64 tensor [M] of kept indices by descending score. A box whose score is NaN is never
        kept; a box with NaN coordinates or no extent overlaps nothing.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range.
        TypeError: an argument of the wrong type.

    Gradient:
        None, the result is an index.

    Determinism:
        The same indices on CPU and CUDA, for any number of threads.

    Source:
        Girshick et al., Rich feature hierarchies, 2014 (arXiv 1311.2524).

    Example:
        >>> import torch
        >>> from cvkernels.nms import nms
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1.0, 0, 11, 10], [20.0, 0, 30, 10]])
        >>> nms(boxes, torch.tensor([0.8, 0.9, 0.5]), 0.5)
        tensor([1, 2])
    """
    try:
        most = _nms.limit("nms", max_output)
        return _op(boxes, scores, None, iou_threshold, most, criterion, beta, None)
    except Exception:
        # The dispatcher refuses some arguments before our checks see them; say those in our words.
        _checks.nms(boxes, scores, None, iou_threshold, max_output, criterion, beta)
        raise


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
    """:func:`nms` within each class: boxes of different classes never suppress each other.

    The positional arguments are those of :func:`torchvision.ops.batched_nms`. Class ids are
    compared, coordinates are not shifted, so the result is exact for any ids and coordinates,
    negative ones too.

    Args:
        boxes: shape [N, 4], rows (x1, y1, x2, y2), float16, bfloat16, float32 or float64.
        scores: shape [N], any of the four dtypes.
        idxs: shape [N], class (or image) of each box, uint8, int8, int16, int32 or int64.
        iou_threshold: a finite number.
        max_output: stop after this many boxes over all classes; None keeps all.
        criterion: "iou", "giou", "diou" or "ciou", as in :func:`nms`.
        beta: exponent of the centre-distance term of "diou" and "ciou".

    Returns:
        int64 tensor [M] of kept indices by descending score.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range.
        TypeError: an argument of the wrong type.

    Gradient:
        None, the result is an index.

    Determinism:
        The same indices on CPU and CUDA, for any number of threads.

    Source:
        Girshick et al., 2014 (arXiv 1311.2524), applied class by class.

    Example:
        >>> import torch
        >>> from cvkernels.nms import batched_nms
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1.0, 0, 11, 10], [0.0, 0, 10, 10]])
        >>> batched_nms(boxes, torch.tensor([0.8, 0.9, 0.5]), torch.tensor([0, 0, 1]), 0.5)
        tensor([1, 2])
    """
    try:
        if idxs is None:
            raise TypeError
        most = _nms.limit("batched_nms", max_output)
        return _op(boxes, scores, idxs, iou_threshold, most, criterion, beta, None)
    except Exception:
        _checks.nms(
            boxes, scores, idxs, iou_threshold, max_output, criterion, beta, op="batched_nms"
        )
        raise


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
    """:func:`nms` of a batch of images with an output of fixed size.

    On CUDA nothing waits for the device, so it can be captured in a CUDA graph.

    Args:
        boxes: shape [B, N, 4], float16, bfloat16, float32 or float64. Images with fewer boxes are
            padded with boxes of score NaN, which are never kept.
        scores: shape [B, N], any of the four dtypes.
        iou_threshold: a finite number.
        max_output: most boxes to keep per image.
        idxs: shape [B, N], optional classes as in :func:`batched_nms`.
        criterion: "iou", "giou", "diou" or "ciou", as in :func:`nms`.
        beta: exponent of the centre-distance term of "diou" and "ciou".

    Returns:
        keep: int64 [B, max_output], the kept indices of each image by descending score, then -1.
        count: int64 [B], how many were kept.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range.
        TypeError: an argument of the wrong type.

    Gradient:
        None, the results are indices.

    Determinism:
        The same indices on CPU and CUDA, for any number of threads.

    Source:
        Girshick et al., 2014 (arXiv 1311.2524).

    Example:
        >>> import torch
        >>> from cvkernels.nms import nms_padded
        >>> boxes = torch.tensor([[[0.0, 0, 10, 10], [1.0, 0, 11, 10], [20.0, 0, 30, 10]]])
        >>> nms_padded(boxes, torch.tensor([[0.8, 0.9, 0.5]]), 0.5, 3)
        (tensor([[ 1,  2, -1]]), tensor([2]))
    """
    return _padded("nms_padded", boxes, scores, idxs, iou_threshold, max_output, criterion, beta)


def _padded(
    op: str,
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    max_output: int,
    criterion: str,
    beta: float,
) -> tuple[Tensor, Tensor]:
    try:
        return _op_padded(boxes, scores, idxs, iou_threshold, max_output, criterion, beta)
    except Exception:
        _checks.nms_padded(boxes, scores, idxs, iou_threshold, max_output, criterion, beta, op=op)
        raise


def diou_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    beta: float = 1.0,
    idxs: Tensor | None = None,
    max_output: int | None = None,
) -> Tensor:
    """:func:`nms` by DIoU: of two boxes that overlap alike, the one with the farther centre stays.

    A box is suppressed when IoU - (rho^2 / c^2)^beta with a kept box exceeds the threshold, where
    rho is the distance of the centres and c the diagonal of the smallest box around both. The same
    as ``nms(..., criterion="diou")``.

    Args:
        boxes: shape [N, 4], rows (x1, y1, x2, y2), float16, bfloat16, float32 or float64.
        scores: shape [N], any of the four dtypes.
        iou_threshold: a finite number, compared with the DIoU.
        beta: exponent of the distance term, finite and positive; below 1 it weighs more.
        idxs: shape [N], class of each box; boxes of different classes never suppress each other.
        max_output: stop after this many boxes; None keeps all.

    Returns:
        int64 tensor [M] of kept indices by descending score.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range.
        TypeError: an argument of the wrong type.

    Gradient:
        None, the result is an index.

    Determinism:
        The same indices on CPU and CUDA, for any number of threads.

    Source:
        Zheng et al., Distance-IoU loss, 2020 (arXiv 1911.08287).

    Example:
        >>> import torch
        >>> from cvkernels.nms import diou_nms, nms
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [4.0, 0, 14, 10]])
        >>> scores = torch.tensor([0.9, 0.8])
        >>> nms(boxes, scores, 0.4), diou_nms(boxes, scores, 0.4)
        (tensor([0]), tensor([0, 1]))
    """
    try:
        most = _nms.limit("diou_nms", max_output)
        return _op(boxes, scores, idxs, iou_threshold, most, "diou", beta, None)
    except Exception:
        _checks.nms(boxes, scores, idxs, iou_threshold, max_output, "diou", beta, op="diou_nms")
        raise


def diou_nms_padded(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_output: int,
    *,
    beta: float = 1.0,
    idxs: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`diou_nms` of a batch of images with an output of fixed size.

    On CUDA nothing waits for the device, so it can be captured in a CUDA graph.

    Args:
        boxes: shape [B, N, 4], any of the four dtypes; pad with boxes of score NaN.
        scores: shape [B, N], any of the four dtypes.
        iou_threshold: a finite number, compared with the DIoU.
        max_output: most boxes to keep per image.
        beta: exponent of the distance term, finite and positive.
        idxs: shape [B, N], optional classes.

    Returns:
        keep: int64 [B, max_output], the kept indices of each image by descending score, then -1.
        count: int64 [B], how many were kept.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range.
        TypeError: an argument of the wrong type.

    Gradient:
        None, the results are indices.

    Determinism:
        The same indices on CPU and CUDA, for any number of threads.

    Source:
        Zheng et al., Distance-IoU loss, 2020 (arXiv 1911.08287).

    Example:
        >>> import torch
        >>> from cvkernels.nms import diou_nms_padded
        >>> boxes = torch.tensor([[[0.0, 0, 10, 10], [4.0, 0, 14, 10]]])
        >>> diou_nms_padded(boxes, torch.tensor([[0.9, 0.8]]), 0.4, 3)
        (tensor([[ 0,  1, -1]]), tensor([2]))
    """
    return _padded("diou_nms_padded", boxes, scores, idxs, iou_threshold, max_output, "diou", beta)


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
    """:func:`nms` whose threshold rises where a network predicts a crowd.

    The threshold of a kept box is the larger of ``iou_threshold`` and its density, the overlap that
    its object is predicted to have with its nearest neighbour.

    Args:
        boxes: shape [N, 4], rows (x1, y1, x2, y2), float16, bfloat16, float32 or float64.
        scores: shape [N], any of the four dtypes.
        densities: shape [N], any of the four dtypes; NaN counts as no density.
        iou_threshold: a finite number.
        idxs: shape [N], class of each box; boxes of different classes never suppress each other.
        max_output: stop after this many boxes; None keeps all.
        criterion: "iou", "giou", "diou" or "ciou", as in :func:`nms`.
        beta: exponent of the centre-distance term of "diou" and "ciou".

    Returns:
        int64 tensor [M] of kept indices by descending score.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range.
        TypeError: an argument of the wrong type.

    Gradient:
        None, the result is an index.

    Determinism:
        The same indices on CPU and CUDA, for any number of threads.

    Source:
        Liu et al., Adaptive NMS: refining pedestrian detection in a crowd, 2019 (arXiv 1904.03629).

    Example:
        >>> import torch
        >>> from cvkernels.nms import adaptive_nms
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [2.0, 0, 12, 10]])
        >>> scores = torch.tensor([0.9, 0.8])
        >>> for density in (0.3, 0.7):
        ...     print(adaptive_nms(boxes, scores, torch.tensor([density, 0.0]), 0.5))
        tensor([0])
        tensor([0, 1])
    """
    try:
        if densities is None:
            raise TypeError
        most = _nms.limit("adaptive_nms", max_output)
        return _op(boxes, scores, idxs, iou_threshold, most, criterion, beta, densities)
    except Exception:
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
        raise


def nms_match(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    idxs: Tensor | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> list[Tensor]:
    """Groups boxes: each kept box of :func:`nms` with the boxes that it suppresses.

    As in mmcv a box is suppressed at overlap >= ``iou_threshold``, unlike in :func:`nms`. A
    suppressed box belongs to the first kept box, by score, that suppresses it.

    Args:
        boxes: shape [N, 4], rows (x1, y1, x2, y2), float16, bfloat16, float32 or float64.
        scores: shape [N], any of the four dtypes; a box with a NaN score is in no group.
        iou_threshold: a finite number.
        idxs: shape [N], class of each box; a group is of one class.
        criterion: "iou", "giou", "diou" or "ciou", as in :func:`nms`.
        beta: exponent of the centre-distance term of "diou" and "ciou".

    Returns:
        A list of int64 tensors by descending score of the kept box: its index, then those of its
        group by descending score.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range.
        TypeError: an argument of the wrong type.

    Gradient:
        None, the results are indices.

    Determinism:
        The same indices on CPU and CUDA, for any number of threads.

    Source:
        mmcv.ops.nms_match.

    Example:
        >>> import torch
        >>> from cvkernels.nms import nms_match
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1.0, 0, 11, 10], [20.0, 0, 30, 10]])
        >>> nms_match(boxes, torch.tensor([0.8, 0.9, 0.5]), 0.5)
        [tensor([1, 0]), tensor([2])]
    """
    try:
        if not math.isfinite(iou_threshold):
            raise ValueError
        # overlap >= t, where both are compared as real numbers, is overlap > the double below t.
        below = max(math.nextafter(iou_threshold, -math.inf), -sys.float_info.max)
        keep, owner = _op_clusters(boxes, scores, idxs, below, -1, criterion, beta)
    except Exception:
        _checks.nms_match(boxes, scores, idxs, iou_threshold, criterion, beta)
        raise
    order = torch.sort(scores.detach(), descending=True, stable=True).indices
    owner = owner[order]
    order, owner = order[owner >= 0], owner[owner >= 0]
    groups = order[torch.sort(owner, stable=True).indices]  # the kept box is the first of its group
    sizes = torch.bincount(owner, minlength=len(keep))
    return list(groups.split(sizes.tolist()))


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
    """:func:`nms` in the order of predicted localization instead of classification.

    A kept box takes the best score of its cluster: itself and the boxes that it suppresses.

    Args:
        boxes: shape [N, 4], rows (x1, y1, x2, y2), float16, bfloat16, float32 or float64.
        scores: shape [N], classification scores, any of the four dtypes.
        localization: shape [N], predicted IoU of each box with its object, any of the four dtypes.
            A box with NaN here or in ``scores`` takes no part.
        iou_threshold: a finite number.
        idxs: shape [N], class of each box; boxes of different classes never suppress each other.
        max_output: stop after this many boxes; None keeps all.
        criterion: "iou", "giou", "diou" or "ciou", as in :func:`nms`.
        beta: exponent of the centre-distance term of "diou" and "ciou".

    Returns:
        keep: int64 [M], kept indices by descending localization, ties by index.
        scores: [M], the best score of each cluster, in the dtype of ``scores``.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range.
        TypeError: an argument of the wrong type.

    Gradient:
        With respect to ``scores``: to the best of each cluster, shared evenly by equals.

    Determinism:
        The same results on CPU and CUDA, for any number of threads.

    Source:
        Jiang et al., Acquisition of localization confidence, 2018 (arXiv 1807.11590).

    Example:
        >>> import torch
        >>> from cvkernels.nms import iou_guided_nms
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1.0, 0, 11, 10], [20.0, 0, 30, 10]])
        >>> scores, localization = torch.tensor([0.9, 0.6, 0.5]), torch.tensor([0.4, 0.8, 0.7])
        >>> iou_guided_nms(boxes, scores, localization, 0.5)
        (tensor([1, 2]), tensor([0.9000, 0.5000]))
    """
    _checks.iou_guided_nms(
        boxes, scores, idxs, localization, iou_threshold, max_output, criterion, beta
    )
    ranking = localization.detach().masked_fill(scores.detach().isnan(), math.nan)
    most = _nms.limit("iou_guided_nms", max_output)
    keep, owner = _op_clusters(boxes.detach(), ranking, idxs, iou_threshold, most, criterion, beta)
    # A first cluster takes the boxes that are in none.
    best = scores.new_full((keep.shape[0] + 1,), -math.inf).scatter_reduce(
        0,
        owner + 1,
        torch.where(owner < 0, 0, scores),
        "amax",
        include_self=False,
    )
    # Both ends: of a length that only the data knows, inductor of torch 2.11 cannot lower best[1:].
    return keep, best[1 : keep.shape[0] + 1]


# ---- fake kernels


@torch.library.register_fake("cvkernels::nms")
def _(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    max_output: int,
    criterion: str,
    beta: float,
    densities: Tensor | None,
) -> Tensor:
    op = "adaptive_nms" if densities is not None else "nms" if idxs is None else "batched_nms"
    _checks.nms(boxes, scores, idxs, iou_threshold, None, criterion, beta, densities, op=op)
    return boxes.new_empty((_nms.dynamic_size(),), dtype=torch.int64)


@torch.library.register_fake("cvkernels::nms_clusters")
def _(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    max_output: int,
    criterion: str,
    beta: float,
) -> tuple[Tensor, Tensor]:
    _checks.nms(boxes, scores, idxs, iou_threshold, None, criterion, beta, op="nms_clusters")
    keep = boxes.new_empty((_nms.dynamic_size(),), dtype=torch.int64)
    return keep, boxes.new_empty(boxes.shape[:1], dtype=torch.int64)


@torch.library.register_fake("cvkernels::nms_padded")
def _(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    max_output: int,
    criterion: str,
    beta: float,
) -> tuple[Tensor, Tensor]:
    _checks.nms_padded(boxes, scores, idxs, iou_threshold, max_output, criterion, beta)
    batch = boxes.shape[0]
    return (
        boxes.new_empty((batch, max_output), dtype=torch.int64),
        boxes.new_empty((batch,), dtype=torch.int64),
    )


# ---- autograd: the results are indices

_nms.not_differentiable("nms", 8)
_nms.not_differentiable("nms_clusters", 7)
_nms.not_differentiable("nms_padded", 7)


# ---- vmap

_ADVICE = (
    "each image may keep another number of boxes. Use nms_padded, whose output has a fixed size"
)
_nms.refuse_vmap("nms", _ADVICE)
_nms.refuse_vmap("nms_clusters", _ADVICE)
_nms.fold_vmap("nms_padded", 3, _op_padded)
