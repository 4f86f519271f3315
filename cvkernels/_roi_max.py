"""What the operators that pool maxima share: fake kernels, autograd and vmap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from cvkernels import _checks, _roi

Check = Callable[[Tensor, Tensor, float, int, int, bool], None]


def register(name: str, check: Check, per_pixel: int) -> None:
    """Registers all of ``cvkernels::name``, ``name_argmax`` and ``name_backward`` but the kernels.

    ``check`` refuses arguments as the kernels do. There are ``per_pixel`` indices for each pixel.
    """
    ops = torch.ops.cvkernels
    op: Callable[..., Tensor] = getattr(ops, name).default
    op_argmax: Callable[..., tuple[Tensor, Tensor]] = getattr(ops, f"{name}_argmax").default
    op_backward: Callable[..., Tensor] = getattr(ops, f"{name}_backward").default

    def fake(
        input: Tensor, boxes: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int
    ) -> Tensor:
        check(input, boxes, spatial_scale, pooled_height, pooled_width, False)
        return _roi.like(input, (boxes.shape[0], input.shape[1], pooled_height, pooled_width))

    def fake_argmax(
        input: Tensor,
        boxes: Tensor,
        spatial_scale: float,
        pooled_height: int,
        pooled_width: int,
        narrow: bool = False,
    ) -> tuple[Tensor, Tensor]:
        check(input, boxes, spatial_scale, pooled_height, pooled_width, narrow)
        size = (boxes.shape[0], input.shape[1], pooled_height, pooled_width)
        return _roi.like(input, size), _roi.like(
            input, size, torch.int16 if narrow else torch.int32
        )

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, boxes, *arguments = inputs
        ctx.arguments = arguments
        ctx.save_for_backward(input, boxes)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Reached only by a direct call of the operator: the maxima are looked up again.
        input, boxes = ctx.saved_tensors
        narrow = _checks.roi_narrow_fits(input, per_pixel)
        argmax = op_argmax(input, boxes, *ctx.arguments, narrow)[1]
        grad_input = op_backward(grad, argmax, boxes, *ctx.arguments, *input.shape)
        return grad_input, None, None, None, None

    def setup_argmax(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        input, boxes, *ctx.arguments, _ = inputs
        ctx.input_shape = input.shape
        ctx.save_for_backward(boxes, output[1])

    def backward_argmax(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        boxes, argmax = ctx.saved_tensors
        grad_input = op_backward(grad, argmax, boxes, *ctx.arguments, *ctx.input_shape)
        return grad_input, None, None, None, None, None

    def no_double_backward(ctx: Any, *_: Any) -> NoReturn:
        raise NotImplementedError(f"{name}: expected at most one differentiation, got a second")

    def no_setup(*_: Any, **__: Any) -> None:
        pass

    torch.library.register_fake(f"cvkernels::{name}", fake)
    torch.library.register_fake(f"cvkernels::{name}_argmax", fake_argmax)
    torch.library.register_fake(f"cvkernels::{name}_backward", _roi.fake_backward(3))
    register_autograd = torch.library.register_autograd
    register_autograd(f"cvkernels::{name}", backward, setup_context=setup)
    register_autograd(f"cvkernels::{name}_argmax", backward_argmax, setup_context=setup_argmax)
    register_autograd(f"cvkernels::{name}_backward", no_double_backward, setup_context=no_setup)
    torch.library.register_vmap(f"cvkernels::{name}", _roi.vmap_forward(op))
    torch.library.register_vmap(f"cvkernels::{name}_argmax", _roi.vmap_forward(op_argmax))
    torch.library.register_vmap(f"cvkernels::{name}_backward", _roi.vmap_backward(op_backward, 2))
