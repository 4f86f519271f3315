"""What the references of the RoI family share."""

from __future__ import annotations

import torch
from torch import Tensor

from cvkernels import _checks


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
    *,
    open_end: bool = False,
) -> list[list[tuple[int, int]]]:
    """The pixels [first, last) of each bin along one axis of each box, as RoI Pool rounds them.

    In the arithmetic of ``input``, float32 or float64. With ``open_end``, as position-sensitive RoI
    Pool has it, the pixel at the far end is not part of the box, nor the last one of the map.
    """
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    low, high = low.to(dtype) * scale, high.to(dtype) * scale
    finite = low.isfinite() & high.isfinite()
    start, end = nearest_pixel(low), nearest_pixel(high)
    count = (end - start + (not open_end)).clamp(min=1)
    size = max(size - open_end, 0)
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


def grid_size(extent: Tensor, bins: int, sampling_ratio: int) -> Tensor:
    """Samples per bin along one axis, [K] int64."""
    if sampling_ratio > 0:
        return torch.full_like(extent, sampling_ratio, dtype=torch.int64)
    return (extent / bins).ceil().nan_to_num(nan=0.0).clamp(0, _checks.ROI_MAX_GRID).to(torch.int64)


def sample_coordinates(start: Tensor, extent: Tensor, bins: int, grid: int) -> Tensor:
    """Where the samples of one box lie along an axis: [..., bins, grid].

    ``start`` is where the axis begins, for all bins or for each: [..., bins]. The order of
    additions is the kernels', so that a sample on the very rim of the map is inside or outside
    alike.
    """
    bin_size = extent / bins
    p = torch.arange(bins, device=extent.device).to(extent.dtype)
    i = torch.arange(grid, device=extent.device).to(extent.dtype)
    return (start + p * bin_size)[..., None] + (i + 0.5) * bin_size / max(grid, 1)


def bilinear(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Values of an image [C, H, W] at points of any shape: [C, ...]. Outside [-1, size] they are 0.

    Differentiable in the image and in the points. In a point the derivative is the one to the right
    (down), and 0 where the coordinate is clamped: below 0, and from the last pixel on.
    """
    height, width = image.shape[-2:]
    if height == 0 or width == 0:
        zero = sum((nothing(t) for t in (image, y, x)), image.new_zeros(()))  # has a gradient
        return zero.expand(image.shape[0], *y.shape)
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)  # NaN and Inf are not

    def axis(at: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
        at = torch.where(inside & (at >= 0), at, 0.0)  # torch's clamp has another gradient at 0
        low = at.detach().floor().to(torch.int64).clamp(max=size - 1)
        high = (low + 1).clamp(max=size - 1)
        return low, high, torch.where(low < high, at - low, 0.0)

    y0, y1, ly = axis(y, height)
    x0, x1, lx = axis(x, width)
    upper = image[:, y0, x0] * (1 - lx) + image[:, y0, x1] * lx
    lower = image[:, y1, x0] * (1 - lx) + image[:, y1, x1] * lx
    return torch.where(inside, upper * (1 - ly) + lower * ly, 0.0)
