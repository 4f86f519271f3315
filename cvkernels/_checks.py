"""Argument checks shared by the public functions, the fake kernels and the references.

Every function here looks only at what a FakeTensor also has (type, shape, dtype, device) and never
at data, with the one exception of :func:`roi_align_batch_index`. The C++ bindings repeat the
dispatcher-level checks in the same order and with the same words, so that an error reads alike
wherever it is found: operator, argument, expected, actual.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# Most samples per bin and axis; kRoiAlignMaxGrid in csrc/kernels/roi_align/roi_align_math.h.
ROI_ALIGN_MAX_GRID = 2**15
_FLOATS = "float16, bfloat16, float32 or float64"
_INTEGERS = "uint8, int8, int16, int32 or int64"
_INT32_MAX = 2**31 - 1
_INT64_MAX = 2**63 - 1


def _fail(op: str, expected: str, got: object) -> NoReturn:
    raise ValueError(f"{op}: expected {expected}, got {got}")


def _fail_type(op: str, expected: str, value: object) -> NoReturn:
    raise TypeError(f"{op}: expected {expected}, got {type(value).__name__}")


def _g(value: float) -> str:
    try:
        return f"{float(value):g}"
    except OverflowError:
        return "inf" if value > 0 else "-inf"


def _shape(tensor: Tensor) -> str:
    sizes = [str(size) for size in tensor.shape]
    return f"({sizes[0]},)" if len(sizes) == 1 else f"({', '.join(sizes)})"


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
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False


def _integer(op: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (numbers.Integral, torch.SymInt)):
        _fail_type(op, f"{name} to be an integer", value)


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
    _number(op, "spatial_scale", spatial_scale)
    if not (_finite(spatial_scale) and spatial_scale > 0):
        _fail(op, "spatial_scale to be finite and positive", _g(spatial_scale))
    if pooled_height <= 0 or pooled_width <= 0 or max(pooled_height, pooled_width) > _INT32_MAX:
        _fail(op, "output_size of positive 32-bit values", f"({pooled_height}, {pooled_width})")
    _integer(op, "sampling_ratio", sampling_ratio)
    if not isinstance(aligned, numbers.Number):  # as the dispatcher, which takes a number's truth
        _fail_type(op, "aligned to be a bool", aligned)
    if sampling_ratio > ROI_ALIGN_MAX_GRID:
        _fail(op, f"sampling_ratio of at most {ROI_ALIGN_MAX_GRID}", sampling_ratio)


def roi_align_mode(mode: object) -> None:
    """Checks ``mode`` of the public function."""
    if mode not in ("avg", "max"):
        _fail("roi_align", "mode to be 'avg' or 'max'", repr(mode))


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


def _rows_differ(tensor: Tensor, boxes: Tensor) -> bool:
    """Whether ``tensor`` is not of shape [...] where boxes is [..., 4].

    Two sizes that a compiler cannot know (both counted from data) are taken as equal, and checked
    when the compiled code runs.
    """
    if tensor.dim() != boxes.dim() - 1:
        return True
    for mine, theirs in zip(tensor.shape, boxes.shape[:-1], strict=True):
        if isinstance(mine, int) and isinstance(theirs, int):
            if mine != theirs:
                return True
            continue
        from torch.fx.experimental.symbolic_shapes import guard_or_false

        if guard_or_false(mine != theirs):
            return True
        torch._check(mine == theirs)
    return False


def _nms(op: str, boxes: Tensor, scores: Tensor, idxs: Tensor | None, threshold: float) -> None:
    dims, names = (3, "(B, N, 4)") if op == "nms_padded" else (2, "(N, 4)")
    _tensor(op, "boxes", boxes)
    _tensor(op, "scores", scores)
    if boxes.dim() != dims or boxes.shape[-1] != 4:
        _fail(op, f"boxes of shape {names}", _shape(boxes))
    _float_dtype(op, "boxes", boxes)
    rows = _shape(boxes[..., 0])
    if _rows_differ(scores, boxes):
        _fail(op, f"scores of shape {rows}", _shape(scores))
    _float_dtype(op, "scores", scores)
    _same_device(op, "scores", scores, "boxes", boxes)
    if idxs is not None:
        _tensor(op, "idxs", idxs)
        if _rows_differ(idxs, boxes):
            _fail(op, f"idxs of shape {rows}", _shape(idxs))
        if idxs.dtype not in INTEGER_DTYPES:
            _fail(op, f"idxs of dtype {_INTEGERS}", _dtype(idxs))
        _same_device(op, "idxs", idxs, "boxes", boxes)
    _number(op, "iou_threshold", threshold)
    if not _finite(threshold):
        _fail(op, "iou_threshold to be finite", _g(threshold))


def limit(op: str, max_output: int | None) -> None:
    """Checks ``max_output`` where None stands for no limit."""
    if max_output is None:
        return
    _integer(op, "max_output", max_output)
    if max_output < 0:
        _fail(op, "max_output to be None or at least 0", max_output)
    if max_output > _INT64_MAX:
        _fail(op, "max_output below 2^63", max_output)


def nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    max_output: int | None,
    *,
    op: str = "nms",
) -> None:
    """Checks the arguments of nms and, with ``op="batched_nms"``, of batched_nms."""
    if op == "batched_nms" and idxs is None:
        _fail_type(op, "idxs to be a tensor", idxs)
    _nms(op, boxes, scores, idxs, iou_threshold)
    limit(op, max_output)


def nms_padded(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float, max_output: int
) -> None:
    """Checks the arguments of nms_padded."""
    _nms("nms_padded", boxes, scores, idxs, iou_threshold)
    _integer("nms_padded", "max_output", max_output)
    if max_output < 0:
        _fail("nms_padded", "max_output to be at least 0", max_output)
    if max_output > _INT64_MAX:
        _fail("nms_padded", "max_output below 2^63", max_output)
