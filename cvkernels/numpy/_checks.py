"""Argument checks of the NumPy functions: those of ``cvkernels/_checks`` on arrays.

The order and the words are the same, with array in place of tensor. They run after an entry of the
extension module has turned arguments down.
"""

from __future__ import annotations

import math
import numbers
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_FLOATS = ("float16", "float32", "float64")
_INTEGERS = ("uint8", "int8", "int16", "int32", "int64")
# NumPy has several dtypes of one name; these are they, by kind and size.
_KINDS: dict[tuple[str, int], tuple[str, ...]] = {("f", size): _FLOATS for size in (2, 4, 8)}
_KINDS |= {("u", 1): _INTEGERS} | {("i", size): _INTEGERS for size in (1, 2, 4, 8)}
_INT32_MAX = 2**31 - 1
_INT64_MAX = 2**63 - 1


def _fail(op: str, expected: str, got: object) -> NoReturn:
    raise ValueError(f"{op}: expected {expected}, got {got}")


def _fail_type(op: str, expected: str, value: object) -> NoReturn:
    raise TypeError(f"{op}: expected {expected}, got {type(value).__name__}")


def _listed(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _array(op: str, name: str, value: object) -> None:
    if not isinstance(value, np.ndarray):
        _fail_type(op, f"{name} to be an array", value)


def _dtype(op: str, name: str, value: Array, dtypes: tuple[str, ...]) -> None:
    if _KINDS.get((value.dtype.kind, value.dtype.itemsize)) is not dtypes:
        _fail(op, f"{name} of dtype {_listed(dtypes)}", value.dtype.name)


def _number(op: str, name: str, value: object) -> float:
    if not isinstance(value, (float, numbers.Real)):
        _fail_type(op, f"{name} to be a number", value)
    number: Any = value
    try:
        return float(number)
    except OverflowError:  # an integer beyond any float
        return math.inf if number > 0 else -math.inf


def _finite(op: str, name: str, value: object) -> None:
    number = _number(op, name, value)
    if not math.isfinite(number):
        _fail(op, f"{name} to be finite", f"{number:g}")


def _positive(op: str, name: str, value: object) -> None:
    number = _number(op, name, value)
    if not (math.isfinite(number) and number > 0):
        _fail(op, f"{name} to be finite and positive", f"{number:g}")


def _min_score(op: str, value: object) -> None:
    number = _number(op, "min_score", value)
    if not (math.isfinite(number) and number >= 0):
        _fail(op, "min_score to be finite and at least 0", f"{number:g}")


def _flag(op: str, name: str, value: object) -> None:
    if not isinstance(value, (bool, numbers.Number, np.bool_)):
        _fail_type(op, f"{name} to be a bool", value)


def _choice(op: str, name: str, value: object, *choices: str) -> None:
    if not isinstance(value, str) or value not in choices:
        quoted = tuple(f"'{choice}'" for choice in choices)
        _fail(op, f"{name} to be {_listed(quoted)}", repr(value))


def _limit(op: str, max_output: Any) -> None:
    padded = op.endswith("_padded")
    if max_output is None and not padded:
        return
    if isinstance(max_output, bool) or not isinstance(max_output, (int, numbers.Integral)):
        _fail_type(op, "max_output to be an integer", max_output)
    if int(max_output) < 0:
        least = "at least 0" if padded else "None or at least 0"
        _fail(op, f"max_output to be {least}", max_output)
    if int(max_output) > _INT64_MAX:
        _fail(op, "max_output below 2^63", max_output)


def _overlap(op: str, criterion: object, beta: object) -> None:
    _choice(op, "criterion", criterion, "iou", "giou", "diou", "ciou")
    _positive(op, "beta", beta)


def _row_values(op: str, name: str, value: Array, boxes: Array) -> None:
    """Checks a float array with one value per box, or four of them where it is variances."""
    _array(op, name, value)
    wanted = boxes.shape if name == "variances" else boxes.shape[:-1]
    if value.shape != wanted:
        _fail(op, f"{name} of shape {wanted}", value.shape)
    _dtype(op, name, value, _FLOATS)


def _candidates(
    op: str, boxes: Array, scores: Array, idxs: Array | None, *, name: str = "boxes"
) -> None:
    """Checks the arrays that every function has; ``name`` may be overlaps [N, N] instead."""
    _array(op, name, boxes)
    _array(op, "scores", scores)
    if name == "overlaps":
        if boxes.ndim != 2 or boxes.shape[0] != boxes.shape[1]:
            _fail(op, "overlaps of shape (N, N)", boxes.shape)
    else:
        dims = 3 if op.endswith("_padded") else 2
        columns = 5 if op == "nms_rotated" else 4
        if boxes.ndim != dims or boxes.shape[-1] != columns:
            lead = "B, N" if dims == 3 else "N"
            _fail(op, f"boxes of shape ({lead}, {columns})", boxes.shape)
    _dtype(op, name, boxes, _FLOATS)
    _row_values(op, "scores", scores, boxes)
    if idxs is not None:
        _array(op, "idxs", idxs)
        if idxs.shape != boxes.shape[:-1]:
            _fail(op, f"idxs of shape {boxes.shape[:-1]}", idxs.shape)
        _dtype(op, "idxs", idxs, _INTEGERS)
    _count(op, boxes.shape[-2])


def _count(op: str, count: int) -> None:
    if count > _INT32_MAX:
        _fail(op, "fewer than 2^31 boxes", count)


def nms(
    op: str,
    boxes: Array,
    scores: Array,
    idxs: Array | None,
    iou_threshold: float,
    max_output: int | None,
    criterion: str,
    beta: float,
) -> None:
    """Checks the functions that take these arguments."""
    if op == "batched_nms" and idxs is None:
        _fail_type(op, "idxs to be an array", idxs)
    _candidates(op, boxes, scores, idxs)
    _greedy(op, iou_threshold, max_output, criterion, beta)


def _greedy(
    op: str, iou_threshold: float, max_output: int | None, criterion: str, beta: float
) -> None:
    _finite(op, "iou_threshold", iou_threshold)
    _limit(op, max_output)
    _overlap(op, criterion, beta)


def adaptive_nms(
    op: str, boxes: Array, scores: Array, idxs: Array | None, densities: Array, *rest: Any
) -> None:
    """Checks adaptive_nms; the rest is as for nms."""
    _candidates(op, boxes, scores, idxs)
    _row_values(op, "densities", densities, boxes)
    _greedy(op, *rest)


def iou_guided_nms(
    op: str, boxes: Array, scores: Array, idxs: Array | None, localization: Array, *rest: Any
) -> None:
    """Checks iou_guided_nms; the rest is as for nms."""
    _candidates(op, boxes, scores, idxs)
    _row_values(op, "localization", localization, boxes)
    _greedy(op, *rest)


def soft_nms(
    op: str,
    boxes: Array,
    scores: Array,
    idxs: Array | None,
    method: str,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    max_output: int | None,
    criterion: str,
    beta: float,
) -> None:
    """Checks soft_nms and soft_nms_padded."""
    _candidates(op, boxes, scores, idxs)
    _finite(op, "iou_threshold", iou_threshold)
    _positive(op, "sigma", sigma)
    _min_score(op, min_score)
    _limit(op, max_output)
    _choice(op, "method", method, "linear", "gaussian", "hard")
    _overlap(op, criterion, beta)


def softer_nms(
    op: str,
    boxes: Array,
    scores: Array,
    idxs: Array | None,
    variances: Array,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    sigma_t: float,
    max_output: int | None,
    method: str,
    criterion: str,
    beta: float,
) -> None:
    """Checks softer_nms."""
    _candidates(op, boxes, scores, idxs)
    _row_values(op, "variances", variances, boxes)
    _finite(op, "iou_threshold", iou_threshold)
    _positive(op, "sigma", sigma)
    _min_score(op, min_score)
    _positive(op, "sigma_t", sigma_t)
    _limit(op, max_output)
    _choice(op, "method", method, "linear", "gaussian", "hard")
    _overlap(op, criterion, beta)


def cluster_nms(
    op: str,
    boxes: Array,
    scores: Array,
    idxs: Array | None,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    max_output: int | None,
    mode: str,
    criterion: str,
    beta: float,
) -> None:
    """Checks cluster_nms."""
    _candidates(op, boxes, scores, idxs)
    _finite(op, "iou_threshold", iou_threshold)
    _positive(op, "sigma", sigma)
    _min_score(op, min_score)
    _limit(op, max_output)
    _choice(op, "mode", mode, "hard", "score_penalty", "weighted")
    _overlap(op, criterion, beta)


def matrix_nms(
    op: str,
    source: Array,
    scores: Array,
    idxs: Array | None,
    sigma: float,
    min_score: float,
    max_output: int | None,
    kernel: str,
    criterion: str = "iou",
    beta: float = 1.0,
) -> None:
    """Checks matrix_nms, and matrix_nms_from_overlaps, whose source is not boxes."""
    name = "overlaps" if op == "matrix_nms_from_overlaps" else "boxes"
    _candidates(op, source, scores, idxs, name=name)
    _positive(op, "sigma", sigma)
    _min_score(op, min_score)
    _limit(op, max_output)
    _choice(op, "kernel", kernel, "linear", "gaussian")
    _overlap(op, criterion, beta)


def nms_rotated(
    op: str,
    boxes: Array,
    scores: Array,
    idxs: Array | None,
    iou_threshold: float,
    max_output: int | None,
    clockwise: bool,
) -> None:
    """Checks nms_rotated."""
    _candidates(op, boxes, scores, idxs)
    _finite(op, "iou_threshold", iou_threshold)
    _limit(op, max_output)
    _flag(op, "clockwise", clockwise)


def box_iou_rotated(
    op: str, boxes1: Array, boxes2: Array, mode: str, aligned: bool, clockwise: bool
) -> None:
    """Checks box_iou_rotated."""
    _array(op, "boxes1", boxes1)
    _array(op, "boxes2", boxes2)
    for name, shape, boxes in (("boxes1", "(N, 5)", boxes1), ("boxes2", "(M, 5)", boxes2)):
        if boxes.ndim != 2 or boxes.shape[1] != 5:
            _fail(op, f"{name} of shape {shape}", boxes.shape)
        _dtype(op, name, boxes, _FLOATS)
    _flag(op, "aligned", aligned)
    if aligned and boxes2.shape != boxes1.shape:
        _fail(op, f"boxes2 of shape {boxes1.shape} where aligned", boxes2.shape)
    _choice(op, "mode", mode, "iou", "iof")
    _flag(op, "clockwise", clockwise)
    _count(op, max(len(boxes1), len(boxes2)))
