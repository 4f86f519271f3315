"""2-D convolution: implicit im2col on the matrix engine, in one pass with bias and activation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvkernels import _conv, _load
from cvkernels._checks import conv as _checks

__all__ = ["Conv2d", "SeparableConv2d", "conv2d"]

_load.load()
_op: Callable[..., Tensor] = torch.ops.cvkernels.conv2d.default
_op_input: Callable[..., Tensor] = torch.ops.cvkernels.conv2d_backward_input.default
_op_weight: Callable[..., Tensor] = torch.ops.cvkernels.conv2d_backward_weight.default

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def _silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    gate = torch.sigmoid(x)
    return grad * gate * (1 + x * (1 - gate))


# (gradient, what was activated) -> gradient of that; differentiable themselves, as torch's
# silu_backward is not.
_SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "silu": _silu_backward,
    "gelu": torch.ops.aten.gelu_backward,
    "gelu_tanh": lambda grad, x: torch.ops.aten.gelu_backward(grad, x, approximate="tanh"),
}


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
) -> Tensor:
    """Convolves maps with filters; the bias and an activation are part of the same pass.

    The positional arguments and the results are those of :func:`torch.nn.functional.conv2d`. The
    column matrix of im2col never exists: a block of it at a time is gathered into cache.

    Args:
        input: maps, shape [N, C, H, W] or [C, H, W], float16, bfloat16, float32 or float64;
            contiguous and channels_last are read in place, other strides are copied.
        weight: filters, shape [O, C / groups, KH, KW], the dtype of ``input``; contiguous or
            channels_last.
        bias: shape [O], the dtype of ``input``, or None.
        stride: pixels from output to output, an integer or (vertical, horizontal).
        padding: zeros around the input, an integer or (vertical, horizontal); ``"valid"`` for
            none, ``"same"`` for as many as keep the size (stride 1; the odd one goes below and to
            the right).
        dilation: pixels from tap to tap of the kernel, an integer or (vertical, horizontal).
        groups: C and O are cut into so many groups that do not see each other; C for a depthwise
            convolution.
        activation: ``"relu"``, ``"silu"``, ``"gelu"``, ``"gelu_tanh"`` or None; applied before the
            one rounding to the dtype of the result.

    Returns:
        Tensor of shape [N, O, OH, OW] (or [O, OH, OW]), channels_last if ``input`` or ``weight``
        is so, contiguous else. Half formats accumulate in float32 and round once. float32 on CUDA
        is as exact as float32 sums are, unless ``torch.backends.cudnn.conv.fp32_precision`` is
        ``"tf32"`` (as it is by default; ``torch.backends.cudnn.allow_tf32`` sets it as well):
        then factors are rounded to TF32, as cuDNN does. torch.compile reads that switch once.
        On the CPU, 3 x 3 kernels of stride 1 with 32 channels and 32 filters of a group or more
        are computed in Winograd's form where that is faster, but not in float64. Its rounding
        error is 0.7 to 2.1 times that of the definition, about 5e-7 of the result's norm, and
        relative to the largest pixels that an output sees, even through a weight of 0. The gradient
        of such weights takes it from 16 channels and 16 filters on; its error is 0.6 to 1.3 times
        that of the definition, relative to the largest of 4 x 4 neighbours. Infinities and NaN
        come where the definition has them. ``CVKERNELS_WINOGRAD=0`` in the environment leaves the
        form out. bfloat16 with AVX512_BF16 or AMX may take numbers below 2^-126 for 0.
        Under autocast ``input``, ``weight`` and ``bias`` are cast to autocast's dtype first, as
        torch does.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range, or a kernel
            larger than the padded input.
        TypeError: an argument of the wrong type.

    Gradient:
        With respect to ``input``, ``weight`` and ``bias``, of any order. Where one is wanted,
        ``"silu"`` and the ``"gelu"`` forms are applied by torch after the convolution, which keeps
        what their derivative needs.

    Determinism:
        Forward and backward are bitwise repeatable on every device, for any number of threads, but
        for the sign of NaN.

    Source:
        Chellapilla et al., High performance convolutional neural networks for document processing,
        2006 (im2col); Lavin and Gray, Fast algorithms for convolutional neural networks, 2015
        (arXiv 1509.09308); semantics of torch.nn.functional.conv2d.

    Example:
        >>> import torch
        >>> from cvkernels.conv2d import conv2d
        >>> input = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> box = torch.ones(1, 1, 3, 3)
        >>> conv2d(input, box)
        tensor([[[[45., 54.],
                  [81., 90.]]]])
        >>> dilated = conv2d(input, box, padding=2, dilation=2)  # 3 x 3 taps, two pixels apart
        >>> dilated.shape
        torch.Size([1, 1, 4, 4])
        >>> image = torch.ones(1, 6, 5, 5)
        >>> grouped = conv2d(image, torch.ones(4, 3, 1, 1), groups=2, activation="relu")
        >>> grouped[0, :, 0, 0]
        tensor([3., 3., 3., 3.])
    """
    word = "none" if activation is None else activation
    try:
        # The common cases, without checks that cost microseconds.
        y, x = (stride, stride) if type(stride) is int else _checks.pair("conv2d", "stride", stride)
        dy, dx = (
            (dilation, dilation)
            if type(dilation) is int
            else _checks.pair("conv2d", "dilation", dilation)
        )
        pad = (
            (padding, padding, padding, padding)
            if type(padding) is int
            else _checks.conv_padding("conv2d", padding, (y, x), (dy, dx), weight.shape[2:])
        )
        if input.dim() == 3:
            return _run(input[None], weight, bias, (y, x), pad, (dy, dx), groups, word)[0]
        return _run(input, weight, bias, (y, x), pad, (dy, dx), groups, word)
    except Exception:
        # The dispatcher refuses some arguments before our checks see them; say those in our words.
        _checks.conv2d_call(
            "conv2d", input, weight, bias, stride, padding, dilation, groups, activation
        )
        raise


def _run(input: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    *geometry, activation = arguments
    if activation not in ("none", "relu") and torch.is_grad_enabled():
        tensors = (input, weight) if bias is None else (input, weight, bias)
        if activation in _ACTIVATIONS and any(tensor.requires_grad for tensor in tensors):
            plain = _op(input, weight, bias, *geometry, "none", _conv.tf32(input))
            return _ACTIVATIONS[activation](plain)
    if _conv.needs_no_autograd(input, weight, bias):
        with _conv.below_autograd():
            return _op(input, weight, bias, *arguments, _conv.tf32(input))
    return _op(input, weight, bias, *arguments, _conv.tf32(input))


class Conv2d(nn.Conv2d):
    """:class:`torch.nn.Conv2d` on :func:`conv2d`: its constructor and state, plus ``activation``.

    Padding modes other than ``"zeros"`` pad the input first, as torch's module does.

    Args:
        *args: those of :class:`torch.nn.Conv2d`.
        activation: as in :func:`conv2d`.
        **kwargs: those of :class:`torch.nn.Conv2d`.

    Shape:
        [N, C, H, W] or [C, H, W] -> [N, O, OH, OW] or [O, OH, OW].
    """

    def __init__(self, *args: Any, activation: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _checks.activation("conv2d", activation)
        self.activation = activation

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            around = self._reversed_padding_repeated_twice
            input, padding = F.pad(input, around, mode=self.padding_mode), 0
        return conv2d(
            input,
            weight,
            bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            activation=self.activation,
        )

    def extra_repr(self) -> str:
        text = str(super().extra_repr())  # type: ignore[no-untyped-call]
        return text if self.activation is None else f"{text}, activation={self.activation!r}"


class SeparableConv2d(nn.Module):
    """A depthwise convolution followed by one of 1 x 1: a filter for each channel, then their mix.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: of the depthwise part, an integer or (vertical, horizontal).
        stride: of the depthwise part.
        padding: of the depthwise part; an integer, a pair, ``"valid"`` or ``"same"``.
        dilation: of the depthwise part.
        bias: whether both parts have one.
        depthwise_activation: after the depthwise part, as in :func:`conv2d`.
        activation: after the 1 x 1 part, as in :func:`conv2d`.

    Shape:
        [N, C, H, W] -> [N, O, OH, OW].

    Example:
        >>> import torch
        >>> from cvkernels.conv2d import SeparableConv2d
        >>> block = SeparableConv2d(8, 16, 3, padding=1, activation="relu")
        >>> block(torch.zeros(1, 8, 5, 5)).shape
        torch.Size([1, 16, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        *,
        depthwise_activation: str | None = None,
        activation: str | None = None,
    ) -> None:
        super().__init__()
        self.depthwise = Conv2d(
            in_channels,
            in_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            in_channels,
            bias,
            activation=depthwise_activation,
        )
        self.pointwise = Conv2d(in_channels, out_channels, 1, bias=bias, activation=activation)

    def forward(self, input: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(input))  # type: ignore[no-any-return]


# ---- fake kernels


@torch.library.register_fake("cvkernels::conv2d")
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    tf32: bool,
) -> Tensor:
    size = _checks.conv2d(
        "conv2d", input, weight, bias, stride, padding, dilation, groups, activation
    )
    last = _conv.channels_last(input, weight)
    return _conv.empty(input, (input.shape[0], weight.shape[0], *size), last)


