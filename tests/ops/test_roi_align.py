"""roi_align: the generic matrix, then what is particular to the operator."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import harness
import pytest
import torch
from harness import (
    DTYPES,
    EMULATED,
    Args,
    Case,
    DifferentiableOpTests,
    ErrorCase,
    OpSpec,
    Sample,
    VmapCase,
    assert_close,
    assert_same,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from cvkernels import reference
from cvkernels.roi_align import RoIAlign, roi_align


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_boxes(
    count: int, images: int, extent: tuple[float, float], seed: int = 1, spill: float = 0.2
) -> Tensor:
    """[count, 5] proper boxes in an (height, width) extent, some reaching over its edges."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)

    height, width = extent
    image = torch.randint(0, images, (count,), generator=generator).double()
    x = uniform(-spill * width, width * (1 + spill)), uniform(-spill * width, width * (1 + spill))
    y = (
        uniform(-spill * height, height * (1 + spill)),
        uniform(-spill * height, height * (1 + spill)),
    )
    return torch.stack(
        [image, torch.minimum(*x), torch.minimum(*y), torch.maximum(*x), torch.maximum(*y)], 1
    )


def case(
    name: str,
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: int | tuple[int, int],
    scale: float,
    sampling_ratio: int,
    aligned: bool,
    mode: str = "avg",
    **options: Any,
) -> Case:
    def make() -> Args:
        return {
            "input": input.clone(),
            "boxes": [b.clone() for b in boxes] if isinstance(boxes, list) else boxes.clone(),
            "output_size": output_size,
            "spatial_scale": scale,
            "sampling_ratio": sampling_ratio,
            "aligned": aligned,
            "mode": mode,
        }

    return Case(f"{mode}-{name}", make, **options)


def box(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 5)


def make_cases() -> list[Case]:
    odd = box(
        (0, 4, 4, 4, 4),  # a point
        (0, 9, 6, 3, 2),  # corners exchanged
        (1, -40, -40, -20, -30),  # outside
        (1, 60, 2, 80, 9),  # right of the map
        (0, -3, -3, 50, 50),  # around the whole map
        (1, 2, 3, 2, 9),  # no width
        (0, 0.25, 0.25, 0.5, 0.5),  # inside one pixel
    )
    # Widths and heights that are whole numbers of bins: ceil() must not see them a rounding above.
    exact = box(*[(i % 2, 1, 2, 1 + 3 * k, 2 + 5 * k) for i, k in enumerate((1, 2, 3, 4, 1, 2))])
    crowded = random_boxes(40, 1, (6, 7), seed=4, spill=0.0)
    dense = torch.randint(
        -64, 65, (2, 3, 9, 10), generator=torch.Generator().manual_seed(9)
    ).double()
    # All arithmetic on these is exact in every dtype, and equal maxima are everywhere.
    dyadic = box(
        (0, 1, 1, 5, 5), (1, 0, 2, 8, 6), (0, -2, -2, 6, 6), (1, 4, 4, 12, 12), (0, 2, 2, 2, 6)
    )
    random_max = {"gradient_dtypes": (torch.float32, torch.float64)}
    cases = []
    for mode in ("avg", "max"):
        jumpy: dict[str, Any] = {} if mode == "avg" else random_max
        cases += [
            case(
                "small",
                features(2, 2, 5, 6),
                random_boxes(3, 2, (10, 12)),
                2,
                0.5,
                2,
                True,
                mode,
                small=True,
                **jumpy,
            ),
            case(
                "small-adaptive",
                features(1, 3, 6, 5),
                random_boxes(2, 1, (6, 5)),
                (2, 3),
                1.0,
                -1,
                False,
                mode,
                small=True,
                **jumpy,
            ),
            case(
                "fpn",
                features(2, 5, 14, 17),
                random_boxes(9, 2, (56, 68)),
                7,
                0.25,
                2,
                True,
                mode,
                **jumpy,
            ),
            case(
                "adaptive",
                features(2, 4, 13, 11),
                random_boxes(8, 2, (26, 22)),
                (3, 5),
                0.5,
                -1,
                False,
                mode,
                **jumpy,
            ),
            case("odd boxes", features(2, 3, 12, 13), odd, 3, 1.0, 0, True, mode, **jumpy),
            case("odd boxes legacy", features(2, 3, 12, 13), odd, 3, 1.0, 2, False, mode, **jumpy),
            case(
                "list",
                features(3, 3, 9, 9),
                [random_boxes(3, 1, (18, 18), seed=s)[:k, 1:] for s, k in ((1, 3), (2, 0), (3, 2))],
                4,
                0.5,
                2,
                True,
                mode,
                **jumpy,
            ),
            case(
                "one channel",
                features(1, 1, 10, 10),
                random_boxes(5, 1, (10, 10)),
                1,
                1.0,
                3,
                True,
                mode,
                **jumpy,
            ),
            case(
                "channel tail",
                features(1, 67, 6, 6),
                random_boxes(4, 1, (12, 12)),
                2,
                0.5,
                2,
                True,
                mode,
                **jumpy,
            ),
            case(
                "channel blocks",
                features(1, 128, 5, 5),
                random_boxes(3, 1, (5, 5)),
                2,
                1.0,
                1,
                False,
                mode,
                **jumpy,
            ),
            case(
                "one pixel",
                features(2, 3, 1, 1),
                random_boxes(4, 2, (2, 2)),
                2,
                1.0,
                2,
                True,
                mode,
                **jumpy,
            ),
            case("whole bins", features(2, 3, 24, 16), exact, (5, 3), 1.0, -1, True, mode, **jumpy),
            case("crowded", features(1, 4, 6, 7), crowded, 3, 1.0, 2, True, mode, **jumpy),
            case(
                "image without boxes",
                features(4, 2, 8, 8),
                box((2, 1, 1, 6, 5), (0, 2, 2, 7, 7)),
                2,
                1.0,
                2,
                True,
                mode,
                **jumpy,
            ),
            case(
                "large grid",
                features(1, 2, 40, 44),
                random_boxes(2, 1, (40, 44), seed=6, spill=0),
                2,
                1.0,
                0,
                False,
                mode,
                **jumpy,
            ),
            case(
                "float32 boxes",
                features(2, 4, 9, 8),
                random_boxes(5, 2, (144, 128), seed=7).float(),
                3,
                1 / 16,
                2,
                True,
                mode,
                keeps=("boxes",),
                **jumpy,
            ),
            case(
                "float64 boxes",
                features(2, 4, 9, 8),
                random_boxes(5, 2, (144, 128), seed=8).float().double(),
                3,
                1 / 16,
                2,
                True,
                mode,
                keeps=("boxes",),
                **jumpy,
            ),
            case(
                "half boxes",
                features(2, 4, 9, 8),
                random_boxes(5, 2, (144, 128), seed=8).half(),
                3,
                1 / 16,
                2,
                True,
                mode,
                keeps=("boxes",),
                **jumpy,
            ),
            case("ties", dense, dyadic, 2, 1.0, 2, True, mode),
            case(
                "all equal",
                torch.ones(2, 2, 9, 10, dtype=torch.float64),
                dyadic,
                2,
                1.0,
                2,
                True,
                mode,
            ),
            case("no boxes", features(2, 3, 4, 5), box(), 2, 1.0, 2, True, mode),
            case("no images", features(0, 3, 4, 5), box(), (2, 3), 1.0, -1, False, mode),
            case("no channels", features(2, 0, 4, 5), box((0, 0, 0, 2, 2)), 2, 1.0, 2, True, mode),
            case("no rows", features(1, 2, 0, 5), box((0, -1, -1, 2, 2)), 2, 1.0, 2, False, mode),
            case("no columns", features(1, 2, 5, 0), box((0, 0, 0, 2, 2)), 2, 1.0, 2, True, mode),
        ]
    return cases


