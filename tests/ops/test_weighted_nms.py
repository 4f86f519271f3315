"""weighted_nms, softer_nms and cluster_nms: the generic matrix, then what is particular to them."""

from __future__ import annotations

import inspect
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
    VmapCase,
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
from cvkernels.nms import batched_nms, nms
from cvkernels.soft_nms import soft_nms
from cvkernels.weighted_nms import cluster_nms, softer_nms, weighted_nms, weighted_nms_padded

GREEDY = ["iou_threshold", "max_output", "criterion", "beta"]
SOFTER = ["iou_threshold", "sigma", "min_score", "sigma_t", "max_output", "method"]
CLUSTER = ["iou_threshold", "sigma", "min_score", "max_output", "mode"]


def variances(boxes: Tensor) -> Args:
    return {"variances": (0.1 + spread(len(boxes), 5, side=40) / 50).to(boxes.dtype)}


def odd_variances(boxes: Tensor) -> Args:
    values = variances(boxes)["variances"]
    for start, value in enumerate((0.0, -1.0, NAN, INF)):
        values.view(-1)[start::11] = value
    return {"variances": values}


def cases(*, limits: bool = True, **options: Any) -> list[Case]:
    def small(name: str, seed: int, **more: Any) -> Case:
        def make() -> tuple[Tensor, Tensor]:
            return spread(14, seed, side=60), random_scores(14, seed) + 0.05

        return case(name, make, small=True, **{**options, **more})

    found = [small("small", 0), small("small idxs", 1, idxs=2, criterion="ciou", beta=0.8)]
    found += [case(name, make, **options) for name, make in {**SCENES, **TIED}.items()]
    found += [case(f"idxs {n}", SCENES[n], idxs=3, **options) for n in ("packed", "crowd")]
    for criterion in CRITERIA[1:]:
        found += [case(f"{criterion}, {n}", m, **options, criterion=criterion) for n, m in FEW]
    for beta in (0.6, 2.0):
        more = {**options, "criterion": "diou", "beta": beta}
        found += [case(f"beta {beta}", SCENES["packed"], **more)]
    for threshold in (-0.2, 0.0, 0.05, 0.8):
        more = {**options, "iou_threshold": threshold}
        found += [case(f"threshold {threshold}", SCENES["packed"], **more)]
    if limits:
        for most in (0, 1, 9, 10_000):
            found += [case(f"max_output {most}", SCENES["crowd"], max_output=most, **options)]
    found += [
        case("float64 scores", SCENES["packed"], **options, keeps=("scores",)),
        case("float64 boxes", SCENES["packed"], **options, keeps=("boxes",)),
    ]
    return found


FEW = [("packed", SCENES["packed"]), ("crowd", SCENES["crowd"])]


def samples(padded: bool) -> list[Sample]:
    def sample(name: str, *values: Any, count: int = 40, idxs: bool = False) -> Sample:
        def make(dtype: torch.dtype) -> tuple[Any, ...]:
            boxes, scores = crowd(count, 3).to(dtype), random_scores(count).to(dtype)
            groups = classes(count, 2) if idxs else None
            if padded:
                boxes, scores = boxes.view(2, -1, 4), scores.view(2, -1)
                groups = None if groups is None else groups.view(2, -1)
            if name == "gradient":
                boxes.requires_grad_()
                scores.requires_grad_()
            return boxes, scores, groups, *values

        return Sample("weighted_nms_padded" if padded else "weighted_nms", name, make)

    most = 30 if padded else -1
    found = [
        sample("plain", 0.5, most, "iou", 1.0),
        sample("idxs", 0.3, 6, "diou", 0.7, idxs=True),
        sample("gradient", 0.3, most, "giou", 1.0),
    ]
    if not padded:
        found += [sample("empty", 0.5, most, "iou", 1.0, count=0)]
    return found


