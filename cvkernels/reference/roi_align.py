"""RoI Align: the definition, by bilinear samples gathered one by one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cvkernels import _checks
from cvkernels.reference._precision import compute_dtype
from cvkernels.reference._roi import grid_size, in_format_of

_CHUNK_ELEMENTS = 1 << 22  # sampled values held at once; bounds memory, changes no result


def _axis(
    start: Tensor,  # [k]
    extent: Tensor,  # [k]
    grid: Tensor,  # [k]
    bins: int,
    size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Samples of an axis: low and high pixel, weight of high, in range, exists: [k, bins * g]."""
    most = max(int(grid.max()), 1)
    bin_size = (extent / bins)[:, None, None]
    p = torch.arange(bins, device=start.device)[None, :, None].to(start.dtype)
    i = torch.arange(most, device=start.device)[None, None, :].to(start.dtype)
    count = grid[:, None, None]
    step = count.clamp(min=1).to(start.dtype)  # a division by 0 would make the gradient NaN
    x = start[:, None, None] + p * bin_size + (i + 0.5) * bin_size / step
    exists = (torch.arange(most, device=start.device) < count).expand(-1, bins, -1)
    in_range = exists & (x >= -1) & (x <= size) & (size > 0)  # NaN and Inf are out of range
    x = torch.where(in_range & (x >= 0), x, 0.0)  # at 0 with a gradient, as at any pixel's centre
    low = x.floor().to(torch.int64).clamp(max=max(size - 1, 0))
    high = (low + 1).clamp(max=max(size - 1, 0))
    weight = torch.where(low < high, x - low, 0.0)  # beyond the last pixel its value continues
    return (
        low.flatten(1),
        high.flatten(1),
        weight.flatten(1),
        in_range.flatten(1),
        exists.flatten(1),
    )


def _pool(
    features: Tensor,  # [N, C, H, W], compute dtype
    image: Tensor,  # [k]
    start: tuple[Tensor, Tensor],  # y, x: [k]
    extent: tuple[Tensor, Tensor],
    grid: tuple[Tensor, Tensor],
    bins: tuple[int, int],
    mode: str,
) -> Tensor:
    """One chunk of boxes: [k, C, PH, PW]."""
    y0, y1, ly, y_in, y_exists = _axis(start[0], extent[0], grid[0], bins[0], features.shape[2])
    x0, x1, lx, x_in, x_exists = _axis(start[1], extent[1], grid[1], bins[1], features.shape[3])
    in_range = y_in[:, :, None] & x_in[:, None, :]  # [k, PH * gy, PW * gx]
    exists = y_exists[:, :, None] & x_exists[:, None, :]

    def tap(y: Tensor, x: Tensor) -> Tensor:  # [k, PH * gy, PW * gx, C]
        return features[image[:, None, None], :, y[:, :, None], x[:, None, :]]

    ly, lx = ly[:, :, None, None], lx[:, None, :, None]
    value = (
        (1 - ly) * (1 - lx) * tap(y0, x0)
        + (1 - ly) * lx * tap(y0, x1)
        + ly * (1 - lx) * tap(y1, x0)
        + ly * lx * tap(y1, x1)
    )
    value = torch.where(in_range[..., None], value, 0.0)
    k, c = len(image), features.shape[1]

    def by_bin(t: Tensor) -> Tensor:  # [k, PH, PW, gy * gx, ...], samples of a bin in row order
        t = t.unflatten(2, (bins[1], -1)).unflatten(1, (bins[0], -1))
        return t.transpose(2, 3).flatten(3, 4)

    value, exists = by_bin(value), by_bin(exists)[..., None]
    if mode == "avg":
        count = (grid[0] * grid[1]).clamp(min=1)[:, None, None, None]
        out = torch.where(exists, value, 0.0).sum(3) / count
    else:  # torch.max takes the first of equal maxima, and so does the gradient
        best = torch.where(exists, value, float("-inf")).max(3).values
        out = torch.where(exists.any(3), best, 0.0)
    assert out.shape == (k, *bins, c)
    return out.permute(0, 3, 1, 2)


