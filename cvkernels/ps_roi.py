"""Position-sensitive pooling (R-FCN): both operators and their modules."""

from __future__ import annotations

from cvkernels.ps_roi_align import PSRoIAlign, ps_roi_align
from cvkernels.ps_roi_pool import PSRoIPool, ps_roi_pool

__all__ = ["PSRoIAlign", "PSRoIPool", "ps_roi_align", "ps_roi_pool"]