def merge_samples() -> list[Sample]:
    """The operators of the vote and of the penalty."""

    def inputs(dtype: torch.dtype, grad: bool, count: int) -> tuple[Tensor, ...]:
        boxes, scores = crowd(count, 3).to(dtype), random_scores(count).to(dtype)
        spread_out = variances(boxes)["variances"]
        if grad:
            for tensor in (boxes, scores, spread_out):
                tensor.requires_grad_()
        return boxes, scores, spread_out

    def vote(name: str, with_variances: bool, *values: Any, grad: bool = False) -> Sample:
        def make(dtype: torch.dtype) -> tuple[Any, ...]:
            boxes, scores, spread_out = inputs(dtype, grad, 30)
            keep = torch.tensor([3, 0, 17])
            return boxes, scores, None, keep, spread_out if with_variances else None, *values

        return Sample("weighted_nms_vote", name, make)

    def penalty(name: str, count: int, idxs: bool, *values: Any, grad: bool = False) -> Sample:
        def make(dtype: torch.dtype) -> tuple[Any, ...]:
            boxes, scores, _ = inputs(dtype, False, count)
            scores.requires_grad_(grad)
            groups = classes(count, 2) if idxs else None
            return boxes, scores, groups, torch.arange(count // 3), *values

        return Sample("weighted_nms_penalty", name, make)

    return [
        vote("variances", True, 0.1, "iou", 1.0),
        vote("threshold", False, 0.4, "diou", 0.7),
        vote("gradient of variances", True, 0.1, "iou", 1.0, grad=True),
        vote("gradient", False, 0.4, "giou", 1.0, grad=True),
        penalty("plain", 30, False, 0.2, "iou", 1.0),
        penalty("idxs", 30, True, 0.2, "ciou", 1.0, grad=True),
        penalty("empty", 0, False, 0.2, "iou", 1.0),
    ]


def vmaps() -> list[VmapCase]:
    def plain(boxes: Tensor, scores: Tensor) -> Any:
        return weighted_nms_padded(boxes, scores, 0.4, 9)

    def with_idxs(boxes: Tensor, scores: Tensor, idxs: Tensor) -> Any:
        return weighted_nms_padded(boxes, scores, 0.2, 9, idxs=idxs, criterion="diou")

    def make() -> tuple[Tensor, Tensor]:
        return crowd(120, 3).view(3, 2, 20, 4), random_scores(120).view(3, 2, 20)

    def make_idxs() -> tuple[Tensor, Tensor, Tensor]:
        return *make(), classes(40, 2).view(2, 20)

    def make_inner() -> tuple[Tensor, Tensor]:
        return make()[0].movedim(0, 2), make()[1].movedim(0, 1)

    return [
        VmapCase("both", plain, make, (0, 0)),
        VmapCase("scores only", plain, lambda: (make()[0][0], make()[1]), (None, 0)),
        VmapCase("shared idxs", with_idxs, make_idxs, (0, 0, None)),
        VmapCase("inner dims", plain, make_inner, (2, 1)),
    ]


class TestWeightedNms(DifferentiableOpTests):
    spec = OpSpec(
        name="weighted_nms",
        op=weighted_nms,
        reference=reference.weighted_nms,
        cases=cases(iou_threshold=0.3),
        selects=True,
        dynamic=True,
        differentiable=("boxes", "scores"),
        errors=bad_arguments("weighted_nms", GREEDY),
        samples=samples(padded=False),
    )


class TestWeightedNmsPadded(DifferentiableOpTests):
    spec = OpSpec(
        name="weighted_nms_padded",
        op=weighted_nms_padded,
        reference=reference.weighted_nms_padded,
        cases=[
            *cases(limits=False, padded=25, iou_threshold=0.3),
            case("no columns", SCENES["packed"], padded=0, iou_threshold=0.3),
            case("many columns", SCENES["crowd"], padded=80, iou_threshold=0.3),
        ],
        selects=True,
        differentiable=("boxes", "scores"),
        errors=bad_arguments("weighted_nms_padded", GREEDY, padded=True),
        samples=samples(padded=True),
        vmaps=vmaps(),
    )


class TestSofterNms(DifferentiableOpTests):
    spec = OpSpec(
        name="softer_nms",
        op=softer_nms,
        reference=reference.softer_nms,
        cases=[
            *cases(extra=variances, iou_threshold=0.3),
            *(
                case(f"{method}, {name}", make, extra=variances, iou_threshold=0.3, method=method)
                for method in ("linear", "gaussian")
                for name, make in [*FEW, ("no area", SCENES["no area"])]
            ),
            *(
                case(f"{name}, odd variances", make, extra=odd_variances, iou_threshold=0.3)
                for name, make in FEW
            ),
            case("sigma_t", SCENES["packed"], extra=variances, iou_threshold=0.3, sigma_t=0.5),
            case(
                "tiny sigma_t", SCENES["packed"], extra=variances, iou_threshold=0.3, sigma_t=1e-300
            ),
        ],
        selects=True,
        dynamic=True,
        differentiable=("boxes", "scores", "variances"),
        errors=bad_arguments("softer_nms", [*SOFTER, "criterion", "beta"], extra=["variances"]),
    )


class TestClusterNms(DifferentiableOpTests):
    spec = OpSpec(
        name="cluster_nms",
        op=cluster_nms,
        reference=reference.cluster_nms,
        cases=[
            *cases(iou_threshold=0.3, mode="weighted"),
            *(case(f"hard, {name}", make, iou_threshold=0.3, idxs=2) for name, make in FEW),
        ],
        selects=True,
        dynamic=True,
        differentiable=("boxes", "scores"),
        errors=bad_arguments("cluster_nms", [*CLUSTER, "criterion", "beta"]),
        samples=merge_samples(),
    )


def penalty_cases() -> list[Case]:
    options: Args = {"iou_threshold": 0.3, "mode": "score_penalty"}
    return [
        *cases(**options),
        *(
            case(f"min_score {least}, {name}", make, min_score=least, **options)
            for least in (0.0, 0.3)
            for name, make in FEW
        ),
        *(
            case(f"sigma {sigma:g}", SCENES["packed"], sigma=sigma, **options)
            for sigma in (0.01, 2.0, 1e-300, 1e300)
        ),
    ]


class TestClusterNmsPenalty(DifferentiableOpTests):
    """Apart, because a penalised score counts as no function of the boxes."""

    spec = OpSpec(
        name="cluster_nms",
        op=cluster_nms,
        reference=reference.cluster_nms,
        cases=penalty_cases(),
        selects=True,
        dynamic=True,
        differentiable=("scores",),
        second_order=lambda args: True,
    )


# --------------------------------------------------------------------------------------------------
# Hand-worked numbers


def scene(device: str) -> tuple[Tensor, Tensor]:
    boxes = torch.tensor(A_B_C, dtype=torch.float64, device=device)
    return boxes, torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64, device=device)


