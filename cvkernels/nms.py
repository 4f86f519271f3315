"""Non-maximum suppression: exact greedy, class-aware, batched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from cvkernels import _checks, _load

__all__ = ["batched_nms", "nms", "nms_padded"]

_load.load()
_op: Callable[..., Tensor] = torch.ops.cvkernels.nms.default
_op_padded: Callable[..., tuple[Tensor, Tensor]] = torch.ops.cvkernels.nms_padded.default


def nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    max_output: int | None = None,
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
        return _op(boxes, scores, None, iou_threshold, _limit("nms", max_output))
    except Exception:
        # The dispatcher refuses some arguments before our checks see them; say those in our words.
        _checks.nms(boxes, scores, None, iou_threshold, max_output)
        raise


def batched_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    iou_threshold: float,
    *,
    max_output: int | None = None,
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
        return _op(boxes, scores, idxs, iou_threshold, _limit("batched_nms", max_output))
    except Exception:
        _checks.nms(boxes, scores, idxs, iou_threshold, max_output, op="batched_nms")
        raise


def nms_padded(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_output: int,
    *,
    idxs: Tensor | None = None,
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
    try:
        return _op_padded(boxes, scores, idxs, iou_threshold, max_output)
    except Exception:
        _checks.nms_padded(boxes, scores, idxs, iou_threshold, max_output)
        raise


def _limit(op: str, max_output: int | None) -> int:
    """The dispatcher's max_output, where a negative number stands for no limit."""
    if max_output is None:
        return -1
    _checks.limit(op, max_output)
    return max_output


# ---- fake kernels


@torch.library.register_fake("cvkernels::nms")
def _(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float, max_output: int
) -> Tensor:
    op = "nms" if idxs is None else "batched_nms"
    _checks.nms(boxes, scores, idxs, iou_threshold, None, op=op)
    kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty((kept,), dtype=torch.int64)


@torch.library.register_fake("cvkernels::nms_padded")
def _(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    _checks.nms_padded(boxes, scores, idxs, iou_threshold, max_output)
    batch = boxes.shape[0]
    return (
        boxes.new_empty((batch, max_output), dtype=torch.int64),
        boxes.new_empty((batch,), dtype=torch.int64),
    )


# ---- autograd: the results are indices


for _name in ("nms", "nms_padded"):
    torch.library.register_autograd(
        f"cvkernels::{_name}", lambda ctx, *grads: (None,) * 5, setup_context=None
    )


# ---- vmap


@torch.library.register_vmap("cvkernels::nms")
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> NoReturn:
    raise NotImplementedError(
        "nms: expected no vmap, got a mapped call; each image may keep another number of boxes. "
        "Use nms_padded, whose output has a fixed size"
    )


@torch.library.register_vmap("cvkernels::nms_padded")
def _(
    info: Any,
    in_dims: tuple[int | None, ...],
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    max_output: int,
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    size = info.batch_size

    def folded(tensor: Tensor | None, dim: int | None) -> Tensor | None:
        if tensor is None:
            return None
        tensor = tensor.movedim(dim, 0) if dim is not None else tensor.expand(size, *tensor.shape)
        return tensor.flatten(0, 1)

    keep, count = _op_padded(
        folded(boxes, in_dims[0]),
        folded(scores, in_dims[1]),
        folded(idxs, in_dims[2]),
        iou_threshold,
        max_output,
    )
    return (keep.unflatten(0, (size, -1)), count.unflatten(0, (size, -1))), (0, 0)
