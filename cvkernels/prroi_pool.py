"""Precise RoI Pooling: the exact mean of a bilinearly interpolated feature map over each bin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from cvkernels import _checks, _load, _roi

__all__ = ["PrRoIPool", "prroi_pool"]

_load.load()
_op: Callable[..., Tensor] = torch.ops.cvkernels.prroi_pool.default
_op_backward: Callable[..., Tensor] = torch.ops.cvkernels.prroi_pool_backward.default
_op_boxes_backward: Callable[..., Tensor] = torch.ops.cvkernels.prroi_pool_boxes_backward.default


def prroi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """Averages the features of each box over a grid of bins, exactly and without samples.

    The bilinear interpolation of the map is integrated over each bin and divided by the bin's area,
    so the result is continuous in the box and has a continuous gradient with respect to it. The
    arguments and the results are those of :func:`mmcv.ops.prroi_pool`.

    Args:
        input: feature map, shape [N, C, H, W], float16, bfloat16, float32 or float64; contiguous
            and channels_last are read in place, other strides are copied.
        boxes: shape [K, 5], rows (image index, x1, y1, x2, y2) in input-image pixels, any of the
            four float dtypes; or a list with the [L, 4] boxes of each image. Scaled coordinates
            are not shifted: whole numbers are the centres of pixels.
        output_size: bins (height, width); an integer stands for both.
        spatial_scale: feature-map pixels per pixel of the box coordinates; 1/16 for a stride of 16.

    Returns:
        Tensor of shape [K, C, height, width], dtype and memory format of ``input``. Pixels outside
        the map count as 0. A box without area gives zeros, and so does one with NaN or infinite
        coordinates.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range, or (on
            CPU) a row of ``boxes`` with an image index outside [0, N). On CUDA such a row gives
            zeros.
        TypeError: an argument of the wrong type.

    Gradient:
        With respect to ``input`` and to the coordinates of ``boxes``, both exact (a column of image
        indices gets zeros). Twice differentiable with respect to ``input``, where ``boxes`` needs
        no gradient. Reverse mode only: torch's forward mode sees a zero tangent.

    Determinism:
        Forward and backward are bitwise repeatable on every device, for any number of threads.

    Source:
        Jiang et al., Acquisition of Localization Confidence for Accurate Object Detection, 2018
        (arXiv 1807.11590).

    Example:
        >>> import torch
        >>> from cvkernels.prroi_pool import prroi_pool
        >>> input = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> boxes = torch.tensor([[0.0, 0.5, 0.5, 2.5, 2.5]])
        >>> prroi_pool(input, boxes, 2)
        tensor([[[[ 5.,  6.],
                  [ 9., 10.]]]])
    """
    if not isinstance(boxes, Tensor):
        boxes = _checks.roi_boxes("prroi_pool", input, boxes)
    height, width = _roi.output_size("prroi_pool", output_size)
    try:
        return _op(input, boxes, spatial_scale, height, width)
    except Exception:
        # The dispatcher refuses some arguments before our checks see them; say those in our words.
        _checks.prroi_pool(input, boxes, spatial_scale, height, width)
        raise


class PrRoIPool(nn.Module):
    """Module form of :func:`prroi_pool`.

    Args:
        output_size: bins (height, width); an integer stands for both.
        spatial_scale: feature-map pixels per pixel of the box coordinates.

    Shape:
        input [N, C, H, W], boxes [K, 5] or a list of [L, 4] -> [K, C, height, width].
    """

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float = 1.0) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, input: Tensor, boxes: Tensor | Sequence[Tensor]) -> Tensor:
        return prroi_pool(input, boxes, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"


# ---- fake kernels


@torch.library.register_fake("cvkernels::prroi_pool")
def _(
    input: Tensor, boxes: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int
) -> Tensor:
    _checks.prroi_pool(input, boxes, spatial_scale, pooled_height, pooled_width)
    return _roi.like(input, (boxes.shape[0], input.shape[1], pooled_height, pooled_width))


torch.library.register_fake("cvkernels::prroi_pool_backward", _roi.fake_backward(2))


@torch.library.register_fake("cvkernels::prroi_pool_boxes_backward")
def _(input: Tensor, boxes: Tensor, *args: Any) -> Tensor:
    return boxes.new_empty(boxes.shape)


# ---- autograd


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, boxes, *arguments = inputs
    ctx.arguments = arguments
    ctx.input_shape = input.shape
    # The map is kept alive only for those who ask what the boxes did.
    ctx.save_for_backward(boxes, input if ctx.needs_input_grad[1] else None)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    boxes, input = ctx.saved_tensors
    grad_input = grad_boxes = None
    if ctx.needs_input_grad[0]:
        grad_input = _op_backward(grad, boxes, *ctx.arguments, *ctx.input_shape)
    if ctx.needs_input_grad[1]:
        grad_boxes = _op_boxes_backward(input, boxes, grad, *ctx.arguments)
    return grad_input, grad_boxes, None, None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, boxes, *arguments = inputs
    ctx.arguments = arguments[:3]
    ctx.save_for_backward(boxes)


def _double_backward(ctx: Any, grad_grad: Tensor) -> tuple[Tensor | None, ...]:
    # The mean is linear in its input, so the derivative of the backward pass is the forward pass.
    if ctx.needs_input_grad[1]:
        _no_boxes_double_backward()
    (boxes,) = ctx.saved_tensors
    return (_op(grad_grad, boxes, *ctx.arguments), *([None] * 8))


def _no_boxes_double_backward(*_: Any) -> NoReturn:
    _roi.refuse_second_derivative_with_boxes("prroi_pool")


torch.library.register_autograd("cvkernels::prroi_pool", _backward, setup_context=_setup)
torch.library.register_autograd(
    "cvkernels::prroi_pool_backward", _double_backward, setup_context=_setup_backward
)
torch.library.register_autograd(
    "cvkernels::prroi_pool_boxes_backward",
    _no_boxes_double_backward,
    setup_context=lambda *_, **__: None,
)


# ---- vmap

torch.library.register_vmap("cvkernels::prroi_pool", _roi.vmap_forward(_op))
torch.library.register_vmap(
    "cvkernels::prroi_pool_boxes_backward", _roi.vmap_boxes_backward(_op_boxes_backward, 1)
)
torch.library.register_vmap("cvkernels::prroi_pool_backward", _roi.vmap_backward(_op_backward, 1))
