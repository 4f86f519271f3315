"""Every operator again in plain PyTorch: the definition against which the kernels are tested.

Same names, same signatures, same errors. Slow and obvious on purpose. References evaluate in
float64 and round once to the result's dtype; :func:`precision` chooses another format. Gradients
come from autograd over the same expressions.
"""

from __future__ import annotations

from cvkernels.reference._precision import precision
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
from cvkernels.reference.roi_align import roi_align

__all__ = [
    "adaptive_nms",
    "batched_nms",
    "diou_nms",
    "diou_nms_padded",
    "iou_guided_nms",
    "nms",
    "nms_match",
    "nms_padded",
    "precision",
    "roi_align",
]
