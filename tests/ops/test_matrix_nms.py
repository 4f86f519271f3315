"""matrix_nms and matrix_nms_from_overlaps: the generic matrix, then what is particular to them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import harness
import pytest
import torch
from boxes import (
    A_B_C,
    INF,
    NAN,
    SCENES,
    TIED,
    classes,
    crowd,
    random_scores,
    spread,
    whole_boxes,
)
from harness import (
    EMULATED,
    Args,
    Case,
    DifferentiableOpTests,
    OpSpec,
    Sample,
    assert_close,
    assert_same,
)
from hypothesis import given
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
from cvkernels.matrix_nms import matrix_nms, matrix_nms_from_overlaps

KERNELS = ["linear", "gaussian"]
PARAMETERS = ["sigma", "min_score", "max_output", "kernel"]


def all_overlaps(boxes: Tensor) -> Tensor:
    """[N, N] IoU in float64, 0 for odd boxes."""
    b = boxes.double()
    low = torch.maximum(b[:, None, :2], b[None, :, :2])
    high = torch.minimum(b[:, None, 2:], b[None, :, 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    area = (b[:, 2:] - b[:, :2]).prod(-1)
    return (inter / (area[:, None] + area[None] - inter)).nan_to_num(nan=0.0)


def cases(**options: Any) -> list[Case]:
    found = []
    for kernel in KERNELS:
        more = {**options, "kernel": kernel}

        def make(seed: int = len(kernel)) -> tuple[Tensor, Tensor]:
            return spread(14, seed, side=60), random_scores(14, seed) + 0.05

        found += [case(f"small {kernel}", make, small=True, idxs=2, **more)]
        found += [case(f"{kernel}, {n}", m, **more) for n, m in {**SCENES, **TIED}.items()]
        found += [case(f"{kernel}, idxs", SCENES["packed"], idxs=3, **more)]
        found += [
            case(f"{kernel}, min_score {least}", make, min_score=least, **more)
            for least in (0.0, 0.3)
            for make in (TIED["whole"],)
        ]
    found += [
        case(f"max_output {most}", SCENES["packed"], max_output=most, **options)
        for most in (0, 1, 9, 10_000)
    ]
    found += [
        case(f"sigma {sigma:g}", SCENES["packed"], sigma=sigma, **options)
        for sigma in (0.01, 3.0, 1e-300, 1e300)
    ]
    return [*found, case("float64 scores", SCENES["packed"], keeps=("scores",), **options)]


def box_cases() -> list[Case]:
    found = cases()
    for kernel in KERNELS:
        for criterion in CRITERIA[1:]:
            for name in ("packed", "crowd"):
                options = {"kernel": kernel, "criterion": criterion}
                found += [case(f"{kernel}, {criterion}, {name}", SCENES[name], **options)]
    found += [case("beta", SCENES["packed"], criterion="diou", beta=0.6)]
    return [*found, case("float64 boxes", SCENES["packed"], keeps=("boxes",))]


def from_boxes(found: Case) -> Case:
    """The same problem by the overlaps of its boxes."""

    def make() -> Args:
        args = found.make()
        return {"overlaps": all_overlaps(args.pop("boxes")), **args}

    return Case(found.name, make, keeps=found.keeps, small=found.small)


def odd_overlaps() -> Args:
    """A matrix of anything, below the diagonal of the ranks too."""
    generator = torch.Generator().manual_seed(4)
    overlaps = torch.randn(40, 40, generator=generator, dtype=torch.float64) * 0.7
    pool = torch.tensor([NAN, INF, -INF, 1.0, 2.0, 0.0, -0.0, 60000.0]).double()
    where = torch.rand(40, 40, generator=generator) < 0.2
    odd = pool[torch.randint(0, len(pool), (40, 40), generator=generator)]
    return {"overlaps": torch.where(where, odd, overlaps), "scores": random_scores(40)}


def samples() -> list[Sample]:
    def boxes_sample(name: str, *values: Any, count: int = 30, idxs: bool = False) -> Sample:
        def make(dtype: torch.dtype) -> tuple[Any, ...]:
            boxes, scores = crowd(count, 3).to(dtype), random_scores(count).to(dtype)
            scores.requires_grad_(name == "gradient")
            return boxes, scores, classes(count, 2) if idxs else None, *values

        return Sample("matrix_nms", name, make)

    return [
        boxes_sample("linear", "linear", 0.5, "iou", 1.0),
        boxes_sample("gaussian", "gaussian", 0.3, "diou", 0.7, idxs=True),
        boxes_sample("gradient", "gaussian", 0.3, "ciou", 1.0),
        boxes_sample("empty", "gaussian", 0.3, "iou", 1.0, count=0),
    ]


def overlap_samples() -> list[Sample]:
    def sample(name: str, *values: Any, count: int = 30, idxs: bool = False) -> Sample:
        def make(dtype: torch.dtype) -> tuple[Any, ...]:
            overlaps = all_overlaps(crowd(count, 3)).to(dtype)
            scores = random_scores(count).to(dtype).requires_grad_(name == "gradient")
            return overlaps, scores, classes(count, 2) if idxs else None, *values

        return Sample("matrix_nms_overlaps", name, make)

    return [
        sample("linear", "linear", 0.5),
        sample("gradient", "gaussian", 0.3, idxs=True),
        sample("empty", "gaussian", 0.3, count=0),
    ]


class TestMatrixNms(DifferentiableOpTests):
    spec = OpSpec(
        name="matrix_nms",
        op=matrix_nms,
        reference=reference.matrix_nms,
        cases=box_cases(),
        selects=True,
        dynamic=True,
        differentiable=("scores",),
        second_order=lambda args: True,
        errors=bad_arguments("matrix_nms", [*PARAMETERS, "criterion", "beta"]),
        samples=samples(),
    )


class TestMatrixNmsFromOverlaps(DifferentiableOpTests):
    spec = OpSpec(
        name="matrix_nms_from_overlaps",
        op=matrix_nms_from_overlaps,
        reference=reference.matrix_nms_from_overlaps,
        cases=[
            *map(from_boxes, cases()),
            *(
                Case(f"odd, {kernel}", lambda k=kernel: {**odd_overlaps(), "kernel": k})
                for kernel in KERNELS
            ),
            Case("float64 overlaps", odd_overlaps, keeps=("overlaps",)),
        ],
        selects=True,
        dynamic=True,
        differentiable=("scores",),
        second_order=lambda args: True,
        errors=bad_arguments("matrix_nms_from_overlaps", PARAMETERS, first="overlaps"),
        samples=overlap_samples(),
    )


# --------------------------------------------------------------------------------------------------
# Hand-worked numbers


def test_hand_worked(device: str) -> None:
    boxes = torch.tensor(A_B_C, dtype=torch.float64, device=device)
    scores = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64, device=device)
    overlaps = all_overlaps(boxes)

    def run(**options: Any) -> tuple[list[int], list[float]]:
        keep, new_scores = matrix_nms(boxes, scores, **options)
        again, same = matrix_nms_from_overlaps(overlaps, scores, **options)
        assert_same(keep, again)
        assert_close(new_scores, same, torch.float64)
        return keep.tolist(), new_scores.tolist()

    # Compensation: A 0, B 1/3. B 2/3; C min(8/9, (6/13) / (2/3) = 9/13).
    kept, values = run(kernel="linear")
    assert kept == [0, 1, 2] and values == pytest.approx([0.9, 0.8 * 2 / 3, 0.7 * 9 / 13])
    # Sigma 0.5: B exp(-2/9), C exp(-2 max(1/81, 49/169 - 1/9)).
    kept, values = run()
    assert kept == [0, 1, 2]
    assert values == pytest.approx([0.9, 0.6405899223334465, 0.48951783696598966])
    assert run(kernel="linear", min_score=0.5)[0] == [0, 1]
    assert run(max_output=1)[0] == [0]
    kept, values = run(kernel="linear", idxs=torch.tensor([5, 6, 5], device=device))
    assert kept == [0, 1, 2] and values == pytest.approx([0.9, 0.8, 0.7 * 8 / 9])
    # A copy of A: 0.8 exp(-2); B 0.2 exp(-2/9) passes it.
    keep, new_scores = matrix_nms(boxes[[0, 0, 1]], scores.new_tensor([0.9, 0.8, 0.2]))
    assert keep.tolist() == [0, 2, 1]
    assert new_scores.tolist() == pytest.approx([0.9, 0.2 * math.exp(-2 / 9), 0.8 * math.exp(-2)])


def test_only_what_is_ranked_before_is_read(device: str) -> None:
    # Ranked 1, 2, 0.
    overlaps = torch.full((3, 3), NAN, dtype=torch.float64, device=device)
    overlaps[1, 2], overlaps[1, 0], overlaps[2, 0] = 0.5, 0.2, 0.8
    scores = torch.tensor([0.3, 0.9, 0.6], dtype=torch.float64, device=device)
    keep, new_scores = matrix_nms_from_overlaps(overlaps, scores, kernel="linear")
    assert keep.tolist() == [1, 2, 0]
    assert new_scores.tolist() == pytest.approx([0.9, 0.6 * 0.5, 0.3 * 0.4])


@pytest.mark.parametrize("kernel", KERNELS)
def test_edges(kernel: str, device: str) -> None:
    box = torch.tensor([[0.0, 0, 10, 10]], device=device)
    scores = torch.tensor([0.9, NAN, -1.0], device=device)
    assert matrix_nms(box.expand(3, 4), scores, kernel=kernel)[0].tolist() == [0]
    for value, decay in ((20.0, 0.0), (INF, 0.0), (NAN, 1.0), (-3.0, 1.0), (-INF, 1.0)):
        _, new_scores = matrix_nms_from_overlaps(
            torch.tensor([[0, value], [0, 0]], device=device),
            torch.ones(2, device=device),
            kernel=kernel,
            min_score=0,
        )
        assert new_scores.tolist() == [1, decay], value
    apart = torch.tensor([[0.0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 9, NAN]], device=device)
    for sigma in (1e-300, 1e300):
        keep, new_scores = matrix_nms(
            apart, torch.full((3,), 0.5, device=device), kernel=kernel, sigma=sigma
        )
        assert keep.tolist() == [0, 1, 2] and new_scores.tolist() == [0.5] * 3


@pytest.mark.parametrize("dtype", harness.DTYPES, ids=str)
def test_min_score_is_compared_as_a_real_number(dtype: torch.dtype, device: str) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 1]], dtype=dtype, device=device)
    overlaps = torch.zeros(1, 1, dtype=dtype, device=device)
    for value in (0.7, 0.1, 1e-3):
        scores = torch.tensor([value], dtype=dtype, device=device)
        held = float(scores[0])  # what is left of the number
        for least in (value, held, math.nextafter(held, 0), math.nextafter(held, 1)):
            kept = [0] if held >= least else []
            assert matrix_nms(boxes, scores, min_score=least)[0].tolist() == kept
            found = matrix_nms_from_overlaps(overlaps, scores, min_score=least)
            assert found[0].tolist() == kept


# --------------------------------------------------------------------------------------------------
# Properties


@st.composite
def scenes(draw: st.DrawFn, most: int = 80) -> tuple[Tensor, Tensor, Tensor]:
    """Crowded float32 boxes, scores of which some may be equal, classes."""
    seed, count = draw(st.integers(0, 2**31)), draw(st.integers(0, 25 if EMULATED else most))
    make: Callable[[], Tensor] = draw(
        st.sampled_from(
            [
                lambda: spread(count, seed, side=150),
                lambda: crowd(count, 4, seed),
                lambda: whole_boxes(count, seed),
            ]
        )
    )
    scores = random_scores(count, seed, draw(st.sampled_from([None, 6])))
    return make().float(), scores.float(), classes(count, 3, seed)


@given(scenes(), st.sampled_from(KERNELS), st.sampled_from(CRITERIA))
def test_classes_never_interact(scene: tuple[Tensor, ...], kernel: str, criterion: str) -> None:
    boxes, scores, idxs = scene
    options: dict[str, Any] = {"kernel": kernel, "criterion": criterion}
    keep, new_scores = matrix_nms(boxes, scores, idxs=idxs, **options)
    together = dict(zip(keep.tolist(), new_scores.tolist(), strict=True))
    apart = {}
    for c in idxs.unique():
        rows = (idxs == c).nonzero().flatten()
        part, values = matrix_nms(boxes[rows], scores[rows], **options)
        apart |= dict(zip(rows[part].tolist(), values.tolist(), strict=True))
    assert together == apart
    ranks = [(-s, i) for i, s in together.items()]
    assert ranks == sorted(ranks)


@given(scenes(), st.sampled_from(KERNELS), st.sampled_from(CRITERIA))
def test_permuting_boxes_permutes_the_result(
    scene: tuple[Tensor, ...], kernel: str, criterion: str
) -> None:
    boxes, _, idxs = scene
    generator = torch.Generator().manual_seed(len(boxes))
    scores = torch.rand(len(boxes), generator=generator)
    order = torch.randperm(len(boxes), generator=generator)
    options: dict[str, Any] = {"kernel": kernel, "criterion": criterion}
    keep, new_scores = matrix_nms(boxes, scores, idxs=idxs, **options)
    again, permuted = matrix_nms(boxes[order], scores[order], idxs=idxs[order], **options)
    assert_same(permuted, new_scores)
    distinct = new_scores.unique(return_counts=True)
    single = torch.isin(new_scores, distinct[0][distinct[1] == 1])
    assert_same(order[again][single], keep[single])  # equal new scores are in order of index


@given(scenes(), st.sampled_from(KERNELS), st.sampled_from(CRITERIA), st.sampled_from([-9, 4]))
def test_scaling_by_a_power_of_two_changes_nothing(
    scene: tuple[Tensor, ...], kernel: str, criterion: str, power: int
) -> None:
    boxes, scores, idxs = scene
    options: dict[str, Any] = {"kernel": kernel, "criterion": criterion, "idxs": idxs}
    expected = matrix_nms(boxes, scores, **options)
    for a, e in zip(matrix_nms(boxes * 2.0**power, scores, **options), expected, strict=True):
        assert_same(a, e)


@given(scenes(), st.sampled_from(KERNELS))
def test_overlaps_of_boxes_give_what_boxes_give(scene: tuple[Tensor, ...], kernel: str) -> None:
    boxes, scores, idxs = scene
    expected = matrix_nms(boxes.double(), scores, kernel=kernel, idxs=idxs)
    found = matrix_nms_from_overlaps(all_overlaps(boxes), scores, kernel=kernel, idxs=idxs)
    for a, e in zip(found, expected, strict=True):
        assert_same(a, e)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["matrix_nms", "matrix_nms_from_overlaps"])
def test_random_problems(name: str) -> None:
    for seed in range(RANDOM_PROBLEMS):
        args, rng = random_problem(seed)
        args |= random_options(rng, PARAMETERS)
        if name == "matrix_nms":
            args |= random_options(rng, ["criterion", "beta"])
            assert_agree(TestMatrixNms.spec, args, f"problem {seed}")
            continue
        overlaps = all_overlaps(args.pop("boxes")).to(rng.choice(harness.DTYPES))
        spec = TestMatrixNmsFromOverlaps.spec
        assert_agree(spec, {**args, "overlaps": overlaps}, f"problem {seed}")


# --------------------------------------------------------------------------------------------------
# Many boxes: spatial pruning, blocks and threads against the whole matrix


MANY: dict[str, Callable[[int], Tensor]] = {
    "spread": lambda n: spread(n, 5),
    "crowd": lambda n: crowd(n, 40, 5),
    "one cluster": lambda n: crowd(n, 1, 5),
    "whole": lambda n: whole_boxes(n, 5) * 9,
    "far": lambda n: spread(n, 5) + 1e6,
    "tiny": lambda n: spread(n, 5) * 1e-15,
    "huge": lambda n: spread(n, 5) * 1e15,
}


@pytest.mark.native
@pytest.mark.parametrize("kind", MANY)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("count", [257, 1200])
def test_many_boxes(count: int, kernel: str, kind: str, device: str) -> None:
    boxes = MANY[kind](count).float().to(device)
    scores = random_scores(count, 6).float().to(device)
    idxs = classes(count, 5).to(device)
    for options in ({}, {"idxs": idxs}, {"criterion": "diou"}):
        args = {"boxes": boxes, "scores": scores, "kernel": kernel, **options}
        spec = TestMatrixNms.spec
        expected = harness.expected_of(spec, args)
        harness.assert_matches(spec, spec.op(**args), expected, torch.float32, str(options))


@pytest.mark.parametrize("operator", ["matrix_nms", "matrix_nms_overlaps"])
def test_the_operators_cannot_be_vmapped_and_say_so(operator: str) -> None:
    first = spread(10).expand(2, 10, 4) if operator == "matrix_nms" else torch.ones(2, 10, 10)
    more = ("gaussian", 0.5, "iou", 1.0) if operator == "matrix_nms" else ("gaussian", 0.5)
    function = getattr(torch.ops.cvkernels, operator)
    with pytest.raises((RuntimeError, NotImplementedError), match="loop"):
        torch.vmap(lambda b, s: function(b, s, None, *more))(first, torch.ones(2, 10))
