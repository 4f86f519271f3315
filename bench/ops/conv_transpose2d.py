"""conv_transpose2d: the upsampling layers of decoders, against torch in both layouts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness import Case, Context, Trial
from bench.machine import Cost

# (C, O, kernel, stride, padding, H, W): Mask R-CNN's, a U-Net's, a GAN's, and a dense one.
LAYERS = (
    (256, 256, 2, 2, 0, 14, 14),
    (128, 64, 2, 2, 0, 56, 56),
    (256, 128, 4, 2, 1, 16, 16),
    (64, 64, 3, 1, 1, 56, 56),
)


def cases() -> list[Case]:
    """Every case in both layouts."""
    found = []
    for layer in LAYERS:
        for direction in ("fwd", "fwd+bwd"):
            for channels_last in (False, True):
                found.append(_case(layer, direction, channels_last))
    return found


def _case(layer: tuple[int, ...], direction: str, channels_last: bool) -> Case:
    c, o, k, stride, _, h, w = layer
    name = f"{c}->{o} {k}x{k} s{stride} {h}x{w}" + (" channels_last" if channels_last else "")
    build = partial(trial, layer, direction, channels_last)
    return Case(
        "conv_transpose2d",
        direction,
        "float32",
        name,
        build,
        quick=layer is LAYERS[0] and direction == "fwd",
    )


def trial(layer: tuple[int, ...], direction: str, channels_last: bool, context: Context) -> Trial:
    """Calls for one layer, ours and torch's on the same layout."""
    c, o, k, stride, padding, h, w = layer
    g = torch.Generator().manual_seed(1)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    backward = direction == "fwd+bwd"

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        value = (torch.randn(shape, generator=g) * scale).to(context.device)
        return value.contiguous(memory_format=layout) if len(shape) == 4 else value

    tensors = random(1, c, h, w), random(c, o, k, k, scale=(c * k * k) ** -0.5), random(o)
    for tensor in tensors:
        tensor.requires_grad_(backward)
    height, width = ((size - 1) * stride - 2 * padding + k for size in (h, w))
    grad = random(1, o, height, width)

    def of(function: Callable[..., Tensor]) -> Callable[[], Any]:
        forward = partial(function, *tensors, stride, padding)
        if not backward:
            return forward
        return lambda: torch.autograd.grad(forward(), tensors, grad)

    passes = 3 if backward else 1
    elements = c * h * w + o * height * width + c * o * k * k
    return Trial(
        ours=of(context.libraries.our("conv_transpose2d", "conv_transpose2d")),
        peers={"torch": of(F.conv_transpose2d)},
        cost=Cost(passes * elements * 4, passes * 2.0 * c * h * w * o * k * k),
        match="float32",
    )
