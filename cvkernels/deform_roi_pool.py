"""Deformable RoI pooling: RoI Align whose bins are shifted by learned offsets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from cvkernels import _checks, _load, _roi

__all__ = [
    "DeformRoIPool",
    "DeformRoIPoolPack",
    "ModulatedDeformRoIPoolPack",
    "deform_roi_pool",
]

_load.load()
_op: Callable[..., Tensor] = torch.ops.cvkernels.deform_roi_pool.default
_op_backward: Callable[..., Tensor] = torch.ops.cvkernels.deform_roi_pool_backward.default
_op_offset_backward: Callable[..., Tensor] = (
    torch.ops.cvkernels.deform_roi_pool_offset_backward.default
)
_op_plain: Callable[..., Tensor] = torch.ops.cvkernels.roi_align.default


def deform_roi_pool(
    input: Tensor,
    rois: Tensor | Sequence[Tensor],
    offset: Tensor | None,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
) -> Tensor:
    """Pools the features of each box into a grid whose bins are shifted one by one.

    The arguments and the results are those of mmcv.ops.deform_roi_pool, on CPU and CUDA. Without
    offsets the result is that of :func:`cvkernels.roi_align.roi_align` with ``aligned=True``.

    Args:
        input: feature map, shape [N, C, H, W], float16, bfloat16, float32 or float64; contiguous
            and channels_last are read in place, other strides are copied.
        rois: shape [K, 5], rows (image index, x1, y1, x2, y2) in input-image pixels, any of the
            four float dtypes; or a list with the [L, 4] boxes of each image.
        offset: shape [K, 2, height, width], any of the four float dtypes, how far each bin is
            shifted: plane 0 along x in units of gamma times the box's width, plane 1 along y in
            units of gamma times its height. None, or an empty vector as in mmcv, shifts nothing.
        output_size: bins (height, width); an integer stands for both.
        spatial_scale: feature-map pixels per pixel of the box coordinates; 1/16 for a stride of 16.
        sampling_ratio: samples per bin and axis, at most 32768; 0 or less: ceil(box / bins).
        gamma: factor on the offsets, a finite number.

    Returns:
        Tensor of shape [K, C, height, width], dtype and memory format of ``input``. A sample more
        than one pixel outside the map counts as 0; a bin with NaN coordinates is 0.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range, or (on
            CPU) a row of ``rois`` with an image index outside [0, N). On CUDA such a row gives
            zeros.
        TypeError: an argument of the wrong type.

    Gradient:
        With respect to ``input`` and ``offset``; ``rois`` gets none. That of an offset is the
        derivative of the result as computed: to the right at a pixel's centre, and 0 in a
        coordinate that is clamped, up to a pixel outside the map and beyond its last pixel's
        centre, where mmcv's differs. Twice differentiable without offsets only. Reverse mode only.

    Determinism:
        Forward and backward are bitwise repeatable on every device, for any number of threads.

    Source:
        Dai et al., Deformable Convolutional Networks, 2017 (arXiv 1703.06211);
        mmcv.ops.deform_roi_pool 2.2.0.

    Example:
        >>> import torch
        >>> from cvkernels.deform_roi_pool import deform_roi_pool
        >>> input = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> rois = torch.tensor([[0.0, 0.0, 0.0, 2.0, 2.0]])
        >>> offset = torch.tensor([5.0, 10.0]).reshape(1, 2, 1, 1)
        >>> deform_roi_pool(input, rois, offset, 1)  # a pixel to the right, two down
        tensor([[[[11.5000]]]])
    """
    op = "deform_roi_pool"
    if not isinstance(rois, Tensor):
        rois = _checks.roi_boxes(op, input, rois, name="rois")
    height, width = _roi.output_size(op, output_size)
    plain = offset is None or (isinstance(offset, Tensor) and offset.shape == (0,))
    arguments = (spatial_scale, height, width, sampling_ratio)
    try:
        if plain:
            _checks.deform_roi_pool(input, rois, None, *arguments, gamma)
            return _op_plain(input, rois.detach(), *arguments, True)
        return _op(input, rois, offset, *arguments, gamma)
    except Exception as error:
        # The dispatcher refuses some arguments before our checks see them; say those in our words.
        _checks.deform_roi_pool(input, rois, offset, *arguments, gamma)
        if plain and str(error).startswith("roi_align: expected boxes"):
            text = str(error).replace("roi_align: expected boxes", f"{op}: expected rois", 1)
            raise ValueError(text) from None
        raise


class DeformRoIPool(nn.Module):
    """Module form of :func:`deform_roi_pool`, with mmcv's constructor.

    Args:
        output_size: bins (height, width); an integer stands for both.
        spatial_scale: feature-map pixels per pixel of the box coordinates.
        sampling_ratio: samples per bin and axis; 0 or less: ceil(box / bins).
        gamma: factor on the offsets.

    Shape:
        input [N, C, H, W], rois [K, 5] or a list of [L, 4], offset [K, 2, height, width] or None
        -> [K, C, height, width].

    Example:
        >>> import torch
        >>> from cvkernels.deform_roi_pool import DeformRoIPool
        >>> pool = DeformRoIPool(output_size=2)
        >>> input = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> pool(input, torch.tensor([[0.0, 0, 0, 4, 4]])).tolist()
        [[[[2.5, 4.5], [10.5, 12.5]]]]
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        gamma: float = 0.1,
    ) -> None:
        super().__init__()
        self.output_size = _checks.pair("DeformRoIPool", "output_size", output_size)
        self.spatial_scale = float(spatial_scale)
        self.sampling_ratio = int(sampling_ratio)
        self.gamma = float(gamma)

    def forward(
        self, input: Tensor, rois: Tensor | Sequence[Tensor], offset: Tensor | None = None
    ) -> Tensor:
        return deform_roi_pool(
            input,
            rois,
            offset,
            self.output_size,
            self.spatial_scale,
            self.sampling_ratio,
            self.gamma,
        )

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, gamma={self.gamma}"
        )


