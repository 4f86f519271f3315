"""Checks of the NMS family."""

from __future__ import annotations

import torch
from torch import Tensor

from cvkernels._checks._base import (
    INT64_MAX,
    choice,
    dtype,
    fail,
    fail_type,
    finite,
    flag,
    float_dtype,
    g,
    integer,
    integer_dtype,
    number,
    positive,
    same_device,
    shape,
    sizes,
    sizes_differ,
    tensor,
)

# The order in which every function of the family looks at its arguments: boxes, scores, idxs, other
# tensors, iou_threshold, sigma, min_score, sigma_t, max_output, then method, kernel or mode, and
# criterion and beta last.


def _candidates(
    op: str, boxes: Tensor, scores: Tensor, idxs: Tensor | None, *, name: str = "boxes"
) -> None:
    """Checks the tensors that every function has; ``name`` may be overlaps [N, N] instead."""
    tensor(op, name, boxes)
    tensor(op, "scores", scores)
    if name == "overlaps":
        if boxes.dim() != 2 or sizes_differ(boxes.shape[:1], boxes.shape[1:]):
            fail(op, "overlaps of shape (N, N)", shape(boxes))
    else:
        dims, names = (3, "(B, N, 4)") if op.endswith("_padded") else (2, "(N, 4)")
        columns = 5 if op == "nms_rotated" else 4
        names = names.replace("4", str(columns))
        if boxes.dim() != dims or boxes.shape[-1] != columns:
            fail(op, f"boxes of shape {names}", shape(boxes))
    float_dtype(op, name, boxes)
    _row_values(op, "scores", scores, name, boxes)
    if idxs is not None:
        tensor(op, "idxs", idxs)
        if sizes_differ(idxs.shape, boxes.shape[:-1]):
            fail(op, f"idxs of shape {sizes(boxes.shape[:-1])}", shape(idxs))
        integer_dtype(op, "idxs", idxs)
        same_device(op, "idxs", idxs, name, boxes)


def _row_values(op: str, name: str, value: Tensor, boxes_name: str, boxes: Tensor) -> None:
    """Checks a float tensor with one value per box, or four of them where it is variances."""
    tensor(op, name, value)
    wanted = boxes.shape if name == "variances" else boxes.shape[:-1]
    if sizes_differ(value.shape, wanted):
        fail(op, f"{name} of shape {sizes(wanted)}", shape(value))
    float_dtype(op, name, value)
    same_device(op, name, value, boxes_name, boxes)


def _threshold(op: str, iou_threshold: float) -> None:
    number(op, "iou_threshold", iou_threshold)
    if not finite(iou_threshold):
        fail(op, "iou_threshold to be finite", g(iou_threshold))


def _min_score(op: str, min_score: float) -> None:
    number(op, "min_score", min_score)
    if not (finite(min_score) and min_score >= 0):
        fail(op, "min_score to be finite and at least 0", g(min_score))


def limit(op: str, max_output: int | None) -> None:
    """Checks ``max_output``: where None stands for no limit, or as the width of a padded result."""
    padded = op.endswith("_padded")
    if max_output is None and not padded:
        return
    integer(op, "max_output", max_output)
    assert max_output is not None
    if max_output < 0:
        least = "at least 0" if padded else "None or at least 0"
        fail(op, f"max_output to be {least}", max_output)
    if max_output > INT64_MAX:
        fail(op, "max_output below 2^63", max_output)


def criterion(op: str, criterion: str, beta: float) -> None:
    """Checks how overlap is measured."""
    choice(op, "criterion", criterion, "iou", "giou", "diou", "ciou")
    positive(op, "beta", beta)


_measure = criterion  # its name where an argument is called criterion


def nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    max_output: int | None,
    criterion: str = "iou",
    beta: float = 1.0,
    densities: Tensor | None = None,
    *,
    op: str = "nms",
) -> None:
    """Checks nms and, by ``op``, batched_nms, diou_nms, adaptive_nms and nms_clusters."""
    if op == "batched_nms" and idxs is None:
        fail_type(op, "idxs to be a tensor", idxs)
    _candidates(op, boxes, scores, idxs)
    if densities is not None or op == "adaptive_nms":
        _row_values(op, "densities", densities, "boxes", boxes)  # type: ignore[arg-type]
    _threshold(op, iou_threshold)
    limit(op, max_output)
    _measure(op, criterion, beta)


def nms_padded(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    max_output: int,
    criterion: str = "iou",
    beta: float = 1.0,
    *,
    op: str = "nms_padded",
) -> None:
    """Checks the arguments of nms_padded and diou_nms_padded."""
    nms(boxes, scores, idxs, iou_threshold, max_output, criterion, beta, op=op)


def nms_match(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    criterion: str,
    beta: float,
    *,
    op: str = "nms_match",
) -> None:
    """Checks the arguments of nms_match."""
    nms(boxes, scores, idxs, iou_threshold, None, criterion, beta, op=op)


def iou_guided_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    localization: Tensor,
    iou_threshold: float,
    max_output: int | None,
    criterion: str,
    beta: float,
    *,
    op: str = "iou_guided_nms",
) -> None:
    """Checks the arguments of iou_guided_nms."""
    _candidates(op, boxes, scores, idxs)
    _row_values(op, "localization", localization, "boxes", boxes)
    _threshold(op, iou_threshold)
    limit(op, max_output)
    _measure(op, criterion, beta)


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    method: str,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    max_output: int | None,
    criterion: str,
    beta: float,
    *,
    op: str = "soft_nms",
) -> None:
    """Checks the arguments of soft_nms and soft_nms_padded."""
    _candidates(op, boxes, scores, idxs)
    _threshold(op, iou_threshold)
    positive(op, "sigma", sigma)
    _min_score(op, min_score)
    limit(op, max_output)
    choice(op, "method", method, "linear", "gaussian", "hard")
    _measure(op, criterion, beta)


