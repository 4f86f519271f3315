"""The nms reference against numbers worked by hand, its matrix formulation and torchvision."""

from __future__ import annotations

import pytest
import torch
from boxes import A_B_C, INF, NAN, apart_by_class, classes, random_scores, spread, whole_boxes
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cvkernels.reference import (
    adaptive_nms,
    batched_nms,
    diou_nms,
    diou_nms_padded,
    iou_guided_nms,
    nms,
    nms_match,
    nms_padded,
)
from cvkernels.reference._overlap import corners, overlap

pytestmark = pytest.mark.native  # no kernel runs here

CRITERIA = ["iou", "giou", "diou", "ciou"]


def test_hand_worked() -> None:
    # A = 10x10 at the origin. B = A moved right by 5: inter 50, union 150, IoU 1/3.
    # C = A moved right by 8: with A inter 20, union 180, IoU 1/9; with B inter 70, union 130, 7/13.
    boxes = torch.tensor(A_B_C)
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert nms(boxes, scores, 0.5).tolist() == [0, 1]
    assert nms(boxes, scores, 0.3).tolist() == [0, 2]
    assert nms(boxes, scores, 0.1).tolist() == [0]
    assert nms(boxes, scores, 0.6).tolist() == [0, 1, 2]
    assert nms(boxes, scores, 0.6, max_output=2).tolist() == [0, 1]
    assert nms(boxes, scores.flip(0), 0.5).tolist() == [2, 0]
    assert batched_nms(boxes, scores, torch.tensor([0, 1, 0]), 0.1).tolist() == [0, 1]
    keep, count = nms_padded(boxes[None], scores[None], 0.5, 3, idxs=torch.tensor([[1, 1, 0]]))
    assert keep.tolist() == [[0, 1, 2]] and count.tolist() == [3]


def test_suppression_is_strict_and_ties_go_to_the_lower_index() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1]])  # IoU exactly 1/2
    scores = torch.tensor([0.5, 0.5])
    assert nms(boxes, scores, 0.5).tolist() == [0, 1]
    assert nms(boxes, scores, 0.4999).tolist() == [0]


def test_nan() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [0, 0, NAN, 2]])
    assert nms(boxes, torch.tensor([NAN, 0.1, 0.2]), -1.0).tolist() == [2, 1]
    assert nms(boxes, torch.tensor([0.3, 0.1, NAN]), 0.5).tolist() == [0]


def test_half_boxes_are_compared_in_float32() -> None:
    # inter 3, union 10. Rounded to float16, 0.3 is 0.30004883 and to float32 0.300000012.
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 3, 1]])
    scores = torch.tensor([0.9, 0.8])
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert nms(boxes.to(dtype), scores, 0.30001).tolist() == [0, 1]
        assert nms(boxes.to(dtype), scores, 0.3).tolist() == [0]
    assert nms(boxes.double(), scores, 0.3).tolist() == [0, 1]


