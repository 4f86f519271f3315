"""What the references of the RoI family share."""

from __future__ import annotations

import torch
from torch import Tensor


def in_format_of(input: Tensor, output: Tensor) -> Tensor:
    """``output`` in the memory format of ``input``: channels_last, or contiguous."""
    channels_last = input.is_contiguous(memory_format=torch.channels_last)
    if channels_last and not input.is_contiguous():
        return output.contiguous(memory_format=torch.channels_last)
    return output.contiguous()


def nothing(features: Tensor) -> Tensor:
    """A zero that hangs in the autograd graph of ``features``, whatever they are."""
    return features.flatten()[:0].sum()


def pixel_bins(
    input: Tensor,
    low: Tensor,  # [K]
    high: Tensor,  # [K]
    scale: float,
    bins: int,
    size: int,
) -> list[list[tuple[int, int]]]:
    """The pixels [first, last) of each bin along one axis of each box, as RoI Pool rounds them.

    In the arithmetic of ``input``, float32 or float64.
    """
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    low, high = low.to(dtype) * scale, high.to(dtype) * scale
    finite = low.isfinite() & high.isfinite()
    start, end = nearest_pixel(low), nearest_pixel(high)
    count = (end - start + 1).clamp(min=1)
    extent = (count.to(dtype) / bins)[:, None]
    bin = torch.arange(bins, dtype=dtype, device=low.device)
    first = ((bin * extent).floor().long() + start[:, None]).clamp(0, size)
    last = (((bin + 1) * extent).ceil().long() + start[:, None]).clamp(0, size)
    last = torch.where(finite[:, None], last, first)
    found = torch.stack([first, last], 2).tolist()
    return [[(a, b) for a, b in box] for box in found]


def nearest_pixel(coordinate: Tensor) -> Tensor:
    """The coordinate rounded, halves away from zero, and clamped to what 33 bits hold."""
    magnitude = coordinate.abs()
    whole = magnitude.floor()
    rounded = torch.where(magnitude - whole >= 0.5, whole + 1, whole).copysign(coordinate)
    return rounded.nan_to_num().clamp(-(2.0**31), 2.0**31).long()