class DeformRoIPoolPack(DeformRoIPool):
    """Deformable RoI pooling that learns its offsets from the boxes pooled without any.

    Constructor, parameter names and initialisation are mmcv's, so that its checkpoints load. The
    last layer begins at zero: a new module pools as RoI Align.

    Args:
        output_size: bins (height, width); an integer stands for both.
        output_channels: channels of the feature map.
        deform_fc_channels: width of the hidden layers.
        spatial_scale: feature-map pixels per pixel of the box coordinates.
        sampling_ratio: samples per bin and axis; 0 or less: ceil(box / bins).
        gamma: factor on the offsets.

    Shape:
        input [N, output_channels, H, W], rois [K, 5] or a list of [L, 4]
        -> [K, output_channels, height, width].

    Example:
        >>> import torch
        >>> from cvkernels.deform_roi_pool import DeformRoIPoolPack
        >>> pool = DeformRoIPoolPack(2, output_channels=1, deform_fc_channels=8)
        >>> input = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> pool(input, torch.tensor([[0.0, 0, 0, 4, 4]])).tolist()
        [[[[2.5, 4.5], [10.5, 12.5]]]]
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        output_channels: int,
        deform_fc_channels: int = 1024,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        gamma: float = 0.1,
    ) -> None:
        super().__init__(output_size, spatial_scale, sampling_ratio, gamma)
        self.output_channels = output_channels
        self.deform_fc_channels = deform_fc_channels
        bins, hidden = self.output_size[0] * self.output_size[1], deform_fc_channels
        self.offset_fc = nn.Sequential(
            nn.Linear(bins * output_channels, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            _zero(nn.Linear(hidden, bins * 2)),
        )

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        pooled = super().forward(input, rois)
        return super().forward(input, rois, self._offset(pooled))

    def _offset(self, pooled: Tensor) -> Tensor:
        offset: Tensor = self.offset_fc(pooled.flatten(1))
        return offset.view(-1, 2, *self.output_size)


class ModulatedDeformRoIPoolPack(DeformRoIPoolPack):
    """:class:`DeformRoIPoolPack` that also learns a weight between 0 and 1 for each bin.

    Args:
        output_size: bins (height, width); an integer stands for both.
        output_channels: channels of the feature map.
        deform_fc_channels: width of the hidden layers.
        spatial_scale: feature-map pixels per pixel of the box coordinates.
        sampling_ratio: samples per bin and axis; 0 or less: ceil(box / bins).
        gamma: factor on the offsets.

    Shape:
        input [N, output_channels, H, W], rois [K, 5] or a list of [L, 4]
        -> [K, output_channels, height, width].

    Example:
        >>> import torch
        >>> from cvkernels.deform_roi_pool import ModulatedDeformRoIPoolPack
        >>> pool = ModulatedDeformRoIPoolPack(2, output_channels=1, deform_fc_channels=8)
        >>> input = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> pool(input, torch.tensor([[0.0, 0, 0, 4, 4]])).tolist()  # weights begin at 1/2
        [[[[1.25, 2.25], [5.25, 6.25]]]]
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        output_channels: int,
        deform_fc_channels: int = 1024,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        gamma: float = 0.1,
    ) -> None:
        super().__init__(
            output_size, output_channels, deform_fc_channels, spatial_scale, sampling_ratio, gamma
        )
        bins, hidden = self.output_size[0] * self.output_size[1], deform_fc_channels
        self.mask_fc = nn.Sequential(
            nn.Linear(bins * output_channels, hidden),
            nn.ReLU(inplace=True),
            _zero(nn.Linear(hidden, bins)),
            nn.Sigmoid(),
        )

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        pooled = DeformRoIPool.forward(self, input, rois)
        mask: Tensor = self.mask_fc(pooled.flatten(1)).view(-1, 1, *self.output_size)
        return DeformRoIPool.forward(self, input, rois, self._offset(pooled)) * mask


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


