"""Multi-level RoI Align: the heads of Mask R-CNN on its pyramid, forward and with its gradient.

Library for library through the module `MultiScaleRoIAlign`, which both have: assignment of levels,
pooling and putting the results together are all timed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench import workloads
from bench.harness import Case, Context, Trial
from bench.libraries import REFERENCE, TORCHVISION, load
from bench.ops import roi_align
from bench.workloads import RoiInput

_IMAGE = (800, 1333)  # before padding, as the modules are told


def cases() -> list[Case]:
    """Box and mask head at 800 x 1333; dtypes and layouts where they matter most."""
    box = partial(workloads.fpn, 1000, 7)
    mask = partial(workloads.fpn, 100, 14)
    train = partial(workloads.fpn, 1024, 7, images=2)
    return [
        _case("fpn_box_1000", box, "fwd", quick=True),
        _case("fpn_box_1000", box, "fwd", channels_last=True),
        _case("fpn_box_1000", box, "fwd", "bfloat16"),
        _case("fpn_box_1000", box, "fwd", "float16", channels_last=True),
        _case("fpn_box_1000", box, "fwd+bwd"),
        _case("fpn_box_1000", box, "fwd+bwd", channels_last=True),
        _case("fpn_mask_100", mask, "fwd"),
        _case("fpn_mask_100", mask, "fwd+bwd"),
        _case("fpn_train_2x512", train, "fwd+bwd"),
        _case("fpn_box_10", partial(workloads.fpn, 10, 7), "fwd"),
    ]


def _case(
    workload: str,
    make: Callable[[], RoiInput],
    direction: str,
    dtype: str = "float32",
    channels_last: bool = False,
    *,
    quick: bool = False,
) -> Case:
    def build(context: Context) -> Trial:
        return trial(context, make(), direction, dtype, channels_last=channels_last)

    name = workload + (" channels_last" if channels_last else "")
    return Case("multiscale_roi_align", direction, dtype, name, build, quick=quick)


def trial(
    context: Context, data: RoiInput, direction: str, dtype: str, *, channels_last: bool = False
) -> Trial:
    """Calls for one workload, all libraries on the same tensors and on the layout as given."""
    calls = Calls(data, direction, getattr(torch, dtype), context.device, channels_last)
    libraries, op, module = context.libraries, "multiscale_roi_align", "MultiScaleRoIAlign"
    # The reference has no module, and would only slow the bench.
    peers = {n: calls.of(m) for n, m in libraries.find(op, module).items() if n != REFERENCE}
    # torchvision computes half in half and has no bfloat16: the truth for both is its float32.
    truth = load(TORCHVISION, op, module)
    narrow = dtype in ("float16", "bfloat16")
    return Trial(
        ours=calls.of(libraries.our(op, module)),
        peers=peers,
        cost=roi_align.cost(data, direction, calls.dtype.itemsize),
        match=dtype,
        expected=calls.widened().of(truth) if narrow and truth is not None else None,
    )


class Calls:
    """The tensors of one workload, and calls on them.

    A forward call gives the pooled features, "fwd+bwd" the gradients of the maps.
    """

    def __init__(
        self,
        data: RoiInput,
        direction: str,
        dtype: torch.dtype,
        device: torch.device,
        channels_last: bool,
    ) -> None:
        g = torch.Generator().manual_seed(1)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.data, self.dtype, self.backward = data, dtype, direction == "fwd+bwd"
        self.maps: dict[str, Tensor] = {}
        for i, level in enumerate(data.levels):
            feature = torch.randn(level.shape, generator=g)
            feature = feature.to(device, dtype).contiguous(memory_format=layout)
            self.maps[str(i)] = feature.requires_grad_(self.backward)
        rows = torch.cat([level.boxes for level in data.levels])
        rows = rows[torch.randperm(len(rows), generator=g)]  # levels mixed, as proposals come
        images, channels = data.levels[0].shape[:2]
        self.boxes = [rows[rows[:, 0] == i, 1:].to(device, dtype) for i in range(images)]
        pooled = (len(rows), channels, *data.output_size)
        grad = torch.randn(pooled if self.backward else (0, 1, 1, 1), generator=g)
        self.grad = grad.to(device, dtype).contiguous(memory_format=layout)

    def widened(self) -> Calls:
        """The same numbers, rounded to the narrow dtype as they are, in float32."""
        wide = object.__new__(type(self))
        wide.data, wide.dtype, wide.backward = self.data, torch.float32, self.backward
        wide.maps = {
            name: x.detach().float().requires_grad_(self.backward) for name, x in self.maps.items()
        }
        wide.boxes = [x.float() for x in self.boxes]
        wide.grad = self.grad.float()
        return wide

    def of(self, module: Callable[..., Any]) -> Callable[[], Any]:
        """The whole workload as one call of a module with torchvision's constructor."""
        data = self.data
        pool = module(list(self.maps), data.output_size, data.sampling_ratio)
        shapes = [_IMAGE] * len(self.boxes)

        def forward() -> Any:
            return pool(self.maps, self.boxes, shapes)

        def forward_backward() -> tuple[Tensor, ...]:
            return torch.autograd.grad(forward(), list(self.maps.values()), self.grad)

        return forward_backward if self.backward else forward