def good(**changes: Any) -> Callable[[], Args]:
    """Acceptable arguments with some replaced; tensors are made when called (fake or real)."""

    def make() -> Args:
        args: Args = {
            "input": torch.ones(2, 3, 8, 8),
            "boxes": torch.ones(4, 5),
            "output_size": 7,
        }
        args.update({k: v() if callable(v) else v for k, v in changes.items()})
        return args

    return make


FLOATS = "float16, bfloat16, float32 or float64"
ERRORS = [
    ErrorCase(
        "input dims",
        good(input=lambda: torch.ones(3, 4)),
        "roi_align: expected input of shape (N, C, H, W), got (3, 4)",
    ),
    ErrorCase(
        "input 1-d",
        good(input=lambda: torch.ones(3)),
        "roi_align: expected input of shape (N, C, H, W), got (3,)",
    ),
    ErrorCase(
        "input dtype",
        good(input=lambda: torch.ones(2, 3, 8, 8, dtype=torch.int64)),
        f"roi_align: expected input of dtype {FLOATS}, got int64",
    ),
    ErrorCase(
        "input complex",
        good(input=lambda: torch.ones(2, 3, 8, 8, dtype=torch.complex64)),
        f"roi_align: expected input of dtype {FLOATS}, got complex64",
    ),
    ErrorCase(
        "boxes columns",
        good(boxes=lambda: torch.ones(10, 4)),
        "roi_align: expected boxes of shape (K, 5), got (10, 4)",
    ),
    ErrorCase(
        "boxes dims",
        good(boxes=lambda: torch.ones(5)),
        "roi_align: expected boxes of shape (K, 5), got (5,)",
    ),
    ErrorCase(
        "boxes dtype",
        good(boxes=lambda: torch.ones(4, 5, dtype=torch.int32)),
        f"roi_align: expected boxes of dtype {FLOATS}, got int32",
    ),
    ErrorCase(
        "boxes device",
        good(boxes=lambda: torch.ones(4, 5, device="meta")),
        "roi_align: expected boxes on the device of input (cpu), got meta",
    ),
    ErrorCase(
        "list shape",
        good(boxes=lambda: [torch.ones(2, 4), torch.ones(3, 5)]),
        "roi_align: expected boxes[1] of shape (L, 4), got (3, 5)",
    ),
    ErrorCase(
        "list dtype",
        good(boxes=lambda: [torch.ones(2, 4, dtype=torch.int64)]),
        f"roi_align: expected boxes[0] of dtype {FLOATS}, got int64",
    ),
    ErrorCase(
        "list member",
        good(boxes=lambda: [torch.ones(2, 4), None]),
        "roi_align: expected boxes[1] to be a tensor, got NoneType",
        TypeError,
    ),
    ErrorCase(
        "list device",
        good(boxes=lambda: [torch.ones(2, 4, device="meta")]),
        "roi_align: expected boxes[0] on the device of input (cpu), got meta",
    ),
    ErrorCase(
        "output zero",
        good(output_size=(0, 7)),
        "roi_align: expected output_size of positive 32-bit values, got (0, 7)",
    ),
    ErrorCase(
        "output negative",
        good(output_size=-1),
        "roi_align: expected output_size of positive 32-bit values, got (-1, -1)",
    ),
    ErrorCase(
        "output huge",
        good(output_size=(1, 2**31)),
        "roi_align: expected output_size of positive 32-bit values, got (1, 2147483648)",
    ),
    ErrorCase(
        "output three",
        good(output_size=(1, 2, 3)),
        "roi_align: expected output_size to be an integer or a pair of integers, got 3 values",
    ),
    ErrorCase(
        "output float",
        good(output_size=2.5),
        "roi_align: expected output_size to be an integer, got float",
        TypeError,
    ),
    ErrorCase(
        "scale nan",
        good(spatial_scale=float("nan")),
        "roi_align: expected spatial_scale to be finite and positive, got nan",
    ),
    ErrorCase(
        "scale zero",
        good(spatial_scale=0.0),
        "roi_align: expected spatial_scale to be finite and positive, got 0",
    ),
    ErrorCase(
        "scale negative",
        good(spatial_scale=-0.5),
        "roi_align: expected spatial_scale to be finite and positive, got -0.5",
    ),
    ErrorCase(
        "sampling huge",
        good(sampling_ratio=32769),
        "roi_align: expected sampling_ratio of at most 32768, got 32769",
    ),
    ErrorCase("mode", good(mode="sum"), "roi_align: expected mode to be 'avg' or 'max', got 'sum'"),
    ErrorCase(
        "input type",
        good(input=None),
        "roi_align: expected input to be a tensor, got NoneType",
        TypeError,
    ),
    ErrorCase(
        "boxes type",
        good(boxes=3),
        "roi_align: expected boxes to be a tensor or a list of tensors, got int",
        TypeError,
    ),
    ErrorCase(
        "index high",
        good(boxes=lambda: torch.tensor([[0.0, 0, 0, 1, 1], [2, 0, 0, 1, 1]])),
        "roi_align: expected boxes[:, 0] in [0, 2), got 2 in row 1",
        reads_data=True,
    ),
    ErrorCase(
        "index negative",
        good(boxes=lambda: torch.tensor([[-1.0, 0, 0, 1, 1]])),
        "roi_align: expected boxes[:, 0] in [0, 2), got -1 in row 0",
        reads_data=True,
    ),
    ErrorCase(
        "index nan",
        good(boxes=lambda: torch.tensor([[float("nan"), 0, 0, 1, 1]])),
        "roi_align: expected boxes[:, 0] in [0, 2), got nan in row 0",
        reads_data=True,
    ),
    ErrorCase(
        "index inf",
        good(boxes=lambda: torch.tensor([[float("inf"), 0, 0, 1, 1]])),
        "roi_align: expected boxes[:, 0] in [0, 2), got inf in row 0",
        reads_data=True,
    ),
    ErrorCase(
        "index huge",
        good(boxes=lambda: torch.tensor([[1e20, 0, 0, 1, 1]])),
        "roi_align: expected boxes[:, 0] in [0, 2), got 1e+20 in row 0",
        reads_data=True,
    ),
    ErrorCase(
        "no images",
        good(input=lambda: torch.ones(0, 3, 8, 8)),
        "roi_align: expected boxes[:, 0] in [0, 0), got 1 in row 0",
        reads_data=True,
    ),
]


