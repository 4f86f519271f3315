"""What every check is made of: one property of one argument, and the words for it."""

from __future__ import annotations

import numbers
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
FLOATS = "float16, bfloat16, float32 or float64"
INTEGERS = "uint8, int8, int16, int32 or int64"
INT16_MAX = 2**15 - 1
INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
_FLOAT_MAX = sys.float_info.max


def fail(op: str, expected: str, got: object) -> NoReturn:
    raise ValueError(f"{op}: expected {expected}, got {got}")


def fail_type(op: str, expected: str, value: object) -> NoReturn:
    raise TypeError(f"{op}: expected {expected}, got {type(value).__name__}")


def g(value: float) -> str:
    try:
        return f"{float(value):g}"
    except OverflowError:
        return "inf" if value > 0 else "-inf"


def sizes(sizes: Sequence[Any]) -> str:
    text = [str(size) for size in sizes]
    return f"({text[0]},)" if len(text) == 1 else f"({', '.join(text)})"


def shape(tensor: Tensor) -> str:
    return sizes(tensor.shape)


def dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def tensor(op: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        fail_type(op, f"{name} to be a tensor", value)
    if value.layout is not torch.strided:
        fail(op, f"{name} to be a dense tensor", str(value.layout).removeprefix("torch."))


def float_dtype(op: str, name: str, value: Tensor) -> None:
    if value.dtype not in FLOAT_DTYPES:
        fail(op, f"{name} of dtype {FLOATS}", dtype(value))


def integer_dtype(op: str, name: str, value: Tensor) -> None:
    if value.dtype not in INTEGER_DTYPES:
        fail(op, f"{name} of dtype {INTEGERS}", dtype(value))


def same_device(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.device != other.device:
        fail(op, f"{name} on the device of {other_name} ({other.device})", value.device)


def same_dtype(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.dtype != other.dtype:
        fail(op, f"{name} of the dtype of {other_name} ({dtype(other)})", dtype(value))


def number(op: str, name: str, value: object) -> None:
    if not isinstance(value, (numbers.Real, torch.SymFloat, torch.SymInt)):
        fail_type(op, f"{name} to be a number", value)


def finite(value: float) -> bool:
    if not isinstance(value, (torch.SymFloat, torch.SymInt)):
        try:
            value = float(value)
        except OverflowError:  # an integer beyond any float
            return False
    # Comparisons, unlike math.isfinite, take the compiler's numbers; NaN fails both.
    return bool(-_FLOAT_MAX <= value <= _FLOAT_MAX)


def integer(op: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (numbers.Integral, torch.SymInt)):
        fail_type(op, f"{name} to be an integer", value)


def flag(op: str, name: str, value: object) -> None:
    if not isinstance(value, numbers.Number):  # as the dispatcher, which takes a number's truth
        fail_type(op, f"{name} to be a bool", value)


def positive(op: str, name: str, value: Any) -> None:
    number(op, name, value)
    if not (finite(value) and value > 0):
        fail(op, f"{name} to be finite and positive", g(value))


def choice(op: str, name: str, value: object, *choices: str) -> None:
    if not isinstance(value, str) or value not in choices:
        quoted = [f"'{choice}'" for choice in choices]
        text = f"{', '.join(quoted[:-1])} or {quoted[-1]}"
        fail(op, f"{name} to be {text}", repr(value))


def pair(op: str, name: str, value: Any) -> tuple[int, int]:
    """Returns ``value`` as (height, width): an integer stands for both."""
    if isinstance(value, (list, tuple, torch.Size)):
        if len(value) != 2:
            fail(op, f"{name} to be an integer or a pair of integers", f"{len(value)} values")
        height, width = value
    else:
        height = width = value
    integer(op, name, height)
    integer(op, name, width)
    return height, width


def sizes_differ(mine: Sequence[Any], theirs: Sequence[Any]) -> bool:
    """Whether two lists of sizes are not the same.

    Two sizes that a compiler cannot know (both counted from data) are taken as equal, and checked
    when the compiled code runs.
    """
    if len(mine) != len(theirs):
        return True
    for one, other in zip(mine, theirs, strict=True):
        if surely(one != other):
            return True
        if not (isinstance(one, int) and isinstance(other, int)):
            torch._check(one == other)
    return False


def surely(comparison: Any) -> bool:
    """Whether a comparison of sizes holds; it does not where a compiler cannot know them."""
    if isinstance(comparison, bool) and not torch.compiler.is_compiling():
        return comparison
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    return guard_or_false(comparison)
