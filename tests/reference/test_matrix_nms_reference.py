"""The matrix_nms references against numbers worked by hand and equations 4 and 5 pair by pair."""

from __future__ import annotations

import math

import pytest
import torch
from boxes import A_B_C, INF, NAN, apart_by_class, classes, random_scores, spread, whole_boxes
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cvkernels.reference import matrix_nms, matrix_nms_from_overlaps
from cvkernels.reference._overlap import corners, overlap

pytestmark = pytest.mark.native  # no kernel runs here

CRITERIA = ["iou", "giou", "diou", "ciou"]
KERNELS = ["linear", "gaussian"]


def all_overlaps(boxes: Tensor, criterion: str = "iou") -> Tensor:
    sides = corners(boxes)
    return overlap(sides.at(slice(None), None), sides.at(None), criterion)


def test_hand_worked() -> None:
    boxes = torch.tensor(A_B_C, dtype=torch.float64)
    scores = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64)

    def run(**options: object) -> tuple[list[int], list[float]]:
        keep, new_scores = matrix_nms(boxes, scores, **options)
        return keep.tolist(), new_scores.tolist()

    # Compensation: A 0, B 1/3 (by A). Linear decay of B: 2/3. Of C: min((1 - 1/9) / 1,
    # (1 - 7/13) / (1 - 1/3)) = min(8/9, 9/13) = 9/13.
    kept, values = run(kernel="linear")
    assert kept == [0, 1, 2] and values == pytest.approx([0.9, 0.8 * 2 / 3, 0.7 * 9 / 13])
    # Gaussian, sigma 0.5: B exp(-2/9); C exp(-2 max(1/81, 49/169 - 1/9)).
    kept, values = run()
    assert kept == [0, 1, 2]
    assert values == pytest.approx([0.9, 0.6405899223334465, 0.48951783696598966])
    # Ranked otherwise: C 0.9, A 0.8, B 0.7. A's compensation is 1/9.
    # A: 8/9. B: min((1 - 7/13) / 1, (1 - 1/3) / (1 - 1/9)) = min(6/13, 3/4).
    keep, new_scores = matrix_nms(boxes, scores[[1, 2, 0]], kernel="linear")
    assert keep.tolist() == [2, 0, 1]
    assert new_scores.tolist() == pytest.approx([0.9, 0.8 * 8 / 9, 0.7 * 6 / 13])
    # Results are filtered and ordered by their new scores.
    keep, new_scores = matrix_nms(boxes[[0, 0, 1]], scores.new_tensor([0.9, 0.8, 0.1]))
    # A copy of A: 0.8 exp(-2) = 0.108; B's decay by A: exp(-2/9); by the copy, which A covers: 1.
    assert keep.tolist() == [0, 1, 2]
    assert new_scores.tolist() == pytest.approx([0.9, 0.8 * math.exp(-2), 0.1 * math.exp(-2 / 9)])
    keep, _ = matrix_nms(boxes[[0, 0, 1]], scores.new_tensor([0.9, 0.8, 0.2]))
    assert keep.tolist() == [0, 2, 1]  # 0.2 exp(-2/9) = 0.160 passes the copy
    assert run(kernel="linear", min_score=0.5)[0] == [0, 1]
    assert run(kernel="linear", max_output=1)[0] == [0]
    assert run(max_output=0) == ([], [])
    kept, values = run(kernel="linear", idxs=torch.tensor([5, 6, 5]))
    assert kept == [0, 1, 2] and values == pytest.approx([0.9, 0.8, 0.7 * 8 / 9])
    # DIoU: A and B 10/39, A and C 1/9 - 64/424 < 0, B and C 7/13 - 9/269.
    kept, values = run(kernel="linear", criterion="diou")
    assert kept == [0, 1, 2]
    assert values == pytest.approx([0.9, 0.8 * 29 / 39, 0.7 * (6 / 13 + 9 / 269) / (29 / 39)])


