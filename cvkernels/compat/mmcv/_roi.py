"""mmcv's RoI functions and modules (``mmcv.ops`` 2.2.0).

mmcv's functions take their arguments by position only; these take them by name too.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cvkernels import _checks
from cvkernels import prroi_pool as _prroi_pool
from cvkernels import roi_align as _roi_align
from cvkernels import roi_align_rotated as _rotated
from cvkernels import roi_pool as _roi_pool
from cvkernels.deform_roi_pool import (
    DeformRoIPool,
    DeformRoIPoolPack,
    ModulatedDeformRoIPoolPack,
    deform_roi_pool,
)

__all__ = [
    "DeformRoIPool",
    "DeformRoIPoolPack",
    "ModulatedDeformRoIPoolPack",
    "PrRoIPool",
    "RoIAlign",
    "RoIAlignRotated",
    "RoIPool",
    "deform_roi_pool",
    "prroi_pool",
    "roi_align",
    "roi_align_rotated",
    "roi_pool",
]

Size = int | tuple[int, int]
_Init = TypeVar("_Init", bound=Callable[..., None])


# -------------------------------------------------------------------------------------------------
# Functions
# -------------------------------------------------------------------------------------------------


def roi_align(
    input: Tensor,
    rois: Tensor,
    output_size: Size,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    pool_mode: str = "avg",
    aligned: bool = True,
) -> Tensor:
    """``mmcv.ops.roi_align``: :func:`cvkernels.roi_align.roi_align` with mmcv's defaults.

    Args:
        input: [N, C, H, W].
        rois: [K, 5], rows (image index, x1, y1, x2, y2).
        output_size: bins (height, width), or one integer for both.
        spatial_scale: feature-map pixels per pixel of the boxes.
        sampling_ratio: samples per bin and axis; 0: ceil(box / bins).
        pool_mode: "avg" or "max".
        aligned: shift by half a pixel and stretch no box.

    Returns:
        [K, C, height, width].

    Example:
        >>> import torch
        >>> from cvkernels.compat.mmcv import roi_align
        >>> input = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> roi_align(input, torch.tensor([[0.0, 0, 0, 4, 4]]), 2)
        tensor([[[[ 2.5000,  4.5000],
                  [10.5000, 12.5000]]]])
    """
    return _roi_align.roi_align(
        input, rois, output_size, spatial_scale, sampling_ratio, aligned, mode=pool_mode
    )


def roi_align_rotated(
    input: Tensor,
    rois: Tensor,
    output_size: Size,
    spatial_scale: float,
    sampling_ratio: int = 0,
    aligned: bool = True,
    clockwise: bool = False,
) -> Tensor:
    """``mmcv.ops.roi_align_rotated``: RoI Align of rotated boxes.

    Args:
        input: [N, C, H, W].
        rois: [K, 6], rows (image index, centre x, centre y, width, height, angle in radians).
        output_size: bins (height, width), or one integer for both.
        spatial_scale: feature-map pixels per pixel of the boxes.
        sampling_ratio: samples per bin and axis; 0: ceil(box / bins).
        aligned: shift by half a pixel and stretch no box.
        clockwise: which way a positive angle turns where y points down.

    Returns:
        [K, C, height, width].

    Example:
        >>> import torch
        >>> from cvkernels.compat.mmcv import roi_align_rotated
        >>> input = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> roi_align_rotated(input, torch.tensor([[0.0, 2, 2, 4, 4, 0]]), 2, 1.0)
        tensor([[[[ 2.5000,  4.5000],
                  [10.5000, 12.5000]]]])
    """
    return _rotated.roi_align_rotated(
        input, rois, output_size, spatial_scale, sampling_ratio, aligned, clockwise
    )


def prroi_pool(
    features: Tensor, rois: Tensor, output_size: Size, spatial_scale: float = 1.0
) -> Tensor:
    """``mmcv.ops.prroi_pool``: Precise RoI Pooling, differentiable in the boxes.

    Args:
        features: [N, C, H, W].
        rois: [K, 5], rows (image index, x1, y1, x2, y2).
        output_size: bins (height, width), or one integer for both.
        spatial_scale: feature-map pixels per pixel of the boxes.

    Returns:
        [K, C, height, width].

    Example:
        >>> import torch
        >>> from cvkernels.compat.mmcv import prroi_pool
        >>> input = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> prroi_pool(input, torch.tensor([[0.0, 0, 0, 3, 3]]), (1, 1))
        tensor([[[[7.5000]]]])
    """
    return _prroi_pool.prroi_pool(features, rois, output_size, spatial_scale)


def roi_pool(input: Tensor, rois: Tensor, output_size: Size, spatial_scale: float = 1.0) -> Tensor:
    """``mmcv.ops.roi_pool``: the maximum of each bin's pixels.

    It is not torchvision's: mmcv does not round the corners of a box, which reaches from
    x1 * spatial_scale to (x2 + 1) * spatial_scale; a bin has the pixels from floor(its left end) to
    ceil(its right end). Each bin is pooled as a box of its own, of whole pixels.

    Args:
        input: [N, C, H, W].
        rois: [K, 5], rows (image index, x1, y1, x2, y2).
        output_size: bins (height, width), or one integer for both.
        spatial_scale: feature-map pixels per pixel of the boxes.

    Returns:
        [K, C, height, width]. A bin outside the map is 0.

    Example:
        >>> import torch
        >>> from cvkernels.compat.mmcv import roi_pool
        >>> input = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> roi_pool(input, torch.tensor([[0.0, 0, 0, 2, 2]]), 2)
        tensor([[[[ 5.,  6.],
                  [ 9., 10.]]]])
    """
    op = "roi_pool"
    height, width = _checks.pair(op, "output_size", output_size)
    _checks.roi_pool(input, rois, spatial_scale, height, width)
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    with torch.no_grad():
        boxes = rois.to(wide)
        bins = _bins_as_boxes(boxes, height, width, spatial_scale, input.shape[2:])
    pooled = _roi_pool.roi_pool(input, bins, 1)
    pooled = pooled.reshape(len(rois), height, width, input.shape[1]).permute(0, 3, 1, 2)
    return pooled.contiguous(memory_format=_format_of(input))


def _bins_as_boxes(
    rois: Tensor, height: int, width: int, spatial_scale: float, extent: torch.Size
) -> Tensor:
    """[K * height * width, 5], the first and last pixels of each bin; NaN where it has none."""

    def axis(low: Tensor, high: Tensor, count: int, size: int) -> tuple[Tensor, Tensor]:
        start = low * spatial_scale
        length = (high + 1) * spatial_scale - start
        step = (length / count)[:, None]
        index = torch.arange(count, device=rois.device, dtype=rois.dtype)
        first = (index * step + start[:, None]).floor().clamp(0, size)
        last = ((index + 1) * step + start[:, None]).ceil().clamp(0, size)
        empty = ~((last > first) & (length > 0)[:, None])  # NaN too
        return first.masked_fill(empty, torch.nan), last - 1

    y1, y2 = axis(rois[:, 2], rois[:, 4], height, extent[0])
    x1, x2 = axis(rois[:, 1], rois[:, 3], width, extent[1])
    columns = (rois[:, 0, None, None], x1[:, None], y1[..., None], x2[:, None], y2[..., None])
    return torch.stack(torch.broadcast_tensors(*columns), -1).flatten(0, 2)


def _format_of(input: Tensor) -> torch.memory_format:
    last = input.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not input.is_contiguous() else torch.contiguous_format


# -------------------------------------------------------------------------------------------------
# Modules
# -------------------------------------------------------------------------------------------------


def _renamed(init: _Init) -> _Init:
    """Takes mmcv's deprecated names of two arguments, ``out_size`` and ``sample_num``."""
    names = {"out_size": "output_size", "sample_num": "sampling_ratio"}

    @functools.wraps(init)
    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        module = type(self).__name__
        for old, new in names.items():
            if old not in kwargs:
                continue
            if new in kwargs:
                raise TypeError(f"{module}: expected {new} or its old name {old}, got both")
            text = f'"{old}" is deprecated in `{module}`, please use "{new}" instead'
            warnings.warn(text, DeprecationWarning, stacklevel=2)
            kwargs[new] = kwargs.pop(old)
        init(self, *args, **kwargs)

    return wrapper  # type: ignore[return-value]