def by_matrix(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    """Fixed point of: kept = not (overlapped by a better kept box), over the whole IoU matrix."""
    order = sorted((-s, i) for i, s in enumerate(scores.tolist()) if s == s)
    index = torch.tensor([i for _, i in order], dtype=torch.int64)
    b = boxes[index]
    area = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    low = torch.maximum(b[:, None, :2], b[None, :, :2])
    high = torch.minimum(b[:, None, 2:], b[None, :, 2:])
    side = (high - low).clamp(min=0)
    inter = side[..., 0] * side[..., 1]
    over = (inter / (area[:, None] + area[None] - inter)).double() > threshold
    over = over.triu(1).double()  # row: the better box
    kept = torch.ones(len(b), dtype=torch.float64)
    for _ in range(len(b) + 1):
        kept = ((kept @ over) == 0).double()
    return index[kept.bool()].tolist()


@given(
    st.integers(0, 2**31),
    st.integers(0, 60),
    st.sampled_from([-0.1, 0.0, 0.2, 0.5, 1.0]),
    st.booleans(),
)
def test_equals_the_matrix_formulation(
    seed: int, count: int, threshold: float, whole: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    if whole:
        boxes = torch.randint(0, 7, (count, 4), generator=generator).float()
        scores = torch.randint(0, 9, (count,), generator=generator).float()
    else:
        corner = 50 * torch.rand(count, 2, generator=generator)
        boxes = torch.cat([corner, corner + 30 * torch.rand(count, 2, generator=generator)], 1)
        scores = torch.rand(count, generator=generator)
    if count > 4:
        scores[2] = NAN
        boxes[3, 1] = NAN
    assert nms(boxes, scores, threshold).tolist() == by_matrix(boxes, scores, threshold)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_torchvision(dtype: torch.dtype) -> None:
    ops = pytest.importorskip("torchvision.ops")
    generator = torch.Generator().manual_seed(0)
    for count, threshold in ((0, 0.5), (1, 0.5), (300, 0.3), (300, 0.7), (300, 0.0)):
        corner = 100 * torch.rand(count, 2, generator=generator, dtype=dtype)
        size = 40 * torch.rand(count, 2, generator=generator, dtype=dtype)
        boxes = torch.cat([corner, corner + size], 1)
        scores = torch.randint(0, 50, (count,), generator=generator).to(dtype)
        assert torch.equal(nms(boxes, scores, threshold), ops.nms(boxes, scores, threshold))


# --------------------------------------------------------------------------------------------------
# The criteria


def value(a: list[float], b: list[float], criterion: str, beta: float = 1.0) -> float:
    boxes = torch.tensor([a, b], dtype=torch.float64)
    sides = corners(boxes)
    forward = float(overlap(sides.at(0), sides.at(1), criterion, beta))
    assert forward == float(overlap(sides.at(1), sides.at(0), criterion, beta))  # symmetric
    return forward


def test_hand_worked_criteria() -> None:
    a, b, _ = A_B_C
    assert value(a, b, "iou") == pytest.approx(1 / 3, rel=1e-15)
    # Together they fill the box around them: E = U = 150.
    assert value(a, b, "giou") == pytest.approx(1 / 3, rel=1e-15)
    # Centres 5 apart, diagonal^2 15^2 + 10^2 = 325: 1/3 - 25/325 = 1/3 - 1/13 = 10/39.
    assert value(a, b, "diou") == pytest.approx(10 / 39, rel=1e-15)
    assert value(a, b, "diou", 2) == pytest.approx(1 / 3 - 1 / 169, rel=1e-15)
    assert value(a, b, "diou", 0.5) == pytest.approx(1 / 3 - 13**-0.5, rel=1e-15)
    assert value(a, b, "ciou") == value(a, b, "diou")  # squares both
    # d = A moved by 5 right and down: I = 25, U = 175, E = 15 * 15 = 225.
    d = [5.0, 5, 15, 15]
    assert value(a, d, "giou") == pytest.approx(1 / 7 - 50 / 225, rel=1e-15)
    # Centres 5 sqrt(2) apart, diagonal^2 450: 1/7 - 50/450 = 9/63 - 7/63.
    assert value(a, d, "diou") == pytest.approx(2 / 63, rel=1e-14)
    # f is 20 x 10: I = 100, U = 200; centres 5 apart, diagonal^2 500: DIoU = 0.5 - 0.05.
    # v = 4 / pi^2 (atan 1 - atan 2)^2 = 0.041956461; v^2 / (1 - 0.5 + v) = 0.003248129.
    f = [0.0, 0, 20, 10]
    assert value(a, f, "diou") == pytest.approx(0.45, rel=1e-15)
    assert value(a, f, "ciou") == pytest.approx(0.446751870701443, rel=1e-14)
    # Far apart: IoU 0, E = 110 * 10, U = 200.
    far = [100.0, 0, 110, 10]
    assert value(a, far, "giou") == pytest.approx(-900 / 1100, rel=1e-15)
    assert value(a, far, "diou") == pytest.approx(-10000 / (12100 + 100), rel=1e-15)
    for criterion in CRITERIA:
        assert value(a, a, criterion) == 1
        assert value(a, a, criterion, 0.3) == 1


@pytest.mark.parametrize("criterion", CRITERIA)
def test_criteria_equal_torchvision(criterion: str) -> None:
    ops = pytest.importorskip("torchvision.ops")
    theirs = {
        "iou": ops.box_iou,
        "giou": ops.generalized_box_iou,
        "diou": ops.distance_box_iou,
        "ciou": ops.complete_box_iou,
    }[criterion]
    boxes = torch.cat([spread(80, 1, side=200), whole_boxes(40, 2)])
    sides = corners(boxes)
    ours = overlap(sides.at(slice(None), None), sides.at(None), criterion)
    # Theirs adds 1e-7 to denominators.
    assert torch.allclose(ours, theirs(boxes, boxes), rtol=0, atol=2e-7)


@given(st.integers(0, 2**31), st.sampled_from(CRITERIA), st.sampled_from([0.3, 1.0, 2.0]))
def test_no_criterion_is_above_iou(seed: int, criterion: str, beta: float) -> None:
    boxes = torch.cat([spread(20, seed, side=100), whole_boxes(20, seed)]).float()
    boxes[0] = boxes[1][[2, 3, 0, 1]]  # inverted
    boxes[2, 0], boxes[3, 2], boxes[4, 2] = NAN, INF, boxes[4, 0]
    sides = corners(boxes)
    pairs = sides.at(slice(None), None), sides.at(None)
    iou, other = overlap(*pairs), overlap(*pairs, criterion, beta)
    assert not bool((other > iou).any())
    assert bool(other[iou.isnan()].isnan().all())
    inert = torch.tensor([0, 2, 3, 4])
    assert not bool((other[inert] > 0).any())


def test_hand_worked_selections_by_criteria() -> None:
    boxes = torch.tensor(A_B_C)
    scores = torch.tensor([0.9, 0.8, 0.7])
    # DIoU: A and B 10/39 = 0.256; B and C 7/13 - 9/(13^2 + 10^2) = 0.505.
    assert nms(boxes, scores, 0.3).tolist() == [0, 2]
    assert diou_nms(boxes, scores, 0.3).tolist() == [0, 1]
    assert nms(boxes, scores, 0.3, criterion="diou").tolist() == [0, 1]
    assert nms(boxes, scores, 0.3, criterion="giou").tolist() == [0, 2]  # no gap between them
    assert diou_nms(boxes, scores, 0.25).tolist() == [0, 2]
    assert diou_nms(boxes, scores, 0.25, idxs=torch.tensor([0, 1, 1])).tolist() == [0, 1]
    assert diou_nms(boxes, scores, 0.51).tolist() == [0, 1, 2]
    assert diou_nms(boxes, scores, 0.51, max_output=2).tolist() == [0, 1]
    # beta = 2: A and B 1/3 - 1/169 = 0.327; B and C 7/13 - (9/269)^2 = 0.537.
    assert diou_nms(boxes, scores, 0.3, beta=2).tolist() == [0, 2]
    assert diou_nms(boxes, scores, 0.33, beta=2).tolist() == [0, 1]
    keep, count = diou_nms_padded(boxes[None], scores[None], 0.3, 3)
    assert keep.tolist() == [[0, 1, -1]] and count.tolist() == [2]
    keep, count = nms_padded(boxes[None], scores[None], 0.3, 1, criterion="diou")
    assert keep.tolist() == [[0]] and count.tolist() == [1]
    # CIoU: a 10 x 10 and a 20 x 10 box have DIoU 0.45 and CIoU 0.44675, as worked above.
    pair = torch.tensor([[0.0, 0, 10, 10], [0, 0, 20, 10]])
    assert nms(pair, scores[:2], 0.449, criterion="diou").tolist() == [0]
    assert nms(pair, scores[:2], 0.449, criterion="ciou").tolist() == [0, 1]
    assert nms(pair, scores[:2], 0.446, criterion="ciou").tolist() == [0]
    idxs = torch.tensor([1, 2])
    assert batched_nms(pair, scores[:2], idxs, 0.446, criterion="ciou").tolist() == [0, 1]


# --------------------------------------------------------------------------------------------------
# adaptive_nms, nms_match, iou_guided_nms


def test_hand_worked_densities() -> None:
    boxes = torch.tensor(A_B_C)
    scores = torch.tensor([0.9, 0.8, 0.7])

    def kept(*densities: float, **options: object) -> list[int]:
        return adaptive_nms(boxes, scores, torch.tensor(densities).float(), 0.3, **options).tolist()

    assert kept(0, 0, 0) == [0, 2]  # as nms
    assert kept(0.4, 0, 0) == [0, 1]  # A is crowded: B, 1/3, stays, and suppresses C by 7/13
    assert kept(0.4, 0.6, 0) == [0, 1, 2]
    assert kept(0, 0.6, 0.6) == [0, 2]  # the density of the box that suppresses counts
    assert kept(NAN, NAN, NAN) == [0, 2]
    assert kept(-5, -INF, 0) == [0, 2]  # never below the threshold
    assert kept(INF, INF, 0) == [0, 1, 2]
    assert kept(0.4, 0.6, 0, max_output=2) == [0, 1]
    assert kept(0, 0, 0, idxs=torch.tensor([0, 1, 1])) == [0, 1]
    assert kept(0, 0, 0, criterion="diou") == [0, 1]


def test_a_density_is_rounded_as_the_boxes_are() -> None:
    # inter 3, union 10: float32 rounds 3 / 10 to 0.300000012, and the density too.
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 3, 1]])
    scores = torch.tensor([0.9, 0.8])
    for density, kept in ((0.3, [0, 1]), (0.29999, [0])):
        densities = torch.tensor([density, 0], dtype=torch.float64)
        assert adaptive_nms(boxes, scores, densities, 0.1).tolist() == kept
    assert adaptive_nms(boxes, scores, torch.zeros(2), 0.3).tolist() == [0]  # a real number


