"""NMS that merges: each kept box takes a mean of the boxes that it stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from cvkernels import _checks, _load, _nms
from cvkernels._overlap import overlap, touching
from cvkernels.nms import batched_nms, nms
from cvkernels.soft_nms import soft_nms

__all__ = ["cluster_nms", "softer_nms", "weighted_nms", "weighted_nms_padded"]

_load.load()
_op: Callable[..., tuple[Tensor, Tensor, Tensor]] = torch.ops.cvkernels.weighted_nms.default
_op_padded: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] = (
    torch.ops.cvkernels.weighted_nms_padded.default
)
_op_vote: Callable[..., Tensor] = torch.ops.cvkernels.weighted_nms_vote.default
_op_penalty: Callable[..., Tensor] = torch.ops.cvkernels.weighted_nms_penalty.default


def weighted_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    idxs: Tensor | None = None,
    max_output: int | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`cvkernels.nms.nms` in which each kept box becomes the mean of its cluster.

    The cluster of a kept box is itself and the boxes that it is the first to suppress, with
    ``max_output`` those ranked after the last kept box too. A member weighs its score times its
    overlap with the kept box.

    Args:
        boxes: shape [N, 4], rows (x1, y1, x2, y2) in any unit, float16, bfloat16, float32 or
            float64; merged in float32, in float64 where boxes or scores are float64.
        scores: shape [N], any of the four dtypes, not negative; a box with a NaN score takes no
            part. Where the weights of a cluster sum to 0 its box stays as it is.
        iou_threshold: a finite number.
        idxs: shape [N], class of each box, uint8, int8, int16, int32 or int64; a cluster is of one
            class.
        max_output: stop after this many boxes; None keeps all.
        criterion: "iou", "giou", "diou" or "ciou", as in :func:`cvkernels.nms.nms`.
        beta: exponent of the centre-distance term of "diou" and "ciou".

    Returns:
        boxes: [M, 4] merged boxes in the dtype of ``boxes``, by descending score.
        scores: [M], scores of the kept boxes.
        keep: int64 [M], kept indices.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range.
        TypeError: an argument of the wrong type.

    Gradient:
        Merged boxes with respect to boxes and scores, through the overlaps too; scores with respect
        to scores.

    Determinism:
        The same indices on CPU and CUDA, for any number of threads; merged boxes bitwise for any
        number of threads, within rounding between devices.

    Source:
        Zhou et al., CAD: scale invariant framework for real-time object detection, 2017.

    Example:
        >>> import torch
        >>> from cvkernels.weighted_nms import weighted_nms
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 20]])
        >>> weighted_nms(boxes, torch.tensor([0.75, 0.5]), 0.3)
        (tensor([[ 0.0000,  0.0000, 10.0000, 12.5000]]), tensor([0.7500]), tensor([0]))
    """
    try:
        most = _nms.limit("weighted_nms", max_output)
        merged, keep, _ = _op(boxes, scores, idxs, iou_threshold, most, criterion, beta)
    except Exception:
        # The dispatcher refuses some arguments before our checks see them; say those in our words.
        _checks.weighted_nms(boxes, scores, idxs, iou_threshold, max_output, criterion, beta)
        raise
    return merged, scores[keep], keep


