"""Multi-level RoI Align: RoI Align over a feature pyramid, each box from the level of its size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from cvkernels import _checks, _load, _roi

__all__ = ["LevelMapper", "MultiScaleRoIAlign", "multiscale_roi_align", "roi_levels"]

_load.load()
_op: Callable[..., Tensor] = torch.ops.cvkernels.multiscale_roi_align.default
_op_max: Callable[..., tuple[Tensor, Tensor]] = torch.ops.cvkernels.multiscale_roi_align_max.default
_op_backward: Callable[..., list[Tensor]] = (
    torch.ops.cvkernels.multiscale_roi_align_backward.default
)
_op_max_backward: Callable[..., list[Tensor]] = (
    torch.ops.cvkernels.multiscale_roi_align_max_backward.default
)
_op_levels: Callable[..., Tensor] = torch.ops.cvkernels.multiscale_roi_align_levels.default


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
    """Pools each box from the level of a feature pyramid that fits its size, in one launch.

    The levels and the results are those of :class:`torchvision.ops.MultiScaleRoIAlign`: a box of
    ``canonical_scale`` squared pixels is pooled from level ``canonical_level``, one of half the
    side from the level before.

    Args:
        features: maps of 1 to 8 levels, the finest first, shape [N, C, Hi, Wi], float16, bfloat16,
            float32 or float64, all alike; contiguous and channels_last are read in place, other
            strides are copied. The first level of which not both are true decides for all.
        boxes: shape [K, 5], rows (image index, x1, y1, x2, y2) in input-image pixels, any of the
            four float dtypes; or a list with the [L, 4] boxes of each image.
        output_size: bins (height, width); an integer stands for both.
        spatial_scales: pixels of each level per pixel of the box coordinates, descending; 1/4 for a
            stride of 4.
        sampling_ratio: samples per bin and axis, at most 32768; 0 or less: ceil(box / bins).
        aligned: shift coordinates by half a pixel (exact alignment) and do not stretch boxes
            narrower than one pixel.
        canonical_scale: side of a box, in pixels of the box coordinates, that belongs to
            ``canonical_level``.
        canonical_level: level counted from the image: 4 is the map of stride 16.
        levels: shape [K], integer dtype: the level of each box, an index into ``features``, in
            place of the rule.
        mode: ``"avg"`` for the mean of a bin's samples, ``"max"`` for their maximum.

    Returns:
        Tensor of shape [K, C, height, width], dtype and memory format of ``features``. A box whose
        area is NaN, or negative because one of its sides is, belongs to no level and gives zeros;
        so does one of a level without a map, where ``spatial_scales`` skip a power of two (a single
        map takes every box). The rest is as in :func:`cvkernels.roi_align.roi_align`.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range, or (on CPU)
            an image index outside [0, N) or a level in ``levels`` outside [0, number of levels). On
            CUDA such a box gives zeros.
        TypeError: an argument of the wrong type.

    Gradient:
        With respect to every map of ``features``; ``boxes`` gets none. Twice differentiable in mode
        "avg". Reverse mode only.

    Determinism:
        Forward and backward are bitwise repeatable on every device, for any number of threads. The
        level of a box is the same on every device: that of torchvision on the CPU.

    Source:
        Lin et al., Feature Pyramid Networks, 2017 (arXiv 1612.03144); He et al., Mask R-CNN, 2017.

    Example:
        >>> import torch
        >>> from cvkernels.multiscale_roi_align import multiscale_roi_align
        >>> fine, coarse = torch.full((1, 1, 32, 32), 4.0), torch.full((1, 1, 16, 16), 8.0)
        >>> boxes = torch.tensor([[0.0, 10, 10, 60, 60], [0, 0, 0, 128, 120]])
        >>> multiscale_roi_align([fine, coarse], boxes, 1, [1 / 4, 1 / 8], 2).flatten()
        tensor([4., 8.])
    """
    if not isinstance(boxes, Tensor):
        _checks.roi_features("multiscale_roi_align", features)
        boxes = _checks.roi_boxes(
            "multiscale_roi_align", features[0], boxes, input_name="features[0]"
        )
    height, width = _roi.output_size("multiscale_roi_align", output_size)
    if mode != "avg":
        _checks.roi_align_mode(mode, op="multiscale_roi_align")
    rule = (canonical_scale, canonical_level)
    arguments = (levels, spatial_scales, height, width, sampling_ratio, aligned, *rule)
    try:
        if mode == "avg":
            return _op(features, boxes, *arguments)
        return _op_max(features, boxes, *arguments)[0]
    except Exception:
        # The dispatcher refuses some arguments before our checks see them; say those in our words.
        _checks.multiscale_roi_align(features, boxes, *arguments)
        raise


def roi_levels(
    boxes: Tensor | Sequence[Tensor],
    spatial_scales: Sequence[float],
    canonical_scale: float = 224,
    canonical_level: int = 4,
) -> Tensor:
    """The level of each box in a feature pyramid: what :func:`multiscale_roi_align` pools it from.

    Args:
        boxes: shape [K, 5], rows (image index, x1, y1, x2, y2) in input-image pixels, any of the
            four float dtypes; or a list with the [L, 4] boxes of each image.
        spatial_scales: pixels of each of 1 to 8 levels per pixel of the box coordinates,
            descending.
        canonical_scale: side of a box that belongs to ``canonical_level``.
        canonical_level: level counted from the image: 4 is the map of stride 16.

    Returns:
        Tensor of shape [K], int64: an index into ``spatial_scales``, or -1 for a box whose area is
        NaN or negative and for a level that ``spatial_scales`` skip. Computed in float64 for
        float64 boxes, else in float32.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range.
        TypeError: an argument of the wrong type.

    Gradient:
        None.

    Determinism:
        The same on every device: that of torchvision's LevelMapper on the CPU.

    Source:
        Lin et al., Feature Pyramid Networks, 2017 (arXiv 1612.03144), eq. 1.

    Example:
        >>> import torch
        >>> from cvkernels.multiscale_roi_align import roi_levels
        >>> sides = torch.tensor([10.0, 111.0, 112.0, 224.0, 1000.0])
        >>> boxes = sides[:, None] * torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0])
        >>> roi_levels(boxes, [1 / 4, 1 / 8, 1 / 16, 1 / 32])
        tensor([0, 0, 1, 2, 3])
    """
    if not isinstance(boxes, Tensor):
        boxes = _boxes_alone(boxes)
    try:
        return _op_levels(boxes, spatial_scales, canonical_scale, canonical_level)
    except Exception:
        _checks.roi_levels(boxes, spatial_scales, canonical_scale, canonical_level)
        raise


def _boxes_alone(boxes: Sequence[Tensor]) -> Tensor:
    """A list of boxes as rows, without a map to go by."""
    some = boxes[0] if isinstance(boxes, (list, tuple)) and boxes else torch.zeros(0)
    return _checks.roi_boxes("roi_levels", some, boxes, input_name="boxes[0]")


@dataclass(frozen=True)
class LevelMapper:
    """The rule of :func:`roi_levels` by torchvision's attributes: a level is floored and clamped.

    Args:
        k_min: level of the first map, counted from the image.
        k_max: level of the last.
        s0: the canonical scale.
        lvl0: the canonical level.
    """

    k_min: int
    k_max: int
    s0: float = 224
    lvl0: int = 4
    eps = 1e-6

    def __call__(self, boxlists: Sequence[Tensor]) -> Tensor:
        """The level of each box, an index into the maps, int64."""
        scales = [2.0**-k for k in range(self.k_min, self.k_max + 1)]
        return roi_levels(boxlists, scales, self.s0, self.lvl0)


class MultiScaleRoIAlign(nn.Module):
    """Drop-in for :class:`torchvision.ops.MultiScaleRoIAlign`: one launch, whatever the levels.

    The scales are inferred at the first call, from the heights of the maps and of the tallest
    image, as powers of two.

    Args:
        featmap_names: names of the maps to pool from; others in the input are ignored.
        output_size: bins (height, width); an integer stands for both.
        sampling_ratio: samples per bin and axis; 0 or less: ceil(box / bins).
        canonical_scale: side of a box that belongs to ``canonical_level``.
        canonical_level: level counted from the image: 4 is the map of stride 16.

    Attributes:
        scales: scale of each level, or None before the first call.
        map_levels: the :class:`LevelMapper`, or None before the first call. Another callable may be
            put in its place: called with ``boxes``, it gives the level of each.

    Shape:
        x: mapping of names to [N, C, Hi, Wi], boxes: N tensors [L, 4], image_shapes: N pairs
        (height, width) -> [K, C, height, width].
    """

    scales: list[float] | None
    map_levels: Callable[[Sequence[Tensor]], Tensor] | None

    def __init__(
        self,
        featmap_names: list[str],
        output_size: int | tuple[int, int] | list[int],
        sampling_ratio: int,
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        self.featmap_names = featmap_names
        self.sampling_ratio = sampling_ratio
        if isinstance(output_size, int):
            output_size = (output_size, output_size)
        self.output_size = tuple(output_size)
        self.scales = None
        self.map_levels = None
        self.canonical_scale = canonical_scale
        self.canonical_level = canonical_level

    def forward(
        self,
        x: Mapping[str, Tensor],
        boxes: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> Tensor:
        features = [level for name, level in x.items() if name in self.featmap_names]
        # Autocast may leave levels in different dtypes; the first one's is the result's.
        features = [level.to(features[0].dtype) for level in features]
        if self.scales is None or self.map_levels is None:
            exponents = _infer_exponents(features, image_shapes)
            self.scales = [2.0**e for e in exponents]
            self.map_levels = LevelMapper(
                -exponents[0], -exponents[-1], self.canonical_scale, self.canonical_level
            )
        levels = None
        rule = self.map_levels
        if isinstance(rule, LevelMapper):
            canonical = (rule.s0, rule.lvl0)
        else:
            canonical = (self.canonical_scale, self.canonical_level)
            levels = rule(boxes) if len(features) > 1 else None
        return multiscale_roi_align(
            features,
            boxes,
            self.output_size,  # type: ignore[arg-type]
            self.scales,
            self.sampling_ratio,
            False,
            *canonical,
            levels=levels,
        )

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}(featmap_names={self.featmap_names}, "
            f"output_size={self.output_size}, sampling_ratio={self.sampling_ratio})"
        )


def _infer_exponents(
    features: Sequence[Tensor], image_shapes: Sequence[tuple[int, int]]
) -> list[int]:
    """log2 of the scale of each level, rounded to a whole number."""
    _checks.roi_features("MultiScaleRoIAlign", features)
    if not image_shapes:
        raise ValueError("MultiScaleRoIAlign: expected image_shapes of 1 image or more, got none")
    image = max(shape[0] for shape in image_shapes)
    exponents = []
    for i, level in enumerate(features):
        size, whole, exponent = level.shape[2], image, 0
        if size < 1 or whole < 1:
            raise ValueError(
                f"MultiScaleRoIAlign: expected heights of at least 1 to infer the scale of "
                f"features[{i}], got {size} for an image of {whole}"
            )
        # In whole numbers, which a compiler may leave unknown: size / whole against sqrt(2).
        while 2 * size * size < whole * whole:
            size, exponent = 2 * size, exponent - 1
        while size * size > 2 * whole * whole:
            whole, exponent = 2 * whole, exponent + 1
        exponents.append(exponent)
    return exponents


# ---- fake kernels


def _like(features: Sequence[Tensor], size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An empty result that lies as the first map whose strides can tell a memory format."""
    for level in features:
        if level.shape[1] > 1 and level.shape[2] * level.shape[3] > 1:
            return _roi.like(level, size, dtype)
    return features[0].new_empty(size, dtype=dtype)