def moved(box: list[float], by: float) -> list[float]:
    return [box[0] + by, box[1], box[2] + by, box[3]]


def check(boxes: Tensor, expected: list[list[float]]) -> None:
    assert_close(boxes, torch.tensor(expected, dtype=torch.float64), torch.float64)


def test_hand_worked_weighted(device: str) -> None:
    boxes, scores = scene(device)
    a, b, c = A_B_C
    # A (0.9) stands for B (0.8 / 3), 5 to the right: (4/3) / (3.5/3) = 8/7.
    merged, kept_scores, keep = weighted_nms(boxes, scores, 0.3)
    assert keep.tolist() == [0, 2] and torch.equal(kept_scores, scores[keep])
    check(merged, [moved(a, 8 / 7), c])
    # For all: (0.8/3 * 5 + 0.7/9 * 8) / (0.9 + 0.8/3 + 0.7/9) = 176/112 = 11/7.
    for most in (None, 1):
        merged, _, keep = weighted_nms(boxes, scores, 0.1, max_output=most)
        assert keep.tolist() == [0]
        check(merged, [moved(a, 11 / 7)])
    many = scores.new_tensor([[0.9, 0.8, 0.7], [NAN, 0.8, 0.4]])
    merged, kept_scores, keep, count = weighted_nms_padded(
        torch.stack([boxes, boxes]), many, 0.3, 3
    )
    assert keep.tolist() == [[0, 2, -1], [1, -1, -1]] and count.tolist() == [2, 1]
    assert kept_scores.tolist() == [[0.9, 0.7, 0], [0.8, 0, 0]]
    # In the second image B (0.8) takes C (0.4 * 7/13): 3 * 2.8 / 13.2.
    none = [0.0] * 4
    check(merged.flatten(0, 1), [moved(a, 8 / 7), c, none, moved(b, 8.4 / 13.2), none, none])


