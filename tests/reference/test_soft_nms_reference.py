"""The soft_nms reference against numbers worked by hand and the paper's loop over Python lists."""

from __future__ import annotations

import math

import pytest
import torch
from boxes import A_B_C, INF, NAN, apart_by_class, classes, random_scores, spread, whole_boxes
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cvkernels.reference import batched_nms, nms, soft_nms, soft_nms_padded

pytestmark = pytest.mark.native  # no kernel runs here

CRITERIA = ["iou", "giou", "diou", "ciou"]
METHODS = ["linear", "gaussian", "hard"]


def test_hand_worked() -> None:
    boxes = torch.tensor(A_B_C, dtype=torch.float64)
    scores = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64)

    def run(**options: object) -> tuple[list[int], list[float]]:
        keep, new_scores = soft_nms(boxes, scores, **options)
        return keep.tolist(), new_scores.tolist()

    # Linear, above 0.3: A (0.9) leaves B 0.8 (1 - 1/3) = 0.53333 and C, 1/9, as it is. C (0.7)
    # leaves B 0.53333 (1 - 7/13) = 0.24615.
    kept, values = run()
    assert kept == [0, 2, 1] and values == pytest.approx([0.9, 0.7, 0.8 * 2 / 3 * 6 / 13])
    # Above 0.1 C loses 1/9: 0.62222, still before B.
    kept, values = run(iou_threshold=0.1)
    assert kept == [0, 2, 1]
    assert values == pytest.approx([0.9, 0.7 * 8 / 9, 0.8 * 2 / 3 * 6 / 13])
    # Above 1/2: B keeps 0.8 and leaves C 0.7 * 6/13.
    kept, values = run(iou_threshold=0.5)
    assert kept == [0, 1, 2] and values == pytest.approx([0.9, 0.8, 0.7 * 6 / 13])
    # Gaussian, sigma 0.5: B 0.8 exp(-2/9) = 0.64059, C 0.7 exp(-2/81) = 0.68293; then
    # B 0.64059 exp(-98/169) = 0.35871.
    kept, values = run(method="gaussian")
    assert kept == [0, 2, 1]
    assert values == pytest.approx([0.9, 0.6829276860453921, 0.3587076992562794])
    kept, values = run(method="gaussian", sigma=1.0)
    b, c = 0.8 * math.exp(-1 / 9), 0.7 * math.exp(-1 / 81)  # 0.71587, 0.69141
    assert kept == [0, 1, 2] and values == pytest.approx([0.9, b, c * math.exp(-49 / 169)])
    # Hard: A removes B.
    assert run(method="hard") == ([0, 2], [0.9, 0.7])
    # A box is dropped once its score is below min_score, and not at it.
    assert run(min_score=0.25)[0] == [0, 2]
    assert run(min_score=0.7, iou_threshold=1.0) == ([0, 1, 2], [0.9, 0.8, 0.7])
    assert run(min_score=0.75, iou_threshold=1.0) == ([0, 1], [0.9, 0.8])
    assert run(max_output=2) == ([0, 2], [0.9, 0.7])
    assert run(max_output=0) == ([], [])
    # Classes: only A and C meet, and they overlap too little.
    assert run(idxs=torch.tensor([1, 2, 1])) == ([0, 1, 2], [0.9, 0.8, 0.7])
    # DIoU of A and B is 10/39: nothing above 0.3; of B and C 7/13 - 9/269.
    kept, values = run(criterion="diou")
    assert kept == [0, 1, 2] and values == pytest.approx([0.9, 0.8, 0.7 * (6 / 13 + 9 / 269)])