@torch.library.register_fake("cvkernels::multiscale_roi_align")
def _(
    features: list[Tensor], boxes: Tensor, levels: Tensor | None, scales: list[float], *rest: Any
) -> Tensor:
    _checks.multiscale_roi_align(features, boxes, levels, scales, *rest)
    size = (boxes.shape[0], features[0].shape[1], *rest[:2])
    return _like(features, size, features[0].dtype)


@torch.library.register_fake("cvkernels::multiscale_roi_align_max")
def _(
    features: list[Tensor], boxes: Tensor, levels: Tensor | None, scales: list[float], *rest: Any
) -> tuple[Tensor, Tensor]:
    _checks.multiscale_roi_align(features, boxes, levels, scales, *rest)
    size = (boxes.shape[0], features[0].shape[1], *rest[:2])
    return _like(features, size, features[0].dtype), _like(features, size, torch.int32)


@torch.library.register_fake("cvkernels::multiscale_roi_align_backward")
def _(
    grad: Tensor,
    boxes: Tensor,
    levels: Tensor | None,
    scales: list[float],
    pooled_height: int,
    pooled_width: int,
    batch_size: int,
    channels: int,
    heights: list[int],
    widths: list[int],
    *rest: Any,
) -> list[Tensor]:
    sizes = zip(heights, widths, strict=True)
    return [_roi.like(grad, (batch_size, channels, h, w)) for h, w in sizes]