def make_samples() -> list[Sample]:
    def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return features(2, 3, 6, 5).to(dtype), random_boxes(3, 2, (12, 10)).float()

    def forward(dtype: torch.dtype) -> tuple[Any, ...]:
        x, boxes = inputs(dtype)
        return x.requires_grad_(), boxes, 0.5, 2, 3, 2, True

    def forward_last(dtype: torch.dtype) -> tuple[Any, ...]:
        x, boxes = inputs(dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        return x.requires_grad_(), boxes, 0.5, 2, 3, -1, False

    def empty(dtype: torch.dtype) -> tuple[Any, ...]:
        x, boxes = inputs(dtype)
        return x.requires_grad_(), boxes[:0], 0.5, 2, 3, 2, True

    def backward(dtype: torch.dtype) -> tuple[Any, ...]:
        _, boxes = inputs(dtype)
        grad = features(3, 3, 2, 3).to(dtype).requires_grad_()
        return grad, boxes, 0.5, 2, 3, 2, 3, 6, 5, 2, True

    def max_backward(dtype: torch.dtype) -> tuple[Any, ...]:
        x, boxes = inputs(dtype)
        argmax = torch.ops.cvkernels.roi_align_max(x, boxes, 0.5, 2, 3, 2, True)[1]
        grad = features(3, 3, 2, 3).to(dtype)
        return grad, argmax, boxes, 0.5, 2, 3, 2, 3, 6, 5, 2, True

    def boxes_backward(dtype: torch.dtype) -> tuple[Any, ...]:
        x, boxes = inputs(dtype)
        return x, boxes, features(3, 3, 2, 3).to(dtype), None, 0.5, 2, 3, 2, True

    def max_boxes_backward(dtype: torch.dtype) -> tuple[Any, ...]:
        grad, argmax, *_ = max_backward(dtype)
        x, boxes = inputs(dtype)
        return x, boxes, grad, argmax, 0.5, 2, 3, 2, True

    def forward_boxes(dtype: torch.dtype) -> tuple[Any, ...]:
        x, boxes, *rest = forward(dtype)
        return x, boxes.requires_grad_(), *rest

    return [
        Sample("roi_align", "boxes' gradient", forward_boxes),
        Sample("roi_align_boxes_backward", "plain", boxes_backward),
        Sample("roi_align_boxes_backward", "maximum", max_boxes_backward),
        Sample("roi_align", "plain", forward),
        Sample("roi_align", "channels_last", forward_last),
        Sample("roi_align", "no boxes", empty),
        Sample("roi_align_backward", "plain", backward),
        Sample("roi_align_max", "plain", forward),
        Sample("roi_align_max", "channels_last", forward_last),
        Sample("roi_align_max_backward", "plain", max_backward),
    ]


def make_vmaps() -> list[VmapCase]:
    cases = []
    for mode in ("avg", "max"):

        def pool(x: Tensor, boxes: Tensor, mode: str = mode) -> Tensor:
            return roi_align(x, boxes, 2, 0.5, 2, True, mode=mode)

        def make() -> tuple[Tensor, Tensor]:
            boxes = torch.stack([random_boxes(4, 2, (12, 14), seed=s) for s in range(3)])
            return features(3, 2, 3, 6, 7), boxes

        def make_shared() -> tuple[Tensor, Tensor]:
            return features(3, 2, 3, 6, 7), random_boxes(4, 2, (12, 14))

        def make_boxes_only() -> tuple[Tensor, Tensor]:
            return make()[0][0], make()[1]

        def make_inner() -> tuple[Tensor, Tensor]:
            return make()[0].movedim(0, 2), make()[1].movedim(0, 1)

        def make_rows() -> tuple[Tensor, Tensor, Tensor]:
            return *make(), features(3, 4, 3, 2, 2, seed=4)

        def make_half_rows() -> tuple[Tensor, Tensor, Tensor]:
            x, boxes, grad = make_rows()
            return x, boxes.half(), grad

        def boxes_gradient(x: Tensor, boxes: Tensor, grad: Tensor, mode: str = mode) -> Tensor:
            arguments = (0.5, 2, 2, 2, True)
            argmax = None
            if mode == "max":
                argmax = torch.ops.cvkernels.roi_align_max(x, boxes, *arguments)[1]
            return torch.ops.cvkernels.roi_align_boxes_backward(x, boxes, grad, argmax, *arguments)

        cases += [
            VmapCase(f"{mode}-both", pool, make, (0, 0)),
            VmapCase(f"{mode}-input", pool, make_shared, (0, None)),
            VmapCase(f"{mode}-boxes", pool, make_boxes_only, (None, 0)),
            VmapCase(f"{mode}-inner dims", pool, make_inner, (2, 1)),
            VmapCase(f"{mode}-boxes' gradient", boxes_gradient, make_rows, (0, 0, 0)),
            VmapCase(f"{mode}-half boxes' gradient", boxes_gradient, make_half_rows, (0, 0, 0)),
        ]
    return cases


class TestRoIAlign(DifferentiableOpTests):
    spec = OpSpec(
        name="roi_align",
        op=roi_align,
        reference=reference.roi_align,
        cases=make_cases(),
        differentiable=("input",),
        memory_format_of="input",
        second_order=lambda args: args["mode"] == "avg",
        errors=ERRORS,
        samples=make_samples(),
        vmaps=make_vmaps(),
    )


# --------------------------------------------------------------------------------------------------
# The gradient with respect to the boxes


def off_centre(boxes: Tensor) -> Tensor:
    """The same boxes, with image indices that a numerical derivative does not carry over a step."""
    return boxes + torch.tensor([0.5, 0, 0, 0, 0], dtype=boxes.dtype)


def make_boxes_cases() -> list[Case]:
    kept: dict[str, Any] = {"keeps": ("boxes",)}  # rounded to half, samples would meet centres
    cases = []
    for mode in ("avg", "max"):
        # The best sample of rounded features need not be the best of the reference.
        jumpy: dict[str, Any] = {} if mode == "avg" else {"gradient_dtypes": DTYPES[2:]}

        def add(name: str, *arguments: Any, mode: str = mode, **options: Any) -> None:
            input, boxes, *rest = arguments
            if isinstance(boxes, Tensor):
                boxes = off_centre(boxes)
            cases.append(case(name, input, boxes, *rest, mode, **options))

        one, two = random_boxes(3, 2, (10, 12)), random_boxes(2, 1, (6, 5), seed=3)
        add("small", features(2, 2, 5, 6), one, 2, 0.5, 2, True, small=True, **kept, **jumpy)
        add("adaptive", features(1, 3, 6, 5), two, (2, 3), 1.0, -1, False, small=True, **jumpy)
        fpn = random_boxes(9, 2, (56, 68))
        add("fpn", features(2, 5, 14, 17), fpn, 7, 0.25, 2, True, **kept, **jumpy)
        legacy = random_boxes(9, 2, (28, 34), seed=5)
        add("legacy", features(2, 5, 14, 17), legacy, 3, 0.5, 3, False, **kept, **jumpy)
        wide = random_boxes(4, 1, (12, 12))
        add("channel tail", features(1, 67, 6, 6), wide, 2, 0.5, 2, True, **kept, **jumpy)
        blocks = random_boxes(3, 1, (5, 5))
        add("channel blocks", features(1, 128, 5, 5), blocks, 2, 1.0, 1, False, **kept, **jumpy)
        far = random_boxes(2, 1, (40, 44), seed=6, spill=0)
        add("large grid", features(1, 2, 40, 44), far, 2, 1.0, 0, False, **kept, **jumpy)
        sparse = random_boxes(2, 1, (90, 80), seed=6, spill=0)
        add("few samples", features(1, 2, 90, 80), sparse, 3, 1.0, 2, True, **kept, **jumpy)
        long = box((0, 0.75, 2.25, 384.75, 5.25), (0, -8.75, 1.25, 375.25, 4.25))  # exact samples
        add("long axis", features(1, 2, 8, 400), long, 2, 1.0, -1, True, **kept, **jumpy)
        one_pixel = random_boxes(4, 2, (2, 2))
        add("one pixel", features(2, 3, 1, 1), one_pixel, 2, 1.0, 2, True, **kept, **jumpy)
        odd = box(
            (0, 4, 4, 4, 4),  # a point: stretched, or without samples
            (0, 9, 6, 3, 2),  # corners exchanged
            (1, -40, -40, -20, -30),  # outside
            (0, -3, -3, 50, 50),  # around the whole map
            (1, 2.25, 3, 2.5, 9),  # narrower than a pixel
            (1, 3.25, 2.25, 4.25, 3.25),  # as wide as one
        )
        for aligned in (False, True):
            name = f"odd boxes {aligned}"
            add(name, features(2, 3, 12, 13), odd, 4, 1.0, 2, aligned, **jumpy)
            # Every coordinate exact and many at a pixel's centre: the derivative to the right.
            dyadic = box((0, 1, 1, 5, 5), (1, 0, 2, 8, 6), (0, -2, -2, 6, 6), (1, 4, 4, 12, 12))
            ties = torch.arange(9 * 10, dtype=torch.float64).remainder(7).reshape(1, 1, 9, 10)
            name = f"pixel centres {aligned}"
            add(name, ties.repeat(2, 3, 1, 1), dyadic, 2, 1.0, 2, aligned)
        lists = [random_boxes(3, 1, (18, 18), seed=s)[:k, 1:] for s, k in ((1, 3), (2, 0), (3, 2))]
        add("list", features(3, 3, 9, 9), lists, 4, 0.5, 2, True, **kept, **jumpy)
        for word, boxes in (("float32", wide.float()), ("half", wide.half())):
            add(f"{word} boxes", features(1, 4, 6, 6), boxes, 3, 0.5, 2, True, **kept, **jumpy)
        add("no boxes", features(2, 3, 4, 5), box(), 2, 1.0, 2, True)
        add("no channels", features(2, 0, 4, 5), box((0, 0, 0, 2, 2)), 2, 1.0, 2, True)
        add("no rows", features(1, 2, 0, 5), box((0, -1, -1, 2, 2)), 2, 1.0, 2, False)
    return cases


class TestRoIAlignBoxes:
    """The part of the matrix that has to do with gradients, with both tensors differentiated."""

    spec = OpSpec(
        name="roi_align",
        op=roi_align,
        reference=reference.roi_align,
        cases=make_boxes_cases(),
        differentiable=("input", "boxes"),
        memory_format_of="input",
    )
    test_gradient = DifferentiableOpTests.test_gradient
    test_gradient_of_strided_upstream = DifferentiableOpTests.test_gradient_of_strided_upstream
    test_gradcheck = DifferentiableOpTests.test_gradcheck
    test_gradgradcheck = DifferentiableOpTests.test_gradgradcheck  # refused by name
    test_bitwise_repeatable = DifferentiableOpTests.test_bitwise_repeatable
    test_compile = DifferentiableOpTests.test_compile


def test_hand_worked_gradient_of_boxes(device: str) -> None:
    # Map 10 y + x: a bin's mean is its value at the bin's centre. Two bins across box
    # (1, 1)-(5, 3): centres at x1 + w / 4 and x1 + 3 w / 4, both at (y1 + y2) / 2.
    x = (10 * torch.arange(8.0)[:, None] + torch.arange(8.0)).reshape(1, 1, 8, 8).to(device)
    boxes = torch.tensor([[0.0, 1, 1, 5, 3]], device=device, requires_grad=True)
    for left, right in ((1.0, 0.0), (0.0, 1.0)):
        out = roi_align(x, boxes, (1, 2), sampling_ratio=2, aligned=True)
        upstream = torch.tensor([left, right], device=device).reshape(1, 1, 1, 2)
        (grad,) = torch.autograd.grad(out, boxes, upstream)
        expected = [0, 0.75 * left + 0.25 * right, 5, 0.25 * left + 0.75 * right, 5]
        assert grad.tolist() == [expected]
    # Of the maximum: the last sample of a bin, seven eighths along y (2 samples) and so on.
    out = roi_align(x, boxes, 1, sampling_ratio=2, aligned=True, mode="max")
    (grad,) = torch.autograd.grad(out.sum(), boxes)
    assert grad.tolist() == [[0, 0.25, 2.5, 0.75, 7.5]]


def test_kinks_have_the_derivative_to_the_right(device: str) -> None:
    # One row 0 1 4 9; one sample, in the middle of a box 2 pixels wide (aligned: x1 + 0.5).
    x = torch.tensor([0.0, 1, 4, 9], device=device).reshape(1, 1, 1, 4)
    centres = [-1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5]
    wanted = [0.0, 0, 1, 1, 3, 5, 5, 0, 0, 0, 0]
    boxes = torch.tensor([[0.0, c - 0.5, 0, c + 1.5, 1] for c in centres], device=device)
    for mode in ("avg", "max"):
        boxes.requires_grad_()
        out = roi_align(x, boxes, 1, sampling_ratio=1, aligned=True, mode=mode)
        (grad,) = torch.autograd.grad(out.sum(), boxes)
        assert grad[:, 1].tolist() == [w / 2 for w in wanted]
        assert grad[:, 3].tolist() == [w / 2 for w in wanted]
        assert (grad[:, [0, 2, 4]] == 0).all()


def test_a_stretched_box_moves_with_its_first_corner(device: str) -> None:
    x = (10 * torch.arange(8.0)[:, None] + torch.arange(8.0)).reshape(1, 1, 8, 8).to(device)
    boxes = torch.tensor([[0.0, 3, 3, 3.5, 5]], device=device, requires_grad=True)
    (grad,) = torch.autograd.grad(roi_align(x, boxes, 1, sampling_ratio=2).sum(), boxes)
    assert grad.tolist() == [[0, 1, 5, 0, 5]]


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_bad_boxes_have_no_gradient(mode: str, device: str) -> None:
    x = features(1, 3, 6, 6).float().to(device)
    rows = [[0.0, *b] for b in BAD_BOXES]
    if EMULATED or device == "cuda":
        rows += [[index, 0, 0, 4, 4] for index in (1.0, -1.0, float("nan"), float("inf"))]
    boxes = torch.tensor([*rows, [0.0, 0, 0, 4, 4]], device=device, requires_grad=True)
    for sampling_ratio in (-1, 2):
        for aligned in (False, True):
            out = roi_align(x, boxes, 2, 1.0, sampling_ratio, aligned, mode=mode)
            (grad,) = torch.autograd.grad(out.sum(), boxes)
            assert (grad[:-1] == 0).all()
            assert grad[-1].abs().max() > 0 and grad.isfinite().all()


def test_boxes_alone_and_input_alone(device: str) -> None:
    """Each gradient is the same whether or not the other is asked for."""
    for mode in ("avg", "max"):
        x, boxes = features(2, 5, 8, 8).to(device), random_boxes(6, 2, (8, 8)).to(device)
        both = x.clone().requires_grad_(), boxes.clone().requires_grad_()
        expected = torch.autograd.grad(roi_align(*both, 3, mode=mode).square().sum(), both)
        one, other = x.clone().requires_grad_(), boxes.clone().requires_grad_()
        (a,) = torch.autograd.grad(roi_align(one, boxes, 3, mode=mode).square().sum(), one)
        (b,) = torch.autograd.grad(roi_align(x, other, 3, mode=mode).square().sum(), other)
        assert_same(a, expected[0])
        assert_same(b, expected[1])


def test_boxes_that_need_no_gradient_keep_no_map_alive(device: str) -> None:
    x, boxes = features(1, 2, 6, 6).to(device), random_boxes(3, 1, (6, 6)).to(device)
    out = roi_align(x.requires_grad_(), boxes, 2)
    saved = out.grad_fn.saved_tensors  # type: ignore[union-attr]
    assert [t is None or t.shape == boxes.shape for t in saved] == [True] * 3


def test_second_derivatives_with_boxes_are_refused(device: str) -> None:
    x, boxes = features(1, 2, 6, 6).to(device), random_boxes(3, 1, (6, 6)).to(device)
    x.requires_grad_()
    boxes.requires_grad_()
    for wanted in (x, boxes):
        out = roi_align(x, boxes, 2)
        (grad,) = torch.autograd.grad(out.square().sum(), wanted, create_graph=True)
        with pytest.raises(NotImplementedError, match=r"^roi_align: .*boxes"):
            grad.square().sum().backward()


# --------------------------------------------------------------------------------------------------
# Hand-worked numbers. The reference has its own in tests/reference; these reach the kernels.


def test_hand_worked_average(device: str) -> None:
    # Map x[y, w] = 10 y + w, 4x4. Box (0, 0)-(2, 2), aligned=False, one bin, 2x2 samples:
    # the box is 2 wide, samples at 0.5 and 1.5 along both axes; a linear map's mean is its value at
    # the centre (1, 1): 10 + 1 = 11.
    x = (10 * torch.arange(4.0)[:, None] + torch.arange(4.0)).reshape(1, 1, 4, 4).to(device)
    boxes = torch.tensor([[0.0, 0, 0, 2, 2]], device=device)
    assert roi_align(x, boxes, 1, sampling_ratio=2).item() == 11.0
    # aligned=True moves every sample by (-0.5, -0.5): samples at 0 and 1, mean of 0, 1, 10, 11 =
    # 5.5.
    assert roi_align(x, boxes, 1, sampling_ratio=2, aligned=True).item() == 5.5
    # Maximum of those samples: at (1.5, 1.5) = 16.5, and at (1, 1) = 11.
    assert roi_align(x, boxes, 1, sampling_ratio=2, mode="max").item() == 16.5
    assert roi_align(x, boxes, 1, sampling_ratio=2, aligned=True, mode="max").item() == 11.0


def test_hand_worked_border(device: str) -> None:
    # One row of ones, 1x4. Box x from -2 to 6, y from 0 to 1, 8 bins of width 1 with one sample
    # each, aligned=False: samples at x = -1.5, -0.5, 0.5, ..., 5.5 and y = 0.5. Range is -1 <= x <=
    # 4, so -1.5, 4.5 and 5.5 count as 0 and the rest, -0.5 and 3.5 included, read a pixel: 1.
    x = torch.ones(1, 1, 1, 4, device=device)
    boxes = torch.tensor([[0.0, -2, 0, 6, 1]], device=device)
    out = roi_align(x, boxes, (1, 8), sampling_ratio=1)
    assert out.flatten().tolist() == [0, 1, 1, 1, 1, 1, 0, 0]
    # Shifted by half a pixel the samples are -2, -1, ..., 5: -1 and 4 are just inside.
    out = roi_align(x, boxes, (1, 8), sampling_ratio=1, aligned=True)
    assert out.flatten().tolist() == [0, 1, 1, 1, 1, 1, 1, 0]


def test_hand_worked_gradient(device: str) -> None:
    # 1x1x3x3 map, box (0, 0)-(1, 1), one bin, one sample at (0.5, 0.5), aligned=False: the output
    # is the mean of four pixels, each with weight 1/4.
    x = torch.zeros(1, 1, 3, 3, device=device, requires_grad=True)
    boxes = torch.tensor([[0.0, 0, 0, 1, 1]], device=device)
    (grad,) = torch.autograd.grad(roi_align(x, boxes, 1, sampling_ratio=1).sum(), x)
    assert grad.flatten().tolist() == [0.25, 0.25, 0, 0.25, 0.25, 0, 0, 0, 0]


def test_maximum_gives_the_gradient_to_the_first_of_equal_samples(device: str) -> None:
    # aligned=True, box (0, 0)-(4, 4), one bin, 2x2 samples at 0.5 and 2.5. All samples are equal on
    # a constant map; the first, at (0.5, 0.5), spreads 1 over pixels (0..1, 0..1).
    x = torch.ones(1, 1, 4, 4, device=device, requires_grad=True)
    boxes = torch.tensor([[0.0, 0, 0, 4, 4]], device=device)
    out = roi_align(x, boxes, 1, sampling_ratio=2, aligned=True, mode="max")
    (grad,) = torch.autograd.grad(out.sum(), x)
    expected = torch.zeros(4, 4)
    expected[:2, :2] = 0.25
    assert grad[0, 0].tolist() == expected.tolist()


def test_an_outside_sample_competes_with_zero_in_the_maximum(device: str) -> None:
    # A negative map; the box reaches far to the left, so some samples count as 0 and win.
    x = torch.full((1, 1, 4, 4), -5.0, device=device, requires_grad=True)
    boxes = torch.tensor([[0.0, -8, 0, 4, 4], [0, 0, 0, 4, 4]], device=device)
    out = roi_align(x, boxes, 1, sampling_ratio=4, mode="max")
    assert out.flatten().tolist() == [0.0, -5.0]
    (grad,) = torch.autograd.grad(out[0].sum(), x)
    assert grad.abs().sum().item() == 0


def test_adaptive_grid_counts_whole_bins_exactly(device: str) -> None:
    # A 21-pixel box over 7 bins has 3 samples per bin. The map is 0 but for column 10: with samples
    # at 0.5, 1.5, ... (aligned=False, start 0) bin 3 holds 9.5, 10.5, 11.5: two of three weigh 1/2.
    x = torch.zeros(1, 1, 1, 24, device=device)
    x[..., 10] = 1
    boxes = torch.tensor([[0.0, 0, 0, 21, 1]], device=device)
    out = roi_align(x, boxes, (1, 7)).flatten()
    assert_close(out, torch.tensor([0, 0, 0, 1 / 3, 0, 0, 0]), torch.float32)


# --------------------------------------------------------------------------------------------------
# Not-a-number, infinity, bad indices


BAD_BOXES = [
    [float("nan")] * 4,
    [float("nan"), 0, 4, 4],
    [0, 0, 4, float("nan")],
    [float("inf"), 0, 4, 4],
    [0, 0, float("inf"), 4],
    [float("-inf"), 0, 4, 4],
    [float("-inf"), float("-inf"), float("inf"), float("inf")],
    [float("inf")] * 4,
]


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("sampling_ratio", [-1, 2])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_non_finite_boxes_give_zeros(
    mode: str, sampling_ratio: int, aligned: bool, channels_last: bool, device: str
) -> None:
    x = features(1, 3, 6, 6).to(device).abs() + 1
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    boxes = torch.tensor([[0.0, *b] for b in BAD_BOXES] + [[0.0, 0, 0, 4, 4]], device=device)
    for dtype in DTYPES:
        leaf = x.to(dtype).requires_grad_()
        out = roi_align(leaf, boxes, 2, 1.0, sampling_ratio, aligned, mode=mode)
        assert out[:-1].abs().sum().item() == 0  # false for NaN too
        assert out[-1].min().item() > 0  # its neighbours are not disturbed
        (grad,) = torch.autograd.grad(out.sum(), leaf)
        (only_good,) = torch.autograd.grad(
            roi_align(leaf, boxes[-1:], 2, 1.0, sampling_ratio, aligned, mode=mode).sum(), leaf
        )
        assert_same(grad, only_good)


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_huge_boxes_end_and_are_bounded(mode: str, device: str) -> None:
    x = torch.ones(1, 2, 4, 4, device=device, requires_grad=True)
    for size in (1e6, 1e9, 1e18, 1e30, 3e38):
        boxes = torch.tensor(
            [[0.0, 0, 0, size, size], [0, -size, -size, size, size]], device=device
        )
        for sampling_ratio in (0, 2):
            out = roi_align(x, boxes, 2, 1.0, sampling_ratio, True, mode=mode)
            assert bool(((out >= 0) & (out <= 1)).all())
            (grad,) = torch.autograd.grad(out.sum(), x)
            assert bool(grad.isfinite().all())


@pytest.mark.skipif(not EMULATED and "cuda" not in harness.DEVICES, reason="CPU raises instead")
@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("index", [2.0, -1.0, 1e9, -1e30, float("nan"), float("inf")])
def test_bad_image_index_gives_zeros_on_devices(mode: str, index: float) -> None:
    device = "cpu" if EMULATED else "cuda"
    x = (features(2, 3, 6, 6).abs() + 1).to(device).requires_grad_()
    boxes = torch.tensor([[0.0, 0, 0, 4, 4], [index, 0, 0, 4, 4], [1, 0, 0, 4, 4]], device=device)
    out = roi_align(x, boxes, 2, 1.0, 2, True, mode=mode)
    assert out[1].abs().sum().item() == 0
    assert out[0].min().item() > 0 and out[2].min().item() > 0
    (grad,) = torch.autograd.grad(out.sum(), x)
    (expected,) = torch.autograd.grad(roi_align(x, boxes[::2], 2, 1.0, 2, True, mode=mode).sum(), x)
    assert_same(grad, expected)


def test_image_index_is_truncated_toward_zero(device: str) -> None:
    x = features(2, 1, 4, 4).to(device)
    whole = torch.tensor([[0.0, 0, 0, 3, 3], [1, 0, 0, 3, 3], [0, 0, 0, 3, 3]], device=device)
    part = whole.clone()
    part[:, 0] = torch.tensor([-0.75, 1.9375, 0.5], device=device)
    assert_same(roi_align(x, part, 2), roi_align(x, whole, 2))


def test_non_finite_features_reach_only_the_bins_that_read_them(device: str) -> None:
    for mode in ("avg", "max"):
        for value in (float("nan"), float("inf")):
            x = torch.ones(1, 2, 8, 8, device=device)
            x[0, 0, 1, 1] = value
            boxes = torch.tensor([[0.0, 0, 0, 8, 8]], device=device)
            out = roi_align(x, boxes, 4, 1.0, 2, True, mode=mode)
            assert not bool(out[0, 0, 0, 0].isfinite())  # NaN wins a maximum, as in torch
            assert bool((out[0, 0, 2:, 2:] == 1).all())  # far from the pixel
            assert bool((out[0, 1] == 1).all())  # the other channel


def test_a_list_of_half_boxes_reaches_every_image(device: str) -> None:
    # bfloat16 holds whole numbers only up to 256: an index written into such a tensor would round.
    images = 300
    x = torch.arange(float(images), device=device).reshape(images, 1, 1, 1)
    boxes = [torch.tensor([[0.0, 0, 1, 1]], dtype=torch.bfloat16, device=device)] * images
    assert roi_align(x, boxes, 1).flatten().tolist() == list(range(images))


# --------------------------------------------------------------------------------------------------
# The module, memory format, autograd


def test_module_is_the_function(device: str) -> None:
    x, boxes = features(2, 3, 8, 9).to(device), random_boxes(4, 2, (16, 18)).to(device)
    module = RoIAlign((3, 2), 0.5, 2, aligned=True, mode="max")
    assert_same(module(x, boxes), roi_align(x, boxes, (3, 2), 0.5, 2, True, mode="max"))
    text = repr(module)
    for word in (
        "output_size=(3, 2)",
        "spatial_scale=0.5",
        "sampling_ratio=2",
        "aligned=True",
        "max",
    ):
        assert word in text
    assert list(module.state_dict()) == []


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_no_graph_is_built_without_need(mode: str, device: str) -> None:
    x = features(1, 1, 5, 5).to(device)
    boxes = torch.tensor([[0.0, 0, 0, 4, 4]], device=device)
    assert not roi_align(x, boxes, 2, mode=mode).requires_grad
    x.requires_grad_()
    with torch.no_grad():
        assert not roi_align(x, boxes, 2, mode=mode).requires_grad
    with torch.inference_mode():
        roi_align(x, boxes, 2, mode=mode)


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_many_output_gradients_at_once(mode: str, device: str) -> None:
    """is_grads_batched maps the backward operator over a new dimension."""
    for dtype in (torch.float64, torch.bfloat16):
        x = features(2, 3, 8, 8).to(device, dtype).requires_grad_()
        boxes = random_boxes(5, 2, (16, 16)).float().to(device)
        out = roi_align(x, boxes, (2, 3), 0.5, 2, True, mode=mode)
        upstream = features(4, *out.shape, seed=3).to(device, dtype)
        (together,) = torch.autograd.grad(
            out, x, upstream, is_grads_batched=True, retain_graph=True
        )
        for row, g in zip(together, upstream, strict=True):
            assert_close(row, torch.autograd.grad(out, x, g, retain_graph=True)[0], dtype)


def test_a_bad_argmax_is_harmless(device: str) -> None:
    """An index read from a tensor is checked before it is used."""
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(6, 2, (12, 14)).float().to(device)
    for values in (-(2**31), -2, -1, 4, 5, 2**16, 2**31 - 1, None):
        shape = (6, 3, 2, 2)
        if values is None:
            argmax = torch.randint(-(2**31), 2**31 - 1, shape, generator=generator)
        else:
            argmax = torch.full(shape, values)
        grad = torch.ones(shape, device=device)
        for ratio in (2, -1):
            out = torch.ops.cvkernels.roi_align_max_backward(
                grad, argmax.int().to(device), boxes, 0.5, 2, 2, 2, 3, 6, 7, ratio, True
            )
            assert out.shape == (2, 3, 6, 7)
            if values == -1:  # "no sample"
                assert out.abs().sum().item() == 0


def test_double_backward_is_the_forward(device: str) -> None:
    # out = A x, so d/dg of (A^T g . v) is A v: the forward applied to v.
    x = features(2, 3, 8, 8).to(device).requires_grad_()
    boxes = random_boxes(5, 2, (16, 16)).to(device)

    def pool(t: Tensor) -> Tensor:
        return roi_align(t, boxes, (2, 3), 0.5, -1, True)

    g = features(5, 3, 2, 3, seed=2).to(device).requires_grad_()
    v = features(2, 3, 8, 8, seed=3).to(device)
    (grad,) = torch.autograd.grad(pool(x), x, g, create_graph=True)
    (second,) = torch.autograd.grad(grad, g, v)
    assert_close(second, pool(v), torch.float64)


# --------------------------------------------------------------------------------------------------
# Properties


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, dict[str, Any]]:
    seed = draw(st.integers(0, 2**31))
    channels_last = draw(st.booleans())
    n, c = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    h, w = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    x = features(n, c, h, w, seed=seed)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    boxes = random_boxes(
        draw(st.integers(1, 6)), n, (h, w), seed=seed + 1, spill=draw(st.floats(0, 1))
    )
    options = {
        "output_size": (draw(st.integers(1, 4)), draw(st.integers(1, 4))),
        "sampling_ratio": draw(st.sampled_from([-1, 0, 1, 2, 3])),
        "aligned": draw(st.booleans()),
        "mode": draw(st.sampled_from(["avg", "max"])),
    }
    return x, boxes, options