def test_hand_worked_padded() -> None:
    boxes = torch.tensor([A_B_C, A_B_C], dtype=torch.float64)
    scores = torch.tensor([[0.9, 0.8, 0.7], [NAN, 0.8, 1e-4]], dtype=torch.float64)
    keep, new_scores, count = soft_nms_padded(boxes, scores, 4)
    assert keep.tolist() == [[0, 2, 1, -1], [1, -1, -1, -1]] and count.tolist() == [3, 1]
    assert new_scores.flatten().tolist() == pytest.approx(
        [0.9, 0.7, 0.8 * 2 / 3 * 6 / 13, 0, 0.8, 0, 0, 0]
    )
    keep, new_scores, count = soft_nms_padded(boxes, scores, 1, method="hard")
    assert keep.tolist() == [[0], [1]] and new_scores.tolist() == [[0.9], [0.8]]
    assert count.tolist() == [1, 1]
    keep, new_scores, count = soft_nms_padded(boxes[:0], scores[:0], 2)
    assert keep.shape == new_scores.shape == (0, 2) and count.shape == (0,)


def test_edges() -> None:
    boxes = torch.tensor([A_B_C[0]] * 4)
    # A copy has overlap 1: weight 0, and 0 is not >= 1e-3, but it is >= 0.
    scores = torch.tensor([0.5, 0.5, 0.9, NAN])
    assert soft_nms(boxes, scores)[0].tolist() == [2]
    keep, new_scores = soft_nms(boxes, scores, min_score=0)
    assert keep.tolist() == [2, 0, 1] and new_scores.tolist() == [*scores[[2]].tolist(), 0, 0]
    assert soft_nms(boxes, scores, min_score=0, method="hard")[0].tolist() == [2]
    # The other way round equal scores go to the lower index.
    assert soft_nms(boxes, scores[[0, 1, 3, 3]], iou_threshold=1.0)[0].tolist() == [0, 1]
    # An infinite score times 0 is no score; negative ones never count.
    scores = torch.tensor([INF, INF, -1.0, -INF])
    keep, new_scores = soft_nms(boxes, scores, min_score=0)
    assert keep.tolist() == [0] and new_scores.tolist() == [INF]
    # A box that overlaps nothing loses nothing, whatever the sigma.
    boxes[1, 0], boxes[2, 2] = NAN, INF
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    for sigma in (1e-300, 0.5, 1e300):
        keep, new_scores = soft_nms(boxes, scores, method="gaussian", sigma=sigma)
        assert keep.tolist()[:3] == [0, 1, 2]
        assert new_scores.tolist()[:3] == scores[:3].tolist()
    # Negative overlaps weigh nothing, above a negative threshold too.
    pair = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    keep, new_scores = soft_nms(pair, scores[:2], criterion="giou", iou_threshold=-0.9)
    assert keep.tolist() == [0, 1] and torch.equal(new_scores, scores[:2])


def test_rounding_of_threshold_and_min_score() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 3, 1]])
    scores = torch.tensor([0.9, 0.7])  # float32: 0.899999976, 0.699999988
    # inter 3, union 10, in float32 0.300000012.
    assert soft_nms(boxes, scores, iou_threshold=0.3)[1][1] < 0.6
    assert soft_nms(boxes, scores, iou_threshold=0.30001)[1][1] == scores[1]
    # Both are real numbers.
    assert soft_nms(boxes, scores, iou_threshold=1.0, min_score=0.7)[0].tolist() == [0]
    least = float(scores[1])
    assert soft_nms(boxes, scores, iou_threshold=1.0, min_score=least)[0].tolist() == [0, 1]
    assert soft_nms(boxes, scores, min_score=1e300)[0].tolist() == []


def test_half_scores_are_rounded_once() -> None:
    boxes = torch.tensor(A_B_C)
    scores = torch.tensor([0.9, 0.8, 0.7])
    for dtype in (torch.float16, torch.bfloat16):
        given_scores = scores.to(dtype)
        keep, new_scores = soft_nms(boxes, given_scores)
        wide, expected = soft_nms(boxes, given_scores.float())
        assert new_scores.dtype == dtype and torch.equal(keep, wide)
        assert torch.equal(new_scores, expected.to(dtype))


