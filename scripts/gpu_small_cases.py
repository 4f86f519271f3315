"""Runs one small case of every kernel on the GPU; compute-sanitizer, nsys and ncu watch it.

    python scripts/gpu_small_cases.py [--large] [--list]

--large uses detector-sized inputs (for profiles); the default is small, because the sanitizers
slow kernels a hundredfold. Each case is checked against the CPU and wrapped in an NVTX range with
its name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator

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
                    box = rois.to(
                        device, torch.float64 if x.dtype == torch.float64 else torch.float32
                    )
                    out = ops.roi_align(x, box, (7, 7), 1 / 16, 2, True, mode=mode)
                    out.backward(torch.ones_like(out))
                    assert x.grad is not None
                    return [out.detach(), x.grad]

                word = "channels_last" if layout is torch.channels_last else "contiguous"
                yield f"roi_align {mode} {dtype} {word}", dtype, run


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--large", action="store_true", help="detector-sized inputs")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument(
        "--device", default="cuda", help="cuda (default) or cpu, to try this script out"
    )
    parser.add_argument("--repeat", type=int, default=1)
    arguments = parser.parse_args()
    cases = [*roi_align_cases(large=arguments.large), *nms_cases(large=arguments.large)]
    if arguments.list:
        print("\n".join(name for name, _, _ in cases))
        return 0
    on_gpu = arguments.device != "cpu"
    failures = 0
    for name, dtype, run in cases:
        for _ in range(arguments.repeat):
            if on_gpu:
                torch.cuda.nvtx.range_push(name)
            ours = run(arguments.device)
            if on_gpu:
                torch.cuda.synchronize()
                torch.cuda.nvtx.range_pop()
        tolerance = TOLERANCE[dtype]
        for got, expected in zip(ours, run("cpu"), strict=True):
            same_shape = got.shape == expected.shape
            if not same_shape or not torch.allclose(
                got.cpu().double(), expected.double(), rtol=tolerance, atol=tolerance
            ):
                print(f"DIFFERS from the CPU: {name}")
                failures += 1
                break
    print(f"small cases: {len(cases) - failures} agree with the CPU, {failures} differ")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
