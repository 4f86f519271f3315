"""The rotated reference against hand-worked numbers, polygon clipping, counting and plain IoU."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cvkernels.reference import box_iou_rotated, nms, nms_rotated

pytestmark = pytest.mark.native  # no kernel runs here

NAN, INF = float("nan"), float("inf")
PI = math.pi


def iou(a: list[float], b: list[float], **options: object) -> float:
    boxes = torch.tensor([a, b], dtype=torch.float64)
    return box_iou_rotated(boxes[:1], boxes[1:], **options).item()  # type: ignore[arg-type]


def test_a_square_turned_by_45_degrees() -> None:
    # The common part is a regular octagon: the unit square without four corners, each a right
    # triangle of height (sqrt 2 - 1) / 2 over its hypotenuse, so of that height squared.
    area = 1 - 4 * ((math.sqrt(2) - 1) / 2) ** 2
    assert math.isclose(area, 2 * (math.sqrt(2) - 1))
    square, turned = [0, 0, 1, 1, 0], [0, 0, 1, 1, PI / 4]
    assert math.isclose(iou(square, turned), area / (2 - area), rel_tol=1e-14)
    assert math.isclose(iou(square, turned, mode="iof"), area, rel_tol=1e-14)
    # 10 times as large and far away
    assert math.isclose(iou([500, -300, 10, 10, 1], [500, -300, 10, 10, 1 + PI / 4]), 2**-0.5)


def test_a_cross() -> None:
    # 6 x 2 and the same upright: common 2 x 2, union 12 + 12 - 4.
    assert math.isclose(iou([1, 1, 6, 2, 0], [1, 1, 6, 2, PI / 2]), 4 / 20)
    assert math.isclose(iou([1, 1, 6, 2, 0.3], [1, 1, 2, 6, 0.3]), 4 / 20)
    assert math.isclose(iou([1, 1, 6, 2, 0.3], [1, 1, 2, 6, 0.3], mode="iof"), 4 / 12)


def test_a_corner_cut_off() -> None:
    # A unit square turned by 45 degrees whose left corner reaches 1/4 into the square [0, 2]^2
    # through the middle of its right side: a triangle of height 1/4 over 1/2.
    x = 2 - 0.25 + math.sqrt(0.5)
    triangle = 0.25 * 0.5 / 2
    assert math.isclose(iou([1, 1, 2, 2, 0], [x, 1, 1, 1, PI / 4], mode="iof"), triangle / 4)
    assert math.isclose(iou([1, 1, 2, 2, 0], [x, 1, 1, 1, PI / 4]), triangle / (5 - triangle))


def test_one_rectangle_has_many_names() -> None:
    box = [3, -2, 5, 1.5, 0.7]
    assert iou(box, box) == 1
    for turns in (-3, -2, -1, 1, 2, 5):
        w, h = (box[2], box[3]) if turns % 2 == 0 else (box[3], box[2])
        assert math.isclose(iou(box, [3, -2, w, h, 0.7 + turns * PI / 2]), 1, rel_tol=1e-14)


def test_clockwise_where_y_points_down() -> None:
    # A long box turned by +45 degrees reaches right and down, where y grows.
    bar, spot = [0, 0, 10, 1, PI / 4], [3, 3, 1, 1, 0]
    assert iou(spot, bar, mode="iof") > 0.8
    assert iou(spot, bar, mode="iof", clockwise=False) == 0
    assert iou([3, -3, 1, 1, 0], bar, mode="iof", clockwise=False) == iou(spot, bar, mode="iof")


def test_inside_and_apart() -> None:
    assert math.isclose(iou([0, 0, 10, 10, 0.2], [1, 1, 2, 3, 0.9]), 6 / 100)
    assert math.isclose(iou([1, 1, 2, 3, 0.9], [0, 0, 10, 10, 0.2], mode="iof"), 1)
    # Their upright bounds overlap, they do not: side by side across a diagonal.
    assert iou([0, 0, 10, 1, PI / 4], [1.5, -1.5, 10, 1, PI / 4]) == 0
    assert iou([0, 0, 2, 2, 0], [2, 0, 2, 2, 0]) == 0  # one side in common
    assert iou([0, 0, 2, 2, 0], [2, 2, 2, 2, 0]) == 0  # one corner
    assert iou([0, 0, 2, 2, 0.5], [2 * math.cos(0.5), 2 * math.sin(0.5), 2, 2, 0.5]) < 1e-15


@pytest.mark.parametrize("column", range(5))
@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e300])
def test_a_box_that_overlaps_nothing(column: int, value: float) -> None:
    good, bad = [1.0, 1, 2, 2, 0.1], [1.0, 1, 2, 2, 0.1]
    bad[column] = value
    if value == 1e300 and column in (2, 3):
        assert iou(bad, bad) == 1  # 2 x 1e300 is an area
        bad = [1.0, 1, value, value, 0.1]
    for mode in ("iou", "iof"):
        assert iou(good, bad, mode=mode) == iou(bad, good, mode=mode) == 0
        assert iou(bad, bad, mode=mode) == (1 if value == 1e300 and column < 2 else 0)


@pytest.mark.parametrize("size", [[0, 2], [2, 0], [-1, 2], [-1, -2], [1e-200, 1e-200]])
def test_a_box_without_extent(size: list[float]) -> None:
    flat = [1, 1, *size, 0.3]
    assert iou(flat, flat) == iou(flat, [1, 1, 2, 2, 0.3]) == iou([1, 1, 2, 2, 0.3], flat) == 0


def test_shapes_and_dtypes() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 2, 0.5]]).repeat(3, 1)
    assert box_iou_rotated(boxes, boxes[:2]).shape == (3, 2)
    assert box_iou_rotated(boxes, boxes, aligned=True).tolist() == [1, 1, 1]
    assert box_iou_rotated(boxes[:0], boxes).shape == (0, 3)
    assert box_iou_rotated(boxes.half(), boxes.double()).dtype == torch.float16


# ---- against other formulations


def corners(box: list[float]) -> list[tuple[float, float]]:
    x, y, w, h, angle = box
    c, s = math.cos(angle), math.sin(angle)
    halves = [(-w / 2, -h / 2), (w / 2, -h / 2), (w / 2, h / 2), (-w / 2, h / 2)]
    return [(x + c * u - s * v, y + s * u + c * v) for u, v in halves]


def by_clipping(a: list[float], b: list[float]) -> float:
    """IoU by cutting one polygon with the four sides of the other (Sutherland and Hodgman)."""
    polygon, knife = corners(a), corners(b)
    for (x1, y1), (x2, y2) in zip(knife, knife[1:] + knife[:1], strict=True):
        depth = [(x2 - x1) * (y - y1) - (y2 - y1) * (x - x1) for x, y in polygon]
        cut = []
        for i, p in enumerate(polygon):
            j = (i + 1) % len(polygon)
            q = polygon[j]
            if depth[i] >= 0:
                cut.append(p)
            if depth[i] * depth[j] < 0:
                t = depth[i] / (depth[i] - depth[j])
                cut.append((p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1])))
        polygon = cut
    twice = sum(
        p[0] * q[1] - q[0] * p[1] for p, q in zip(polygon, polygon[1:] + polygon[:1], strict=True)
    )
    return twice / 2 / (a[2] * a[3] + b[2] * b[3] - twice / 2)


def random_boxes(count: int, seed: int, *, sizes: float = 1.0) -> Tensor:
    """Boxes about the origin; sides within 10 ** sizes of one another, some angles alike."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 5, generator=generator, dtype=torch.float64)
    boxes[:, :2] = 3 * boxes[:, :2]
    boxes[:, 2:4] = 10 ** (sizes * (boxes[:, 2:4] - 0.5))
    boxes[:, 4] = 20 * boxes[:, 4] - 10
    boxes[::3, 4] = (boxes[::3, 4] / 4).round() * PI / 4
    return boxes