@given(problems())
def test_any_problem_matches_the_reference(problem: Any) -> None:
    x, boxes, options = problem
    for dtype in (torch.float64, torch.float32):
        leaf = x.to(dtype).requires_grad_()
        b = boxes.to(dtype)
        actual = roi_align(leaf, b, **options)
        wide = leaf.detach().double().requires_grad_()
        with reference.precision(dtype):  # a sample within one rounding of the border decides alike
            expected = reference.roi_align(wide, b, **options)
        assert_close(actual, expected, dtype)
        if dtype == torch.float64:
            (a,) = torch.autograd.grad(actual.sum(), leaf)
            (e,) = torch.autograd.grad(expected.sum(), wide)
            assert_close(a, e, dtype)


@given(problems(), st.integers(0, 2**31))
def test_rows_are_independent_and_move_with_their_boxes(problem: Any, seed: int) -> None:
    x, boxes, options = problem
    order = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(seed))
    out = roi_align(x, boxes, **options)
    assert_same(roi_align(x, boxes[order], **options), out[order])
    for row in range(len(boxes)):
        assert_same(roi_align(x, boxes[row : row + 1], **options), out[row : row + 1])


@given(problems())
def test_channels_are_independent(problem: Any) -> None:
    x, boxes, options = problem
    out = roi_align(x, boxes, **options)
    for channel in range(x.shape[1]):
        alone = roi_align(x[:, channel : channel + 1], boxes, **options)
        assert_close(alone, out[:, channel : channel + 1], torch.float64)


