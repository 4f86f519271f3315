"""What the Python modules of the RoI family share: results of fake kernels, vmap, linear passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from cvkernels import _checks

InDims = tuple[Any, ...]  # a dimension or None each; a list of them for a list of tensors


def output_size(op: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """The bins (height, width); an integer stands for both."""
    if type(value) is int:  # the common case, without a check that costs microseconds
        return value, value
    return _checks.pair(op, "output_size", value)


# ---- fake kernels


def memory_format(tensor: Tensor) -> torch.memory_format:
    """channels_last only for dense channels-last strides that are not contiguous as well."""
    if tensor.is_contiguous():
        return torch.contiguous_format
    _, c, h, w = tensor.shape
    # The stride of a dimension of size 1 says nothing.
    for size, stride, wanted in zip(
        tensor.shape, tensor.stride(), (h * w * c, 1, w * c, c), strict=True
    ):
        if size != 1 and stride != wanted:
            return torch.contiguous_format
    return torch.channels_last


def like(tensor: Tensor, size: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    """An empty tensor of four dimensions in the memory format of ``tensor``."""
    return torch.empty(
        size,
        dtype=dtype or tensor.dtype,
        device=tensor.device,
        memory_format=memory_format(tensor),
    )


# ---- vmap: the mapped dimension joins the images, and image indices move with it


def fold_boxes(info: Any, dim: int | None, boxes: Tensor, images: int | None) -> tuple[Tensor, int]:
    """Returns boxes [B*K, ...] and K; image indices move where each call has ``images`` of its own.

    An image index that is out of range stays so and does not reach a neighbour's image.
    """
    size = info.batch_size
    boxes = boxes.movedim(dim, 0) if dim is not None else boxes.expand(size, *boxes.shape)
    if images is not None:
        # float32 counts images exactly up to 2^24; narrower boxes are widened first.
        boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
        shift = torch.arange(size, device=boxes.device, dtype=boxes.dtype) * images
        index = boxes[..., :1]
        valid = (index > -1) & (index < images)
        index = torch.where(valid, index.trunc() + shift[:, None, None], -1.0)
        boxes = torch.cat([index, boxes[..., 1:]], dim=-1)
    return boxes.flatten(0, 1), boxes.shape[1]


def fold_rows(info: Any, dim: int | None, tensor: Any) -> Any:
    """A tensor with a row per box (or image) and call, [B*K, ...]; None stays None."""
    if tensor is None:
        return None
    if dim is not None:
        return tensor.movedim(dim, 0).flatten(0, 1)
    return tensor.expand(info.batch_size, *tensor.shape).flatten(0, 1)


def fold_maps(info: Any, dims: Any, maps: Any) -> tuple[Any, int | None]:
    """Returns the map, or maps of several levels, [B*N, C, H, W], and N.

    Where nothing is mapped over the maps are shared: they stay as they are, and None is returned.
    """
    if isinstance(maps, Tensor):
        if dims is None:
            return maps, None
        return fold_rows(info, dims, maps), maps.movedim(dims, 0).shape[1]
    if all(dim is None for dim in dims):
        return maps, None
    folded = [fold_rows(info, dim, level) for dim, level in zip(dims, maps, strict=True)]
    return folded, folded[0].shape[0] // info.batch_size


def vmap_forward(op: Callable[..., Any], per_box: int = 0) -> Callable[..., Any]:
    """The rule of ``op(input, boxes, *rows, *arguments)``, all results with a row per box.

    ``per_box`` tensors after the boxes have a row per box, or are None. ``input`` is a map, or a
    list of maps. What is not mapped over is shared: it stays [N, C, H, W] and no index moves.
    """

    def rule(info: Any, in_dims: InDims, input: Any, boxes: Tensor, *arguments: Any) -> Any:
        input, images = fold_maps(info, in_dims[0], input)
        boxes, count = fold_boxes(info, in_dims[1], boxes, images)
        rows = [
            fold_rows(info, dim, value)
            for value, dim in zip(arguments[:per_box], in_dims[2 : 2 + per_box], strict=True)
        ]
        result = op(input, boxes, *rows, *arguments[per_box:])
        if isinstance(result, Tensor):
            return result.unflatten(0, (info.batch_size, count)), 0
        parts = tuple(part.unflatten(0, (info.batch_size, count)) for part in result)
        return parts, (0,) * len(parts)

    return rule


def vmap_backward(op: Callable[..., Any], per_box: int, after: int = 0) -> Callable[..., Any]:
    """The rule of ``op(*rows, boxes, *more, scale, ph, pw, n, c, h, w, *rest)``, a map's gradient.

    ``per_box`` tensors before the boxes, and ``after`` behind them, have a row per box. The result
    is a gradient or a list of them.
    """

    def rule(info: Any, in_dims: InDims, *arguments: Any) -> tuple[Any, Any]:
        tensors = per_box + 1 + after
        scale, ph, pw, n, *rest = arguments[tensors:]
        rows = [fold_rows(info, d, t) for t, d in zip(arguments[:tensors], in_dims, strict=False)]
        rows[per_box], _ = fold_boxes(info, in_dims[per_box], arguments[per_box], n)
        result = op(*rows, scale, ph, pw, info.batch_size * n, *rest)
        if isinstance(result, Tensor):
            return result.unflatten(0, (info.batch_size, n)), 0
        return [part.unflatten(0, (info.batch_size, n)) for part in result], [0] * len(result)

    return rule


def vmap_boxes_backward(op: Callable[..., Tensor], per_box: int) -> Callable[..., Any]:
    """As :func:`vmap_forward`, for the gradient of the boxes, which keeps their dtype."""
    rule = vmap_forward(op, per_box)

    def in_dtype(info: Any, in_dims: InDims, input: Any, boxes: Tensor, *arguments: Any) -> Any:
        grad, dim = rule(info, in_dims, input, boxes, *arguments)
        return grad.to(boxes.dtype), dim  # the boxes may have been widened

    return in_dtype


# ---- fake kernels


def fake_backward(tensors: int) -> Callable[..., Tensor]:
    """The fake kernel of ``op(*tensors, scale, ph, pw, n, c, h, w, *options)``, a map's gradient.

    The first of so many ``tensors`` is the gradient of what was pooled.
    """

    def fake(*arguments: Any) -> Tensor:
        return like(arguments[0], arguments[tensors + 3 : tensors + 7])

    return fake


# ---- autograd


def refuse_second_derivative_with_boxes(op: str) -> NoReturn:
    """Says that a gradient in which the boxes take part is not differentiable."""
    raise NotImplementedError(
        f"{op}: expected at most one differentiation where boxes needs a gradient, got a second; "
        "with boxes.detach() input is twice differentiable"
    )


# ---- operators that are linear in their map, so that each pass is the derivative of the other


def register_linear(name: str) -> None:
    """Registers autograd and vmap of ``cvkernels::name`` and of its backward operator.

    They are ``name(input, boxes, scale, height, width, *options)`` and ``name_backward(grad, boxes,
    scale, height, width, N, C, H, W, *options)``, whose fake kernel is registered as well.
    """
    op: Callable[..., Tensor] = getattr(torch.ops.cvkernels, name).default
    op_backward: Callable[..., Tensor] = getattr(torch.ops.cvkernels, f"{name}_backward").default

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, boxes, *ctx.arguments = inputs
        ctx.input_shape = input.shape
        ctx.save_for_backward(boxes)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (boxes,) = ctx.saved_tensors
        scale, height, width, *options = ctx.arguments
        grad_input = op_backward(grad, boxes, scale, height, width, *ctx.input_shape, *options)
        return (grad_input, None, *([None] * len(ctx.arguments)))

    def setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, boxes, *arguments = inputs
        ctx.arguments = (*arguments[:3], *arguments[7:])
        ctx.save_for_backward(boxes)

    def double_backward(ctx: Any, grad_grad: Tensor) -> tuple[Tensor | None, ...]:
        (boxes,) = ctx.saved_tensors
        return (op(grad_grad, boxes, *ctx.arguments), *([None] * (len(ctx.arguments) + 5)))

    forward, back = f"cvkernels::{name}", f"cvkernels::{name}_backward"
    torch.library.register_fake(back, fake_backward(2))
    torch.library.register_autograd(forward, backward, setup_context=setup)
    torch.library.register_autograd(back, double_backward, setup_context=setup_backward)
    torch.library.register_vmap(forward, vmap_forward(op))
    torch.library.register_vmap(back, vmap_backward(op_backward, 1))
