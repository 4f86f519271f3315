"""RoI Pool: the definition, bin by bin."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cvkernels import _checks
from cvkernels.reference._precision import compute_dtype
from cvkernels.reference._roi import in_format_of, nothing, pixel_bins


def roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """Takes the maximum of each box's features over a grid of fixed size, cut at whole pixels.

    Where the bins lie is worked out in the arithmetic of ``input``, float32 or float64, because it
    depends on rounding. The values are moved and not computed with; gradients add up in float64
    (see :func:`cvkernels.reference.precision`).

    Args:
        input: [N, C, H, W] feature map, any float dtype.
        boxes: [K, 5] rows (image index, x1, y1, x2, y2) in any float dtype, or a list of N tensors
            [L, 4], in units of 1 / spatial_scale pixels.
        output_size: (height, width) of the result in bins, or one integer for both.
        spatial_scale: factor from box units to pixels of ``input``.

    Returns:
        [K, C, output_size[0], output_size[1]] in the dtype and memory format of ``input``.

    Raises:
        ValueError: wrong shape, dtype, device or value, and an image index outside [0, N).
        TypeError: an argument of a wrong type.

    Gradient:
        To ``input`` only: the first of equal maxima in row order takes it.

    Determinism:
        Bitwise on CPU.

    Source:
        Girshick, Fast R-CNN, 2015; the rounding of torchvision.ops.roi_pool 0.29.1.
    """
    boxes = _checks.roi_boxes("roi_pool", input, boxes)
    bins = _checks.pair("roi_pool", "output_size", output_size)
    _checks.roi_pool(input, boxes, spatial_scale, *bins)
    boxes = boxes.detach()
    image = _checks.roi_image_index("roi_pool", input, boxes).tolist()

    features = input.to(compute_dtype())
    rows = pixel_bins(input, boxes[:, 2], boxes[:, 4], spatial_scale, bins[0], input.shape[2])
    columns = pixel_bins(input, boxes[:, 1], boxes[:, 3], spatial_scale, bins[1], input.shape[3])
    empty = nothing(features) + features.new_zeros(input.shape[1])
    out = [
        # torch.max takes the first of equal maxima, and NaN before all numbers.
        plane[:, y0:y1, x0:x1].flatten(1).max(1).values if y1 > y0 and x1 > x0 else empty
        for plane, ys, xs in zip((features[n] for n in image), rows, columns, strict=True)
        for y0, y1 in ys
        for x0, x1 in xs
    ]
    pooled = torch.stack(out) if out else empty.expand(0, -1)
    pooled = pooled.reshape(len(image), *bins, input.shape[1]).permute(0, 3, 1, 2)
    return in_format_of(input, pooled.to(input.dtype))
