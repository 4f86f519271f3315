"""The gradients of the layers of ResNet-50 and MobileNetV3-Large on the CPU, each by itself.

python -m bench.conv_gradients [batch [dtype]]: torch's better layout over ours, for NCHW and
channels_last, of the gradient with respect to the input and with respect to the weight.
"""

from __future__ import annotations

import math
import sys
from functools import partial
from typing import Any

import torch

from bench.acceptance import THREADS, _time
from bench.acceptance_conv import LAYOUTS
from bench.timing import Candidate
from bench.workloads import ConvShape, model_convs
from cvkernels import ops  # noqa: F401  registers the operators

MODELS = ("resnet50", "mobilenet_v3_large")
OURS = torch.ops.cvkernels
Call = partial[Any]


def calls(layer: ConvShape, last: bool, dtype: torch.dtype) -> dict[str, tuple[Call, Call]]:
    """By gradient: ours and torch's, in one layout."""
    g = torch.Generator().manual_seed(1)
    layout = torch.channels_last if last else torch.contiguous_format
    x, w, grad = (
        torch.randn(shape, generator=g).to(dtype).contiguous(memory_format=layout)
        for shape in (layer.input, layer.weight, layer.output)
    )
    stride, padding, dilation = ([n] * 2 for n in (layer.stride, layer.padding, layer.dilation))
    ours = (stride, padding * 2, dilation, layer.groups)
    torchs = (None, stride, padding, dilation, False, [0, 0], layer.groups)
    backward = partial(torch.ops.aten.convolution_backward, grad, x, w, *torchs)
    return {
        "input": (
            partial(OURS.conv2d_backward_input, grad, w, *layer.input[2:], *ours, last, False),
            partial(backward, [True, False, False]),
        ),
        "weight": (
            partial(OURS.conv2d_backward_weight, grad, x, *layer.kernel, *ours, last, last, False),
            partial(backward, [False, True, False]),
        ),
    }


def ratios(
    layer: ConvShape, gradient: str, dtype: torch.dtype, budget_s: float
) -> dict[str, tuple[float, float]]:
    """By layout: torch's better layout over ours, and our time in seconds."""
    candidates = {}
    for name, last in LAYOUTS.items():
        ours, torchs = calls(layer, last, dtype)[gradient]
        found, expected = ours(), torchs()[0 if gradient == "input" else 1]
        scale = float(expected.abs().max())
        near = max(1e-3, 2 * torch.finfo(dtype).eps)
        torch.testing.assert_close(found, expected, rtol=near, atol=near * scale)
        candidates[name] = Candidate(name, ours)
        candidates["torch " + name] = Candidate("torch " + name, torchs)
    times = {name: found.stats.median for name, found in _time(candidates, budget_s).items()}
    best = min(times["torch " + name] for name in LAYOUTS)
    return {name: (best / times[name], times[name]) for name in LAYOUTS}


def main() -> None:
    batch = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    dtype = getattr(torch, sys.argv[2] if len(sys.argv) > 2 else "float32")
    torch.set_num_threads(THREADS)
    logs: dict[tuple[str, str], list[float]] = {}
    for layer in dict.fromkeys(shape for model in MODELS for shape in model_convs(model, batch)):
        row = f"{layer.name:<36}"
        for gradient in ("input", "weight"):
            for name, (ratio, time) in ratios(layer, gradient, dtype, 0.3).items():
                row += f"  {gradient} {name} {ratio:.2f}x {time * 1e6:.0f} us"
                logs.setdefault((gradient, name), []).append(math.log(ratio))
        print(row, flush=True)
    for (gradient, name), values in logs.items():
        print(f"geometric mean, {gradient}, {name}: {math.exp(sum(values) / len(values)):.2f}x")


if __name__ == "__main__":
    main()