def test_hand_worked_softer(device: str) -> None:
    boxes, scores = scene(device)
    ones = torch.ones_like(boxes)
    # exp(-(4/9) / 0.5), exp(-(64/81) / 0.5), exp(-(36/169) / 0.5).
    ab, ac, bc = 0.41111229050718745, 0.20592424643419874, 0.6530931549698421
    voted, new_scores, keep = softer_nms(boxes, scores, ones, 0.3, sigma_t=0.5)
    assert keep.tolist() == [0, 2] and torch.equal(new_scores, scores[keep])
    a, _, c = A_B_C
    expected = [
        moved(a, (5 * ab + 8 * ac) / (1 + ab + ac)),
        moved(c, -(3 * bc + 8 * ac) / (1 + bc + ac)),
    ]
    check(voted, expected)
    voted, new_scores, keep = softer_nms(boxes, scores, ones, 0.3, sigma_t=0.5, method="linear")
    assert keep.tolist() == [0, 2, 1]
    assert new_scores.tolist() == pytest.approx([0.9, 0.7, 0.8 * 2 / 3 * 6 / 13])
    check(voted[:2], expected)
    spread_out = ones.new_tensor([[2.0, 1, 1, 1], [4, INF, 1, 0], [-1, NAN, INF, 1]])
    voted, _, _ = softer_nms(boxes, scores, spread_out, 0.3, sigma_t=0.5, max_output=1)
    check(voted, [[5 * (ab / 4) / (0.5 + ab / 4), 0, 10 + 5 * ab / (1 + ab), 10]])
    voted, _, keep = softer_nms(boxes, scores, torch.zeros_like(boxes), 0.3)
    assert_same(voted, boxes[keep])  # nobody votes


def test_hand_worked_cluster(device: str) -> None:
    boxes, scores = scene(device)
    a, _, c = A_B_C
    kept_boxes, kept_scores, keep = cluster_nms(boxes, scores, 0.3)
    assert keep.tolist() == [0, 2]
    assert torch.equal(kept_boxes, boxes[keep]) and torch.equal(kept_scores, scores[keep])
    # B 0.8 exp(-(1/9) / 0.2), C 0.7 exp(-(1/81) / 0.2).
    _, new_scores, keep = cluster_nms(boxes, scores, 0.3, mode="score_penalty")
    assert keep.tolist() == [0, 2, 1]
    assert new_scores.tolist() == pytest.approx([0.9, 0.6580967388064309, 0.4590027365899463])
    _, new_scores, keep = cluster_nms(boxes, scores, 0.3, mode="score_penalty", max_output=2)
    assert keep.tolist() == [0, 2]
    # Ranked A, C, B: A takes B with 0.7/3 against 0.9, and C takes it with 0.7 * 7/13 against 0.8.
    merged, _, keep = cluster_nms(boxes, scores[[0, 2, 1]], 0.3, mode="weighted")
    assert keep.tolist() == [0, 2]
    check(merged, [moved(a, 0.7 / 3 * 5 / (0.9 + 0.7 / 3)), moved(c, -49 / 51)])


def test_weights_that_sum_to_nothing_leave_the_box(device: str) -> None:
    boxes, _ = scene(device)
    for scores in ([0.0, 0, 0], [-1.0, -2, -3], [0.0, -0.0, -1]):
        values = torch.tensor(scores, dtype=torch.float64, device=device)
        for merged, _, keep in (
            weighted_nms(boxes, values, 0.1),
            cluster_nms(boxes, values, 0.1, mode="weighted"),
        ):
            assert_same(merged, boxes[keep])
    values = torch.tensor([0.9, -0.3, NAN], dtype=torch.float64, device=device)
    merged, _, _ = weighted_nms(boxes, values, 0.1)
    check(merged, [moved(A_B_C[0], -0.1 * 5 / 0.8)])  # -0.3 / 3 against 0.9


