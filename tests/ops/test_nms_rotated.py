"""nms_rotated and box_iou_rotated: the generic matrix, then what is particular to them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import harness
import pytest
import torch
from boxes import INF, NAN, THRESHOLDS, bad_scores, classes, random_scores
from harness import (
    DTYPES,
    EMULATED,
    Args,
    Case,
    ErrorCase,
    OpSpec,
    OpTests,
    Sample,
    VmapCase,
    assert_same,
)
from hypothesis import given
from hypothesis import strategies as st
from nms_family import RANDOM_PROBLEMS
from torch import Tensor

from cvkernels import reference
from cvkernels.nms_rotated import box_iou_rotated, nms_rotated

PI = math.pi


def spread(count: int, seed: int = 0, side: float | None = None) -> Tensor:
    """Boxes with sides 5..105 and any angle, at constant density (or over ``side``)."""
    generator = torch.Generator().manual_seed(seed)
    side = side or 25 * math.sqrt(max(count, 1))
    unit = torch.rand(count, 5, generator=generator, dtype=torch.float64)
    scale = torch.tensor([side, side, 100, 100, 8], dtype=torch.float64)
    return unit * scale + torch.tensor([0, 0, 5, 5, -4], dtype=torch.float64)


def crowd(count: int, clusters: int, seed: int = 0, offset: float = 0.0) -> Tensor:
    """Boxes that jitter around a few objects."""
    generator = torch.Generator().manual_seed(seed)
    objects = spread(clusters, seed + 1, side=2000)
    pick = torch.randint(0, clusters, (count,), generator=generator)
    jitter = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    boxes = objects[pick] + jitter * torch.tensor([3, 3, 1, 1, 0.05], dtype=torch.float64)
    boxes[:, :2] += offset
    return boxes


def grid_boxes(count: int, seed: int = 0) -> Tensor:
    """Whole numbers and eighths of a turn: duplicates, nested, touching, empty, inverted."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.randint(-1, 9, (count, 5), generator=generator).double()
    boxes[:, 4] *= PI / 4
    return boxes


def odd_boxes(count: int, seed: int = 0) -> Tensor:
    """Grid boxes, a third of which hold a NaN, an infinity or an extreme number."""
    generator = torch.Generator().manual_seed(seed)
    boxes = grid_boxes(count, seed)
    strange = torch.tensor([NAN, INF, -INF, 6e4, -6e4, 1e-6], dtype=torch.float64)
    rows = torch.rand(count, generator=generator) < 0.33
    index = rows.nonzero().flatten()
    column = torch.randint(0, 5, (count,), generator=generator)
    value = strange[torch.randint(0, len(strange), (count,), generator=generator)]
    boxes[index, column[index]] = value[index]
    return boxes


def thin_boxes(count: int, seed: int = 0) -> Tensor:
    """A hundred times as long as wide, across one another and side by side."""
    generator = torch.Generator().manual_seed(seed)
    boxes = spread(count, seed, side=100)
    boxes[:, 2], boxes[:, 3] = 100, 1
    boxes[:, 4] = torch.randint(0, 4, (count,), generator=generator) * 0.3
    return boxes


SETS: dict[str, Callable[[int], Tensor]] = {
    "spread": spread,
    "crowd": lambda n: crowd(n, 5),
    "grid": grid_boxes,
    "odd": odd_boxes,
    "thin": thin_boxes,
    "far": lambda n: crowd(n, 4, offset=-3e4),
    "one box": lambda n: spread(1).repeat(n, 1),
    "no area": lambda n: spread(n) * torch.tensor([1.0, 1, 0, 1, 1]),
}


