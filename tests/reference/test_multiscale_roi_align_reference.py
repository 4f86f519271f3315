"""The references of multi-level RoI Align against numbers worked by hand and torchvision."""

from __future__ import annotations

import pytest
import torch
from harness import assert_close, assert_same
from roi_family import box, features, random_boxes
from torch import Tensor

from cvkernels import reference
from cvkernels.reference import multiscale_roi_align, roi_align, roi_levels

pytestmark = pytest.mark.native  # no kernel runs here

SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]


def square(*sides: float) -> Tensor:
    return torch.tensor([[0.0, 0.0, 0.0, side, side] for side in sides], dtype=torch.float64)


def test_levels_by_hand() -> None:
    # A side of 224 is level 4, index 2 of levels 2 to 5; each halving is one level less.
    assert roi_levels(square(224, 112, 56, 448, 10, 4000), SCALES).tolist() == [2, 1, 0, 3, 0, 3]
    # Just below a power of two it is the level before, beyond the 1e-6 of the rule.
    assert roi_levels(square(223.9, 111.9, 447.9), SCALES).tolist() == [1, 0, 2]
    # It is the area that counts: 56 x 224 is as large as 112 x 112.
    assert roi_levels(box((0, 0, 0, 56, 224), (0, 5, 5, 453, 33)), SCALES).tolist() == [1, 1]
    # Another canon: a side of 100 is level 3; index 1 of levels 2 to 4.
    canon = {"canonical_scale": 100, "canonical_level": 3}
    assert roi_levels(square(100, 50, 200, 800), SCALES[:3], **canon).tolist() == [1, 0, 2, 2]


def test_levels_of_odd_boxes() -> None:
    odd = box(
        (0, 5, 5, 5, 5),  # a point: the first level
        (0, 9, 9, 5, 5),  # two negative sides make an area
        (0, 9, 5, 5, 9),  # one does not
        (0, 0, 0, float("nan"), 5),
        (0, 0, 0, float("inf"), 5),
    )
    assert roi_levels(odd, SCALES).tolist() == [0, 0, -1, -1, 3]


def test_levels_that_scales_skip() -> None:
    # 1/4 and 1/16 are levels 2 and 4: level 3 is the second map, as in torchvision, and 4 is none.
    assert roi_levels(square(50, 150, 300), [1 / 4, 1 / 16]).tolist() == [0, 1, -1]


def test_a_list_of_boxes() -> None:
    lists = [square(100, 300)[:, 1:].float(), square(50)[:, 1:].float()]
    assert roi_levels(lists, SCALES).tolist() == [0, 2, 0]
    assert roi_levels([], SCALES).tolist() == []


def constant_maps(count: int) -> list[Tensor]:
    return [
        torch.full((1, 1, 64 >> i, 64 >> i), i + 1.0, dtype=torch.float64) for i in range(count)
    ]


def test_each_box_reads_its_level() -> None:
    boxes = square(50, 120, 250, 200)
    out = multiscale_roi_align(constant_maps(3), boxes, 1, SCALES[:3], 2)
    assert out.flatten().tolist() == [1, 2, 3, 2]
    levels = torch.tensor([2, 0, 1, 0])
    out = multiscale_roi_align(constant_maps(3), boxes, 1, SCALES[:3], 2, levels=levels)
    assert out.flatten().tolist() == [3, 1, 2, 1]


def test_a_box_of_no_level_is_zero_and_one_map_takes_all() -> None:
    boxes = box((0, 9, 5, 5, 9), (0, 4, 4, 8, 8))
    assert multiscale_roi_align(constant_maps(2), boxes, 1, SCALES[:2], 2).flatten().tolist() == [
        0,
        1,
    ]
    assert multiscale_roi_align(constant_maps(1), boxes, 1, SCALES[:1], 2).flatten().tolist() == [
        1,
        1,
    ]


