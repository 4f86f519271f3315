"""im2col and col2im: slices of the padded map, and slices added back."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cvkernels._checks import conv as _checks
from cvkernels.reference._conv import columns_of, maps_of
from cvkernels.reference._precision import compute_dtype
from cvkernels.reference.conv2d import conv2d as _conv2d


def im2col(
    input: Tensor,
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    stride: int | Sequence[int] = 1,
) -> Tensor:
    """Copies what a kernel reads at each of its positions into a column.

    Args:
        input: [N, C, H, W] or [C, H, W] maps, any float dtype.
        kernel_size: (height, width), or one integer for both.
        dilation: pixels from kernel element to kernel element.
        padding: zeros around the input.
        stride: pixels from position to position.

    Returns:
        [N, C * KH * KW, L] or [C * KH * KW, L] in the dtype of ``input``.

    Raises:
        ValueError: wrong shape, dtype or value.
        TypeError: an argument of a wrong type.

    Gradient:
        To ``input``, of any order.

    Determinism:
        Bitwise.

    Source:
        Chellapilla et al., 2006; torch.nn.functional.unfold for the order of rows.
    """
    maps, (kernel, spread, pad, step) = _checks.im2col_call(
        input, kernel_size, dilation, padding, stride
    )
    size = _checks.im2col(maps, kernel, spread, pad, step)
    columns = columns_of(maps, kernel, spread, (pad[0], pad[0], pad[1], pad[1]), step, size)
    columns = columns.flatten(1, 2)
    return columns if maps is input else columns[0]


def col2im(
    columns: Tensor,
    output_size: int | Sequence[int],
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    stride: int | Sequence[int] = 1,
) -> Tensor:
    """Adds columns back to the pixels that :func:`im2col` takes them from.

    Evaluated in float64 (see :func:`cvkernels.reference.precision`) and rounded once to the dtype
    of ``columns``.

    Args:
        columns: [N, C * KH * KW, L] or [C * KH * KW, L], any float dtype.
        output_size: (height, width) of the result, or one integer for both.
        kernel_size: (height, width), or one integer for both.
        dilation: pixels from kernel element to kernel element.
        padding: zeros that were around the input.
        stride: pixels from position to position.

    Returns:
        [N, C, height, width] or [C, height, width] in the dtype of ``columns``.

    Raises:
        ValueError: wrong shape, dtype or value.
        TypeError: an argument of a wrong type.

    Gradient:
        To ``columns``, of any order.

    Determinism:
        Bitwise on CPU.

    Source:
        Chellapilla et al., 2006; torch.nn.functional.fold for the order of rows.
    """
    batch, (height, width, kernel, spread, pad, step) = _checks.col2im_call(
        columns, output_size, kernel_size, dilation, padding, stride
    )
    around = (pad[0], pad[0], pad[1], pad[1])
    size = _checks.conv_geometry("col2im", (height, width), kernel, step, around, spread)
    taps = batch.to(compute_dtype()).unflatten(1, (-1, kernel[0] * kernel[1]))
    out = maps_of(taps, (height, width), kernel, spread, around, step, size)
    out = out.to(columns.dtype).contiguous()
    return out if batch is columns else out[0]


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
    """:func:`cvkernels.reference.conv2d`, whose definition is the same product; contiguous.

    Args:
        input: as in :func:`cvkernels.reference.conv2d`.
        weight: as in :func:`cvkernels.reference.conv2d`.
        bias: as in :func:`cvkernels.reference.conv2d`.
        stride: as in :func:`cvkernels.reference.conv2d`.
        padding: as in :func:`cvkernels.reference.conv2d`.
        dilation: as in :func:`cvkernels.reference.conv2d`.
        groups: as in :func:`cvkernels.reference.conv2d`.

    Returns:
        [N, O, OH, OW] or [O, OH, OW] in the dtype of ``input``.

    Raises:
        ValueError: wrong shape, dtype, device or value.
        TypeError: an argument of a wrong type.

    Gradient:
        To ``input``, ``weight`` and ``bias``, of any order.

    Determinism:
        Bitwise on CPU.

    Source:
        Chellapilla et al., 2006.
    """
    _checks.conv2d_call(
        "conv2d_im2col", input, weight, bias, stride, padding, dilation, groups, None
    )
    out = _conv2d(input, weight, bias, stride, padding, dilation, groups)
    return out.contiguous()
