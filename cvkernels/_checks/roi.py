"""Checks of the RoI family.

The order in which every function of the family looks at its arguments: input, boxes, other tensors,
spatial_scale, output_size, sampling_ratio, aligned, then what is the operator's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cvkernels._checks._base import (
    INT16_MAX,
    INT32_MAX,
    choice,
    fail,
    fail_type,
    finite,
    flag,
    float_dtype,
    g,
    integer,
    integer_dtype,
    number,
    positive,
    same_device,
    same_dtype,
    shape,
    sizes,
    sizes_differ,
    surely,
    tensor,
)

# Most samples per bin and axis; kRoiMaxGrid in csrc/common/roi_geometry.h.
ROI_MAX_GRID = 2**15

# Indices of maxima that there are for each pixel; kIndicesPerPixel in csrc/bindings/torch.
# A bin has up to three cells along an enlarged axis.
ROI_POOL_INDICES = 1
CONTEXT_AWARE_INDICES = 3

# Most levels of a call; kRoiMaxLevels in csrc/common/roi_levels.h.
ROI_MAX_LEVELS = 8


# ---- parts


def roi_boxes(
    op: str,
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    *,
    columns: int = 4,
    name: str = "boxes",
    input_name: str = "input",
) -> Tensor:
    """Returns ``boxes`` as one [K, 1 + columns] tensor; a list holds [L, columns] for each image.

    The image index is a float in column 0, so half-precision lists are widened to float32: bfloat16
    cannot hold an index above 256.
    """
    if isinstance(boxes, Tensor):
        return boxes
    if not isinstance(boxes, (list, tuple)):
        fail_type(op, f"{name} to be a tensor or a list of tensors", boxes)
    tensor(op, input_name, input)
    rows = []
    for image, group in enumerate(boxes):
        entry = f"{name}[{image}]"
        tensor(op, entry, group)
        if group.dim() != 2 or group.shape[1] != columns:
            fail(op, f"{entry} of shape (L, {columns})", shape(group))
        float_dtype(op, entry, group)
        same_device(op, entry, group, input_name, input)
        group = group.to(torch.promote_types(group.dtype, torch.float32))
        rows.append(torch.nn.functional.pad(group, (1, 0), value=float(image)))
    return torch.cat(rows) if rows else input.new_zeros((0, columns + 1))


def roi_tensors(
    op: str, input: Tensor, boxes: Tensor, *, columns: int = 5, name: str = "boxes"
) -> None:
    """Checks the feature map and the boxes."""
    tensor(op, "input", input)
    tensor(op, name, boxes)
    if input.dim() != 4:
        fail(op, "input of shape (N, C, H, W)", shape(input))
    float_dtype(op, "input", input)
    roi_rows(op, boxes, "input", input, columns=columns, name=name)


def roi_rows(
    op: str, boxes: Tensor, other_name: str, other: Tensor, *, columns: int = 5, name: str = "boxes"
) -> None:
    """Checks the boxes, a tensor, and that they are where ``other`` is."""
    if boxes.dim() != 2 or boxes.shape[1] != columns:
        fail(op, f"{name} of shape (K, {columns})", shape(boxes))
    float_dtype(op, name, boxes)
    same_device(op, name, boxes, other_name, other)


def roi_sizes(op: str, spatial_scale: float, pooled_height: int, pooled_width: int) -> None:
    """Checks the scale and the bins."""
    positive(op, "spatial_scale", spatial_scale)
    roi_bins(op, pooled_height, pooled_width)


def roi_bins(op: str, pooled_height: int, pooled_width: int) -> None:
    """Checks the bins."""
    if pooled_height <= 0 or pooled_width <= 0 or max(pooled_height, pooled_width) > INT32_MAX:
        fail(op, "output_size of positive 32-bit values", f"({pooled_height}, {pooled_width})")


def roi_narrow_fits(input: Tensor, per_pixel: int) -> bool:
    """Whether indices surely fit in 16 bits, of which there are ``per_pixel`` for each pixel.

    Never in a program for export, which would then refuse the maps that it was not traced with.
    """
    if torch.compiler.is_exporting():
        return False
    return surely(input.shape[2] * input.shape[3] <= INT16_MAX // per_pixel)


def roi_pixels(op: str, input: Tensor, per_pixel: int, narrow: bool) -> None:
    """Checks that indices fit, 32 bits wide or, if ``narrow``, 16."""
    most = (INT16_MAX if narrow else INT32_MAX) // per_pixel
    pixels = input.shape[2] * input.shape[3]
    if surely(pixels > most):
        where = " where narrow" if narrow else ""
        fail(op, f"input of at most {most} pixels (height * width){where}", pixels)


def roi_sampling_ratio(op: str, sampling_ratio: int) -> None:
    """Checks the number of samples per bin and axis."""
    integer(op, "sampling_ratio", sampling_ratio)
    if sampling_ratio > ROI_MAX_GRID:
        fail(op, f"sampling_ratio of at most {ROI_MAX_GRID}", sampling_ratio)


def ps_channels(op: str, input: Tensor, pooled_height: int, pooled_width: int) -> None:
    """Checks that every bin of an output channel has a channel of its own."""
    bins, channels = pooled_height * pooled_width, input.shape[1]
    if channels % bins != 0:
        fail(op, f"input of channels divisible by the bins ({bins})", channels)


def roi_image_index(op: str, input: Tensor, boxes: Tensor, *, name: str = "boxes") -> Tensor:
    """Checks column 0 of ``boxes`` and returns it as int64, truncated toward zero.

    The only check that reads data (CPU and references). Boxes are rounded to the arithmetic of
    ``input`` first, float32 or float64, as the kernels do.
    """
    arithmetic = torch.float64 if input.dtype == torch.float64 else torch.float32
    index = boxes[:, 0].to(arithmetic).double()
    size = input.shape[0]
    bad = ~((index > -1) & (index.trunc() < size))  # NaN fails both comparisons
    if bool(bad.any()):
        row = int(bad.nonzero()[0, 0])
        fail(op, f"{name}[:, 0] in [0, {size})", f"{float(index[row]):g} in row {row}")
    return index.trunc().to(torch.int64)


# ---- operators


def roi_align(
    input: Tensor,
    boxes: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> None:
    """Checks the arguments of the dispatcher operators roi_align and roi_align_max."""
    op = "roi_align"
    roi_tensors(op, input, boxes)
    roi_sizes(op, spatial_scale, pooled_height, pooled_width)
    integer(op, "sampling_ratio", sampling_ratio)
    flag(op, "aligned", aligned)
    roi_sampling_ratio(op, sampling_ratio)


def prroi_pool(
    input: Tensor, boxes: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int
) -> None:
    """Checks the arguments of the dispatcher operator prroi_pool."""
    roi_tensors("prroi_pool", input, boxes)
    roi_sizes("prroi_pool", spatial_scale, pooled_height, pooled_width)


def roi_pool(
    input: Tensor,
    boxes: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    narrow: bool = False,
) -> None:
    """Checks the arguments of the dispatcher operators roi_pool and roi_pool_argmax."""
    op = "roi_pool"
    roi_tensors(op, input, boxes)
    roi_sizes(op, spatial_scale, pooled_height, pooled_width)
    roi_pixels(op, input, ROI_POOL_INDICES, narrow)


def context_aware_roi_pool(
    input: Tensor,
    boxes: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    narrow: bool = False,
) -> None:
    """Checks the arguments of context_aware_roi_pool and context_aware_roi_pool_argmax."""
    op = "context_aware_roi_pool"
    roi_tensors(op, input, boxes)
    roi_sizes(op, spatial_scale, pooled_height, pooled_width)
    roi_pixels(op, input, CONTEXT_AWARE_INDICES, narrow)


def ps_roi_align(
    input: Tensor,
    boxes: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
) -> None:
    """Checks the arguments of the dispatcher operator ps_roi_align."""
    op = "ps_roi_align"
    roi_tensors(op, input, boxes)
    roi_sizes(op, spatial_scale, pooled_height, pooled_width)
    roi_sampling_ratio(op, sampling_ratio)
    ps_channels(op, input, pooled_height, pooled_width)


def ps_roi_pool(
    input: Tensor, boxes: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int
) -> None:
    """Checks the arguments of the dispatcher operator ps_roi_pool."""
    op = "ps_roi_pool"
    roi_tensors(op, input, boxes)
    roi_sizes(op, spatial_scale, pooled_height, pooled_width)
    ps_channels(op, input, pooled_height, pooled_width)


def roi_level_rule(
    op: str,
    spatial_scales: Sequence[float],
    count: int,
    canonical_scale: float,
    canonical_level: int,
    *,
    by_size: bool = True,
) -> None:
    """Checks the scales of ``count`` levels, and what assigns boxes to them."""
    if not isinstance(spatial_scales, (list, tuple)):
        fail_type(op, "spatial_scales to be a list of numbers", spatial_scales)
    if len(spatial_scales) != count:
        fail(op, f"spatial_scales of {count} values", len(spatial_scales))
    for i, scale in enumerate(spatial_scales):
        positive(op, f"spatial_scales[{i}]", scale)
        if by_size and i > 0 and scale > spatial_scales[i - 1]:
            before = g(spatial_scales[i - 1])
            fail(op, f"spatial_scales[{i}] of at most spatial_scales[{i - 1}] ({before})", g(scale))
    positive(op, "canonical_scale", canonical_scale)
    integer(op, "canonical_level", canonical_level)
    if not -(2**31) <= canonical_level < 2**31:
        fail(op, "canonical_level from -2^31 to 2^31 - 1", canonical_level)


def roi_levels(
    boxes: Tensor, spatial_scales: Sequence[float], canonical_scale: float, canonical_level: int
) -> None:
    """Checks the arguments of the dispatcher operator multiscale_roi_align_levels."""
    op = "roi_levels"
    tensor(op, "boxes", boxes)
    roi_rows(op, boxes, "boxes", boxes)
    if not isinstance(spatial_scales, (list, tuple)):
        fail_type(op, "spatial_scales to be a list of numbers", spatial_scales)
    count = len(spatial_scales)
    if not 1 <= count <= ROI_MAX_LEVELS:
        fail(op, f"spatial_scales of 1 to {ROI_MAX_LEVELS} values", count)
    roi_level_rule(op, spatial_scales, count, canonical_scale, canonical_level)


def roi_features(op: str, features: Sequence[Tensor]) -> None:
    """Checks the maps of several levels."""
    if not isinstance(features, (list, tuple)):
        fail_type(op, "features to be a list of tensors", features)
    if not 1 <= len(features) <= ROI_MAX_LEVELS:
        fail(op, f"features of 1 to {ROI_MAX_LEVELS} levels", len(features))
    first = features[0]
    for i, feature in enumerate(features):
        name = f"features[{i}]"
        tensor(op, name, feature)
        if feature.dim() != 4:
            fail(op, f"{name} of shape (N, C, H, W)", shape(feature))
        float_dtype(op, name, feature)
        if i == 0:
            continue
        if sizes_differ(feature.shape[:2], first.shape[:2]):
            n, c = first.shape[:2]
            fail(op, f"{name} of shape ({n}, {c}, H, W) as features[0]", shape(feature))
        same_dtype(op, name, feature, "features[0]", first)
        same_device(op, name, feature, "features[0]", first)


def multiscale_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor,
    levels: Tensor | None,
    spatial_scales: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: int,
) -> None:
    """Checks the arguments of multiscale_roi_align and multiscale_roi_align_max."""
    op = "multiscale_roi_align"
    roi_features(op, features)
    tensor(op, "boxes", boxes)
    roi_rows(op, boxes, "features[0]", features[0])
    if levels is not None:
        tensor(op, "levels", levels)
        if sizes_differ(levels.shape, boxes.shape[:1]):
            fail(op, f"levels of shape ({boxes.shape[0]},)", shape(levels))
        integer_dtype(op, "levels", levels)
        same_device(op, "levels", levels, "boxes", boxes)
    roi_level_rule(
        op,
        spatial_scales,
        len(features),
        canonical_scale,
        canonical_level,
        by_size=levels is None,
    )
    roi_bins(op, pooled_height, pooled_width)
    integer(op, "sampling_ratio", sampling_ratio)
    flag(op, "aligned", aligned)
    roi_sampling_ratio(op, sampling_ratio)


def roi_given_levels(op: str, input: Tensor, boxes: Tensor, levels: Tensor, count: int) -> None:
    """Checks the values of ``levels``, and the image index of the rows before a bad one.

    Reads data (CPU and references).
    """
    bad = (levels < 0) | (levels >= count)
    if bool(bad.any()):
        row = int(bad.nonzero()[0, 0])
        roi_image_index(op, input, boxes[: row + 1])
        fail(op, f"levels in [0, {count})", f"{int(levels[row])} in row {row}")


def roi_align_mode(mode: object, *, op: str = "roi_align") -> None:
    """Checks ``mode`` of the public function."""
    choice(op, "mode", mode, "avg", "max")


def roi_align_rotated(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> None:
    """Checks the arguments of the dispatcher operator roi_align_rotated."""
    op = "roi_align_rotated"
    roi_tensors(op, input, rois, columns=6, name="rois")
    roi_sizes(op, spatial_scale, pooled_height, pooled_width)
    integer(op, "sampling_ratio", sampling_ratio)
    flag(op, "aligned", aligned)
    flag(op, "clockwise", clockwise)
    roi_sampling_ratio(op, sampling_ratio)


def deform_roi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Checks the arguments of the dispatcher operator deform_roi_pool, and of no offsets."""
    op = "deform_roi_pool"
    if offset is not None:
        tensor(op, "offset", offset)
        if offset.dim() == 1 and offset.shape[0] == 0:  # mmcv's word for None
            offset = None
    roi_tensors(op, input, rois, name="rois")
    if offset is not None:
        float_dtype(op, "offset", offset)
        same_device(op, "offset", offset, "input", input)
    roi_sizes(op, spatial_scale, pooled_height, pooled_width)
    roi_sampling_ratio(op, sampling_ratio)
    number(op, "gamma", gamma)
    if not finite(gamma):
        fail(op, "gamma to be finite", g(gamma))
    wanted = (rois.shape[0], 2, pooled_height, pooled_width)
    if offset is not None and sizes_differ(offset.shape, wanted):
        fail(op, f"offset of shape {sizes(wanted)}", shape(offset))