def test_hand_worked_groups() -> None:
    boxes = torch.tensor(A_B_C)
    scores = torch.tensor([0.9, 0.8, 0.7])

    def groups(threshold: float, scores: Tensor = scores, **options: object) -> list[list[int]]:
        return [group.tolist() for group in nms_match(boxes, scores, threshold, **options)]

    assert groups(0.3) == [[0, 1], [2]]
    assert groups(0.1) == [[0, 1, 2]]
    assert groups(0.5) == [[0], [1, 2]]
    assert groups(0.6) == [[0], [1], [2]]
    assert groups(0.3, scores.flip(0)) == [[2, 1], [0]]
    assert groups(0.1, torch.tensor([0.5, 0.5, 0.9])) == [[2, 0, 1]]
    assert groups(0.1, torch.tensor([0.5, 0.5, NAN])) == [[0, 1]]
    assert groups(0.1, idxs=torch.tensor([7, 8, 7])) == [[0, 2], [1]]
    assert groups(0.3, criterion="diou") == [[0], [1, 2]]
    assert nms_match(boxes[:0], scores[:0], 0.5) == []
    half = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1]])  # IoU exactly 1/2 suppresses
    assert [g.tolist() for g in nms_match(half, scores[:2], 0.5)] == [[0, 1]]


