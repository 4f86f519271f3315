"""im2col and col2im against torch's unfold and fold: both are bound by memory."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from bench.harness import Case, Context, Trial
from bench.machine import Cost
from bench.workloads import ConvShape, conv

LAYERS = (conv(64, 64, 3, 56), conv(256, 256, 3, 50, 84), conv(3, 64, 7, 224, stride=2))


def cases() -> list[Case]:
    """Both directions; the forward one on both layouts."""
    found = []
    for layer in LAYERS:
        for name, channels_last in (("im2col", False), ("im2col", True), ("col2im", False)):
            build = partial(trial, layer, name, channels_last)
            word = f"{name} {layer.name}" + (" channels_last" if channels_last else "")
            found.append(Case("im2col", "fwd", "float32", word, build, quick=layer is LAYERS[0]))
    return found


def trial(layer: ConvShape, name: str, channels_last: bool, context: Context) -> Trial:
    """Calls for one layer."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(layer.input, generator=torch.Generator().manual_seed(1)).to(context.device)
    x = x.contiguous(memory_format=layout)
    arguments = (layer.kernel, layer.dilation, layer.padding, layer.stride)
    columns = F.unfold(x, *arguments)
    size = layer.input[2:]
    ours = context.libraries.our("im2col", name)
    return Trial(
        ours=partial(ours, x, *arguments)
        if name == "im2col"
        else partial(ours, columns, size, *arguments),
        peers={
            "torch": partial(F.unfold, x, *arguments)
            if name == "im2col"
            else partial(F.fold, columns, size, *arguments)
        },
        cost=Cost(4 * (x.numel() + columns.numel()), 0),
        match="float32",
    )