def test_one_level_is_roi_align() -> None:
    x, boxes = features(2, 3, 13, 17), random_boxes(9, 2, (52, 68))
    for mode in ("avg", "max"):
        ours = multiscale_roi_align([x], boxes, (3, 2), [0.25], 2, True, mode=mode)
        assert_same(ours, roi_align(x, boxes, (3, 2), 0.25, 2, True, mode=mode))


def test_gradcheck() -> None:
    maps = [features(1, 2, 9, 8).requires_grad_(), features(1, 2, 4, 4, seed=1).requires_grad_()]
    boxes = box((0, 3, 2, 30, 25), (0, 0, 0, 130, 120), (0, 9, 5, 5, 9))
    assert torch.autograd.gradcheck(
        lambda *f: multiscale_roi_align(list(f), boxes, 2, SCALES[:2], 2), maps
    )
    assert torch.autograd.gradgradcheck(
        lambda *f: multiscale_roi_align(list(f), boxes, 2, SCALES[:2], 2), maps
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_levels_equal_torchvision(dtype: torch.dtype) -> None:
    poolers = pytest.importorskip("torchvision.ops.poolers")
    side = torch.exp2(12 * torch.rand(20_000, generator=torch.Generator().manual_seed(0)))
    boxes = torch.zeros(len(side), 5, dtype=dtype)
    boxes[:, 3], boxes[:, 4] = side.to(dtype), 0.7 * side.to(dtype)
    for first, last, canon in ((2, 5, (224, 4)), (0, 7, (100, 3))):
        scales = [2.0**-k for k in range(first, last + 1)]
        theirs = poolers.LevelMapper(first, last, *canon)([boxes[:, 1:]])
        assert torch.equal(roi_levels(boxes, scales, *canon), theirs)


def test_equals_torchvision() -> None:
    ops = pytest.importorskip("torchvision.ops")
    maps = [features(2, 3, 128 >> i, 144 >> i, seed=i).requires_grad_() for i in range(4)]
    names = {str(i): level for i, level in enumerate(maps)}
    corner = 300 * torch.rand(40, 2, generator=torch.Generator().manual_seed(1)).double()
    side = torch.exp2(5 + 5 * torch.rand(40, 2, generator=torch.Generator().manual_seed(2)))
    boxes = torch.cat([corner, corner + side.double()], 1)
    pool = ops.MultiScaleRoIAlign(list(names), (3, 2), 2)
    theirs = pool(names, [boxes[:25], boxes[25:]], [(512, 576)] * 2)
    ours = multiscale_roi_align(maps, [boxes[:25], boxes[25:]], (3, 2), pool.scales, 2)
    # A list of boxes stays in their dtype here, so both assign in float64.
    assert len(set(roi_levels([boxes], pool.scales).tolist())) == 4
    assert_close(ours, theirs, torch.float64)
    upstream = torch.randn(ours.shape, dtype=torch.float64)
    for a, e in zip(
        torch.autograd.grad(ours, maps, upstream),
        torch.autograd.grad(theirs, maps, upstream),
        strict=True,
    ):
        assert_close(a, e, torch.float64)


def test_the_layout_is_that_of_the_first_map_that_has_one() -> None:
    last = torch.channels_last
    maps = [features(1, 3, 1, 1), features(1, 3, 4, 4).contiguous(memory_format=last)]
    out = multiscale_roi_align(maps, square(10, 300), 2, [1 / 4, 1 / 8], 2)
    assert out.is_contiguous(memory_format=last) and not out.is_contiguous()


def test_precision_chooses_the_arithmetic() -> None:
    maps = [level.float() for level in (features(1, 2, 9, 8), features(1, 2, 4, 4))]
    boxes = random_boxes(6, 1, (32, 36)).float()
    double = multiscale_roi_align(maps, boxes, 3, [1 / 4, 1 / 8])
    with reference.precision(torch.float32):
        single = multiscale_roi_align(maps, boxes, 3, [1 / 4, 1 / 8])
    assert not torch.equal(double, single)
    assert_close(single, double, torch.float32)