def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    *,
    mode: str = "avg",
) -> Tensor:
    """Pools a fixed grid of bins out of each box by averaging (or maximising) bilinear samples.

    Evaluated in float64 (see :func:`cvkernels.reference.precision`) and rounded once to the dtype
    of ``input``.

    Args:
        input: [N, C, H, W] feature map, any float dtype.
        boxes: [K, 5] rows (image index, x1, y1, x2, y2) in any float dtype, or a list of N tensors
            [L, 4], in units of 1 / spatial_scale pixels.
        output_size: (height, width) of the result in bins, or one integer for both.
        spatial_scale: factor from box units to pixels of ``input``.
        sampling_ratio: samples per bin along each axis; 0 or less takes
            ceil(box size / output size), at most 32768, so that an absurd box ends.
        aligned: shift by half a pixel, so that integer coordinates are pixel edges; otherwise
            integer coordinates are pixel centres and a box is at least 1 pixel wide and high.
        mode: "avg" or "max". A sample further than one pixel outside the map counts as 0.

    Returns:
        [K, C, output_size[0], output_size[1]] in the dtype and memory format of ``input``.

    Raises:
        ValueError: wrong shape, dtype, device or value, and an image index outside [0, N).
        TypeError: an argument of a wrong type.

    Gradient:
        To ``input`` and ``boxes``, of any order. Of equal samples the first in row order takes it
        ("max"). In the coordinate of a sample the derivative is the one to the right; it is 0 where
        the coordinate is clamped (below 0, and from the last pixel on), and a stretched box has one
        for its first corner only. The number of samples is a constant.

    Determinism:
        Bitwise on CPU.

    Source:
        He et al., Mask R-CNN, 2017; the sampling rule of torchvision.ops.roi_align 0.29.1;
        "max" as in mmcv 2.2.0.
    """
    boxes = _checks.roi_boxes("roi_align", input, boxes)
    bins = _checks.pair("roi_align", "output_size", output_size)
    _checks.roi_align_mode(mode)
    _checks.roi_align(input, boxes, spatial_scale, *bins, sampling_ratio, aligned)
    image = _checks.roi_image_index("roi_align", input, boxes.detach())

    dtype = compute_dtype()
    channels = input.shape[1]
    features = input.to(dtype)
    b = boxes.to(dtype)
    offset = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (b[:, i] * spatial_scale - offset for i in range(1, 5))
    width, height = x2 - x1, y2 - y1
    if not aligned:  # NaN stays NaN
        width, height = (torch.where(size < 1, 1.0, size) for size in (width, height))
    grid_y = grid_size(height, bins[0], sampling_ratio)
    grid_x = grid_size(width, bins[1], sampling_ratio)

    outputs = []
    first = 0 if features.shape[2:].numel() > 0 else len(b)  # no pixel: every bin is 0
    while first < len(b):
        last, most_y, most_x = first, 1, 1
        while last < len(b):
            most_y = max(most_y, int(grid_y[last]))
            most_x = max(most_x, int(grid_x[last]))
            each = max(channels, 1) * bins[0] * most_y * bins[1] * most_x
            if last > first and (last + 1 - first) * each > _CHUNK_ELEMENTS:
                break
            last += 1
        part = slice(first, last)
        outputs.append(
            _pool(
                features,
                image[part],
                (y1[part], x1[part]),
                (height[part], width[part]),
                (grid_y[part], grid_x[part]),
                bins,
                mode,
            )
        )
        first = last
    if outputs:
        out = torch.cat(outputs)
    else:  # keeps the autograd graph, so that the gradient is zero
        out = features.new_zeros((len(b), channels, *bins)) + features.sum() * 0 + b[:0].sum()
    out = out.to(input.dtype)
    return in_format_of(input, out)
