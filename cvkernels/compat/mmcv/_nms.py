"""mmcv's NMS functions (``mmcv.ops`` 2.2.0).

Thresholds are rounded to float32 for boxes that are not float64, and compared with ``>`` or ``>=``,
as mmcv does.
"""

from __future__ import annotations

import functools
import math
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from cvkernels import nms as _nms
from cvkernels import nms_rotated as _rotated
from cvkernels import soft_nms as _soft_nms

__all__ = [
    "batched_nms",
    "box_iou_rotated",
    "nms",
    "nms_match",
    "nms_rotated",
    "soft_nms",
]

Array = Any  # Tensor or ndarray: the result is what the boxes are.
_Function = TypeVar("_Function", bound=Callable[..., Any])
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_METHODS = {"linear": "linear", "gaussian": "gaussian", "naive": "hard"}


# -------------------------------------------------------------------------------------------------
# Arguments
# -------------------------------------------------------------------------------------------------


def _renamed_threshold(function: _Function) -> _Function:
    """Takes mmcv's deprecated ``iou_thr`` for ``iou_threshold``."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **_renamed(function.__name__, kwargs))

    return wrapper  # type: ignore[return-value]


def _renamed(op: str, keywords: dict[str, Any]) -> dict[str, Any]:
    if "iou_thr" not in keywords:
        return keywords
    if "iou_threshold" in keywords:
        raise TypeError(f"{op}: expected iou_threshold or its old name iou_thr, got both")
    text = f'"iou_thr" is deprecated in `{op}`, please use "iou_threshold" instead'
    warnings.warn(text, DeprecationWarning, stacklevel=3)
    return {"iou_threshold" if k == "iou_thr" else k: v for k, v in keywords.items()}


def _tensors(op: str, boxes: Array, scores: Array) -> tuple[Tensor, Tensor]:
    for name, value in (("boxes", boxes), ("scores", scores)):
        if not isinstance(value, (Tensor, np.ndarray)):
            raise TypeError(f"{op}: expected {name} as a tensor or an array, got {type(value)}")
    return torch.as_tensor(boxes), torch.as_tensor(scores)


def _like(boxes: Array, *results: Tensor) -> tuple[Array, ...]:
    """The results as arrays if the boxes are one."""
    if isinstance(boxes, np.ndarray):
        return tuple(result.numpy() for result in results)
    return results


def _rounded(value: float, boxes: Tensor) -> float:
    """A threshold as mmcv's C++ receives it."""
    return float(value) if boxes.dtype is torch.float64 else float(np.float32(value))


def _grown(op: str, boxes: Tensor, offset: int) -> Tensor:
    """Boxes whose width is mmcv's: x2 - x1 + offset."""
    if offset not in (0, 1):
        raise ValueError(f"{op}: expected offset to be 0 or 1, got {offset!r}")
    return boxes if offset == 0 else boxes + boxes.new_tensor([0, 0, 1, 1])


def _dets(boxes: Tensor, scores: Tensor) -> Tensor:
    return torch.cat([boxes, scores[:, None]], 1)


def _class_ids(idxs: Tensor | None) -> Tensor | None:
    """Ids of any dtype as integers: equal numbers have equal bits once -0.0 has become 0.0."""
    if idxs is None or idxs.dtype in _INTEGERS:
        return idxs
    return (idxs.double() + 0.0).view(torch.int64)


# -------------------------------------------------------------------------------------------------
# The functions on tensors, with classes: (scores of the kept boxes, their indices)
# -------------------------------------------------------------------------------------------------


def _hard(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    offset: int = 0,
    score_threshold: float = 0,
    max_num: int = -1,
) -> tuple[Tensor, Tensor]:
    ranked = scores.detach()
    if score_threshold > 0:  # A NaN score takes no part.
        ranked = ranked.masked_fill(~(ranked > score_threshold), math.nan)
    grown, threshold = _grown("nms", boxes.detach(), offset), _rounded(iou_threshold, boxes)
    most = max_num if max_num > 0 else None
    if idxs is None:
        keep = _nms.nms(grown, ranked, threshold, max_output=most)
    else:
        keep = _nms.batched_nms(grown, ranked, idxs, threshold, max_output=most)
    return scores[keep], keep


