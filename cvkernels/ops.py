"""All operators in one flat namespace, shaped like ``torchvision.ops``."""

from __future__ import annotations

from cvkernels.context_aware_roi_pool import ContextAwareRoIPool, context_aware_roi_pool
from cvkernels.conv2d import Conv2d, SeparableConv2d, conv2d
from cvkernels.conv_transpose2d import ConvTranspose2d, conv_transpose2d
from cvkernels.deform_roi_pool import (
    DeformRoIPool,
    DeformRoIPoolPack,
    ModulatedDeformRoIPoolPack,
    deform_roi_pool,
)
from cvkernels.im2col import col2im, conv2d_im2col, fold, im2col, unfold
from cvkernels.matrix_nms import matrix_nms, matrix_nms_from_overlaps
from cvkernels.multiscale_roi_align import (
    LevelMapper,
    MultiScaleRoIAlign,
    multiscale_roi_align,
    roi_levels,
)
from cvkernels.nms import (
    adaptive_nms,
    batched_nms,
    diou_nms,
    diou_nms_padded,
    iou_guided_nms,
    nms,
    nms_match,
    nms_padded,
)
from cvkernels.nms_rotated import box_iou_rotated, nms_rotated
from cvkernels.prroi_pool import PrRoIPool, prroi_pool
from cvkernels.ps_roi_align import PSRoIAlign, ps_roi_align
from cvkernels.ps_roi_pool import PSRoIPool, ps_roi_pool
from cvkernels.roi_align import RoIAlign, roi_align
from cvkernels.roi_align_rotated import RoIAlignRotated, roi_align_rotated
from cvkernels.roi_pool import RoIPool, roi_pool
from cvkernels.soft_nms import soft_nms, soft_nms_padded
from cvkernels.weighted_nms import cluster_nms, softer_nms, weighted_nms, weighted_nms_padded

__all__ = [
    "ContextAwareRoIPool",
    "Conv2d",
    "ConvTranspose2d",
    "DeformRoIPool",
    "DeformRoIPoolPack",
    "LevelMapper",
    "ModulatedDeformRoIPoolPack",
    "MultiScaleRoIAlign",
    "PSRoIAlign",
    "PSRoIPool",
    "PrRoIPool",
    "RoIAlign",
    "RoIAlignRotated",
    "RoIPool",
    "SeparableConv2d",
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