def test_odd_boxes_stay_as_they_are(device: str) -> None:
    boxes = torch.tensor(
        [[0.0, 0, INF, 9], [0, 0, NAN, 9], [5, 5, 5, 9], [9, 9, 5, 5]], device=device
    )
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6], device=device)
    for merged, values, keep in (
        weighted_nms(boxes, scores, 0.0),
        softer_nms(boxes, scores, torch.ones_like(boxes), 0.0),
        cluster_nms(boxes, scores, 0.0, mode="weighted"),
        cluster_nms(boxes, scores, 0.0, mode="score_penalty", sigma=1e-300),
    ):
        assert keep.tolist() == [0, 1, 2, 3]
        assert_same(merged.nan_to_num(-7), boxes.nan_to_num(-7))
        assert_same(values, scores)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_coinciding_centres_and_odd_boxes_have_finite_gradients(
    criterion: str, device: str
) -> None:
    boxes = torch.tensor(
        [[0.0, 0, 10, 10], [1, 1, 9, 9], [3, 3, 3, 9], [NAN, 0, 9, 9], [0, 0, INF, 9]],
        device=device,
        requires_grad=True,
    )
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, NAN], device=device, requires_grad=True)
    odd = torch.tensor([[1.0, 0, NAN, INF]] * 5, device=device, requires_grad=True)
    options: dict[str, Any] = {"criterion": criterion, "beta": 0.5}
    for merged, values, _ in (
        weighted_nms(boxes, scores, 0.1, **options),
        softer_nms(boxes, scores, odd, 0.1, **options),
        cluster_nms(boxes, scores, 0.1, mode="weighted", **options),
        cluster_nms(boxes, scores, 0.1, mode="score_penalty", **options),
    ):
        total = merged.nan_to_num(0, 0, 0).sum() + values.sum()
        for gradient in torch.autograd.grad(total, (boxes, scores, odd), allow_unused=True):
            assert gradient is None or bool(gradient.isfinite().all())


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
    scores = random_scores(count, seed, draw(st.sampled_from([None, 6]))) + 0.05
    return make().float(), scores.float(), classes(count, 3, seed)


def variants(criterion: str) -> list[Callable[..., tuple[Tensor, ...]]]:
    """Every function as (boxes, scores, variances, idxs) -> boxes, scores, keep."""

    def weighted(b: Tensor, s: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, ...]:
        return weighted_nms(b, s, 0.317, criterion=criterion, **options)

    def softer(method: str) -> Callable[..., tuple[Tensor, ...]]:
        return lambda b, s, v, **options: softer_nms(
            b, s, v, 0.317, method=method, criterion=criterion, sigma_t=0.1, **options
        )

    def cluster(mode: str) -> Callable[..., tuple[Tensor, ...]]:
        return lambda b, s, v, **options: cluster_nms(
            b, s, 0.317, mode=mode, criterion=criterion, **options
        )

    return [
        weighted,
        *map(softer, ["hard", "linear", "gaussian"]),
        *map(cluster, ["hard", "score_penalty", "weighted"]),
    ]


@given(scenes(), st.sampled_from(CRITERIA), st.sampled_from([-0.2, 0.0, 0.3, 0.8]))
def test_all_keep_what_their_base_keeps(
    scene: tuple[Tensor, ...], criterion: str, threshold: float
) -> None:
    boxes, scores, idxs = scene
    options: dict[str, Any] = {"criterion": criterion, "max_output": 30}
    kept = batched_nms(boxes, scores, idxs, threshold, **options)
    spread_out = variances(boxes)["variances"]
    for _, values, keep in (
        weighted_nms(boxes, scores, threshold, idxs=idxs, **options),
        cluster_nms(boxes, scores, threshold, idxs=idxs, **options),
        cluster_nms(boxes, scores, threshold, mode="weighted", idxs=idxs, **options),
        softer_nms(boxes, scores, spread_out, threshold, idxs=idxs, **options),
    ):
        assert_same(keep, kept)
        assert_same(values, scores[kept])
    assert_same(
        cluster_nms(boxes, scores, threshold, **options)[2],
        nms(boxes, scores, threshold, **options),
    )
    for method in ("linear", "gaussian"):
        more: dict[str, Any] = {**options, "method": method, "idxs": idxs}
        _, values, keep = softer_nms(boxes, scores, spread_out, max(threshold, 0.0), **more)
        expected = soft_nms(boxes, scores, iou_threshold=max(threshold, 0.0), **more)
        assert_same(keep, expected[0])
        assert_same(values, expected[1])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_one_box_and_distant_boxes_are_unchanged(criterion: str, device: str) -> None:
    boxes = (spread(5, 4) + 1000 * torch.arange(5.0)[:, None]).float().to(device)
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5], device=device)
    for rows in (boxes[:1], boxes):
        for function in variants(criterion):
            spread_out = variances(rows.cpu())["variances"].to(device)
            merged, values, keep = function(rows, scores[: len(rows)], spread_out)
            assert keep.tolist() == list(range(len(rows)))
            assert_same(merged, rows)
            assert_same(values, scores[: len(rows)])


