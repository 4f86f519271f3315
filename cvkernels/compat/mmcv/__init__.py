"""mmcv's NMS and RoI operators by name, signature and return convention (``mmcv.ops`` 2.2.0).

Usage::

    from cvkernels.compat.mmcv import RoIAlign, batched_nms, nms, soft_nms  # instead of mmcv.ops

or, where mmcv is installed, for code that imports from it::

    import cvkernels.compat.mmcv as cvmm

    with cvmm.patched() as names:
        detector(images)

What differs, deliberately:

* ``batched_nms`` compares class ids; it neither shifts coordinates apart, which rounds them and
  mixes classes whose coordinates are negative, nor splits at ``split_thr`` boxes.
* Everything runs on the device of the boxes, soft NMS too, in any floating dtype, with gradients
  of ``dets``; mmcv has float32 only and moves soft NMS to the CPU.
* Equal scores go by index, always; mmcv's order of equals depends on its sort and swaps.
* A box with a NaN score is never kept. One without extent (x2 <= x1 or y2 <= y1) overlaps nothing;
  mmcv multiplies two negative sides to an area.
* The RoI operators run on the CPU too, in any floating dtype, boxes in another one than features;
  they read any strides (mmcv's mix boxes up where a map is not contiguous), and a bad image index
  or NaN does no harm. The gradient of an offset is that of the result (see
  :func:`cvkernels.deform_roi_pool.deform_roi_pool`). A NaN feature is the maximum of its bin.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from cvkernels.compat.mmcv._nms import (
    batched_nms,
    box_iou_rotated,
    nms,
    nms_match,
    nms_rotated,
    soft_nms,
)
from cvkernels.compat.mmcv._roi import (
    DeformRoIPool,
    DeformRoIPoolPack,
    ModulatedDeformRoIPoolPack,
    PrRoIPool,
    RoIAlign,
    RoIAlignRotated,
    RoIPool,
    deform_roi_pool,
    prroi_pool,
    roi_align,
    roi_align_rotated,
    roi_pool,
)
from cvkernels.compat.torchvision import _rebind

__all__ = [
    "DeformRoIPool",
    "DeformRoIPoolPack",
    "ModulatedDeformRoIPoolPack",
    "PrRoIPool",
    "RoIAlign",
    "RoIAlignRotated",
    "RoIPool",
    "batched_nms",
    "box_iou_rotated",
    "deform_roi_pool",
    "nms",
    "nms_match",
    "nms_rotated",
    "patched",
    "prroi_pool",
    "roi_align",
    "roi_align_rotated",
    "roi_pool",
    "soft_nms",
]

_REPLACED = (
    "nms",
    "soft_nms",
    "batched_nms",
    "nms_match",
    "nms_rotated",
    "box_iou_rotated",
    "roi_align",
    "roi_pool",
    "prroi_pool",
    "deform_roi_pool",
    "roi_align_rotated",
)


@contextlib.contextmanager
def patched() -> Iterator[tuple[str, ...]]:
    """Puts these functions in place of mmcv's inside a ``with`` block.

    Every module attribute that *is* mmcv's function is rebound: in ``mmcv.ops``, in the module that
    defines it, and wherever ``from mmcv.ops import ...`` brought it. A reference that is no module
    attribute keeps mmcv's. Modules (``RoIAlign`` and so on) stay mmcv's own and call these
    functions. The patch is process-wide; blocks nest; afterwards all is as before, also in modules
    that were imported meanwhile.

    Yields:
        The dotted names that were rebound, sorted.

    Raises:
        ImportError: mmcv is not installed, is installed without its operators, or lacks a function.

    Example:
        >>> import cvkernels.compat.mmcv as cvmm
        >>> with cvmm.patched() as names:  # doctest: +SKIP
        ...     print(names)
    """
    originals = _originals()
    replacements: dict[str, Any] = {}
    names: list[str] = []
    try:
        for name, original in originals.items():
            if name == _ROTATED_FUNCTION:
                replacements[name] = _as_function(roi_align_rotated)
            else:
                replacements[name] = _replacement(globals()[name])
            names += _rebind(original, replacements[name])
        yield tuple(sorted(names))
    finally:
        for name, replacement in replacements.items():
            _rebind(replacement, originals[name])


# mmcv's RoIAlignRotated does not call roi_align_rotated, but applies what that is made of.
_ROTATED_FUNCTION = "RoIAlignRotatedFunction"


def _as_function(function: Callable[..., Any]) -> type:
    """Something with the ``apply`` of an autograd function."""
    return type(_ROTATED_FUNCTION, (), {"apply": staticmethod(function)})


def _replacement(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of its own, so that undoing the patch leaves imports from this module alone."""

    @functools.wraps(function)
    def replacement(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return replacement


def _originals() -> dict[str, Any]:
    try:
        ops = importlib.import_module("mmcv.ops")
    except ImportError as error:
        missing = (error.name or "").partition(".")[0] == "mmcv" and "mmcv" not in sys.modules
        raise ImportError(
            "cvkernels.compat.mmcv.patched needs mmcv, "
            + ("which is not installed" if missing else f"whose operators do not load ({error})")
            + "; the functions of cvkernels.compat.mmcv themselves work without it"
        ) from error
    absent = [name for name in _REPLACED if not callable(getattr(ops, name, None))]
    if absent:
        version = getattr(sys.modules.get("mmcv"), "__version__", "of unknown version")
        raise ImportError(
            f"cvkernels.compat.mmcv: mmcv {version} is not supported: mmcv.ops has no "
            f"{', '.join(absent)}"
        )
    found = {name: getattr(ops, name) for name in _REPLACED}
    applied = getattr(sys.modules.get("mmcv.ops.roi_align_rotated"), _ROTATED_FUNCTION, None)
    return found if applied is None else {**found, _ROTATED_FUNCTION: applied}
