"""Position-sensitive RoI Pool: the definition, bin by bin."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cvkernels import _checks
from cvkernels.reference._precision import compute_dtype
from cvkernels.reference._roi import in_format_of, nothing, pixel_bins


def ps_roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """Averages the pixels of each box's bins, every bin from a channel of its own.

    Where the bins lie is worked out in the arithmetic of ``input``, float32 or float64, because it
    depends on rounding; means in float64 (see :func:`cvkernels.reference.precision`), rounded once.

    Args:
        input: [N, C, H, W] score maps, any float dtype, C a multiple of the bins.
        boxes: [K, 5] rows (image index, x1, y1, x2, y2) in any float dtype, or a list of N tensors
            [L, 4], in units of 1 / spatial_scale pixels.
        output_size: (height, width) of the result in bins, or one integer for both.
        spatial_scale: factor from box units to pixels of ``input``.

    Returns:
        [K, C / bins, output_size[0], output_size[1]] in the dtype and memory format of ``input``.

    Raises:
        ValueError: wrong shape, dtype, device or value, and an image index outside [0, N).
        TypeError: an argument of a wrong type.

    Gradient:
        To ``input`` only, of any order.

    Determinism:
        Bitwise on CPU.

    Source:
        Dai et al., R-FCN, 2016; the rounding of torchvision.ops.ps_roi_pool 0.29.1.
    """
    boxes = _checks.roi_boxes("ps_roi_pool", input, boxes)
    bins = _checks.pair("ps_roi_pool", "output_size", output_size)
    _checks.ps_roi_pool(input, boxes, spatial_scale, *bins)
    boxes = boxes.detach()
    image = _checks.roi_image_index("ps_roi_pool", input, boxes).tolist()

    features = input.to(compute_dtype())
    maps = features.unflatten(1, (input.shape[1] // (bins[0] * bins[1]), *bins))
    low, high = boxes[:, 1:3], boxes[:, 3:5]  # x, y
    rows, columns = (
        pixel_bins(input, low[:, at], high[:, at], spatial_scale, count, size, open_end=True)
        for at, count, size in ((1, bins[0], input.shape[2]), (0, bins[1], input.shape[3]))
    )
    empty = nothing(features) + features.new_zeros(maps.shape[1])
    out = [
        maps[n, :, i, j, y0:y1, x0:x1].mean((1, 2)) if y1 > y0 and x1 > x0 else empty
        for n, ys, xs in zip(image, rows, columns, strict=True)
        for i, (y0, y1) in enumerate(ys)
        for j, (x0, x1) in enumerate(xs)
    ]
    pooled = torch.stack(out) if out else empty.expand(0, -1)
    pooled = pooled.reshape(len(image), *bins, maps.shape[1]).permute(0, 3, 1, 2)
    return in_format_of(input, pooled.to(input.dtype))
