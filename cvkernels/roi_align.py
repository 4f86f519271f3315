"""RoI Align: features of boxes, sampled bilinearly from a feature map."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from cvkernels import _checks, _load, _roi

__all__ = ["RoIAlign", "roi_align"]

_load.load()
_op: Callable[..., Tensor] = torch.ops.cvkernels.roi_align.default
_op_max: Callable[..., tuple[Tensor, Tensor]] = torch.ops.cvkernels.roi_align_max.default
_op_backward: Callable[..., Tensor] = torch.ops.cvkernels.roi_align_backward.default
_op_max_backward: Callable[..., Tensor] = torch.ops.cvkernels.roi_align_max_backward.default
_op_boxes_backward: Callable[..., Tensor] = torch.ops.cvkernels.roi_align_boxes_backward.default


def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    *,
    mode: str = "avg",
) -> Tensor:
    """Pools the features of each box into a grid of fixed size, sampling the map bilinearly.

    The positional arguments and the results are those of :func:`torchvision.ops.roi_align`.

    Args:
        input: feature map, shape [N, C, H, W], float16, bfloat16, float32 or float64; contiguous
            and channels_last are read in place, other strides are copied.
        boxes: shape [K, 5], rows (image index, x1, y1, x2, y2) in input-image pixels, any of the
            four float dtypes; or a list with the [L, 4] boxes of each image.
        output_size: bins (height, width); an integer stands for both.
        spatial_scale: feature-map pixels per pixel of the box coordinates; 1/16 for a stride of 16.
        sampling_ratio: samples per bin and axis, at most 32768; 0 or less: ceil(box / bins).
        aligned: shift coordinates by half a pixel (exact alignment) and do not stretch boxes
            narrower than one pixel. False is torchvision's default, True that of mmcv and
            detectron2.
        mode: ``"avg"`` for the mean of a bin's samples, ``"max"`` for their maximum (as in mmcv).

    Returns:
        Tensor of shape [K, C, height, width], dtype and memory format of ``input``. A sample more
        than one pixel outside the map counts as 0; a box with NaN coordinates gives zeros.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range, or (on
            CPU) a row of ``boxes`` with an image index outside [0, N). On CUDA such a row gives
            zeros.
        TypeError: an argument of the wrong type.

    Gradient:
        With respect to ``input`` and to the coordinates of ``boxes`` (a column of image indices
        gets zeros). Bilinear interpolation has kinks at pixel centres: there it is the derivative
        to the right in the coordinate of the sample, and 0 where the coordinate is clamped (up to a
        pixel outside the map, and beyond its last pixel's centre). The number of samples is taken
        as constant, and a box stretched to one pixel (``aligned=False``) moves with x1, y1 only.
        Twice differentiable with respect to ``input`` in mode "avg", where ``boxes`` needs no
        gradient. Reverse mode only: torch's forward mode sees a zero tangent, as with
        torchvision's operator.

    Determinism:
        Forward and backward are bitwise repeatable on every device, for any number of threads.

    Source:
        He et al., Mask R-CNN, 2017 (arXiv 1703.06870).

    Example:
        >>> import torch
        >>> from cvkernels.roi_align import roi_align
        >>> input = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
        >>> roi_align(input, boxes, 2, aligned=True)
        tensor([[[[ 2.5000,  4.5000],
                  [10.5000, 12.5000]]]])
    """
    if not isinstance(boxes, Tensor):
        boxes = _checks.roi_boxes("roi_align", input, boxes)
    height, width = _roi.output_size("roi_align", output_size)
    if mode != "avg":
        _checks.roi_align_mode(mode)
    try:
        if mode == "avg":
            return _op(input, boxes, spatial_scale, height, width, sampling_ratio, aligned)
        return _op_max(input, boxes, spatial_scale, height, width, sampling_ratio, aligned)[0]
    except Exception:
        # The dispatcher refuses some arguments before our checks see them; say those in our words.
        _checks.roi_align(input, boxes, spatial_scale, height, width, sampling_ratio, aligned)
        raise


class RoIAlign(nn.Module):
    """Module form of :func:`roi_align`; torchvision's constructor plus ``mode``.

    Args:
        output_size: bins (height, width); an integer stands for both.
        spatial_scale: feature-map pixels per pixel of the box coordinates.
        sampling_ratio: samples per bin and axis; 0 or less: ceil(box / bins).
        aligned: shift coordinates by half a pixel.
        mode: ``"avg"`` or ``"max"``.

    Shape:
        input [N, C, H, W], boxes [K, 5] or a list of [L, 4] -> [K, C, height, width].
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = False,
        *,
        mode: str = "avg",
    ) -> None:
        super().__init__()
        _checks.roi_align_mode(mode)
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.mode = mode

    def forward(self, input: Tensor, boxes: Tensor | Sequence[Tensor]) -> Tensor:
        return roi_align(
            input,
            boxes,
            self.output_size,
            self.spatial_scale,
            self.sampling_ratio,
            self.aligned,
            mode=self.mode,
        )

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}, mode={self.mode!r}"
        )


