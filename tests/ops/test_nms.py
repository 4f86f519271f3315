"""Greedy NMS and its variants: the generic matrix, then what is particular to them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import harness
import pytest
import torch
from boxes import (
    INF,
    NAN,
    SCENES,
    SETS,
    THRESHOLDS,
    TIED,
    bad_scores,
    classes,
    crowd,
    grid_boxes,
    odd_boxes,
    random_scores,
    spread,
)
from harness import (
    DTYPES,
    EMULATED,
    Args,
    Case,
    DifferentiableOpTests,
    OpSpec,
    OpTests,
    Sample,
    VmapCase,
    assert_same,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from nms_family import (
    CRITERIA,
    RANDOM_PROBLEMS,
    assert_agree,
    bad_arguments,
    case,
    random_options,
    random_problem,
)
from torch import Tensor

from cvkernels import reference
from cvkernels.nms import (
    adaptive_nms,
    batched_nms,
    diou_nms,
    diou_nms_padded,
    iou_guided_nms,
    nms,
    nms_match,
    nms_padded,
)


def nms_cases(*, padded: bool = False, with_idxs: bool = False) -> list[Case]:
    cases = []

    def add(
        name: str, make: Callable[[], tuple[Tensor, Tensor]], threshold: float, **options: Any
    ) -> None:
        most = options.pop("max_output", None)
        more = options.pop("more", {})

        def arguments() -> Args:
            boxes, scores = make()
            args: Args = {"boxes": boxes, "scores": scores, "iou_threshold": threshold}
            if with_idxs:
                args["idxs"] = classes(len(boxes), 3)
            if padded:
                # Three images: these boxes, the same in reverse order, and all scores equal.
                args["boxes"] = torch.stack([boxes, boxes.flip(0), boxes])
                args["scores"] = torch.stack([scores, scores, torch.ones_like(scores)])
                if with_idxs:
                    args["idxs"] = torch.stack([classes(len(boxes), 3, seed=s) for s in range(3)])
                args["max_output"] = 40 if most is None else most
            elif most is not None:
                args["max_output"] = most
            return {**args, **more}

        cases.append(Case(name, arguments, **options))

    add("small", lambda: (spread(12, side=60), random_scores(12)), 0.3, small=True)
    for name, make in SETS.items():
        add(name, make, 0.5)
    for threshold in THRESHOLDS:
        add(f"threshold {threshold}", SETS["crowd"], threshold)
        add(f"odd, threshold {threshold}", SETS["odd"], threshold)
    for most in (0, 1, 5, 10_000):
        add(f"max_output {most}", SETS["spread"], 0.5, max_output=most)
    add("bad scores", lambda: (crowd(90, 5), bad_scores(90)), 0.5)
    add("all scores NaN", lambda: (spread(9), torch.full((9,), NAN, dtype=torch.float64)), 0.5)
    add("float64 scores", SETS["crowd"], 0.5, keeps=("scores",))
    add("half scores", lambda: (crowd(200, 7), random_scores(200).half()), 0.5, keeps=("scores",))
    add("float32 boxes", lambda: (crowd(200, 7).float(), random_scores(200)), 0.5, keeps=("boxes",))
    for criterion in CRITERIA[1:]:
        options = {"criterion": criterion}
        add(criterion, SCENES["packed"], 0.3, small=criterion == "giou", more=options)
        add(f"{criterion}, crowd", SCENES["crowd"], 0.7, more=options)
        add(f"{criterion}, odd", TIED["odd"], 0.1, more=options)
        add(f"{criterion}, whole", TIED["whole, ties"], 0.317, more=options)
    for threshold in (-0.5, -0.1, 0.0):
        more = {"criterion": "giou"}
        add(f"giou, threshold {threshold}", SCENES["packed"], threshold, more=more)
    for beta in (0.4, 2.0):
        more = {"criterion": "diou", "beta": beta}
        add(f"diou, beta {beta}", SCENES["packed"], 0.3, more=more)
    return cases


def nms_samples() -> list[Sample]:
    def sample(name: str, *options: Any, count: int = 40, idxs: bool = False) -> Sample:
        def make(dtype: torch.dtype) -> tuple[Any, ...]:
            boxes, scores = crowd(count, 3).to(dtype), random_scores(count).to(dtype)
            *values, densities = options
            wanted = random_scores(count, 7).to(dtype) if densities else None
            return boxes, scores, classes(count, 2) if idxs else None, *values, wanted

        return Sample("nms", name, make)

    return [
        sample("plain", 0.5, -1, "iou", 1.0, False),
        sample("idxs", 0.5, 6, "iou", 1.0, False, idxs=True),
        sample("empty", 0.5, -1, "iou", 1.0, False, count=0),
        sample("diou", 0.3, -1, "diou", 0.7, False),
        sample("densities", 0.3, 9, "ciou", 1.0, True, idxs=True),
    ]


def cluster_samples() -> list[Sample]:
    def sample(name: str, *options: Any, count: int = 40, idxs: bool = False) -> Sample:
        def make(dtype: torch.dtype) -> tuple[Any, ...]:
            boxes, scores = crowd(count, 3).to(dtype), random_scores(count).to(dtype)
            return boxes, scores, classes(count, 2) if idxs else None, *options

        return Sample("nms_clusters", name, make)

    return [
        sample("plain", 0.5, -1, "iou", 1.0),
        sample("idxs", 0.2, 3, "giou", 1.0, idxs=True),
        sample("empty", 0.5, -1, "iou", 1.0, count=0),
    ]


def padded_samples() -> list[Sample]:
    def sample(name: str, *options: Any, idxs: bool = False) -> Sample:
        def make(dtype: torch.dtype) -> tuple[Any, ...]:
            boxes, scores = crowd(40, 3).to(dtype), random_scores(40).to(dtype)
            groups = classes(40, 2).view(2, 20) if idxs else None
            return boxes.view(2, 20, 4), scores.view(2, 20), groups, *options

        return Sample("nms_padded", name, make)

    return [
        sample("plain", 0.5, 6, "iou", 1.0),
        sample("idxs", 0.5, 6, "iou", 1.0, idxs=True),
        sample("diou", 0.3, 25, "diou", 2.0),
    ]


def padded_vmaps(function: Callable[..., Any]) -> list[VmapCase]:
    def plain(boxes: Tensor, scores: Tensor) -> Any:
        return function(boxes, scores, 0.4, 9)

    def with_idxs(boxes: Tensor, scores: Tensor, idxs: Tensor) -> Any:
        return function(boxes, scores, 0.4, 9, idxs=idxs)

    def make() -> tuple[Tensor, Tensor]:
        return crowd(120, 3).view(3, 2, 20, 4), random_scores(120).view(3, 2, 20)

    def make_shared() -> tuple[Tensor, Tensor]:
        return make()[0][0], make()[1]

    def make_idxs() -> tuple[Tensor, Tensor, Tensor]:
        return *make(), classes(120, 2).view(3, 2, 20)

    def make_shared_idxs() -> tuple[Tensor, Tensor, Tensor]:
        return *make(), classes(40, 2).view(2, 20)

    def make_inner() -> tuple[Tensor, Tensor]:
        return make()[0].movedim(0, 2), make()[1].movedim(0, 1)

    return [
        VmapCase("both", plain, make, (0, 0)),
        VmapCase("scores only", plain, make_shared, (None, 0)),
        VmapCase("idxs", with_idxs, make_idxs, (0, 0, 0)),
        VmapCase("shared idxs", with_idxs, make_shared_idxs, (0, 0, None)),
        VmapCase("inner dims", plain, make_inner, (2, 1)),
    ]


def densities(boxes: Tensor) -> Args:
    values = random_scores(len(boxes), 7)
    values[::9] = NAN
    return {"densities": values}


def localization(boxes: Tensor) -> Args:
    return {"localization": random_scores(len(boxes), 8)}


def variant_cases(*, criteria: bool = True, limits: bool = True, **options: Any) -> list[Case]:
    """Cases of a function that takes boxes, scores, ``extra`` and a threshold."""
    cases = [
        case("small", lambda: (spread(12, side=60), random_scores(12)), small=True, **options),
        case(
            "small idxs",
            lambda: (spread(15, 1, side=60), random_scores(15)),
            small=True,
            idxs=2,
            **options,
        ),
    ]
    cases += [case(name, make, **options) for name, make in {**SCENES, **TIED}.items()]
    cases += [case(f"idxs {name}", SCENES[name], idxs=3, **options) for name in ("packed", "crowd")]
    for threshold in (-0.2, 0.0, 0.1, 0.9):
        changed = {**options, "iou_threshold": threshold}
        cases += [case(f"threshold {threshold}", SCENES["packed"], **changed)]
    if criteria:
        for criterion in CRITERIA[1:]:
            cases += [case(criterion, SCENES["packed"], **options, criterion=criterion)]
    if limits:
        for most in (0, 1, 9, 10_000):
            cases += [case(f"max_output {most}", SCENES["packed"], **options, max_output=most)]
    cases += [
        case("float64 scores", SCENES["packed"], **options, keeps=("scores",)),
        case("float64 boxes", SCENES["packed"], **options, keeps=("boxes",)),
    ]
    return cases


GREEDY = ["iou_threshold", "max_output", "criterion", "beta"]


class TestNms(OpTests):
    spec = OpSpec(
        name="nms",
        op=nms,
        reference=reference.nms,
        cases=nms_cases(),
        exact=True,
        errors=bad_arguments("nms", GREEDY, idxs=False),
        samples=nms_samples(),
    )


class TestBatchedNms(OpTests):
    spec = OpSpec(
        name="batched_nms",
        op=batched_nms,
        reference=reference.batched_nms,
        cases=nms_cases(with_idxs=True),
        exact=True,
        errors=bad_arguments("batched_nms", GREEDY, needs_idxs=True),
    )


class TestNmsPadded(OpTests):
    spec = OpSpec(
        name="nms_padded",
        op=nms_padded,
        reference=reference.nms_padded,
        cases=nms_cases(padded=True)
        + [
            Case(f"idxs {c.name}", c.make, keeps=c.keeps)
            for c in nms_cases(padded=True, with_idxs=True)[1:12]
        ],
        exact=True,
        errors=bad_arguments("nms_padded", GREEDY, padded=True),
        samples=padded_samples(),
        vmaps=padded_vmaps(nms_padded),
    )


class TestDiouNms(OpTests):
    spec = OpSpec(
        name="diou_nms",
        op=diou_nms,
        reference=reference.diou_nms,
        cases=variant_cases(criteria=False, iou_threshold=0.3)
        + [
            case(f"beta {beta}", SCENES[name], iou_threshold=0.3, beta=beta)
            for beta in (0.4, 0.999, 2.0)
            for name in ("packed", "crowd")
        ],
        exact=True,
        errors=bad_arguments("diou_nms", ["iou_threshold", "max_output", "beta"]),
    )


class TestDiouNmsPadded(OpTests):
    spec = OpSpec(
        name="diou_nms_padded",
        op=diou_nms_padded,
        reference=reference.diou_nms_padded,
        cases=[
            *variant_cases(criteria=False, limits=False, padded=20, iou_threshold=0.3),
            case("beta", SCENES["packed"], padded=60, iou_threshold=0.3, beta=0.6),
            case("no columns", SCENES["packed"], padded=0, iou_threshold=0.3),
        ],
        exact=True,
        errors=bad_arguments(
            "diou_nms_padded", ["iou_threshold", "max_output", "beta"], padded=True
        ),
        vmaps=padded_vmaps(diou_nms_padded),
    )


class TestAdaptiveNms(OpTests):
    spec = OpSpec(
        name="adaptive_nms",
        op=adaptive_nms,
        reference=reference.adaptive_nms,
        cases=variant_cases(extra=densities, iou_threshold=0.2),
        exact=True,
        errors=bad_arguments("adaptive_nms", GREEDY, extra=["densities"]),
    )


class TestNmsMatch(OpTests):
    spec = OpSpec(
        name="nms_match",
        op=nms_match,
        reference=reference.nms_match,
        cases=[
            *variant_cases(limits=False, iou_threshold=0.3),
            case("threshold at an overlap", TIED["whole"], iou_threshold=0.5),
        ],
        exact=True,
        dynamic=True,
        compiles=False,
        errors=bad_arguments("nms_match", ["iou_threshold", "criterion", "beta"]),
        samples=cluster_samples(),
    )


class TestIouGuidedNms(DifferentiableOpTests):
    spec = OpSpec(
        name="iou_guided_nms",
        op=iou_guided_nms,
        reference=reference.iou_guided_nms,
        cases=variant_cases(extra=localization, iou_threshold=0.3),
        exact=True,
        dynamic=True,
        differentiable=("scores",),
        second_order=lambda args: True,
        errors=bad_arguments("iou_guided_nms", GREEDY, extra=["localization"]),
    )


# --------------------------------------------------------------------------------------------------
# Hand-worked numbers


def test_hand_worked(device: str) -> None:
    # A = 10x10 at the origin. B = A moved right by 5: inter 50, union 150, IoU 1/3.
    # C = A moved right by 8: with A inter 20, union 180, IoU 1/9; with B inter 70, union 130, 7/13.
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [8, 0, 18, 10]], device=device)
    scores = torch.tensor([0.9, 0.8, 0.7], device=device)
    assert nms(boxes, scores, 0.5).tolist() == [0, 1]  # B survives A, and suppresses C
    assert nms(boxes, scores, 0.3).tolist() == [
        0,
        2,
    ]  # A suppresses B, which no longer suppresses C
    assert nms(boxes, scores, 0.1).tolist() == [0]
    assert nms(boxes, scores, 0.6).tolist() == [0, 1, 2]
    assert nms(boxes, scores.flip(0), 0.5).tolist() == [2, 0]  # order by score: C, then A
    idxs = torch.tensor([0, 1, 0], device=device)
    assert batched_nms(boxes, scores, idxs, 0.1).tolist() == [0, 1]  # B is another class
    keep, count = nms_padded(boxes[None], scores[None], 0.5, 4)
    assert keep.tolist() == [[0, 1, -1, -1]] and count.tolist() == [2]


def test_hand_worked_variants(device: str) -> None:
    # The boxes of above. DIoU: A and B 1/3 - 25/325 = 10/39, B and C 7/13 - 9/269 = 0.505.
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [8, 0, 18, 10]], device=device)
    scores = torch.tensor([0.9, 0.8, 0.7], device=device)
    assert nms(boxes, scores, 0.3, criterion="diou").tolist() == [0, 1]
    assert diou_nms(boxes, scores, 0.3).tolist() == [0, 1]
    assert diou_nms(boxes, scores, 0.25).tolist() == [0, 2]
    keep, count = diou_nms_padded(boxes[None], scores[None], 0.3, 3)
    assert keep.tolist() == [[0, 1, -1]] and count.tolist() == [2]
    # GIoU: nothing but A and B is in the box around them.
    assert nms(boxes, scores, 0.3, criterion="giou").tolist() == [0, 2]
    # CIoU of a 10 x 10 box and a 20 x 10 one at the same corner: 0.446751870701443.
    pair = torch.tensor([[0.0, 0, 10, 10], [0, 0, 20, 10]], device=device)
    assert nms(pair, scores[:2], 0.44675, criterion="ciou").tolist() == [0]
    assert nms(pair, scores[:2], 0.44676, criterion="ciou").tolist() == [0, 1]
    # A dense A lets B (1/3) stay, which suppresses C (7/13).
    dense = torch.tensor([0.4, 0.0, 0.0], device=device)
    assert adaptive_nms(boxes, scores, dense, 0.3).tolist() == [0, 1]
    assert [g.tolist() for g in nms_match(boxes, scores, 0.3)] == [[0, 1], [2]]
    assert [g.tolist() for g in nms_match(boxes, scores, 0.1)] == [[0, 1, 2]]
    half = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1]], device=device)  # IoU exactly 1/2
    assert [g.tolist() for g in nms_match(half, scores[:2], 0.5)] == [[0, 1]]
    # A is placed best and takes the score of B, which it suppresses.
    keep, new_scores = iou_guided_nms(boxes, scores.roll(1), scores, 0.3)
    assert keep.tolist() == [0, 2] and new_scores.tolist() == scores[[0, 1]].tolist()


def test_a_cross_of_thin_boxes_has_no_giou(device: str) -> None:
    # Areas 1e20, intersection 1: the IoU is above 0. The box around both overflows float32; it is
    # nearly all gap.
    boxes = torch.tensor([[0.0, 0, 1e20, 1], [0, 0, 1, 1e20]], device=device)
    scores = torch.tensor([0.9, 0.8], device=device)
    assert nms(boxes, scores, 0.0).tolist() == [0]
    assert nms(boxes, scores, 0.0, criterion="giou").tolist() == [0, 1]
    assert nms(boxes.double(), scores, 0.0, criterion="giou").tolist() == [0, 1]


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_overflowing_distances_are_no_overlap(beta: float, device: str) -> None:
    # IoU 1/3, and in float32 inf / inf for the distance of the centres.
    boxes = torch.tensor([[0.0, 0, 1e20, 1], [5e19, 0, 1.5e20, 1]], device=device)
    scores = torch.tensor([0.9, 0.8], device=device)
    assert nms(boxes, scores, 0.2).tolist() == [0]
    for criterion in ("diou", "ciou"):
        kept = nms(boxes, scores, 0.2, criterion=criterion, beta=beta)
        assert kept.tolist() == [0, 1], criterion


def test_iou_equal_to_the_threshold_is_kept(device: str) -> None:
    # 2x2 and its lower half: inter 2, union 4, IoU exactly 0.5.
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1]], device=device)
    scores = torch.tensor([1.0, 0.5], device=device)
    assert nms(boxes, scores, 0.5).tolist() == [0, 1]
    assert nms(boxes, scores, math.nextafter(0.5, 0)).tolist() == [0]
    # Identical boxes have IoU 1, and touching ones 0, which is above a negative threshold only.
    assert nms(boxes[:1].expand(2, 4), scores, 1.0).tolist() == [0, 1]
    assert nms(boxes[:1].expand(2, 4), scores, math.nextafter(1.0, 0)).tolist() == [0]
    touching = torch.tensor([[0.0, 0, 1, 1], [1, 0, 2, 1]], device=device)
    assert nms(touching, scores, 0.0).tolist() == [0, 1]
    assert nms(touching, scores, -1e-9).tolist() == [0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threshold_is_compared_as_a_real_number(dtype: torch.dtype, device: str) -> None:
    # inter 3, union 10: float32 rounds 3 / 10 to 0.300000012, which exceeds the float64 number 0.3;
    # float64 arithmetic gives the float64 number 0.3 itself.
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 3, 1]], device=device, dtype=dtype)
    scores = torch.tensor([1.0, 0.5], device=device, dtype=dtype)
    kept = [0, 1] if dtype == torch.float64 else [0]
    assert nms(boxes, scores, 0.3).tolist() == kept
    # 7 / 10 rounds down to 0.699999988, below the float64 number 0.7.
    boxes[1, 2] = 7
    assert nms(boxes, scores, 0.7).tolist() == [0, 1]
    assert nms(boxes, scores, 0.69999998).tolist() == [0]
    if dtype != torch.float64:
        assert nms(boxes, scores, 0.699999989).tolist() == [0, 1]


def test_subnormal_areas_are_divided_exactly(device: str) -> None:
    # In units of the smallest float32, d = 2^-149: areas 3 d and 2 d, inter 2 d, union 3 d, IoU 2 /
    # 3. A product like 0.6 * union rounds to a whole number of d and must not decide.
    w, h = 2.0**-75, 2.0**-74
    boxes = torch.tensor([[0, 0, 3 * w, h], [0, 0, 2 * w, h]], device=device)
    scores = torch.tensor([1.0, 0.5], device=device)
    for threshold in (0.34, 0.5, 0.6, 0.66):
        assert nms(boxes, scores, threshold).tolist() == [0], threshold
    assert nms(boxes, scores, 0.67).tolist() == [0, 1]
    many = boxes.repeat(200, 1)
    kept = nms(many, torch.arange(400, 0, -1.0, device=device), 0.6).tolist()
    assert kept == [0]


def test_ties_are_broken_by_index(device: str) -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4]], device=device).expand(300, 4)
    scores = torch.full((300,), 0.25, device=device)
    assert nms(boxes, scores, 0.5).tolist() == [0]
    assert nms(boxes, scores, 1.0).tolist() == list(range(300))
    scores = torch.tensor([0.0, -0.0] * 150, device=device)  # equal numbers
    assert nms(boxes, scores, 1.0).tolist() == list(range(300))


def test_nan_scores_are_never_kept(device: str) -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [9, 9, 12, 12]], device=device)
    scores = torch.tensor([NAN, 0.1, NAN], device=device)
    assert nms(boxes, scores, 0.5).tolist() == [1]
    assert nms(boxes, torch.full_like(scores, NAN), 0.5).tolist() == []
    keep, count = nms_padded(boxes[None], scores[None], 0.5, 3)
    assert keep.tolist() == [[1, -1, -1]] and count.tolist() == [1]


@pytest.mark.parametrize("column", range(4))
def test_a_nan_box_overlaps_nothing(column: int, device: str) -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4]] * 3, device=device)
    boxes[1, column] = NAN
    for threshold in (-0.5, 0.0, 0.5):
        scores = torch.tensor([0.9, 0.8, 0.7], device=device)
        assert nms(boxes, scores, threshold).tolist() == [0, 1]
        assert nms(boxes, scores.roll(1), threshold).tolist() == [1, 2]


def test_infinite_scores_are_ordinary(device: str) -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [9, 9, 12, 12]], device=device)
    scores = torch.tensor([0.5, INF, -INF], device=device)
    assert nms(boxes, scores, 0.5).tolist() == [1, 2]


# --------------------------------------------------------------------------------------------------
# Properties


@st.composite
def problems(draw: st.DrawFn, most: int = 150) -> tuple[Tensor, Tensor, float]:
    seed = draw(st.integers(0, 2**31))
    count = draw(st.integers(0, 40 if EMULATED else most))
    kind = draw(st.sampled_from([spread, grid_boxes, odd_boxes, lambda n, s: crowd(n, 5, s)]))
    scores = random_scores(count, seed, draw(st.sampled_from([None, 1, 7, 50])))
    return kind(count, seed).float(), scores.float(), draw(st.sampled_from(THRESHOLDS))


@given(problems(), st.sampled_from(DTYPES), st.booleans())
def test_any_problem_matches_the_reference(problem: Any, dtype: torch.dtype, half: bool) -> None:
    boxes, scores, threshold = problem
    boxes, scores = boxes.to(dtype), (scores.half() if half else scores)
    expected = reference.nms(boxes, scores, threshold)
    assert_same(nms(boxes, scores, threshold), expected)


@given(problems())
def test_permuting_boxes_permutes_the_result(problem: Any) -> None:
    boxes, _, threshold = problem
    count = len(boxes)
    scores = torch.randperm(count, generator=torch.Generator().manual_seed(3)).float()  # no ties
    order = torch.randperm(count, generator=torch.Generator().manual_seed(4))
    permuted = nms(boxes[order], scores[order], threshold)
    assert_same(order[permuted], nms(boxes, scores, threshold))


@given(problems(), st.sampled_from([-20, -3, 5, 30]))
def test_scaling_by_a_power_of_two_changes_nothing(problem: Any, power: int) -> None:
    boxes, scores, threshold = problem
    boxes = boxes.double()
    assert_same(nms(boxes * 2.0**power, scores, threshold), nms(boxes, scores, threshold))


@given(
    st.integers(0, 2**31), st.sampled_from([-4096.0, -64.0, 1024.0]), st.sampled_from(THRESHOLDS)
)
def test_shifting_whole_boxes_changes_nothing(seed: int, shift: float, threshold: float) -> None:
    boxes, scores = grid_boxes(80, seed).float(), random_scores(80, seed, 9)
    assert_same(nms(boxes + shift, scores, threshold), nms(boxes, scores, threshold))


@given(problems(), st.integers(0, 160))
def test_max_output_is_a_prefix(problem: Any, most: int) -> None:
    boxes, scores, threshold = problem
    every = nms(boxes, scores, threshold)
    assert_same(nms(boxes, scores, threshold, max_output=most), every[:most])
    idxs = classes(len(boxes), 4)
    every = batched_nms(boxes, scores, idxs, threshold)
    assert_same(batched_nms(boxes, scores, idxs, threshold, max_output=most), every[:most])


@given(
    problems(),
    st.sampled_from([torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]),
    st.integers(1, 100),
)
def test_classes_never_interact(problem: Any, dtype: torch.dtype, how_many: int) -> None:
    boxes, scores, threshold = problem
    idxs = classes(len(boxes), how_many, dtype=dtype)
    kept = batched_nms(boxes, scores, idxs, threshold)
    apart = [
        rows[nms(boxes[rows], scores[rows], threshold)]
        for rows in [(idxs == c).nonzero().flatten() for c in idxs.unique()]
    ]
    expected = torch.cat(apart) if apart else kept.new_zeros(0)
    assert sorted(kept.tolist()) == sorted(expected.tolist())
    ranks = [(-float(scores[i]), i) for i in kept.tolist()]
    assert ranks == sorted(ranks)


@given(problems(), st.integers(0, 2**31))
def test_class_ids_are_only_names(problem: Any, seed: int) -> None:
    boxes, scores, threshold = problem
    idxs = classes(len(boxes), 5, seed)
    names = torch.tensor([-(2**63), 2**63 - 1, 2**32, 0, -1])  # equal in their low 32 bits, or not
    assert_same(
        batched_nms(boxes, scores, names[idxs], threshold),
        batched_nms(boxes, scores, idxs, threshold),
    )


def test_class_ids_are_compared_in_all_their_bits(device: str) -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4]] * 6, device=device)
    scores = torch.arange(6.0, device=device)
    idxs = torch.tensor([0, 2**32, -(2**63), 2**53, 2**53 + 1, 1], device=device)
    assert batched_nms(boxes, scores, idxs, 0.5).tolist() == [5, 4, 3, 2, 1, 0]
    keep, count = nms_padded(boxes[None], scores[None], 0.5, 6, idxs=idxs[None])
    assert keep.tolist() == [[5, 4, 3, 2, 1, 0]] and count.tolist() == [6]


@given(problems(60), st.integers(1, 3), st.integers(0, 70), st.booleans())
def test_padded_is_nms_of_every_image(
    problem: Any, images: int, most: int, with_idxs: bool
) -> None:
    boxes, scores, threshold = problem
    count = len(boxes)
    generator = torch.Generator().manual_seed(count)
    orders = [torch.randperm(count, generator=generator) for _ in range(images)]
    many_boxes = torch.stack([boxes[order] for order in orders])
    many_scores = torch.stack([scores[order].roll(1) for order in orders])
    idxs = torch.stack([classes(count, 3, s) for s in range(images)]) if with_idxs else None
    keep, kept = nms_padded(many_boxes, many_scores, threshold, most, idxs=idxs)
    assert keep.shape == (images, most) and kept.shape == (images,)
    assert keep.dtype == kept.dtype == torch.int64
    for i in range(images):
        if idxs is None:
            row = nms(many_boxes[i], many_scores[i], threshold, max_output=most)
        else:
            row = batched_nms(many_boxes[i], many_scores[i], idxs[i], threshold, max_output=most)
        assert kept[i] == len(row)
        assert keep[i].tolist() == row.tolist() + [-1] * (most - len(row))


def test_padded_without_images_or_boxes(device: str) -> None:
    keep, count = nms_padded(
        torch.ones(0, 5, 4, device=device), torch.ones(0, 5, device=device), 0.5, 3
    )
    assert keep.shape == (0, 3) and count.shape == (0,)
    keep, count = nms_padded(
        torch.ones(2, 0, 4, device=device), torch.ones(2, 0, device=device), 0.5, 3
    )
    assert keep.tolist() == [[-1] * 3] * 2 and count.tolist() == [0, 0]
    keep, count = nms_padded(
        torch.ones(2, 5, 4, device=device), torch.ones(2, 5, device=device), 0.5, 0
    )
    assert keep.shape == (2, 0) and count.tolist() == [0, 0]


@given(problems(60))
def test_the_result_is_greedy(problem: Any) -> None:
    """What defines the result: a box is kept unless a better kept box overlaps it."""
    boxes, scores, threshold = problem
    kept = nms(boxes, scores, threshold)
    b = boxes.float()
    width = torch.minimum(b[:, None, 2], b[None, :, 2]) - torch.maximum(
        b[:, None, 0], b[None, :, 0]
    )
    height = torch.minimum(b[:, None, 3], b[None, :, 3]) - torch.maximum(
        b[:, None, 1], b[None, :, 1]
    )
    inter = width.clamp(min=0) * height.clamp(min=0)
    area = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    over = (inter / (area[:, None] + area[None] - inter)).double() > threshold
    inside = set(kept.tolist())
    rank = {i: (-float(scores[i]), i) for i in range(len(b))}
    for i in range(len(b)):
        better = [j for j in inside if rank[j] < rank[i] and bool(over[j, i])]
        assert (i in inside) == (not better)


# What each function takes besides boxes, scores, idxs and its own tensor.
VARIANTS: dict[str, tuple[Any, list[str]]] = {
    "nms": (TestNms, GREEDY),
    "nms_padded": (TestNmsPadded, ["iou_threshold", "width", "criterion", "beta"]),
    "diou_nms": (TestDiouNms, ["iou_threshold", "max_output", "beta"]),
    "diou_nms_padded": (TestDiouNmsPadded, ["iou_threshold", "width", "beta"]),
    "adaptive_nms": (TestAdaptiveNms, GREEDY),
    "nms_match": (TestNmsMatch, ["iou_threshold", "criterion", "beta"]),
    "iou_guided_nms": (TestIouGuidedNms, GREEDY),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_random_problems(name: str) -> None:
    tests, parameters = VARIANTS[name]
    for seed in range(RANDOM_PROBLEMS):
        args, rng = random_problem(seed)
        for own in ("densities", "localization"):
            if own in inspect.signature(tests.spec.op).parameters:
                args[own] = random_scores(len(args["boxes"]), seed + 1).to(rng.choice(DTYPES))
        args |= random_options(rng, parameters)
        spec = tests.spec
        if name == "nms" and "idxs" in args:
            spec = TestBatchedNms.spec
        elif "width" in parameters:
            args |= {k: v[None] for k, v in args.items() if isinstance(v, Tensor)}
        assert_agree(spec, args, f"{name}, problem {seed}")


@pytest.mark.parametrize("name", ["nms", "adaptive_nms", "iou_guided_nms", "nms_match"])
@given(problems(60), st.sampled_from(CRITERIA), st.integers(1, 4))
def test_classes_never_interact_in_any_variant(
    name: str, problem: Any, criterion: str, how_many: int
) -> None:
    boxes, scores, threshold = problem
    threshold = max(threshold, 0.0)
    idxs, other = classes(len(boxes), how_many), random_scores(len(boxes), 3).float()

    def kept(rows: Tensor, **options: Any) -> list[int]:
        b, s, o = boxes[rows], scores[rows], other[rows]
        options["criterion"] = criterion
        if name == "nms":
            groups = options.pop("idxs", None)
            if groups is not None:
                return rows[batched_nms(b, s, groups, threshold, **options)].tolist()
            return rows[nms(b, s, threshold, **options)].tolist()
        if name == "adaptive_nms":
            return rows[adaptive_nms(b, s, o, threshold, **options)].tolist()
        if name == "iou_guided_nms":
            return rows[iou_guided_nms(b, s, o, threshold, **options)[0]].tolist()
        groups = nms_match(b, s, threshold, **options)
        assert all(len(set(idxs[rows[group]].tolist())) == 1 for group in groups)
        return [int(rows[group[0]]) for group in groups]

    together = kept(torch.arange(len(boxes)), idxs=idxs)
    apart = [i for c in idxs.unique() for i in kept((idxs == c).nonzero().flatten())]
    assert sorted(together) == sorted(apart)


@given(problems(60), st.sampled_from(CRITERIA))
def test_groups_are_a_partition_led_by_what_nms_keeps(problem: Any, criterion: str) -> None:
    boxes, scores, _ = problem
    threshold = 0.4271  # no overlap is this number, so > and >= say the same
    groups = nms_match(boxes, scores, threshold, criterion=criterion)
    kept = nms(boxes, scores, threshold, criterion=criterion)
    assert [int(group[0]) for group in groups] == kept.tolist()
    everyone = [i for group in groups for i in group.tolist()]
    assert sorted(everyone) == list(range(len(boxes)))


# --------------------------------------------------------------------------------------------------
# Many boxes: the CPU's spatial index against the plain loop


def scattered_sizes(count: int, seed: int) -> Tensor:
    """Sizes over six orders of magnitude: no single cell size suits them."""
    generator = torch.Generator().manual_seed(seed)
    corner = 3000 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    size = 10 ** (6 * torch.rand(count, 2, generator=generator, dtype=torch.float64) - 3)
    return torch.cat([corner, corner + size], 1)


def with_strays(count: int, seed: int) -> Tensor:
    """Spread boxes among a few empty, inverted, NaN, infinite, huge and far ones."""
    boxes = spread(count, seed)
    boxes[::97] = boxes[::97][:, [2, 3, 0, 1]]
    boxes[1::101, 2:] = boxes[1::101, :2]
    boxes[2::103, 1] = NAN
    boxes[3::107, 2] = INF
    boxes[4::109, 0] = -INF
    boxes[5::113] *= 40
    boxes[6::127] -= 5e4
    return boxes


MANY: dict[str, Callable[[int, int], Tensor]] = {
    "spread": spread,
    "crowd": lambda n, s: crowd(n, 500, s),
    "one cluster": lambda n, s: crowd(n, 1, s),
    "grid": grid_boxes,
    "sizes": scattered_sizes,
    "strays": with_strays,
    "line": lambda n, s: spread(n, s) * torch.tensor([1.0, 0, 1, 0]) + torch.tensor([0.0, 0, 0, 1]),
    "far": lambda n, s: spread(n, s) + 1e6,
    "negative": lambda n, s: -spread(n, s)[:, [2, 3, 0, 1]],
    "tiny": lambda n, s: spread(n, s) * 1e-30,
    "huge": lambda n, s: spread(n, s) * 1e30,
    "subnormal areas": lambda n, s: (crowd(n, max(n // 20, 1), s) / 2).round() * 2.0**-75,
}


@pytest.mark.native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", MANY)
@pytest.mark.parametrize("count", [257, 3000])
def test_many_boxes(count: int, kind: str, dtype: torch.dtype, device: str) -> None:
    boxes = MANY[kind](count, 5).to(dtype).to(device)
    scores = random_scores(count, 6, levels=count // 2).to(device)
    for threshold in (-0.5, 0.0, 0.1, 0.5, 0.9, 1.0) if count < 1000 else (0.0, 0.3, 0.7):
        expected = reference.nms(boxes.cpu(), scores.cpu(), threshold)
        assert_same(nms(boxes, scores, threshold), expected, f"threshold {threshold}")
        if len(expected) > 3:
            most = len(expected) // 2
            assert_same(nms(boxes, scores, threshold, max_output=most), expected[:most])
    idxs = classes(count, 80).to(device)
    expected = reference.batched_nms(boxes.cpu(), scores.cpu(), idxs.cpu(), 0.5)
    assert_same(batched_nms(boxes, scores, idxs, 0.5), expected)


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["spread", "crowd", "strays"])
def test_twenty_thousand_boxes(kind: str, dtype: torch.dtype, device: str) -> None:
    count = 20_000
    boxes = MANY[kind](count, 8).to(dtype).to(device)
    scores = random_scores(count, 9).float().to(device)
    expected = reference.nms(boxes.cpu(), scores.cpu(), 0.5)
    for workers in (1, 2):
        with harness.threads(workers):
            assert_same(nms(boxes, scores, 0.5), expected)
    idxs = classes(count, 80).to(device)
    expected = reference.batched_nms(boxes.cpu(), scores.cpu(), idxs.cpu(), 0.0, max_output=5000)
    assert_same(batched_nms(boxes, scores, idxs, 0.0, max_output=5000), expected)


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_segment_of_many_blocks(dtype: torch.dtype) -> None:
    """Islands far apart do not interact: each is decided as if it were alone."""
    islands, each = 160, 2000
    offset = 20_000.0 * torch.arange(islands)
    boxes = torch.stack([with_strays(each, seed) for seed in range(islands)])
    boxes[~(boxes.abs() < 1e4)] = NAN  # a stray must not reach another island
    boxes = (boxes + offset[:, None, None]).to(dtype)
    flat = boxes.flatten(0, 1)
    scores = random_scores(len(flat), 3).to(dtype)
    densities = random_scores(len(flat), 4).to(dtype)

    def islands_alone(decide: Callable[[Tensor, Tensor, Tensor], Any]) -> list[Any]:
        rows = torch.arange(len(flat)).view(islands, each)
        return [(r, decide(flat[r], scores[r], densities[r])) for r in rows]

    def in_order(rows: Tensor) -> Tensor:
        return rows[scores[rows].argsort(descending=True, stable=True)]

    alone = islands_alone(lambda b, s, d: nms(b, s, 0.4))
    expected = in_order(torch.cat([rows[kept] for rows, kept in alone]).sort().values)
    adaptive = islands_alone(lambda b, s, d: adaptive_nms(b, s, d, 0.4))
    by_density = in_order(torch.cat([rows[kept] for rows, kept in adaptive]).sort().values)
    groups = {
        int(rows[group[0]]): rows[group].tolist()
        for rows, found in islands_alone(lambda b, s, d: nms_match(b, s, 0.4))
        for group in found
    }
    for workers in (1, 2):
        with harness.threads(workers):
            assert_same(nms(flat, scores, 0.4), expected)
            for most in (10_000, len(expected) - 5):
                assert_same(nms(flat, scores, 0.4, max_output=most), expected[:most])
            assert_same(adaptive_nms(flat, scores, densities, 0.4), by_density)
            together = nms_match(flat, scores, 0.4)
        assert len(together) == len(groups)
        assert all(group.tolist() == groups[int(group[0])] for group in together)


@pytest.mark.parametrize(
    "count", [1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257]
)
def test_every_block_edge(count: int, device: str) -> None:
    """Counts around vector and block widths, where the last box decides and is decided."""
    boxes = (10 * torch.arange(float(count), device=device))[:, None] + torch.tensor(
        [0.0, 0, 9, 9], device=device
    )
    scores = -torch.arange(float(count), device=device)
    assert nms(boxes, scores, 0.5).tolist() == list(range(count))
    boxes[-1] = boxes[0]  # the worst equals the best
    assert nms(boxes, scores, 0.5).tolist() == list(range(max(count - 1, 1)))
    scores = scores.flip(0)  # and the other way round
    kept = nms(boxes, scores, 0.5).tolist()
    assert kept == (list(range(count - 1, 0, -1)) if count > 1 else [0])


# --------------------------------------------------------------------------------------------------
# torchvision


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_nms_equals_torchvision(threshold: float, dtype: torch.dtype, device: str) -> None:
    ops = pytest.importorskip("torchvision.ops")
    if device == "cuda":
        pytest.skip("torchvision's CUDA kernel compares with a rounded threshold")
    for kind in ("spread", "crowd", "grid", "sizes", "negative", "far"):
        for seed, levels in ((0, None), (1, 10)):
            count = 60 if EMULATED else 700
            boxes = MANY[kind](count, seed).to(dtype)
            scores = random_scores(count, seed, levels).to(dtype)
            assert_same(nms(boxes, scores, threshold), ops.nms(boxes, scores, threshold), kind)


@pytest.mark.parametrize("threshold", [0.375, 0.4])
def test_batched_nms_equals_torchvision_where_that_is_exact(threshold: float, device: str) -> None:
    # Whole non-negative coordinates and few classes: its coordinate offsets are exact. 0.4 is no
    # float32, and of these boxes many overlap by 2/5.
    ops = pytest.importorskip("torchvision.ops")
    if device == "cuda" and threshold == 0.4:
        pytest.skip("torchvision's CUDA kernel compares with a rounded threshold")
    for seed in range(5):
        boxes = grid_boxes(120, seed).float().to(device)
        boxes = torch.cat(
            [boxes[:, :2].minimum(boxes[:, 2:]), boxes[:, :2].maximum(boxes[:, 2:])], 1
        )
        scores = random_scores(120, seed).float().to(device)
        idxs = classes(120, 6, seed).to(device)
        ours = batched_nms(boxes, scores, idxs, threshold)
        assert_same(ours, ops.batched_nms(boxes, scores, idxs, threshold))


def test_batched_nms_is_exact_where_torchvision_is_not(device: str) -> None:
    ops = pytest.importorskip("torchvision.ops")
    # Two classes, both boxes at negative coordinates: offsetting by max + 1 = 0 moves neither.
    boxes = torch.tensor([[-10.0, -10, -1, -1]] * 2, device=device)
    scores = torch.tensor([0.9, 0.8], device=device)
    idxs = torch.tensor([0, 1], device=device)
    assert batched_nms(boxes, scores, idxs, 0.5).tolist() == [0, 1]
    assert ops.batched_nms(boxes, scores, idxs, 0.5).tolist() == [0]  # why this test exists
    # Class id 1200 offsets by 5 million, where float32 steps by 0.5: overlaps are rounded away.
    count = 60 if EMULATED else 500
    boxes = (spread(count, 3, side=300) + 3700).float().to(device)
    idxs = 1200 + classes(count, 3).to(device)
    scores = random_scores(count).float().to(device)
    expected = torch.cat(
        [
            rows[reference.nms(boxes[rows].cpu(), scores[rows].cpu(), 0.5)]
            for rows in [(idxs.cpu() == c).nonzero().flatten() for c in (1200, 1201, 1202)]
        ]
    )
    assert sorted(batched_nms(boxes, scores, idxs, 0.5).tolist()) == sorted(expected.tolist())


# --------------------------------------------------------------------------------------------------
# Autograd and compilation


def test_no_gradient_flows(device: str) -> None:
    boxes = spread(9).to(device).requires_grad_()
    scores = random_scores(9).to(device).requires_grad_()
    assert not nms(boxes, scores, 0.5).requires_grad
    assert not any(t.requires_grad for t in nms_padded(boxes[None], scores[None], 0.5, 4))
    (scores[nms(boxes, scores, 0.5)].sum() + boxes.sum()).backward()  # indexing still does
    assert scores.grad is not None


@pytest.mark.native
def test_concurrent_calls_do_not_disturb_each_other() -> None:
    def work(seed: int) -> list[Tensor]:
        boxes, scores = spread(900, seed).float(), random_scores(900, seed).float()
        padded = nms_padded(boxes.view(3, 300, 4), scores.view(3, 300), 0.4, 50)
        return [nms(boxes, scores, 0.4), batched_nms(boxes, scores, classes(900, 5), 0.4), *padded]

    expected = [work(seed) for seed in range(24)]
    with ThreadPoolExecutor(4) as pool:
        for actual, wanted in zip(pool.map(work, range(24)), expected, strict=True):
            for a, e in zip(actual, wanted, strict=True):
                assert_same(a, e)


@pytest.mark.gpu
@pytest.mark.skipif(not harness.HAVE_CUDA, reason="no GPU")
def test_padded_neither_waits_for_the_device_nor_breaks_a_graph() -> None:
    boxes = crowd(600, 9).view(3, 200, 4).float().cuda()
    scores = random_scores(600).view(3, 200).float().cuda()
    idxs = classes(600, 3).view(3, 200).cuda()
    nms_padded(boxes, scores, 0.5, 20, idxs=idxs)  # warm up
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        nms_padded(boxes, scores, 0.5, 20, idxs=idxs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        keep, count = nms_padded(boxes, scores, 0.5, 20, idxs=idxs)
    boxes.copy_(crowd(600, 9, seed=4).view(3, 200, 4))
    graph.replay()
    torch.cuda.synchronize()
    expected = reference.nms_padded(boxes.cpu(), scores.cpu(), 0.5, 20, idxs=idxs.cpu())
    assert_same(keep, expected[0])
    assert_same(count, expected[1])


@settings(max_examples=5)
@given(st.sampled_from([0, 1, 3, 1500]))
def test_batched_nms_compiles_at_any_size(count: int) -> None:
    """torchvision's breaks the graph above 1000 boxes."""
    count = min(count, 50) if EMULATED else count
    torch._dynamo.reset()

    def select(boxes: Tensor, scores: Tensor, idxs: Tensor) -> Tensor:
        return scores[batched_nms(boxes * 2, scores, idxs, 0.5, max_output=20)] + 1

    compiled = torch.compile(select, backend="aot_eager", fullgraph=True)
    arguments = spread(count).float(), random_scores(count).float(), classes(count, 4)
    assert_same(compiled(*arguments), select(*arguments))