def test_hand_worked_overlaps() -> None:
    # Ranked 1, 2, 0. Only [1, 2], [1, 0] and [2, 0] are read.
    overlaps = torch.full((3, 3), NAN, dtype=torch.float64)
    overlaps[1, 2], overlaps[1, 0], overlaps[2, 0] = 0.5, 0.2, 0.8
    scores = torch.tensor([0.3, 0.9, 0.6], dtype=torch.float64)
    # Of 2: 0.5. Of 0: min(0.8, (1 - 0.8) / (1 - 0.5)) = 0.4.
    keep, new_scores = matrix_nms_from_overlaps(overlaps, scores, kernel="linear")
    assert keep.tolist() == [1, 2, 0]
    assert new_scores.tolist() == pytest.approx([0.9, 0.6 * 0.5, 0.3 * 0.4])
    # SOLOv2's sigma = 2 is ours of 0.5. Of 2: exp(-0.25 / 0.5). Of 0: exp(-(0.64 - 0.25) / 0.5).
    keep, new_scores = matrix_nms_from_overlaps(overlaps, scores)
    assert keep.tolist() == [1, 2, 0]
    assert new_scores.tolist() == pytest.approx([0.9, 0.6 * math.exp(-0.5), 0.3 * math.exp(-0.78)])
    keep, new_scores = matrix_nms_from_overlaps(
        overlaps, scores, kernel="linear", idxs=torch.tensor([1, 2, 1]), min_score=0.13
    )
    assert keep.tolist() == [1, 2]  # 0.3 (1 - 0.8) is below
    assert new_scores.tolist() == [0.9, 0.6]


def test_edges() -> None:
    box = torch.tensor([[0.0, 0, 10, 10]])
    # Three copies: the second decays to 0 by the first; the third by the first, and the second,
    # whose compensation is 1, says nothing (0 / 0).
    scores = torch.tensor([0.9, 0.8, 0.7])
    keep, new_scores = matrix_nms(box.expand(3, 4), scores, kernel="linear", min_score=0)
    assert keep.tolist() == [0, 1, 2] and new_scores.tolist() == [scores[0].item(), 0, 0]
    keep, new_scores = matrix_nms(box.expand(3, 4), torch.tensor([0.9, NAN, -1]))
    assert keep.tolist() == [0]
    # Of equal scores the lower index is ranked before, and of equal new scores too.
    keep, new_scores = matrix_nms(box.expand(2, 4), torch.tensor([0.5, 0.5]), kernel="linear")
    assert keep.tolist() == [0]
    apart = torch.tensor([[0.0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 9, NAN]])
    keep, new_scores = matrix_nms(apart, torch.full((3,), 0.5))
    assert keep.tolist() == [0, 1, 2] and new_scores.tolist() == [0.5] * 3
    # Given overlaps may be anything: above 1 is as bad as 1, NaN and negative ones are none.
    for value, decay in ((20.0, 0.0), (INF, 0.0), (NAN, 1.0), (-3.0, 1.0), (-INF, 1.0)):
        for kernel in KERNELS:
            _, new_scores = matrix_nms_from_overlaps(
                torch.tensor([[0, value], [0, 0]]),
                torch.tensor([1.0, 1.0]),
                kernel=kernel,
                min_score=0,
            )
            assert new_scores.tolist() == [1, decay], (value, kernel)
    infinite = torch.full((3, 3), INF)
    keep, _ = matrix_nms_from_overlaps(infinite, scores)
    assert keep.tolist() == [0]
    # A sigma below any float32.
    keep, new_scores = matrix_nms(apart, torch.full((3,), 0.5), sigma=1e-300)
    assert keep.tolist() == [0, 1, 2] and new_scores.tolist() == [0.5] * 3
    assert matrix_nms(apart[:0], scores[:0])[0].shape == (0,)
    assert matrix_nms_from_overlaps(apart[:0, :0].reshape(0, 0), scores[:0])[0].shape == (0,)


def test_gradient_is_the_decay() -> None:
    boxes = torch.tensor(A_B_C, dtype=torch.float64)
    scores = torch.tensor([0.7, 0.8, 0.9], dtype=torch.float64, requires_grad=True)
    upstream = torch.tensor([1.0, 2, 3], dtype=torch.float64)
    for run in (
        lambda: matrix_nms(boxes, scores, kernel="linear"),
        lambda: matrix_nms_from_overlaps(all_overlaps(boxes), scores, kernel="linear"),
    ):
        keep, new_scores = run()
        # C, B, A: decay of B 6/13, of A min(8/9, (2/3) / (6/13) = 13/9) = 8/9.
        assert keep.tolist() == [2, 0, 1]
        assert new_scores.tolist() == pytest.approx([0.9, 0.7 * 8 / 9, 0.8 * 6 / 13])
        (grad,) = torch.autograd.grad(new_scores, scores, upstream)
        assert grad.tolist() == pytest.approx([2 * 8 / 9, 3 * 6 / 13, 1])


