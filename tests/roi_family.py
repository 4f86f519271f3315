"""What the tests of the RoI family share: inputs, errors of common arguments, behaviour."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import harness
import pytest
import torch
from harness import (
    EMULATED,
    Args,
    Case,
    DifferentiableOpTests,
    ErrorCase,
    Sample,
    VmapCase,
    assert_close,
    assert_same,
)
from torch import Tensor

FLOATS = "float16, bfloat16, float32 or float64"
INF, NAN = float("inf"), float("nan")
BAD_BOXES = [
    [NAN] * 4,
    [NAN, 0, 4, 4],
    [0, 0, 4, NAN],
    [INF, 0, 4, 4],
    [0, 0, INF, 4],
    [-INF, 0, 4, 4],
    [-INF, -INF, INF, INF],
    [INF] * 4,
]


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole_features(*shape: int, seed: int = 0) -> Tensor:
    """Small whole numbers: equal maxima are everywhere."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, shape, generator=generator).double()


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


def box(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 5)


#: For a map of about 12 x 13 pixels and two images.
ODD_BOXES = box(
    (0, 4, 4, 4, 4),  # a point
    (0, 9, 6, 3, 2),  # corners exchanged
    (1, -40, -40, -20, -30),  # outside
    (1, 60, 2, 80, 9),  # right of the map
    (0, -3, -3, 50, 50),  # around the whole map
    (1, 2, 3, 2, 9),  # no width
    (0, 0.25, 0.25, 0.5, 0.5),  # inside one pixel
    (1, 2.5, 3.5, 6.5, 8.5),  # on the border between pixels
)


def pooling_cases(case: Callable[..., Case], channels: int, output: tuple[int, int]) -> list[Case]:
    """Cases of a pooling operator; ``case(name, input, boxes, output_size, scale, **options)``.

    The channels of each map are a multiple of ``channels``, the bins of some cases ``output``.
    """
    c = channels
    big = (56, 68)
    return [
        case("small", features(2, c, 5, 6), random_boxes(3, 2, (10, 12)), output, 0.5, small=True),
        case(
            "small legacy",
            features(1, c, 6, 5),
            random_boxes(2, 1, (6, 5)),
            output,
            1.0,
            small=True,
        ),
        case("fpn", features(2, c, 14, 17), random_boxes(9, 2, big), output, 0.25),
        case("odd boxes", features(2, c, 12, 13), ODD_BOXES, output, 1.0),
        case("reduced", features(2, c, 12, 13), random_boxes(9, 2, (240, 260)), output, 0.05),
        case(
            "list",
            features(3, c, 9, 9),
            [random_boxes(3, 1, (18, 18), seed=s)[:k, 1:] for s, k in ((1, 3), (2, 0), (3, 2))],
            output,
            0.5,
        ),
        case("channel tail", features(1, 9 * c, 6, 6), random_boxes(4, 1, (12, 12)), output, 0.5),
        case("one pixel", features(2, c, 1, 1), random_boxes(4, 2, (2, 2)), output, 1.0),
        case("one row", features(1, c, 1, 9), random_boxes(4, 1, (2, 9)), output, 1.0),
        case("crowded", features(1, c, 6, 7), random_boxes(40, 1, (6, 7), 4, 0.0), output, 1.0),
        case("many boxes", features(2, c, 9, 10), random_boxes(270, 2, (9, 10)), output, 1.0),
        case(
            "image without boxes",
            features(4, c, 8, 8),
            box((2, 1, 1, 6, 5), (0, 2, 2, 7, 7)),
            output,
            1.0,
        ),
        case(
            "large boxes", features(1, c, 40, 44), random_boxes(2, 1, (40, 44), 6, 0), output, 1.0
        ),
        case(
            "float32 boxes",
            features(2, c, 9, 8),
            random_boxes(5, 2, (144, 128), seed=7).float(),
            output,
            1 / 16,
            keeps=("boxes",),
        ),
        case(
            "half boxes",
            features(2, c, 9, 8),
            random_boxes(5, 2, (144, 128), seed=8).half(),
            output,
            1 / 16,
            keeps=("boxes",),
        ),
        case("no boxes", features(2, c, 4, 5), box(), output, 1.0),
        case("no images", features(0, c, 4, 5), box(), output, 1.0),
        case("no channels", features(2, 0, 4, 5), box((0, 0, 0, 2, 2)), output, 1.0),
        case("no rows", features(1, c, 0, 5), box((0, -1, -1, 2, 2)), output, 1.0),
        case("no columns", features(1, c, 5, 0), box((0, 0, 0, 2, 2)), output, 1.0),
    ]


