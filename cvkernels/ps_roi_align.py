"""Position-sensitive RoI Align: each bin samples a channel of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cvkernels import _checks, _load, _roi

__all__ = ["PSRoIAlign", "ps_roi_align"]

_load.load()
_op: Callable[..., Tensor] = torch.ops.cvkernels.ps_roi_align.default


def ps_roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
) -> Tensor:
    """Averages bilinear samples of each box's bins, every bin from a channel of its own.

    The positional arguments and the results are those of :func:`torchvision.ops.ps_roi_align`.

    Args:
        input: score maps, shape [N, C, H, W] with C a multiple of the bins, float16, bfloat16,
            float32 or float64; contiguous and channels_last are read in place, other strides are
            copied. Bin (i, j) of output channel o reads channel (o * height + i) * width + j.
        boxes: shape [K, 5], rows (image index, x1, y1, x2, y2) in input-image pixels, any of the
            four float dtypes; or a list with the [L, 4] boxes of each image.
            Coordinates are shifted by half a pixel, as in RoI Align with ``aligned=True``.
        output_size: bins (height, width); an integer stands for both.
        spatial_scale: feature-map pixels per pixel of the box coordinates; 1/16 for a stride of 16.
        sampling_ratio: samples per bin and axis, at most 32768; 0 or less: ceil(box / bins).

    Returns:
        Tensor of shape [K, C / (height * width), height, width], dtype and memory format of
        ``input``. A sample more than one pixel outside the map counts as 0; a bin without
        samples is 0 (torchvision: NaN), as is a box with NaN coordinates.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range, or (on
            CPU) a row of ``boxes`` with an image index outside [0, N). On CUDA such a row gives
            zeros.
        TypeError: an argument of the wrong type.

    Gradient:
        With respect to ``input``, of any order; ``boxes`` gets none. Reverse mode only.

    Determinism:
        Forward and backward are bitwise repeatable on every device, for any number of threads.

    Source:
        Dai et al., R-FCN, 2016 (arXiv 1605.06409); the samples of RoI Align, He et al., 2017.

    Example:
        >>> import torch
        >>> from cvkernels.ps_roi_align import ps_roi_align
        >>> input = torch.arange(4.0).reshape(1, 4, 1, 1).expand(1, 4, 6, 6)
        >>> boxes = torch.tensor([[0.0, 1.0, 1.0, 5.0, 5.0]])
        >>> ps_roi_align(input, boxes, 2)
        tensor([[[[0., 1.],
                  [2., 3.]]]])
    """
    if not isinstance(boxes, Tensor):
        boxes = _checks.roi_boxes("ps_roi_align", input, boxes)
    height, width = _roi.output_size("ps_roi_align", output_size)
    try:
        return _op(input, boxes, spatial_scale, height, width, sampling_ratio)
    except Exception:
        # The dispatcher refuses some arguments before our checks see them; say those in our words.
        _checks.ps_roi_align(input, boxes, spatial_scale, height, width, sampling_ratio)
        raise


class PSRoIAlign(nn.Module):
    """Module form of :func:`ps_roi_align`; torchvision's constructor.

    Args:
        output_size: bins (height, width); an integer stands for both.
        spatial_scale: feature-map pixels per pixel of the box coordinates.
        sampling_ratio: samples per bin and axis; 0 or less: ceil(box / bins).

    Shape:
        input [N, C, H, W], boxes [K, 5] or a list of [L, 4] -> [K, C / bins, height, width].
    """

    def __init__(
        self, output_size: int | tuple[int, int], spatial_scale: float, sampling_ratio: int
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio

    def forward(self, input: Tensor, boxes: Tensor | Sequence[Tensor]) -> Tensor:
        return ps_roi_align(input, boxes, self.output_size, self.spatial_scale, self.sampling_ratio)

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}"
        )


# ---- fake kernel, autograd and vmap


@torch.library.register_fake("cvkernels::ps_roi_align")
def _(
    input: Tensor,
    boxes: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
) -> Tensor:
    _checks.ps_roi_align(input, boxes, spatial_scale, pooled_height, pooled_width, sampling_ratio)
    channels = input.shape[1] // (pooled_height * pooled_width)
    return _roi.like(input, (boxes.shape[0], channels, pooled_height, pooled_width))


_roi.register_linear("ps_roi_align")