def _soft(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    method: str = "linear",
    offset: int = 0,
    max_num: int = -1,
) -> tuple[Tensor, Tensor]:
    if method not in _METHODS:
        raise ValueError(f"soft_nms: expected method in {sorted(_METHODS)}, got {method!r}")
    # overlap >= t, where both are compared as real numbers, is overlap > the double below t.
    below = math.nextafter(_rounded(iou_threshold, boxes), -math.inf)
    least = max(_rounded(min_score, boxes), 0.0)
    keep, new_scores = _soft_nms.soft_nms(
        _grown("soft_nms", boxes.detach(), offset),
        scores,
        method=_METHODS[method],
        iou_threshold=below,
        sigma=float(sigma),
        min_score=least,
        max_output=max_num if max_num > 0 else None,
        idxs=idxs,
    )
    valid = ~scores.detach().isnan()
    if least == 0 and method == "naive" and max_num <= 0:
        # A suppressed box has score 0, which is not below min_score.
        valid[keep] = False
        rest = valid.nonzero()[:, 0]
        return torch.cat([new_scores, scores.new_zeros(len(rest))]), torch.cat([keep, rest])
    if not len(keep) and bool(valid.any()):  # mmcv takes its first box whatever the score.
        keep = scores.detach().nan_to_num(-math.inf, math.inf, -math.inf).argmax()[None]
        new_scores = scores[keep]
    return new_scores, keep


def _turned(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    clockwise: bool = True,
    max_num: int = -1,
) -> tuple[Tensor, Tensor]:
    keep = _rotated.nms_rotated(
        boxes.detach(),
        scores.detach(),
        _rounded(iou_threshold, boxes),
        idxs=idxs,
        max_output=max_num if max_num > 0 else None,
        clockwise=clockwise,
    )
    return scores[keep], keep


# -------------------------------------------------------------------------------------------------
# mmcv.ops
# -------------------------------------------------------------------------------------------------


@_renamed_threshold
def nms(
    boxes: Array,
    scores: Array,
    iou_threshold: float,
    offset: int = 0,
    score_threshold: float = 0,
    max_num: int = -1,
) -> tuple[Array, Array]:
    """``mmcv.ops.nms``: hard NMS.

    Args:
        boxes: [N, 4], rows (x1, y1, x2, y2), a tensor or an array.
        scores: [N].
        iou_threshold: a box is suppressed above it; the deprecated name is ``iou_thr``.
        offset: 1 for boxes whose corners are pixels, x2 - x1 + 1 wide; else 0.
        score_threshold: above 0, only boxes of a higher score take part.
        max_num: above 0, at most this many boxes.

    Returns:
        dets: [K, 5], kept boxes and their scores, by descending score; an array if ``boxes`` is.
        inds: [K], their indices.

    Example:
        >>> import numpy as np
        >>> from cvkernels.compat.mmcv import nms
        >>> boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10]], dtype=np.float32)
        >>> nms(boxes, np.array([0.5, 0.75, 0.25], dtype=np.float32), 0.5)
        (array([[ 1.  ,  0.  , 11.  , 10.  ,  0.75],
               [20.  ,  0.  , 30.  , 10.  ,  0.25]], dtype=float32), array([1, 2]))
    """
    tensor, values = _tensors("nms", boxes, scores)
    new, keep = _hard(tensor, values, None, iou_threshold, offset, score_threshold, max_num)
    return _like(boxes, _dets(tensor[keep], new), keep)


