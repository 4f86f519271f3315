"""Argument checks shared by the public functions, the fake kernels and the references.

Every function here looks only at what a FakeTensor also has (type, shape, dtype, device) and never
at data, with the one exception of :func:`roi_align_batch_index`. The C++ bindings repeat the
dispatcher-level checks in the same order and with the same words, so that an error reads alike
wherever it is found: operator, argument, expected, actual.
"""

from __future__ import annotations

import numbers
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# Most samples per bin and axis; kRoiMaxGrid in csrc/common/roi_geometry.h.
ROI_ALIGN_MAX_GRID = 2**15
_FLOATS = "float16, bfloat16, float32 or float64"
_INTEGERS = "uint8, int8, int16, int32 or int64"
_INT32_MAX = 2**31 - 1
_INT64_MAX = 2**63 - 1
_FLOAT_MAX = sys.float_info.max


def _fail(op: str, expected: str, got: object) -> NoReturn:
    raise ValueError(f"{op}: expected {expected}, got {got}")


def _fail_type(op: str, expected: str, value: object) -> NoReturn:
    raise TypeError(f"{op}: expected {expected}, got {type(value).__name__}")


def _g(value: float) -> str:
    try:
        return f"{float(value):g}"
    except OverflowError:
        return "inf" if value > 0 else "-inf"


def _sizes(sizes: Sequence[Any]) -> str:
    text = [str(size) for size in sizes]
    return f"({text[0]},)" if len(text) == 1 else f"({', '.join(text)})"


