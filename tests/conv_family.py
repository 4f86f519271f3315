"""What the tests of the convolutions share: seeded tensors and random geometries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Geometry:
    """A random convolution; `weight` is [O, C / groups, KH, KW]."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    bias: bool

    @property
    def arguments(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }


def random_geometry(g: torch.Generator, most_channels: int = 20) -> Geometry:
    """Any stride, padding, dilation, groups and odd sizes, such that the kernel fits."""

    def pick(low: int, high: int) -> int:  # low <= result <= high
        return int(torch.randint(low, high + 1, (), generator=g))

    kernel = (pick(1, 4), pick(1, 5))
    dilation = (pick(1, 3), pick(1, 3)) if pick(0, 2) == 0 else (1, 1)
    padding = (pick(0, 3), pick(0, 3)) if pick(0, 1) else (0, 0)
    stride = (pick(1, 3), pick(1, 3)) if pick(0, 1) else (1, 1)
    kind = pick(0, 5)
    if kind == 0:  # depthwise
        groups = pick(2, most_channels)
        channels, filters = 1, groups
    elif kind == 1:
        groups = pick(2, 4)
        channels, filters = pick(1, 5), groups * pick(1, 5)
    else:
        groups, channels, filters = 1, pick(1, most_channels), pick(1, most_channels)
    if kind == 2:
        kernel, padding = (1, 1), (0, 0)
    least = [max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]) for i in (0, 1)]
    size = tuple(least[i] + pick(0, 12) for i in (0, 1))
    return Geometry(
        input=(pick(1, 3), groups * channels, *size),
        weight=(filters, channels, *kernel),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=pick(0, 1) == 1,
    )