def test_hand_worked_localization() -> None:
    boxes = torch.tensor(A_B_C)
    scores = torch.tensor([0.2, 0.9, 0.5])
    localization = torch.tensor([0.9, 0.8, 0.7])
    # A is placed best, suppresses B (1/3) and takes its score.
    keep, new_scores = iou_guided_nms(boxes, scores, localization, 0.3)
    assert keep.tolist() == [0, 2] and new_scores.tolist() == scores[[1, 2]].tolist()
    keep, new_scores = iou_guided_nms(boxes, scores, localization, 0.3, max_output=1)
    assert keep.tolist() == [0] and new_scores.tolist() == scores[[1]].tolist()
    # With max_output = 1 C still belongs to A where A suppresses it.
    keep, new_scores = iou_guided_nms(boxes, scores.flip(0), localization, 0.1, max_output=1)
    assert keep.tolist() == [0] and new_scores.tolist() == scores[[1]].tolist()
    for which in (scores, localization):
        spoiled = which.clone()
        spoiled[1] = NAN  # B is nowhere
        pair = (spoiled, localization) if which is scores else (scores, spoiled)
        keep, new_scores = iou_guided_nms(boxes, *pair, 0.1)
        assert keep.tolist() == [0] and new_scores.tolist() == scores[[2]].tolist()
    keep, new_scores = iou_guided_nms(boxes, scores, localization, 0.1, idxs=classes(3, 1))
    assert keep.tolist() == [0] and new_scores.tolist() == scores[[1]].tolist()
    keep, _ = iou_guided_nms(boxes, scores, localization, 0.3, criterion="diou")
    assert keep.tolist() == [0, 1]
    leaf = scores.clone().requires_grad_()
    iou_guided_nms(boxes, leaf, localization, 0.3)[1].backward(torch.tensor([2.0, 3.0]))
    assert leaf.grad is not None and leaf.grad.tolist() == [0, 2, 3]


# --------------------------------------------------------------------------------------------------
# Properties


