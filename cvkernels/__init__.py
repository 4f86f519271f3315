"""cvkernels: fast, exact vision operators for PyTorch and NumPy.

Importing the package is light: torch is imported when an operator module is first used. Each
operator family is one module (``cvkernels.roi_align``, ``cvkernels.nms``); ``cvkernels.ops`` is
the flat namespace, ``cvkernels.reference`` the pure-PyTorch definition, ``cvkernels.compat`` the
drop-in for other libraries and ``cvkernels.numpy`` the torch-free front for NumPy arrays.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from types import ModuleType

__version__ = "0.1.0"

__all__ = ["__version__"]


def __getattr__(name: str) -> ModuleType:
    """Imports a public submodule on first access, so that ``import cvkernels`` alone is enough."""
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    submodules = {module.name for module in pkgutil.iter_modules(__path__)}
    return sorted({*globals(), *(name for name in submodules if not name.startswith("_"))})
