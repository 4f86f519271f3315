"""The nms reference against numbers worked by hand, its matrix formulation and torchvision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cvkernels.reference import batched_nms, nms, nms_padded

pytestmark = pytest.mark.native  # no kernel runs here

NAN = float("nan")


def test_hand_worked() -> None:
    # A = 10x10 at the origin. B = A moved right by 5: inter 50, union 150, IoU 1/3.
    # C = A moved right by 8: with A inter 20, union 180, IoU 1/9; with B inter 70, union 130, 7/13.
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [8, 0, 18, 10]])
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
