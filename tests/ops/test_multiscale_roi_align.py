"""multiscale_roi_align: the generic matrix, then what is particular to the operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
    OpTests,
    Sample,
    VmapCase,
    assert_close,
    assert_same,
    threads,
)
from roi_family import BAD_BOXES, FLOATS, INF, NAN, box, features, good, random_boxes
from torch import Tensor

from cvkernels import reference
from cvkernels.multiscale_roi_align import (
    LevelMapper,
    MultiScaleRoIAlign,
    multiscale_roi_align,
    roi_levels,
)
from cvkernels.roi_align import roi_align

SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)


def pyramid(count: int, channels: int, height: int, width: int, images: int = 2) -> list[Tensor]:
    return [
        features(images, channels, max(height >> i, 1), max(width >> i, 1), seed=i)
        for i in range(count)
    ]


def boxes_of_all_sizes(count: int, images: int, extent: tuple[int, int], seed: int = 1) -> Tensor:
    """[count, 5] boxes with sides from 16 to 512, some reaching over the edges."""
    generator = torch.Generator().manual_seed(seed)
    unit = torch.rand(count, 5, generator=generator, dtype=torch.float64)
    side = 16 * torch.exp2(5 * unit[:, :1] + torch.tensor([0.5, -0.5]) * (unit[:, 1:2] - 0.5))
    corner = unit[:, 2:4] * torch.tensor([extent[1], extent[0]]) - 0.3 * side
    return torch.cat([(unit[:, 4:] * images).floor(), corner, corner + side], 1)


def case(
    name: str,
    maps: list[Tensor],
    boxes: Tensor | list[Tensor],
    output_size: int | tuple[int, int],
    scales: tuple[float, ...],
    sampling_ratio: int = 2,
    aligned: bool = False,
    mode: str = "avg",
    canon: tuple[float, int] = (224, 4),
    levels: Tensor | None = None,
    **options: Any,
) -> Case:
    def make() -> Args:
        args: Args = {
            "features": [level.clone() for level in maps],
            "boxes": [b.clone() for b in boxes] if isinstance(boxes, list) else boxes.clone(),
            "output_size": output_size,
            "spatial_scales": scales,
            "sampling_ratio": sampling_ratio,
            "aligned": aligned,
            "canonical_scale": canon[0],
            "canonical_level": canon[1],
            "mode": mode,
        }
        if levels is not None:
            args["levels"] = levels.clone()
        return args

    return Case(f"{mode}-{name}", make, **options)


def make_cases() -> list[Case]:
    many = boxes_of_all_sizes(21, 2, (200, 240))
    few = torch.cat([boxes_of_all_sizes(3, 1, (40, 48)), box((0, 2, 3, 500, 400))])
    odd = box(
        (0, 30, 30, 30, 30),  # a point
        (0, 150, 160, 3, 2),  # corners exchanged: an area still
        (1, 90, 5, 9, 80),  # one side negative: no area
        (1, -400, -400, -20, -30),  # outside
        (0, -300, -300, 500, 500),  # around the whole image
        (1, 9, 20, 9, 300),  # no width
    )
    unlike = [features(1, 3, 20, 24), features(1, 3, 7, 5, seed=1), features(1, 3, 1, 1, seed=2)]
    found = []
    for mode in ("avg", "max"):
        jumpy = {} if mode == "avg" else {"gradient_dtypes": (torch.float32, torch.float64)}
        more: dict[str, Any] = {"mode": mode, **jumpy}
        found += [
            case("small", pyramid(2, 2, 9, 10, 1), few, 2, SCALES[:2], small=True, **more),
            case(
                "small adaptive",
                pyramid(3, 1, 10, 9, 1),
                few,
                (2, 3),
                SCALES[:3],
                -1,
                True,
                small=True,
                **more,
            ),
            case("four levels", pyramid(4, 5, 50, 60), many, 7, SCALES, **more),
            case("aligned", pyramid(4, 3, 50, 60), many, (3, 5), SCALES, 2, True, **more),
            case("adaptive", pyramid(3, 3, 24, 32), many[:9], 3, SCALES[:3], 0, **more),
            case("odd boxes", pyramid(4, 3, 50, 60), odd, 3, SCALES, **more),
            case(
                "one level", pyramid(1, 4, 14, 17), random_boxes(9, 2, (56, 68)), 3, (0.25,), **more
            ),
            case("channel tail", pyramid(2, 67, 12, 12, 1), few, 2, SCALES[:2], **more),
            case("unlike sizes", unlike, many[many[:, 0] == 0], 2, (0.25, 1 / 16, 1 / 300), **more),
            case("canon", pyramid(3, 3, 24, 30), many, 2, SCALES[:3], canon=(60, 3), **more),
            case(
                "given levels",
                pyramid(3, 3, 24, 30),
                many[:9],
                2,
                (1 / 4, 1 / 16, 1 / 8),
                levels=torch.tensor([2, 1, 0, 0, 2, 1, 0, 2, 1]),
                **more,
            ),
            case(
                "given narrow levels",
                pyramid(2, 3, 24, 30),
                many[:3],
                2,
                SCALES[:2],
                levels=torch.tensor([1, 0, 1], dtype=torch.uint8),
                **more,
            ),
            case("skipped level", pyramid(2, 3, 24, 30), many, 2, (1 / 4, 1 / 16), **more),
            case(
                "eight levels",
                pyramid(8, 2, 130, 140, 1),
                box(*[(0, 3, 2, 3 + 2.3**i, 2 + 1.9**i) for i in range(1, 8)]),
                2,
                tuple(2.0**-i for i in range(8)),
                canon=(32, 4),
                **more,
            ),
            case(
                "list",
                pyramid(2, 3, 24, 30, 3),
                [many[:4, 1:], many[:0, 1:], many[4:6, 1:]],
                2,
                SCALES[:2],
                **more,
            ),
            case(
                "float32 boxes",
                pyramid(3, 4, 24, 30),
                many.float(),
                2,
                SCALES[:3],
                keeps=("boxes",),
                **more,
            ),
            case(
                "half boxes",
                pyramid(3, 4, 24, 30),
                many.half(),
                2,
                SCALES[:3],
                keeps=("boxes",),
                **more,
            ),
            case("no boxes", pyramid(3, 3, 9, 8), box(), 2, SCALES[:3], **more),
            case("no images", pyramid(2, 3, 9, 8, 0), box(), 2, SCALES[:2], **more),
            case("no channels", pyramid(2, 0, 9, 8), few, 2, SCALES[:2], **more),
            case(
                "no rows",
                [features(1, 2, 8, 6), features(1, 2, 0, 3)],
                few,
                2,
                SCALES[:2],
                **more,
            ),
        ]
    return found


# --------------------------------------------------------------------------------------------------
# Errors


def defaults() -> Args:
    return {
        "features": [torch.ones(2, 3, 8, 8), torch.ones(2, 3, 4, 4)],
        "boxes": torch.ones(4, 5),
        "output_size": 7,
        "spatial_scales": [0.25, 0.125],
    }


def bad_second(**changes: Any) -> Callable[[], list[Any]]:
    """Maps of which the second is other than it should be."""
    options = {"size": (2, 3, 4, 4), **changes}
    return lambda: [torch.ones(2, 3, 8, 8), torch.ones(**options)]


def errors() -> list[ErrorCase]:
    sizes = "output_size of positive 32-bit values, got "
    values: list[tuple[str, dict[str, Any], str]] = [
        ("none", {"features": list}, "features of 1 to 8 levels, got 0"),
        (
            "nine",
            {"features": lambda: [torch.ones(1, 1, 2, 2)] * 9},
            "features of 1 to 8 levels, got 9",
        ),
        (
            "map dims",
            {"features": lambda: [torch.ones(3, 4)]},
            "features[0] of shape (N, C, H, W), got (3, 4)",
        ),
        (
            "second dims",
            {"features": bad_second(size=(2, 3, 4))},
            "features[1] of shape (N, C, H, W), got (2, 3, 4)",
        ),
        (
            "map dtype",
            {"features": lambda: [torch.ones(2, 3, 8, 8, dtype=torch.int64)]},
            f"features[0] of dtype {FLOATS}, got int64",
        ),
        (
            "images",
            {"features": bad_second(size=(1, 3, 4, 4))},
            "features[1] of shape (2, 3, H, W) as features[0], got (1, 3, 4, 4)",
        ),
        (
            "channels",
            {"features": bad_second(size=(2, 5, 4, 4))},
            "features[1] of shape (2, 3, H, W) as features[0], got (2, 5, 4, 4)",
        ),
        (
            "dtypes",
            {"features": bad_second(dtype=torch.float64)},
            "features[1] of the dtype of features[0] (float32), got float64",
        ),
        (
            "devices",
            {"features": bad_second(device="meta")},
            "features[1] on the device of features[0] (cpu), got meta",
        ),
        (
            "boxes columns",
            {"boxes": lambda: torch.ones(10, 4)},
            "boxes of shape (K, 5), got (10, 4)",
        ),
        (
            "boxes dtype",
            {"boxes": lambda: torch.ones(4, 5, dtype=torch.int32)},
            f"boxes of dtype {FLOATS}, got int32",
        ),
        (
            "boxes device",
            {"boxes": lambda: torch.ones(4, 5, device="meta")},
            "boxes on the device of features[0] (cpu), got meta",
        ),
        (
            "list shape",
            {"boxes": lambda: [torch.ones(2, 4), torch.ones(3, 5)]},
            "boxes[1] of shape (L, 4), got (3, 5)",
        ),
        (
            "list device",
            {"boxes": lambda: [torch.ones(2, 4, device="meta")]},
            "boxes[0] on the device of features[0] (cpu), got meta",
        ),
        (
            "levels shape",
            {"levels": lambda: torch.zeros(3, dtype=torch.int64)},
            "levels of shape (4,), got (3,)",
        ),
        (
            "levels dtype",
            {"levels": lambda: torch.zeros(4)},
            "levels of dtype uint8, int8, int16, int32 or int64, got float32",
        ),
        (
            "levels device",
            {"levels": lambda: torch.zeros(4, dtype=torch.int64, device="meta")},
            "levels on the device of boxes (cpu), got meta",
        ),
        ("scales missing", {"spatial_scales": [0.25]}, "spatial_scales of 2 values, got 1"),
        (
            "scale nan",
            {"spatial_scales": [0.25, NAN]},
            "spatial_scales[1] to be finite and positive, got nan",
        ),
        (
            "scale zero",
            {"spatial_scales": [0.0, 0.25]},
            "spatial_scales[0] to be finite and positive, got 0",
        ),
        (
            "scales ascending",
            {"spatial_scales": [0.125, 0.25]},
            "spatial_scales[1] of at most spatial_scales[0] (0.125), got 0.25",
        ),
        (
            "canonical scale",
            {"canonical_scale": -1},
            "canonical_scale to be finite and positive, got -1",
        ),
        (
            "level range",
            {"canonical_level": 2**31},
            "canonical_level from -2^31 to 2^31 - 1, got 2147483648",
        ),
        ("output zero", {"output_size": (0, 7)}, f"{sizes}(0, 7)"),
        ("output huge", {"output_size": (1, 2**31)}, f"{sizes}(1, 2147483648)"),
        (
            "output three",
            {"output_size": (1, 2, 3)},
            "output_size to be an integer or a pair of integers, got 3 values",
        ),
        ("sampling", {"sampling_ratio": 32769}, "sampling_ratio of at most 32768, got 32769"),
        ("mode", {"mode": "sum"}, "mode to be 'avg' or 'max', got 'sum'"),
    ]
    types: list[tuple[str, dict[str, Any], str]] = [
        ("maps type", {"features": 3}, "features to be a list of tensors, got int"),
        ("map type", {"features": lambda: [None]}, "features[0] to be a tensor, got NoneType"),
        ("boxes type", {"boxes": 3}, "boxes to be a tensor or a list of tensors, got int"),
        ("scales type", {"spatial_scales": 3}, "spatial_scales to be a list of numbers, got int"),
        ("output type", {"output_size": 2.5}, "output_size to be an integer, got float"),
        ("level type", {"canonical_level": 2.5}, "canonical_level to be an integer, got float"),
    ]
    data: list[tuple[str, dict[str, Any], str]] = [
        (
            f"index {text}",
            {"boxes": lambda index=index: box((0, 0, 0, 1, 1), (index, 0, 0, 1, 1)).float()},
            f"boxes[:, 0] in [0, 2), got {text} in row 1",
        )
        for index, text in ((2.0, "2"), (-1.0, "-1"), (NAN, "nan"), (INF, "inf"))
    ]
    data += [
        (
            f"level {value}",
            {"levels": lambda value=value: torch.tensor([0, 1, value, 0])},
            f"levels in [0, 2), got {value} in row 2",
        )
        for value in (2, -1, 2**40)
    ]
    data.append(
        (
            "level, then index",
            {
                "boxes": lambda: box((0, 0, 0, 1, 1), (0, 0, 0, 1, 1), (9, 0, 0, 1, 1)).float(),
                "levels": lambda: torch.tensor([0, 7, 0]),
            },
            "levels in [0, 2), got 7 in row 1",
        )
    )
    found = []
    for rows, options in ((values, {}), (types, {"type": TypeError}), (data, {"reads_data": True})):
        for name, changes, message in rows:
            text = f"multiscale_roi_align: expected {message}"
            found.append(ErrorCase(name, good(defaults, **changes), text, **options))  # type: ignore[arg-type]
    return found


# --------------------------------------------------------------------------------------------------
# Dispatcher operators, vmap


def make_samples() -> list[Sample]:
    rule = (224.0, 4)

    def inputs(dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
        maps = [level.to(dtype) for level in pyramid(2, 3, 12, 10)]
        return maps, boxes_of_all_sizes(4, 2, (48, 40)).float()

    def forward(dtype: torch.dtype) -> tuple[Any, ...]:
        maps, boxes = inputs(dtype)
        maps = [level.requires_grad_() for level in maps]
        return maps, boxes, None, [0.25, 0.125], 2, 3, 2, True, *rule

    def forward_last(dtype: torch.dtype) -> tuple[Any, ...]:
        maps, boxes = inputs(dtype)
        maps = [m.contiguous(memory_format=torch.channels_last).requires_grad_() for m in maps]
        return maps, boxes, torch.tensor([0, 1, 1, 0]), [0.25, 0.125], 2, 3, -1, False, *rule

    def empty(dtype: torch.dtype) -> tuple[Any, ...]:
        maps, boxes, *rest = forward(dtype)
        return maps, boxes[:0], *rest

    def backward(dtype: torch.dtype) -> tuple[Any, ...]:
        boxes = inputs(dtype)[1]
        grad = features(4, 3, 2, 3).to(dtype).requires_grad_()
        sizes = (2, 3, 2, 3, [12, 6], [10, 5])
        return grad, boxes, None, [0.25, 0.125], *sizes, 2, True, *rule

    def max_backward(dtype: torch.dtype) -> tuple[Any, ...]:
        maps, boxes, *rest = forward(dtype)
        maps = [level.detach() for level in maps]
        argmax = torch.ops.cvkernels.multiscale_roi_align_max(maps, boxes, *rest)[1]
        grad, *others = backward(dtype)
        return grad.detach(), argmax, *others

    def levels(dtype: torch.dtype) -> tuple[Any, ...]:
        return inputs(dtype)[1].to(dtype), [0.25, 0.125], *rule

    name = "multiscale_roi_align"
    forwards = [("plain", forward), ("channels_last", forward_last), ("no boxes", empty)]
    return [
        *(Sample(name, title, make) for title, make in forwards),
        *(Sample(f"{name}_max", title, make) for title, make in forwards),
        Sample(f"{name}_backward", "plain", backward),
        Sample(f"{name}_max_backward", "plain", max_backward),
        Sample(f"{name}_levels", "plain", levels),
    ]


def make_vmaps() -> list[VmapCase]:
    def pool(fine: Tensor, coarse: Tensor, boxes: Tensor, mode: str) -> Tensor:
        return multiscale_roi_align([fine, coarse], boxes, 2, SCALES[:2], 2, mode=mode)

    def maps() -> tuple[Tensor, Tensor]:
        return features(3, 2, 3, 12, 14), features(3, 2, 3, 6, 7, seed=1)

    def boxes() -> Tensor:
        return torch.stack([boxes_of_all_sizes(4, 2, (48, 56), seed=s) for s in range(3)])

    found = []
    for mode in ("avg", "max"):

        def run(*args: Tensor, mode: str = mode) -> Tensor:
            return pool(*args, mode=mode)

        found += [
            VmapCase(f"{mode}-all", run, lambda: (*maps(), boxes()), (0, 0, 0)),
            VmapCase(
                f"{mode}-one map", run, lambda: (maps()[0], maps()[1][0], boxes()), (0, None, 0)
            ),
            VmapCase(f"{mode}-maps", run, lambda: (*maps(), boxes()[0]), (0, 0, None)),
            VmapCase(
                f"{mode}-boxes", run, lambda: (maps()[0][0], maps()[1][0], boxes()), (None, None, 0)
            ),
            VmapCase(
                f"{mode}-inner dims",
                run,
                lambda: (maps()[0].movedim(0, 2), maps()[1].movedim(0, 1), boxes().movedim(0, 1)),
                (2, 1, 1),
            ),
        ]
    return found


class TestMultiscaleRoIAlign(DifferentiableOpTests):
    spec = OpSpec(
        name="multiscale_roi_align",
        op=multiscale_roi_align,
        reference=reference.multiscale_roi_align,
        cases=make_cases(),
        differentiable=("features",),
        memory_format_of="features",
        second_order=lambda args: args["mode"] == "avg",
        errors=errors(),
        samples=make_samples(),
        vmaps=make_vmaps(),
    )


# --------------------------------------------------------------------------------------------------
# Levels


def levels_case(name: str, boxes: Tensor | list[Tensor], scales: Any, *canon: Any) -> Case:
    def make() -> Args:
        args: Args = {"boxes": boxes, "spatial_scales": scales}
        return args | dict(zip(("canonical_scale", "canonical_level"), canon, strict=False))

    return Case(name, make, small=name == "four levels")


class TestRoILevels(OpTests):
    spec = OpSpec(
        name="roi_levels",
        op=roi_levels,
        reference=reference.roi_levels,
        exact=True,
        cases=[
            levels_case("four levels", boxes_of_all_sizes(50, 2, (300, 300)), SCALES),
            levels_case("another canon", boxes_of_all_sizes(300, 2, (300, 300)), SCALES, 60, 3),
            levels_case("skipped", boxes_of_all_sizes(50, 2, (300, 300)), (1 / 4, 1 / 16)),
            levels_case("one level", boxes_of_all_sizes(9, 2, (300, 300)), (0.25,)),
            levels_case("bad boxes", box(*[(0, *b) for b in BAD_BOXES]), SCALES),
            levels_case(
                "extreme canon", boxes_of_all_sizes(9, 2, (300, 300)), SCALES, 1e-30, -(10**6)
            ),
            levels_case("no boxes", box(), SCALES),
            levels_case("list", [boxes_of_all_sizes(5, 1, (99, 99))[:, 1:], box()[:, 1:]], SCALES),
        ],
        errors=[
            ErrorCase(
                name,
                good(lambda: {"boxes": torch.ones(4, 5), "spatial_scales": [0.25]}, **changes),
                f"roi_levels: expected {message}",
                kind,
            )
            for name, changes, message, kind in (
                (
                    "columns",
                    {"boxes": lambda: torch.ones(3, 4)},
                    "boxes of shape (K, 5), got (3, 4)",
                    ValueError,
                ),
                (
                    "dtype",
                    {"boxes": lambda: torch.ones(3, 5, dtype=torch.int64)},
                    f"boxes of dtype {FLOATS}, got int64",
                    ValueError,
                ),
                (
                    "list device",
                    {"boxes": lambda: [torch.ones(2, 4), torch.ones(2, 4, device="meta")]},
                    "boxes[1] on the device of boxes[0] (cpu), got meta",
                    ValueError,
                ),
                (
                    "no scales",
                    {"spatial_scales": []},
                    "spatial_scales of 1 to 8 values, got 0",
                    ValueError,
                ),
                (
                    "ascending",
                    {"spatial_scales": [0.25, 0.5]},
                    "spatial_scales[1] of at most spatial_scales[0] (0.25), got 0.5",
                    ValueError,
                ),
                (
                    "canon",
                    {"canonical_scale": INF},
                    "canonical_scale to be finite and positive, got inf",
                    ValueError,
                ),
                (
                    "type",
                    {"boxes": None},
                    "boxes to be a tensor or a list of tensors, got NoneType",
                    TypeError,
                ),
            )
        ],
        vmaps=[
            VmapCase(
                "boxes",
                lambda boxes: roi_levels(boxes, SCALES),
                lambda: (boxes_of_all_sizes(12, 1, (99, 99)).reshape(3, 4, 5),),
                (0,),
            )
        ],
    )


def mapper_of(first: int, last: int, *canon: int) -> tuple[Any, Any]:
    poolers = pytest.importorskip("torchvision.ops.poolers")
    return LevelMapper(first, last, *canon), poolers.LevelMapper(first, last, *canon)


CANONS = [(2, 5, 224, 4), (0, 7, 100, 3), (2, 5, 333, 5), (1, 4, 56, 2), (2, 6, 32, 0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("canon", CANONS, ids=str)
def test_levels_are_torchvision_s_bit_for_bit(canon: Any, dtype: torch.dtype) -> None:
    """Random boxes, and all areas near the least of each level."""
    ours, theirs = mapper_of(*canon)
    generator = torch.Generator().manual_seed(0)
    side = torch.exp2(13 * torch.rand(20_000 if EMULATED else 200_000, generator=generator) - 1)
    shape = torch.exp2(4 * torch.rand(len(side), generator=generator) - 2)
    corner = 1000 * torch.rand(len(side), 2, generator=generator)
    size = torch.stack([side * shape, side / shape], 1)
    boxes = [torch.cat([corner, corner + size], 1).to(dtype)]
    integer = torch.int32 if dtype is torch.float32 else torch.int64
    for level in range(canon[0] - 1, canon[1] + 2):
        least = torch.tensor((canon[2] * 2.0 ** (level - canon[3] - 1e-6)) ** 2, dtype=dtype)
        near = torch.arange(-200, 200, dtype=integer) + least.view(integer)
        boxes.append(torch.nn.functional.pad(near.view(dtype)[:, None], (2, 0)))
        boxes[-1] = torch.cat([boxes[-1], torch.ones(len(near), 1, dtype=dtype)], 1)
    assert torch.equal(ours(boxes), theirs(boxes))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pooling_and_levels_agree(dtype: torch.dtype, device: str) -> None:
    """Constant maps tell which one a box was pooled from."""
    maps = [torch.full((1, 1, 64 >> i, 64 >> i), i + 1.0, dtype=dtype) for i in range(4)]
    generator = torch.Generator().manual_seed(0)
    sides = (112 + torch.arange(-9, 10) * 2.0**-17, 224 + torch.arange(-9, 10) * 2.0**-16)
    side = torch.cat([*sides, torch.exp2(9 * torch.rand(60, generator=generator))])
    boxes = (side[:, None] * torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0])).to(device)
    out = multiscale_roi_align([m.to(device) for m in maps], boxes.to(dtype), 1, SCALES, 1)
    levels = roi_levels(boxes.to(dtype), SCALES)
    assert torch.equal(out.flatten().round().long() - 1, levels)
    given = multiscale_roi_align([m.to(device) for m in maps], boxes, 1, SCALES, 1, levels=levels)
    assert_same(given, out)


@pytest.mark.skipif(not EMULATED and not torch.cuda.is_available(), reason="CPU raises instead")
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_bad_levels_and_indices_give_zeros_on_devices(mode: str) -> None:
    device = "cpu" if EMULATED else "cuda"
    maps = [(level.abs() + 1).to(device).requires_grad_() for level in pyramid(2, 3, 8, 8)]
    boxes = box((0, 0, 0, 20, 20), (1, 0, 0, 20, 20), (7, 0, 0, 20, 20), (0, 0, 0, 20, 20)).to(
        device
    )
    levels = torch.tensor([0, 5, 1, -3], device=device)
    out = multiscale_roi_align(maps, boxes, 2, SCALES[:2], 2, levels=levels, mode=mode)
    assert out[1:].abs().sum().item() == 0
    assert out[0].min().item() > 0
    grads = torch.autograd.grad(out.sum(), maps)
    only = multiscale_roi_align(maps, boxes[:1], 2, SCALES[:2], 2, levels=levels[:1], mode=mode)
    for a, e in zip(grads, torch.autograd.grad(only.sum(), maps), strict=True):
        assert_same(a, e)


# --------------------------------------------------------------------------------------------------
# One engine


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_one_level_is_roi_align(mode: str, dtype: torch.dtype, device: str) -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        x = features(2, 37, 13, 17).to(device, dtype).contiguous(memory_format=layout)
        boxes = random_boxes(30, 2, (52, 68)).float().to(device)
        pair = []
        for several in (True, False):
            leaf = x.detach().requires_grad_()
            if several:
                out = multiscale_roi_align([leaf], boxes, (3, 2), [0.25], 2, True, mode=mode)
            else:
                out = roi_align(leaf, boxes, (3, 2), 0.25, 2, True, mode=mode)
            upstream = features(*out.shape, seed=3).to(device, dtype)
            pair.append((out, *torch.autograd.grad(out, leaf, upstream)))
        for a, e in zip(*pair, strict=True):
            assert_same(a, e)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_levels_of_different_layouts_agree(dtype: torch.dtype, device: str) -> None:
    boxes = boxes_of_all_sizes(9, 2, (96, 120)).float().to(device)
    maps = [level.to(device, dtype) for level in pyramid(3, 5, 24, 30)]
    last = [level.contiguous(memory_format=torch.channels_last) for level in maps]
    plain = multiscale_roi_align(maps, boxes, 3, SCALES[:3], 2)
    mixed = multiscale_roi_align([maps[0], *last[1:]], boxes, 3, SCALES[:3], 2)
    assert mixed.is_contiguous()
    assert_same(mixed, plain)
    other = multiscale_roi_align([last[0], *maps[1:]], boxes, 3, SCALES[:3], 2)
    assert other.is_contiguous(memory_format=torch.channels_last)
    assert_close(other, plain, dtype)


def test_a_map_that_no_box_uses_has_a_gradient_of_zeros(device: str) -> None:
    maps = [level.to(device).requires_grad_() for level in pyramid(3, 2, 24, 30)]
    out = multiscale_roi_align(maps, box((0, 1, 1, 20, 20)).to(device), 2, SCALES[:3], 2)
    grads = torch.autograd.grad(out.sum(), maps)
    assert grads[0].abs().sum() > 0
    assert grads[1].abs().sum() == 0 and grads[2].abs().sum() == 0


def test_some_maps_need_no_gradient(device: str) -> None:
    maps = [level.to(device) for level in pyramid(2, 2, 24, 30)]
    maps[1].requires_grad_()
    boxes = boxes_of_all_sizes(6, 2, (96, 120)).to(device).requires_grad_()
    multiscale_roi_align(maps, boxes, 2, SCALES[:2], 2).sum().backward()
    assert maps[0].grad is None and boxes.grad is None
    assert maps[1].grad is not None and maps[1].grad.abs().sum() > 0


@pytest.mark.native
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_size_of_a_detector(dtype: torch.dtype, channels_last: bool, device: str) -> None:
    """Threads, tiles and bands meet their edges; results large enough to bypass the caches."""
    ops = pytest.importorskip("torchvision.ops")
    maps = [level.to(device, dtype) for level in pyramid(4, 200, 100, 133)]
    boxes = boxes_of_all_sizes(700, 2, (400, 532)).float().to(device)
    arithmetic = torch.promote_types(dtype, torch.float32)
    wide = {str(i): level.to(arithmetic).requires_grad_() for i, level in enumerate(maps)}
    pool = ops.MultiScaleRoIAlign(list(wide), 7, 2)
    lists = [boxes[boxes[:, 0] == i, 1:].to(arithmetic) for i in range(2)]
    expected = pool(wide, lists, [(400, 532)] * 2)
    order = torch.cat([(boxes[:, 0] == i).nonzero()[:, 0] for i in range(2)])
    boxes = boxes[order]
    upstream = features(*expected.shape, seed=5).to(device, dtype)
    gradients = torch.autograd.grad(expected, list(wide.values()), upstream.to(arithmetic))
    if channels_last:
        maps = [level.contiguous(memory_format=torch.channels_last) for level in maps]
    maps = [level.requires_grad_() for level in maps]
    results = []
    for count in (1, 2, 3):
        with threads(count):
            ours = multiscale_roi_align(maps, boxes, 7, SCALES, 2)
            results.append([ours, *torch.autograd.grad(ours, maps, upstream)])
    for a, e in zip(results[0], [expected, *gradients], strict=True):
        assert_close(a, e, dtype)
    for other in results[1:]:
        for a, e in zip(other, results[0], strict=True):
            assert_same(a, e)


# --------------------------------------------------------------------------------------------------
# The module


def both_modules(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    ops = pytest.importorskip("torchvision.ops")
    return MultiScaleRoIAlign(*args, **kwargs), ops.MultiScaleRoIAlign(*args, **kwargs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"canonical_scale": 100},
        {"canonical_level": 3},
        {"canonical_scale": 60, "canonical_level": 2},
    ],
    ids=str,
)
def test_the_module_is_torchvision_s(options: dict[str, int], device: str) -> None:
    ours, theirs = both_modules(["a", "b", "d"], (3, 2), 2, **options)
    assert repr(ours) == repr(theirs)
    maps = dict(zip("abcd", pyramid(4, 3, 48, 60), strict=True))
    maps = {name: level.float().to(device) for name, level in maps.items()}
    boxes = boxes_of_all_sizes(12, 1, (192, 240)).float().to(device)[:, 1:]
    arguments = (maps, [boxes[:7], boxes[7:]], [(190, 200), (192, 240)])
    assert_close(ours(*arguments), theirs(*arguments), torch.float32)
    for name in ("scales", "canonical_scale", "canonical_level", "output_size", "sampling_ratio"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in ("k_min", "k_max", "s0", "lvl0", "eps"):
        assert getattr(ours.map_levels, name) == getattr(theirs.map_levels, name), name


def test_the_module_infers_scales_once(device: str) -> None:
    ours, _ = both_modules(["0"], 2, 2)
    x = {"0": features(1, 2, 25, 25).to(device)}
    boxes = [box((0, 1, 1, 40, 40)).to(device)[:, 1:]]
    assert ours.scales is None and ours.map_levels is None
    ours(x, boxes, [(100, 100)])
    ours(x, boxes, [(800, 800)])
    assert ours.scales == [0.25]


@pytest.mark.native
def test_the_module_infers_what_torchvision_infers() -> None:
    poolers = pytest.importorskip("torchvision.ops.poolers")
    from cvkernels.multiscale_roi_align import _infer_exponents

    for size in range(1, 70):
        for image in (1, 3, 64, 100, 333, 800, 1333):
            level = torch.empty(1, 1, size, 7)
            theirs = poolers._infer_scale(level, [image, 5])
            assert 2.0 ** _infer_exponents([level], [(image, 5)])[0] == theirs


@pytest.mark.native
def test_the_module_takes_another_rule() -> None:
    ours, _ = both_modules(["0", "1"], 1, 2)
    maps = {str(i): torch.full((1, 1, 16 >> i, 16 >> i), i + 1.0) for i in range(2)}
    boxes = [torch.tensor([[1.0, 1, 20, 20], [2, 2, 30, 30]])]
    ours.scales, ours.map_levels = [0.25, 0.125], lambda boxes: torch.tensor([1, 0])
    assert ours(maps, boxes, [(64, 64)]).flatten().tolist() == [2, 1]


@pytest.mark.native
def test_the_module_casts_levels_of_another_dtype() -> None:
    ours, _ = both_modules(["0", "1"], 1, 2)
    maps = {"0": torch.ones(1, 1, 16, 16).bfloat16(), "1": torch.ones(1, 1, 8, 8)}
    out = ours(maps, [torch.tensor([[1.0, 1, 20, 20]])], [(64, 64)])
    assert out.dtype is torch.bfloat16 and out.item() == 1


@pytest.mark.native
def test_the_module_s_errors() -> None:
    ours, _ = both_modules(["0"], 1, 2)
    with pytest.raises(ValueError, match="MultiScaleRoIAlign: expected features of 1 to 8 levels"):
        ours({"1": torch.ones(1, 1, 4, 4)}, [torch.ones(1, 4)], [(8, 8)])
    with pytest.raises(ValueError, match="image_shapes of 1 image or more"):
        ours({"0": torch.ones(1, 1, 4, 4)}, [torch.ones(1, 4)], [])
    with pytest.raises(ValueError, match="heights of at least 1"):
        ours({"0": torch.ones(1, 1, 0, 4)}, [torch.ones(1, 4)], [(8, 8)])


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_module_compiles_from_its_first_call_on(dynamic: bool, device: str) -> None:
    maps = {str(i): level.float().to(device) for i, level in enumerate(pyramid(3, 3, 24, 30))}
    boxes = boxes_of_all_sizes(8, 1, (96, 120)).float().to(device)[:, 1:]
    arguments = (maps, [boxes[:5], boxes[5:]], [(96, 120), (90, 100)])
    expected = MultiScaleRoIAlign(["0", "1", "2"], 3, 2)(*arguments)
    torch._dynamo.reset()
    compiled = torch.compile(
        MultiScaleRoIAlign(["0", "1", "2"], 3, 2),
        backend="aot_eager",
        fullgraph=True,
        dynamic=dynamic,
    )
    assert_same(compiled(*arguments), expected)
    assert_same(compiled(*arguments), expected)