@torch.library.register_fake("cvkernels::multiscale_roi_align_max_backward")
def _(
    grad: Tensor,
    argmax: Tensor,
    boxes: Tensor,
    levels: Tensor | None,
    scales: list[float],
    pooled_height: int,
    pooled_width: int,
    batch_size: int,
    channels: int,
    heights: list[int],
    widths: list[int],
    *rest: Any,
) -> list[Tensor]:
    sizes = zip(heights, widths, strict=True)
    return [_roi.like(grad, (batch_size, channels, h, w)) for h, w in sizes]


@torch.library.register_fake("cvkernels::multiscale_roi_align_levels")
def _(boxes: Tensor, scales: list[float], canonical_scale: float, canonical_level: int) -> Tensor:
    _checks.roi_levels(boxes, scales, canonical_scale, canonical_level)
    return boxes.new_empty(boxes.shape[:1], dtype=torch.int64)


# ---- autograd


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor | tuple[Tensor, Tensor]) -> None:
    features, boxes, levels, *arguments = inputs
    ctx.arguments = arguments
    ctx.shapes = [level.shape for level in features]
    ctx.save_for_backward(boxes, levels, None if isinstance(output, Tensor) else output[1])


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    boxes, levels, argmax = ctx.saved_tensors
    scales, pooled_height, pooled_width, *rest = ctx.arguments
    n, c = ctx.shapes[0][:2]
    heights, widths = [shape[2] for shape in ctx.shapes], [shape[3] for shape in ctx.shapes]
    sizes = (pooled_height, pooled_width, n, c, heights, widths)
    if argmax is None:
        grads = _op_backward(grad, boxes, levels, scales, *sizes, *rest)
    else:
        grads = _op_max_backward(grad, argmax, boxes, levels, scales, *sizes, *rest)
    return grads, *([None] * 9)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    _, boxes, levels, scales, pooled_height, pooled_width, _, _, _, _, *rest = inputs
    ctx.arguments = (scales, pooled_height, pooled_width, *rest)
    ctx.save_for_backward(boxes, levels)