@given(st.integers(0, 2**31), st.sampled_from([0.3, 1.0, 2.0]))
def test_equals_polygon_clipping(seed: int, sizes: float) -> None:
    boxes = random_boxes(16, seed, sizes=sizes)
    rows = boxes.tolist()
    expected = torch.tensor([[by_clipping(a, b) for b in rows] for a in rows], dtype=torch.float64)
    torch.testing.assert_close(box_iou_rotated(boxes, boxes), expected, rtol=0, atol=1e-11)
    # In float32: the boxes are rounded, then everything else.
    single = boxes.float()
    expected = box_iou_rotated(single.double(), single.double())
    actual = box_iou_rotated(single, single).double()
    torch.testing.assert_close(actual, expected, rtol=0, atol=5e-6)


def test_equals_counting_points() -> None:
    """A million points: how many lie in both boxes, in either."""
    line = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000 * 8 - 4
    x, y = torch.meshgrid(line, line, indexing="ij")

    def inside(box: Tensor) -> Tensor:
        dx, dy = x - box[0], y - box[1]
        u = dx * box[4].cos() + dy * box[4].sin()
        v = dy * box[4].cos() - dx * box[4].sin()
        return (u.abs() < box[2] / 2) & (v.abs() < box[3] / 2)

    boxes = random_boxes(12, 5) * torch.tensor([1.0, 1, 1, 1, 1]) - torch.tensor(
        [1.5, 1.5, 0, 0, 0]
    )
    for a, b in itertools.pairwise(boxes):
        in_a, in_b = inside(a), inside(b)
        counted = (in_a & in_b).sum() / (in_a | in_b).sum()
        assert abs(iou(a.tolist(), b.tolist()) - counted) < 5e-3


