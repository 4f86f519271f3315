"""detectron2's names, defaults and conventions."""

from __future__ import annotations

import doctest
import inspect
import math
from typing import Any

import pytest
import torch
from harness import DTYPES, assert_close, assert_same
from rois import features, random_boxes, random_rotated
from torch import Tensor

import cvkernels.compat.detectron2 as cvd2
from cvkernels import nms_rotated as rotated_family
from cvkernels.nms import batched_nms, nms
from cvkernels.roi_align import roi_align
from cvkernels.roi_align_rotated import roi_align_rotated
from cvkernels.roi_pool import RoIPool

# The signatures of detectron2.layers 0.6.
SIGNATURES = {
    "ROIAlign": "output_size, spatial_scale, sampling_ratio, aligned=True",
    "ROIAlignRotated": "output_size, spatial_scale, sampling_ratio",
    "batched_nms": "boxes, scores, idxs, iou_threshold",
    "batched_nms_rotated": "boxes, scores, idxs, iou_threshold",
    "nms_rotated": "boxes, scores, iou_threshold",
    "roi_align_rotated": "input, roi, output_size, spatial_scale, sampling_ratio",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name: str) -> None:
    shown = [
        p.name + ("" if p.default is inspect._empty else f"={p.default!r}")
        for p in inspect.signature(getattr(cvd2, name)).parameters.values()
    ]
    assert ", ".join(shown) == SIGNATURES[name]


def test_torchvisions_names_are_ours() -> None:
    """detectron2 exports torchvision's roi_align, nms and RoIPool; these have their signatures."""
    assert cvd2.roi_align is roi_align and cvd2.nms is nms and cvd2.RoIPool is RoIPool
    assert set(SIGNATURES) | {"roi_align", "nms", "RoIPool"} == set(cvd2.__all__)


def test_docstrings_run() -> None:
    results = doctest.testmod(cvd2)
    assert results.attempted > 10 and results.failed == 0


# -------------------------------------------------------------------------------------------------
# RoI Align
# -------------------------------------------------------------------------------------------------


def test_roi_align_is_aligned() -> None:
    x, boxes = features(2, 3, 9, 10), random_boxes(5, 2, (9, 10))
    assert_same(cvd2.ROIAlign((3, 2), 0.5, 0)(x, boxes), roi_align(x, boxes, (3, 2), 0.5, 0, True))
    legacy = cvd2.ROIAlign(3, 0.5, 2, aligned=False)
    assert_same(legacy(x, boxes), roi_align(x, boxes, 3, 0.5, 2))
    assert repr(legacy) == (
        "ROIAlign(output_size=3, spatial_scale=0.5, sampling_ratio=2, aligned=False)"
    )