def weighted_nms_padded(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_output: int,
    *,
    idxs: Tensor | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`weighted_nms` of a batch of images with an output of fixed size.

    On CUDA nothing waits for the device, so it can be captured in a CUDA graph.

    Args:
        boxes: shape [B, N, 4], any of the four dtypes. Images with fewer boxes are padded with
            boxes of score NaN.
        scores: shape [B, N], any of the four dtypes.
        iou_threshold: a finite number.
        max_output: most boxes to keep per image.
        idxs: shape [B, N], optional classes.
        criterion: "iou", "giou", "diou" or "ciou", as in :func:`cvkernels.nms.nms`.
        beta: exponent of the centre-distance term of "diou" and "ciou".

    Returns:
        boxes: [B, max_output, 4] merged boxes, then 0.
        scores: [B, max_output], scores of the kept boxes, then 0.
        keep: int64 [B, max_output], kept indices, then -1.
        count: int64 [B], how many were kept.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range.
        TypeError: an argument of the wrong type.

    Gradient:
        As for :func:`weighted_nms`.

    Determinism:
        As for :func:`weighted_nms`.

    Source:
        Zhou et al., CAD: scale invariant framework for real-time object detection, 2017.

    Example:
        >>> import torch
        >>> from cvkernels.weighted_nms import weighted_nms_padded
        >>> boxes = torch.tensor([[[0.0, 0, 10, 10], [0.0, 0, 10, 20]]])
        >>> merged, scores, keep, count = weighted_nms_padded(
        ...     boxes, torch.tensor([[0.75, 0.5]]), 0.3, 2
        ... )
        >>> merged, keep, count
        (tensor([[[ 0.0000,  0.0000, 10.0000, 12.5000],
                 [ 0.0000,  0.0000,  0.0000,  0.0000]]]), tensor([[ 0, -1]]), tensor([1]))
    """
    try:
        merged, keep, count, _ = _op_padded(
            boxes, scores, idxs, iou_threshold, max_output, criterion, beta
        )
    except Exception:
        _checks.weighted_nms(
            boxes,
            scores,
            idxs,
            iou_threshold,
            max_output,
            criterion,
            beta,
            op="weighted_nms_padded",
        )
        raise
    return merged, _nms.kept_values(scores, keep), keep, count


def softer_nms(
    boxes: Tensor,
    scores: Tensor,
    variances: Tensor,
    iou_threshold: float,
    *,
    sigma_t: float = 0.02,
    method: str = "hard",
    sigma: float = 0.5,
    min_score: float = 1e-3,
    idxs: Tensor | None = None,
    max_output: int | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Hard or Soft-NMS, then variance voting over the place of each kept box.

    Every box of its class that a kept box overlaps votes, itself too: coordinate c of box j weighs
    exp(-(1 - IoU)^2 / sigma_t) / variances[j, c].

    Args:
        boxes: shape [N, 4], rows (x1, y1, x2, y2) in any unit, float16, bfloat16, float32 or
            float64; voted in float32, in float64 where boxes or scores are float64.
        scores: shape [N], any of the four dtypes; a box with a NaN score takes no part.
        variances: shape [N, 4], predicted variance of each coordinate in its squared unit, any of
            the four dtypes. One that is not positive and finite does not vote.
        iou_threshold: a finite number, for "hard" and "linear".
        sigma_t: how far voters may be, finite and positive.
        method: "hard" selects with :func:`cvkernels.nms.nms`, "linear" and "gaussian" with
            :func:`cvkernels.soft_nms.soft_nms`.
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
        ValueError: an argument of the wrong shape, dtype or device or out of its range.
        TypeError: an argument of the wrong type.

    Gradient:
        Voted boxes with respect to boxes and variances; scores with respect to scores.

    Determinism:
        The same indices on CPU and CUDA, for any number of threads; voted boxes bitwise for any
        number of threads, within rounding between devices.

    Source:
        He et al., Bounding box regression with uncertainty, 2019 (arXiv 1809.08545).

    Example:
        >>> import torch
        >>> from cvkernels.weighted_nms import softer_nms
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 11]])
        >>> variances = torch.tensor([[1.0, 1, 1, 4], [1.0, 1, 1, 1]])
        >>> softer_nms(boxes, torch.tensor([0.9, 0.8]), variances, 0.5)[0]
        tensor([[ 0.0000,  0.0000, 10.0000, 10.7257]])
    """
    _checks.softer_nms(
        boxes,
        scores,
        idxs,
        variances,
        iou_threshold,
        sigma,
        min_score,
        sigma_t,
        max_output,
        method,
        criterion,
        beta,
    )
    if method == "hard":
        keep = _hard(boxes, scores, idxs, iou_threshold, max_output, criterion, beta)
        new_scores = scores[keep]
    else:
        keep, new_scores = soft_nms(
            boxes,
            scores,
            method=method,
            iou_threshold=iou_threshold,
            sigma=sigma,
            min_score=min_score,
            max_output=max_output,
            idxs=idxs,
            criterion=criterion,
            beta=beta,
        )
    voted = _op_vote(boxes, scores, idxs, keep, variances, sigma_t, criterion, beta)
    return voted, new_scores, keep


def cluster_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    mode: str = "hard",
    sigma: float = 0.2,
    min_score: float = 1e-3,
    idxs: Tensor | None = None,
    max_output: int | None = None,
    criterion: str = "iou",
    beta: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster-NMS: the boxes at which repeated Fast NMS comes to rest, and what they do to others.

    They are those of greedy NMS. "hard" returns them. "score_penalty" removes nothing: every score
    is multiplied by exp(-overlap^2 / sigma) for each of them that is ranked before it. "weighted"
    moves each of them to the mean of itself and all later boxes that overlap it by more than the
    threshold, weighted by score times overlap; unlike in :func:`weighted_nms` clusters may share
    boxes.

    Args:
        boxes: shape [N, 4], rows (x1, y1, x2, y2) in any unit, float16, bfloat16, float32 or
            float64; merged in float32, in float64 where boxes or scores are float64.
        scores: shape [N], any of the four dtypes; a box with a NaN score takes no part.
        iou_threshold: a finite number.
        mode: "hard", "score_penalty" or "weighted".
        sigma: width of the penalty, finite and positive.
        min_score: penalised scores below it are left out; finite, at least 0.
        idxs: shape [N], class of each box; boxes of different classes never interact.
        max_output: return at most this many boxes; None returns all.
        criterion: "iou", "giou", "diou" or "ciou", as in :func:`cvkernels.nms.nms`.
        beta: exponent of the centre-distance term of "diou" and "ciou".

    Returns:
        boxes: [M, 4] in the dtype of ``boxes``, by descending score.
        scores: [M], penalised in that mode.
        keep: int64 [M], their indices.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range.
        TypeError: an argument of the wrong type.

    Gradient:
        Boxes with respect to boxes, in "weighted" to scores too; scores with respect to scores.

    Determinism:
        The same indices on CPU and CUDA, for any number of threads; merged boxes bitwise for any
        number of threads, within rounding between devices.

    Source:
        Zheng et al., Enhancing geometric factors, 2020 (arXiv 2005.03572).

    Example:
        >>> import torch
        >>> from cvkernels.weighted_nms import cluster_nms
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 20]])
        >>> cluster_nms(boxes, torch.tensor([0.75, 0.5]), 0.3, mode="score_penalty")[1:]
        (tensor([0.7500, 0.1433]), tensor([0, 1]))
    """
    _checks.cluster_nms(
        boxes,
        scores,
        idxs,
        iou_threshold,
        sigma,
        min_score,
        max_output,
        mode,
        criterion,
        beta,
    )
    most = None if mode == "score_penalty" else max_output
    keep = _hard(boxes, scores, idxs, iou_threshold, most, criterion, beta)
    if mode == "hard":
        return boxes[keep], scores[keep], keep
    if mode == "weighted":
        voted = _op_vote(boxes, scores, idxs, keep, None, iou_threshold, criterion, beta)
        return voted, scores[keep], keep
    new_scores = _op_penalty(boxes, scores, idxs, keep, sigma, criterion, beta).to(scores.dtype)
    keep = _nms.best_first(new_scores, min_score, max_output)
    return boxes[keep], new_scores[keep], keep


def _hard(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    max_output: int | None,
    criterion: str,
    beta: float,
) -> Tensor:
    boxes, scores = boxes.detach(), scores.detach()
    if idxs is None:
        return nms(
            boxes, scores, iou_threshold, max_output=max_output, criterion=criterion, beta=beta
        )
    return batched_nms(
        boxes, scores, idxs, iou_threshold, max_output=max_output, criterion=criterion, beta=beta
    )


# ---- fake kernels


@torch.library.register_fake("cvkernels::weighted_nms")
def _(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    max_output: int,
    criterion: str,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    _checks.weighted_nms(boxes, scores, idxs, iou_threshold, None, criterion, beta)
    kept = _nms.dynamic_size()
    return (
        boxes.new_empty((kept, 4)),
        boxes.new_empty((kept,), dtype=torch.int64),
        boxes.new_empty(boxes.shape[:1], dtype=torch.int64),
    )


@torch.library.register_fake("cvkernels::weighted_nms_padded")
def _(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    max_output: int,
    criterion: str,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _checks.weighted_nms(
        boxes, scores, idxs, iou_threshold, max_output, criterion, beta, op="weighted_nms_padded"
    )
    batch = boxes.shape[0]
    return (
        boxes.new_empty((batch, max_output, 4)),
        boxes.new_empty((batch, max_output), dtype=torch.int64),
        boxes.new_empty((batch,), dtype=torch.int64),
        boxes.new_empty(boxes.shape[:2], dtype=torch.int64),
    )


@torch.library.register_fake("cvkernels::weighted_nms_vote")
def _(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    keep: Tensor,
    variances: Tensor | None,
    parameter: float,
    criterion: str,
    beta: float,
) -> Tensor:
    _checks.weighted_nms_vote(boxes, scores, idxs, keep, variances, parameter, criterion, beta)
    return boxes.new_empty((keep.shape[0], 4))


@torch.library.register_fake("cvkernels::weighted_nms_penalty")
def _(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    keep: Tensor,
    sigma: float,
    criterion: str,
    beta: float,
) -> Tensor:
    _checks.weighted_nms_penalty(boxes, scores, idxs, keep, sigma, criterion, beta)
    return scores.new_empty(scores.shape, dtype=_nms.arithmetic(boxes, scores))


# ---- autograd: which boxes meet is decided; what they weigh is differentiated


def _leaf(tensor: Tensor, *with_: Tensor) -> Tensor:
    """The tensor in the arithmetic of the kernels, as a leaf that takes a gradient."""
    wide = any(t.dtype == torch.float64 for t in (tensor, *with_))
    return tensor.detach().to(torch.float64 if wide else torch.float32).requires_grad_()


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Rows [..., K, 4] of ``values`` [..., N, 4]."""
    return values.gather(-2, index[..., None].expand(*index.shape, 4))