@torch.library.register_fake("cvkernels::conv2d_backward_input")
def _(
    grad: Tensor,
    weight: Tensor,
    height: int,
    width: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    channels_last: bool,
    tf32: bool,
) -> Tensor:
    _checks.conv2d_backward_input(grad, weight, height, width, stride, padding, dilation, groups)
    size = (grad.shape[0], weight.shape[1] * groups, height, width)
    return _conv.empty(grad, size, channels_last)


@torch.library.register_fake("cvkernels::conv2d_backward_weight")
def _(
    grad: Tensor,
    input: Tensor,
    kernel_height: int,
    kernel_width: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    channels_last: bool,
    weight_channels_last: bool,
    tf32: bool,
) -> Tensor:
    kernel = (kernel_height, kernel_width)
    _checks.conv2d_backward_weight(grad, input, kernel, stride, padding, dilation, groups)
    size = (grad.shape[1], input.shape[1] // groups, *kernel)
    return _conv.empty(grad, size, weight_channels_last)


# ---- autograd: three operators, each linear in both of its tensors, are each other's derivatives


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, bias, *ctx.geometry, ctx.activation, ctx.tf32 = inputs
    ctx.size, ctx.kernel = input.shape[2:], weight.shape[2:]
    ctx.channels_last = _conv.channels_last(input, weight)
    ctx.weight_channels_last = _conv.channels_last(weight)
    ctx.save_for_backward(input, weight, bias, output if ctx.activation == "relu" else None)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, weight, bias, output = ctx.saved_tensors
    if ctx.activation == "relu":
        grad = torch.ops.aten.threshold_backward(grad, output, 0)
    elif ctx.activation != "none":  # reached by calls of the operator itself and under vmap
        before = _op(input, weight, bias, *ctx.geometry, "none", ctx.tf32)
        grad = _SLOPES[ctx.activation](grad, before)
    grad_input = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_input = _op_input(grad, weight, *ctx.size, *ctx.geometry, ctx.channels_last, ctx.tf32)
    if ctx.needs_input_grad[1]:
        how = ctx.channels_last, ctx.weight_channels_last, ctx.tf32
        grad_weight = _op_weight(grad, input, *ctx.kernel, *ctx.geometry, *how)
    if ctx.needs_input_grad[2]:
        grad_bias = _conv.bias_gradient(_op_weight, grad, ctx.channels_last)
    return (grad_input, grad_weight, grad_bias, *([None] * 6))


def _setup_input(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, weight, _, _, *ctx.geometry, ctx.channels_last, ctx.tf32 = inputs
    ctx.kernel, ctx.weight_channels_last = weight.shape[2:], _conv.channels_last(weight)
    ctx.save_for_backward(grad, weight)


def _backward_input(ctx: Any, more: Tensor) -> tuple[Tensor | None, ...]:
    grad, weight = ctx.saved_tensors
    grad_grad = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_grad = _op(more, weight, None, *ctx.geometry, "none", ctx.tf32)
    if ctx.needs_input_grad[1]:
        how = ctx.channels_last, ctx.weight_channels_last, ctx.tf32
        grad_weight = _op_weight(grad, more, *ctx.kernel, *ctx.geometry, *how)
    return (grad_grad, grad_weight, *([None] * 8))


def _setup_weight(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, input, _, _, *ctx.geometry, ctx.channels_last, _, ctx.tf32 = inputs
    ctx.size = input.shape[2:]
    ctx.save_for_backward(grad, input)


def _backward_weight(ctx: Any, more: Tensor) -> tuple[Tensor | None, ...]:
    grad, input = ctx.saved_tensors
    grad_grad = grad_input = None
    if ctx.needs_input_grad[0]:
        grad_grad = _op(input, more, None, *ctx.geometry, "none", ctx.tf32)
    if ctx.needs_input_grad[1]:
        grad_input = _op_input(grad, more, *ctx.size, *ctx.geometry, ctx.channels_last, ctx.tf32)
    return (grad_grad, grad_input, *([None] * 9))


torch.library.register_autograd("cvkernels::conv2d", _backward, setup_context=_setup)
torch.library.register_autograd(
    "cvkernels::conv2d_backward_input", _backward_input, setup_context=_setup_input
)
torch.library.register_autograd(
    "cvkernels::conv2d_backward_weight", _backward_weight, setup_context=_setup_weight
)
_conv.register_autocast("conv2d", _op, 3)


# ---- vmap: calls that share the weights are more images, others are more groups


@torch.library.register_vmap("cvkernels::conv2d")
def _(
    info: Any,
    in_dims: _conv.InDims,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    *how: Any,
) -> tuple[Tensor, int]:
    axis = 0 if in_dims[1] is None and in_dims[2] is None else 1
    input = _conv.folded(info, in_dims[0], input, axis)
    if axis == 1:
        weight = _conv.folded(info, in_dims[1], weight, 0)
        if bias is not None:
            bias = _conv.folded(info, in_dims[2], bias, 0)
        groups = groups * info.batch_size
    output = _op(input, weight, bias, stride, padding, dilation, groups, *how)
    return _conv.unfolded(info, output, axis)


@torch.library.register_vmap("cvkernels::conv2d_backward_input")
def _(
    info: Any, in_dims: _conv.InDims, grad: Tensor, weight: Tensor, *arguments: Any
) -> tuple[Tensor, int]:
    *geometry, groups, channels_last, tf32 = arguments
    axis = 0 if in_dims[1] is None else 1
    grad = _conv.folded(info, in_dims[0], grad, axis)
    if axis == 1:
        weight = _conv.folded(info, in_dims[1], weight, 0)
        groups = groups * info.batch_size
    output = _op_input(grad, weight, *geometry, groups, channels_last, tf32)
    return _conv.unfolded(info, output, axis)


@torch.library.register_vmap("cvkernels::conv2d_backward_weight")
def _(
    info: Any, in_dims: _conv.InDims, grad: Tensor, input: Tensor, *arguments: Any
) -> tuple[Tensor, int]:
    *geometry, groups, channels_last, weight_channels_last, tf32 = arguments
    grad = _conv.folded(info, in_dims[0], grad, 1)
    input = _conv.folded(info, in_dims[1], input, 1)
    groups = groups * info.batch_size
    how = channels_last, weight_channels_last, tf32
    return _conv.unfolded(info, _op_weight(grad, input, *geometry, groups, *how), 0)