@given(scenes(), st.sampled_from(CRITERIA))
def test_permuting_boxes_permutes_the_result(scene: tuple[Tensor, ...], criterion: str) -> None:
    boxes, _, idxs = scene
    generator = torch.Generator().manual_seed(len(boxes))
    scores = torch.rand(len(boxes), generator=generator)
    order = torch.randperm(len(boxes), generator=generator)
    spread_out = variances(boxes)["variances"]
    for function in variants(criterion):
        merged, values, keep = function(boxes, scores, spread_out, idxs=idxs)
        again = function(boxes[order], scores[order], spread_out[order], idxs=idxs[order])
        assert_same(order[again[2]], keep)
        assert_close(again[1], values, torch.float32)  # sums in another order
        assert_close(again[0], merged, torch.float32)


@given(scenes(), st.sampled_from(CRITERIA))
def test_classes_never_interact(scene: tuple[Tensor, ...], criterion: str) -> None:
    boxes, scores, idxs = scene
    spread_out = variances(boxes)["variances"]
    for function in variants(criterion):
        merged, values, keep = function(boxes, scores, spread_out, idxs=idxs)
        place = {i: row for row, i in enumerate(keep.tolist())}
        for c in idxs.unique():
            rows = (idxs == c).nonzero().flatten()
            apart = function(boxes[rows], scores[rows], spread_out[rows])
            mine = [place.pop(i) for i in rows[apart[2]].tolist()]
            assert_close(apart[0], merged[mine], torch.float32)
            assert_close(apart[1], values[mine], torch.float32)
        assert not place


@given(scenes(), st.integers(0, 90), st.integers(1, 3))
def test_padded_is_weighted_nms_of_every_image(
    scene: tuple[Tensor, ...], most: int, images: int
) -> None:
    boxes, scores, idxs = scene
    generator = torch.Generator().manual_seed(len(boxes))
    orders = [torch.randperm(len(boxes), generator=generator) for _ in range(images)]
    many = [torch.stack([t[order] for order in orders]) for t in (boxes, scores, idxs)]
    padded = weighted_nms_padded(*many[:2], 0.3, most, idxs=many[2])
    for i in range(images):
        alone = weighted_nms(many[0][i], many[1][i], 0.3, idxs=many[2][i], max_output=most)
        kept = len(alone[2])
        assert padded[3][i] == kept
        for row, wanted, fill in zip(padded, alone, (0, 0, -1), strict=False):
            assert_same(row[i, :kept], wanted)
            assert bool((row[i, kept:] == fill).all()) and len(row[i]) == most


def test_padded_without_images_or_boxes(device: str) -> None:
    for images, count, most in ((0, 5, 3), (2, 0, 3), (2, 5, 0)):
        boxes = torch.ones(images, count, 4, device=device)
        merged, values, keep, kept = weighted_nms_padded(boxes, boxes[..., 0], 0.5, most)
        assert merged.tolist() == [[[0.0] * 4] * most] * images
        assert values.tolist() == [[0.0] * most] * images
        assert keep.tolist() == [[-1] * most] * images
        assert kept.tolist() == [0] * images


