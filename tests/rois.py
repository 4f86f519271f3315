"""Maps, boxes and errors for the tests of RoI operators with samples, beside roi_family."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from harness import Args, ErrorCase
from roi_family import FLOATS, INF, NAN, features, random_boxes
from torch import Tensor

__all__ = [
    "INF",
    "NAN",
    "family_errors",
    "features",
    "plane",
    "random_boxes",
    "random_rotated",
    "rows",
    "turned",
]


def rows(*boxes: tuple[float, ...], columns: int = 5) -> Tensor:
    return torch.tensor(boxes, dtype=torch.float64).reshape(-1, columns)


def plane(height: int, width: int) -> Tensor:
    """x[y, w] = 10 y + w: bilinear interpolation gives 10 y + x anywhere inside."""
    y = torch.arange(float(height), dtype=torch.float64)[:, None]
    return (10 * y + torch.arange(float(width), dtype=torch.float64)).reshape(1, 1, height, width)


def random_rotated(
    count: int, images: int, extent: tuple[float, float], seed: int = 1, spill: float = 0.2
) -> Tensor:
    """[count, 6] boxes of any angle, some reaching over the edges."""
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(count, images, extent, seed, spill)
    angle = 4 * math.pi * (torch.rand(count, 1, generator=generator, dtype=torch.float64) - 0.5)
    return torch.cat([turned(boxes)[:, :5], angle], 1)


def turned(boxes: Tensor, angle: float = 0.0) -> Tensor:
    """Upright boxes [K, 5] as (image, centre, size, angle), [K, 6]."""
    centre, size = (boxes[:, 1:3] + boxes[:, 3:]) / 2, boxes[:, 3:] - boxes[:, 1:3]
    return torch.cat([boxes[:, :1], centre, size, torch.full_like(boxes[:, :1], angle)], 1)


Good = Callable[..., Callable[[], Args]]


def family_errors(op: str, good: Good, name: str, columns: int) -> list[ErrorCase]:
    """What every operator with samples refuses about its map, boxes and sizes."""
    cases: list[tuple[str, dict[str, Any], str] | tuple[str, dict[str, Any], str, type[Exception]]]
    cases = [
        (
            "input dims",
            {"input": lambda: torch.ones(3, 4)},
            "input of shape (N, C, H, W), got (3, 4)",
        ),
        ("input 1-d", {"input": lambda: torch.ones(3)}, "input of shape (N, C, H, W), got (3,)"),
        (
            "input dtype",
            {"input": lambda: torch.ones(2, 3, 8, 8, dtype=torch.int64)},
            f"input of dtype {FLOATS}, got int64",
        ),
        ("input type", {"input": None}, "input to be a tensor, got NoneType", TypeError),
        (
            "boxes columns",
            {name: lambda: torch.ones(4, columns + 1)},
            f"{name} of shape (K, {columns}), got (4, {columns + 1})",
        ),
        (
            "boxes dims",
            {name: lambda: torch.ones(columns)},
            f"{name} of shape (K, {columns}), got ({columns},)",
        ),
        (
            "boxes dtype",
            {name: lambda: torch.ones(4, columns, dtype=torch.int32)},
            f"{name} of dtype {FLOATS}, got int32",
        ),
        (
            "boxes device",
            {name: lambda: torch.ones(4, columns, device="meta")},
            f"{name} on the device of input (cpu), got meta",
        ),
        (
            "boxes type",
            {name: 3},
            f"{name} to be a tensor or a list of tensors, got int",
            TypeError,
        ),
        (
            "list shape",
            {name: lambda: [torch.ones(2, columns - 1), torch.ones(3, columns)]},
            f"{name}[1] of shape (L, {columns - 1}), got (3, {columns})",
        ),
        (
            "list dtype",
            {name: lambda: [torch.ones(2, columns - 1, dtype=torch.int64)]},
            f"{name}[0] of dtype {FLOATS}, got int64",
        ),
        (
            "list member",
            {name: lambda: [torch.ones(2, columns - 1), None]},
            f"{name}[1] to be a tensor, got NoneType",
            TypeError,
        ),
        ("output zero", {"output_size": (0, 7)}, SIZES + ", got (0, 7)"),
        ("output negative", {"output_size": -1}, SIZES + ", got (-1, -1)"),
        ("output huge", {"output_size": (1, 2**31)}, SIZES + ", got (1, 2147483648)"),
        (
            "output three",
            {"output_size": (1, 2, 3)},
            "output_size to be an integer or a pair of integers, got 3 values",
        ),
        (
            "output float",
            {"output_size": 2.5},
            "output_size to be an integer, got float",
            TypeError,
        ),
        ("scale nan", {"spatial_scale": NAN}, "spatial_scale to be finite and positive, got nan"),
        ("scale zero", {"spatial_scale": 0.0}, "spatial_scale to be finite and positive, got 0"),
        ("scale type", {"spatial_scale": "1"}, "spatial_scale to be a number, got str", TypeError),
        ("sampling huge", {"sampling_ratio": 32769}, "sampling_ratio of at most 32768, got 32769"),
        (
            "sampling type",
            {"sampling_ratio": 1.5},
            "sampling_ratio to be an integer, got float",
            TypeError,
        ),
    ]
    found = [
        ErrorCase(name_, good(**changes), f"{op}: expected {text}", *rest)
        for name_, changes, text, *rest in cases
    ]
    for word, index, text in (
        ("high", 2.0, "2"),
        ("negative", -1.0, "-1"),
        ("nan", NAN, "nan"),
        ("inf", INF, "inf"),
        ("huge", 1e20, "1e+20"),
    ):

        def bad_row(index: float = index) -> Tensor:
            boxes = torch.zeros(4, columns)
            boxes[1, 0] = index
            return boxes

        message = f"{op}: expected {name}[:, 0] in [0, 2), got {text} in row 1"
        found.append(ErrorCase(f"index {word}", good(**{name: bad_row}), message, reads_data=True))
    return found


SIZES = "output_size of positive 32-bit values"
