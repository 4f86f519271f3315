"""Matrix NMS: all scores decay at once, without a sequential loop."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cvkernels import _checks, _load, _nms

__all__ = ["matrix_nms", "matrix_nms_from_overlaps"]

_load.load()
_op: Callable[..., Tensor] = torch.ops.cvkernels.matrix_nms.default
_op_overlaps: Callable[..., Tensor] = torch.ops.cvkernels.matrix_nms_overlaps.default


def matrix_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    kernel: str = "gaussian",
    sigma: float = 0.5,
    min_score: float = 1e-3,
    max_output: int | None = None,
    idxs: Tensor | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Lowers every score by its overlaps with better boxes, less where those are overlapped too.

    With o the overlap of box i with a later one j by score, and c the largest overlap of i with a
    box before it, the score of j is multiplied by the least f(o) / f(c) over all i, at most 1:
    f(x) = 1 - x ("linear") or exp(-x^2 / sigma) ("gaussian").

    Args:
        boxes: shape [N, 4], rows (x1, y1, x2, y2) in any unit, float16, bfloat16, float32 or
            float64; evaluated in float32, in float64 where boxes or scores are float64.
        scores: shape [N], any of the four dtypes; a box with a NaN score takes no part.
        kernel: "gaussian" or "linear".
        sigma: width of the gaussian, finite and positive. The code of SOLOv2 multiplies by its
            sigma, 2.0, which is 0.5 here.
        min_score: new scores below it are left out; finite, at least 0.
        max_output: return at most this many boxes; None returns all.
        idxs: shape [N], class of each box; boxes of different classes do not lower each other.
        criterion: "iou", "giou", "diou" or "ciou", as in :func:`cvkernels.nms.nms`; a negative
            overlap counts as none.
        beta: exponent of the centre-distance term of "diou" and "ciou".

    Returns:
        keep: int64 [M], indices by descending new score, ties by index.
        new_scores: [M], in the dtype of ``scores``.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range.
        TypeError: an argument of the wrong type.

    Gradient:
        ``new_scores`` with respect to ``scores``: the factor, which counts as 0 for a score of 0 or
        infinity.

    Determinism:
        The same results on CPU and CUDA, for any number of threads.

    Source:
        Wang et al., SOLOv2, 2020 (arXiv 2003.10152).

    Example:
        >>> import torch
        >>> from cvkernels.matrix_nms import matrix_nms
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 20], [50.0, 0, 60, 10]])
        >>> matrix_nms(boxes, torch.tensor([0.9, 0.8, 0.5]), kernel="linear")
        (tensor([0, 2, 1]), tensor([0.9000, 0.5000, 0.4000]))
    """
    try:
        _nms.limit("matrix_nms", max_output)
        new_scores = _op(boxes, scores, idxs, kernel, sigma, criterion, beta)
        if not 0 <= min_score <= sys.float_info.max:
            raise ValueError
    except Exception:
        # The dispatcher refuses some arguments before our checks see them; say those in our words.
        _checks.matrix_nms(
            boxes, scores, idxs, sigma, min_score, max_output, kernel, criterion, beta
        )
        raise
    new_scores = new_scores.to(scores.dtype)
    keep = _nms.best_first(new_scores, min_score, max_output)
    return keep, new_scores[keep]


def matrix_nms_from_overlaps(
    overlaps: Tensor,
    scores: Tensor,
    *,
    kernel: str = "gaussian",
    sigma: float = 0.5,
    min_score: float = 1e-3,
    max_output: int | None = None,
    idxs: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`matrix_nms` over given overlaps, of masks for example.

    Args:
        overlaps: shape [N, N], overlap of i and j, float16, bfloat16, float32 or float64. Only
            [i, j] with i before j by score is read; negative values and NaN count as 0.
        scores: shape [N], any of the four dtypes; a NaN score takes no part.
        kernel: "gaussian" or "linear".
        sigma: width of the gaussian, finite and positive.
        min_score: new scores below it are left out; finite, at least 0.
        max_output: return at most this many; None returns all.
        idxs: shape [N], class of each; different classes do not lower each other.

    Returns:
        keep: int64 [M], indices by descending new score, ties by index.
        new_scores: [M], in the dtype of ``scores``.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range.
        TypeError: an argument of the wrong type.

    Gradient:
        ``new_scores`` with respect to ``scores``: the factor, which counts as 0 for a score of 0 or
        infinity.

    Determinism:
        The same results on CPU and CUDA, for any number of threads.

    Source:
        Wang et al., SOLOv2, 2020 (arXiv 2003.10152).

    Example:
        >>> import torch
        >>> from cvkernels.matrix_nms import matrix_nms_from_overlaps
        >>> overlaps = torch.tensor([[1.0, 0.25], [0.25, 1.0]])
        >>> matrix_nms_from_overlaps(overlaps, torch.tensor([0.9, 0.8]), kernel="linear")
        (tensor([0, 1]), tensor([0.9000, 0.6000]))
    """
    op = "matrix_nms_from_overlaps"
    try:
        _nms.limit(op, max_output)
        new_scores = _op_overlaps(overlaps, scores, idxs, kernel, sigma)
        if not 0 <= min_score <= sys.float_info.max:
            raise ValueError
    except Exception:
        _checks.matrix_nms_from_overlaps(
            overlaps, scores, idxs, sigma, min_score, max_output, kernel
        )
        raise
    new_scores = new_scores.to(scores.dtype)
    keep = _nms.best_first(new_scores, min_score, max_output)
    return keep, new_scores[keep]


# ---- fake kernels


@torch.library.register_fake("cvkernels::matrix_nms")
def _(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    kernel: str,
    sigma: float,
    criterion: str,
    beta: float,
) -> Tensor:
    _checks.matrix_nms(boxes, scores, idxs, sigma, 0.0, None, kernel, criterion, beta)
    return scores.new_empty(scores.shape, dtype=_nms.arithmetic(boxes, scores))


@torch.library.register_fake("cvkernels::matrix_nms_overlaps")
def _(overlaps: Tensor, scores: Tensor, idxs: Tensor | None, kernel: str, sigma: float) -> Tensor:
    _checks.matrix_nms_from_overlaps(overlaps, scores, idxs, sigma, 0.0, None, kernel)
    return scores.new_empty(scores.shape, dtype=_nms.arithmetic(overlaps, scores))


# ---- autograd: a score is multiplied by a factor that does not depend on it


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.arguments = len(inputs)
    ctx.save_for_backward(inputs[1], output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    scores, new_scores = ctx.saved_tensors
    factor = _nms.factor(scores, new_scores)
    return None, (grad * factor).to(scores.dtype), *(None,) * (ctx.arguments - 2)


for _name in ("matrix_nms", "matrix_nms_overlaps"):
    torch.library.register_autograd(f"cvkernels::{_name}", _backward, setup_context=_setup_context)


# ---- vmap

_ADVICE = "map over images in a loop"
_nms.refuse_vmap("matrix_nms", _ADVICE)
_nms.refuse_vmap("matrix_nms_overlaps", _ADVICE)