@st.composite
def scenes(draw: st.DrawFn, most: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    """Crowded boxes, scores of which some may be equal, classes."""
    seed, count = draw(st.integers(0, 2**31)), draw(st.integers(0, most))
    boxes = whole_boxes(count, seed) if draw(st.booleans()) else spread(count, seed, side=100)
    scores = random_scores(count, seed, draw(st.sampled_from([None, 6])))
    return boxes.float(), scores.float(), classes(count, 3, seed)


@given(scenes(), st.sampled_from(CRITERIA))
def test_groups_and_clusters_are_those_of_nms(scene: tuple[Tensor, ...], criterion: str) -> None:
    boxes, scores, idxs = scene
    kept = batched_nms(boxes, scores, idxs, 0.317, criterion=criterion)  # no overlap is 0.317
    groups = nms_match(boxes, scores, 0.317, idxs=idxs, criterion=criterion)
    assert [int(group[0]) for group in groups] == kept.tolist()
    everyone = torch.cat(groups) if groups else kept
    assert everyone.sort().values.tolist() == list(range(len(boxes)))
    order = [(-float(scores[i]), i) for i in range(len(boxes))]
    for group in groups:
        ranks = [order[i] for i in group.tolist()]
        assert ranks == sorted(ranks)
        assert bool((idxs[group] == idxs[group[0]]).all())
    # Ranked by the scores themselves the best score of a cluster is that of the kept box.
    keep, new_scores = iou_guided_nms(boxes, scores, scores, 0.317, idxs=idxs, criterion=criterion)
    assert torch.equal(keep, kept) and torch.equal(new_scores, scores[kept])
    # And in general the largest of a group.
    other = random_scores(len(boxes), 5).float()
    keep, new_scores = iou_guided_nms(boxes, other, scores, 0.317, idxs=idxs, criterion=criterion)
    assert new_scores.tolist() == [float(other[group].max()) for group in groups]


@given(scenes(), st.sampled_from(CRITERIA))
def test_classes_never_interact(scene: tuple[Tensor, ...], criterion: str) -> None:
    boxes, scores, idxs = scene
    density = random_scores(len(boxes), 9).float()

    def by_score(r: Tensor, **options: object) -> Tensor:
        return nms(boxes[r], scores[r], 0.3, criterion=criterion, **options)

    def adaptive(r: Tensor, **options: object) -> Tensor:
        return adaptive_nms(boxes[r], scores[r], density[r], 0.3, criterion=criterion, **options)

    def guided(r: Tensor, **options: object) -> Tensor:
        return iou_guided_nms(boxes[r], scores[r], density[r], 0.3, criterion=criterion, **options)[
            0
        ]

    every = torch.arange(len(boxes))
    together = batched_nms(boxes, scores, idxs, 0.3, criterion=criterion)
    assert torch.equal(apart_by_class(by_score, idxs), together.sort().values)
    for function in (adaptive, guided):
        together = function(every, idxs=idxs)
        assert torch.equal(apart_by_class(function, idxs), together.sort().values)


@given(scenes(), st.sampled_from(CRITERIA))
def test_permuting_boxes_permutes_the_result(scene: tuple[Tensor, ...], criterion: str) -> None:
    boxes, _, idxs = scene
    scores = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(3)).float()
    order = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(4))
    density = random_scores(len(boxes), 9).float()

    def run(r: Tensor) -> list[Tensor]:
        b, s, d, c = boxes[r], scores[r], density[r], idxs[r]
        return [
            r[batched_nms(b, s, c, 0.3, criterion=criterion)],
            r[adaptive_nms(b, s, d, 0.3, idxs=c, criterion=criterion)],
            r[iou_guided_nms(b, d, s, 0.3, idxs=c, criterion=criterion)[0]],
            *(r[group] for group in nms_match(b, s, 0.3, idxs=c, criterion=criterion)),
        ]

    for a, e in zip(run(order), run(torch.arange(len(boxes))), strict=True):
        assert torch.equal(a, e)


@given(
    st.integers(0, 2**31), st.sampled_from(CRITERIA), st.sampled_from([(2, 0), (1, 64), (4, -8)])
)
def test_scaling_and_shifting_change_nothing(
    seed: int, criterion: str, change: tuple[float, float]
) -> None:
    boxes, scores = whole_boxes(40, seed).float(), random_scores(40, seed, 9)
    moved = boxes * change[0] + change[1]
    density = random_scores(40, seed)
    for threshold in (-0.2, 0.0, 0.2, 0.5):
        assert torch.equal(
            nms(boxes, scores, threshold, criterion=criterion),
            nms(moved, scores, threshold, criterion=criterion),
        )
        assert torch.equal(
            adaptive_nms(boxes, scores, density, threshold, criterion=criterion),
            adaptive_nms(moved, scores, density, threshold, criterion=criterion),
        )