def test_boxes_keep_their_precision() -> None:
    """Rounded to half precision as detectron2 does it, a far box moves."""
    x = features(1, 1, 200, 300).half()
    boxes = torch.tensor([[0.0, 1001.3, 601.2, 1101.7, 701.9]])
    module = cvd2.ROIAlign(7, 0.25, 2)
    exact = module(x.float(), boxes)
    assert_close(module(x, boxes), exact, torch.float16)
    rounded = module(x, boxes.half())
    assert float((rounded.float() - exact).abs().max()) > 0.05
    assert_close(rounded, module(x.float(), boxes.half()), torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rotated_roi_align_is_in_degrees(dtype: torch.dtype) -> None:
    x, boxes = features(2, 3, 9, 10).to(dtype), random_rotated(5, 2, (9, 10))
    degrees = boxes.clone()
    degrees[:, 5] *= 180 / math.pi
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = roi_align_rotated(x, boxes.to(wide), (3, 2), 0.5, 2)  # aligned, counter-clockwise
    module = cvd2.ROIAlignRotated((3, 2), 0.5, 2)
    assert_close(module(x, degrees.to(wide)), expected, dtype)
    out = cvd2.roi_align_rotated(x, degrees.to(wide), (3, 2), 0.5, 2)
    assert_same(out, module(x, degrees.to(wide)))
    assert repr(module) == (
        "ROIAlignRotated(output_size=(3, 2), spatial_scale=0.5, sampling_ratio=2)"
    )


def test_rotated_roi_align_by_hand() -> None:
    """detectron2's own test: 90 degrees on a 5 x 5 map is the upright result turned by rot90."""
    x = torch.arange(25.0).reshape(1, 1, 5, 5)
    upright = torch.tensor([[0.0, 2, 2, 2, 2, 0]])
    turned = torch.tensor([[0.0, 2, 2, 2, 2, 90]])
    module = cvd2.ROIAlignRotated((4, 4), 1.0, 0)
    expected = module(x, upright)[0, 0].rot90(-1)
    assert_close(module(x, turned)[0, 0], expected, torch.float32)


def test_rotated_roi_align_refuses() -> None:
    x = torch.ones(1, 1, 4, 4)
    for bad in (torch.ones(3, 5), torch.ones(6)):
        with pytest.raises(ValueError, match=r"roi_align_rotated: expected rois of shape \(K, 6\)"):
            cvd2.ROIAlignRotated(2, 1.0, 0)(x, bad)
    with pytest.raises(ValueError, match="expected rois of dtype"):
        cvd2.roi_align_rotated(x, torch.ones(3, 6, dtype=torch.int64), 2, 1.0, 0)


def test_boxes_that_are_no_tensor_are_refused() -> None:
    scores, classes = torch.ones(1), torch.zeros(1, dtype=torch.int64)
    bad: Any = [1]
    for call in (
        lambda: cvd2.nms_rotated(bad, scores, 0.5),
        lambda: cvd2.batched_nms_rotated(bad, scores, classes, 0.5),
        lambda: cvd2.batched_nms(bad, scores, classes, 0.5),
    ):
        with pytest.raises(TypeError, match="expected boxes to be a tensor, got list"):
            call()


# -------------------------------------------------------------------------------------------------
# NMS
# -------------------------------------------------------------------------------------------------


def detections(count: int = 60, columns: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    unit = torch.rand(count, 5, generator=generator)
    boxes = unit[:, :4] * torch.tensor([12.0, 12, 6, 6])
    boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:] + 1], 1)
    if columns == 5:
        boxes = unit * torch.tensor([10.0, 10, 6, 3, 720]) + torch.tensor([0.0, 0, 1, 1, -360])
    scores = (torch.randperm(count, generator=generator) + 1.0) / (count + 1)
    return boxes, scores, torch.arange(count) % 3


def test_batched_nms() -> None:
    boxes, scores, idxs = detections()
    expected = batched_nms(boxes, scores, idxs, 0.5)
    assert_same(cvd2.batched_nms(boxes, scores, idxs, 0.5), expected)
    assert_same(cvd2.batched_nms(boxes.double(), scores, idxs, 0.5), expected)  # in float32
    assert 0 < len(expected) < len(boxes)


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5])
def test_nms_rotated(threshold: float) -> None:
    boxes, scores, idxs = detections(columns=5)
    radians = boxes.double()
    radians[:, 4] *= math.pi / 180
    overlaps = rotated_family.box_iou_rotated(radians, radians, clockwise=False)

    def greedy(classes: Any) -> list[int]:
        kept: list[int] = []
        for j in scores.argsort(descending=True).tolist():
            rivals = [i for i in kept if classes is None or classes[i] == classes[j]]
            if all(overlaps[i, j] <= threshold for i in rivals):
                kept.append(j)
        return kept

    assert cvd2.nms_rotated(boxes, scores, threshold).tolist() == greedy(None)
    assert cvd2.batched_nms_rotated(boxes, scores, idxs, threshold).tolist() == greedy(idxs)
    # Turned the other way the boxes overlap as their mirror images do.
    mirrored = boxes * torch.tensor([1.0, -1, 1, 1, -1])
    assert cvd2.nms_rotated(mirrored, scores, threshold).tolist() == greedy(None)


def test_no_boxes() -> None:
    for keep in (
        cvd2.nms_rotated(torch.zeros(0, 5), torch.zeros(0), 0.5),
        cvd2.batched_nms_rotated(torch.zeros(0, 5), torch.zeros(0), torch.zeros(0).long(), 0.5),
        cvd2.batched_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), 0.5),
    ):
        assert keep.shape == (0,) and keep.dtype is torch.int64


def test_classes_are_not_shifted_apart() -> None:
    """detectron2 moves each class by a multiple of the extent, and so rounds them."""
    boxes = torch.tensor([[5e5, 5e5, 8, 2, 30.0], [5e5 + 1, 5e5, 8, 2, 30.0], [5e5, 5e5, 8, 2, 30]])
    scores, idxs = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([10**9, 10**9, 7])
    assert cvd2.batched_nms_rotated(boxes, scores, idxs, 0.5).tolist() == [0, 2]
