"""Soft-NMS: overlapping boxes lose score instead of being removed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cvkernels import _checks, _load, _nms

__all__ = ["soft_nms", "soft_nms_padded"]

_load.load()
_op: Callable[..., tuple[Tensor, Tensor]] = torch.ops.cvkernels.soft_nms.default
_op_padded: Callable[..., tuple[Tensor, Tensor, Tensor]] = (
    torch.ops.cvkernels.soft_nms_padded.default
)


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    method: str = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    max_output: int | None = None,
    idxs: Tensor | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Selects the box of the highest current score, lowers those that it overlaps, and repeats.

    The scores of the other boxes of its class are multiplied by 1 - overlap where the overlap is
    above ``iou_threshold`` ("linear"), or by exp(-overlap^2 / sigma) ("gaussian"); "hard" removes
    them instead, as :func:`cvkernels.nms.nms` does. A box whose current score falls below
    ``min_score`` is dropped.

    Args:
        boxes: shape [N, 4], rows (x1, y1, x2, y2) in any unit, float16, bfloat16, float32 or
            float64; evaluated in float32, in float64 where boxes or scores are float64.
        scores: shape [N], any of the four dtypes; NaN is never selected.
        method: "linear", "gaussian" or "hard".
        iou_threshold: a finite number, for "linear" and "hard".
        sigma: width of the decay of "gaussian", finite and positive.
        min_score: scores below it are dropped, before and while decaying; finite, at least 0.
        max_output: stop after this many boxes; None selects all.
        idxs: shape [N], class of each box, uint8, int8, int16, int32 or int64; boxes of different
            classes do not lower each other.
        criterion: "iou", "giou", "diou" or "ciou", as in :func:`cvkernels.nms.nms`; a negative
            overlap counts as none.
        beta: exponent of the centre-distance term of "diou" and "ciou".

    Returns:
        keep: int64 [M], indices in the order of selection, ties by index.
        new_scores: [M], their scores at selection, descending, in the dtype of ``scores``.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range.
        TypeError: an argument of the wrong type.

    Gradient:
        ``new_scores`` with respect to ``scores``: the product of the factors, which counts as 0 for
        a score of 0 or infinity. None with respect to boxes.

    Determinism:
        The same results on CPU and CUDA, for any number of threads.

    Source:
        Bodla et al., Soft-NMS, 2017 (arXiv 1704.04503).

    Example:
        >>> import torch
        >>> from cvkernels.soft_nms import soft_nms
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 20], [50.0, 0, 60, 10]])
        >>> soft_nms(boxes, torch.tensor([0.9, 0.8, 0.5]))
        (tensor([0, 2, 1]), tensor([0.9000, 0.5000, 0.4000]))
    """
    try:
        most = _nms.limit("soft_nms", max_output)
        new_scores, keep = _op(
            boxes, scores, idxs, method, iou_threshold, sigma, min_score, most, criterion, beta
        )
    except Exception:
        # The dispatcher refuses some arguments before our checks see them; say those in our words.
        _checks.soft_nms(
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
        raise
    return keep, new_scores.to(scores.dtype)


def soft_nms_padded(
    boxes: Tensor,
    scores: Tensor,
    max_output: int,
    *,
    method: str = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    idxs: Tensor | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`soft_nms` of a batch of images with an output of fixed size.

    On CUDA nothing waits for the device, so it can be captured in a CUDA graph.

    Args:
        boxes: shape [B, N, 4], any of the four dtypes. Images with fewer boxes are padded with
            boxes of score NaN.
        scores: shape [B, N], any of the four dtypes.
        max_output: most boxes to select per image.
        method: "linear", "gaussian" or "hard".
        iou_threshold: a finite number, for "linear" and "hard".
        sigma: width of the decay of "gaussian", finite and positive.
        min_score: scores below it are dropped; finite, at least 0.
        idxs: shape [B, N], optional classes.
        criterion: "iou", "giou", "diou" or "ciou", as in :func:`cvkernels.nms.nms`.
        beta: exponent of the centre-distance term of "diou" and "ciou".

    Returns:
        keep: int64 [B, max_output], indices of each image in the order of selection, then -1.
        new_scores: [B, max_output], their scores at selection, then 0.
        count: int64 [B], how many were selected.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range.
        TypeError: an argument of the wrong type.

    Gradient:
        ``new_scores`` with respect to ``scores``, as for :func:`soft_nms`.

    Determinism:
        The same results on CPU and CUDA, for any number of threads.

    Source:
        Bodla et al., Soft-NMS, 2017 (arXiv 1704.04503).

    Example:
        >>> import torch
        >>> from cvkernels.soft_nms import soft_nms_padded
        >>> boxes = torch.tensor([[[0.0, 0, 10, 10], [0.0, 0, 10, 20]]])
        >>> soft_nms_padded(boxes, torch.tensor([[0.9, 0.8]]), 3)
        (tensor([[ 0,  1, -1]]), tensor([[0.9000, 0.4000, 0.0000]]), tensor([2]))
    """
    try:
        new_scores, keep, count = _op_padded(
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
    except Exception:
        _checks.soft_nms(
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
            op="soft_nms_padded",
        )
        raise
    return keep, new_scores.to(scores.dtype), count


# ---- fake kernels


@torch.library.register_fake("cvkernels::soft_nms")
def _(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    method: str,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    max_output: int,
    criterion: str,
    beta: float,
) -> tuple[Tensor, Tensor]:
    _checks.soft_nms(
        boxes, scores, idxs, method, iou_threshold, sigma, min_score, None, criterion, beta
    )
    kept = _nms.dynamic_size()
    dtype = _nms.arithmetic(boxes, scores)
    return scores.new_empty((kept,), dtype=dtype), boxes.new_empty((kept,), dtype=torch.int64)


@torch.library.register_fake("cvkernels::soft_nms_padded")
def _(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    method: str,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    max_output: int,
    criterion: str,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    _checks.soft_nms(
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
        op="soft_nms_padded",
    )
    batch = boxes.shape[0]
    return (
        scores.new_empty((batch, max_output), dtype=_nms.arithmetic(boxes, scores)),
        boxes.new_empty((batch, max_output), dtype=torch.int64),
        boxes.new_empty((batch,), dtype=torch.int64),
    )


# ---- autograd: a score is multiplied by factors that do not depend on it


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    new_scores, keep = output[:2]
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(inputs[1], keep, new_scores)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    scores, keep, new_scores = ctx.saved_tensors
    factor = _nms.factor(_nms.kept_values(scores, keep), new_scores)
    index = torch.where(keep < 0, scores.shape[-1], keep)  # padding goes behind the end
    grad_scores = grad.new_zeros(*scores.shape[:-1], scores.shape[-1] + 1)
    grad_scores = grad_scores.scatter(-1, index, grad * factor)[..., :-1]
    return None, grad_scores.to(scores.dtype), *(None,) * 8


for _name in ("soft_nms", "soft_nms_padded"):
    torch.library.register_autograd(f"cvkernels::{_name}", _backward, setup_context=_setup_context)


# ---- vmap

_nms.refuse_vmap(
    "soft_nms",
    "each image may keep another number of boxes. Use soft_nms_padded, whose output has a fixed "
    "size",
)
_nms.fold_vmap("soft_nms_padded", 3, _op_padded)
