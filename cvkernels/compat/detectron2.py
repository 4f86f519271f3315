"""detectron2's RoI and NMS layers by name, signature and convention (``detectron2.layers`` 0.6).

Usage::

    from cvkernels.compat.detectron2 import ROIAlign, batched_nms  # instead of detectron2.layers

Most of a detectron2 model needs none of this: its ``ROIAlign``, ``RoIPool``, ``nms`` and
``batched_nms`` call torchvision's operators, which :mod:`cvkernels.compat.torchvision` replaces
under it. The rotated ones are detectron2's own; they are here.

What differs, deliberately:

* Boxes keep their precision. detectron2 rounds them to the dtype of the features, which in half
  precision moves a coordinate of 1,000 by up to half a pixel; give ``rois.to(input.dtype)`` for its
  result.
* ``batched_nms_rotated`` compares class ids and does not shift coordinates apart, which rounds
  them.
* Equal scores go by index; a NaN score is never kept.
* A rotated box of negative size is taken as it is; detectron2 refuses it, on the CPU only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cvkernels import nms as _nms
from cvkernels import nms_rotated as _nms_rotated
from cvkernels import roi_align_rotated as _rotated
from cvkernels.nms import nms
from cvkernels.roi_align import roi_align
from cvkernels.roi_pool import RoIPool

__all__ = [
    "ROIAlign",
    "ROIAlignRotated",
    "RoIPool",
    "batched_nms",
    "batched_nms_rotated",
    "nms",
    "nms_rotated",
    "roi_align",
    "roi_align_rotated",
]

Size = int | tuple[int, int]


def _single(boxes: Tensor) -> Tensor:
    """Floating-point boxes in float32; anything else as it is, to be refused by the operator."""
    is_float = isinstance(boxes, Tensor) and boxes.is_floating_point()
    return boxes.float() if is_float else boxes


def _radians(boxes: Tensor, columns: int) -> Tensor:
    """Boxes whose last column is in degrees, with radians there; half formats become float32.

    Anything but floating-point rows of so many columns stays as it is, for the operator to refuse.
    """
    if not isinstance(boxes, Tensor) or not boxes.is_floating_point():
        return boxes
    if boxes.dim() != 2 or boxes.shape[1] != columns:
        return boxes
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    angle = (boxes[:, -1:].double() * (math.pi / 180)).to(boxes.dtype)
    return torch.cat([boxes[:, :-1], angle], 1)


class ROIAlign(nn.Module):
    """``detectron2.layers.ROIAlign``: RoI Align, aligned by default.

    Args:
        output_size: bins (height, width), or one integer for both.
        spatial_scale: feature-map pixels per pixel of the boxes.
        sampling_ratio: samples per bin and axis; 0: ceil(box / bins).
        aligned: shift by half a pixel and stretch no box.

    Shape:
        input [N, C, H, W], rois [K, 5] rows (image index, x1, y1, x2, y2)
        -> [K, C, height, width].

    Example:
        >>> import torch
        >>> from cvkernels.compat.detectron2 import ROIAlign
        >>> input = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> ROIAlign(2, 1.0, 0)(input, torch.tensor([[0.0, 0, 0, 4, 4]]))
        tensor([[[[ 2.5000,  4.5000],
                  [10.5000, 12.5000]]]])
    """

    def __init__(
        self, output_size: Size, spatial_scale: float, sampling_ratio: int, aligned: bool = True
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        return roi_align(
            input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned
        )

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )


def roi_align_rotated(
    input: Tensor, roi: Tensor, output_size: Size, spatial_scale: float, sampling_ratio: int
) -> Tensor:
    """``detectron2.layers.roi_align_rotated``: RoI Align of rotated boxes, in degrees.

    Args:
        input: [N, C, H, W].
        roi: [K, 6], rows (image index, centre x, centre y, width, height, angle in degrees); a
            positive angle turns counter-clockwise where y points down.
        output_size: bins (height, width), or one integer for both.
        spatial_scale: feature-map pixels per pixel of the boxes.
        sampling_ratio: samples per bin and axis; 0: ceil(box / bins).

    Returns:
        [K, C, height, width].

    Example:
        >>> import torch
        >>> from cvkernels.compat.detectron2 import roi_align_rotated
        >>> input = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> roi = torch.tensor([[0.0, 2, 2, 4, 4, 90]])
        >>> roi_align_rotated(input, roi, 2, 1.0, 0)  # the box's right is the map's top
        tensor([[[[10.5000,  2.5000],
                  [12.5000,  4.5000]]]])
    """
    roi = _radians(roi, 6)
    return _rotated.roi_align_rotated(input, roi, output_size, spatial_scale, sampling_ratio)


class ROIAlignRotated(nn.Module):
    """``detectron2.layers.ROIAlignRotated``: the module of :func:`roi_align_rotated`.

    Args:
        output_size: bins (height, width), or one integer for both.
        spatial_scale: feature-map pixels per pixel of the boxes.
        sampling_ratio: samples per bin and axis; 0: ceil(box / bins).

    Shape:
        input [N, C, H, W], rois [K, 6] rows (image index, centre x, centre y, width, height, angle
        in degrees) -> [K, C, height, width].
    """

    def __init__(self, output_size: Size, spatial_scale: float, sampling_ratio: int) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        return roi_align_rotated(
            input, rois, self.output_size, self.spatial_scale, self.sampling_ratio
        )

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}"
        )


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """``detectron2.layers.batched_nms``: NMS within each class, in float32.

    Args:
        boxes: [N, 4], rows (x1, y1, x2, y2).
        scores: [N].
        idxs: [N], class of each box.
        iou_threshold: a box is suppressed above it.

    Returns:
        int64 [M], the indices of the kept boxes by descending score.

    Example:
        >>> import torch
        >>> from cvkernels.compat.detectron2 import batched_nms
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1.0, 0, 11, 10], [0.0, 0, 10, 10]])
        >>> batched_nms(boxes, torch.tensor([0.8, 0.9, 0.5]), torch.tensor([0, 0, 1]), 0.5)
        tensor([1, 2])
    """
    return _nms.batched_nms(_single(boxes), scores, idxs, iou_threshold)


def nms_rotated(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """``detectron2.layers.nms_rotated``: NMS of rotated boxes, in degrees.

    Args:
        boxes: [N, 5], rows (centre x, centre y, width, height, angle in degrees); a positive angle
            turns counter-clockwise where y points down.
        scores: [N].
        iou_threshold: a box is suppressed above it.

    Returns:
        int64 [M], the indices of the kept boxes by descending score.

    Example:
        >>> import torch
        >>> from cvkernels.compat.detectron2 import nms_rotated
        >>> boxes = torch.tensor([[0.0, 0, 8, 2, 5], [0.0, 0, 8, 2, 10], [0.0, 0, 8, 2, 95]])
        >>> nms_rotated(boxes, torch.tensor([0.8, 0.9, 0.5]), 0.5)
        tensor([1, 2])
    """
    boxes = _radians(boxes, 5)
    return _nms_rotated.nms_rotated(boxes, scores, iou_threshold, clockwise=False)


def batched_nms_rotated(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float
) -> Tensor:
    """``detectron2.layers.batched_nms_rotated``: NMS of rotated boxes within each class.

    Args:
        boxes: [N, 5], rows (centre x, centre y, width, height, angle in degrees).
        scores: [N].
        idxs: [N], class of each box, an integer dtype.
        iou_threshold: a box is suppressed above it.

    Returns:
        int64 [M], the indices of the kept boxes by descending score.

    Example:
        >>> import torch
        >>> from cvkernels.compat.detectron2 import batched_nms_rotated
        >>> boxes = torch.tensor([[0.0, 0, 8, 2, 5], [0.0, 0, 8, 2, 10], [0.0, 0, 8, 2, 5]])
        >>> scores, classes = torch.tensor([0.8, 0.9, 0.5]), torch.tensor([0, 0, 1])
        >>> batched_nms_rotated(boxes, scores, classes, 0.5)
        tensor([1, 2])
    """
    boxes = _radians(_single(boxes), 5)
    return _nms_rotated.nms_rotated(boxes, scores, iou_threshold, idxs=idxs, clockwise=False)
