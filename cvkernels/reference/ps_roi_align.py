"""Position-sensitive RoI Align: RoI Align of every channel, of which each bin keeps its own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cvkernels import _checks
from cvkernels.reference._roi import in_format_of
from cvkernels.reference.roi_align import roi_align


def ps_roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
) -> Tensor:
    """Averages bilinear samples of each box's bins, every bin from a channel of its own.

    Evaluated in float64 (see :func:`cvkernels.reference.precision`) and rounded once to the dtype
    of ``input``.

    Args:
        input: [N, C, H, W] score maps, any float dtype, C a multiple of the bins.
        boxes: [K, 5] rows (image index, x1, y1, x2, y2) in any float dtype, or a list of N tensors
            [L, 4], in units of 1 / spatial_scale pixels.
        output_size: (height, width) of the result in bins, or one integer for both.
        spatial_scale: factor from box units to pixels of ``input``.
        sampling_ratio: samples per bin along each axis; 0 or less takes
            ceil(box size / output size), at most 32768.

    Returns:
        [K, C / bins, output_size[0], output_size[1]] in the dtype and memory format of ``input``.

    Raises:
        ValueError: wrong shape, dtype, device or value, and an image index outside [0, N).
        TypeError: an argument of a wrong type.

    Gradient:
        To ``input`` only, of any order.

    Determinism:
        Bitwise on CPU.

    Source:
        Dai et al., R-FCN, 2016; torchvision.ops.ps_roi_align 0.29.1, whose samples are those of RoI
        Align with ``aligned=True``.
    """
    boxes = _checks.roi_boxes("ps_roi_align", input, boxes)
    bins = _checks.pair("ps_roi_align", "output_size", output_size)
    _checks.ps_roi_align(input, boxes, spatial_scale, *bins, sampling_ratio)
    _checks.roi_image_index("ps_roi_align", input, boxes)
    # Channel (o * PH + i) * PW + j of every bin: [K, o, i, j, PH, PW].
    pooled = roi_align(input, boxes.detach(), bins, spatial_scale, sampling_ratio, True)
    pooled = pooled.unflatten(1, (input.shape[1] // (bins[0] * bins[1]), *bins))
    # Bin (i, j) of it.
    own = pooled.diagonal(dim1=2, dim2=4).diagonal(dim1=2, dim2=3)
    return in_format_of(input, own)
