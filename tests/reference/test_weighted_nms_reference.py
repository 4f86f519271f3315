"""The weighted_nms references against numbers worked by hand and plain Python loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from boxes import (
    A_B_C,
    INF,
    NAN,
    apart_by_class,
    classes,
    crowd,
    random_scores,
    spread,
    whole_boxes,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cvkernels.reference import (
    batched_nms,
    cluster_nms,
    nms,
    nms_match,
    soft_nms,
    softer_nms,
    weighted_nms,
    weighted_nms_padded,
)
from cvkernels.reference._overlap import corners, overlap

pytestmark = pytest.mark.native  # no kernel runs here

CRITERIA = ["iou", "giou", "diou", "ciou"]


def boxes_and_scores() -> tuple[Tensor, Tensor]:
    scores = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64)
    return torch.tensor(A_B_C, dtype=torch.float64), scores


def moved(box: list[float], by: float) -> list[float]:
    return [box[0] + by, box[1], box[2] + by, box[3]]


def close(actual: Tensor, expected: list[list[float]]) -> bool:
    wanted = torch.tensor(expected, dtype=torch.float64)
    return torch.allclose(actual.double(), wanted, rtol=1e-12, atol=1e-14)


# --------------------------------------------------------------------------------------------------
# Numbers worked by hand


def test_hand_worked_weighted() -> None:
    boxes, scores = boxes_and_scores()
    a, b, c = A_B_C
    # Above 0.3 A stands for B (1/3) and C (1/9) for itself. A: weights 0.9 and 0.8/3, B is 5 to
    # the right: (0.8/3 * 5) / (0.9 + 0.8/3) = (4/3) / (3.5/3) = 8/7.
    merged, kept_scores, keep = weighted_nms(boxes, scores, 0.3)
    assert keep.tolist() == [0, 2] and torch.equal(kept_scores, scores[keep])
    assert close(merged, [moved(a, 8 / 7), c])
    # Above 0.1 A stands for all: (0.8/3 * 5 + 0.7/9 * 8) / (0.9 + 0.8/3 + 0.7/9); times 90 it is
    # (120 + 56) / (81 + 24 + 7) = 176/112 = 11/7.
    merged, _, keep = weighted_nms(boxes, scores, 0.1)
    assert keep.tolist() == [0] and close(merged, [moved(a, 11 / 7)])
    # With max_output the cluster of A is what it was.
    merged, _, keep = weighted_nms(boxes, scores, 0.1, max_output=1)
    assert keep.tolist() == [0] and close(merged, [moved(a, 11 / 7)])
    merged, _, keep = weighted_nms(boxes, scores, 0.3, max_output=1)
    assert keep.tolist() == [0] and close(merged, [moved(a, 8 / 7)])
    # B belongs to A, which is the first to suppress it, and not to C (7/13).
    ranked = scores[[0, 2, 1]]  # A, C, B
    merged, _, keep = weighted_nms(boxes, ranked, 0.3)
    assert keep.tolist() == [0, 2]
    assert close(merged, [moved(a, 0.7 / 3 * 5 / (0.9 + 0.7 / 3)), c])
    # Classes: A and B do not meet.
    merged, _, keep = weighted_nms(boxes, scores, 0.1, idxs=torch.tensor([3, 4, 3]))
    assert keep.tolist() == [0, 1]
    assert close(merged, [moved(a, 0.7 / 9 * 8 / (0.9 + 0.7 / 9)), b])
    # DIoU: B (10/39) is not above 0.3 and stands for C, with 7/13 - 9/269.
    d = 7 / 13 - 9 / 269
    merged, _, keep = weighted_nms(boxes, scores, 0.3, criterion="diou")
    assert keep.tolist() == [0, 1]
    assert close(merged, [a, moved(b, 0.7 * d * 3 / (0.8 + 0.7 * d))])


def test_hand_worked_weighted_padded() -> None:
    boxes, scores = boxes_and_scores()
    a, b, c = A_B_C
    many = torch.stack([boxes, boxes])
    values = torch.stack([scores, scores.new_tensor([NAN, 0.8, 0.4])])
    merged, kept_scores, keep, count = weighted_nms_padded(many, values, 0.3, 3)
    assert keep.tolist() == [[0, 2, -1], [1, -1, -1]] and count.tolist() == [2, 1]
    assert kept_scores.tolist() == [[0.9, 0.7, 0], [0.8, 0, 0]]
    # The second image: B takes C, 0.4 * 7/13 against 0.8: 3 * (2.8/13) / (13.2/13) = 8.4/13.2.
    none = [0.0] * 4
    assert close(merged[0], [moved(a, 8 / 7), c, none])
    assert close(merged[1], [moved(b, 8.4 / 13.2), none, none])


def test_hand_worked_softer() -> None:
    boxes, scores = boxes_and_scores()
    ones = torch.ones(3, 4, dtype=torch.float64)
    # Hard above 0.3 keeps A and C. With sigma_t 0.5 B votes on A with exp(-(4/9) / 0.5) = 0.411112
    # and C with exp(-(64/81) / 0.5) = 0.205924: (5 * 0.411112 + 8 * 0.205924) / 1.617037.
    # On C: B with exp(-(36/169) / 0.5) = 0.653093 and A with 0.205924.
    on_a = (5 * 0.41111229050718745 + 8 * 0.20592424643419874) / (
        1 + 0.41111229050718745 + 0.20592424643419874
    )
    on_c = -(3 * 0.6530931549698421 + 8 * 0.20592424643419874) / (
        1 + 0.6530931549698421 + 0.20592424643419874
    )
    voted, new_scores, keep = softer_nms(boxes, scores, ones, 0.3, sigma_t=0.5)
    assert keep.tolist() == [0, 2] and torch.equal(new_scores, scores[keep])
    a, _, c = A_B_C
    assert close(voted, [moved(a, on_a), moved(c, on_c)])
    # Linear soft-NMS selects A, C, B; the vote on A and C is the same.
    voted, new_scores, keep = softer_nms(boxes, scores, ones, 0.3, sigma_t=0.5, method="linear")
    assert keep.tolist() == [0, 2, 1]
    assert new_scores.tolist() == pytest.approx([0.9, 0.7, 0.8 * 2 / 3 * 6 / 13])
    assert close(voted[:2], [moved(a, on_a), moved(c, on_c)])
    # Variances divide the votes, coordinate by coordinate. On A's x1: 1/2, B 0.411112 / 4.
    variances = torch.tensor(
        [[2.0, 1, 1, 1], [4, INF, 1, 0], [-1, NAN, INF, 1]], dtype=torch.float64
    )
    voted, _, keep = softer_nms(boxes, scores, variances, 0.3, sigma_t=0.5, max_output=1)
    w = 0.41111229050718745
    assert close(voted, [[5 * (w / 4) / (0.5 + w / 4), 0, 10 + 5 * w / (1 + w), 10]])
    # Where nobody votes the coordinate stays.
    nobody = torch.zeros(3, 4, dtype=torch.float64)
    voted, _, keep = softer_nms(boxes, scores, nobody, 0.3)
    assert torch.equal(voted, boxes[keep])
    # Classes: B is another.
    voted, _, keep = softer_nms(boxes, scores, ones, 0.3, sigma_t=0.5, idxs=torch.tensor([0, 1, 0]))
    assert keep.tolist() == [0, 1, 2]
    shift = 8 * 0.20592424643419874 / 1.20592424643419874
    assert close(voted, [moved(a, shift), A_B_C[1], moved(c, -shift)])


def test_hand_worked_cluster() -> None:
    boxes, scores = boxes_and_scores()
    a, _, c = A_B_C
    kept_boxes, kept_scores, keep = cluster_nms(boxes, scores, 0.3)
    assert keep.tolist() == [0, 2]
    assert torch.equal(kept_boxes, boxes[keep]) and torch.equal(kept_scores, scores[keep])
    # Penalty by the kept A and C: B 0.8 exp(-(1/9) / 0.2), C 0.7 exp(-(1/81) / 0.2), since only
    # kept boxes of a better score count.
    penalty: dict[str, Any] = {"mode": "score_penalty"}
    kept_boxes, new_scores, keep = cluster_nms(boxes, scores, 0.3, **penalty)
    assert keep.tolist() == [0, 2, 1] and torch.equal(kept_boxes, boxes[keep])
    assert new_scores.tolist() == pytest.approx([0.9, 0.6580967388064309, 0.4590027365899463])
    assert cluster_nms(boxes, scores, 0.3, max_output=2, **penalty)[2].tolist() == [0, 2]
    assert cluster_nms(boxes, scores, 0.3, min_score=0.5, **penalty)[2].tolist() == [0, 2]
    # All three are kept above 0.6: C is lowered by A and B.
    new_scores = cluster_nms(boxes, scores, 0.6, sigma=0.5, **penalty)[1]
    assert new_scores.tolist() == pytest.approx(
        [0.9, 0.8 * math.exp(-2 / 9), 0.7 * math.exp(-2 / 81 - 98 / 169)]
    )
    # The limit cuts the result and not the boxes that lower it.
    cut = cluster_nms(boxes, scores, 0.6, sigma=0.5, max_output=1, **penalty)
    assert cut[1].tolist() == [0.9]
    idxs = torch.tensor([0, 1, 1])
    new_scores = cluster_nms(boxes, scores, 0.6, sigma=0.5, idxs=idxs, **penalty)[1]
    assert new_scores.tolist() == pytest.approx([0.9, 0.8, 0.7 * math.exp(-98 / 169)])
    # Weighted, ranked A, C, B: both A and C take B. A: 0.7/3 against 0.9. C: 0.7 * 7/13 against
    # 0.8, B being 3 to the left: (4.9/13 * 3) / (15.3/13) = 49/51.
    ranked = scores[[0, 2, 1]]
    merged, kept_scores, keep = cluster_nms(boxes, ranked, 0.3, mode="weighted")
    assert keep.tolist() == [0, 2] and torch.equal(kept_scores, ranked[keep])
    assert close(merged, [moved(a, 0.7 / 3 * 5 / (0.9 + 0.7 / 3)), moved(c, -49 / 51)])
    # Ranked A, B, C: B is before C, which takes nobody.
    merged, _, keep = cluster_nms(boxes, scores, 0.3, mode="weighted")
    assert keep.tolist() == [0, 2] and close(merged, [moved(a, 8 / 7), c])
    merged, _, keep = cluster_nms(boxes, scores, 0.3, mode="weighted", max_output=1)
    assert keep.tolist() == [0] and close(merged, [moved(a, 8 / 7)])


def test_weights_that_sum_to_nothing_leave_the_box() -> None:
    boxes, _ = boxes_and_scores()
    for scores in ([0.0, 0, 0], [-1.0, -2, -3], [0.0, -0.0, -1]):
        values = torch.tensor(scores, dtype=torch.float64)
        for merged, _, keep in (
            weighted_nms(boxes, values, 0.1),
            cluster_nms(boxes, values, 0.1, mode="weighted"),
        ):
            assert torch.equal(merged, boxes[keep])
    # A negative score pushes away while the sum is positive: -0.3/3 against 0.9.
    values = torch.tensor([0.9, -0.3, NAN], dtype=torch.float64)
    merged, _, _ = weighted_nms(boxes, values, 0.1)
    assert close(merged, [moved(A_B_C[0], -0.1 * 5 / 0.8)])


def test_odd_boxes_stay_as_they_are() -> None:
    boxes = torch.tensor([[0.0, 0, INF, 9], [0, 0, NAN, 9], [5, 5, 5, 9], [9, 9, 5, 5]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    ones = torch.ones(4, 4)
    for merged, _, keep in (
        weighted_nms(boxes, scores, 0.0),
        softer_nms(boxes, scores, ones, 0.0),
        cluster_nms(boxes, scores, 0.0, mode="weighted"),
        cluster_nms(boxes, scores, 0.0, mode="score_penalty", sigma=1e-300),
    ):
        assert keep.tolist() == [0, 1, 2, 3]
        assert torch.equal(merged.nan_to_num(-7), boxes.nan_to_num(-7))


def test_half_results_are_rounded_once() -> None:
    boxes, scores = spread(30, 3, side=60), random_scores(30)
    for dtype in (torch.float16, torch.bfloat16):
        b, s, v = boxes.to(dtype), scores.to(dtype), torch.full_like(boxes, 0.5, dtype=dtype)
        for narrow, wide in (
            (weighted_nms(b, s, 0.3), weighted_nms(b.float(), s.float(), 0.3)),
            (softer_nms(b, s, v, 0.3), softer_nms(b.float(), s.float(), v.float(), 0.3)),
        ):
            assert torch.equal(narrow[0], wide[0].to(dtype)) and torch.equal(narrow[2], wide[2])
            assert narrow[1].dtype == dtype


# --------------------------------------------------------------------------------------------------
# Plain loops


def pair(b: list[list[float]], i: int, j: int) -> float:
    width = min(b[i][2], b[j][2]) - max(b[i][0], b[j][0])
    height = min(b[i][3], b[j][3]) - max(b[i][1], b[j][1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(b[k][2] - b[k][0]) * (b[k][3] - b[k][1]) for k in (i, j)]
    return width * height / (sum(areas) - width * height)


def mean(b: list[list[float]], weights: dict[int, float]) -> list[float]:
    total = sum(weights.values())
    return [sum(w * b[j][c] for j, w in weights.items()) / total for c in range(4)]


@st.composite
def scenes(draw: st.DrawFn, most: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    """Crowded boxes, positive scores of which some may be equal, classes."""
    seed, count = draw(st.integers(0, 2**31)), draw(st.integers(0, most))
    boxes = whole_boxes(count, seed) if draw(st.booleans()) else spread(count, seed, side=100)
    scores = random_scores(count, seed, draw(st.sampled_from([None, 6]))) + 0.05
    return boxes, scores, classes(count, 2, seed)


@settings(max_examples=40)
@given(scenes(), st.sampled_from([0.0, 0.31, 0.6]))
def test_equals_plain_loops(scene: tuple[Tensor, ...], threshold: float) -> None:
    boxes, scores, idxs = scene
    b, s, c = boxes.tolist(), scores.tolist(), idxs.tolist()
    count = len(b)
    rank = sorted(range(count), key=lambda i: (-s[i], i))

    def same(i: int, j: int) -> float:
        return pair(b, i, j) if c[i] == c[j] else 0.0

    owner: dict[int, int] = {}
    kept: list[int] = []
    for i in rank:
        by = [k for k in kept if same(k, i) > threshold]
        owner[i] = by[0] if by else i
        if not by:
            kept.append(i)

    def check(result: tuple[Tensor, ...], expected: list[list[float]]) -> None:
        assert result[2].tolist() == kept
        wanted = torch.tensor(expected, dtype=torch.float64).reshape(-1, 4)
        assert torch.allclose(result[0], wanted, rtol=1e-12, atol=1e-12)

    own = {k: s[k] for k in kept}
    clusters = [{j: s[j] * same(k, j) for j in rank if owner[j] == k} | {k: own[k]} for k in kept]
    check(weighted_nms(boxes, scores, threshold, idxs=idxs), [mean(b, w) for w in clusters])
    shared = [
        {j: s[j] * same(k, j) for j in rank[rank.index(k) :] if same(k, j) > threshold}
        | {k: own[k]}
        for k in kept
    ]
    check(
        cluster_nms(boxes, scores, threshold, mode="weighted", idxs=idxs),
        [mean(b, w) for w in shared],
    )
    variances = spread(count, 8) / 100
    v = variances.tolist()
    voted = []
    for k in kept:
        near = [j for j in range(count) if same(k, j) > 0]
        row = []
        for axis in range(4):
            w = {j: math.exp(-((1 - same(k, j)) ** 2) / 0.1) / v[j][axis] for j in near}
            row.append(mean(b, w)[axis])
        voted.append(row)
    check(softer_nms(boxes, scores, variances, threshold, sigma_t=0.1, idxs=idxs), voted)
    penalised = []
    for place, j in enumerate(rank):
        better = [k for k in kept if k in rank[:place]]
        penalised.append((s[j] * math.exp(-sum(same(k, j) ** 2 for k in better) / 0.2), j))
    expected = sorted((-value, j) for value, j in penalised if value >= 0.03)
    moved_boxes, new_scores, keep = cluster_nms(
        boxes, scores, threshold, mode="score_penalty", min_score=0.03, idxs=idxs
    )
    assert sorted(keep.tolist()) == sorted(j for _, j in expected)
    assert new_scores.tolist() == pytest.approx([-value for value, _ in expected], rel=1e-12)
    assert torch.equal(moved_boxes, boxes[keep])


# --------------------------------------------------------------------------------------------------
# Properties


@given(
    st.integers(0, 2**31),
    st.integers(0, 60),
    st.sampled_from([-0.2, 0.0, 0.3, 0.5, 0.9]),
    st.sampled_from(CRITERIA),
    st.sampled_from(["spread", "whole", "crowd"]),
)
def test_cluster_fixpoint_is_greedy(
    seed: int, count: int, threshold: float, criterion: str, kind: str
) -> None:
    make = {
        "spread": lambda: spread(count, seed, side=100),
        "whole": lambda: whole_boxes(count, seed),
        "crowd": lambda: crowd(count, 3, seed),
    }[kind]
    boxes, scores = make().float(), random_scores(count, seed, 20).float()
    if count > 4:
        scores[2], boxes[3, 1] = NAN, NAN
    keep = cluster_nms(boxes, scores, threshold, criterion=criterion)[2]
    assert torch.equal(keep, nms(boxes, scores, threshold, criterion=criterion))
    idxs = classes(count, 3, seed)
    keep = cluster_nms(boxes, scores, threshold, idxs=idxs, max_output=7, criterion=criterion)[2]
    assert torch.equal(
        keep, batched_nms(boxes, scores, idxs, threshold, max_output=7, criterion=criterion)
    )


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


def variances_of(boxes: Tensor) -> Tensor:
    return (spread(len(boxes), 5) / 50).to(boxes.dtype)


@settings(max_examples=40)
@given(scenes(), st.sampled_from(CRITERIA))
def test_selections_are_those_of_their_base(scene: tuple[Tensor, ...], criterion: str) -> None:
    boxes, scores, idxs = scene
    kept = batched_nms(boxes, scores, idxs, 0.317, criterion=criterion)
    merged, kept_scores, keep = weighted_nms(boxes, scores, 0.317, idxs=idxs, criterion=criterion)
    assert torch.equal(keep, kept) and torch.equal(kept_scores, scores[kept])
    groups = nms_match(boxes, scores, 0.317, idxs=idxs, criterion=criterion)
    for group, box in zip(groups, merged, strict=True):  # within the bounds of the cluster
        assert bool((box >= boxes[group].min(0).values - 1e-9).all())
        assert bool((box <= boxes[group].max(0).values + 1e-9).all())
    variances = variances_of(boxes)
    for method in ("linear", "gaussian"):
        expected = soft_nms(
            boxes, scores, method=method, iou_threshold=0.317, idxs=idxs, criterion=criterion
        )
        found = softer_nms(
            boxes, scores, variances, 0.317, method=method, idxs=idxs, criterion=criterion
        )
        assert torch.equal(found[2], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_one_box_and_distant_boxes_are_unchanged(criterion: str) -> None:
    boxes = spread(5, 4) + 1000 * torch.arange(5.0)[:, None]
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    for rows in (boxes[:1], boxes):
        for function in variants(criterion):
            merged, values, keep = function(rows, scores[: len(rows)], variances_of(rows))
            assert keep.tolist() == list(range(len(rows)))
            assert torch.equal(merged, rows) and torch.equal(values, scores[: len(rows)])


@settings(max_examples=40)
@given(scenes(), st.sampled_from(CRITERIA))
def test_permuting_boxes_permutes_the_result(scene: tuple[Tensor, ...], criterion: str) -> None:
    boxes, _, idxs = scene
    generator = torch.Generator().manual_seed(len(boxes))
    scores = torch.rand(len(boxes), generator=generator, dtype=torch.float64)
    order = torch.randperm(len(boxes), generator=generator)
    variances = variances_of(boxes)
    for function in variants(criterion):
        merged, values, keep = function(boxes, scores, variances, idxs=idxs)
        again = function(boxes[order], scores[order], variances[order], idxs=idxs[order])
        assert torch.equal(order[again[2]], keep)
        assert torch.allclose(again[1], values, rtol=1e-12)  # sums in another order
        assert torch.allclose(again[0], merged, rtol=1e-12)


@settings(max_examples=40)
@given(scenes(), st.sampled_from(CRITERIA))
def test_classes_never_interact(scene: tuple[Tensor, ...], criterion: str) -> None:
    boxes, scores, idxs = scene
    variances = variances_of(boxes)
    for function in variants(criterion):
        merged, values, keep = function(boxes, scores, variances, idxs=idxs)
        together = {i: (m, s) for i, m, s in zip(keep.tolist(), merged, values, strict=True)}

        def alone(r: Tensor, function: Any = function, together: Any = together) -> Tensor:
            part = function(boxes[r], scores[r], variances[r])
            for i, m, s in zip(r[part[2]].tolist(), part[0], part[1], strict=True):
                assert torch.allclose(m, together[i][0], rtol=1e-12)
                assert torch.allclose(s, together[i][1], rtol=1e-12)  # sums in another order
            return part[2]

        assert torch.equal(apart_by_class(alone, idxs), keep.sort().values)


@settings(max_examples=40)
@given(
    st.integers(0, 2**31), st.sampled_from(CRITERIA), st.sampled_from([(2, 0), (1, 64), (4, -8)])
)
def test_scaling_and_shifting_change_nothing_else(
    seed: int, criterion: str, change: tuple[float, float]
) -> None:
    boxes, scores = whole_boxes(30, seed).float(), random_scores(30, seed, 9).float() + 0.05
    variances = variances_of(boxes)
    for function in variants(criterion):
        merged, values, keep = function(boxes, scores, variances)
        again = function(boxes * change[0] + change[1], scores, variances)
        assert torch.equal(again[2], keep) and torch.equal(again[1], values)
        assert torch.allclose(again[0], merged * change[0] + change[1], rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------------------------------------------
# Gradients


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("beta", [0.6, 1.0, 2.0])
def test_gradients(criterion: str, beta: float) -> None:
    boxes = spread(8, 3, side=40).requires_grad_()
    scores = (random_scores(8) + 0.1).requires_grad_()
    variances = (spread(8, 5) / 50).requires_grad_()
    options: dict[str, Any] = {"criterion": criterion, "beta": beta}
    assert len(weighted_nms(boxes, scores, 0.05, **options)[2]) < 8
    for function in (
        lambda b, s, v: weighted_nms(b, s, 0.05, **options),
        lambda b, s, v: cluster_nms(b, s, 0.05, mode="weighted", **options),
        lambda b, s, v: softer_nms(b, s, v, 0.05, sigma_t=0.3, **options),
    ):
        leaves = (boxes, scores, variances)
        assert torch.autograd.gradcheck(lambda *t, f=function: f(*t)[:2], leaves)


def test_gradients_where_centres_coincide() -> None:
    # The distance of the centres, to a power below 1, has no derivative at 0: it counts as 0.
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 9, 9]], requires_grad=True)
    scores = torch.tensor([0.9, 0.8], requires_grad=True)
    merged, _, _ = weighted_nms(boxes, scores, 0.1, criterion="ciou", beta=0.5)
    for gradient in torch.autograd.grad(merged[0].sum(), (boxes, scores)):
        assert bool(gradient.isfinite().all())


def test_odd_boxes_have_finite_gradients() -> None:
    boxes = torch.tensor(
        [[0.0, 0, 10, 10], [5, 0, 15, 10], [3, 3, 3, 9], [NAN, 0, 9, 9], [0, 0, INF, 9]],
        requires_grad=True,
    )
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, NAN], requires_grad=True)
    variances = torch.tensor([[1.0, 0, NAN, INF]] * 5, requires_grad=True)
    for criterion in CRITERIA:
        for merged, values, _ in (
            weighted_nms(boxes, scores, 0.1, criterion=criterion),
            softer_nms(boxes, scores, variances, 0.1, criterion=criterion),
            cluster_nms(boxes, scores, 0.1, mode="weighted", criterion=criterion),
            cluster_nms(boxes, scores, 0.1, mode="score_penalty", criterion=criterion),
        ):
            total = merged.nan_to_num(0, 0, 0).sum() + values.sum()
            leaves = (boxes, scores, variances)
            for gradient in torch.autograd.grad(total, leaves, allow_unused=True):
                assert gradient is None or bool(gradient.isfinite().all())


def test_empty_results_stay_in_the_graph() -> None:
    boxes = torch.zeros(0, 4, requires_grad=True)
    scores = torch.zeros(0, requires_grad=True)
    for function in variants("iou"):
        merged, values, keep = function(boxes, scores, torch.zeros(0, 4))
        assert merged.shape == (0, 4) and values.shape == keep.shape == (0,)
        assert merged.requires_grad and values.requires_grad
    merged, values, keep, count = weighted_nms_padded(boxes[None][:0], scores[None][:0], 0.5, 3)
    assert merged.shape == (0, 3, 4) and values.shape == keep.shape == (0, 3)
    assert merged.requires_grad and values.requires_grad and count.shape == (0,)


def test_votes_are_by_plain_iou() -> None:
    boxes, scores = spread(20, 3, side=50), random_scores(20)
    ones = torch.ones_like(boxes)
    same = [softer_nms(boxes, scores, ones, 0.99, criterion=c)[0] for c in CRITERIA]
    assert all(torch.equal(voted, same[0]) for voted in same)
    sides = corners(boxes)
    iou = overlap(sides.at(slice(None), None), sides.at(None))
    iou.fill_diagonal_(1)
    w = torch.where(iou > 0, torch.exp(-((1 - iou) ** 2) / 0.02), 0.0)
    expected = (w @ boxes) / w.sum(1, keepdim=True)
    order = scores.sort(descending=True).indices
    assert torch.allclose(same[0], expected[order], rtol=1e-12)