# --------------------------------------------------------------------------------------------------
# Errors of the arguments that every operator of the family has


def good(defaults: Callable[[], Args], **changes: Any) -> Callable[[], Args]:
    """Acceptable arguments with some replaced; tensors are made when called (fake or real)."""

    def make() -> Args:
        args = defaults()
        args.update({k: v() if callable(v) else v for k, v in changes.items()})
        return args

    return make


def pooling_errors(op: str, defaults: Callable[[], Args]) -> list[ErrorCase]:
    """``defaults`` has an input [2, C, 8, 8], boxes [4, 5] of ones and an output_size."""

    def channels() -> int:
        return int(defaults()["input"].shape[1])

    def errors() -> Iterator[tuple[str, dict[str, Any], str]]:
        yield (
            "input dims",
            {"input": lambda: torch.ones(3, 4)},
            "input of shape (N, C, H, W), got (3, 4)",
        )
        yield "input 1-d", {"input": lambda: torch.ones(3)}, "input of shape (N, C, H, W), got (3,)"
        for dtype in (torch.int64, torch.complex64):
            name = str(dtype).removeprefix("torch.")
            yield (
                f"input {name}",
                {"input": lambda dtype=dtype: torch.ones(2, channels(), 8, 8, dtype=dtype)},
                f"input of dtype {FLOATS}, got {name}",
            )
        boxes: list[tuple[str, Callable[[], Any], str]] = [
            ("columns", lambda: torch.ones(10, 4), "boxes of shape (K, 5), got (10, 4)"),
            ("dims", lambda: torch.ones(5), "boxes of shape (K, 5), got (5,)"),
            (
                "dtype",
                lambda: torch.ones(4, 5, dtype=torch.int32),
                f"boxes of dtype {FLOATS}, got int32",
            ),
            (
                "device",
                lambda: torch.ones(4, 5, device="meta"),
                "boxes on the device of input (cpu), got meta",
            ),
            (
                "list shape",
                lambda: [torch.ones(2, 4), torch.ones(3, 5)],
                "boxes[1] of shape (L, 4), got (3, 5)",
            ),
            (
                "list dtype",
                lambda: [torch.ones(2, 4, dtype=torch.int64)],
                f"boxes[0] of dtype {FLOATS}, got int64",
            ),
            (
                "list device",
                lambda: [torch.ones(2, 4, device="meta")],
                "boxes[0] on the device of input (cpu), got meta",
            ),
        ]
        for name, make, message in boxes:
            yield f"boxes {name}", {"boxes": make}, message
        sizes = "output_size of positive 32-bit values, got "
        yield "output zero", {"output_size": (0, 7)}, f"{sizes}(0, 7)"
        yield "output negative", {"output_size": -1}, f"{sizes}(-1, -1)"
        yield "output huge", {"output_size": (1, 2**31)}, f"{sizes}(1, 2147483648)"
        yield (
            "output three",
            {"output_size": (1, 2, 3)},
            "output_size to be an integer or a pair of integers, got 3 values",
        )
        for scale, text in ((NAN, "nan"), (0.0, "0"), (-0.5, "-0.5"), (INF, "inf")):
            yield (
                f"scale {text}",
                {"spatial_scale": scale},
                f"spatial_scale to be finite and positive, got {text}",
            )

    found = [
        ErrorCase(name, good(defaults, **changes), f"{op}: expected {message}")
        for name, changes, message in errors()
    ]
    for name, changes, message in (
        ("output float", {"output_size": 2.5}, "output_size to be an integer, got float"),
        ("input type", {"input": None}, "input to be a tensor, got NoneType"),
        ("boxes type", {"boxes": 3}, "boxes to be a tensor or a list of tensors, got int"),
        (
            "list member",
            {"boxes": lambda: [torch.ones(2, 4), None]},
            "boxes[1] to be a tensor, got NoneType",
        ),
    ):
        found.append(
            ErrorCase(name, good(defaults, **changes), f"{op}: expected {message}", TypeError)
        )
    for index, text in ((2.0, "2"), (-1.0, "-1"), (NAN, "nan"), (INF, "inf"), (1e20, "1e+20")):
        found.append(
            ErrorCase(
                f"index {text}",
                good(
                    defaults,
                    boxes=lambda index=index: torch.tensor(
                        [[0.0, 0, 0, 1, 1], [index, 0, 0, 1, 1]]
                    ),
                ),
                f"{op}: expected boxes[:, 0] in [0, 2), got {text} in row 1",
                reads_data=True,
            )
        )
    found.append(
        ErrorCase(
            "no images",
            good(defaults, input=lambda: torch.ones(0, channels(), 8, 8)),
            f"{op}: expected boxes[:, 0] in [0, 0), got 1 in row 0",
            reads_data=True,
        )
    )
    return found