def weighted_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    max_output: int | None,
    criterion: str,
    beta: float,
    *,
    op: str = "weighted_nms",
) -> None:
    """Checks the arguments of weighted_nms and weighted_nms_padded."""
    nms(boxes, scores, idxs, iou_threshold, max_output, criterion, beta, op=op)


def softer_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    variances: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    sigma_t: float,
    max_output: int | None,
    method: str,
    criterion: str,
    beta: float,
    *,
    op: str = "softer_nms",
) -> None:
    """Checks the arguments of softer_nms."""
    _candidates(op, boxes, scores, idxs)
    _row_values(op, "variances", variances, "boxes", boxes)
    _threshold(op, iou_threshold)
    positive(op, "sigma", sigma)
    _min_score(op, min_score)
    positive(op, "sigma_t", sigma_t)
    limit(op, max_output)
    choice(op, "method", method, "linear", "gaussian", "hard")
    _measure(op, criterion, beta)


def cluster_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    max_output: int | None,
    mode: str,
    criterion: str,
    beta: float,
    *,
    op: str = "cluster_nms",
) -> None:
    """Checks the arguments of cluster_nms."""
    _candidates(op, boxes, scores, idxs)
    _threshold(op, iou_threshold)
    positive(op, "sigma", sigma)
    _min_score(op, min_score)
    limit(op, max_output)
    choice(op, "mode", mode, "hard", "score_penalty", "weighted")
    _measure(op, criterion, beta)


def _keep(op: str, keep: Tensor, boxes: Tensor) -> None:
    tensor(op, "keep", keep)
    if keep.dim() != 1:
        fail(op, "keep of shape (M,)", shape(keep))
    if keep.dtype != torch.int64:
        fail(op, "keep of dtype int64", dtype(keep))
    same_device(op, "keep", keep, "boxes", boxes)


def weighted_nms_vote(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    keep: Tensor,
    variances: Tensor | None,
    parameter: float,
    criterion: str,
    beta: float,
    *,
    op: str = "weighted_nms_vote",
) -> None:
    """Checks the dispatcher operator of that name: sigma_t with variances, else iou_threshold."""
    _candidates(op, boxes, scores, idxs)
    _keep(op, keep, boxes)
    if variances is None:
        _threshold(op, parameter)
    else:
        _row_values(op, "variances", variances, "boxes", boxes)
        positive(op, "sigma_t", parameter)
    _measure(op, criterion, beta)


def weighted_nms_penalty(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    keep: Tensor,
    sigma: float,
    criterion: str,
    beta: float,
    *,
    op: str = "weighted_nms_penalty",
) -> None:
    """Checks the dispatcher operator of that name."""
    _candidates(op, boxes, scores, idxs)
    _keep(op, keep, boxes)
    positive(op, "sigma", sigma)
    _measure(op, criterion, beta)


def matrix_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    sigma: float,
    min_score: float,
    max_output: int | None,
    kernel: str,
    criterion: str,
    beta: float,
    *,
    op: str = "matrix_nms",
) -> None:
    """Checks the arguments of matrix_nms."""
    _candidates(op, boxes, scores, idxs)
    positive(op, "sigma", sigma)
    _min_score(op, min_score)
    limit(op, max_output)
    choice(op, "kernel", kernel, "linear", "gaussian")
    _measure(op, criterion, beta)


def matrix_nms_from_overlaps(
    overlaps: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    sigma: float,
    min_score: float,
    max_output: int | None,
    kernel: str,
    *,
    op: str = "matrix_nms_from_overlaps",
) -> None:
    """Checks the arguments of matrix_nms_from_overlaps."""
    _candidates(op, overlaps, scores, idxs, name="overlaps")
    positive(op, "sigma", sigma)
    _min_score(op, min_score)
    limit(op, max_output)
    choice(op, "kernel", kernel, "linear", "gaussian")


def nms_rotated(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    max_output: int | None,
    clockwise: bool,
    *,
    op: str = "nms_rotated",
) -> None:
    """Checks the arguments of nms_rotated."""
    _candidates(op, boxes, scores, idxs)
    _threshold(op, iou_threshold)
    limit(op, max_output)
    flag(op, "clockwise", clockwise)


def box_iou_rotated(
    boxes1: Tensor,
    boxes2: Tensor,
    mode: str,
    aligned: bool,
    clockwise: bool,
    *,
    op: str = "box_iou_rotated",
) -> None:
    """Checks the arguments of box_iou_rotated."""
    tensor(op, "boxes1", boxes1)
    tensor(op, "boxes2", boxes2)
    for name, wanted, boxes in (("boxes1", "(N, 5)", boxes1), ("boxes2", "(M, 5)", boxes2)):
        if boxes.dim() != 2 or boxes.shape[1] != 5:
            fail(op, f"{name} of shape {wanted}", shape(boxes))
        float_dtype(op, name, boxes)
    same_device(op, "boxes2", boxes2, "boxes1", boxes1)
    flag(op, "aligned", aligned)
    if aligned and sizes_differ(boxes2.shape, boxes1.shape):
        fail(op, f"boxes2 of shape {shape(boxes1)} where aligned", shape(boxes2))
    choice(op, "mode", mode, "iou", "iof")
    flag(op, "clockwise", clockwise)