class _Module(nn.Module):
    """A module whose representation lists its constructor's arguments, as mmcv's do."""

    def extra_repr(self) -> str:
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        return ", ".join(f"{name}={getattr(self, name)}" for name in names if hasattr(self, name))


class RoIAlign(_Module):
    """``mmcv.ops.RoIAlign``.

    Args:
        output_size: bins (height, width), or one integer for both; deprecated name ``out_size``.
        spatial_scale: feature-map pixels per pixel of the boxes.
        sampling_ratio: samples per bin and axis; 0: ceil(box / bins); deprecated name
            ``sample_num``.
        pool_mode: "avg" or "max".
        aligned: shift by half a pixel and stretch no box.
        use_torchvision: accepted; as in mmcv the mode is "avg" then.

    Shape:
        input [N, C, H, W], rois [K, 5] -> [K, C, height, width].
    """

    @_renamed
    def __init__(
        self,
        output_size: Size,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        pool_mode: str = "avg",
        aligned: bool = True,
        use_torchvision: bool = False,
    ) -> None:
        super().__init__()
        self.output_size = _checks.pair("RoIAlign", "output_size", output_size)
        self.spatial_scale = float(spatial_scale)
        self.sampling_ratio = int(sampling_ratio)
        self.pool_mode = pool_mode
        self.aligned = aligned
        self.use_torchvision = use_torchvision

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        return roi_align(
            input,
            rois,
            self.output_size,
            self.spatial_scale,
            self.sampling_ratio,
            "avg" if self.use_torchvision else self.pool_mode,
            self.aligned,
        )