def pooling_samples(op: str, forward: Callable[[torch.dtype], tuple[Any, ...]]) -> list[Sample]:
    """``forward`` makes a contiguous input, boxes and what else the dispatcher operator takes."""

    def forward_last(dtype: torch.dtype) -> tuple[Any, ...]:
        x, *rest = forward(dtype)
        last = x.detach().contiguous(memory_format=torch.channels_last)
        return last.requires_grad_(), *rest

    def empty(dtype: torch.dtype) -> tuple[Any, ...]:
        x, boxes, *rest = forward(dtype)
        return x, boxes[:0], *rest

    makes = {"plain": forward, "channels_last": forward_last, "no boxes": empty}
    return [Sample(op, name, make) for name, make in makes.items()]


def pooling_vmaps(pool: Callable[[Tensor, Tensor], Tensor], channels: int) -> list[VmapCase]:
    def make() -> tuple[Tensor, Tensor]:
        boxes = torch.stack([random_boxes(4, 2, (12, 14), seed=s) for s in range(3)])
        return features(3, 2, channels, 6, 7), boxes

    def make_shared() -> tuple[Tensor, Tensor]:
        return make()[0], random_boxes(4, 2, (12, 14))

    def make_boxes_only() -> tuple[Tensor, Tensor]:
        return make()[0][0], make()[1]

    def make_inner() -> tuple[Tensor, Tensor]:
        return make()[0].movedim(0, 2), make()[1].movedim(0, 1)

    return [
        VmapCase("both", pool, make, (0, 0)),
        VmapCase("input", pool, make_shared, (0, None)),
        VmapCase("boxes", pool, make_boxes_only, (None, 0)),
        VmapCase("inner dims", pool, make_inner, (2, 1)),
    ]


# --------------------------------------------------------------------------------------------------
# Behaviour


