"""Transposed 2-D convolution: from the output of a convolution back to its input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cvkernels import _conv, _load
from cvkernels._checks import conv as _checks

__all__ = ["ConvTranspose2d", "conv_transpose2d"]

_load.load()
_op: Callable[..., Tensor] = torch.ops.cvkernels.conv_transpose2d.default
_op_conv: Callable[..., Tensor] = torch.ops.cvkernels.conv2d.default
_op_weight: Callable[..., Tensor] = torch.ops.cvkernels.conv2d_backward_weight.default


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Spreads each input pixel over the output, weighted by the filters; the bias is added at once.

    Arguments and results are those of :func:`torch.nn.functional.conv_transpose2d`. No zeros are
    inserted between pixels: output pixels are computed by their remainder modulo the stride, each
    from the kernel elements that reach it.

    Args:
        input: maps, shape [N, C, H, W] or [C, H, W], float16, bfloat16, float32 or float64;
            contiguous and channels_last are read in place, other strides are copied.
        weight: filters, shape [C, O / groups, KH, KW], the dtype of ``input``; contiguous or
            channels_last.
        bias: shape [O], the dtype of ``input``, or None.
        stride: output pixels from input to input, an integer or (vertical, horizontal).
        padding: output pixels cut off at each side, an integer or (vertical, horizontal).
        output_padding: output pixels more below and to the right; below ``stride`` or ``dilation``.
        groups: C and O are cut into so many groups that do not see each other.
        dilation: pixels from element to element of the kernel, an integer or (vertical,
            horizontal).

    Returns:
        Tensor of shape [N, O, OH, OW] (or [O, OH, OW]) with
        OH = (H - 1) stride - 2 padding + dilation (KH - 1) + output_padding + 1, channels_last if
        ``input`` or ``weight`` is so, contiguous else. Half formats accumulate in float32 and round
        once. float32 on CUDA follows torch's TF32 switch, and on the CPU 3 x 3 kernels of stride 1
        take Winograd's form, as in :func:`cvkernels.conv2d.conv2d`.
        Under autocast ``input``, ``weight`` and ``bias`` are cast to autocast's dtype first, as
        torch does.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range.
        TypeError: an argument of the wrong type.

    Gradient:
        With respect to ``input``, ``weight`` and ``bias``, of any order.

    Determinism:
        Forward and backward are bitwise repeatable on every device, for any number of threads, but
        for the sign of NaN.

    Source:
        Dumoulin and Visin, A guide to convolution arithmetic for deep learning, 2016
        (arXiv 1603.07285); semantics of torch.nn.functional.conv_transpose2d.

    Example:
        >>> import torch
        >>> from cvkernels.conv_transpose2d import conv_transpose2d
        >>> input = torch.tensor([[[[1.0, 2.0]]]])
        >>> weight = torch.tensor([[[[1.0, 10.0, 100.0]]]])
        >>> conv_transpose2d(input, weight, stride=2)
        tensor([[[[  1.,  10., 102.,  20., 200.]]]])
    """
    try:
        steps = _pair("stride", stride)
        pad = _pair("padding", padding)
        more = _pair("output_padding", output_padding)
        spread = _pair("dilation", dilation)
        if input.dim() == 3:
            return _run(input[None], weight, bias, steps, pad, more, spread, groups)[0]
        return _run(input, weight, bias, steps, pad, more, spread, groups)
    except Exception:
        # The dispatcher refuses some arguments before our checks see them; say those in our words.
        _checks.conv_transpose2d_call(
            input, weight, bias, stride, padding, output_padding, groups, dilation
        )
        raise


def _run(input: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    if _conv.needs_no_autograd(input, weight, bias):
        with _conv.below_autograd():
            return _op(input, weight, bias, *geometry, _conv.tf32(input))
    return _op(input, weight, bias, *geometry, _conv.tf32(input))


def _pair(name: str, value: Any) -> tuple[int, int]:
    if type(value) is int:  # the common case, without a check that costs microseconds
        return value, value
    return _checks.pair("conv_transpose2d", name, value)


class ConvTranspose2d(nn.ConvTranspose2d):
    """:class:`torch.nn.ConvTranspose2d` on :func:`conv_transpose2d`; same constructor and state.

    Shape:
        [N, C, H, W] or [C, H, W] -> [N, O, OH, OW] or [O, OH, OW].
    """

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        more = self._output_padding(
            input,
            output_size,  # type: ignore[arg-type]
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.kernel_size,  # type: ignore[arg-type]
            2,
            self.dilation,  # type: ignore[arg-type]
        )
        return conv_transpose2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            more,
            self.groups,
            self.dilation,
        )


# ---- fake kernel


@torch.library.register_fake("cvkernels::conv_transpose2d")
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    tf32: bool,
) -> Tensor:
    size = _checks.conv_transpose2d(
        input, weight, bias, stride, padding, output_padding, dilation, groups
    )
    last = _conv.channels_last(input, weight)
    return _conv.empty(input, (input.shape[0], weight.shape[1] * groups, *size), last)


# ---- autograd: the convolution that is transposed, and its gradient with respect to the weights


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, _, *ctx.geometry, ctx.tf32 = inputs
    ctx.layout = _conv.channels_last(input, weight), _conv.channels_last(weight)
    ctx.kernel = weight.shape[2:]
    ctx.save_for_backward(input, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, weight = ctx.saved_tensors
    stride, padding, output_padding, dilation, groups = ctx.geometry
    grad_input = grad_weight = grad_bias = None
    grad = _conv.in_format(grad, ctx.layout[0])
    if ctx.needs_input_grad[2]:
        grad_bias = _conv.bias_gradient(_op_weight, grad, ctx.layout[0])
    # The pixels of output_padding that no input reaches are beyond the convolution's padded map.
    around = []
    for axis in (0, 1):
        surplus = output_padding[axis] - padding[axis]
        if surplus > 0:
            grad = grad.narrow(2 + axis, 0, grad.shape[2 + axis] - surplus)
        around += [padding[axis], max(-surplus, 0)]
    geometry = stride, around, dilation, groups
    if ctx.needs_input_grad[0]:
        grad_input = _op_conv(grad, weight, None, *geometry, "none", ctx.tf32)
    if ctx.needs_input_grad[1]:
        grad_weight = _op_weight(input, grad, *ctx.kernel, *geometry, *ctx.layout, ctx.tf32)
    return (grad_input, grad_weight, grad_bias, *([None] * 6))


torch.library.register_autograd("cvkernels::conv_transpose2d", _backward, setup_context=_setup)
_conv.register_autocast("conv_transpose2d", _op, 3)


# ---- vmap: as conv2d


@torch.library.register_vmap("cvkernels::conv_transpose2d")
def _(
    info: Any,
    in_dims: _conv.InDims,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *arguments: Any,
) -> tuple[Tensor, int]:
    *geometry, groups, tf32 = arguments
    axis = 0 if in_dims[1] is None and in_dims[2] is None else 1
    input = _conv.folded(info, in_dims[0], input, axis)
    if axis == 1:
        weight = _conv.folded(info, in_dims[1], weight, 0)
        if bias is not None:
            bias = _conv.folded(info, in_dims[2], bias, 0)
        groups = groups * info.batch_size
    return _conv.unfolded(info, _op(input, weight, bias, *geometry, groups, tf32), axis)
