"""Context-aware RoI Pool: the definition, box by box."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cvkernels import _checks
from cvkernels.reference._precision import compute_dtype
from cvkernels.reference._roi import in_format_of, nearest_pixel, nothing


class _Axis:
    """One axis of a box: which pixels of the map it has, how they are enlarged, and its bins.

    In the arithmetic of the input, float32 or float64, because it depends on rounding.
    """

    def __init__(self, low: Tensor, high: Tensor, bins: int, size: int) -> None:
        start, end = int(nearest_pixel(low)), int(nearest_pixel(high))
        count = max(end - start + 1, 1)
        if not bool(low.isfinite() & high.isfinite()):
            start = count = 0
        self.first, self.last = (min(max(edge, 0), size) for edge in (start, start + count))
        self.stretch = -(-bins // count) if 0 < count < bins else 1
        if count >= bins:  # as in RoI Pool rounding may give the last bin a pixel more
            self.last = size
        cells = count * self.stretch
        extent = torch.tensor(cells, dtype=low.dtype) / bins
        bin = torch.arange(bins, dtype=low.dtype)
        # From the first cell on the map: the box may begin outside it.
        shift = (start - self.first) * self.stretch
        most = (self.last - self.first) * self.stretch
        begin = ((bin * extent).floor().long() + shift).clamp(0, most).tolist()
        until = (((bin + 1) * extent).ceil().long() + shift).clamp(0, most).tolist()
        self.bins = list(zip(begin, until, strict=True))

    def enlarge(self, crop: Tensor) -> Tensor:
        """The last dimension of a crop, from pixels to cells: lines between centres of pixels."""
        if self.stretch == 1 or crop.shape[-1] == 0:
            return crop
        pixels = crop.shape[-1]
        cell = torch.arange(pixels * self.stretch, dtype=crop.dtype, device=crop.device)
        centre = ((cell + 0.5) / self.stretch - 0.5).clamp(0, pixels - 1)
        low = centre.floor().long()
        share = centre - low
        beyond = crop[..., (low + 1).clamp(max=pixels - 1)] * share
        return crop[..., low] * (1 - share) + beyond.where(share > 0, 0)  # unread where it weighs 0


def context_aware_roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """RoI Pool that enlarges boxes smaller than their grid instead of repeating their pixels.

    Where boxes and bins lie is worked out in the arithmetic of ``input``, float32 or float64,
    because it depends on rounding; values in float64 (see :func:`cvkernels.reference.precision`).

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
        To ``input`` only, through the first of equal maxima in row order.

    Determinism:
        Bitwise on CPU.

    Source:
        Hu et al., SINet, 2019 (arXiv 1804.00433); rounding and bins of RoI Pool.
    """
    op = "context_aware_roi_pool"
    boxes = _checks.roi_boxes(op, input, boxes)
    bins = _checks.pair(op, "output_size", output_size)
    _checks.context_aware_roi_pool(input, boxes, spatial_scale, *bins)
    boxes = boxes.detach()
    image = _checks.roi_image_index(op, input, boxes).tolist()

    features = input.to(compute_dtype())
    empty = nothing(features) + features.new_zeros(input.shape[1])
    arithmetic = torch.float64 if input.dtype == torch.float64 else torch.float32
    corners = boxes[:, 1:].to(arithmetic) * spatial_scale
    out = []
    for n, (x1, y1, x2, y2) in zip(image, corners, strict=True):
        y, x = _Axis(y1, y2, bins[0], input.shape[2]), _Axis(x1, x2, bins[1], input.shape[3])
        crop = features[n, :, y.first : y.last, x.first : x.last]
        cells = y.enlarge(x.enlarge(crop).mT).mT
        out += [
            cells[:, i0:i1, j0:j1].flatten(1).max(1).values if i1 > i0 and j1 > j0 else empty
            for i0, i1 in y.bins
            for j0, j1 in x.bins
        ]
    pooled = torch.stack(out) if out else empty.expand(0, -1)
    pooled = pooled.reshape(len(image), *bins, input.shape[1]).permute(0, 3, 1, 2)
    return in_format_of(input, pooled.to(input.dtype))
