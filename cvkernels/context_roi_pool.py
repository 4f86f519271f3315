"""Context-aware RoI Pool under its short name."""

from __future__ import annotations

from cvkernels.context_aware_roi_pool import ContextAwareRoIPool, context_aware_roi_pool

__all__ = ["ContextAwareRoIPool", "context_aware_roi_pool"]