def _shape(tensor: Tensor) -> str:
    return _sizes(tensor.shape)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _tensor(op: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        _fail_type(op, f"{name} to be a tensor", value)
    if value.layout is not torch.strided:
        _fail(op, f"{name} to be a dense tensor", str(value.layout).removeprefix("torch."))


def _float_dtype(op: str, name: str, value: Tensor) -> None:
    if value.dtype not in FLOAT_DTYPES:
        _fail(op, f"{name} of dtype {_FLOATS}", _dtype(value))


def _same_device(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.device != other.device:
        _fail(op, f"{name} on the device of {other_name} ({other.device})", value.device)


def _number(op: str, name: str, value: object) -> None:
    if not isinstance(value, (numbers.Real, torch.SymFloat, torch.SymInt)):
        _fail_type(op, f"{name} to be a number", value)


def _finite(value: float) -> bool:
    if not isinstance(value, (torch.SymFloat, torch.SymInt)):
        try:
            value = float(value)
        except OverflowError:  # an integer beyond any float
            return False
    # Comparisons, unlike math.isfinite, take the compiler's numbers; NaN fails both.
    return bool(-_FLOAT_MAX <= value <= _FLOAT_MAX)


def _integer(op: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (numbers.Integral, torch.SymInt)):
        _fail_type(op, f"{name} to be an integer", value)


def _flag(op: str, name: str, value: object) -> None:
    if not isinstance(value, numbers.Number):  # as the dispatcher, which takes a number's truth
        _fail_type(op, f"{name} to be a bool", value)


def _positive(op: str, name: str, value: Any) -> None:
    _number(op, name, value)
    if not (_finite(value) and value > 0):
        _fail(op, f"{name} to be finite and positive", _g(value))


def _choice(op: str, name: str, value: object, *choices: str) -> None:
    if not isinstance(value, str) or value not in choices:
        quoted = [f"'{choice}'" for choice in choices]
        text = f"{', '.join(quoted[:-1])} or {quoted[-1]}"
        _fail(op, f"{name} to be {text}", repr(value))


def pair(op: str, name: str, value: Any) -> tuple[int, int]:
    """Returns ``value`` as (height, width): an integer stands for both."""
    if isinstance(value, (list, tuple, torch.Size)):
        if len(value) != 2:
            _fail(op, f"{name} to be an integer or a pair of integers", f"{len(value)} values")
        height, width = value
    else:
        height = width = value
    _integer(op, name, height)
    _integer(op, name, width)
    return height, width


def roi_align_boxes(input: Tensor, boxes: Tensor | Sequence[Tensor]) -> Tensor:
    """Returns ``boxes`` as one [K, 5] tensor; a list holds the [L, 4] boxes of each image in turn.

    The image index is a float in column 0, so half-precision lists are widened to float32: bfloat16
    cannot hold an index above 256.
    """
    if isinstance(boxes, Tensor):
        return boxes
    if not isinstance(boxes, (list, tuple)):
        _fail_type("roi_align", "boxes to be a tensor or a list of tensors", boxes)
    _tensor("roi_align", "input", input)
    rows = []
    for image, group in enumerate(boxes):
        name = f"boxes[{image}]"
        _tensor("roi_align", name, group)
        if group.dim() != 2 or group.shape[1] != 4:
            _fail("roi_align", f"{name} of shape (L, 4)", _shape(group))
        _float_dtype("roi_align", name, group)
        _same_device("roi_align", name, group, "input", input)
        group = group.to(torch.promote_types(group.dtype, torch.float32))
        rows.append(torch.nn.functional.pad(group, (1, 0), value=float(image)))
    return torch.cat(rows) if rows else input.new_zeros((0, 5))


def roi_align(
    input: Tensor,
    boxes: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> None:
    """Checks the arguments of the dispatcher operators roi_align and roi_align_max."""
    op = "roi_align"
    _tensor(op, "input", input)
    _tensor(op, "boxes", boxes)
    if input.dim() != 4:
        _fail(op, "input of shape (N, C, H, W)", _shape(input))
    _float_dtype(op, "input", input)
    if boxes.dim() != 2 or boxes.shape[1] != 5:
        _fail(op, "boxes of shape (K, 5)", _shape(boxes))
    _float_dtype(op, "boxes", boxes)
    _same_device(op, "boxes", boxes, "input", input)
    _positive(op, "spatial_scale", spatial_scale)
    if pooled_height <= 0 or pooled_width <= 0 or max(pooled_height, pooled_width) > _INT32_MAX:
        _fail(op, "output_size of positive 32-bit values", f"({pooled_height}, {pooled_width})")
    _integer(op, "sampling_ratio", sampling_ratio)
    _flag(op, "aligned", aligned)
    if sampling_ratio > ROI_ALIGN_MAX_GRID:
        _fail(op, f"sampling_ratio of at most {ROI_ALIGN_MAX_GRID}", sampling_ratio)


def roi_align_mode(mode: object) -> None:
    """Checks ``mode`` of the public function."""
    _choice("roi_align", "mode", mode, "avg", "max")


def roi_align_batch_index(input: Tensor, boxes: Tensor) -> Tensor:
    """Checks column 0 of ``boxes`` and returns it as int64, truncated toward zero.

    The only check that reads data (CPU and references). Boxes are rounded to the arithmetic of
    ``input`` first, float32 or float64, as the kernels do.
    """
    arithmetic = torch.float64 if input.dtype == torch.float64 else torch.float32
    index = boxes[:, 0].to(arithmetic).double()
    size = input.shape[0]
    bad = ~((index > -1) & (index.trunc() < size))  # NaN fails both comparisons
    if bool(bad.any()):
        row = int(bad.nonzero()[0, 0])
        _fail("roi_align", f"boxes[:, 0] in [0, {size})", f"{float(index[row]):g} in row {row}")
    return index.trunc().to(torch.int64)


def _sizes_differ(mine: Sequence[Any], theirs: Sequence[Any]) -> bool:
    """Whether two lists of sizes are not the same.

    Two sizes that a compiler cannot know (both counted from data) are taken as equal, and checked
    when the compiled code runs.
    """
    if len(mine) != len(theirs):
        return True
    for one, other in zip(mine, theirs, strict=True):
        if isinstance(one, int) and isinstance(other, int):
            if one != other:
                return True
            continue
        from torch.fx.experimental.symbolic_shapes import guard_or_false

        if guard_or_false(one != other):
            return True
        torch._check(one == other)
    return False


# ---- the NMS family
#
# The order in which every function of the family looks at its arguments: boxes, scores, idxs, other
# tensors, iou_threshold, sigma, min_score, sigma_t, max_output, then method, kernel or mode, and
# criterion and beta last.


def _candidates(
    op: str, boxes: Tensor, scores: Tensor, idxs: Tensor | None, *, name: str = "boxes"
) -> None:
    """Checks the tensors that every function has; ``name`` may be overlaps [N, N] instead."""
    _tensor(op, name, boxes)
    _tensor(op, "scores", scores)
    if name == "overlaps":
        if boxes.dim() != 2 or _sizes_differ(boxes.shape[:1], boxes.shape[1:]):
            _fail(op, "overlaps of shape (N, N)", _shape(boxes))
    else:
        dims, names = (3, "(B, N, 4)") if op.endswith("_padded") else (2, "(N, 4)")
        columns = 5 if op == "nms_rotated" else 4
        names = names.replace("4", str(columns))
        if boxes.dim() != dims or boxes.shape[-1] != columns:
            _fail(op, f"boxes of shape {names}", _shape(boxes))
    _float_dtype(op, name, boxes)
    _row_values(op, "scores", scores, name, boxes)
    if idxs is not None:
        _tensor(op, "idxs", idxs)
        if _sizes_differ(idxs.shape, boxes.shape[:-1]):
            _fail(op, f"idxs of shape {_sizes(boxes.shape[:-1])}", _shape(idxs))
        if idxs.dtype not in INTEGER_DTYPES:
            _fail(op, f"idxs of dtype {_INTEGERS}", _dtype(idxs))
        _same_device(op, "idxs", idxs, name, boxes)


def _row_values(op: str, name: str, value: Tensor, boxes_name: str, boxes: Tensor) -> None:
    """Checks a float tensor with one value per box, or four of them where it is variances."""
    _tensor(op, name, value)
    wanted = boxes.shape if name == "variances" else boxes.shape[:-1]
    if _sizes_differ(value.shape, wanted):
        _fail(op, f"{name} of shape {_sizes(wanted)}", _shape(value))
    _float_dtype(op, name, value)
    _same_device(op, name, value, boxes_name, boxes)


def _threshold(op: str, iou_threshold: float) -> None:
    _number(op, "iou_threshold", iou_threshold)
    if not _finite(iou_threshold):
        _fail(op, "iou_threshold to be finite", _g(iou_threshold))


def _min_score(op: str, min_score: float) -> None:
    _number(op, "min_score", min_score)
    if not (_finite(min_score) and min_score >= 0):
        _fail(op, "min_score to be finite and at least 0", _g(min_score))


def limit(op: str, max_output: int | None) -> None:
    """Checks ``max_output``: where None stands for no limit, or as the width of a padded result."""
    padded = op.endswith("_padded")
    if max_output is None and not padded:
        return
    _integer(op, "max_output", max_output)
    assert max_output is not None
    if max_output < 0:
        least = "at least 0" if padded else "None or at least 0"
        _fail(op, f"max_output to be {least}", max_output)
    if max_output > _INT64_MAX:
        _fail(op, "max_output below 2^63", max_output)


def criterion(op: str, criterion: str, beta: float) -> None:
    """Checks how overlap is measured."""
    _choice(op, "criterion", criterion, "iou", "giou", "diou", "ciou")
    _positive(op, "beta", beta)


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
        _fail_type(op, "idxs to be a tensor", idxs)
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
    _positive(op, "sigma", sigma)
    _min_score(op, min_score)
    limit(op, max_output)
    _choice(op, "method", method, "linear", "gaussian", "hard")
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
    _positive(op, "sigma", sigma)
    _min_score(op, min_score)
    _positive(op, "sigma_t", sigma_t)
    limit(op, max_output)
    _choice(op, "method", method, "linear", "gaussian", "hard")
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
    _positive(op, "sigma", sigma)
    _min_score(op, min_score)
    limit(op, max_output)
    _choice(op, "mode", mode, "hard", "score_penalty", "weighted")
    _measure(op, criterion, beta)


def _keep(op: str, keep: Tensor, boxes: Tensor) -> None:
    _tensor(op, "keep", keep)
    if keep.dim() != 1:
        _fail(op, "keep of shape (M,)", _shape(keep))
    if keep.dtype != torch.int64:
        _fail(op, "keep of dtype int64", _dtype(keep))
    _same_device(op, "keep", keep, "boxes", boxes)


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
        _positive(op, "sigma_t", parameter)
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
    _positive(op, "sigma", sigma)
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
    _positive(op, "sigma", sigma)
    _min_score(op, min_score)
    limit(op, max_output)
    _choice(op, "kernel", kernel, "linear", "gaussian")
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
    _positive(op, "sigma", sigma)
    _min_score(op, min_score)
    limit(op, max_output)
    _choice(op, "kernel", kernel, "linear", "gaussian")


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
    _flag(op, "clockwise", clockwise)


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
    _tensor(op, "boxes1", boxes1)
    _tensor(op, "boxes2", boxes2)
    for name, shape, boxes in (("boxes1", "(N, 5)", boxes1), ("boxes2", "(M, 5)", boxes2)):
        if boxes.dim() != 2 or boxes.shape[1] != 5:
            _fail(op, f"{name} of shape {shape}", _shape(boxes))
        _float_dtype(op, name, boxes)
    _same_device(op, "boxes2", boxes2, "boxes1", boxes1)
    _flag(op, "aligned", aligned)
    if aligned and _sizes_differ(boxes2.shape, boxes1.shape):
        _fail(op, f"boxes2 of shape {_shape(boxes1)} where aligned", _shape(boxes2))
    _choice(op, "mode", mode, "iou", "iof")
    _flag(op, "clockwise", clockwise)
