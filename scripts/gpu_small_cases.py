"""Runs one small case of every kernel on the GPU; compute-sanitizer, nsys and ncu watch it.

    python scripts/gpu_small_cases.py [--large] [--list] [--shard I/N]

--large uses detector-sized inputs (for profiles); the default is small, because the sanitizers
slow kernels a hundredfold. Each case is checked against the CPU and wrapped in an NVTX range with
its name.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from cvkernels import ops

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float64: 1e-9}

Case = tuple[str, torch.dtype, Callable[[str], list[Tensor]]]


def random_boxes(count: int, side: float, span: float) -> Tensor:
    corner = torch.rand(count, 2, generator=torch.Generator().manual_seed(1)) * span
    size = torch.rand(count, 2, generator=torch.Generator().manual_seed(2)) * side + 1
    return torch.cat([corner, corner + size], 1)


def roi_align_cases(*, large: bool) -> Iterator[Case]:
    channels, height, width, count = (256, 50, 84, 512) if large else (40, 19, 23, 24)
    boxes = random_boxes(count, width * 6.0, width * 12.0)
    image = torch.arange(count).remainder(2)[:, None]
    rois = torch.cat([image, boxes], 1)
    for dtype in DTYPES:
        for layout in (torch.contiguous_format, torch.channels_last):
            for mode in ("avg", "max"):
                features = torch.randn(
                    2,
                    channels,
                    height,
                    width,
                    generator=torch.Generator().manual_seed(3),
                    dtype=torch.float64,
                ).to(dtype)

                def run(
                    device: str,
                    features: Tensor = features,
                    layout: torch.memory_format = layout,
                    mode: str = mode,
                ) -> list[Tensor]:
                    x = features.to(device).contiguous(memory_format=layout).requires_grad_()
                    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
                    box = rois.to(device, wide, copy=True).requires_grad_()
                    out = ops.roi_align(x, box, (7, 7), 1 / 16, 2, True, mode=mode)
                    out.backward(torch.ones_like(out))
                    assert x.grad is not None and box.grad is not None
                    return [out.detach(), x.grad, box.grad]

                word = "channels_last" if layout is torch.channels_last else "contiguous"
                yield f"roi_align {mode} {dtype} {word}", dtype, run


Pool = Callable[[Tensor, Tensor], Tensor]

# Every other function of the RoI family: name, what the channels must be a multiple of, a call.
ROI_FAMILY: tuple[tuple[str, int, Pool], ...] = (
    (
        "context_aware_roi_pool",
        1,
        lambda x, boxes: ops.context_aware_roi_pool(x, boxes, (7, 7), 1 / 16),
    ),
    ("prroi_pool", 1, lambda x, boxes: ops.prroi_pool(x, boxes, (7, 7), 1 / 16)),
    (
        "deform_roi_pool",
        1,
        lambda x, boxes: ops.deform_roi_pool(x, boxes, offsets(boxes), (7, 7), 1 / 16, 2),
    ),
    (
        "roi_align_rotated",
        1,
        lambda x, boxes: ops.roi_align_rotated(x, turned(boxes), (7, 7), 1 / 16, 2),
    ),
    ("ps_roi_align", 49, lambda x, boxes: ops.ps_roi_align(x, boxes, (7, 7), 1 / 16, 2)),
    ("ps_roi_pool", 49, lambda x, boxes: ops.ps_roi_pool(x, boxes, (7, 7), 1 / 16)),
    ("roi_pool", 1, lambda x, boxes: ops.roi_pool(x, boxes, (7, 7), 1 / 16)),
)


def roi_family_cases(*, large: bool) -> Iterator[Case]:
    channels, height, width, count = (256, 50, 84, 512) if large else (40, 19, 23, 24)
    boxes = random_boxes(count, width * 6.0, width * 12.0)
    rois = torch.cat([torch.arange(count).remainder(2)[:, None], boxes], 1)

    def case(name: str, multiple: int, pool: Pool, dtype: torch.dtype, last: bool) -> Case:
        shape = (2, round(channels / multiple) * multiple or multiple, height, width)
        generator = torch.Generator().manual_seed(3)
        features = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        layout = torch.channels_last if last else torch.contiguous_format

        def run(device: str) -> list[Tensor]:
            x = features.to(device).contiguous(memory_format=layout).requires_grad_()
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            box = rois.to(device, wide, copy=True).requires_grad_()
            out = pool(x, box)
            out.backward(torch.ones_like(out))
            assert x.grad is not None
            return [out.detach(), x.grad, *([] if box.grad is None else [box.grad])]

        return f"{name} {dtype} {'channels_last' if last else 'contiguous'}", dtype, run

    for name, multiple, pool in ROI_FAMILY:
        for dtype in DTYPES:
            for last in (False, True):
                yield case(name, multiple, pool, dtype, last)


def offsets(boxes: Tensor) -> Tensor:
    """[K, 2, 7, 7], which require a gradient: their kernel runs too."""
    values = torch.linspace(-1, 1, 98, device=boxes.device, dtype=boxes.dtype)
    return values.reshape(1, 2, 7, 7).repeat(len(boxes), 1, 1, 1).requires_grad_()


def turned(boxes: Tensor) -> Tensor:
    """Upright boxes [K, 5] at angles of their own, [K, 6]."""
    centre, size = (boxes[:, 1:3] + boxes[:, 3:]) / 2, boxes[:, 3:] - boxes[:, 1:3]
    angle = torch.linspace(-3, 3, len(boxes), device=boxes.device, dtype=boxes.dtype)
    return torch.cat([boxes[:, :1], centre, size, angle[:, None]], 1)


def multiscale_roi_align_cases(*, large: bool) -> Iterator[Case]:
    channels, height, width, count = (256, 200, 336, 1000) if large else (40, 48, 60, 24)
    boxes = random_boxes(count, width * 3.0, width * 2.0)
    boxes[: count // 2, 2:] = boxes[: count // 2, :2] + 50  # as many small ones
    rois = torch.cat([torch.arange(count).remainder(2)[:, None], boxes], 1)
    scales = [1 / 4, 1 / 8, 1 / 16]
    for dtype in DTYPES:
        for layout in (torch.contiguous_format, torch.channels_last):
            for mode in ("avg", "max"):
                generator = torch.Generator().manual_seed(3)
                maps = [
                    torch.randn(2, channels, height >> i, width >> i, generator=generator).to(dtype)
                    for i in range(3)
                ]

                def run(
                    device: str,
                    maps: list[Tensor] = maps,
                    layout: torch.memory_format = layout,
                    mode: str = mode,
                ) -> list[Tensor]:
                    leaves = [
                        m.to(device).contiguous(memory_format=layout).requires_grad_() for m in maps
                    ]
                    box = rois.to(
                        device, torch.float64 if maps[0].dtype == torch.float64 else torch.float32
                    )
                    out = ops.multiscale_roi_align(leaves, box, 7, scales, 2, mode=mode)
                    out.backward(torch.ones_like(out))
                    return [out.detach(), *(m.grad for m in leaves if m.grad is not None)]

                word = "channels_last" if layout is torch.channels_last else "contiguous"
                yield f"multiscale_roi_align {mode} {dtype} {word}", dtype, run
    for dtype in DTYPES:

        def levels(device: str, dtype: torch.dtype = dtype) -> list[Tensor]:
            return [ops.roi_levels(rois.to(device, dtype), scales)]

        yield f"roi_levels {dtype}", torch.float64, levels


def nms_cases(*, large: bool) -> Iterator[Case]:
    counts = (1000, 12000) if large else (10, 70, 1500)
    for count in counts:
        float32_boxes = random_boxes(count, 100.0, 800.0)
        scores = torch.rand(count, generator=torch.Generator().manual_seed(4))
        classes = torch.arange(count).remainder(5)
        for dtype in DTYPES[:2] if large else DTYPES:
            boxes = float32_boxes.to(dtype)

            def single(device: str, boxes: Tensor = boxes, scores: Tensor = scores) -> list[Tensor]:
                return [ops.nms(boxes.to(device), scores.to(device), 0.5)]

            def batched(
                device: str,
                boxes: Tensor = boxes,
                scores: Tensor = scores,
                classes: Tensor = classes,
            ) -> list[Tensor]:
                return [
                    ops.batched_nms(boxes.to(device), scores.to(device), classes.to(device), 0.5)
                ]

            def padded(
                device: str,
                boxes: Tensor = boxes,
                scores: Tensor = scores,
                classes: Tensor = classes,
            ) -> list[Tensor]:
                stacked = [torch.stack([t, t.flip(0)]).to(device) for t in (boxes, scores, classes)]
                return list(ops.nms_padded(stacked[0], stacked[1], 0.5, 64, idxs=stacked[2]))

            for name, run in (("nms", single), ("batched_nms", batched), ("nms_padded", padded)):
                yield f"{name} {dtype} N={count}", torch.float64, run


@dataclass(frozen=True)
class Inputs:
    """What the functions of the NMS family take."""

    boxes: Tensor  # [N, 4]
    scores: Tensor  # [N]
    other: Tensor  # [N] densities, or predicted overlaps
    variances: Tensor  # [N, 4]
    rotated: Tensor  # [N, 5]
    overlaps: Tensor  # [M, M]
    idxs: Tensor  # [N]

    def to(self, device: str, dtype: torch.dtype) -> Inputs:
        tensors = [getattr(self, field.name) for field in fields(self)]
        return Inputs(*(t.to(device, dtype if t.is_floating_point() else None) for t in tensors))

    def two(self) -> tuple[Tensor, Tensor]:
        """Boxes and scores of a batch of two."""
        return (
            torch.stack([self.boxes, self.boxes.flip(0)]),
            torch.stack([self.scores, self.scores.flip(0)]),
        )


def family_inputs(count: int) -> Inputs:
    generator = torch.Generator().manual_seed(4)
    boxes = random_boxes(count, 100.0, 800.0)
    angles = torch.rand(count, 1, generator=generator) * 6
    few = min(count, 1500)
    return Inputs(
        boxes,
        torch.rand(count, generator=generator),
        torch.rand(count, generator=generator),
        torch.rand(count, 4, generator=generator) + 0.1,
        torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2], angles], 1),
        torch.rand(few, few, generator=generator),
        torch.arange(count).remainder(5),
    )


Call = Callable[[Inputs], "Tensor | list[Tensor] | tuple[Tensor, ...]"]

# Every other function of the NMS family: name, whether the result is exact, a call.
FAMILY: tuple[tuple[str, bool, Call], ...] = (
    ("nms giou", True, lambda x: ops.nms(x.boxes, x.scores, 0.3, criterion="giou")),
    ("nms diou", True, lambda x: ops.nms(x.boxes, x.scores, 0.3, criterion="diou", beta=0.6)),
    ("nms ciou", True, lambda x: ops.nms(x.boxes, x.scores, 0.3, criterion="ciou")),
    ("diou_nms", True, lambda x: ops.diou_nms(x.boxes, x.scores, 0.4, idxs=x.idxs)),
    ("diou_nms_padded", True, lambda x: ops.diou_nms_padded(*x.two(), 0.4, 64)),
    ("adaptive_nms", True, lambda x: ops.adaptive_nms(x.boxes, x.scores, x.other, 0.3)),
    ("nms_match", True, lambda x: ops.nms_match(x.boxes, x.scores, 0.4, idxs=x.idxs)),
    ("iou_guided_nms", True, lambda x: ops.iou_guided_nms(x.boxes, x.scores, x.other, 0.4)),
    ("soft_nms linear", True, lambda x: ops.soft_nms(x.boxes, x.scores, idxs=x.idxs)),
    ("soft_nms gaussian", True, lambda x: ops.soft_nms(x.boxes, x.scores, method="gaussian")),
    ("soft_nms hard", True, lambda x: ops.soft_nms(x.boxes, x.scores, method="hard")),
    ("soft_nms_padded", True, lambda x: ops.soft_nms_padded(*x.two(), 64)),
    ("weighted_nms", False, lambda x: ops.weighted_nms(x.boxes, x.scores, 0.4, idxs=x.idxs)),
    ("weighted_nms_padded", False, lambda x: ops.weighted_nms_padded(*x.two(), 0.4, 64)),
    ("softer_nms", False, lambda x: ops.softer_nms(x.boxes, x.scores, x.variances, 0.4)),
    (
        "cluster_nms weighted",
        False,
        lambda x: ops.cluster_nms(x.boxes, x.scores, 0.4, mode="weighted"),
    ),
    (
        "cluster_nms score_penalty",  # its scores alone: rounding may swap two boxes
        False,
        lambda x: ops.cluster_nms(x.boxes, x.scores, 0.4, mode="score_penalty", idxs=x.idxs)[1],
    ),
    ("matrix_nms linear", True, lambda x: ops.matrix_nms(x.boxes, x.scores, kernel="linear")),
    ("matrix_nms gaussian", True, lambda x: ops.matrix_nms(x.boxes, x.scores, idxs=x.idxs)),
    (
        "matrix_nms_from_overlaps",
        True,
        lambda x: ops.matrix_nms_from_overlaps(x.overlaps, x.scores[: len(x.overlaps)]),
    ),
    ("nms_rotated", True, lambda x: ops.nms_rotated(x.rotated, x.scores, 0.4, idxs=x.idxs)),
    ("box_iou_rotated", True, lambda x: ops.box_iou_rotated(x.rotated[:300], x.rotated[:200])),
    (
        "box_iou_rotated iof",
        True,
        lambda x: ops.box_iou_rotated(x.rotated, x.rotated, mode="iof", aligned=True),
    ),
)


def family_cases(*, large: bool) -> Iterator[Case]:
    def case(name: str, exact: bool, inputs: Inputs, dtype: torch.dtype, call: Call) -> Case:
        def run(device: str) -> list[Tensor]:
            out = call(inputs.to(device, dtype))
            return [out] if isinstance(out, Tensor) else list(out)

        count = len(inputs.scores)
        return f"{name} {dtype} N={count}", torch.float64 if exact else dtype, run

    for count in (1000, 12000) if large else (10, 70, 1500):
        inputs = family_inputs(count)
        for dtype in DTYPES[:2] if large else DTYPES:
            for name, exact, call in FAMILY:
                yield case(name, exact, inputs, dtype, call)
    # Enough boxes for several blocks an image: a cooperative launch.
    most = 400 if large else 20
    yield case(
        "soft_nms in blocks",
        True,
        family_inputs(17000),
        torch.float32,
        lambda x: ops.soft_nms(x.boxes, x.scores, max_output=most),
    )


def conv_cases(*, large: bool) -> Iterator[Case]:
    c, o, height, width = (256, 256, 50, 84) if large else (20, 36, 9, 11)

    def normal(*shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        return value.div(math.sqrt(math.prod(shape[1:])))

    x, w, depthwise = normal(2, c, height, width), normal(o, c, 3, 3), normal(c, 1, 3, 3)
    calls: dict[str, tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]] = {
        "conv2d": (w, lambda x, w: ops.conv2d(x, w, None, 2, 1, activation="relu")),
        "conv2d of few channels": (
            normal(o, 3, 7, 7),
            lambda x, w: ops.conv2d(x[:, :3], w, None, 2, 3),
        ),
        "conv2d depthwise": (depthwise, lambda x, w: ops.conv2d(x, w, None, 1, 1, groups=c)),
        "conv2d_im2col": (w, lambda x, w: ops.conv2d_im2col(x, w, None, 2, 1)),
        "conv_transpose2d": (
            normal(c, o, 3, 3),
            lambda x, w: ops.conv_transpose2d(x, w, None, 2, 1, 1),
        ),
        "im2col": (w, lambda x, w: ops.im2col(x, 3, stride=2)),
        "unfold": (w, lambda x, w: ops.unfold(x, 3, 2)),
        "col2im": (w, lambda x, w: ops.col2im(ops.im2col(x, 3), (height, width), 3)),
        "fold": (w, lambda x, w: ops.fold(ops.unfold(x, 2), (height, width), 2)),
    }
    for dtype in DTYPES:
        for layout in (torch.contiguous_format, torch.channels_last):
            for name, (weight, call) in calls.items():

                def run(
                    device: str,
                    weight: Tensor = weight,
                    call: Callable[[Tensor, Tensor], Tensor] = call,
                    dtype: torch.dtype = dtype,
                    layout: torch.memory_format = layout,
                ) -> list[Tensor]:
                    leaves = [
                        t.to(device, dtype).contiguous(memory_format=layout).requires_grad_()
                        for t in (x, weight)
                    ]
                    out = call(leaves[0], leaves[1])
                    grads = torch.autograd.grad(
                        out.float().square().sum(), leaves, allow_unused=True
                    )
                    return [out.detach(), *(g for g in grads if g is not None)]

                word = "channels_last" if layout is torch.channels_last else "contiguous"
                yield f"{name} {dtype} {word}", dtype, run


def agrees(
    name: str, dtype: torch.dtype, run: Callable[[str], list[Tensor]], device: str, repeat: int
) -> bool:
    """Runs one case on the device and on the CPU; says what went wrong."""
    on_gpu = device != "cpu"
    try:
        for _ in range(repeat):
            if on_gpu:
                torch.cuda.nvtx.range_push(name)
            ours = run(device)
            if on_gpu:
                torch.cuda.synchronize()
                torch.cuda.nvtx.range_pop()
    except RuntimeError as error:
        print(f"FAILED: {name}: {str(error).strip().splitlines()[0]}", flush=True)
        if on_gpu:
            torch.cuda.synchronize()  # raises where the context is broken: the rest would fail too
        return False
    tolerance = TOLERANCE[dtype]
    for place, (got, expected) in enumerate(zip(ours, run("cpu"), strict=True)):
        if got.shape != expected.shape:
            print(f"DIFFERS: {name}: {tuple(got.shape)} instead of {tuple(expected.shape)}")
            return False
        got, expected = got.cpu().double(), expected.double()
        if not torch.allclose(got, expected, rtol=tolerance, atol=tolerance):
            distance = float((got - expected).abs().max())
            largest = float(expected.abs().max())
            print(f"DIFFERS: {name}: result {place} by {distance:.3g} of {largest:.3g}", flush=True)
            return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--large", action="store_true", help="detector-sized inputs")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument(
        "--device", default="cuda", help="cuda (default) or cpu, to try this script out"
    )
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="every Nth case from the Ith")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name has it")
    arguments = parser.parse_args()
    # float32 means float32 in the convolutions too.
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    generators = (
        roi_align_cases,
        multiscale_roi_align_cases,
        roi_family_cases,
        nms_cases,
        family_cases,
        conv_cases,
    )
    cases = [case for cases_of in generators for case in cases_of(large=arguments.large)]
    missing = {name for name in ops.__all__ if name.islower()} - {
        case[0].split()[0] for case in cases
    }
    if missing:
        print(f"small cases: none for {', '.join(sorted(missing))}")
        return 1
    cases = [case for case in cases if arguments.only in case[0]]
    if arguments.list:
        print("\n".join(name for name, _, _ in cases))
        return 0
    shard, shards = map(int, arguments.shard.split("/"))
    cases = cases[shard::shards]
    failures = sum(not agrees(*case, arguments.device, arguments.repeat) for case in cases)
    print(f"small cases: {len(cases) - failures} agree with the CPU, {failures} differ")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