@given(problems(), st.sampled_from([-4, -1, 1, 4]))
def test_scale_moves_between_boxes_and_spatial_scale(problem: Any, power: int) -> None:
    x, boxes, options = problem  # scaling by a power of two is exact
    scaled = boxes * torch.tensor([1.0] + [2.0**power] * 4)
    out = roi_align(x, boxes, **options)
    assert_same(roi_align(x, scaled, spatial_scale=2.0**-power, **options), out)


@given(problems())
def test_average_is_linear_and_maximum_bounds_it(problem: Any) -> None:
    x, boxes, options = problem
    options = {**options, "mode": "avg"}
    y = features(*x.shape, seed=77)
    both = roi_align(2 * x + y, boxes, **options)
    apart = 2 * roi_align(x, boxes, **options) + roi_align(y, boxes, **options)
    assert_close(both + 100, apart + 100, torch.float64)
    most = roi_align(x, boxes, **{**options, "mode": "max"})
    assert bool((most >= roi_align(x, boxes, **options) - 1e-9).all())


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_one_compilation_serves_any_number_of_boxes(mode: str, device: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()

    @torch.compile(backend=counter, fullgraph=True, dynamic=True)
    def pool(x: Tensor, boxes: Tensor) -> Tensor:
        return roi_align(x * 2, boxes, 3, 0.5, 2, True, mode=mode) + 1

    # No size may equal another at first: torch.compile takes equal sizes for the same one.
    for count, side in ((17, 8), (9, 11), (30, 6)):
        x = features(2, 3, side, side + 1, seed=count).to(device).requires_grad_()
        boxes = random_boxes(count, 2, (12, 12), seed=count).to(device)
        out = pool(x, boxes)
        assert_same(out, roi_align(x * 2, boxes, 3, 0.5, 2, True, mode=mode) + 1)
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert grad.abs().sum() > 0
    assert counter.frame_count == 1


@pytest.mark.native
def test_concurrent_calls_do_not_disturb_each_other() -> None:
    def work(seed: int) -> list[Tensor]:
        results = []
        for mode in ("avg", "max"):
            x = features(2, 8, 16, 15, seed=seed).requires_grad_()
            boxes = random_boxes(20, 2, (16, 15), seed=seed)
            out = roi_align(x, boxes, 4, 1.0, -1, True, mode=mode)
            results += [out.detach(), *torch.autograd.grad(out.sum(), x)]
        return results

    expected = [work(seed) for seed in range(24)]
    with ThreadPoolExecutor(4) as pool:
        for actual, wanted in zip(pool.map(work, range(24)), expected, strict=True):
            for a, e in zip(actual, wanted, strict=True):
                assert_same(a, e)


@pytest.mark.gpu
@pytest.mark.skipif(not harness.HAVE_CUDA, reason="no GPU")
@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_neither_pass_waits_for_the_device(channels_last: bool, mode: str) -> None:
    x = features(2, 32, 20, 22).cuda().half()
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    boxes = random_boxes(64, 2, (40, 44)).float().cuda()
    upstream = torch.ones(64, 32, 7, 7, device="cuda", dtype=torch.half)
    expected = torch.autograd.grad(roi_align(x, boxes, 7, 0.5, mode=mode), x, upstream)[0]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = roi_align(x, boxes, 7, 0.5, mode=mode)
        (grad,) = torch.autograd.grad(out, x, upstream)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same(grad, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not harness.HAVE_CUDA, reason="no GPU")
def test_a_cuda_graph_replays_on_new_contents() -> None:
    x, boxes = features(1, 16, 12, 12).cuda().float(), random_boxes(9, 1, (12, 12)).cuda().float()
    roi_align(x, boxes, 3)  # warm up
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = roi_align(x, boxes, 3)
    x.copy_(features(1, 16, 12, 12, seed=5))
    boxes.copy_(random_boxes(9, 1, (12, 12), seed=6))
    graph.replay()
    torch.cuda.synchronize()
    assert_same(out, roi_align(x, boxes, 3))


def test_layouts_agree(device: str) -> None:
    """Contiguous and channels_last kernels compute the same function."""
    for mode in ("avg", "max"):
        for dtype in DTYPES:
            x = features(2, 19, 11, 13).to(device, dtype)
            boxes = random_boxes(12, 2, (44, 52)).float().to(device)
            first = roi_align(x, boxes, (3, 2), 0.25, -1, True, mode=mode)
            last = x.contiguous(memory_format=torch.channels_last)
            second = roi_align(last, boxes, (3, 2), 0.25, -1, True, mode=mode)
            assert second.is_contiguous(memory_format=torch.channels_last)
            assert_close(second, first, dtype)


# --------------------------------------------------------------------------------------------------
# The size of a detector: blocks of channels, bands of rows and threads meet their edges


@pytest.mark.native
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_detector_sized_average(dtype: torch.dtype, channels_last: bool, device: str) -> None:
    ops = pytest.importorskip("torchvision.ops")
    x = features(2, 200, 50, 83).to(device, dtype)
    boxes = random_boxes(300, 2, (800, 1328)).float().to(device)
    wide = x.double().requires_grad_()
    theirs = ops.roi_align(wide, boxes.double(), 7, 1 / 16, 2, True)
    upstream = features(*theirs.shape, seed=5).to(device, dtype)
    (expected,) = torch.autograd.grad(theirs, wide, upstream.double())
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    results = []
    for count in (1, 2, 3):
        with harness.threads(count):
            ours = roi_align(x, boxes, 7, 1 / 16, 2, True)
            results.append([ours, *torch.autograd.grad(ours, x, upstream)])
    assert_close(results[0][0], theirs, dtype)
    assert_close(results[0][1], expected, dtype)
    for other in results[1:]:
        for a, e in zip(other, results[0], strict=True):
            assert_same(a, e)


@pytest.mark.native
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_detector_sized_adaptive(mode: str, channels_last: bool, device: str) -> None:
    x = features(2, 70, 61, 50).to(device)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    boxes = random_boxes(60, 2, (61, 50), spill=0.05).to(device)
    ours = roi_align(x, boxes, (7, 6), 1.0, -1, False, mode=mode)
    wide = x.detach().cpu().contiguous().requires_grad_()
    expected = reference.roi_align(wide, boxes.cpu(), (7, 6), 1.0, -1, False, mode=mode)
    assert_close(ours, expected, torch.float64)
    upstream = features(*ours.shape, seed=5)
    (a,) = torch.autograd.grad(ours, x, upstream.to(device))
    (e,) = torch.autograd.grad(expected, wide, upstream)
    assert_close(a, e, torch.float64)


# --------------------------------------------------------------------------------------------------
# torchvision


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [-1, 0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_torchvision(
    dtype: torch.dtype, sampling_ratio: int, aligned: bool, device: str
) -> None:
    ops = pytest.importorskip("torchvision.ops")
    size = 4 if EMULATED else 24
    x = features(2, size, 25, 34).to(device, dtype).requires_grad_()
    boxes = random_boxes(4 * size, 2, (400, 544)).to(device, dtype)
    arguments = (boxes, (7, 5), 1 / 16, sampling_ratio, aligned)
    ours, theirs = roi_align(x, *arguments), ops.roi_align(x, *arguments)
    assert_close(ours, theirs, dtype)
    upstream = features(*ours.shape, seed=5).to(device, dtype)
    (a,) = torch.autograd.grad(ours, x, upstream)
    (b,) = torch.autograd.grad(theirs, x, upstream)
    assert_close(a, b, dtype)


def test_list_of_boxes_equals_torchvision(device: str) -> None:
    ops = pytest.importorskip("torchvision.ops")
    x = features(3, 2, 9, 9).to(device)
    boxes = [random_boxes(k, 1, (18, 18), seed=k + 1)[:, 1:].to(device) for k in (2, 0, 3)]
    assert_close(roi_align(x, boxes, 3, 0.5), ops.roi_align(x, boxes, 3, 0.5), torch.float64)


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_an_infinite_gradient_stays_where_it_has_weight(device: str, mode: str) -> None:
    """Zero weights pass nothing on, so only pixels that the bin read become infinite, none NaN."""
    input = features(1, 2, 16, 16).float().to(device).requires_grad_()
    boxes = torch.tensor([[0.0, 1.0, 1.0, 13.0, 13.0]], device=device)
    out = roi_align(input, boxes, 4, sampling_ratio=2, aligned=True, mode=mode)
    grad = torch.zeros_like(out)
    grad[0, 0, 1, 1] = float("inf")
    out.backward(grad)
    assert input.grad is not None
    assert not input.grad.isnan().any()
    # Bin (1, 1) samples 4.25 and 5.75 on both axes: pixels 4, 5 and 5, 6.
    reached = input.grad[0, 0].isinf().nonzero()
    assert len(reached) == (9 if mode == "avg" else 4)
    assert reached.min() >= 4 and reached.max() <= 6
    assert (input.grad[0, 1] == 0).all()


def test_strides_of_size_one_dimensions_say_nothing(device: str) -> None:
    image = features(20, 30, 3).float().to(device).permute(2, 0, 1)[None]  # as from an HWC array
    boxes = torch.tensor([[0.0, 1.0, 1.0, 9.0, 9.0]], device=device)
    out = roi_align(image, boxes, 3)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_same(out, roi_align(image.contiguous(), boxes, 3))


def test_vmap_shares_a_feature_map_that_is_not_mapped(device: str) -> None:
    input = features(2, 3, 8, 8).float().to(device)
    boxes = random_boxes(6, 2, (8, 8)).float().to(device).reshape(2, 3, 5)
    mapped = torch.vmap(lambda rows: roi_align(input, rows, 2))(boxes)
    assert_same(mapped.flatten(0, 1), roi_align(input, boxes.flatten(0, 1), 2))