def nms_cases() -> list[Case]:
    cases = []

    def add(name: str, boxes: Callable[[], Tensor], threshold: float, **options: Any) -> None:
        extra = {k: options.pop(k) for k in ("max_output", "clockwise") if k in options}
        scores = options.pop("scores", lambda n: random_scores(n, levels=max(n // 3, 1)))
        labels = options.pop("labels", False)

        def arguments() -> Args:
            b = boxes()
            args: Args = {"boxes": b, "scores": scores(len(b)), "iou_threshold": threshold, **extra}
            if labels:
                args["idxs"] = classes(len(b), 3)
            return args

        cases.append(Case(name, arguments, **options))

    add("small", lambda: spread(12, side=60), 0.3, small=True)
    add("small, classes", lambda: spread(12, side=60), 0.3, small=True, labels=True)
    for count in (0, 1, 2, 33):
        add(f"{count} boxes", lambda count=count: crowd(count, 2), 0.5)
    for name, make in SETS.items():
        add(name, lambda make=make: make(90), 0.5)
        add(f"{name}, classes", lambda make=make: make(90), 0.2, labels=True, clockwise=False)
    for threshold in THRESHOLDS:
        add(f"threshold {threshold}", lambda: odd_boxes(60), threshold)
    for most in (0, 1, 5, 10_000):
        add(f"max_output {most}", lambda: spread(90), 0.3, max_output=most)
        add(f"max_output {most}, classes", lambda: spread(90), 0.3, max_output=most, labels=True)
    add("bad scores", lambda: crowd(90, 5), 0.5, scores=bad_scores)
    add(
        "all scores NaN",
        lambda: spread(9),
        0.5,
        scores=lambda n: torch.full((n,), NAN, dtype=torch.float64),
    )
    add("float64 scores", lambda: crowd(90, 5), 0.5, keeps=("scores",))
    add(
        "half scores",
        lambda: crowd(90, 5),
        0.5,
        scores=lambda n: random_scores(n).half(),
        keeps=("scores",),
    )
    add("float32 boxes", lambda: crowd(90, 5).float(), 0.5, keeps=("boxes",))
    return cases


def iou_cases() -> list[Case]:
    cases = []

    def add(name: str, boxes1: Callable[[], Tensor], boxes2: Callable[[], Tensor], **options: Any):
        extra = {k: options.pop(k) for k in ("mode", "aligned", "clockwise") if k in options}
        cases.append(
            Case(name, lambda: {"boxes1": boxes1(), "boxes2": boxes2(), **extra}, **options)
        )

    add("small", lambda: spread(5, side=60), lambda: spread(7, 1, side=60), small=True)
    add(
        "small, aligned",
        lambda: spread(6, side=60),
        lambda: spread(6, 1, side=60),
        aligned=True,
        small=True,
    )
    for name, make in SETS.items():
        add(name, lambda make=make: make(40), lambda make=make: make(37))
        add(f"{name}, iof", lambda make=make: make(9), lambda make=make: make(40), mode="iof")
        add(
            f"{name}, aligned",
            lambda make=make: make(37),
            lambda make=make: make(37).roll(1, 0),
            aligned=True,
            clockwise=False,
        )
    for n, m in ((0, 0), (0, 5), (5, 0), (1, 1), (1, 65), (65, 1)):
        add(f"{n} x {m}", lambda n=n: spread(n, side=90), lambda m=m: spread(m, 1, side=90))
    add("0 pairs", lambda: spread(0), lambda: spread(0), aligned=True)
    add(
        "float64 with others",
        lambda: crowd(20, 2),
        lambda: crowd(20, 2, 1),
        keeps=("boxes2",),
    )
    return cases


FLOATS = "float16, bfloat16, float32 or float64"
INTEGERS = "uint8, int8, int16, int32 or int64"


def nms_errors() -> list[ErrorCase]:
    def good(**changes: Any) -> Callable[[], Args]:
        def make() -> Args:
            args: Args = {
                "boxes": torch.ones(10, 5),
                "scores": torch.ones(10),
                "iou_threshold": 0.5,
            }
            args.update({k: v() if callable(v) else v for k, v in changes.items()})
            return args

        return make

    def full(count: int, dtype: torch.dtype, **options: Any) -> Callable[[], Tensor]:
        return lambda: torch.ones(count, dtype=dtype, **options)

    i64, f32 = torch.int64, torch.float32
    errors = [
        (
            "boxes columns",
            good(boxes=lambda: torch.ones(10, 4)),
            "boxes of shape (N, 5), got (10, 4)",
        ),
        ("boxes dims", good(boxes=full(50, f32)), "boxes of shape (N, 5), got (50,)"),
        (
            "boxes dtype",
            good(boxes=lambda: torch.ones(10, 5, dtype=i64)),
            f"boxes of dtype {FLOATS}, got int64",
        ),
        ("scores length", good(scores=full(9, f32)), "scores of shape (10,), got (9,)"),
        ("scores dtype", good(scores=full(10, i64)), f"scores of dtype {FLOATS}, got int64"),
        (
            "scores device",
            good(scores=full(10, f32, device="meta")),
            "scores on the device of boxes (cpu), got meta",
        ),
        ("idxs shape", good(idxs=full(9, i64)), "idxs of shape (10,), got (9,)"),
        ("idxs dtype", good(idxs=full(10, f32)), f"idxs of dtype {INTEGERS}, got float32"),
        ("idxs bool", good(idxs=full(10, torch.bool)), f"idxs of dtype {INTEGERS}, got bool"),
        (
            "idxs device",
            good(idxs=full(10, i64, device="meta")),
            "idxs on the device of boxes (cpu), got meta",
        ),
        ("threshold nan", good(iou_threshold=NAN), "iou_threshold to be finite, got nan"),
        ("threshold inf", good(iou_threshold=-INF), "iou_threshold to be finite, got -inf"),
        ("max_output", good(max_output=-1), "max_output to be None or at least 0, got -1"),
    ]
    type_errors = [
        ("boxes type", good(boxes=None), "boxes to be a tensor, got NoneType"),
        ("scores type", good(scores=[0.5]), "scores to be a tensor, got list"),
        ("idxs type", good(idxs=3), "idxs to be a tensor, got int"),
        ("threshold type", good(iou_threshold="0.5"), "iou_threshold to be a number, got str"),
        ("max_output type", good(max_output=2.5), "max_output to be an integer, got float"),
        ("clockwise type", good(clockwise="no"), "clockwise to be a bool, got str"),
        ("clockwise none", good(clockwise=None), "clockwise to be a bool, got NoneType"),
    ]
    return [ErrorCase(n, make, f"nms_rotated: expected {text}") for n, make, text in errors] + [
        ErrorCase(n, make, f"nms_rotated: expected {text}", TypeError)
        for n, make, text in type_errors
    ]


def iou_errors() -> list[ErrorCase]:
    def good(**changes: Any) -> Callable[[], Args]:
        def make() -> Args:
            args: Args = {"boxes1": torch.ones(10, 5), "boxes2": torch.ones(4, 5)}
            args.update({k: v() if callable(v) else v for k, v in changes.items()})
            return args

        return make

    errors = [
        (
            "boxes1 columns",
            good(boxes1=lambda: torch.ones(10, 4)),
            "boxes1 of shape (N, 5), got (10, 4)",
        ),
        (
            "boxes2 dims",
            good(boxes2=lambda: torch.ones(1, 4, 5)),
            "boxes2 of shape (M, 5), got (1, 4, 5)",
        ),
        (
            "boxes1 dtype",
            good(boxes1=lambda: torch.ones(10, 5, dtype=torch.int32)),
            f"boxes1 of dtype {FLOATS}, got int32",
        ),
        (
            "boxes2 dtype",
            good(boxes2=lambda: torch.ones(4, 5, dtype=torch.bool)),
            f"boxes2 of dtype {FLOATS}, got bool",
        ),
        (
            "boxes2 device",
            good(boxes2=lambda: torch.ones(4, 5, device="meta")),
            "boxes2 on the device of boxes1 (cpu), got meta",
        ),
        (
            "aligned sizes",
            good(aligned=True),
            "boxes2 of shape (10, 5) where aligned, got (4, 5)",
        ),
        ("mode", good(mode="giou"), "mode to be 'iou' or 'iof', got 'giou'"),
        ("mode type", good(mode=None), "mode to be 'iou' or 'iof', got None"),
    ]
    type_errors = [
        ("boxes1 type", good(boxes1=[1.0]), "boxes1 to be a tensor, got list"),
        ("boxes2 type", good(boxes2=None), "boxes2 to be a tensor, got NoneType"),
        ("aligned type", good(aligned="yes"), "aligned to be a bool, got str"),
        ("aligned none", good(aligned=None), "aligned to be a bool, got NoneType"),
        ("clockwise type", good(clockwise=[True]), "clockwise to be a bool, got list"),
    ]
    return [ErrorCase(n, make, f"box_iou_rotated: expected {text}") for n, make, text in errors] + [
        ErrorCase(n, make, f"box_iou_rotated: expected {text}", TypeError)
        for n, make, text in type_errors
    ]


def nms_samples() -> list[Sample]:
    def plain(dtype: torch.dtype) -> tuple[Any, ...]:
        return crowd(40, 3).to(dtype), random_scores(40).to(dtype), None, 0.5, -1, True

    def with_idxs(dtype: torch.dtype) -> tuple[Any, ...]:
        boxes, scores = crowd(40, 3).to(dtype), random_scores(40).to(dtype)
        return boxes, scores, classes(40, 2), 0.5, 6, False

    def empty(dtype: torch.dtype) -> tuple[Any, ...]:
        return torch.zeros(0, 5, dtype=dtype), torch.zeros(0, dtype=dtype), None, 0.5, -1, True

    return [
        Sample("nms_rotated", "plain", plain),
        Sample("nms_rotated", "idxs", with_idxs),
        Sample("nms_rotated", "empty", empty),
    ]


def iou_samples() -> list[Sample]:
    def matrix(dtype: torch.dtype) -> tuple[Any, ...]:
        return crowd(9, 2).to(dtype), crowd(7, 2).to(dtype), "iou", False, True

    def aligned(dtype: torch.dtype) -> tuple[Any, ...]:
        return crowd(9, 2).to(dtype), crowd(9, 2, 1).to(dtype).requires_grad_(), "iof", True, False

    def empty(dtype: torch.dtype) -> tuple[Any, ...]:
        return torch.zeros(0, 5, dtype=dtype), crowd(7, 2).to(dtype), "iou", False, True

    return [
        Sample("nms_rotated_iou", "matrix", matrix),
        Sample("nms_rotated_iou", "aligned", aligned),
        Sample("nms_rotated_iou", "empty", empty),
    ]


def iou_vmaps() -> list[VmapCase]:
    def matrix(boxes1: Tensor, boxes2: Tensor) -> Tensor:
        return box_iou_rotated(boxes1, boxes2, mode="iof")

    def aligned(boxes1: Tensor, boxes2: Tensor) -> Tensor:
        return box_iou_rotated(boxes1, boxes2, aligned=True)

    def make() -> tuple[Tensor, Tensor]:
        return crowd(30, 2).view(3, 10, 5), crowd(30, 2, 1).view(3, 10, 5)

    def make_inner() -> tuple[Tensor, Tensor]:
        return make()[0].movedim(0, 2), make()[1].movedim(0, 1)

    def make_shared() -> tuple[Tensor, Tensor]:
        return make()[0][0], make()[1]

    return [
        VmapCase("both", matrix, make, (0, 0)),
        VmapCase("second", matrix, make_shared, (None, 0)),
        VmapCase("aligned", aligned, make, (0, 0)),
        VmapCase("aligned, second", aligned, make_shared, (None, 0)),
        VmapCase("inner dims", aligned, make_inner, (2, 1)),
    ]


class TestNmsRotated(OpTests):
    spec = OpSpec(
        name="nms_rotated",
        op=nms_rotated,
        reference=reference.nms_rotated,
        cases=nms_cases(),
        exact=True,
        errors=nms_errors(),
        samples=nms_samples(),
    )


class TestBoxIouRotated(OpTests):
    spec = OpSpec(
        name="box_iou_rotated",
        op=box_iou_rotated,
        reference=reference.box_iou_rotated,
        cases=iou_cases(),
        errors=iou_errors(),
        samples=iou_samples(),
        vmaps=iou_vmaps(),
    )

    def test_bits_of_the_reference(self, case: Case, dtype: torch.dtype, device: str) -> None:
        """In float32 arithmetic each rounding is the reference's; its sines are rounded float64."""
        args = harness.build(case, dtype, device=device)
        if any(tensor.dtype == torch.float64 for tensor in (args["boxes1"], args["boxes2"])):
            pytest.skip("float64 arithmetic")
        expected = reference.box_iou_rotated(
            **harness.map_tensors(args, lambda name, tensor: tensor.cpu())
        )
        assert_same(box_iou_rotated(**args), expected, case.name)


# --------------------------------------------------------------------------------------------------
# Hand-worked numbers


def iou(a: list[float], b: list[float], device: str, dtype: torch.dtype, **options: Any) -> float:
    boxes = torch.tensor([a, b], dtype=dtype, device=device)
    return box_iou_rotated(boxes[:1], boxes[1:], **options).item()


def test_overlaps_by_hand(device: str) -> None:
    for dtype, near in ((torch.float32, 3e-7), (torch.float64, 1e-15)):

        def close(a: list[float], b: list[float], expected: float, **options: Any) -> bool:
            return abs(iou(a, b, device, dtype, **options) - expected) < near  # noqa: B023

        # A unit square and the same turned by 45 degrees have an octagon in common.
        octagon = 2 * (math.sqrt(2) - 1)
        square, turned = [0.0, 0, 1, 1, 0], [0, 0, 1, 1, PI / 4]
        assert close(square, turned, octagon / (2 - octagon))
        assert close(square, turned, octagon, mode="iof")
        # A cross: 2 x 2 of 12 + 12 - 4; width and height exchanged by a quarter turn: the same box.
        assert close([5, 5, 6, 2, 0.3], [5, 5, 6, 2, 0.3 + PI / 2], 0.2)
        assert close([5, 5, 6, 2, 0.3], [5, 5, 2, 6, 0.3 + PI / 2], 1)
        # Inside another.
        assert close([0, 0, 10, 10, 0.2], [1, 1, 2, 3, 0.9], 0.06)
        assert close([1, 1, 2, 3, 0.9], [0, 0, 10, 10, 0.2], 1, mode="iof")
        # Touching, and apart though their upright bounds overlap.
        assert close([0, 0, 2, 2, 0], [2, 0, 2, 2, 0], 0)
        assert iou([0, 0, 2, 2, 0], [2, 2, 2, 2, 0], device, dtype) == 0
        assert iou([0, 0, 10, 1, PI / 4], [1.5, -1.5, 10, 1, PI / 4], device, dtype) == 0


def test_clockwise_where_y_points_down(device: str) -> None:
    # A long bar turned by +45 degrees reaches right and down, where y grows, and so the spot.
    bar, spot = [0, 0, 10, 1, PI / 4], [3.0, 3, 1, 1, 0]
    assert iou(spot, bar, device, torch.float32, mode="iof") > 0.8
    assert iou(spot, bar, device, torch.float32, mode="iof", clockwise=False) == 0
    boxes = torch.tensor([bar, [3, 3, 3, 1, PI / 4]], device=device)
    scores = torch.tensor([0.9, 0.8], device=device)
    assert nms_rotated(boxes, scores, 0.2).tolist() == [0]
    assert nms_rotated(boxes, scores, 0.2, clockwise=False).tolist() == [0, 1]


def test_keeps_by_hand(device: str) -> None:
    # A bar, the same upright (IoU 0.2), the same turned a little.
    boxes = torch.tensor(
        [[0.0, 0, 6, 2, 0], [0, 0, 6, 2, PI / 2], [0, 0, 6, 2, 0.1]], device=device
    )
    scores = torch.tensor([0.9, 0.8, 0.7], device=device)
    assert nms_rotated(boxes, scores, 0.5).tolist() == [0, 1]
    assert nms_rotated(boxes, scores, 0.19).tolist() == [0]
    assert nms_rotated(boxes, scores, 1.0).tolist() == [0, 1, 2]
    assert nms_rotated(boxes, scores, -0.1).tolist() == [0]
    assert nms_rotated(boxes, scores.flip(0), 0.5).tolist() == [2, 1]
    idxs = torch.tensor([3, 3, 2**40], device=device)
    assert nms_rotated(boxes, scores, -0.1, idxs=idxs).tolist() == [0, 2]
    assert nms_rotated(boxes, scores, 0.5, idxs=idxs, max_output=2).tolist() == [0, 1]


def test_identical_boxes_have_exactly_one(device: str) -> None:
    for dtype in DTYPES:
        boxes = crowd(60, 9, offset=-700).to(device, dtype)
        same = box_iou_rotated(boxes, boxes, aligned=True)
        assert same.tolist() == [1.0] * 60, dtype
        assert bool((box_iou_rotated(boxes, boxes) <= 1).all())
        scores = random_scores(60).to(device)
        twice = boxes[:1].expand(60, 5)
        assert nms_rotated(twice, scores, 1.0).numel() == 60
        assert nms_rotated(twice, scores, math.nextafter(1.0, 0)).tolist() == [int(scores.argmax())]


@pytest.mark.parametrize("column", range(5))
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_box_without_a_place_overlaps_nothing(column: int, value: float, device: str) -> None:
    boxes = torch.tensor([[2.0, 2, 4, 4, 0.5]] * 3, device=device)
    boxes[1, column] = value
    scores = torch.tensor([0.9, 0.8, 0.7], device=device)
    assert nms_rotated(boxes, scores, 0.5).tolist() == [0, 1]
    assert nms_rotated(boxes, scores.roll(1), 0.0).tolist() == [1, 2]
    assert nms_rotated(boxes, scores, -0.5).tolist() == [0]  # 0 is above it
    assert box_iou_rotated(boxes, boxes)[1].tolist() == [0, 0, 0]


def test_an_angle_without_digits_overlaps_nothing(device: str) -> None:
    for dtype in (torch.float32, torch.float64):
        box = [2.0, 2, 4, 4, 2.0**20]
        assert iou(box, box, device, dtype) == 1
        box[4] = math.nextafter(2.0**20, INF) if dtype == torch.float64 else 2.0**20 + 1
        assert iou(box, box, device, dtype) == 0


def test_nan_scores_are_never_kept(device: str) -> None:
    boxes = torch.tensor([[2.0, 2, 4, 4, 0.5]] * 3, device=device)
    assert nms_rotated(boxes, torch.tensor([NAN, 0.1, NAN], device=device), 0.5).tolist() == [1]
    assert nms_rotated(boxes, torch.full((3,), NAN, device=device), -1.0).tolist() == []


def test_threshold_is_compared_as_a_real_number(device: str) -> None:
    # 3 of 10: float32 rounds 0.3 up, above the float64 number; float64 gives that number itself.
    boxes = torch.tensor([[5.0, 0.5, 10, 1, 0], [1.5, 0.5, 3, 1, 0]], device=device)
    scores = torch.tensor([1.0, 0.5], device=device)
    assert nms_rotated(boxes, scores, 0.3).tolist() == [0]
    assert nms_rotated(boxes.double(), scores, 0.3).tolist() == [0, 1]
    assert nms_rotated(boxes, scores, 0.30000002).tolist() == [0, 1]


# --------------------------------------------------------------------------------------------------
# Properties


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, float]:
    seed = draw(st.integers(0, 2**31))
    count = draw(st.integers(0, 30 if EMULATED else 120))
    kind = draw(st.sampled_from([spread, grid_boxes, odd_boxes, lambda n, s: crowd(n, 5, s)]))
    scores = random_scores(count, seed, draw(st.sampled_from([None, 1, 7, 50])))
    return kind(count, seed).float(), scores.float(), draw(st.sampled_from(THRESHOLDS))


@given(problems(), st.sampled_from(DTYPES), st.booleans(), st.booleans())
def test_any_problem_matches_the_reference(
    problem: Any, dtype: torch.dtype, with_idxs: bool, clockwise: bool
) -> None:
    boxes, scores, threshold = problem
    boxes = boxes.to(dtype)
    idxs = classes(len(boxes), 3) if with_idxs else None
    expected = reference.nms_rotated(boxes, scores, threshold, idxs=idxs, clockwise=clockwise)
    actual = nms_rotated(boxes, scores, threshold, idxs=idxs, clockwise=clockwise)
    assert_same(actual, expected)


@pytest.mark.slow
def test_random_problems() -> None:
    for seed in range(RANDOM_PROBLEMS):
        rng = random.Random(seed)
        count, dtype, clockwise = rng.randint(0, 24), rng.choice(DTYPES), rng.random() < 0.5
        kind = rng.choice([spread, grid_boxes, odd_boxes, lambda n, s: crowd(n, 3, s)])
        boxes, scores = kind(count, seed).to(dtype), random_scores(count, seed, 7).to(dtype)
        options: Args = {"max_output": rng.choice([None, 0, 1, 9]), "clockwise": clockwise}
        if rng.random() < 0.4:
            options["idxs"] = classes(count, 3, seed)
        threshold = rng.choice([0.0, rng.random()])
        assert_same(
            nms_rotated(boxes, scores, threshold, **options),
            reference.nms_rotated(boxes, scores, threshold, **options),
            f"problem {seed}",
        )
        mode = rng.choice(["iou", "iof"])
        harness.assert_matches(
            TestBoxIouRotated.spec,
            box_iou_rotated(boxes, boxes[: count // 2], mode=mode, clockwise=clockwise),
            reference.box_iou_rotated(boxes, boxes[: count // 2], mode=mode, clockwise=clockwise),
            dtype,
            f"problem {seed}",
        )


@given(problems(), st.sampled_from([torch.float32, torch.float64]))
def test_the_result_is_greedy_on_the_overlaps(problem: Any, dtype: torch.dtype) -> None:
    """The kernels of the two functions agree to the last bit, whatever they skip."""
    boxes, scores, threshold = problem
    boxes = boxes.to(dtype)
    over = box_iou_rotated(boxes, boxes).double() > threshold
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-float(scores[i]), i)):
        if not any(over[k, i] for k in kept):
            kept.append(i)
    assert nms_rotated(boxes, scores, threshold).tolist() == kept


@given(problems())
def test_permuting_boxes_permutes_the_result(problem: Any) -> None:
    boxes, _, threshold = problem
    count = len(boxes)
    scores = torch.randperm(count, generator=torch.Generator().manual_seed(3)).float()  # no ties
    order = torch.randperm(count, generator=torch.Generator().manual_seed(4))
    permuted = nms_rotated(boxes[order], scores[order], threshold)
    assert_same(order[permuted], nms_rotated(boxes, scores, threshold))


@given(problems(), st.sampled_from([-12, -3, 5, 12]))
def test_scaling_by_a_power_of_two_changes_nothing(problem: Any, power: int) -> None:
    boxes, scores, threshold = problem
    scale = torch.tensor([2.0**power] * 4 + [1.0])
    scaled = boxes.double() * scale
    assert_same(
        box_iou_rotated(scaled, scaled), box_iou_rotated(boxes.double(), boxes.double()), "overlaps"
    )
    assert_same(
        nms_rotated(scaled, scores, threshold), nms_rotated(boxes.double(), scores, threshold)
    )


@given(problems(), st.integers(0, 130))
def test_max_output_is_a_prefix(problem: Any, most: int) -> None:
    boxes, scores, threshold = problem
    for idxs in (None, classes(len(boxes), 4)):
        every = nms_rotated(boxes, scores, threshold, idxs=idxs)
        some = nms_rotated(boxes, scores, threshold, idxs=idxs, max_output=most)
        assert_same(some, every[:most])


@given(problems(), st.integers(1, 60), st.sampled_from([torch.uint8, torch.int8, torch.int64]))
def test_classes_never_interact(problem: Any, how_many: int, dtype: torch.dtype) -> None:
    boxes, scores, threshold = problem
    idxs = classes(len(boxes), how_many, dtype=dtype)
    kept = nms_rotated(boxes, scores, threshold, idxs=idxs)
    apart = [
        rows[nms_rotated(boxes[rows], scores[rows], threshold)]
        for rows in [(idxs == c).nonzero().flatten() for c in idxs.unique()]
    ]
    expected = torch.cat(apart) if apart else kept.new_zeros(0)
    assert sorted(kept.tolist()) == sorted(expected.tolist())
    ranks = [(-float(scores[i]), i) for i in kept.tolist()]
    assert ranks == sorted(ranks)


@given(st.integers(0, 2**31), st.booleans())
def test_mirrored_boxes_overlap_alike(seed: int, clockwise: bool) -> None:
    """Seen in a mirror the angles turn the other way; so they do with ``clockwise`` inverted."""
    boxes = crowd(30, 2, seed)
    mirrored = boxes * torch.tensor([1.0, -1, 1, 1, 1])
    actual = box_iou_rotated(mirrored, mirrored, clockwise=not clockwise)
    assert_same(actual, box_iou_rotated(boxes, boxes, clockwise=clockwise))


# --------------------------------------------------------------------------------------------------
# Many boxes


@pytest.mark.native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", SETS)
def test_many_boxes(kind: str, dtype: torch.dtype, device: str) -> None:
    boxes = SETS[kind](900).to(dtype).to(device)
    scores = random_scores(900, 6, levels=400).to(device)
    for threshold in (0.0, 0.4):
        expected = reference.nms_rotated(boxes.cpu(), scores.cpu(), threshold)
        assert_same(nms_rotated(boxes, scores, threshold).cpu(), expected, f"at {threshold}")


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["spread", "crowd", "odd"])
def test_enough_boxes_for_several_threads(kind: str, device: str) -> None:
    boxes = {"spread": spread, "crowd": lambda n: crowd(n, 900), "odd": odd_boxes}[kind](6000)
    boxes, scores = boxes.float().to(device), random_scores(6000, 9).float().to(device)
    expected = reference.nms_rotated(boxes.cpu(), scores.cpu(), 0.3)
    for workers in (1, 2):
        with harness.threads(workers):
            assert_same(nms_rotated(boxes, scores, 0.3).cpu(), expected)
            assert_same(nms_rotated(boxes, scores, 0.3, max_output=50).cpu(), expected[:50])


@pytest.mark.parametrize("count", [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 129])
def test_every_block_edge(count: int, device: str) -> None:
    """Counts around vector and block widths, where the last box decides and is decided."""
    boxes = torch.tensor([[0.0, 0, 12, 3, 0.6]], device=device).repeat(count, 1)
    boxes[:, 0] = 20 * torch.arange(float(count), device=device)
    scores = -torch.arange(float(count), device=device)
    assert nms_rotated(boxes, scores, 0.5).tolist() == list(range(count))
    boxes[-1] = boxes[0]  # the worst equals the best
    assert nms_rotated(boxes, scores, 0.5).tolist() == list(range(max(count - 1, 1)))
    matrix = box_iou_rotated(boxes, boxes)
    expected = torch.eye(count, device=device)
    expected[0, -1] = expected[-1, 0] = 1
    assert torch.equal(matrix, expected)


# --------------------------------------------------------------------------------------------------
# Autograd, compilation, threads


def test_no_gradient_flows(device: str) -> None:
    boxes = spread(9).to(device).requires_grad_()
    scores = random_scores(9).to(device).requires_grad_()
    assert not nms_rotated(boxes, scores, 0.5).requires_grad
    assert not box_iou_rotated(boxes, boxes).requires_grad
    (scores[nms_rotated(boxes, scores, 0.5)].sum() + boxes.sum()).backward()  # indexing still does
    assert scores.grad is not None


def test_nms_cannot_be_vmapped_and_says_so() -> None:
    with pytest.raises((RuntimeError, NotImplementedError), match=r"nms_rotated: .*idxs"):
        torch.vmap(lambda b, s: nms_rotated(b, s, 0.5))(
            spread(20).view(2, 10, 5), random_scores(20).view(2, 10)
        )


def test_sizes_that_only_the_data_knows_compile() -> None:
    boxes, scores = spread(40).float(), random_scores(40).float()

    def confident(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        keep = nms_rotated(boxes[scores > 0.5], scores[scores > 0.5], 0.5)
        return keep, box_iou_rotated(boxes[scores > 0.5][keep], boxes)

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(confident, fullgraph=True, backend="aot_eager")
        for a, b in zip(compiled(boxes, scores), confident(boxes, scores), strict=True):
            assert_same(a, b)


@pytest.mark.native
def test_concurrent_calls_do_not_disturb_each_other() -> None:
    def work(seed: int) -> list[Tensor]:
        boxes, scores = spread(600, seed).float(), random_scores(600, seed).float()
        return [
            nms_rotated(boxes, scores, 0.4),
            nms_rotated(boxes, scores, 0.4, idxs=classes(600, 5)),
            box_iou_rotated(boxes, boxes[:300]),
        ]

    expected = [work(seed) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        for actual, wanted in zip(pool.map(work, range(12)), expected, strict=True):
            for a, e in zip(actual, wanted, strict=True):
                assert_same(a, e)
