"""The compiled entries, and how they are called.

An entry answers None where an argument is not as it wants it, in Python's own types for numbers.
The checks in Python then name the error, or there is none and it gets plain numbers. So a call with
good arguments costs no check in Python.
"""

from __future__ import annotations

import importlib
import numbers
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray


class _Missing:
    """Stands for an extension module that cannot be imported; any use of it says why."""

    def __init__(self, reason: ImportError) -> None:
        self._reason = reason

    def __getattr__(self, name: str) -> NoReturn:
        package = Path(__file__).resolve().parent.parent
        found = ", ".join(sorted(p.name for p in package.glob("_numpy*"))) or "no such file"
        raise ImportError(
            "cvkernels: the extension module cvkernels._numpy cannot be imported: "
            f"{self._reason}. Looked in {package} and found {found}. Build it for this Python with "
            "`pip install .` in the source tree."
        ) from self._reason


try:
    kernels: Any = importlib.import_module("cvkernels._numpy")
except ImportError as error:
    kernels = _Missing(error)


def call(entry: Callable[..., Any], check: Callable[..., None], op: str, *arguments: Any) -> Any:
    """What ``entry`` makes of the arguments; ``check`` finds the words where it refuses them."""
    result = entry(*arguments)
    if result is None:
        check(op, *arguments)
        result = settled(entry, *arguments)
    return result


def settled(entry: Callable[..., Any], *arguments: Any) -> Any:
    """Calls ``entry`` with arguments that have been checked."""
    result = entry(*map(_plain, arguments))
    if result is None:
        raise RuntimeError(f"{entry.__name__}: expected to take what the checks allow; a bug")
    return result


def _plain(value: Any) -> Any:
    """A number of NumPy's, a fraction or the like in a type of Python's; else the value."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    return bool(value) if isinstance(value, (numbers.Number, np.bool_)) else value


def rounded(values: NDArray[Any], like: NDArray[Any]) -> NDArray[Any]:
    """Results in the dtype of the argument that they come from."""
    if values.dtype == like.dtype and values.dtype.isnative:
        return values
    dtype = like.dtype.newbyteorder("=")
    with np.errstate(all="ignore"):
        if dtype == np.float16:  # Numerics: in two steps, as torch does
            values = values.astype(np.float32, copy=False)
        return values.astype(dtype, copy=False)


def best_first(
    new_scores: NDArray[Any], min_score: float, max_output: int | None
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Indices and values of scores of at least ``min_score``, descending, ties by index."""
    arguments = new_scores, min_score, max_output
    keep, best = kernels.best_first(*arguments) or settled(kernels.best_first, *arguments)
    return keep, rounded(best, new_scores)
