"""Rotated RoI Align: features of turned boxes, sampled bilinearly from a feature map."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cvkernels import _checks, _load, _roi

__all__ = ["RoIAlignRotated", "roi_align_rotated"]

_load.load()
_op: Callable[..., Tensor] = torch.ops.cvkernels.roi_align_rotated.default


def roi_align_rotated(
    input: Tensor,
    rois: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
    clockwise: bool = False,
) -> Tensor:
    """Pools the features of each turned box into a grid of fixed size, sampling bilinearly.

    The results are those of mmcv.ops.roi_align_rotated. At angle 0 they are those of
    :func:`cvkernels.roi_align.roi_align`.

    Args:
        input: feature map, shape [N, C, H, W], float16, bfloat16, float32 or float64; contiguous
            and channels_last are read in place, other strides are copied.
        rois: shape [K, 6], rows (image index, centre x, centre y, width, height, angle), in
            input-image pixels and radians, any of the four float dtypes; or a list with the [L, 5]
            boxes of each image.
        output_size: bins (height, width) along the box's own axes; an integer stands for both.
        spatial_scale: feature-map pixels per pixel of the box coordinates; 1/16 for a stride of 16.
        sampling_ratio: samples per bin and axis, at most 32768; 0 or less: ceil(box / bins).
        aligned: shift coordinates by half a pixel (exact alignment) and do not stretch boxes
            narrower than one pixel.
        clockwise: a positive angle turns clockwise where y points down, as in images; False, mmcv's
            default, turns the other way.

    Returns:
        Tensor of shape [K, C, height, width], dtype and memory format of ``input``. A sample more
        than one pixel outside the map counts as 0; a box with a number that is not finite, or with
        an angle beyond 2**20, gives zeros.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device or out of its range, or (on
            CPU) a row of ``rois`` with an image index outside [0, N). On CUDA such a row gives
            zeros.
        TypeError: an argument of the wrong type.

    Gradient:
        With respect to ``input``, twice differentiable; ``rois`` gets none. Reverse mode only.

    Determinism:
        Forward and backward are bitwise repeatable on every device, for any number of threads.

    Source:
        Ma et al., Arbitrary-oriented scene text detection via rotation proposals, 2018
        (arXiv 1703.01086); mmcv.ops.roi_align_rotated 2.2.0.

    Example:
        >>> import math
        >>> import torch
        >>> from cvkernels.roi_align_rotated import roi_align_rotated
        >>> input = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> rois = torch.tensor([[0.0, 2.0, 2.0, 4.0, 4.0, math.pi / 2]])
        >>> roi_align_rotated(input, rois, 2)  # the box's right is the map's top
        tensor([[[[10.5000,  2.5000],
                  [12.5000,  4.5000]]]])
    """
    if not isinstance(rois, Tensor):
        rois = _checks.roi_boxes("roi_align_rotated", input, rois, columns=5, name="rois")
    height, width = _roi.output_size("roi_align_rotated", output_size)
    try:
        return _op(input, rois, spatial_scale, height, width, sampling_ratio, aligned, clockwise)
    except Exception:
        # The dispatcher refuses some arguments before our checks see them; say those in our words.
        _checks.roi_align_rotated(
            input, rois, spatial_scale, height, width, sampling_ratio, aligned, clockwise
        )
        raise


class RoIAlignRotated(nn.Module):
    """Module form of :func:`roi_align_rotated`, with mmcv's constructor.

    Args:
        output_size: bins (height, width); an integer stands for both.
        spatial_scale: feature-map pixels per pixel of the box coordinates.
        sampling_ratio: samples per bin and axis; 0 or less: ceil(box / bins).
        aligned: shift coordinates by half a pixel.
        clockwise: which way a positive angle turns.

    Shape:
        input [N, C, H, W], rois [K, 6] or a list of [L, 5] -> [K, C, height, width].
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int = 0,
        aligned: bool = True,
        clockwise: bool = False,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.clockwise = clockwise

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        return roi_align_rotated(
            input,
            rois,
            self.output_size,
            self.spatial_scale,
            self.sampling_ratio,
            self.aligned,
            self.clockwise,
        )

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}, "
            f"clockwise={self.clockwise}"
        )


# ---- fake kernel, autograd and vmap


@torch.library.register_fake("cvkernels::roi_align_rotated")
def _(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> Tensor:
    _checks.roi_align_rotated(
        input, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned, clockwise
    )
    return _roi.like(input, (rois.shape[0], input.shape[1], pooled_height, pooled_width))


_roi.register_linear("roi_align_rotated")
