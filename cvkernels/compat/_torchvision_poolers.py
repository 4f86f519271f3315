"""The replacement of torchvision's multi-level RoI Align. Needs torchvision, so imported late."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import List, Optional, Tuple  # noqa: UP035  (TorchScript reads the annotations)

import torch
from torch import Tensor
from torchvision import _is_tracing
from torchvision.ops import poolers
from torchvision.ops.poolers import LevelMapper

from cvkernels import _checks
from cvkernels._checks.roi import ROI_MAX_LEVELS
from cvkernels.compat import torchvision as _patch
from cvkernels.multiscale_roi_align import multiscale_roi_align

original = poolers._multiscale_roi_align


# TorchScript compiles the first branch and does not look at the second.
def replacement(
    x_filtered: List[Tensor],  # noqa: UP006
    boxes: List[Tensor],  # noqa: UP006
    output_size: Tuple[int, int],  # noqa: UP006
    sampling_ratio: int,
    scales: Optional[List[float]],  # noqa: UP006, UP045
    mapper: Optional[LevelMapper],  # noqa: UP045
) -> Tensor:
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        result: Tensor = original(x_filtered, boxes, output_size, sampling_ratio, scales, mapper)
        return result
    else:  # noqa: RET505
        return _eager(x_filtered, boxes, output_size, sampling_ratio, scales, mapper)


def _eager(
    features: list[Tensor],
    boxes: list[Tensor],
    output_size: tuple[int, int],
    sampling_ratio: int,
    scales: list[float] | None,
    mapper: LevelMapper | None,
) -> Tensor:
    arguments = (features, boxes, output_size, sampling_ratio, scales, mapper)
    if scales is None or type(mapper) is not LevelMapper or not _accepted(features, boxes, scales):
        result: Tensor = original(*arguments)
        return result
    if torch.compiler.is_compiling():
        return _pool(features, boxes, output_size, sampling_ratio, scales, mapper)
    if _patch._state.counting:
        _patch._record(_patch.MULTISCALE, arguments)
    try:
        return _pool(features, boxes, output_size, sampling_ratio, scales, mapper)
    except ValueError as error:
        raise RuntimeError(str(error)) from error


def _accepted(features: list[Tensor], boxes: list[Tensor], scales: list[float]) -> bool:
    """Whether this is a pyramid and boxes that one call of ours takes."""
    first = features[0] if features else None
    return (
        _patch._state.active  # A reference may outlive the patch.
        and not _is_tracing()
        and first is not None
        and first.device.type in _patch._state.devices
        and first.is_floating_point()
        # One map has one launch as it is, and its boxes no levels.
        and 2 <= len(features) == len(scales) <= ROI_MAX_LEVELS
        and all(
            level.dim() == 4
            and level.dtype is first.dtype
            and level.device == first.device
            and level.shape[:2] == first.shape[:2]
            for level in features
        )
        and len(boxes) > 0
        and all(
            rows.dim() == 2
            and rows.shape[1] == 4
            and rows.is_floating_point()
            and rows.dtype is boxes[0].dtype
            and rows.device == first.device
            for rows in boxes
        )
    )


def _pool(
    features: list[Tensor],
    boxes: list[Tensor],
    output_size: tuple[int, int],
    sampling_ratio: int,
    scales: list[float],
    mapper: LevelMapper,
) -> Tensor:
    arguments = (output_size, scales, sampling_ratio)
    if _is_our_rule(features[0], boxes[0], scales, mapper):
        rule = {"canonical_scale": mapper.s0, "canonical_level": mapper.lvl0}
        return multiscale_roi_align(features, boxes, *arguments, **rule).contiguous()
    rows = _checks.roi_boxes("multiscale_roi_align", features[0], boxes)
    levels = mapper(boxes)
    # A level without a map gives zeros, as a box without coordinates does.
    rows[:, 1:].masked_fill_(((levels < 0) | (levels >= len(features)))[:, None], math.nan)
    levels = levels.clamp(0, len(features) - 1)
    return multiscale_roi_align(features, rows, *arguments, levels=levels).contiguous()


def _is_our_rule(feature: Tensor, boxes: Tensor, scales: list[float], mapper: LevelMapper) -> bool:
    """Whether the levels that the kernel finds by itself are the mapper's."""
    double = torch.float64
    return (
        boxes.dtype is (double if feature.dtype is double else torch.float32)
        and mapper.eps == 1e-6
        and mapper.s0 > 0
        and isinstance(mapper.lvl0, int)
        and all(a >= b > 0 for a, b in pairwise(scales))
        and mapper.k_min == int(-math.log2(scales[0]))
        and mapper.k_max == int(-math.log2(scales[-1]))
    )