def test_gradient_is_the_decay() -> None:
    boxes = torch.tensor(A_B_C, dtype=torch.float64)
    scores = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64, requires_grad=True)
    _, new_scores = soft_nms(boxes, scores)
    (grad,) = torch.autograd.grad(new_scores, scores, torch.tensor([1.0, 2, 3]).double())
    assert grad.tolist() == pytest.approx([1, 3 * 2 / 3 * 6 / 13, 2])  # selected as 0, 2, 1
    zeros = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    _, new_scores = soft_nms(boxes, zeros, min_score=0)
    assert len(new_scores) == 3
    assert torch.autograd.grad(new_scores.sum(), zeros)[0].tolist() == [0, 0, 0]
    _, new_scores = soft_nms(boxes[:0], scores[:0])
    assert new_scores.requires_grad and new_scores.shape == (0,)


def by_lists(
    boxes: Tensor,
    scores: Tensor,
    method: str,
    threshold: float,
    sigma: float,
    min_score: float,
) -> tuple[list[int], list[float]]:
    """Figure 2 of the paper, one pair and one number at a time."""
    left = {i: s for i, s in enumerate(scores.tolist()) if s >= min_score}
    b = boxes.tolist()
    kept, values = [], []
    while left:
        m = min(left, key=lambda i: (-left[i], i))
        kept.append(m)
        values.append(left.pop(m))
        for i in list(left):
            width = min(b[m][2], b[i][2]) - max(b[m][0], b[i][0])
            height = min(b[m][3], b[i][3]) - max(b[m][1], b[i][1])
            if width <= 0 or height <= 0:
                continue
            inter = width * height
            areas = [(b[k][2] - b[k][0]) * (b[k][3] - b[k][1]) for k in (m, i)]
            iou = inter / (areas[0] + areas[1] - inter)
            if method == "gaussian":
                left[i] *= math.exp(-(iou**2) / sigma)
            elif iou > threshold:
                left[i] *= 1 - iou if method == "linear" else 0
                if method == "hard":
                    del left[i]
                    continue
            if not left[i] >= min_score:
                del left[i]
    return kept, values