# ---- fake kernels


@torch.library.register_fake("cvkernels::roi_align")
def _(
    input: Tensor,
    boxes: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    _checks.roi_align(
        input, boxes, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned
    )
    return _roi.like(input, (boxes.shape[0], input.shape[1], pooled_height, pooled_width))


@torch.library.register_fake("cvkernels::roi_align_max")
def _(
    input: Tensor,
    boxes: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> tuple[Tensor, Tensor]:
    _checks.roi_align(
        input, boxes, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned
    )
    size = (boxes.shape[0], input.shape[1], pooled_height, pooled_width)
    return _roi.like(input, size), _roi.like(input, size, torch.int32)


torch.library.register_fake("cvkernels::roi_align_backward", _roi.fake_backward(2))
torch.library.register_fake("cvkernels::roi_align_max_backward", _roi.fake_backward(3))


@torch.library.register_fake("cvkernels::roi_align_boxes_backward")
def _(input: Tensor, boxes: Tensor, *args: Any) -> Tensor:
    return boxes.new_empty(boxes.shape)


# ---- autograd


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor | tuple[Tensor, Tensor]) -> None:
    input, boxes, *arguments = inputs
    ctx.arguments = arguments
    ctx.input_shape = input.shape
    argmax = None if isinstance(output, Tensor) else output[1]
    # The map is kept alive only for those who ask what the boxes did.
    ctx.save_for_backward(boxes, argmax, input if ctx.needs_input_grad[1] else None)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    boxes, argmax, input = ctx.saved_tensors
    scale, height, width, sampling_ratio, aligned = ctx.arguments
    grad_input = grad_boxes = None
    if ctx.needs_input_grad[0]:
        arguments = (boxes, scale, height, width, *ctx.input_shape, sampling_ratio, aligned)
        if argmax is None:
            grad_input = _op_backward(grad, *arguments)
        else:
            grad_input = _op_max_backward(grad, argmax, *arguments)
    if ctx.needs_input_grad[1]:
        arguments = (scale, height, width, sampling_ratio, aligned)
        grad_boxes = _op_boxes_backward(input, boxes, grad, argmax, *arguments)
    return grad_input, grad_boxes, None, None, None, None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, boxes, scale, pooled_height, pooled_width, *_, sampling_ratio, aligned = inputs
    ctx.arguments = (scale, pooled_height, pooled_width, sampling_ratio, aligned)
    ctx.save_for_backward(boxes)


def _double_backward(ctx: Any, grad_grad: Tensor) -> tuple[Tensor | None, ...]:
    # The mean is linear in its input, so the derivative of the backward pass is the forward pass.
    if ctx.needs_input_grad[1]:
        _no_boxes_double_backward()
    (boxes,) = ctx.saved_tensors
    return (_op(grad_grad, boxes, *ctx.arguments), *([None] * 10))


def _no_double_backward(ctx: Any, *_: Any) -> NoReturn:
    raise NotImplementedError(
        'roi_align: expected at most one differentiation in mode "max", got a second; '
        'mode "avg" is twice differentiable'
    )


def _no_boxes_double_backward(*_: Any) -> NoReturn:
    _roi.refuse_second_derivative_with_boxes("roi_align")


torch.library.register_autograd("cvkernels::roi_align", _backward, setup_context=_setup)
torch.library.register_autograd("cvkernels::roi_align_max", _backward, setup_context=_setup)
torch.library.register_autograd(
    "cvkernels::roi_align_backward", _double_backward, setup_context=_setup_backward
)
torch.library.register_autograd(
    "cvkernels::roi_align_max_backward", _no_double_backward, setup_context=lambda *_, **__: None
)
torch.library.register_autograd(
    "cvkernels::roi_align_boxes_backward",
    _no_boxes_double_backward,
    setup_context=lambda *_, **__: None,
)


# ---- vmap

torch.library.register_vmap("cvkernels::roi_align", _roi.vmap_forward(_op))
torch.library.register_vmap("cvkernels::roi_align_max", _roi.vmap_forward(_op_max))
torch.library.register_vmap("cvkernels::roi_align_backward", _roi.vmap_backward(_op_backward, 1))
torch.library.register_vmap(
    "cvkernels::roi_align_max_backward", _roi.vmap_backward(_op_max_backward, 2)
)


torch.library.register_vmap(
    "cvkernels::roi_align_boxes_backward", _roi.vmap_boxes_backward(_op_boxes_backward, 2)
)


# ---- the family's operators that users look for here

_ELSEWHERE = {  # name -> module
    "PrRoIPool": "prroi_pool",
    "RoIAlignRotated": "roi_align_rotated",
    "prroi_pool": "prroi_pool",
    "roi_align_rotated": "roi_align_rotated",
}


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:  # imported late: those modules may import this one
        return getattr(importlib.import_module(f"cvkernels.{_ELSEWHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