def by_pairs(
    overlaps: list[list[float]], scores: list[float], idxs: list[int], kernel: str, sigma: float
) -> list[float]:
    """New scores from overlaps, one pair and one number at a time."""
    rank = sorted(range(len(scores)), key=lambda i: (-scores[i], i))

    def between(i: int, j: int) -> float:
        return max(overlaps[i][j], 0) if idxs[i] == idxs[j] else 0

    def f(x: float) -> float:
        return 1 - x if kernel == "linear" else math.exp(-(x**2) / sigma)

    new = list(scores)
    for place, j in enumerate(rank):
        decay = 1.0
        for above, i in enumerate(rank[:place]):
            compensation = max((between(h, i) for h in rank[:above]), default=0)
            if f(compensation) > 0:
                decay = min(decay, f(between(i, j)) / f(compensation))
        new[j] = scores[j] * decay
    return new


@st.composite
def scenes(draw: st.DrawFn, most: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    """Crowded boxes, scores of which some may be equal, classes."""
    seed, count = draw(st.integers(0, 2**31)), draw(st.integers(0, most))
    boxes = whole_boxes(count, seed) if draw(st.booleans()) else spread(count, seed, side=100)
    scores = random_scores(count, seed, draw(st.sampled_from([None, 6])))
    return boxes, scores, classes(count, 2, seed)


@given(
    scenes(),
    st.sampled_from(KERNELS),
    st.sampled_from([0.1, 0.5]),
    st.sampled_from(CRITERIA),
    st.sampled_from([0.0, 0.3]),
)
def test_equals_the_equations(
    scene: tuple[Tensor, ...], kernel: str, sigma: float, criterion: str, min_score: float
) -> None:
    boxes, scores, idxs = scene
    overlaps = all_overlaps(boxes, criterion)
    new = by_pairs(overlaps.tolist(), scores.tolist(), idxs.tolist(), kernel, sigma)
    options = {"kernel": kernel, "sigma": sigma, "min_score": min_score, "idxs": idxs}
    keep, new_scores = matrix_nms(boxes, scores, criterion=criterion, **options)
    assert sorted(keep.tolist()) == [i for i, s in enumerate(new) if s >= min_score]
    assert new_scores.tolist() == pytest.approx([new[i] for i in keep.tolist()], rel=1e-12)
    ranks = [(-s, i) for s, i in zip(new_scores.tolist(), keep.tolist(), strict=True)]
    assert ranks == sorted(ranks)
    again, same = matrix_nms_from_overlaps(overlaps, scores, **options)
    assert torch.equal(again, keep) and torch.equal(same, new_scores)


# --------------------------------------------------------------------------------------------------
# Properties


@given(scenes(), st.sampled_from(KERNELS), st.sampled_from(CRITERIA))
def test_permuting_boxes_permutes_the_result(
    scene: tuple[Tensor, ...], kernel: str, criterion: str
) -> None:
    boxes, _, idxs = scene
    generator = torch.Generator().manual_seed(len(boxes))
    scores = torch.rand(len(boxes), generator=generator, dtype=torch.float64)
    order = torch.randperm(len(boxes), generator=generator)
    options = {"kernel": kernel, "criterion": criterion}
    keep, new_scores = matrix_nms(boxes, scores, idxs=idxs, **options)
    again, permuted = matrix_nms(boxes[order], scores[order], idxs=idxs[order], **options)
    assert torch.equal(permuted, new_scores)
    positive = new_scores > 0  # copies decay to 0 together, and order by index
    assert torch.equal(order[again][positive], keep[positive])


@given(scenes(), st.sampled_from(KERNELS), st.sampled_from(CRITERIA))
def test_classes_never_interact(scene: tuple[Tensor, ...], kernel: str, criterion: str) -> None:
    boxes, scores, idxs = scene
    options = {"kernel": kernel, "criterion": criterion}
    keep, new_scores = matrix_nms(boxes, scores, idxs=idxs, **options)

    def alone(r: Tensor) -> Tensor:
        part, values = matrix_nms(boxes[r], scores[r], **options)
        together = dict(zip(keep.tolist(), new_scores.tolist(), strict=True))
        assert values.tolist() == [together[i] for i in r[part].tolist()]
        return part

    assert torch.equal(apart_by_class(alone, idxs), keep.sort().values)


@given(
    st.integers(0, 2**31),
    st.sampled_from(KERNELS),
    st.sampled_from(CRITERIA),
    st.sampled_from([(2, 0), (1, 64), (4, -8)]),
)
def test_scaling_and_shifting_change_nothing(
    seed: int, kernel: str, criterion: str, change: tuple[float, float]
) -> None:
    boxes, scores = whole_boxes(40, seed).float(), random_scores(40, seed, 9).float()
    options = {"kernel": kernel, "criterion": criterion}
    keep, new_scores = matrix_nms(boxes, scores, **options)
    again, moved = matrix_nms(boxes * change[0] + change[1], scores, **options)
    assert torch.equal(keep, again) and torch.equal(new_scores, moved)
