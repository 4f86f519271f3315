"""Checks of the convolutions, in the order of csrc/bindings/torch/conv_family.h."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cvkernels._checks import _base
from cvkernels._checks._base import (
    INT32_MAX,
    choice,
    fail,
    float_dtype,
    integer,
    same_device,
    same_dtype,
    shape,
    sizes,
    sizes_differ,
    tensor,
)

ACTIVATIONS = ("relu", "silu", "gelu", "gelu_tanh")

Pair = tuple[int, int]


def conv_map(op: str, name: str, value: Tensor) -> None:
    tensor(op, name, value)
    if value.dim() != 4:
        fail(op, f"{name} of shape (N, C, H, W)", shape(value))
    float_dtype(op, name, value)


def _like(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    same_dtype(op, name, value, other_name, other)
    same_device(op, name, value, other_name, other)


def _groups(op: str, groups: int) -> None:
    integer(op, "groups", groups)
    if groups < 1 or groups > INT32_MAX:
        fail(op, "groups from 1 to 2^31 - 1", groups)


def conv_weight(
    op: str, weight: Tensor, map_name: str, map: Tensor, groups: int, axis: int
) -> None:
    """Weights [O, C / groups, KH, KW], whose axis 0 or 1 meets the channels of ``map``."""
    tensor(op, "weight", weight)
    if weight.dim() != 4:
        fail(op, "weight of four dimensions", shape(weight))
    _like(op, "weight", weight, map_name, map)
    _groups(op, groups)
    if weight.shape[0] % groups != 0:
        fail(op, f"weight of a multiple of {groups} rows (groups)", shape(weight))
    channels = weight.shape[0] if axis == 0 else weight.shape[1] * groups
    if sizes_differ((channels,), (map.shape[1],)):
        detail = f"{channels} channels (weight {shape(weight)}, groups {groups})"
        fail(op, f"{map_name} of {detail}", map.shape[1])
    if weight.shape[2] < 1 or weight.shape[3] < 1:
        fail(op, "weight of a kernel of at least 1 x 1", shape(weight))


def conv_bias(op: str, bias: Tensor | None, channels: int, input: Tensor) -> None:
    if bias is None:
        return
    tensor(op, "bias", bias)
    if bias.dim() != 1 or sizes_differ(bias.shape, (channels,)):
        fail(op, f"bias of shape ({channels},)", shape(bias))
    _like(op, "bias", bias, "input", input)


def ints(op: str, name: str, values: Sequence[Any], count: int, least: int) -> None:
    for value in values:
        integer(op, name, value)
    if len(values) != count or any(value < least or value > INT32_MAX for value in values):
        got = sizes(values) if values else "()"
        fail(op, f"{name} of {count} values from {least} to 2^31 - 1", got)


def conv_geometry(
    op: str,
    extents: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Pair:
    """Checks the geometry and returns the output's sizes; four values of ``padding``."""
    ints(op, "stride", stride, 2, 1)
    ints(op, "padding", padding, 4, 0)
    ints(op, "dilation", dilation, 2, 1)
    padded = [extents[i] + padding[2 * i] + padding[2 * i + 1] for i in (0, 1)]
    if padded[0] > INT32_MAX or padded[1] > INT32_MAX:
        fail(op, "padded sizes below 2^31", sizes(padded))
    if kernel[0] * kernel[1] > INT32_MAX:
        fail(op, "a kernel of fewer than 2^31 elements", sizes(kernel))
    span = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    if span[0] > padded[0] or span[1] > padded[1]:
        expected = f"a kernel within the padded input of {sizes(padded)}"
        fail(op, expected, f"one that spans {sizes(span)}")
    height, width = ((padded[i] - span[i]) // stride[i] + 1 for i in (0, 1))
    return height, width


def activation(op: str, value: object) -> str:
    """Returns the dispatcher's word for ``activation``."""
    if value is None or value == "none":
        return "none"
    if not isinstance(value, str) or value not in ACTIVATIONS:
        words = "None, 'relu', 'silu', 'gelu' or 'gelu_tanh'"
        fail(op, f"activation to be {words}", repr(value))
    return value


def pair(op: str, name: str, value: Any) -> Pair:
    """Returns ``value`` as (height, width): an integer, or a sequence of one, stands for both."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    return _base.pair(op, name, value)


def conv_padding(
    op: str, padding: Any, stride: Pair, dilation: Pair, kernel: Sequence[int]
) -> tuple[int, int, int, int]:
    """Returns ``padding`` as top, bottom, left, right."""
    if isinstance(padding, str):
        choice(op, "padding", padding, "valid", "same")
        if padding == "valid":
            return 0, 0, 0, 0
        if stride != (1, 1):
            fail(op, "stride 1 with padding 'same'", sizes(stride))
        if len(kernel) != 2:  # refused below
            return 0, 0, 0, 0
        total = [dilation[i] * (kernel[i] - 1) for i in (0, 1)]
        top, left = total[0] // 2, total[1] // 2
        return top, total[0] - top, left, total[1] - left
    y, x = pair(op, "padding", padding)
    return y, y, x, x


# ---- operators


def conv2d(
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation_: str,
) -> Pair:
    """Checks the arguments of the dispatcher operator and returns the output's sizes."""
    conv_map(op, "input", input)
    conv_weight(op, weight, "input", input, groups, 1)
    conv_bias(op, bias, weight.shape[0], input)
    size = conv_geometry(op, input.shape[2:], weight.shape[2:], stride, padding, dilation)
    activation(op, activation_)
    return size


def conv2d_backward_input(
    grad: Tensor,
    weight: Tensor,
    height: int,
    width: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> None:
    """Checks the arguments of the dispatcher operator."""
    op = "conv2d_backward_input"
    conv_map(op, "grad", grad)
    conv_weight(op, weight, "grad", grad, groups, 0)
    size = conv_geometry(op, (height, width), weight.shape[2:], stride, padding, dilation)
    _grad(op, grad, (grad.shape[0], weight.shape[0], *size))


def conv2d_backward_weight(
    grad: Tensor,
    input: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> None:
    """Checks the arguments of the dispatcher operator."""
    op = "conv2d_backward_weight"
    conv_map(op, "grad", grad)
    conv_map(op, "input", input)
    _like(op, "input", input, "grad", grad)
    if groups < 1 or input.shape[1] % groups != 0 or grad.shape[1] % groups != 0:
        counts = f"({input.shape[1]}, {grad.shape[1]})"
        fail(op, f"groups that divide the channels {counts}", groups)
    ints(op, "kernel_size", kernel, 2, 1)
    size = conv_geometry(op, input.shape[2:], kernel, stride, padding, dilation)
    _grad(op, grad, (input.shape[0], grad.shape[1], *size))


def _grad(op: str, grad: Tensor, wanted: Sequence[int]) -> None:
    if sizes_differ(grad.shape, wanted):
        fail(op, f"grad of shape {sizes(wanted)}", shape(grad))


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Pair:
    """Checks the arguments of the dispatcher operator and returns the output's sizes."""
    op = "conv_transpose2d"
    conv_map(op, "input", input)
    conv_weight(op, weight, "input", input, groups, 0)
    conv_bias(op, bias, weight.shape[1] * groups, input)
    ints(op, "stride", stride, 2, 1)
    ints(op, "padding", padding, 2, 0)
    ints(op, "output_padding", output_padding, 2, 0)
    ints(op, "dilation", dilation, 2, 1)
    for more, step, spread in zip(output_padding, stride, dilation, strict=True):
        if more >= step and more >= spread:
            fail(op, "output_padding below stride or dilation", sizes(output_padding))
    height, width = (
        (input.shape[2 + i] - 1) * stride[i]
        - 2 * padding[i]
        + dilation[i] * (weight.shape[2 + i] - 1)
        + output_padding[i]
        + 1
        for i in (0, 1)
    )
    if input.shape[2] < 1 or input.shape[3] < 1 or height < 1 or width < 1:
        expected = "an output of at least 1 x 1"
        fail(op, expected, f"({height}, {width}) for an input of {shape(input)}")
    around = (padding[0], padding[0], padding[1], padding[1])
    conv_geometry(op, (height, width), weight.shape[2:], stride, around, dilation)
    return height, width


def im2col(
    input: Tensor,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Pair:
    """Checks the arguments of the dispatcher operator and returns the positions along each axis."""
    conv_map("im2col", "input", input)
    return _column_geometry("im2col", input.shape[2:], kernel_size, dilation, padding, stride)


def col2im(
    columns: Tensor,
    height: int,
    width: int,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> None:
    """Checks the arguments of the dispatcher operator im2col_backward."""
    op = "col2im"
    tensor(op, "columns", columns)
    if columns.dim() != 3:
        fail(op, "columns of shape (N, C * KH * KW, L)", shape(columns))
    float_dtype(op, "columns", columns)
    ints(op, "output_size", (height, width), 2, 1)
    positions = _column_geometry(op, (height, width), kernel_size, dilation, padding, stride)
    rows, count = kernel_size[0] * kernel_size[1], positions[0] * positions[1]
    if columns.shape[1] % rows != 0 or sizes_differ(columns.shape[2:], (count,)):
        fail(op, f"columns of a multiple of {rows} rows and {count} positions", shape(columns))


def _column_geometry(
    op: str,
    extents: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Pair:
    ints(op, "kernel_size", kernel_size, 2, 1)
    ints(op, "padding", padding, 2, 0)
    around = (padding[0], padding[0], padding[1], padding[1])
    return conv_geometry(op, extents, kernel_size, stride, around, dilation)


# ---- public functions: every way of giving an argument, and unbatched maps


def _batched(op: str, value: Tensor, name: str = "input", dims: int = 4) -> Tensor:
    tensor(op, name, value)
    return value[None] if value.dim() == dims - 1 else value


def conv2d_call(
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    activation_: Any,
) -> tuple[Tensor, tuple[Pair, tuple[int, int, int, int], Pair, str], Pair]:
    """Checks the arguments of the public function.

    Returns:
        The input as [N, C, H, W]; stride, padding, dilation and activation as the dispatcher
        operator takes them; the output's sizes.
    """
    word = activation(op, activation_)
    steps, spread = pair(op, "stride", stride), pair(op, "dilation", dilation)
    maps = _batched(op, input)
    tensor(op, "weight", weight)
    around = conv_padding(op, padding, steps, spread, weight.shape[2:])
    size = conv2d(op, maps, weight, bias, steps, around, spread, groups, word)
    return maps, (steps, around, spread, word), size


def conv_transpose2d_call(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> tuple[Tensor, tuple[Pair, Pair, Pair, Pair], Pair]:
    """Checks the arguments of the public function.

    Returns:
        The input as [N, C, H, W]; stride, padding, output_padding and dilation as pairs; the
        output's sizes.
    """
    op = "conv_transpose2d"
    steps, around = pair(op, "stride", stride), pair(op, "padding", padding)
    more, spread = pair(op, "output_padding", output_padding), pair(op, "dilation", dilation)
    maps = _batched(op, input)
    size = conv_transpose2d(maps, weight, bias, steps, around, more, spread, groups)
    return maps, (steps, around, more, spread), size


def _columns(
    op: str, kernel_size: Any, dilation: Any, padding: Any, stride: Any
) -> tuple[Any, ...]:
    return (
        pair(op, "kernel_size", kernel_size),
        pair(op, "dilation", dilation),
        pair(op, "padding", padding),
        pair(op, "stride", stride),
    )


def im2col_call(
    input: Tensor, kernel_size: Any, dilation: Any, padding: Any, stride: Any
) -> tuple[Tensor, tuple[Any, ...]]:
    """Checks the arguments of the public function; returns those of the dispatcher operator."""
    maps = _batched("im2col", input)
    arguments = _columns("im2col", kernel_size, dilation, padding, stride)
    im2col(maps, *arguments)
    return maps, arguments


def col2im_call(
    columns: Tensor, output_size: Any, kernel_size: Any, dilation: Any, padding: Any, stride: Any
) -> tuple[Tensor, tuple[Any, ...]]:
    """Checks the arguments of the public function; returns those of the dispatcher operator."""
    batch = _batched("col2im", columns, "columns", 3)
    arguments = (
        *pair("col2im", "output_size", output_size),
        *_columns("col2im", kernel_size, dilation, padding, stride),
    )
    col2im(batch, *arguments)
    return batch, arguments
