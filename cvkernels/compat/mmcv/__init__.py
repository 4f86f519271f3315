"""mmcv's NMS functions by name, signature and return convention (``mmcv.ops`` 2.2.0).

Usage::

    from cvkernels.compat.mmcv import batched_nms, nms, soft_nms  # instead of mmcv.ops

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
from cvkernels.compat.torchvision import _rebind

__all__ = [
    "batched_nms",
    "box_iou_rotated",
    "nms",
    "nms_match",
    "nms_rotated",
    "patched",
    "soft_nms",
]

_REPLACED = ("nms", "soft_nms", "batched_nms", "nms_match", "nms_rotated", "box_iou_rotated")


@contextlib.contextmanager
def patched() -> Iterator[tuple[str, ...]]:
    """Puts these functions in place of mmcv's inside a ``with`` block.

    Every module attribute that *is* mmcv's function is rebound: in ``mmcv.ops``, in the module that
    defines it, and wherever ``from mmcv.ops import ...`` brought it. A reference that is no module
    attribute keeps mmcv's. The patch is process-wide; blocks nest; afterwards all is as before,
    also in modules that were imported meanwhile.

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
    replacements = {}
    names: list[str] = []
    try:
        for name, original in originals.items():
            replacements[name] = _replacement(globals()[name])
            names += _rebind(original, replacements[name])
        yield tuple(sorted(names))
    finally:
        for name, replacement in replacements.items():
            _rebind(replacement, originals[name])


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
    return {name: getattr(ops, name) for name in _REPLACED}
