"""NumPy front of the CPU kernels; torch is neither needed nor imported.

Every function of the NMS family under the name, with the arguments, rules and messages that it has
in ``cvkernels.ops``, on arrays in place of tensors: the same compiled kernels and bit for bit the
same results. A call runs on the calling thread without the GIL, so several threads run side by
side. Arrays may have any strides and byte order; contiguous float32 and float64 (int64 for classes)
are read in place.
"""

from __future__ import annotations

from typing import Any

from cvkernels.numpy._extension import kernels as _kernels
from cvkernels.numpy._greedy import (
    adaptive_nms,
    batched_nms,
    diou_nms,
    diou_nms_padded,
    iou_guided_nms,
    nms,
    nms_match,
    nms_padded,
)
from cvkernels.numpy._merging import cluster_nms, softer_nms, weighted_nms, weighted_nms_padded
from cvkernels.numpy._rotated import box_iou_rotated, nms_rotated
from cvkernels.numpy._scoring import (
    matrix_nms,
    matrix_nms_from_overlaps,
    soft_nms,
    soft_nms_padded,
)

__all__ = [
    "adaptive_nms",
    "batched_nms",
    "box_iou_rotated",
    "build_info",
    "cluster_nms",
    "diou_nms",
    "diou_nms_padded",
    "iou_guided_nms",
    "matrix_nms",
    "matrix_nms_from_overlaps",
    "nms",
    "nms_match",
    "nms_padded",
    "nms_rotated",
    "soft_nms",
    "soft_nms_padded",
    "softer_nms",
    "weighted_nms",
    "weighted_nms_padded",
]


def build_info() -> dict[str, Any]:
    """How this package was built.

    Returns:
        A dict with ``version``, ``compiler``, ``cpu_isas`` (the instruction sets the CPU kernels
        were compiled for), ``cpu_isa`` (the one chosen on this machine), ``cpu_bf16_pairs``
        (whether AVX512_BF16 is used beside it), ``cpu_bf16_tiles`` (``"amx"``, ``"none"`` or, in
        tests, ``"emulated"``), ``cuda_version`` and ``cuda_archs`` (empty for a CPU-only build).

    Example:
        >>> "cpu_isa" in build_info()
        True
    """
    info: dict[str, Any] = _kernels.build_info()
    return info
