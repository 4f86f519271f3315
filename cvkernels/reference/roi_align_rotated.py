"""Rotated RoI Align: the definition, one box after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cvkernels import _checks
from cvkernels.reference._precision import compute_dtype
from cvkernels.reference._roi import bilinear, grid_size, in_format_of, sample_coordinates

# An angle beyond it has lost its digits (in float32 it steps by 1/8) and counts as infinite.
_MOST_ANGLE = 2.0**20
_CHUNK_ELEMENTS = 1 << 22  # sampled values held at once; bounds memory


def _pool(
    image: Tensor,  # [C, H, W]
    centre: tuple[Tensor, Tensor],  # y, x
    size: tuple[Tensor, Tensor],  # height, width
    angle: Tensor,  # counter-clockwise
    bins: tuple[int, int],
    grid: tuple[int, int],
) -> Tensor:
    """One box: [C, PH, PW]."""
    v = sample_coordinates(-size[0] / 2, size[0], bins[0], grid[0])[:, None, :, None]
    u = sample_coordinates(-size[1] / 2, size[1], bins[1], grid[1])[None, :, None, :]
    cosine, sine = angle.double().cos().to(v.dtype), angle.double().sin().to(v.dtype)
    cosine = torch.where(angle.abs() <= _MOST_ANGLE, cosine, torch.nan)
    y = v * cosine - u * sine + centre[0]  # [PH, PW, gy, gx]; y points down
    x = v * sine + u * cosine + centre[1]
    rows = []
    for part_y, part_x in zip(
        y.split(_rows_at_once(image, y)), x.split(_rows_at_once(image, y)), strict=True
    ):
        rows.append(bilinear(image, part_y, part_x).sum((-1, -2)))
    return torch.cat(rows, 1) / max(grid[0] * grid[1], 1)


def _rows_at_once(image: Tensor, y: Tensor) -> int:
    return max(_CHUNK_ELEMENTS // max(image.shape[0] * y[0].numel(), 1), 1)


def roi_align_rotated(
    input: Tensor,
    rois: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
    clockwise: bool = False,
) -> Tensor:
    """Pools a grid of bins out of each rotated box by averaging bilinear samples.

    Evaluated in float64 (see :func:`cvkernels.reference.precision`) and rounded once to the dtype
    of ``input``.

    Args:
        input: [N, C, H, W] feature map, any float dtype.
        rois: [K, 6] rows (image index, centre x, centre y, width, height, angle in radians) in any
            float dtype, or a list of N tensors [L, 5], in units of 1 / spatial_scale pixels.
        output_size: (height, width) of the result in bins, or one integer for both.
        spatial_scale: factor from box units to pixels of ``input``.
        sampling_ratio: samples per bin along each of the box's axes; 0 or less takes
            ceil(box size / output size), at most 32768.
        aligned: shift by half a pixel, so that integer coordinates are pixel edges; otherwise
            integer coordinates are pixel centres and a box is at least 1 pixel wide and high.
        clockwise: a positive angle turns clockwise where y points down.

    Returns:
        [K, C, output_size[0], output_size[1]] in the dtype and memory format of ``input``.

    Raises:
        ValueError: wrong shape, dtype, device or value, and an image index outside [0, N).
        TypeError: an argument of a wrong type.

    Gradient:
        To ``input`` only, of any order.

    Determinism:
        Bitwise on CPU.

    Source:
        mmcv.ops.roi_align_rotated 2.2.0; Ma et al., Arbitrary-oriented scene text detection via
        rotation proposals, 2018.
    """
    op = "roi_align_rotated"
    rois = _checks.roi_boxes(op, input, rois, columns=5, name="rois")
    bins = _checks.pair(op, "output_size", output_size)
    _checks.roi_align_rotated(input, rois, spatial_scale, *bins, sampling_ratio, aligned, clockwise)
    rois = rois.detach()
    image = _checks.roi_image_index(op, input, rois, name="rois")

    features, boxes = input.to(compute_dtype()), rois.to(compute_dtype())
    offset = 0.5 if aligned else 0.0
    x, y = boxes[:, 1] * spatial_scale - offset, boxes[:, 2] * spatial_scale - offset
    width, height = boxes[:, 3] * spatial_scale, boxes[:, 4] * spatial_scale
    if not aligned:  # NaN stays NaN
        width, height = width.clamp(min=1), height.clamp(min=1)
    angle = -boxes[:, 5] if clockwise else boxes[:, 5]
    grid_y = grid_size(height, bins[0], sampling_ratio).tolist()
    grid_x = grid_size(width, bins[1], sampling_ratio).tolist()
    pooled = [
        _pool(
            features[image[k]],
            (y[k], x[k]),
            (height[k], width[k]),
            angle[k],
            bins,
            (grid_y[k], grid_x[k]),
        )
        for k in range(len(boxes))
    ]
    if pooled:
        out = torch.stack(pooled)
    else:  # keeps the autograd graph, so that the gradient is zero
        out = features.new_zeros((0, input.shape[1], *bins)) + features.sum() * 0
    return in_format_of(input, out.to(input.dtype))
