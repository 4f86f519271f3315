"""RoI operators that no library has on the CPU, as people compose them from PyTorch's own.

All boxes of an image become one grid for grid_sample; a bin is a mean over its samples.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def roi_align_rotated_torch(
    input: Tensor,
    rois: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool = True,
) -> Tensor:
    """Rotated RoI Align with a fixed number of samples, counter-clockwise."""
    rows, columns = output_size

    def points(boxes: Tensor) -> tuple[Tensor, Tensor]:
        shift = 0.5 if aligned else 0.0
        x, y, w, h = (boxes[:, i, None, None] * spatial_scale for i in range(1, 5))
        if not aligned:
            w, h = w.clamp(min=1), h.clamp(min=1)
        v = h * _places(rows * sampling_ratio, boxes)[None, :, None]
        u = w * _places(columns * sampling_ratio, boxes)[None, None, :]
        cosine, sine = boxes[:, 5, None, None].cos(), boxes[:, 5, None, None].sin()
        return v * cosine - u * sine + y - shift, v * sine + u * cosine + x - shift

    return _pooled(input, rois, output_size, sampling_ratio, lambda rows: points(rois[rows]))


def deform_roi_pool_torch(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float = 0.1,
) -> Tensor:
    """Deformable RoI pooling with a fixed number of samples."""
    rows, columns = output_size

    def points(boxes: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        x1, y1, x2, y2 = (boxes[:, i, None, None] * spatial_scale - 0.5 for i in range(1, 5))
        dx, dy = (
            offsets[:, i].repeat_interleave(sampling_ratio, 1).repeat_interleave(sampling_ratio, 2)
            for i in range(2)
        )
        v = 0.5 + _places(rows * sampling_ratio, boxes)[None, :, None] + gamma * dy
        u = 0.5 + _places(columns * sampling_ratio, boxes)[None, None, :] + gamma * dx
        return y1 + (y2 - y1) * v, x1 + (x2 - x1) * u

    return _pooled(
        input, rois, output_size, sampling_ratio, lambda rows: points(rois[rows], offset[rows])
    )


def _places(count: int, like: Tensor) -> Tensor:
    """Sample positions along a side of length 1 about its centre."""
    return (torch.arange(count, dtype=like.dtype, device=like.device) + 0.5) / count - 0.5


def _pooled(
    input: Tensor,
    rois: Tensor,
    output_size: tuple[int, int],
    sampling_ratio: int,
    points: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> Tensor:
    n, _, height, width = input.shape
    found, order = [], []
    for image in range(n):
        rows = (rois[:, 0] == image).nonzero()[:, 0]
        y, x = points(rows)
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
        samples = F.grid_sample(
            input[image][None], grid.flatten(0, 1)[None], "bilinear", "border", align_corners=False
        )
        inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
        samples = samples * inside.flatten(0, 1)
        mean = F.avg_pool2d(samples, sampling_ratio)[0]
        found.append(mean.unflatten(1, (-1, output_size[0])).movedim(1, 0))
        order.append(rows)
    return torch.cat(found)[torch.cat(order).argsort()]
