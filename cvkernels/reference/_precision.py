"""The floating-point format in which the references compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_compute_dtype = torch.float64


def compute_dtype() -> torch.dtype:
    """Returns the dtype in which references evaluate: float64 outside :func:`precision`."""
    return _compute_dtype


@contextmanager
def precision(dtype: torch.dtype) -> Iterator[None]:
    """Evaluates the references in ``dtype`` inside the ``with`` block.

    A float32 reference rounds coordinates as the kernels do, which matters to a sample that lies
    within one rounding of the border, and to a box whose size is within one rounding of a whole
    number of bins.

    Args:
        dtype: float32 or float64.

    Raises:
        ValueError: another dtype.
    """
    global _compute_dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"precision: expected dtype float32 or float64, got {dtype}")
    before, _compute_dtype = _compute_dtype, dtype
    try:
        yield
    finally:
        _compute_dtype = before