def _double_backward(ctx: Any, grad_grads: list[Tensor]) -> tuple[Tensor | None, ...]:
    # The mean is linear in its input, so the derivative of the backward pass is the forward pass.
    boxes, levels = ctx.saved_tensors
    return (_op(grad_grads, boxes, levels, *ctx.arguments), *([None] * 13))


def _no_double_backward(ctx: Any, *_: Any) -> NoReturn:
    raise NotImplementedError(
        'multiscale_roi_align: expected at most one differentiation in mode "max", got a second; '
        'mode "avg" is twice differentiable'
    )


_NAME = "cvkernels::multiscale_roi_align"
torch.library.register_autograd(_NAME, _backward, setup_context=_setup)
torch.library.register_autograd(f"{_NAME}_max", _backward, setup_context=_setup)
torch.library.register_autograd(
    f"{_NAME}_backward", _double_backward, setup_context=_setup_backward
)
torch.library.register_autograd(
    f"{_NAME}_max_backward", _no_double_backward, setup_context=lambda *_, **__: None
)


# ---- vmap

torch.library.register_vmap(_NAME, _roi.vmap_forward(_op, per_box=1))
torch.library.register_vmap(f"{_NAME}_max", _roi.vmap_forward(_op_max, per_box=1))
torch.library.register_vmap(f"{_NAME}_backward", _roi.vmap_backward(_op_backward, 1, after=1))
torch.library.register_vmap(
    f"{_NAME}_max_backward", _roi.vmap_backward(_op_max_backward, 2, after=1)
)


@torch.library.register_vmap(f"{_NAME}_levels")
def _(info: Any, in_dims: tuple[Any, ...], boxes: Tensor, *arguments: Any) -> tuple[Tensor, int]:
    rows, count = _roi.fold_boxes(info, in_dims[0], boxes, None)
    return _op_levels(rows, *arguments).unflatten(0, (info.batch_size, count)), 0
