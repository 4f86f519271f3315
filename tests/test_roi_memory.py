"""What the backward passes of the RoI family allocate on CUDA, seen under emulation."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from harness import EMULATED
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from cvkernels import ops

BYTES_A_BOX = 1024
SIZE = (2, 3)


def roi_functions() -> Iterator[str]:
    for name in sorted(ops.__all__):
        parameters = list(inspect.signature(getattr(ops, name)).parameters)
        if {"boxes", "rois"} & set(parameters[1:2]) and "output_size" in parameters:
            yield name


def allocated(run: Any) -> int:
    """Bytes of all allocations, whether or not they were freed again."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    events = found.profiler.kineto_results.events()  # type: ignore[union-attr]
    return sum(max(e.nbytes(), 0) for e in events if e.name() == "[memory]")


def boxes_of(name: str, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    low, size = torch.rand(2, count, 2, generator=generator) * 20
    image = torch.zeros(count, 1)
    if "rotated" in name:
        return torch.cat([image, low + 4, size + 1, torch.ones(count, 1)], 1)
    return torch.cat([image, low, low + size], 1)


@pytest.mark.skipif(not EMULATED, reason="about the CUDA kernels")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", list(roi_functions()))
def test_backward_allocates_little(name: str, layout: torch.memory_format) -> None:
    """At most twice the gradient of the map, and something for each box."""
    function: Any = getattr(ops, name)
    parameters = inspect.signature(function).parameters
    count = 30
    map_ = torch.randn(1, 48, 40, 40).contiguous(memory_format=layout).requires_grad_()
    arguments: dict[str, Any] = {"output_size": SIZE}
    first, second, *_ = parameters
    if first == "features":
        arguments["spatial_scales"] = [1.0]
    if "offset" in parameters:
        arguments["offset"] = torch.zeros(count, 2, *SIZE)
    maps: Any = [map_] if first == "features" else map_
    pooled = function(**{first: maps, second: boxes_of(name, count)}, **arguments)
    upstream = torch.randn_like(pooled)

    def backward() -> None:
        torch.autograd.grad(pooled, map_, upstream)

    most = 2 * map_.numel() * map_.element_size() + BYTES_A_BOX * count
    found = allocated(backward)
    assert map_.numel() * map_.element_size() <= found <= most