@_renamed_threshold
def soft_nms(
    boxes: Array,
    scores: Array,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    method: str = "linear",
    offset: int = 0,
) -> tuple[Array, Array]:
    """``mmcv.ops.soft_nms``: overlapping boxes lose score.

    Args:
        boxes: [N, 4], rows (x1, y1, x2, y2), a tensor or an array.
        scores: [N], not negative.
        iou_threshold: "linear" and "naive" act at this IoU or more; deprecated name ``iou_thr``.
        sigma: width of "gaussian".
        min_score: a box whose score falls below it is dropped. The first box stays whatever its
            score, as in mmcv.
        method: "linear", "gaussian" or "naive" (removes).
        offset: 1 for boxes whose corners are pixels, x2 - x1 + 1 wide; else 0.

    Returns:
        dets: [K, 5], boxes and their new scores, in the order of selection.
        inds: [K], their indices.

    Example:
        >>> import torch
        >>> from cvkernels.compat.mmcv import soft_nms
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 20], [50.0, 0, 60, 10]])
        >>> soft_nms(boxes, torch.tensor([0.9, 0.8, 0.5]), iou_threshold=0.5)[0][:, 4]
        tensor([0.9000, 0.5000, 0.4000])
    """
    tensor, values = _tensors("soft_nms", boxes, scores)
    new, keep = _soft(tensor, values, None, iou_threshold, sigma, min_score, method, offset)
    return _like(boxes, _dets(tensor[keep], new), keep)


def batched_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    nms_cfg: dict[str, Any] | None,
    class_agnostic: bool = False,
) -> tuple[Tensor, Tensor]:
    """``mmcv.ops.batched_nms``: NMS within each class, as a configuration says.

    Args:
        boxes: [N, 4], or [N, 5] for "nms_rotated".
        scores: [N].
        idxs: [N], class of each box, any dtype. Ids are compared, coordinates are not shifted.
        nms_cfg: None only sorts by score. Otherwise the arguments of the function that ``type``
            names ("nms" if absent, "soft_nms", "nms_rotated", or a function), and ``max_num`` for
            any of them, ``class_agnostic``, which wins over the argument, and ``split_thr``, which
            changes nothing here. Another name is looked for in mmcv.ops where that is imported.
        class_agnostic: ignore the classes.

    Returns:
        dets: [K, 5] ([K, 6] for rotated boxes), boxes and scores by descending score.
        keep: [K], their indices.

    Example:
        >>> import torch
        >>> from cvkernels.compat.mmcv import batched_nms
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1.0, 0, 11, 10], [0.0, 0, 10, 10]])
        >>> scores, classes = torch.tensor([0.8, 0.9, 0.5]), torch.tensor([0, 0, 1])
        >>> batched_nms(boxes, scores, classes, dict(type="nms", iou_threshold=0.5))[1]
        tensor([1, 2])
    """
    if nms_cfg is None:
        new, keep = scores.sort(descending=True, stable=True)
        return _dets(boxes[keep], new), keep
    options = dict(nms_cfg)
    class_agnostic = options.pop("class_agnostic", class_agnostic)
    options.pop("split_thr", None)
    kind = options.pop("type", "nms")
    classes = None if class_agnostic else _class_ids(idxs)
    own = _own(kind)
    if own is not None:
        new, keep = own(boxes, scores, classes, **_renamed("batched_nms", options))
    else:
        new, keep = _class_by_class(_named(kind), boxes, scores, classes, options)
    return _dets(boxes[keep], new), keep


_TYPES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "nms": _hard,
    "soft_nms": _soft,
    "nms_rotated": _turned,
}


def _own(kind: Any) -> Callable[..., tuple[Tensor, Tensor]] | None:
    if isinstance(kind, str):
        return _TYPES.get(kind)
    module = str(getattr(kind, "__module__", ""))
    if module == __name__ or module.startswith("mmcv."):
        return _TYPES.get(kind.__name__)
    return None


def _named(kind: Any) -> Callable[..., Any]:
    if callable(kind):
        return kind  # type: ignore[no-any-return]
    function = getattr(sys.modules.get("mmcv.ops"), str(kind), None)
    if not callable(function):
        raise ValueError(
            f"batched_nms: expected type in {sorted(_TYPES)}, a function or the name of one in "
            f"mmcv.ops, got {kind!r}"
        )
    return function  # type: ignore[no-any-return]


