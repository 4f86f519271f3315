"""2-D convolution: the definition, as a product of weights and columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from cvkernels._checks import conv as _checks
from cvkernels.reference._conv import columns_of, in_format_of
from cvkernels.reference._precision import compute_dtype

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
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
    """Sums, over channels and kernel elements, weight times the input pixel that it meets.

    Evaluated in float64 (see :func:`cvkernels.reference.precision`) and rounded once to the dtype
    of ``input``.

    Args:
        input: [N, C, H, W] or [C, H, W] maps, any float dtype.
        weight: [O, C / groups, KH, KW] filters.
        bias: [O] or None.
        stride: pixels from output to output.
        padding: zeros around the input; "valid" for none, "same" to keep the size.
        dilation: pixels from kernel element to kernel element.
        groups: C and O are cut into so many groups that do not see each other.
        activation: "relu", "silu", "gelu", "gelu_tanh" or None, applied to the sum.

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
        Chellapilla et al., 2006; torch.nn.functional.conv2d for the rules on sizes.
    """
    maps, (step, around, spread, word), size = _checks.conv2d_call(
        "conv2d", input, weight, bias, stride, padding, dilation, groups, activation
    )
    dtype = compute_dtype()
    kernel = weight.shape[2], weight.shape[3]
    columns = columns_of(maps.to(dtype), kernel, spread, around, step, size)
    columns = columns.unflatten(1, (groups, weight.shape[1])).flatten(2, 3)
    filters = weight.to(dtype).unflatten(0, (groups, weight.shape[0] // groups)).flatten(2)
    out = (filters @ columns).flatten(1, 2).unflatten(2, size)
    if bias is not None:
        out = out + bias.to(dtype)[:, None, None]
    out = in_format_of(_ACTIVATIONS[word](out).to(input.dtype), maps, weight)
    return out if maps is input else out[0]
