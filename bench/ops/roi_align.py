"""RoI Align: detectors' boxes on detectors' feature maps, forward and with its gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench import workloads
from bench.harness import Case, Context, Trial
from bench.libraries import TORCHVISION, load
from bench.machine import Cost
from bench.workloads import RoiInput, RoiLevel

_REFERENCE_SAMPLES = 5e6  # sampled values above which the reference would only slow the bench


def cases() -> list[Case]:
    """Every RoI Align case; dtypes and layouts are spelled out where they matter most."""
    found = []
    c4 = [
        ("float32", False, True),
        ("float32", True, True),
        ("bfloat16", False, False),
        ("bfloat16", True, True),
        ("float16", False, False),
        ("float64", False, False),
    ]
    for direction in ("fwd", "fwd+bwd"):
        for dtype, channels_last, quick in c4:
            found.append(
                _case("c4_512", workloads.c4, direction, dtype, channels_last, quick=quick)
            )
        box = partial(workloads.fpn, 1000, 7)
        mask = partial(workloads.fpn, 100, 14)
        found.append(_case("fpn_box_1000", box, direction))
        found.append(_case("fpn_box_1000", box, direction, channels_last=True))
        found.append(_case("fpn_mask_100", mask, direction))
        found.append(_case("large_8_adaptive", workloads.large, direction))
        found.append(_case("tiny_10", workloads.tiny, direction, quick=True))
    # The gradient of the boxes, which no peer has: 64 of them for the reference to keep up.
    few = partial(workloads.c4, 64)
    found.append(_case("c4_64", few, "fwd+bwd", boxes=True, quick=True))
    for channels_last in (False, True):
        found.append(
            _case("c4_512", workloads.c4, "fwd+bwd", channels_last=channels_last, boxes=True)
        )
    train = partial(workloads.fpn, 1024, 7, images=2)
    found.append(_case("fpn_train_2x512", train, "fwd+bwd"))
    return found


def _case(
    workload: str,
    make: Callable[[], RoiInput],
    direction: str,
    dtype: str = "float32",
    channels_last: bool = False,
    *,
    boxes: bool = False,
    quick: bool = False,
) -> Case:
    def build(context: Context) -> Trial:
        return trial(context, make(), direction, dtype, channels_last=channels_last, boxes=boxes)

    name = workload + (" of boxes" if boxes else "") + (" channels_last" if channels_last else "")
    return Case("roi_align", direction, dtype, name, build, quick=quick)


def trial(
    context: Context,
    data: RoiInput,
    direction: str,
    dtype: str,
    *,
    channels_last: bool = False,
    boxes: bool = False,
) -> Trial:
    """Calls for one workload, all libraries on the same tensors and on the layout as given."""
    calls = Calls(data, direction, getattr(torch, dtype), context.device, channels_last, boxes)
    libraries = context.libraries
    peers = libraries.find("roi_align", "roi_align")
    if boxes:
        peers.pop(TORCHVISION, None)  # gives none
    if _sampled(data) * data.levels[0].shape[1] > _REFERENCE_SAMPLES:
        peers.pop("reference", None)
    # torchvision computes half in half and has no bfloat16: the truth for both is its float32.
    truth = load(TORCHVISION, "roi_align", "roi_align")
    narrow = dtype in ("float16", "bfloat16")
    return Trial(
        ours=calls.of(libraries.our("roi_align", "roi_align")),
        peers={name: calls.of(function) for name, function in peers.items()},
        cost=cost(data, direction, calls.dtype.itemsize, boxes=boxes),
        match=dtype,
        expected=calls.widened().of(truth) if narrow and truth is not None else None,
    )


class Calls:
    """The tensors of one workload, and calls on them.

    A forward call gives the pooled features of every level, "fwd+bwd" the gradients of the maps,
    or with `boxes` those of the boxes.
    """

    def __init__(
        self,
        data: RoiInput,
        direction: str,
        dtype: torch.dtype,
        device: torch.device,
        channels_last: bool,
        of_boxes: bool = False,
    ) -> None:
        g = torch.Generator().manual_seed(1)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.data, self.dtype, self.backward = data, dtype, direction == "fwd+bwd"
        self.inputs, self.boxes, self.grads = [], [], []
        for level in data.levels:
            feature = torch.randn(level.shape, generator=g)
            feature = feature.to(device, dtype).contiguous(memory_format=layout)
            self.inputs.append(feature.requires_grad_(self.backward and not of_boxes))
            boxes = level.boxes.to(device, dtype)
            self.boxes.append(boxes.requires_grad_(self.backward and of_boxes))
            pooled = (len(level.boxes), self.channels(level), *data.output_size)
            grad = torch.randn(pooled if self.backward else (0, 1, 1, 1), generator=g)
            self.grads.append(grad.to(device, dtype).contiguous(memory_format=layout))
        self.leaves = self.boxes if of_boxes else self.inputs

    def channels(self, level: RoiLevel) -> int:
        """Channels of the pooled features."""
        return level.shape[1]

    def arguments(self) -> tuple[Any, ...]:
        """What follows input, boxes, output size and scale."""
        return self.data.sampling_ratio, self.data.aligned

    def widened(self) -> Calls:
        """The same numbers, rounded to the narrow dtype as they are, in float32."""
        wide = object.__new__(type(self))
        wide.data, wide.dtype, wide.backward = self.data, torch.float32, self.backward
        wide.inputs = [x.detach().float().requires_grad_(self.backward) for x in self.inputs]
        wide.boxes = [x.float() for x in self.boxes]
        wide.grads = [x.float() for x in self.grads]
        wide.leaves = wide.inputs
        return wide

    def of(self, function: Callable[..., Tensor]) -> Callable[[], Any]:
        """The whole workload as one call of `function`, which has torchvision's signature."""
        data = self.data
        fixed = [
            (x, rois, data.output_size, level.scale, *self.arguments())
            for x, rois, level in zip(self.inputs, self.boxes, data.levels, strict=True)
        ]

        def forward() -> list[Tensor]:
            return [function(*arguments) for arguments in fixed]

        def forward_backward() -> tuple[Tensor, ...]:
            return torch.autograd.grad(forward(), self.leaves, self.grads)

        return forward_backward if self.backward else forward


