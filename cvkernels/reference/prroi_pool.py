"""Precise RoI Pooling: the definition, by integrals of the bilinear kernel over whole axes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cvkernels import _checks
from cvkernels.reference._precision import compute_dtype
from cvkernels.reference._roi import in_format_of, nothing

_CHUNK_ELEMENTS = 1 << 22  # pixels of boxes' images held at once; bounds memory, changes no result


def _integral(t: Tensor) -> Tensor:
    """Integral from minus infinity to t of the bilinear kernel max(0, 1 - |t|)."""
    rising = (t + 1).clamp(min=0) ** 2 / 2
    falling = 1 - (1 - t).clamp(min=0) ** 2 / 2
    return torch.where(t < 0, rising, falling)


def _weights(low: Tensor, high: Tensor, bins: int, size: int) -> Tensor:
    """Mean of each pixel's kernel over each bin of an axis: [k, bins, size]; low, high: [k]."""
    length = high - low
    has = (length > 0) & length.isfinite() & low.isfinite()  # NaN is not greater than 0
    low, length = torch.where(has, low, 0.0), torch.where(has, length, 1.0)
    bin_size = (length / bins)[:, None, None]
    p = torch.arange(bins, device=low.device)[None, :, None].to(low.dtype)
    pixel = torch.arange(size, device=low.device)[None, None, :].to(low.dtype)
    start = low[:, None, None] + p * bin_size
    mean = (_integral(start + bin_size - pixel) - _integral(start - pixel)) / bin_size
    return torch.where(has[:, None, None], mean, 0.0)


def prroi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """Averages the bilinear interpolation of the map exactly over each bin of each box.

    Evaluated in float64 (see :func:`cvkernels.reference.precision`) and rounded once to the dtype
    of ``input``.

    Args:
        input: [N, C, H, W] feature map, any float dtype.
        boxes: [K, 5] rows (image index, x1, y1, x2, y2) in any float dtype, or a list of N tensors
            [L, 4], in units of 1 / spatial_scale pixels. Integer coordinates are pixel centres.
        output_size: (height, width) of the result in bins, or one integer for both.
        spatial_scale: factor from box units to pixels of ``input``.

    Returns:
        [K, C, output_size[0], output_size[1]] in the dtype and memory format of ``input``. Pixels
        outside the map are 0, and so are bins without area.

    Raises:
        ValueError: wrong shape, dtype, device or value, and an image index outside [0, N).
        TypeError: an argument of a wrong type.

    Gradient:
        To ``input`` and ``boxes``, of any order.

    Determinism:
        Bitwise on CPU.

    Source:
        Jiang et al., Acquisition of Localization Confidence for Accurate Object Detection, 2018
        (arXiv 1807.11590); the edge rules of mmcv 2.2.0.
    """
    boxes = _checks.roi_boxes("prroi_pool", input, boxes)
    bins = _checks.pair("prroi_pool", "output_size", output_size)
    _checks.prroi_pool(input, boxes, spatial_scale, *bins)
    image = _checks.roi_image_index("prroi_pool", input, boxes.detach())

    dtype = compute_dtype()
    _, channels, height, width = input.shape
    features = input.to(dtype)
    x1, y1, x2, y2 = (boxes[:, i].to(dtype) * spatial_scale for i in range(1, 5))
    y_weights = _weights(y1, y2, bins[0], height)
    x_weights = _weights(x1, x2, bins[1], width)
    step = max(_CHUNK_ELEMENTS // max(channels * height * width, 1), 1)
    outputs = [features.new_zeros((0, channels, *bins))]
    for first in range(0, len(boxes), step):
        part = slice(first, first + step)
        rows = torch.einsum("kiy,kcyx->kcix", y_weights[part], features[image[part]])
        outputs.append(torch.einsum("kjx,kcix->kcij", x_weights[part], rows))
    out = torch.cat(outputs) + nothing(features) + nothing(boxes).to(dtype)
    return in_format_of(input, out.to(input.dtype))