def _weight(a: Tensor, b: Tensor, meet: Tensor, criterion: str, beta: float) -> Tensor:
    """Overlap of a and b where they meet and it is positive, else 0."""
    unit = a.new_tensor([0.0, 0, 1, 1])
    a, b = torch.where(meet[..., None], a, unit), torch.where(meet[..., None], b, unit)
    value = overlap(a, b, criterion, beta)
    return torch.where(meet & (value > 0), value, 0)


def _mean(own: Tensor, weights: Tensor, differences: Tensor, box: Tensor) -> Tensor:
    """A box moved by the sum of weighted differences over that of the weights and its own."""
    total = own + weights
    moves = total > 0
    return torch.where(moves, box + differences / torch.where(moves, total, 1), box)


@torch.library.custom_op("cvkernels::weighted_nms_merge_backward", mutates_args=())
def _merge_backward(
    grad: Tensor,
    boxes: Tensor,
    scores: Tensor,
    keep: Tensor,
    owner: Tensor,
    criterion: str,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of merged boxes [..., M, 4] with respect to boxes and scores."""
    if keep.shape[-1] == 0 or boxes.shape[-2] == 0:
        return torch.zeros_like(boxes), torch.zeros_like(scores)

    def differentiate() -> tuple[Tensor, Tensor]:
        b, s = _leaf(boxes, scores), _leaf(scores, boxes)
        kept = keep.clamp(min=0)
        row = owner.clamp(min=0)
        index = kept.gather(-1, row)  # of the box that each box belongs to
        here = _rows(b, index)
        itself = index == torch.arange(boxes.shape[-2], device=boxes.device)
        meet = (owner >= 0) & ~itself & touching(here.detach(), b.detach())
        weight = _weight(here, b, meet, criterion, beta)
        weight = weight * torch.where(weight.detach() > 0, s, 0)
        pull = weight[..., None] * torch.where(meet[..., None], b - here, 0)
        zeros = torch.zeros_like(_rows(b, kept))
        merged = _mean(
            s.gather(-1, kept)[..., None],
            zeros[..., 0].scatter_add(-1, row, weight)[..., None],
            zeros.scatter_add(-2, row[..., None].expand(pull.shape), pull),
            _rows(b, kept),
        )
        upstream = torch.where(keep[..., None] >= 0, grad, 0).to(merged.dtype)
        of_boxes, of_scores = torch.autograd.grad(merged, (b, s), upstream)
        return of_boxes.to(boxes.dtype), of_scores.to(scores.dtype)

    return _nms.with_autograd(differentiate, boxes.device)


@_merge_backward.register_fake
def _(
    grad: Tensor,
    boxes: Tensor,
    scores: Tensor,
    keep: Tensor,
    owner: Tensor,
    criterion: str,
    beta: float,
) -> tuple[Tensor, Tensor]:
    return boxes.new_empty(boxes.shape), scores.new_empty(scores.shape)


def _setup_merge(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    boxes, scores, *_, ctx.criterion, ctx.beta = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(boxes, scores, output[1], output[-1])


def _backward_merge(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    grads = _merge_backward(grad, *ctx.saved_tensors, ctx.criterion, ctx.beta)
    return *grads, *(None,) * 5


_PAIRS = 1 << 20  # kept boxes times boxes that the backward of the vote holds at once


@torch.library.custom_op("cvkernels::weighted_nms_vote_backward", mutates_args=())
def _vote_backward(
    grad: Tensor,
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    keep: Tensor,
    variances: Tensor | None,
    parameter: float,
    criterion: str,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of voted boxes [M, 4] with respect to boxes, scores and variances."""

    def differentiate() -> tuple[Tensor, Tensor, Tensor]:
        leaves = [_leaf(boxes, scores), _leaf(scores, boxes)]
        if variances is not None:
            leaves.append(_leaf(variances, boxes, scores))
        sums = [torch.zeros_like(leaf) for leaf in leaves]
        order = torch.sort(scores, descending=True, stable=True).indices
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        chunk = max(1, _PAIRS // max(1, len(boxes)))
        for k, upstream in zip(keep.split(chunk), grad.split(chunk), strict=True):
            voted = _voted(leaves, idxs, k, rank, parameter, criterion, beta)
            grads = torch.autograd.grad(voted, leaves, upstream.to(voted.dtype), allow_unused=True)
            sums = [a if g is None else a + g for a, g in zip(sums, grads, strict=True)]
        of_variances = boxes.new_empty(0) if variances is None else sums[2].to(variances.dtype)
        return sums[0].to(boxes.dtype), sums[1].to(scores.dtype), of_variances

    return _nms.with_autograd(differentiate, boxes.device)


@_vote_backward.register_fake
def _(
    grad: Tensor,
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    keep: Tensor,
    variances: Tensor | None,
    parameter: float,
    criterion: str,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_variances = boxes.new_empty(0) if variances is None else torch.empty_like(variances)
    return boxes.new_empty(boxes.shape), scores.new_empty(scores.shape), grad_variances


def _setup_vote(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    boxes, scores, idxs, keep, variances, *ctx.options = inputs
    ctx.save_for_backward(boxes, scores, idxs, keep, variances)


def _backward_vote(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_boxes, grad_scores, grad_variances = _vote_backward(grad, *ctx.saved_tensors, *ctx.options)
    voters = None if ctx.saved_tensors[4] is None else grad_variances
    return grad_boxes, grad_scores, None, None, voters, None, None, None


def _voted(
    leaves: list[Tensor],
    idxs: Tensor | None,
    k: Tensor,
    rank: Tensor,
    parameter: float,
    criterion: str,
    beta: float,
) -> Tensor:
    """weighted_nms_vote for kept boxes ``k`` [K], as a matrix of all pairs."""
    b, s = leaves[:2]
    here = b[k][:, None]
    ranked = ~s.detach().isnan()
    meet = touching(here.detach(), b.detach()) & ranked & ranked[k][:, None]
    if idxs is not None:
        meet = meet & (idxs[k][:, None] == idxs)
    differences = torch.where(meet[..., None], b - here, 0)
    if len(leaves) == 2:
        weight = _weight(here, b, meet & (rank > rank[k][:, None]), criterion, beta)
        weight = torch.where(weight.detach().double() > parameter, weight, 0)
        weight = (weight * torch.where(weight.detach() > 0, s, 0))[..., None]
        own = s[k][:, None]
    else:
        variances = leaves[2]
        # Its own vote does not pull, and its weight is that of IoU 1.
        other = torch.arange(len(b), device=b.device) != k[:, None]
        iou = _weight(here, b, meet & other, "iou", 1.0)
        sigma = max(parameter, torch.finfo(iou.dtype).tiny)
        vote = torch.where(iou > 0, (-(1 - iou).square() / sigma).exp(), 0)[..., None]
        valid = (variances.detach() > 0) & variances.detach().isfinite()
        confidence = torch.where(valid, 1 / torch.where(valid, variances, 1), 0)
        weight, own = vote * confidence, confidence[k]
    return _mean(own, weight.sum(1), (weight * differences).sum(1), b[k])


def _setup_penalty(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1], output)


def _backward_penalty(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    scores, new_scores = ctx.saved_tensors
    factor = _nms.factor(scores, new_scores)
    return None, (grad * factor).to(scores.dtype), *(None,) * 5


def _once(function: str) -> NoReturn:
    raise NotImplementedError(
        f"{function}: expected at most one differentiation, got a second; its overlaps are "
        "differentiated once"
    )


def _merge_twice(ctx: Any, *_: Any) -> NoReturn:
    _once("weighted_nms_padded" if ctx.padded else "weighted_nms")


def _vote_twice(ctx: Any, *_: Any) -> NoReturn:
    _once("softer_nms" if ctx.softer else "cluster_nms")


def _setup_merge_twice(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.padded = inputs[3].dim() == 2


def _setup_vote_twice(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.softer = inputs[5] is not None


_merge_backward.register_autograd(_merge_twice, setup_context=_setup_merge_twice)
_vote_backward.register_autograd(_vote_twice, setup_context=_setup_vote_twice)
for _name in ("weighted_nms", "weighted_nms_padded"):
    torch.library.register_autograd(
        f"cvkernels::{_name}", _backward_merge, setup_context=_setup_merge
    )
torch.library.register_autograd(
    "cvkernels::weighted_nms_vote", _backward_vote, setup_context=_setup_vote
)
torch.library.register_autograd(
    "cvkernels::weighted_nms_penalty", _backward_penalty, setup_context=_setup_penalty
)


# ---- vmap

_ADVICE = (
    "each image may keep another number of boxes. Use weighted_nms_padded, whose output has a "
    "fixed size"
)
_nms.refuse_vmap("weighted_nms", _ADVICE)
_nms.refuse_vmap("weighted_nms_vote", _ADVICE)
_nms.refuse_vmap("weighted_nms_penalty", "map over images in a loop")
_nms.fold_vmap("weighted_nms_padded", 3, _op_padded)
