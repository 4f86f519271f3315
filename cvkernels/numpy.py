"""NumPy front of the CPU kernels; torch is neither needed nor imported.

The same compiled kernels as behind ``cvkernels.ops`` on CPU tensors, with the same results, rules
and messages.
"""

from __future__ import annotations

import math
import numbers
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

__all__ = ["build_info", "nms"]

_FLOATS = {"float16": np.float32, "float32": np.float32, "float64": np.float64}


def _extension() -> Any:
    try:
        from cvkernels import _numpy
    except ImportError as error:
        package = Path(__file__).resolve().parent
        found = ", ".join(sorted(p.name for p in package.glob("_numpy*"))) or "no such file"
        raise ImportError(
            f"cvkernels: the extension module cvkernels._numpy cannot be imported: {error}. Looked "
            f"in {package} and found {found}. Build it for this Python with `pip install .` in the "
            "source tree."
        ) from error
    return _numpy


def build_info() -> dict[str, Any]:
    """How this package was built.

    Returns:
        A dict with ``version``, ``compiler``, ``cpu_isas`` (the instruction sets the CPU kernels
        were compiled for), ``cpu_isa`` (the one chosen on this machine), ``cuda_version`` and
        ``cuda_archs`` (empty for a CPU-only build).
    """
    info: dict[str, Any] = _extension().build_info()
    return info


def nms(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    iou_threshold: float,
    *,
    max_output: int | None = None,
) -> NDArray[np.int64]:
    """Exact greedy non-maximum suppression, on the calling thread and without the GIL.

    Args:
        boxes: Array of shape (N, 4), corners (x1, y1, x2, y2) in pixels; float16, float32 or
            float64, any strides.
        scores: Array of shape (N,), float16, float32 or float64; a NaN score is never kept.
        iou_threshold: A box is dropped when its IoU with a kept box is above it; finite.
        max_output: Stop after this many boxes; None keeps all.

    Returns:
        Kept indices, int64, by descending score, ties by ascending index.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape, dtype or value is not what is expected.

    Determinism:
        The same indices on every machine, and as ``cvkernels.nms.nms`` gives for the same values.

    Source:
        ``csrc/kernels/nms/nms.h`` lists the rules and where they come from.

    Example:
        >>> import numpy as np
        >>> boxes = np.array([[0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]], dtype=np.float32)
        >>> nms(boxes, np.array([0.9, 0.8, 0.7]), 0.5)
        array([0, 2])
    """
    for name, value in (("boxes", boxes), ("scores", scores)):
        if not isinstance(value, np.ndarray):
            raise TypeError(f"nms: expected {name} to be an array, got {type(value).__name__}")
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        _fail("boxes of shape (N, 4)", boxes.shape)
    _check_float("boxes", boxes)
    if scores.shape != boxes.shape[:1]:
        _fail(f"scores of shape {boxes.shape[:1]}", scores.shape)
    _check_float("scores", scores)
    if not _is_a(numbers.Real, iou_threshold):
        _fail_type("iou_threshold to be a number", iou_threshold)
    try:
        threshold = float(iou_threshold)
    except OverflowError:  # an integer beyond any float
        threshold = math.inf
    if not math.isfinite(threshold):
        _fail("iou_threshold to be finite", f"{threshold:g}")
    if len(scores) >= 2**31:
        _fail("fewer than 2^31 boxes", len(scores))
    if max_output is None:
        max_output = len(scores)
    elif not _is_a(numbers.Integral, max_output):
        _fail_type("max_output to be an integer", max_output)
    elif max_output < 0:
        _fail("max_output to be None or at least 0", max_output)
    kept: NDArray[np.int64] = _extension().nms(
        _settled(boxes), _settled(scores), threshold, min(int(max_output), len(scores))
    )
    return kept


def _settled(array: NDArray[Any]) -> NDArray[Any]:
    """The array contiguous, aligned, in native byte order, in a dtype of the kernel."""
    return np.require(array, _FLOATS[array.dtype.name], ["C", "A"])


def _is_a(kind: type, value: object) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _check_float(name: str, array: NDArray[Any]) -> None:
    if array.dtype.name not in _FLOATS:
        _fail(f"{name} of dtype float16, float32 or float64", array.dtype.name)


def _fail(expected: str, got: object) -> NoReturn:
    raise ValueError(f"nms: expected {expected}, got {got}")


def _fail_type(expected: str, value: object) -> NoReturn:
    raise TypeError(f"nms: expected {expected}, got {type(value).__name__}")
