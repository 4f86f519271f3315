"""Every operator again in plain PyTorch: the definition against which the kernels are tested.

Same names, same signatures, same errors. Slow and obvious on purpose. References evaluate in
float64 and round once to the result's dtype; :func:`precision` chooses another format. Those of the
NMS family select, which depends on rounding, and so compute in the arithmetic type of their inputs.
Gradients come from autograd over the same expressions.
"""

from __future__ import annotations

from cvkernels.reference._precision import precision
from cvkernels.reference.context_aware_roi_pool import context_aware_roi_pool
from cvkernels.reference.conv2d import conv2d
from cvkernels.reference.conv_transpose2d import conv_transpose2d
from cvkernels.reference.deform_roi_pool import deform_roi_pool
from cvkernels.reference.im2col import col2im, conv2d_im2col, fold, im2col, unfold
from cvkernels.reference.matrix_nms import matrix_nms, matrix_nms_from_overlaps
from cvkernels.reference.multiscale_roi_align import multiscale_roi_align, roi_levels
from cvkernels.reference.nms import (
    adaptive_nms,
    batched_nms,
    diou_nms,
    diou_nms_padded,
    iou_guided_nms,
    nms,
    nms_match,
    nms_padded,
)
from cvkernels.reference.nms_rotated import box_iou_rotated, nms_rotated
from cvkernels.reference.prroi_pool import prroi_pool
from cvkernels.reference.ps_roi_align import ps_roi_align
from cvkernels.reference.ps_roi_pool import ps_roi_pool
from cvkernels.reference.roi_align import roi_align
from cvkernels.reference.roi_align_rotated import roi_align_rotated
from cvkernels.reference.roi_pool import roi_pool
from cvkernels.reference.soft_nms import soft_nms, soft_nms_padded
from cvkernels.reference.weighted_nms import (
    cluster_nms,
    softer_nms,
    weighted_nms,
    weighted_nms_padded,
)

__all__ = [
    "adaptive_nms",
    "batched_nms",
    "box_iou_rotated",
    "cluster_nms",
    "col2im",
    "context_aware_roi_pool",
    "conv2d",
    "conv2d_im2col",
    "conv_transpose2d",
    "deform_roi_pool",
    "diou_nms",
    "diou_nms_padded",
    "fold",
    "im2col",
    "iou_guided_nms",
    "matrix_nms",
    "matrix_nms_from_overlaps",
    "multiscale_roi_align",
    "nms",
    "nms_match",
    "nms_padded",
    "nms_rotated",
    "precision",
    "prroi_pool",
    "ps_roi_align",
    "ps_roi_pool",
    "roi_align",
    "roi_align_rotated",
    "roi_levels",
    "roi_pool",
    "soft_nms",
    "soft_nms_padded",
    "softer_nms",
    "unfold",
    "weighted_nms",
    "weighted_nms_padded",
]