# ---- fake kernels


@torch.library.register_fake("cvkernels::deform_roi_pool")
def _(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    gamma: float,
) -> Tensor:
    _checks.deform_roi_pool(
        input, rois, offset, spatial_scale, pooled_height, pooled_width, sampling_ratio, gamma
    )
    return _roi.like(input, (rois.shape[0], input.shape[1], pooled_height, pooled_width))


torch.library.register_fake("cvkernels::deform_roi_pool_backward", _roi.fake_backward(3))


@torch.library.register_fake("cvkernels::deform_roi_pool_offset_backward")
def _(input: Tensor, rois: Tensor, offset: Tensor, *_: Any) -> Tensor:
    return offset.new_empty(offset.shape)


# ---- autograd


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, rois, offset, *ctx.arguments = inputs
    ctx.input_shape = input.shape
    # The map is kept alive only for those who ask what the offsets did.
    ctx.save_for_backward(rois, offset, input if ctx.needs_input_grad[2] else None)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rois, offset, input = ctx.saved_tensors
    scale, height, width, *options = ctx.arguments
    grad_input = grad_offset = None
    if ctx.needs_input_grad[0]:
        sizes = (scale, height, width, *ctx.input_shape)
        grad_input = _op_backward(grad, rois, offset, *sizes, *options)
    if ctx.needs_input_grad[2]:
        grad_offset = _op_offset_backward(input, rois, offset, grad, *ctx.arguments)
    return (grad_input, None, grad_offset, *([None] * 5))


def _no_double_backward(*_: Any) -> NoReturn:
    raise NotImplementedError(
        "deform_roi_pool: expected at most one differentiation with offsets, got a second; "
        "without offsets it is twice differentiable"
    )


torch.library.register_autograd("cvkernels::deform_roi_pool", _backward, setup_context=_setup)
for _name in ("deform_roi_pool_backward", "deform_roi_pool_offset_backward"):
    torch.library.register_autograd(
        f"cvkernels::{_name}", _no_double_backward, setup_context=lambda *_, **__: None
    )


# ---- vmap

torch.library.register_vmap("cvkernels::deform_roi_pool", _roi.vmap_forward(_op, 1))
torch.library.register_vmap(
    "cvkernels::deform_roi_pool_backward", _roi.vmap_backward(_op_backward, 1, 1)
)
torch.library.register_vmap(
    "cvkernels::deform_roi_pool_offset_backward", _roi.vmap_forward(_op_offset_backward, 2)
)
