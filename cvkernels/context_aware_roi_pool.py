"""Context-aware RoI Pool: RoI Pool for boxes that may be smaller than their grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cvkernels import _checks, _load, _roi, _roi_max

__all__ = ["ContextAwareRoIPool", "context_aware_roi_pool"]

_load.load()
_op: Callable[..., Tensor] = torch.ops.cvkernels.context_aware_roi_pool.default
_op_argmax: Callable[..., tuple[Tensor, Tensor]] = (
    torch.ops.cvkernels.context_aware_roi_pool_argmax.default
)


def context_aware_roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """RoI Pool that enlarges boxes smaller than their grid instead of repeating their pixels.

    Along an axis with fewer pixels n than bins p a box is enlarged s = ceil(p / n) times by a
    transposed convolution of stride s with a bilinear kernel: of its s * n cells, cell g lies at
    (g + 0.5) / s - 0.5 between the centres of the box's pixels, of which the outermost continue
    outward. Along an axis with n >= p its cells are its pixels. Bin i of an axis with m cells has
    those in [floor(i * m / p), ceil((i + 1) * m / p)), and its result is their maximum; a box that
    is enlarged along no axis gives what :func:`cvkernels.ops.roi_pool` gives, bit for bit.

    Args:
        input: feature map, shape [N, C, H, W], float16, bfloat16, float32 or float64, 3 * H * W
            below 2^31; contiguous and channels_last are read in place, other strides are copied.
        boxes: shape [K, 5], rows (image index, x1, y1, x2, y2) in input-image pixels, any of the
            four float dtypes; or a list with the [L, 4] boxes of each image. Scaled coordinates
            are rounded, halves away from zero, and both corner pixels belong to the box. Pixels
            outside the map have no part in it.
        output_size: bins (height, width); an integer stands for both.
        spatial_scale: feature-map pixels per pixel of the box coordinates; 1/16 for a stride of 16.

    Returns:
        Tensor of shape [K, C, height, width], dtype and memory format of ``input``. A bin outside
        the map is 0, as is a box with a coordinate that is not finite. NaN is greater than all
        numbers, as in ``torch.max``; it reaches the cells that its pixel has a part in.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range, or (on
            CPU) a row of ``boxes`` with an image index outside [0, N). On CUDA such a row gives
            zeros.
        TypeError: an argument of the wrong type.

    Gradient:
        With respect to ``input``, through the first of equal maxima in row order; ``boxes`` gets
        none. Once differentiable, in reverse mode.

    Determinism:
        Forward and backward are bitwise repeatable on every device, for any number of threads.

    Source:
        Hu et al., SINet: A Scale-Insensitive Convolutional Neural Network for Fast Vehicle
        Detection, 2019 (arXiv 1804.00433).

    Example:
        >>> import torch
        >>> from cvkernels.context_aware_roi_pool import context_aware_roi_pool
        >>> input = torch.tensor([[0.0, 8.0, 9.0]]).reshape(1, 1, 1, 3)
        >>> boxes = torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0]])
        >>> context_aware_roi_pool(input, boxes, (1, 4))  # the first two pixels, enlarged twice
        tensor([[[[0., 2., 6., 8.]]]])
    """
    op = "context_aware_roi_pool"
    if not isinstance(boxes, Tensor):
        boxes = _checks.roi_boxes(op, input, boxes)
    height, width = _roi.output_size(op, output_size)
    try:
        # Perf: who needs no gradient gets no indices, a third of what is written or half.
        if torch.is_grad_enabled() and input.requires_grad:
            narrow = _checks.roi_narrow_fits(input, _checks.CONTEXT_AWARE_INDICES)
            return _op_argmax(input, boxes, spatial_scale, height, width, narrow)[0]
        return _op(input, boxes, spatial_scale, height, width)
    except Exception:
        # The dispatcher refuses some arguments before our checks see them; say those in our words.
        _checks.context_aware_roi_pool(input, boxes, spatial_scale, height, width)
        raise


class ContextAwareRoIPool(nn.Module):
    """Module form of :func:`context_aware_roi_pool`.

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
        return context_aware_roi_pool(input, boxes, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"


_roi_max.register(
    "context_aware_roi_pool", _checks.context_aware_roi_pool, _checks.CONTEXT_AWARE_INDICES
)