def test_nms_cannot_be_vmapped_and_says_so() -> None:
    with pytest.raises((RuntimeError, NotImplementedError), match="nms_padded"):
        torch.vmap(lambda b, s: nms(b, s, 0.5))(
            spread(20).view(2, 10, 4), random_scores(20).view(2, 10)
        )


@pytest.mark.native
def test_far_and_tiny_boxes_among_many(device: str) -> None:
    """A few boxes far away or of almost no area change the grid, not the result."""
    boxes = spread(3000).float()
    scores = torch.rand(3000, generator=torch.Generator().manual_seed(2))
    for index, side in enumerate((100.0, 50.0, 30.0, 12.0, 6.0)):
        boxes[index] = torch.tensor([1e7, 1e7, 1e7 + side, 1e7 + side])
    boxes[7] = torch.tensor([0.0, 0.0, 1e-16, 1e-16])
    boxes[8] = torch.tensor([0.0, 0.0, 1e-16, 0.9e-16])
    for threshold in (0.0, 0.3, 0.5, 0.7):
        expected = reference.nms(boxes, scores, threshold)
        assert_same(nms(boxes.to(device), scores.to(device), threshold).cpu(), expected)


def test_sizes_that_only_the_data_knows_compile() -> None:
    boxes = spread(40).float()
    scores = torch.rand(40, generator=torch.Generator().manual_seed(3))

    def confident(boxes: Tensor, scores: Tensor) -> Tensor:
        return nms(boxes[scores > 0.5], scores[scores > 0.5], 0.5)

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(confident, fullgraph=True, backend="aot_eager")
        assert_same(compiled(boxes, scores), confident(boxes, scores))


