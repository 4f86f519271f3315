"""im2col and col2im: the explicit column matrix of a convolution, and convolution by it.

A convolution is a gather and a product. These are the two steps on their own, for methods that want
the columns and as the simple path against which :func:`cvkernels.conv2d.conv2d`, which never forms
them, is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cvkernels import _load
from cvkernels._checks import conv as _checks

__all__ = ["col2im", "conv2d_im2col", "fold", "im2col", "unfold"]

_load.load()
_op: Callable[..., Tensor] = torch.ops.cvkernels.im2col.default
_op_backward: Callable[..., Tensor] = torch.ops.cvkernels.im2col_backward.default


def im2col(
    input: Tensor,
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    stride: int | Sequence[int] = 1,
) -> Tensor:
    """Copies what a kernel reads at each of its positions into a column of a matrix.

    Args:
        input: maps, shape [N, C, H, W] or [C, H, W], float16, bfloat16, float32 or float64;
            contiguous and channels_last are read in place.
        kernel_size: (height, width) of the kernel, an integer for both.
        dilation: pixels from element to element of the kernel, an integer or a pair.
        padding: zeros around the input, an integer or a pair.
        stride: pixels from position to position, an integer or a pair.

    Returns:
        Tensor of shape [N, C * KH * KW, L] (or [C * KH * KW, L]) for L positions, row by row; the
        dtype of ``input``.

    Raises:
        ValueError: an argument of the wrong shape or dtype or out of its range, or a kernel larger
            than the padded input.
        TypeError: an argument of the wrong type.

    Gradient:
        With respect to ``input``: :func:`col2im`. Of any order.

    Determinism:
        Bitwise repeatable on every device, for any number of threads.

    Source:
        Chellapilla et al., 2006; semantics of torch.nn.functional.unfold.

    Example:
        >>> import torch
        >>> from cvkernels.im2col import im2col
        >>> im2col(torch.arange(9.0).reshape(1, 1, 3, 3), 2)
        tensor([[[0., 1., 3., 4.],
                 [1., 2., 4., 5.],
                 [3., 4., 6., 7.],
                 [4., 5., 7., 8.]]])
    """
    maps, arguments = _checks.im2col_call(input, kernel_size, dilation, padding, stride)
    columns = _op(maps, *arguments)
    return columns if maps is input else columns[0]


def col2im(
    columns: Tensor,
    output_size: int | Sequence[int],
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    stride: int | Sequence[int] = 1,
) -> Tensor:
    """Adds columns back to where :func:`im2col` took them from; its adjoint, not its inverse.

    Args:
        columns: shape [N, C * KH * KW, L] or [C * KH * KW, L], float16, bfloat16, float32 or
            float64.
        output_size: (height, width) of the result, an integer for both.
        kernel_size: (height, width) of the kernel, an integer for both.
        dilation: pixels from element to element of the kernel, an integer or a pair.
        padding: zeros that were around the input, an integer or a pair.
        stride: pixels from position to position, an integer or a pair.

    Returns:
        Tensor of shape [N, C, height, width] (or [C, height, width]), contiguous, the dtype of
        ``columns``. Half formats add in float32 and round once.

    Raises:
        ValueError: an argument of the wrong shape or dtype or out of its range.
        TypeError: an argument of the wrong type.

    Gradient:
        With respect to ``columns``: :func:`im2col`. Of any order.

    Determinism:
        Bitwise repeatable on every device, for any number of threads.

    Source:
        Chellapilla et al., 2006; semantics of torch.nn.functional.fold.

    Example:
        >>> import torch
        >>> from cvkernels.im2col import col2im, im2col
        >>> columns = im2col(torch.ones(1, 1, 3, 3), 2)
        >>> col2im(columns, 3, 2)  # how many positions read each pixel
        tensor([[[[1., 2., 1.],
                  [2., 4., 2.],
                  [1., 2., 1.]]]])
    """
    batch, arguments = _checks.col2im_call(
        columns, output_size, kernel_size, dilation, padding, stride
    )
    maps = _op_backward(batch, *arguments)
    return maps if batch is columns else maps[0]


def unfold(
    input: Tensor,
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    stride: int | Sequence[int] = 1,
) -> Tensor:
    """:func:`im2col` under the name that torch gives it.

    Args:
        input: as in :func:`im2col`.
        kernel_size: as in :func:`im2col`.
        dilation: as in :func:`im2col`.
        padding: as in :func:`im2col`.
        stride: as in :func:`im2col`.

    Returns:
        As :func:`im2col`.

    Raises:
        ValueError: as :func:`im2col`, in its name.
        TypeError: as :func:`im2col`, in its name.

    Gradient:
        As :func:`im2col`.

    Determinism:
        As :func:`im2col`.

    Source:
        torch.nn.functional.unfold.

    Example:
        >>> import torch
        >>> from cvkernels.im2col import unfold
        >>> unfold(torch.zeros(2, 3, 5, 5), 3).shape
        torch.Size([2, 27, 9])
    """
    return im2col(input, kernel_size, dilation, padding, stride)


def fold(
    input: Tensor,
    output_size: int | Sequence[int],
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    stride: int | Sequence[int] = 1,
) -> Tensor:
    """:func:`col2im` under the name that torch gives it.

    Args:
        input: the columns, as in :func:`col2im`.
        output_size: as in :func:`col2im`.
        kernel_size: as in :func:`col2im`.
        dilation: as in :func:`col2im`.
        padding: as in :func:`col2im`.
        stride: as in :func:`col2im`.

    Returns:
        As :func:`col2im`.

    Raises:
        ValueError: as :func:`col2im`, in its name.
        TypeError: as :func:`col2im`, in its name.

    Gradient:
        As :func:`col2im`.

    Determinism:
        As :func:`col2im`.

    Source:
        torch.nn.functional.fold.

    Example:
        >>> import torch
        >>> from cvkernels.im2col import fold
        >>> fold(torch.zeros(2, 27, 9), 5, 3).shape
        torch.Size([2, 3, 5, 5])
    """
    return col2im(input, output_size, kernel_size, dilation, padding, stride)


def conv2d_im2col(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Convolution in three explicit steps: im2col, a matrix product, a reshape.

    The textbook form, for reading and as the simple path in benchmarks. It needs KH * KW times the
    memory of the input; :func:`cvkernels.conv2d.conv2d` computes the same without.

    Args:
        input: as in :func:`cvkernels.conv2d.conv2d`.
        weight: as in :func:`cvkernels.conv2d.conv2d`.
        bias: as in :func:`cvkernels.conv2d.conv2d`.
        stride: as in :func:`cvkernels.conv2d.conv2d`.
        padding: as in :func:`cvkernels.conv2d.conv2d`.
        dilation: as in :func:`cvkernels.conv2d.conv2d`.
        groups: as in :func:`cvkernels.conv2d.conv2d`.

    Returns:
        Tensor of shape [N, O, OH, OW] (or [O, OH, OW]), contiguous.

    Raises:
        ValueError: as :func:`cvkernels.conv2d.conv2d`, in its name.
        TypeError: as :func:`cvkernels.conv2d.conv2d`, in its name.

    Gradient:
        With respect to ``input``, ``weight`` and ``bias``, of any order.

    Determinism:
        That of torch's matrix product on the device.

    Source:
        Chellapilla et al., High performance convolutional neural networks for document processing,
        2006.

    Example:
        >>> import torch
        >>> from cvkernels.im2col import conv2d_im2col
        >>> input = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> conv2d_im2col(input, torch.ones(1, 1, 3, 3))
        tensor([[[[45., 54.],
                  [81., 90.]]]])
    """
    maps, (step, pad, spread, _), size = _checks.conv2d_call(
        "conv2d_im2col", input, weight, bias, stride, padding, dilation, groups, None
    )
    top, bottom, left, right = pad
    if (top, left) != (bottom, right):  # "same" with an even kernel
        maps = F.pad(maps, (0, right - left, 0, bottom - top))
    columns = im2col(maps, tuple(weight.shape[2:]), spread, (top, left), step)
    columns = columns.unflatten(1, (groups, -1))  # [N, groups, C / groups * KH * KW, L]
    rows = weight.reshape(groups, weight.shape[0] // groups, -1)
    output = torch.matmul(rows, columns).reshape(maps.shape[0], weight.shape[0], *size)
    if bias is not None:
        output = output + bias[:, None, None]
    return output[0] if input.dim() == 3 else output


# ---- fake kernels


@torch.library.register_fake("cvkernels::im2col")
def _(
    input: Tensor,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Tensor:
    height, width = _checks.im2col(input, kernel_size, dilation, padding, stride)
    rows = input.shape[1] * kernel_size[0] * kernel_size[1]
    return input.new_empty((input.shape[0], rows, height * width))


@torch.library.register_fake("cvkernels::im2col_backward")
def _(
    columns: Tensor,
    height: int,
    width: int,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Tensor:
    _checks.col2im(columns, height, width, kernel_size, dilation, padding, stride)
    channels = columns.shape[1] // (kernel_size[0] * kernel_size[1])
    return columns.new_empty((columns.shape[0], channels, height, width))


# ---- autograd: each is the other's derivative


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, *ctx.arguments = inputs
    ctx.size = input.shape[2:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _op_backward(grad, *ctx.size, *ctx.arguments), None, None, None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, _, *ctx.arguments = inputs


def _double_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _op(grad, *ctx.arguments), None, None, None, None, None, None


torch.library.register_autograd("cvkernels::im2col", _backward, setup_context=_setup)
torch.library.register_autograd(
    "cvkernels::im2col_backward", _double_backward, setup_context=_setup_backward
)


# ---- vmap: calls are more images


def _vmap(op: Callable[..., Tensor]) -> Callable[..., Any]:
    def rule(info: Any, in_dims: Any, tensor: Tensor, *arguments: Any) -> tuple[Tensor, int]:
        result = op(tensor.movedim(in_dims[0], 0).flatten(0, 1), *arguments)
        return result.unflatten(0, (info.batch_size, -1)), 0

    return rule


torch.library.register_vmap("cvkernels::im2col", _vmap(_op))
torch.library.register_vmap("cvkernels::im2col_backward", _vmap(_op_backward))