def cost(data: RoiInput, direction: str, itemsize: int, *, boxes: bool = False) -> Cost:
    """Least work: touched pixels read once, outputs written once, four multiply-adds a sample.

    The gradient reads the output's gradient and writes the whole map, with as much arithmetic; that
    of the boxes reads the touched pixels again and writes next to nothing.
    """
    total = Cost(0, 0)
    for level in data.levels:
        n, c, h, w = level.shape
        bins = len(level.boxes) * data.output_size[0] * data.output_size[1]
        samples = _samples(level, data)
        pooled = bins * c * itemsize
        rois = 5 * len(level.boxes) * itemsize
        touched = touched_pixels(level) * c * itemsize
        total += Cost(touched + pooled + rois, 8.0 * samples * c)
        if direction == "fwd+bwd":
            rest = touched + rois if boxes else n * c * h * w * itemsize
            total += Cost(pooled + rois + rest, 8.0 * samples * c)
    return total


def _sampled(data: RoiInput) -> float:
    return sum(_samples(level, data) for level in data.levels)


def _samples(level: RoiLevel, data: RoiInput) -> float:
    """Samples per channel over all boxes of a level."""
    rows, columns = data.output_size
    if data.sampling_ratio > 0:
        return len(level.boxes) * rows * columns * data.sampling_ratio**2
    size = (level.boxes[:, 3:] - level.boxes[:, 1:3]) * level.scale
    if not data.aligned:
        size = size.clamp(min=1)
    grid = (size / torch.tensor([float(columns), float(rows)])).ceil().clamp(min=0)
    return float(grid.prod(1).sum()) * rows * columns


def touched_pixels(level: RoiLevel) -> int:
    """Pixels of the map inside at least one box, per channel."""
    n, _, h, w = level.shape
    mask = torch.zeros(n, h, w, dtype=torch.bool)
    low = (level.boxes[:, 1:3] * level.scale).floor().clamp(min=0).int()
    high = (level.boxes[:, 3:] * level.scale).ceil().int() + 1
    for image, (x0, y0), (x1, y1) in zip(
        level.boxes[:, 0].int().tolist(), low.tolist(), high.tolist(), strict=True
    ):
        mask[image, y0:y1, x0:x1] = True
    return int(mask.sum())
