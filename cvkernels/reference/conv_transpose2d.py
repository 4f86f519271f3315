"""Transposed 2-D convolution: the definition, by columns that are added into the output."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cvkernels._checks import conv as _checks
from cvkernels.reference._conv import in_format_of, maps_of
from cvkernels.reference._precision import compute_dtype


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
    """Adds to the output, for each input pixel, the kernel weighted by it.

    Evaluated in float64 (see :func:`cvkernels.reference.precision`) and rounded once to the dtype
    of ``input``.

    Args:
        input: [N, C, H, W] or [C, H, W] maps, any float dtype.
        weight: [C, O / groups, KH, KW] filters.
        bias: [O] or None.
        stride: output pixels from input to input.
        padding: output pixels cut off at each side.
        output_padding: output pixels more below and to the right.
        groups: C and O are cut into so many groups that do not see each other.
        dilation: pixels from kernel element to kernel element.

    Returns:
        [N, O, OH, OW] or [O, OH, OW] in the dtype of ``input``; channels_last if input or weight
        is.

    Raises:
        ValueError: wrong shape, dtype, device or value.
        TypeError: an argument of a wrong type.

    Gradient:
        To ``input``, ``weight`` and ``bias``, of any order.

    Determinism:
        Bitwise on CPU.

    Source:
        Dumoulin and Visin, 2016; torch.nn.functional.conv_transpose2d for the rules on sizes.
    """
    maps, (step, pad, _, spread), size = _checks.conv_transpose2d_call(
        input, weight, bias, stride, padding, output_padding, groups, dilation
    )
    dtype = compute_dtype()
    channels = weight.shape[0] // groups
    rows = weight.to(dtype).unflatten(0, (groups, channels)).flatten(2)  # [g, C / g, O / g * T]
    pixels = maps.to(dtype).unflatten(1, (groups, channels)).flatten(3)  # [N, g, C / g, L]
    columns = (rows.mT @ pixels).flatten(1, 2)
    outputs, taps = weight.shape[1] * groups, weight.shape[2] * weight.shape[3]
    columns = columns.unflatten(1, (outputs, taps))
    around = (pad[0], pad[0], pad[1], pad[1])
    extents = maps.shape[2], maps.shape[3]
    kernel = weight.shape[2], weight.shape[3]
    out = maps_of(columns, size, kernel, spread, around, step, extents)
    if bias is not None:
        out = out + bias.to(dtype)[:, None, None]
    out = in_format_of(out.to(input.dtype), maps, weight)
    return out if maps is input else out[0]
