"""All operators in one flat namespace, shaped like ``torchvision.ops``."""

from __future__ import annotations

from cvkernels.nms import batched_nms, nms, nms_padded
from cvkernels.roi_align import RoIAlign, roi_align

__all__ = ["RoIAlign", "batched_nms", "nms", "nms_padded", "roi_align"]