class RoIAlignRotated(_Module):
    """``mmcv.ops.RoIAlignRotated``.

    Args:
        output_size: bins (height, width), or one integer for both; deprecated name ``out_size``.
        spatial_scale: feature-map pixels per pixel of the boxes.
        sampling_ratio: samples per bin and axis; 0: ceil(box / bins); deprecated name
            ``sample_num``.
        aligned: shift by half a pixel and stretch no box.
        clockwise: which way a positive angle turns where y points down.

    Shape:
        input [N, C, H, W], rois [K, 6] -> [K, C, height, width].
    """

    @_renamed
    def __init__(
        self,
        output_size: Size,
        spatial_scale: float,
        sampling_ratio: int = 0,
        aligned: bool = True,
        clockwise: bool = False,
    ) -> None:
        super().__init__()
        self.output_size = _checks.pair("RoIAlignRotated", "output_size", output_size)
        self.spatial_scale = float(spatial_scale)
        self.sampling_ratio = int(sampling_ratio)
        self.aligned = aligned
        self.clockwise = clockwise

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        return roi_align_rotated(
            input,
            rois,
            self.output_size,
            self.spatial_scale,
            self.sampling_ratio,
            self.aligned,
            self.clockwise,
        )


class RoIPool(_Module):
    """``mmcv.ops.RoIPool``: the module of :func:`roi_pool`.

    Args:
        output_size: bins (height, width), or one integer for both.
        spatial_scale: feature-map pixels per pixel of the boxes.

    Shape:
        input [N, C, H, W], rois [K, 5] -> [K, C, height, width].
    """

    def __init__(self, output_size: Size, spatial_scale: float = 1.0) -> None:
        super().__init__()
        self.output_size = _checks.pair("RoIPool", "output_size", output_size)
        self.spatial_scale = float(spatial_scale)

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        return roi_pool(input, rois, self.output_size, self.spatial_scale)


class PrRoIPool(_Module):
    """``mmcv.ops.PrRoIPool``: the module of :func:`prroi_pool`.

    Args:
        output_size: bins (height, width), or one integer for both.
        spatial_scale: feature-map pixels per pixel of the boxes.

    Shape:
        features [N, C, H, W], rois [K, 5] -> [K, C, height, width].
    """

    def __init__(self, output_size: Size, spatial_scale: float = 1.0) -> None:
        super().__init__()
        self.output_size = _checks.pair("PrRoIPool", "output_size", output_size)
        self.spatial_scale = float(spatial_scale)

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        return prroi_pool(features, rois, self.output_size, self.spatial_scale)
