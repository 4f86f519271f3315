"""Position-sensitive RoI Pool: each bin averages pixels of a channel of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cvkernels import _checks, _load, _roi

__all__ = ["PSRoIPool", "ps_roi_pool"]

_load.load()
_op: Callable[..., Tensor] = torch.ops.cvkernels.ps_roi_pool.default


def ps_roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """Averages the pixels of each box's bins, every bin from a channel of its own.

    The positional arguments and the results are those of :func:`torchvision.ops.ps_roi_pool`.

    Args:
        input: score maps, shape [N, C, H, W] with C a multiple of the bins, float16, bfloat16,
            float32 or float64; contiguous and channels_last are read in place, other strides are
            copied. Bin (i, j) of output channel o reads channel (o * height + i) * width + j.
        boxes: shape [K, 5], rows (image index, x1, y1, x2, y2) in input-image pixels, any of the
            four float dtypes; or a list with the [L, 4] boxes of each image. Scaled coordinates
            are rounded, halves away from zero; the far corner's pixels do not belong to the box.
        output_size: bins (height, width); an integer stands for both.
        spatial_scale: feature-map pixels per pixel of the box coordinates; 1/16 for a stride of 16.

    Returns:
        Tensor of shape [K, C / (height * width), height, width], dtype and memory format of
        ``input``. The last row and column of pixels are never read, as in torchvision. A bin
        outside the map is 0, as is a box with a coordinate that is not finite.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range, or (on
            CPU) a row of ``boxes`` with an image index outside [0, N). On CUDA such a row gives
            zeros.
        TypeError: an argument of the wrong type.

    Gradient:
        With respect to ``input``, of any order; ``boxes`` gets none. Reverse mode only. Where a box
        touches the far rim of the map torchvision's gradient is not the derivative of its result;
        this one is.

    Determinism:
        Forward and backward are bitwise repeatable on every device, for any number of threads.

    Source:
        Dai et al., R-FCN, 2016 (arXiv 1605.06409).

    Example:
        >>> import torch
        >>> from cvkernels.ps_roi_pool import ps_roi_pool
        >>> input = torch.arange(4.0).reshape(1, 4, 1, 1).expand(1, 4, 6, 6)
        >>> boxes = torch.tensor([[0.0, 1.0, 1.0, 5.0, 5.0]])
        >>> ps_roi_pool(input, boxes, 2)
        tensor([[[[0., 1.],
                  [2., 3.]]]])
    """
    if not isinstance(boxes, Tensor):
        boxes = _checks.roi_boxes("ps_roi_pool", input, boxes)
    height, width = _roi.output_size("ps_roi_pool", output_size)
    try:
        return _op(input, boxes, spatial_scale, height, width)
    except Exception:
        # The dispatcher refuses some arguments before our checks see them; say those in our words.
        _checks.ps_roi_pool(input, boxes, spatial_scale, height, width)
        raise


class PSRoIPool(nn.Module):
    """Module form of :func:`ps_roi_pool`; torchvision's constructor.

    Args:
        output_size: bins (height, width); an integer stands for both.
        spatial_scale: feature-map pixels per pixel of the box coordinates.

    Shape:
        input [N, C, H, W], boxes [K, 5] or a list of [L, 4] -> [K, C / bins, height, width].
    """

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, input: Tensor, boxes: Tensor | Sequence[Tensor]) -> Tensor:
        return ps_roi_pool(input, boxes, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"


# ---- fake kernel, autograd and vmap


@torch.library.register_fake("cvkernels::ps_roi_pool")
def _(
    input: Tensor,
    boxes: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
) -> Tensor:
    _checks.ps_roi_pool(input, boxes, spatial_scale, pooled_height, pooled_width)
    channels = input.shape[1] // (pooled_height * pooled_width)
    return _roi.like(input, (boxes.shape[0], channels, pooled_height, pooled_width))


_roi.register_linear("ps_roi_pool")
