"""RoI Pool: the greatest feature of each bin of a box, on whole pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cvkernels import _checks, _load, _roi, _roi_max

__all__ = ["RoIPool", "roi_pool"]

_load.load()
_op: Callable[..., Tensor] = torch.ops.cvkernels.roi_pool.default
_op_argmax: Callable[..., tuple[Tensor, Tensor]] = torch.ops.cvkernels.roi_pool_argmax.default


def roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """Takes the maximum of each box's features over a grid of fixed size, cut at whole pixels.

    The positional arguments and the results are those of :func:`torchvision.ops.roi_pool`.

    Args:
        input: feature map, shape [N, C, H, W], float16, bfloat16, float32 or float64, H * W below
            2^31; contiguous and channels_last are read in place, other strides are copied.
        boxes: shape [K, 5], rows (image index, x1, y1, x2, y2) in input-image pixels, any of the
            four float dtypes; or a list with the [L, 4] boxes of each image. Scaled coordinates
            are rounded, halves away from zero, and both corner pixels belong to the box.
        output_size: bins (height, width); an integer stands for both.
        spatial_scale: feature-map pixels per pixel of the box coordinates; 1/16 for a stride of 16.

    Returns:
        Tensor of shape [K, C, height, width], dtype and memory format of ``input``. A bin outside
        the map is 0, as is a box with a coordinate that is not finite. NaN is greater than all
        numbers, as in ``torch.max``; torchvision skips it.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range, or (on
            CPU) a row of ``boxes`` with an image index outside [0, N). On CUDA such a row gives
            zeros.
        TypeError: an argument of the wrong type.

    Gradient:
        With respect to ``input``, to the first of equal maxima in row order; ``boxes`` gets none.
        Once differentiable, in reverse mode.

    Determinism:
        Forward and backward are bitwise repeatable on every device, for any number of threads.

    Source:
        Girshick, Fast R-CNN, 2015 (arXiv 1504.08083).

    Example:
        >>> import torch
        >>> from cvkernels.roi_pool import roi_pool
        >>> input = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> boxes = torch.tensor([[0.0, 0.0, 0.0, 2.0, 3.0]])
        >>> roi_pool(input, boxes, 2)
        tensor([[[[ 5.,  6.],
                  [13., 14.]]]])
    """
    if not isinstance(boxes, Tensor):
        boxes = _checks.roi_boxes("roi_pool", input, boxes)
    height, width = _roi.output_size("roi_pool", output_size)
    try:
        # Perf: who needs no gradient gets no indices, a third of what is written or half.
        if torch.is_grad_enabled() and input.requires_grad:
            narrow = _checks.roi_narrow_fits(input, _checks.ROI_POOL_INDICES)
            return _op_argmax(input, boxes, spatial_scale, height, width, narrow)[0]
        return _op(input, boxes, spatial_scale, height, width)
    except Exception:
        # The dispatcher refuses some arguments before our checks see them; say those in our words.
        _checks.roi_pool(input, boxes, spatial_scale, height, width)
        raise


class RoIPool(nn.Module):
    """Module form of :func:`roi_pool`; torchvision's constructor.

    Args:
        output_size: bins (height, width); an integer stands for both.
        spatial_scale: feature-map pixels per pixel of the box coordinates.

    Shape:
        input [N, C, H, W], boxes [K, 5] or a list of [L, 4] -> [K, C, height, width].
    """

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, input: Tensor, boxes: Tensor | Sequence[Tensor]) -> Tensor:
        return roi_pool(input, boxes, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"


_roi_max.register("roi_pool", _checks.roi_pool, _checks.ROI_POOL_INDICES)
