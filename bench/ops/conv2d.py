"""conv2d: layers of real networks, forward and with gradients, against torch in both layouts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness import Case, Context, Trial
from bench.machine import Cost
from bench.workloads import ConvShape, conv

TORCH, OTHER, UNFOLD = "torch", "torch other layout", "unfold + matmul"

# What the acceptance names, a layer of each kind of ResNet-50 and MobileNetV3, and odd ones.
QUICK = (
    conv(256, 256, 3, 50, 84),
    conv(64, 64, 3, 56),
    conv(33, 65, 3, 56),
    conv(240, 240, 3, 28, stride=2, groups=240),
)
LAYERS = (
    *QUICK,
    conv(64, 64, 3, 56, batch=8),
    conv(3, 64, 7, 224, stride=2),
    conv(3, 64, 7, 224, stride=2, batch=8),
    conv(3, 17, 3, 112),
    conv(64, 256, 1, 56),
    conv(512, 128, 1, 28),
    conv(256, 256, 3, 14),
    conv(512, 512, 3, 7),
    conv(512, 512, 3, 7, batch=8),
    conv(2048, 512, 1, 7),
    conv(128, 128, 3, 56, stride=2),
    conv(256, 256, 3, 28, dilation=2),
    conv(128, 128, 3, 28, groups=32),
    conv(960, 240, 1, 1),
    conv(16, 16, 3, 112, groups=16),
    conv(120, 120, 5, 28, groups=120),
    conv(960, 960, 5, 7, groups=960),
)
# A GPU needs more work at once: layers of ResNet-50 and of a detector's head.
GPU_LAYERS = (
    conv(256, 256, 3, 50, 84, batch=8),
    conv(64, 64, 3, 56, batch=32),
    conv(128, 128, 3, 28, batch=32),
    conv(256, 256, 3, 14, batch=32),
    conv(512, 512, 3, 7, batch=32),
    conv(64, 256, 1, 56, batch=32),
    conv(256, 64, 1, 56, batch=32),
    conv(1024, 256, 1, 14, batch=32),
    conv(3, 64, 7, 224, batch=32, stride=2),
    conv(33, 65, 3, 56, batch=32),
    conv(128, 128, 3, 56, batch=32, groups=128),
)


def cases() -> list[Case]:
    """Every case; float32 in both layouts, other dtypes on the first layers."""
    found = []
    for layer in GPU_LAYERS:
        for dtype, channels_last in (("float16", True), ("float16", False), ("tf32", True)):
            found.append(_case(layer, "fwd", dtype, channels_last, device="cuda"))
        found.append(_case(layer, "fwd+bwd", "float16", True, device="cuda"))
    for layer in LAYERS:
        for channels_last in (False, True):
            found.append(_case(layer, "fwd", "float32", channels_last, quick=layer in QUICK))
            found.append(_case(layer, "fwd+bwd", "float32", channels_last))
    for dtype in ("bfloat16", "float16", "float64"):
        for layer in QUICK:
            for channels_last in (False, True):
                found.append(_case(layer, "fwd", dtype, channels_last, quick=layer is QUICK[0]))
    return found


def _case(
    layer: ConvShape,
    direction: str,
    dtype: str,
    channels_last: bool,
    *,
    quick: bool = False,
    device: str = "",
) -> Case:
    def build(context: Context) -> Trial:
        return trial(context, layer, direction, dtype, channels_last=channels_last)

    name = layer.name + (" channels_last" if channels_last else "")
    return Case("conv2d", direction, dtype, name, build, quick=quick, device=device)


def trial(
    context: Context, layer: ConvShape, direction: str, dtype: str, *, channels_last: bool = False
) -> Trial:
    """Calls for one layer: ours, torch on the same layout and on the other, and by columns.

    The dtype "tf32" is float32 with both libraries allowed to round factors to TF32.
    """
    tf32 = dtype == "tf32"
    element = torch.float32 if tf32 else getattr(torch, dtype)
    calls = Calls(layer, direction, element, context.device, channels_last, tf32)
    other = Calls(layer, direction, element, context.device, not channels_last, tf32)
    peers = {TORCH: calls.of(F.conv2d), OTHER: other.of(F.conv2d)}
    if layer.products * 4 < 2**31:  # the columns of larger ones would not fit
        peers[UNFOLD] = calls.of(by_unfold)
    narrow = dtype in ("float16", "bfloat16", "tf32")
    return Trial(
        ours=calls.of(context.libraries.our("conv2d", "conv2d")),
        peers=peers,
        cost=cost(layer, direction, calls.dtype.itemsize),
        match=dtype,
        expected=calls.widened().of(F.conv2d) if narrow else None,
    )


def by_unfold(
    x: Tensor, w: Tensor, b: Tensor, stride: int, padding: int, dilation: int, groups: int
) -> Tensor:
    """F.unfold and a matrix product, as one writes a convolution by hand."""
    columns = F.unfold(x, w.shape[2:], dilation, padding, stride)
    rows = w.reshape(groups, w.shape[0] // groups, -1)
    out = rows @ columns.unflatten(1, (groups, -1))
    height = (x.shape[2] + 2 * padding - dilation * (w.shape[2] - 1) - 1) // stride + 1
    return out.reshape(x.shape[0], w.shape[0], height, -1) + b[:, None, None]


class Calls:
    """The tensors of one layer, and calls on them; "fwd+bwd" gives all three gradients."""

    def __init__(
        self,
        layer: ConvShape,
        direction: str,
        dtype: torch.dtype,
        device: torch.device,
        channels_last: bool,
        tf32: bool = False,
    ) -> None:
        g = torch.Generator().manual_seed(1)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.layer, self.dtype, self.backward = layer, dtype, direction == "fwd+bwd"
        self.tf32 = tf32

        def random(*shape: int, scale: float = 1.0) -> Tensor:
            value = (torch.randn(shape, generator=g) * scale).to(device, dtype)
            value = value.contiguous(memory_format=layout) if len(shape) == 4 else value
            return value.requires_grad_(self.backward)

        fan = layer.weight[1] * layer.weight[2] * layer.weight[3]
        self.tensors = (
            random(*layer.input),
            random(*layer.weight, scale=fan**-0.5),
            random(layer.filters),
        )
        self.grad = random(*layer.output).detach()

    def widened(self) -> Calls:
        """The same numbers, rounded to the narrow dtype as they are, in float32."""
        wide = object.__new__(Calls)
        wide.layer, wide.dtype, wide.backward = self.layer, torch.float32, self.backward
        wide.tf32 = False
        wide.tensors = tuple(t.detach().float().requires_grad_(self.backward) for t in self.tensors)
        wide.grad = self.grad.float()
        return wide

    def of(self, function: Callable[..., Tensor]) -> Callable[[], Any]:
        """The layer as one call of `function`, which has torch's signature."""
        s = self.layer
        forward = partial(function, *self.tensors, s.stride, s.padding, s.dilation, s.groups)
        run: Callable[[], Any] = forward
        if self.backward:

            def run() -> Any:
                return torch.autograd.grad(forward(), self.tensors, self.grad)

        return in_tf32(run) if self.tf32 else run


def in_tf32(run: Callable[[], Any]) -> Callable[[], Any]:
    """The call with torch's switch on; on the CPU it means nothing."""

    def call() -> Any:
        switches = torch.backends.cudnn.conv  # type: ignore[attr-defined]
        before, switches.fp32_precision = switches.fp32_precision, "tf32"
        try:
            return run()
        finally:
            switches.fp32_precision = before

    return call


def cost(layer: ConvShape, direction: str, itemsize: int) -> Cost:
    """Least work: maps and weights once, two operations a product; three such for the gradients."""
    n, c, height, width = layer.input
    elements = n * c * height * width + _product(layer.weight) + _product(layer.output)
    passes = 3 if direction == "fwd+bwd" else 1
    return Cost(passes * elements * itemsize, passes * 2.0 * layer.products)


def _product(values: tuple[int, ...]) -> int:
    result = 1
    for value in values:
        result *= value
    return result