@pytest.mark.native
@pytest.mark.parametrize("max_output", [None, 20_000, 40])
def test_many_boxes_on_islands(max_output: int | None) -> None:
    """Islands that no box reaches across: one large problem, or one small problem for each."""
    islands, each = 60, 2500  # together enough to be decided in the order of places
    island = torch.arange(islands).repeat_interleave(each)
    boxes = torch.cat([spread(each, seed, side=300).float() for seed in range(islands)])
    boxes += 1000.0 * torch.stack([island % 8, island // 8] * 2, 1)
    scores = random_scores(islands * each).float()
    densities = torch.rand(len(boxes), generator=torch.Generator().manual_seed(1))
    together = {"max_output": max_output}
    apart = {"max_output": max_output, "idxs": island}
    for options in ({}, {"criterion": "diou", "beta": 0.6}):
        assert_same(
            nms(boxes, scores, 0.4, **together, **options),
            batched_nms(boxes, scores, island, 0.4, max_output=max_output, **options),
        )
    assert_same(
        adaptive_nms(boxes, scores, densities, 0.4, **together),
        adaptive_nms(boxes, scores, densities, 0.4, **apart),
    )
    for one, other in zip(
        iou_guided_nms(boxes, scores, densities, 0.4, **together),
        iou_guided_nms(boxes, scores, densities, 0.4, **apart),
        strict=True,
    ):
        assert_same(one, other)
