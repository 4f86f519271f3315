"""Multi-level RoI Align: the definition, one level after another."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cvkernels import _checks
from cvkernels.reference._roi import in_format_of, nothing
from cvkernels.reference.roi_align import roi_align


def roi_levels(
    boxes: Tensor | Sequence[Tensor],
    spatial_scales: Sequence[float],
    canonical_scale: float = 224,
    canonical_level: int = 4,
) -> Tensor:
    """The level of each box in a feature pyramid: what :func:`multiscale_roi_align` pools it from.

    floor(canonical_level + log2(sqrt(area) / canonical_scale) + 1e-6), clamped to the levels of the
    first and the last scale and counted from the first; level k has the scale 2^-k.

    Args:
        boxes: [K, 5] rows (image index, x1, y1, x2, y2) in any float dtype, or a list of N tensors
            [L, 4].
        spatial_scales: scale of each of 1 to 8 levels, descending.
        canonical_scale: side of a box that belongs to ``canonical_level``.
        canonical_level: level counted from the image.

    Returns:
        [K] int64, an index into ``spatial_scales``; -1 for a box whose area is NaN or negative, and
        for a level that ``spatial_scales`` skip. Computed in float64 for float64 boxes, else in
        float32.

    Raises:
        ValueError: wrong shape, dtype, device or value.
        TypeError: an argument of a wrong type.

    Gradient:
        None.

    Determinism:
        Bitwise on CPU.

    Source:
        Lin et al., Feature Pyramid Networks, 2017, eq. 1; torchvision.ops.poolers 0.29.1.
    """
    if not isinstance(boxes, Tensor):
        some = boxes[0] if isinstance(boxes, (list, tuple)) and boxes else torch.zeros(0)
        boxes = _checks.roi_boxes("roi_levels", some, boxes, input_name="boxes[0]")
    _checks.roi_levels(boxes, spatial_scales, canonical_scale, canonical_level)
    return _levels(boxes, spatial_scales, canonical_scale, canonical_level)


def _levels(boxes: Tensor, scales: Sequence[float], side: float, level: int) -> Tensor:
    b = boxes.detach().to(torch.promote_types(boxes.dtype, torch.float32))
    area = (b[:, 3] - b[:, 1]) * (b[:, 4] - b[:, 2])
    epsilon = torch.tensor(1e-6, dtype=b.dtype, device=b.device)
    value = (level + torch.log2(area.sqrt() / side) + epsilon).floor()
    first, last = (int(-math.log2(scale)) for scale in (scales[0], scales[-1]))
    index = value.clamp(first, last).nan_to_num(nan=first - 1).long() - first
    return torch.where(index < len(scales), index, -1)


def multiscale_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scales: Sequence[float],
    sampling_ratio: int = -1,
    aligned: bool = False,
    canonical_scale: float = 224,
    canonical_level: int = 4,
    *,
    levels: Tensor | None = None,
    mode: str = "avg",
) -> Tensor:
    """Pools each box from the level of a feature pyramid that fits its size.

    :func:`roi_align` on each map for the boxes that :func:`roi_levels` assigns to it, in the
    arithmetic of the maps.

    Args:
        features: 1 to 8 maps [N, C, Hi, Wi] of one float dtype, the finest first.
        boxes: [K, 5] rows (image index, x1, y1, x2, y2) in any float dtype, or a list of N tensors
            [L, 4].
        output_size: (height, width) of the result in bins, or one integer for both.
        spatial_scales: factor from box units to pixels of each map.
        sampling_ratio: samples per bin along each axis; 0 or less takes ceil(box size / output
            size).
        aligned: shift by half a pixel, and do not stretch boxes below 1 pixel.
        canonical_scale: side of a box that belongs to ``canonical_level``.
        canonical_level: level counted from the image.
        levels: [K] integers, the level of each box in place of the rule.
        mode: "avg" or "max".

    Returns:
        [K, C, output_size[0], output_size[1]] in the dtype of the maps, and in the memory format of
        the first that has but one. Boxes of no level give zeros; a single map takes all.

    Raises:
        ValueError: wrong shape, dtype, device or value, an image index outside [0, N), and a level
            in ``levels`` outside [0, number of levels).
        TypeError: an argument of a wrong type.

    Gradient:
        To the maps only, of any order.

    Determinism:
        Bitwise on CPU.

    Source:
        Lin et al., Feature Pyramid Networks, 2017; torchvision.ops.MultiScaleRoIAlign 0.29.1.
    """
    op = "multiscale_roi_align"
    if not isinstance(boxes, Tensor):
        _checks.roi_features(op, features)
        boxes = _checks.roi_boxes(op, features[0], boxes, input_name="features[0]")
    bins = _checks.pair(op, "output_size", output_size)
    _checks.roi_align_mode(mode, op=op)
    rule = (canonical_scale, canonical_level)
    _checks.multiscale_roi_align(
        features, boxes, levels, spatial_scales, *bins, sampling_ratio, aligned, *rule
    )
    if levels is not None:
        _checks.roi_given_levels(op, features[0], boxes, levels, len(features))
        own = levels.long()
    _checks.roi_image_index(op, features[0], boxes)
    if levels is None and len(features) == 1:
        own = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    elif levels is None:
        arithmetic = torch.promote_types(features[0].dtype, torch.float32)
        own = _levels(boxes.to(arithmetic), spatial_scales, *rule)

    order, parts = [(own < 0).nonzero()[:, 0]], []
    parts.append(features[0].new_zeros((len(order[0]), features[0].shape[1], *bins)))
    for i, (level, scale) in enumerate(zip(features, spatial_scales, strict=True)):
        order.append((own == i).nonzero()[:, 0])
        chosen = boxes[order[-1]]
        pooled = roi_align(level, chosen, bins, scale, sampling_ratio, aligned, mode=mode)
        parts.append(pooled + nothing(level))
    out = torch.cat([part.contiguous() for part in parts])[torch.cat(order).argsort()]
    return in_format_of(_deciding(features), out)


def _deciding(features: Sequence[Tensor]) -> Tensor:
    """The first map whose strides can tell contiguous from channels_last."""
    for level in features:
        if level.shape[1] > 1 and level.shape[2:].numel() > 1:
            return level
    return features[0]
