"""Deformable RoI pooling: the definition, one box after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cvkernels import _checks
from cvkernels.reference._precision import compute_dtype
from cvkernels.reference._roi import bilinear, grid_size, in_format_of, sample_coordinates


def _pool(
    image: Tensor,  # [C, H, W]
    start: tuple[Tensor, Tensor],  # y, x
    size: tuple[Tensor, Tensor],  # height, width
    shift: Tensor,  # [2, PH, PW] pixels, x first
    bins: tuple[int, int],
    grid: tuple[int, int],
) -> Tensor:
    """One box: [C, PH, PW]."""
    y = sample_coordinates((start[0] + shift[1]).T, size[0], bins[0], grid[0]).transpose(0, 1)
    x = sample_coordinates(start[1] + shift[0], size[1], bins[1], grid[1])
    y, x = torch.broadcast_tensors(y[..., :, None], x[..., None, :])  # [PH, PW, gy, gx]
    return bilinear(image, y, x).sum((-1, -2)) / max(grid[0] * grid[1], 1)


def deform_roi_pool(
    input: Tensor,
    rois: Tensor | Sequence[Tensor],
    offset: Tensor | None,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
) -> Tensor:
    """Pools a grid of bins, each shifted by an offset of its own, by averaging bilinear samples.

    Evaluated in float64 (see :func:`cvkernels.reference.precision`) and rounded once to the dtype
    of ``input``.

    Args:
        input: [N, C, H, W] feature map, any float dtype.
        rois: [K, 5] rows (image index, x1, y1, x2, y2) in any float dtype, or a list of N tensors
            [L, 4], in units of 1 / spatial_scale pixels. Integer coordinates are pixel edges.
        offset: [K, 2, PH, PW] in any float dtype, x in plane 0 and y in plane 1, in units of the
            box's width and height times gamma. None, or an empty vector, shifts nothing.
        output_size: (PH, PW), or one integer for both.
        spatial_scale: factor from box units to pixels of ``input``.
        sampling_ratio: samples per bin along each axis; 0 or less takes
            ceil(box size / output size), at most 32768.
        gamma: factor on the offsets.

    Returns:
        [K, C, PH, PW] in the dtype and memory format of ``input``.

    Raises:
        ValueError: wrong shape, dtype, device or value, and an image index outside [0, N).
        TypeError: an argument of a wrong type.

    Gradient:
        To ``input`` and ``offset``, of any order. In the coordinate of a sample the derivative is
        the one to the right, and 0 where the coordinate is clamped (below 0, and from the last
        pixel on).

    Determinism:
        Bitwise on CPU.

    Source:
        Dai et al., Deformable Convolutional Networks, 2017; mmcv.ops.deform_roi_pool 2.2.0.
    """
    op = "deform_roi_pool"
    rois = _checks.roi_boxes(op, input, rois, name="rois")
    bins = _checks.pair(op, "output_size", output_size)
    _checks.deform_roi_pool(input, rois, offset, spatial_scale, *bins, sampling_ratio, gamma)
    rois = rois.detach()
    image = _checks.roi_image_index(op, input, rois, name="rois")

    features, boxes = input.to(compute_dtype()), rois.to(compute_dtype())
    x1, y1, x2, y2 = (boxes[:, i] * spatial_scale - 0.5 for i in range(1, 5))
    width, height = x2 - x1, y2 - y1
    if offset is None or offset.dim() == 1:
        shift = features.new_zeros((len(boxes), 2, *bins))
    else:
        size = torch.stack([width, height], 1)[..., None, None]
        shift = gamma * size * offset.to(compute_dtype())
    grid_y = grid_size(height, bins[0], sampling_ratio).tolist()
    grid_x = grid_size(width, bins[1], sampling_ratio).tolist()
    pooled = [
        _pool(
            features[image[k]],
            (y1[k], x1[k]),
            (height[k], width[k]),
            shift[k],
            bins,
            (grid_y[k], grid_x[k]),
        )
        for k in range(len(boxes))
    ]
    if pooled:
        out = torch.stack(pooled)
    else:  # keeps the autograd graph, so that the gradients are zero
        out = features.new_zeros((0, input.shape[1], *bins)) + features.sum() * 0 + shift.sum()
    return in_format_of(input, out.to(input.dtype))
