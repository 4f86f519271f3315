"""Run an unmodified model's convolutions on cvkernels.

Usage::

    import cvkernels.compat.torch as cvt

    with cvt.patched() as report:
        model(images).sum().backward()
    print(report)

Inside the block ``torch.nn.functional.conv2d`` and ``conv_transpose2d`` (which are ``torch.conv2d``
and ``torch.conv_transpose2d``, and what ``nn.Conv2d``, ``nn.ConvTranspose2d`` and their lazy forms
call) are cvkernels' in this thread; nothing in torch is changed. The block decides about a forward
pass; its backward pass then is ours too, inside the block or after it.

Left to torch, and counted in the report with the reason: tensors of other dtypes than float16,
bfloat16, float32 and float64, of other devices than ours, of another layout than strided, and of
subclasses of ``torch.Tensor``; calls under forward-mode differentiation, under ``torch.func.grad``
and what is made of it, and under ``torch.jit`` tracing; calls with arguments that ours refuses, so
that errors are torch's own.

Not reached: calls from C++ (a scripted model, an operator of torch that convolves inside), threads
that the block starts (``nn.DataParallel``), and what ``torch.utils.checkpoint`` computes again
while ``Tensor.backward`` runs.

Each call of a torch function costs about a microsecond more inside the block.
``torch.compile`` works inside it; a graph that was compiled inside is compiled again outside.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters as interpreters
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from cvkernels import _load
from cvkernels.conv2d import conv2d
from cvkernels.conv_transpose2d import conv_transpose2d

__all__ = ["Report", "patched"]

_OURS: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    torch.conv2d: conv2d,
    torch.conv_transpose2d: conv_transpose2d,
}
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_TYPES = (Tensor, torch.nn.Parameter)


@dataclass
class Report:
    """What one ``patched()`` block did.

    Attributes:
        counts: function -> calls that cvkernels ran.
        left: function and reason -> calls that were left to torch.

    Calls that ``torch.compile`` traced are in neither.
    """

    counts: Counter[str] = field(default_factory=Counter)
    left: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [f"  {name}: {count} by cvkernels" for name, count in self.counts.items()]
        lines += [
            f"  {name}: {count} by torch, {reason}" for (name, reason), count in self.left.items()
        ]
        return "\n".join(["cvkernels.compat.torch", *(lines or ["  no convolution was called"])])


@contextlib.contextmanager
def patched() -> Iterator[Report]:
    """Runs the convolutions of a ``with`` block (or a decorated function) on cvkernels.

    Blocks nest; each call is in the report of the innermost.

    Yields:
        The report, which stays readable after the block.

    Example:
        >>> import torch
        >>> import cvkernels.compat.torch as cvt
        >>> layer = torch.nn.Conv2d(3, 8, 3)
        >>> with cvt.patched() as report:
        ...     out = layer(torch.ones(1, 3, 9, 9))
        >>> print(report)
        cvkernels.compat.torch
          conv2d: 1 by cvkernels
    """
    report = Report()
    with _Mode(report):
        yield report


class _Mode(TorchFunctionMode):
    def __init__(self, report: Report) -> None:
        super().__init__()
        self.report = report
        loaded = set(_load._loaded)
        self.devices = {"cpu"} if loaded & {"_C", "_emulated"} else set()
        self.devices |= {"cuda"} if "_cuda" in loaded else set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        ours = _OURS.get(func)
        if ours is None:
            return func(*args, **kwargs)
        if torch.compiler.is_compiling():
            return func(*args, **kwargs) if self._left(*args, **kwargs) else ours(*args, **kwargs)
        reason = self._left(*args, **kwargs)
        if not reason:
            try:
                out = ours(*args, **kwargs)
            except (TypeError, ValueError) as error:
                reason = str(error)
            else:
                self.report.counts[func.__name__] += 1
                return out
        out = func(*args, **kwargs)
        self.report.left[func.__name__, reason] += 1
        return out

    def _left(self, input: Any, weight: Any, bias: Any = None, *_: Any, **__: Any) -> str:
        """Why the call is torch's; empty where it is ours."""
        for tensor in (input, weight) if bias is None else (input, weight, bias):
            if type(tensor) not in _TYPES:
                return f"a {type(tensor).__name__}"
            if tensor.dtype not in _DTYPES:
                return f"dtype {str(tensor.dtype).removeprefix('torch.')}"
            if tensor.device.type not in self.devices:
                return f"device {tensor.device.type}"
            if tensor.layout != torch.strided:
                return f"layout {str(tensor.layout).removeprefix('torch.')}"
        if forward_ad._current_level >= 0:
            return "forward-mode differentiation"
        if torch.compiler.is_compiling():  # which knows neither of what follows
            return ""
        if any(level.key() == TransformType.Grad for level in interpreters()):
            return "torch.func.grad"
        if torch._C._get_tracing_state() is not None:
            return "torch.jit tracing"
        return ""
