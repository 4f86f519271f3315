"""Our kernels in the form of torchvision's dispatcher operators: names, arguments, results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Kernel = Callable[..., Any]

_ROI = "Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_BINS = "float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_MAP = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
_MAPPED = f"(Tensor grad, Tensor rois, Tensor channel_mapping, {_BINS}"

#: The dispatcher operators that are replaced, with the schema that this module was written for.
OPERATORS: dict[str, str] = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::roi_align": f"({_ROI}, int sampling_ratio, bool aligned) -> Tensor",
    "torchvision::_roi_align_backward": (
        f"(Tensor grad, Tensor rois, {_BINS}, {_MAP}, int sampling_ratio, bool aligned) -> Tensor"
    ),
    "torchvision::roi_pool": f"({_ROI}) -> (Tensor, Tensor)",
    "torchvision::_roi_pool_backward": (
        f"(Tensor grad, Tensor rois, Tensor argmax, {_BINS}, {_MAP}) -> Tensor"
    ),
    "torchvision::ps_roi_align": f"({_ROI}, int sampling_ratio) -> (Tensor, Tensor)",
    "torchvision::_ps_roi_align_backward": f"{_MAPPED}, int sampling_ratio, {_MAP}) -> Tensor",
    "torchvision::ps_roi_pool": f"({_ROI}) -> (Tensor, Tensor)",
    "torchvision::_ps_roi_pool_backward": f"{_MAPPED}, {_MAP}) -> Tensor",
}

#: Those whose autocast rule goes: no copies are needed.
AUTOCAST = tuple(name for name in OPERATORS if not name.endswith("_backward"))


def of_device(device_key: str) -> dict[str, Kernel]:
    """Python kernels for ``device_key`` that go straight to our kernel, past the dispatcher.

    They skip the dispatcher because torchvision's operator has just been through it: autograd,
    autocast and tracing are done by then, and doing them again would cost microseconds a call.
    """
    keyset = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, device_key))

    def ours(name: str) -> Kernel:
        # redispatch gives up the interpreter lock while the kernel runs; call_boxed of a kernel
        # object keeps it.
        run = getattr(torch.ops.cvkernels, name).default.redispatch

        def kernel(*arguments: Any) -> Any:
            try:
                return run(keyset, *arguments)
            except ValueError as error:
                raise RuntimeError(str(error)) from error

        return kernel

    nms, roi_align, roi_align_backward = ours("nms"), ours("roi_align"), ours("roi_align_backward")
    roi_pool, roi_pool_backward = ours("roi_pool_argmax"), ours("roi_pool_backward")
    ps_roi_align, ps_roi_align_backward = ours("ps_roi_align"), ours("ps_roi_align_backward")
    ps_roi_pool, ps_roi_pool_backward = ours("ps_roi_pool"), ours("ps_roi_pool_backward")

    def nms_kernel(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
        keep: Tensor = nms(dets, scores, None, iou_threshold, -1, "iou", 1.0, None)
        return keep

    # Our kernels keep the memory format of their input; torchvision promises contiguous results,
    # and a graph compiled against that promise must hold whether or not the patch is in place.
    def contiguous(kernel: Kernel) -> Kernel:
        def contiguous_kernel(*arguments: Any) -> Any:
            return kernel(*arguments).contiguous()

        return contiguous_kernel

    def roi_pool_kernel(*arguments: Any) -> tuple[Tensor, Tensor]:
        output, argmax = roi_pool(*arguments)
        return output.contiguous(), argmax.contiguous()

    def roi_pool_backward_kernel(
        grad: Tensor, rois: Tensor, argmax: Tensor, *arguments: Any
    ) -> Tensor:
        gradient: Tensor = roi_pool_backward(grad, argmax, rois, *arguments).contiguous()
        return gradient

    def mapped(kernel: Kernel) -> Kernel:
        def mapped_kernel(*arguments: Any) -> tuple[Tensor, Tensor]:
            output = kernel(*arguments).contiguous()
            # The channel that each value was read from: a box's own values, counted through.
            channels = torch.arange(output[:1].numel(), dtype=torch.int32, device=output.device)
            return output, channels.repeat(len(output)).view(output.shape)

        return mapped_kernel

    def ps_roi_align_backward_kernel(
        grad: Tensor,
        rois: Tensor,
        _mapping: Tensor,
        spatial_scale: float,
        pooled_height: int,
        pooled_width: int,
        sampling_ratio: int,
        *sizes: int,
    ) -> Tensor:
        bins = spatial_scale, pooled_height, pooled_width
        gradient: Tensor = ps_roi_align_backward(grad, rois, *bins, *sizes, sampling_ratio)
        return gradient.contiguous()

    def ps_roi_pool_backward_kernel(
        grad: Tensor, rois: Tensor, _mapping: Tensor, *arguments: Any
    ) -> Tensor:
        gradient: Tensor = ps_roi_pool_backward(grad, rois, *arguments).contiguous()
        return gradient

    return {
        "torchvision::nms": nms_kernel,
        "torchvision::roi_align": contiguous(roi_align),
        "torchvision::_roi_align_backward": contiguous(roi_align_backward),
        "torchvision::roi_pool": roi_pool_kernel,
        "torchvision::_roi_pool_backward": roi_pool_backward_kernel,
        "torchvision::ps_roi_align": mapped(ps_roi_align),
        "torchvision::_ps_roi_align_backward": ps_roi_align_backward_kernel,
        "torchvision::ps_roi_pool": mapped(ps_roi_pool),
        "torchvision::_ps_roi_pool_backward": ps_roi_pool_backward_kernel,
    }


# ---- shape functions: arguments come by position; those that no shape depends on are underscored


def _check_rois(rois: Tensor) -> None:
    torch._check(rois.dim() == 2, lambda: f"rois should be a 2d tensor, got {rois.dim()}D")
    torch._check(rois.size(1) == 5, lambda: "rois must have shape as Tensor[K, 5]")


def _meta_roi_align(
    input: Tensor, rois: Tensor, _scale: float, height: int, width: int, *_rest: Any
) -> Tensor:
    _check_rois(rois)
    return input.new_empty((rois.size(0), input.size(1), height, width))


def _meta_roi_pool(
    input: Tensor, rois: Tensor, _scale: float, height: int, width: int
) -> tuple[Tensor, Tensor]:
    _check_rois(rois)
    size = (rois.size(0), input.size(1), height, width)
    return input.new_empty(size), input.new_empty(size, dtype=torch.int32)


def _meta_ps(
    input: Tensor, rois: Tensor, _scale: float, height: int, width: int, *_rest: Any
) -> tuple[Tensor, Tensor]:
    _check_rois(rois)
    channels = input.size(1)
    torch._check(
        channels % (height * width) == 0,
        lambda: "input channels must be a multiple of pooling height * pooling width",
    )
    size = (rois.size(0), channels // (height * width), height, width)
    return input.new_empty(size), input.new_empty(size, dtype=torch.int32)


def _meta_backward(first_size: int) -> Kernel:
    """The shape of a gradient whose operator has the sizes of the map from an argument on."""

    def meta(grad: Tensor, *arguments: Any) -> Tensor:
        return grad.new_empty(arguments[first_size - 1 : first_size + 3])

    return meta


META: dict[str, Kernel] = {
    "torchvision::roi_align": _meta_roi_align,
    "torchvision::_roi_align_backward": _meta_backward(5),
    "torchvision::roi_pool": _meta_roi_pool,
    "torchvision::_roi_pool_backward": _meta_backward(6),
    "torchvision::ps_roi_align": _meta_ps,
    "torchvision::_ps_roi_align_backward": _meta_backward(7),
    "torchvision::ps_roi_pool": _meta_ps,
    "torchvision::_ps_roi_pool_backward": _meta_backward(6),
}