VARIANTS: dict[str, tuple[Any, list[str]]] = {
    "weighted_nms": (TestWeightedNms, GREEDY),
    "weighted_nms_padded": (TestWeightedNmsPadded, ["iou_threshold", "width", "criterion", "beta"]),
    "softer_nms": (TestSofterNms, [*SOFTER, "criterion", "beta"]),
    "cluster_nms": (TestClusterNms, [*CLUSTER, "criterion", "beta"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_random_problems(name: str) -> None:
    tests, parameters = VARIANTS[name]
    for seed in range(RANDOM_PROBLEMS):
        args, rng = random_problem(seed)
        if "variances" in inspect.signature(tests.spec.op).parameters:
            kind = rng.choice([variances, odd_variances])
            args["variances"] = kind(torch.zeros(len(args["boxes"]), 4).double())["variances"].to(
                rng.choice(harness.DTYPES)
            )
        args |= random_options(rng, parameters)
        if "width" in parameters:
            args |= {k: v[None] for k, v in args.items() if isinstance(v, Tensor)}
        assert_agree(tests.spec, args, f"problem {seed}")


# --------------------------------------------------------------------------------------------------
# Many boxes: spatial pruning, blocks and threads against the plain loop


MANY: dict[str, Callable[[int], Tensor]] = {
    "spread": lambda n: spread(n, 5),
    "crowd": lambda n: crowd(n, 40, 5),
    "whole": lambda n: whole_boxes(n, 5) * 9,
    "far": lambda n: spread(n, 5) + 1e6,
    "tiny": lambda n: spread(n, 5) * 1e-15,
    "huge": lambda n: spread(n, 5) * 1e15,
}


@pytest.mark.native
@pytest.mark.parametrize("kind", MANY)
@pytest.mark.parametrize("count", [257, 600])
def test_many_boxes(count: int, kind: str, device: str) -> None:
    boxes = MANY[kind](count).float().to(device)
    scores = random_scores(count, 6).float().to(device)
    spread_out = variances(boxes.cpu())["variances"].to(device)
    idxs = classes(count, 5).to(device)
    for options in ({}, {"idxs": idxs}, {"criterion": "diou"}):
        for spec, more in (
            (TestWeightedNms.spec, {}),
            (TestSofterNms.spec, {"variances": spread_out}),
            (TestClusterNms.spec, {"mode": "weighted"}),
            (TestClusterNms.spec, {"mode": "score_penalty"}),
        ):
            args: Args = {"boxes": boxes, "scores": scores, "iou_threshold": 0.3}
            args |= {**options, **more}
            expected = harness.expected_of(spec, args)
            harness.assert_matches(spec, spec.op(**args), expected, torch.float32, spec.name)


@pytest.mark.gpu
@pytest.mark.skipif(not harness.HAVE_CUDA, reason="no GPU")
def test_padded_neither_waits_for_the_device_nor_breaks_a_graph() -> None:
    boxes = crowd(600, 9).view(3, 200, 4).float().cuda()
    scores = random_scores(600).view(3, 200).float().cuda()
    idxs = classes(600, 3).view(3, 200).cuda()
    weighted_nms_padded(boxes, scores, 0.5, 20, idxs=idxs)  # warm up
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        weighted_nms_padded(boxes, scores, 0.5, 20, idxs=idxs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = weighted_nms_padded(boxes, scores, 0.5, 20, idxs=idxs)
    boxes.copy_(crowd(600, 9, seed=4).view(3, 200, 4))
    graph.replay()
    torch.cuda.synchronize()
    expected = weighted_nms_padded(boxes, scores, 0.5, 20, idxs=idxs)
    for a, e in zip(results, expected, strict=True):
        assert_same(a, e)


# --------------------------------------------------------------------------------------------------
# The operators beneath


def test_the_vote_refuses_indices_out_of_range() -> None:
    boxes, scores = scene("cpu")
    if EMULATED:
        pytest.skip("device kernels cannot raise on data")
    for bad in (-1, 3, 2**40, -(2**63)):
        keep = torch.tensor([0, bad])
        with pytest.raises((ValueError, RuntimeError), match="expected keep in"):
            torch.ops.cvkernels.weighted_nms_vote(boxes, scores, None, keep, None, 0.5, "iou", 1.0)
        with pytest.raises((ValueError, RuntimeError), match="expected keep in"):
            torch.ops.cvkernels.weighted_nms_penalty(boxes, scores, None, keep, 0.5, "iou", 1.0)


def test_weighted_nms_cannot_be_vmapped_and_says_so() -> None:
    with pytest.raises((RuntimeError, NotImplementedError), match="weighted_nms_padded"):
        torch.vmap(lambda b, s: weighted_nms(b, s, 0.5))(
            spread(20).view(2, 10, 4), random_scores(20).view(2, 10)
        )