@st.composite
def scenes(draw: st.DrawFn, most: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Crowded boxes, scores of which some may be equal, classes."""
    seed, count = draw(st.integers(0, 2**31)), draw(st.integers(0, most))
    boxes = whole_boxes(count, seed) if draw(st.booleans()) else spread(count, seed, side=100)
    scores = random_scores(count, seed, draw(st.sampled_from([None, 6])))
    return boxes, scores, classes(count, 3, seed)


@given(
    scenes(),
    st.sampled_from(METHODS),
    st.sampled_from([0.0, 0.3, 0.5]),
    st.sampled_from([0.1, 0.5]),
    st.sampled_from([0.0, 0.01, 0.4]),
)
def test_equals_the_paper(
    scene: tuple[Tensor, ...], method: str, threshold: float, sigma: float, min_score: float
) -> None:
    boxes, scores, _ = scene
    kept, values = by_lists(boxes, scores, method, threshold, sigma, min_score)
    keep, new_scores = soft_nms(
        boxes,
        scores,
        method=method,
        iou_threshold=threshold,
        sigma=sigma,
        min_score=min_score,
    )
    assert keep.tolist() == kept
    assert new_scores.tolist() == pytest.approx(values, rel=1e-12)


# --------------------------------------------------------------------------------------------------
# Properties


@given(scenes(), st.sampled_from(CRITERIA))
def test_threshold_one_keeps_all(scene: tuple[Tensor, ...], criterion: str) -> None:
    boxes, scores, idxs = scene
    keep, new_scores = soft_nms(
        boxes, scores, iou_threshold=1.0, min_score=0, idxs=idxs, criterion=criterion
    )
    order = scores.sort(descending=True, stable=True)
    assert torch.equal(keep, order.indices) and torch.equal(new_scores, order.values)


@given(scenes(), st.sampled_from(CRITERIA), st.sampled_from([-0.1, 0.0, 0.3]))
def test_hard_is_nms(scene: tuple[Tensor, ...], criterion: str, threshold: float) -> None:
    boxes, scores, idxs = scene
    options = {"method": "hard", "iou_threshold": threshold, "criterion": criterion}
    keep, new_scores = soft_nms(boxes, scores, min_score=0, **options)
    assert torch.equal(keep, nms(boxes, scores, threshold, criterion=criterion))
    assert torch.equal(new_scores, scores[keep])
    keep, _ = soft_nms(boxes, scores, min_score=0.4, idxs=idxs, **options)
    expected = batched_nms(boxes, scores, idxs, threshold, criterion=criterion)
    assert torch.equal(keep, expected[scores[expected] >= 0.4])


@given(scenes(), st.sampled_from(METHODS), st.sampled_from(CRITERIA))
def test_permuting_boxes_permutes_the_result(
    scene: tuple[Tensor, ...], method: str, criterion: str
) -> None:
    boxes, _, idxs = scene
    # No ties. Whole boxes may give equal current scores: those are compared as numbers.
    generator = torch.Generator().manual_seed(len(boxes))
    scores = torch.rand(len(boxes), generator=generator, dtype=torch.float64)
    order = torch.randperm(len(boxes), generator=generator)
    options = {"method": method, "criterion": criterion}
    keep, new_scores = soft_nms(boxes, scores, idxs=idxs, **options)
    again, permuted = soft_nms(boxes[order], scores[order], idxs=idxs[order], **options)
    assert torch.equal(order[again], keep) and torch.equal(permuted, new_scores)


@given(scenes(), st.sampled_from(METHODS), st.sampled_from(CRITERIA))
def test_classes_never_interact(scene: tuple[Tensor, ...], method: str, criterion: str) -> None:
    boxes, scores, idxs = scene
    options = {"method": method, "criterion": criterion, "min_score": 0.05}
    keep, new_scores = soft_nms(boxes, scores, idxs=idxs, **options)

    def alone(r: Tensor) -> Tensor:
        part, values = soft_nms(boxes[r], scores[r], **options)
        together = dict(zip(keep.tolist(), new_scores.tolist(), strict=True))
        assert values.tolist() == [together[i] for i in r[part].tolist()]
        return part

    assert torch.equal(apart_by_class(alone, idxs), keep.sort().values)
    ranks = list(zip((-new_scores).tolist(), keep.tolist(), strict=True))
    assert [s for s, _ in ranks] == sorted(s for s, _ in ranks)


@given(
    st.integers(0, 2**31),
    st.sampled_from(METHODS),
    st.sampled_from(CRITERIA),
    st.sampled_from([(2, 0), (1, 64), (4, -8)]),
)
def test_scaling_and_shifting_change_nothing(
    seed: int, method: str, criterion: str, change: tuple[float, float]
) -> None:
    boxes, scores = whole_boxes(40, seed).float(), random_scores(40, seed, 9).float()
    options = {"method": method, "criterion": criterion}
    keep, new_scores = soft_nms(boxes, scores, **options)
    again, moved = soft_nms(boxes * change[0] + change[1], scores, **options)
    assert torch.equal(keep, again) and torch.equal(new_scores, moved)


@given(scenes(), st.sampled_from(METHODS), st.integers(0, 50))
def test_max_output_is_a_prefix(scene: tuple[Tensor, ...], method: str, most: int) -> None:
    boxes, scores, idxs = scene
    keep, new_scores = soft_nms(boxes, scores, method=method, idxs=idxs)
    first, values = soft_nms(boxes, scores, method=method, idxs=idxs, max_output=most)
    assert torch.equal(first, keep[:most]) and torch.equal(values, new_scores[:most])
    keep, new_scores, count = soft_nms_padded(
        boxes[None], scores[None], most, method=method, idxs=idxs[None]
    )
    assert keep[0].tolist() == first.tolist() + [-1] * (most - len(first))
    assert new_scores[0].tolist() == values.tolist() + [0] * (most - len(first))
    assert count.tolist() == [len(first)]