class PoolingTests(DifferentiableOpTests):
    """What holds for every f(input, boxes, output_size, spatial_scale, ...) of the family."""

    channels = 8  # a multiple of the bins of a 2 x 2 grid

    def pool(self, x: Tensor, boxes: Any, output_size: Any = 2, scale: float = 1.0) -> Tensor:
        result: Tensor = self.spec.op(x, boxes, output_size, scale)
        return result

    @pytest.mark.parametrize("channels_last", [False, True])
    def test_non_finite_boxes_give_zeros(
        self, channels_last: bool, dtype: torch.dtype, device: str
    ) -> None:
        x = (features(1, self.channels, 6, 6).abs() + 1).to(device, dtype)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        boxes = torch.tensor([[0.0, *b] for b in BAD_BOXES] + [[0.0, 0, 0, 4, 4]], device=device)
        leaf = x.requires_grad_()
        out = self.pool(leaf, boxes)
        assert out[:-1].abs().sum().item() == 0  # false for NaN too
        assert out[-1].min().item() > 0  # its neighbours are not disturbed
        (grad,) = torch.autograd.grad(out.sum(), leaf)
        (only_good,) = torch.autograd.grad(self.pool(leaf, boxes[-1:]).sum(), leaf)
        assert_same(grad, only_good)

    def test_huge_boxes_end_and_are_bounded(self, device: str) -> None:
        x = torch.ones(1, self.channels, 4, 4, device=device, requires_grad=True)
        for size in (1e6, 1e9, 1e18, 1e30, 3e38):
            boxes = box((0, 0, 0, size, size), (0, -size, -size, size, size)).float().to(device)
            out = self.pool(x, boxes)
            assert bool(((out >= 0) & (out <= 1)).all())
            (grad,) = torch.autograd.grad(out.sum(), x)
            assert bool(grad.isfinite().all())

    @pytest.mark.skipif(not EMULATED and "cuda" not in harness.DEVICES, reason="CPU raises instead")
    @pytest.mark.parametrize("index", [2.0, -1.0, 1e9, -1e30, NAN, INF])
    def test_bad_image_index_gives_zeros_on_devices(self, index: float) -> None:
        device = "cpu" if EMULATED else "cuda"
        x = (features(2, self.channels, 6, 6).abs() + 1).to(device).requires_grad_()
        boxes = box((0, 0, 0, 4, 4), (index, 0, 0, 4, 4), (1, 0, 0, 4, 4)).to(device)
        out = self.pool(x, boxes)
        assert out[1].abs().sum().item() == 0
        assert out[0].min().item() > 0 and out[2].min().item() > 0
        (grad,) = torch.autograd.grad(out.sum(), x)
        (expected,) = torch.autograd.grad(self.pool(x, boxes[::2]).sum(), x)
        assert_same(grad, expected)

    def test_image_index_is_truncated_toward_zero(self, device: str) -> None:
        x = features(2, self.channels, 4, 4).to(device)
        whole = box((0, 0, 0, 3, 3), (1, 0, 0, 3, 3), (0, 0, 0, 3, 3)).to(device)
        part = whole.clone()
        part[:, 0] = torch.tensor([-0.75, 1.9375, 0.5], device=device)
        assert_same(self.pool(x, part), self.pool(x, whole))

    def test_layouts_agree(self, dtype: torch.dtype, device: str) -> None:
        """Contiguous and channels_last kernels compute the same function."""
        x = features(2, 3 * self.channels, 11, 13).to(device, dtype)
        boxes = random_boxes(12, 2, (44, 52)).float().to(device)
        first = self.pool(x, boxes, 2, 0.25)
        second = self.pool(x.contiguous(memory_format=torch.channels_last), boxes, 2, 0.25)
        assert second.is_contiguous(memory_format=torch.channels_last)
        assert_close(second, first, dtype)

    def test_a_non_finite_feature_reaches_only_the_bins_that_read_it(self, device: str) -> None:
        for value in (NAN, INF):
            x = torch.ones(1, self.channels, 8, 8, device=device)
            x[0, :, 1, 1] = value
            out = self.pool(x, box((0, 0, 0, 7, 7)).float().to(device))
            assert not bool(out[0, :, 0, 0].isfinite().any())
            far = out[0, :, 1, 1]
            assert_close(far, torch.ones_like(far), torch.float32)

    def test_boxes_receive_no_gradient(self, device: str) -> None:
        x = features(1, self.channels, 5, 5).to(device).requires_grad_()
        boxes = box((0, 0, 0, 4, 4)).to(device).requires_grad_()
        self.pool(x, boxes).sum().backward()
        assert x.grad is not None and boxes.grad is None

    def test_no_graph_is_built_without_need(self, device: str) -> None:
        x = features(1, self.channels, 5, 5).to(device)
        boxes = box((0, 0, 0, 4, 4)).to(device)
        assert not self.pool(x, boxes).requires_grad
        x.requires_grad_()
        with torch.no_grad():
            assert not self.pool(x, boxes).requires_grad

    def test_a_list_of_half_boxes_reaches_every_image(self, device: str) -> None:
        # bfloat16 holds whole numbers only up to 256: an index written into it would round.
        images = 300
        x = torch.arange(float(images), device=device).reshape(images, 1, 1, 1).expand(-1, -1, 2, 2)
        boxes = [torch.tensor([[0.0, 0, 1, 1]], dtype=torch.bfloat16, device=device)] * images
        assert self.pool(x, boxes, 1).flatten().tolist() == list(range(images))

    def test_strides_of_size_one_dimensions_say_nothing(self, device: str) -> None:
        image = features(20, 30, self.channels).float().to(device).permute(2, 0, 1)[None]
        boxes = box((0, 1, 1, 9, 9)).float().to(device)
        out = self.pool(image, boxes)
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert_close(out, self.pool(image.contiguous(), boxes), torch.float32)

    def detector_boxes(self) -> Tensor:
        """Boxes of an image of 800 x 1328 on which torchvision's results are beyond doubt."""
        return random_boxes(300, 2, (800, 1328))

    @pytest.mark.native
    @pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
    def test_the_size_of_a_detector(
        self, channels_last: bool, dtype: torch.dtype, device: str
    ) -> None:
        """Blocks of channels, bands of rows and threads meet their edges."""
        x = features(2, 25 * self.channels, 50, 83).to(device, dtype)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        boxes = self.detector_boxes().float().to(device)
        theirs = getattr(pytest.importorskip("torchvision.ops"), self.spec.name)
        arithmetic = torch.promote_types(dtype, torch.float32)
        wide = x.to(arithmetic).contiguous().requires_grad_()
        expected = theirs(wide, boxes.to(arithmetic), 2, 1 / 16)
        upstream = features(*expected.shape, seed=5).to(device, dtype)
        (grad,) = torch.autograd.grad(expected, wide, upstream.to(arithmetic))
        x.requires_grad_()
        results = []
        for count in (1, 2, 3):
            with harness.threads(count):
                ours = self.pool(x, boxes, 2, 1 / 16)
                results.append([ours, *torch.autograd.grad(ours, x, upstream)])
        assert_close(results[0][0], expected, dtype)
        assert_close(results[0][1], grad, dtype)
        for other in results[1:]:
            for a, e in zip(other, results[0], strict=True):
                assert_same(a, e)
