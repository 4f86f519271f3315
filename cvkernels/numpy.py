"""NumPy front of the CPU kernels; torch is neither needed nor imported.

The same compiled kernels as behind ``cvkernels.ops`` on CPU tensors, with the same rules and messages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["build_info"]


def _extension() -> Any:
    try:
        from cvkernels import _numpy
    except ImportError as error:
        package = Path(__file__).resolve().parent
        found = ", ".join(sorted(p.name for p in package.glob("_numpy*"))) or "no such file"
        raise ImportError(
            f"cvkernels: the extension module cvkernels._numpy cannot be imported: {error}. Looked in "
            f"{package} and found {found}. Build it for this Python with `pip install .` in the source tree."
        ) from error
    return _numpy


def build_info() -> dict[str, Any]:
    """How this package was built.

    Returns:
        A dict with ``version``, ``compiler``, ``cpu_isas`` (the instruction sets the CPU kernels were
        compiled for), ``cpu_isa`` (the one chosen on this machine), ``cuda_version`` and ``cuda_archs``
        (empty for a CPU-only build).
    """
    info: dict[str, Any] = _extension().build_info()
    return info
