"""What the references of the convolutions share: the column matrix, both ways, in plain slices."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from cvkernels.reference import _roi

Pair = tuple[int, int]
Around = tuple[int, int, int, int]  # top, bottom, left, right


def _taps(kernel: Pair, dilation: Pair, stride: Pair, size: Pair) -> Iterator[tuple[slice, slice]]:
    """The padded pixels that each kernel element reads, element by element."""
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            y, x = i * dilation[0], j * dilation[1]
            yield (
                slice(y, y + (size[0] - 1) * stride[0] + 1, stride[0]),
                slice(x, x + (size[1] - 1) * stride[1] + 1, stride[1]),
            )


def columns_of(
    maps: Tensor, kernel: Pair, dilation: Pair, around: Around, stride: Pair, size: Pair
) -> Tensor:
    """[N, C, H, W] -> [N, C, KH * KW, OH * OW] for OH, OW = ``size``."""
    top, bottom, left, right = around
    padded = F.pad(maps, (left, right, top, bottom))
    taps = [padded[:, :, y, x].flatten(2) for y, x in _taps(kernel, dilation, stride, size)]
    return torch.stack(taps, 2)


def maps_of(
    columns: Tensor,
    extents: Pair,
    kernel: Pair,
    dilation: Pair,
    around: Around,
    stride: Pair,
    size: Pair,
) -> Tensor:
    """[N, C, KH * KW, OH * OW] -> [N, C, H, W] for H, W = ``extents``: the adjoint."""
    top, bottom, left, right = around
    height, width = extents
    n, c = columns.shape[:2]
    # A little more room than needed, for positions that output_padding has cut off.
    more = [max((size[i] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1, 0) for i in (0, 1)]
    padded = columns.new_zeros(
        (n, c, max(top + height + bottom, more[0]), max(left + width + right, more[1]))
    )
    for t, (y, x) in enumerate(_taps(kernel, dilation, stride, size)):
        padded[:, :, y, x] += columns[:, :, t].unflatten(2, size)
    return padded[:, :, top : top + height, left : left + width]


def in_format_of(out: Tensor, input: Tensor, weight: Tensor) -> Tensor:
    """channels_last if input or weight is so (and not contiguous as well)."""
    return _roi.in_format_of(weight if is_last(weight) else input, out)


def is_last(tensor: Tensor) -> bool:
    last = tensor.is_contiguous(memory_format=torch.channels_last)
    return last and not tensor.is_contiguous()