@given(st.integers(0, 2**31))
def test_at_angle_0_it_is_the_iou_of_upright_boxes(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 20, (30, 2), generator=generator).double()
    size = torch.randint(0, 9, (30, 2), generator=generator).double()
    upright = torch.cat([corner, corner + size], 1)
    rotated = torch.cat([corner + size / 2, size, torch.zeros(30, 1)], 1)
    low = torch.maximum(corner[:, None], corner[None])
    high = torch.minimum(upright[:, None, 2:], upright[None, :, 2:])
    inter = (high - low).clamp(min=0).prod(2)
    union = size.prod(1)[:, None] + size.prod(1)[None] - inter
    expected = (inter / union).nan_to_num(nan=0.0)
    assert torch.equal(box_iou_rotated(rotated, rotated), expected)  # whole numbers: to the bit
    assert torch.equal(box_iou_rotated(rotated.float(), rotated.float()), expected.float())
    scores = torch.randint(0, 9, (30,), generator=generator).float()
    for threshold in (0.0, 0.3, 0.5):
        assert torch.equal(nms_rotated(rotated, scores, threshold), nms(upright, scores, threshold))


@given(st.integers(0, 2**31), st.booleans())
def test_motion_changes_nothing(seed: int, clockwise: bool) -> None:
    boxes = random_boxes(12, seed)
    before = box_iou_rotated(boxes, boxes, clockwise=clockwise)
    torch.testing.assert_close(before, before.T, rtol=0, atol=1e-12)
    turn = torch.tensor(0.83 if clockwise else -0.83, dtype=torch.float64)
    c, s = turn.cos(), turn.sin()
    x, y = boxes[:, 0], boxes[:, 1]
    moved = torch.stack([c * x - s * y + 7, s * x + c * y - 5, *boxes[:, 2:].unbind(1)], 1)
    moved[:, 4] += 0.83
    after = box_iou_rotated(moved, moved, clockwise=clockwise)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-12)
    mirrored = boxes * torch.tensor([1.0, -1, 1, 1, -1])
    after = box_iou_rotated(mirrored, mirrored, clockwise=clockwise)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-12)
    scaled = boxes * torch.tensor([1024.0, 1024, 1024, 1024, 1])
    assert torch.equal(box_iou_rotated(scaled, scaled, clockwise=clockwise), before)


# ---- greedy


def test_greedy_by_hand() -> None:
    # A bar; the same turned by 90 degrees about its centre (a cross, IoU 4 / 20); a bar turned a
    # little, which overlaps the first by much.
    boxes = torch.tensor([[0.0, 0, 6, 2, 0], [0, 0, 6, 2, PI / 2], [0, 0, 6, 2, 0.1]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert nms_rotated(boxes, scores, 0.5).tolist() == [0, 1]
    assert nms_rotated(boxes, scores, 0.19).tolist() == [0]
    assert nms_rotated(boxes, scores, 0.21).tolist() == [0, 1]
    assert nms_rotated(boxes, scores, 1.0).tolist() == [0, 1, 2]
    assert nms_rotated(boxes, scores.flip(0), 0.5).tolist() == [2, 1]
    assert nms_rotated(boxes, scores, 0.5, max_output=1).tolist() == [0]
    assert nms_rotated(boxes, scores, 0.5, idxs=torch.tensor([3, 3, 7])).tolist() == [0, 1, 2]
    assert nms_rotated(boxes, torch.tensor([NAN, 0.8, 0.7]), 0.5).tolist() == [1, 2]
    assert nms_rotated(boxes, torch.ones(3), 0.5).tolist() == [0, 1]
    assert nms_rotated(boxes, scores, -0.1).tolist() == [0]


def test_clockwise_decides() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 1, PI / 4], [3, 3, 3, 1, PI / 4]])
    scores = torch.tensor([0.9, 0.8])
    assert nms_rotated(boxes, scores, 0.2).tolist() == [0]
    assert nms_rotated(boxes, scores, 0.2, clockwise=False).tolist() == [0, 1]


@given(st.integers(0, 2**31), st.sampled_from([-0.5, 0.0, 0.2, 0.5]), st.booleans())
def test_equals_the_greedy_rule_on_the_matrix(seed: int, threshold: float, with_idxs: bool) -> None:
    boxes = random_boxes(40, seed)
    boxes[5, 2], boxes[6, 4] = 0, NAN
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 30, (40,), generator=generator).double()
    idxs = torch.randint(0, 3, (40,), generator=generator) if with_idxs else torch.zeros(40)
    over = box_iou_rotated(boxes, boxes) > threshold
    kept: list[int] = []
    for i in sorted(range(40), key=lambda i: (-float(scores[i]), i)):
        if not any(over[k, i] and idxs[k] == idxs[i] for k in kept):
            kept.append(i)
    actual = nms_rotated(boxes, scores, threshold, idxs=idxs if with_idxs else None)
    assert actual.tolist() == kept
