"""Argument checks shared by the public functions, the fake kernels and the references.

Every function here looks only at what a FakeTensor also has (type, shape, dtype, device) and never
at data, with the one exception of :func:`roi_image_index`. The C++ bindings repeat the
dispatcher-level checks in the same order and with the same words, so that an error reads alike
wherever it is found: operator, argument, expected, actual.

``_base`` holds the parts; each operator family has a module of its own.
"""

from __future__ import annotations

from cvkernels._checks import conv
from cvkernels._checks._base import FLOAT_DTYPES, INTEGER_DTYPES, pair
from cvkernels._checks.nms import (
    box_iou_rotated,
    cluster_nms,
    criterion,
    iou_guided_nms,
    limit,
    matrix_nms,
    matrix_nms_from_overlaps,
    nms,
    nms_match,
    nms_padded,
    nms_rotated,
    soft_nms,
    softer_nms,
    weighted_nms,
    weighted_nms_penalty,
    weighted_nms_vote,
)
from cvkernels._checks.roi import (
    CONTEXT_AWARE_INDICES,
    ROI_MAX_GRID,
    ROI_MAX_LEVELS,
    ROI_POOL_INDICES,
    context_aware_roi_pool,
    deform_roi_pool,
    multiscale_roi_align,
    prroi_pool,
    ps_roi_align,
    ps_roi_pool,
    roi_align,
    roi_align_mode,
    roi_align_rotated,
    roi_boxes,
    roi_features,
    roi_given_levels,
    roi_image_index,
    roi_levels,
    roi_narrow_fits,
    roi_pool,
    roi_sampling_ratio,
    roi_sizes,
    roi_tensors,
)

__all__ = [
    "CONTEXT_AWARE_INDICES",
    "FLOAT_DTYPES",
    "INTEGER_DTYPES",
    "ROI_MAX_GRID",
    "ROI_MAX_LEVELS",
    "ROI_POOL_INDICES",
    "box_iou_rotated",
    "cluster_nms",
    "context_aware_roi_pool",
    "conv",
    "criterion",
    "deform_roi_pool",
    "iou_guided_nms",
    "limit",
    "matrix_nms",
    "matrix_nms_from_overlaps",
    "multiscale_roi_align",
    "nms",
    "nms_match",
    "nms_padded",
    "nms_rotated",
    "pair",
    "prroi_pool",
    "ps_roi_align",
    "ps_roi_pool",
    "roi_align",
    "roi_align_mode",
    "roi_align_rotated",
    "roi_boxes",
    "roi_features",
    "roi_given_levels",
    "roi_image_index",
    "roi_levels",
    "roi_narrow_fits",
    "roi_pool",
    "roi_sampling_ratio",
    "roi_sizes",
    "roi_tensors",
    "soft_nms",
    "softer_nms",
    "weighted_nms",
    "weighted_nms_penalty",
    "weighted_nms_vote",
]
