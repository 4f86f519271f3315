"""What the Python modules of the convolutions share: formats, autocast and vmap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cvkernels._roi import memory_format

InDims = tuple[int | None, ...]
Library: Any = torch.library.Library


def channels_last(*tensors: Tensor) -> bool:
    """Whether a convolution of these runs in channels_last: if one of them is so, as in torch."""
    return any(memory_format(tensor) == torch.channels_last for tensor in tensors)


@torch.compiler.assume_constant_result
def _tf32_switch() -> bool:
    return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")  # type: ignore[attr-defined]


def tf32(input: Tensor) -> bool:
    """Whether torch's switches let a convolution round its float32 factors to TF32."""
    return input.is_cuda and input.dtype == torch.float32 and _tf32_switch()


below_autograd: Callable[[], Any] = torch._C._AutoDispatchBelowAutograd
_innermost_transform: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack


def needs_no_autograd(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a call may pass by autograd, whose registration in Python costs 4 microseconds."""
    if torch.compiler.is_compiling() or _innermost_transform() is not None:
        return False
    if not torch.is_grad_enabled():
        return True
    wanted = input.requires_grad or weight.requires_grad
    return not (wanted or (bias is not None and bias.requires_grad))


def in_format(tensor: Tensor, last: bool) -> Tensor:
    """The tensor, dense in the memory format; the order of sums must not follow a gradient's."""
    layout = torch.channels_last if last else torch.contiguous_format
    return tensor.contiguous(memory_format=layout)


def empty(like: Tensor, size: Sequence[int], last: bool) -> Tensor:
    """An empty tensor for a fake kernel."""
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=layout)


def bias_gradient(op_weight: Callable[..., Tensor], grad: Tensor, last: bool) -> Tensor:
    """The sum of ``grad`` [N, O, OH, OW] over all but its channels, [O].

    On the CPU it is the gradient of a 1 x 1 convolution of ones, and so its order of sums is fixed,
    which that of torch's sum is not for every layout and number of threads; on CUDA torch's is, for
    one layout.
    """
    if grad.is_cuda:
        layout = torch.channels_last if last else torch.contiguous_format
        return grad.contiguous(memory_format=layout).sum((0, 2, 3))
    ones = grad.new_ones((grad.shape[0], 1, *grad.shape[2:]))
    geometry = [1, 1], [0, 0, 0, 0], [1, 1], 1
    return op_weight(grad, ones, 1, 1, *geometry, last, False, False).flatten()


# ---- autocast: convolutions run in the lower precision, as torch's do

_libraries: list[Any] = []  # registrations live as long as the library object


def register_autocast(name: str, op: Callable[..., Tensor], tensors: int) -> None:
    """Casts the first ``tensors`` arguments of cvkernels::name to autocast's dtype."""
    library = Library("cvkernels", "IMPL")
    _libraries.append(library)
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        library.impl(name, _casting(op, tensors, device, key), key)


def _casting(op: Callable[..., Tensor], tensors: int, device: str, key: str) -> Callable[..., Any]:
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def kernel(*args: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device)

        def cast(value: Any) -> Any:
            # As torch: float64 stays, and so do tensors on another device.
            if (
                not isinstance(value, Tensor)
                or not value.is_floating_point()
                or value.dtype == torch.float64
                or value.device.type != device
            ):
                return value
            return value.to(dtype)

        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*map(cast, args[:tensors]), *args[tensors:])

    return kernel


# ---- vmap


def folded(info: Any, dim: int | None, tensor: Tensor, axis: int) -> Tensor:
    """The mapped dimension joined to ``axis`` of each call's; a shared tensor is repeated."""
    if dim is None:
        tensor = tensor.expand(info.batch_size, *tensor.shape)
    else:
        tensor = tensor.movedim(dim, 0)
    return tensor.movedim(0, axis).flatten(axis, axis + 1)


def unfolded(info: Any, tensor: Tensor, axis: int) -> tuple[Tensor, int]:
    """The result of a call on folded tensors, and where its mapped dimension is."""
    return tensor.unflatten(axis, (info.batch_size, -1)), axis