def _class_by_class(
    function: Callable[..., Any],
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor | None,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """Any function of mmcv's convention, called for each class with its boxes as they are."""
    most = options.pop("max_num", -1)
    ids = scores.new_zeros(len(scores), dtype=torch.int64) if classes is None else classes
    parts = []
    for one in ids.unique():
        rows = (ids == one).nonzero()[:, 0]
        dets, keep = function(boxes[rows], scores[rows], **options)
        parts.append((dets[:, -1], rows[keep]))
    if not parts:
        return scores, ids
    new, order = torch.cat([part[0] for part in parts]).sort(descending=True, stable=True)
    keep = torch.cat([part[1] for part in parts])[order]
    most = most if most > 0 else len(keep)
    return new[:most], keep[:most]


def nms_match(dets: Array, iou_threshold: float) -> list[Array]:
    """``mmcv.ops.nms_match``: each kept box with the boxes that it suppresses.

    Args:
        dets: [N, 5], boxes (x1, y1, x2, y2) and scores, a tensor or an array.
        iou_threshold: a box is suppressed at this IoU or more.

    Returns:
        A list of tensors, or arrays if ``dets`` is one: the index of a kept box, then those that it
        suppresses, by descending score.

    Example:
        >>> import torch
        >>> from cvkernels.compat.mmcv import nms_match
        >>> dets = torch.tensor([[0, 0, 8, 8, 0.8], [1, 0, 9, 8, 0.9], [20, 0, 30, 8, 0.5]])
        >>> nms_match(dets, 0.5)
        [tensor([1, 0]), tensor([2])]
    """
    tensor, _ = _tensors("nms_match", dets, dets)
    if tensor.shape[0] == 0:
        return []
    if tensor.shape[-1] != 5:
        raise ValueError(f"nms_match: expected dets of shape [N, 5], got {list(tensor.shape)}")
    tensor = tensor.detach()
    threshold = _rounded(iou_threshold, tensor)
    groups = _nms.nms_match(tensor[:, :4].contiguous(), tensor[:, 4].contiguous(), threshold)
    return list(_like(dets, *groups))


def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    iou_threshold: float,
    labels: Tensor | None = None,
    clockwise: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """``mmcv.ops.nms_rotated``: hard NMS of rotated boxes.

    Args:
        dets: [N, 5], rows (centre x, centre y, width, height, angle in radians).
        scores: [N].
        iou_threshold: a box is suppressed above it.
        labels: [N], class of each box; boxes of different classes do not suppress each other.
        clockwise: which way a positive angle turns where y points down.

    Returns:
        dets: [K, 6], kept boxes and their scores, by descending score.
        inds: [K], their indices. For no boxes: ``dets`` as it is, and None, as in mmcv.

    Example:
        >>> import torch
        >>> from cvkernels.compat.mmcv import nms_rotated
        >>> boxes = torch.tensor([[0, 0, 8, 2, 0.1], [0, 0, 8, 2, 0.2], [0, 0, 8, 2, 1.7]])
        >>> nms_rotated(boxes, torch.tensor([0.8, 0.9, 0.5]), 0.5)[1]
        tensor([1, 2])
    """
    if dets.shape[0] == 0:
        return dets, None
    new, keep = _turned(dets, scores, _class_ids(labels), iou_threshold, clockwise)
    return _dets(dets[keep], new), keep


def box_iou_rotated(
    bboxes1: Tensor,
    bboxes2: Tensor,
    mode: str = "iou",
    aligned: bool = False,
    clockwise: bool = True,
) -> Tensor:
    """``mmcv.ops.box_iou_rotated``: overlaps of rotated boxes.

    Args:
        bboxes1: [N, 5], rows (centre x, centre y, width, height, angle in radians).
        bboxes2: [M, 5]; N rows if ``aligned``.
        mode: "iou", or "iof": over the area of the box in ``bboxes1``.
        aligned: pair row i with row i.
        clockwise: which way a positive angle turns where y points down.

    Returns:
        [N, M], or [N] if ``aligned``.

    Example:
        >>> import torch
        >>> from cvkernels.compat.mmcv import box_iou_rotated
        >>> box_iou_rotated(torch.tensor([[0.0, 0, 2, 2, 0]]), torch.tensor([[1.0, 0, 2, 2, 0]]))
        tensor([[0.3333]])
    """
    return _rotated.box_iou_rotated(
        bboxes1, bboxes2, mode=mode, aligned=aligned, clockwise=clockwise
    )
