"""mmcv's names, signatures and conventions, checked by its algorithms in plain Python."""

from __future__ import annotations

import doctest
import inspect
import math
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import cvkernels.compat.mmcv as cvmm

# The signatures of mmcv.ops 2.2.0. A name without a default is required.
SIGNATURES = {
    "nms": "boxes, scores, iou_threshold, offset=0, score_threshold=0, max_num=-1",
    "soft_nms": (
        "boxes, scores, iou_threshold=0.3, sigma=0.5, min_score=0.001, method='linear', offset=0"
    ),
    "batched_nms": "boxes, scores, idxs, nms_cfg, class_agnostic=False",
    "nms_match": "dets, iou_threshold",
    "nms_rotated": "dets, scores, iou_threshold, labels=None, clockwise=True",
    "box_iou_rotated": "bboxes1, bboxes2, mode='iou', aligned=False, clockwise=True",
    # These take their arguments by position only; the names are those of their forward functions.
    "roi_align": (
        "input, rois, output_size, spatial_scale=1.0, sampling_ratio=0, pool_mode='avg', "
        "aligned=True"
    ),
    "roi_pool": "input, rois, output_size, spatial_scale=1.0",
    "prroi_pool": "features, rois, output_size, spatial_scale=1.0",
    "deform_roi_pool": (
        "input, rois, offset, output_size, spatial_scale=1.0, sampling_ratio=0, gamma=0.1"
    ),
    "roi_align_rotated": (
        "input, rois, output_size, spatial_scale, sampling_ratio=0, aligned=True, clockwise=False"
    ),
}
COUNT = 60


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name: str) -> None:
    shown = []
    for parameter in inspect.signature(getattr(cvmm, name)).parameters.values():
        assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        default = parameter.default
        shown.append(parameter.name + ("" if default is inspect._empty else f"={default!r}"))
    assert ", ".join(shown) == SIGNATURES[name]


def test_docstrings_run() -> None:
    attempted = 0
    for name, module in sorted(sys.modules.items()):
        if name.startswith("cvkernels.compat.mmcv"):
            results = doctest.testmod(module)
            attempted += results.attempted
            assert results.failed == 0
    assert attempted > 10


# -------------------------------------------------------------------------------------------------
# mmcv's algorithms, in float32 one operation at a time
# -------------------------------------------------------------------------------------------------

F = np.float32


def overlap(a: np.ndarray, b: np.ndarray, offset: int) -> np.float32:
    width = max(F(0), min(a[2], b[2]) - max(a[0], b[0]) + F(offset))
    height = max(F(0), min(a[3], b[3]) - max(a[1], b[1]) + F(offset))
    areas = [(box[2] - box[0] + F(offset)) * (box[3] - box[1] + F(offset)) for box in (a, b)]
    inter = width * height
    return inter / (areas[0] + areas[1] - inter)


def plain_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float, offset: int) -> list[int]:
    kept: list[int] = []
    for j in np.argsort(-scores, kind="stable").tolist():
        if all(not overlap(boxes[i], boxes[j], offset) > F(threshold) for i in kept):
            kept.append(j)
    return kept


def plain_soft_nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    threshold: float,
    sigma: float,
    min_score: float,
    method: str,
    offset: int,
) -> tuple[list[int], list[float]]:
    left, current = list(range(len(boxes))), scores.copy()
    kept, new = [], []
    while left:
        best = max(left, key=lambda i: (current[i], -i))
        kept.append(best)
        new.append(float(current[best]))
        left.remove(best)
        for j in list(left):
            shared = overlap(boxes[best], boxes[j], offset)
            if method == "gaussian":
                current[j] *= np.exp(-(shared * shared) / F(sigma))
            elif shared >= F(threshold):
                current[j] *= F(0) if method == "naive" else F(1) - shared
            if current[j] < F(min_score):
                left.remove(j)
    return kept, new


def plain_nms_match(dets: np.ndarray, threshold: float) -> list[list[int]]:
    left = np.argsort(-dets[:, 4], kind="stable").tolist()
    groups = []
    while left:
        best = left.pop(0)
        group = [j for j in left if overlap(dets[best], dets[j], 0) >= F(threshold)]
        left = [j for j in left if j not in group]
        groups.append([best, *group])
    return groups


def crowd(count: int = COUNT, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Boxes at whole pixels: overlaps like 0.5 and 1 occur exactly. All scores are different."""
    generator = np.random.default_rng(seed)
    corners = generator.integers(0, 12, (count, 2))
    boxes = np.concatenate([corners, corners + generator.integers(1, 9, (count, 2))], 1)
    boxes[count // 2 :][:5] = boxes[:5]
    scores = (generator.permutation(count) + 1) / (count + 1)
    return boxes.astype(F), scores.astype(F)


THRESHOLDS = (0.0, 0.1, 0.3, 0.5, 0.6, 1 / 3, 1.0)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("seed", range(4))
def test_nms(offset: int, threshold: float, seed: int) -> None:
    boxes, scores = crowd(seed=seed)
    wanted = plain_nms(boxes, scores, threshold, offset)
    dets, inds = cvmm.nms(boxes, scores, threshold, offset=offset)
    assert inds.tolist() == wanted
    np.testing.assert_array_equal(dets, np.column_stack([boxes[wanted], scores[wanted]]))


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("method", ["linear", "gaussian", "naive"])
@pytest.mark.parametrize("threshold", THRESHOLDS[1:-1])
@pytest.mark.parametrize(("sigma", "min_score"), [(0.5, 1e-3), (0.1, 0.2), (0.5, 2.0)])
def test_soft_nms(
    offset: int, method: str, threshold: float, sigma: float, min_score: float
) -> None:
    boxes, scores = crowd(seed=7)
    options = (threshold, sigma, min_score, method, offset)
    wanted, new = plain_soft_nms(boxes, scores, *options)
    dets, inds = cvmm.soft_nms(boxes, scores, *options)
    assert inds.tolist() == wanted
    np.testing.assert_array_equal(dets[:, :4], boxes[wanted])
    np.testing.assert_allclose(dets[:, 4], new, rtol=1e-5)
    assert len(inds) == 1 or min_score < 1  # the best box stays


@pytest.mark.parametrize("threshold", THRESHOLDS[1:])
@pytest.mark.parametrize("seed", range(4))
def test_nms_match(threshold: float, seed: int) -> None:
    dets = np.column_stack(crowd(seed=seed))
    wanted = plain_nms_match(dets, threshold)
    assert any(len(group) > 1 for group in wanted)
    groups = cvmm.nms_match(dets, threshold)
    assert [group.tolist() for group in groups] == wanted
    assert all(isinstance(group, np.ndarray) and group.dtype == np.int64 for group in groups)
    tensors = cvmm.nms_match(torch.from_numpy(dets), threshold)
    assert [group.tolist() for group in tensors] == wanted


def test_an_overlap_equal_to_the_threshold() -> None:
    """0.6 in float32 is above the double 0.6; mmcv's nms compares two floats, and so keeps."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 6]])
    scores = torch.tensor([0.9, 0.8])
    assert cvmm.nms(boxes, scores, 0.6)[1].tolist() == [0, 1]
    assert cvmm.nms(boxes, scores, 0.59)[1].tolist() == [0]
    assert cvmm.soft_nms(boxes, scores, 0.6, method="naive")[1].tolist() == [0]
    assert cvmm.soft_nms(boxes, scores, 0.61, method="naive")[1].tolist() == [0, 1]
    torch.testing.assert_close(cvmm.soft_nms(boxes, scores, 0.6)[0][1, 4], torch.tensor(0.32))
    matches = cvmm.nms_match(torch.cat([boxes, scores[:, None]], 1), 0.6)
    assert [match.tolist() for match in matches] == [[0, 1]]


# -------------------------------------------------------------------------------------------------
# Arguments and results
# -------------------------------------------------------------------------------------------------


def tensors(count: int = COUNT, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    boxes, scores = crowd(count, seed=seed)
    return torch.from_numpy(boxes), torch.from_numpy(scores)


def test_results_are_what_the_boxes_are() -> None:
    boxes, scores = crowd()
    for function in (cvmm.nms, cvmm.soft_nms):
        dets, inds = function(boxes, scores, 0.5)
        assert isinstance(dets, np.ndarray) and dets.dtype == F and dets.shape == (len(inds), 5)
        assert isinstance(inds, np.ndarray) and inds.dtype == np.int64
        dets, inds = function(*tensors(), 0.5)
        assert isinstance(dets, Tensor) and dets.dtype is torch.float32
        assert isinstance(inds, Tensor) and inds.dtype is torch.int64
        with pytest.raises(TypeError, match="expected boxes as a tensor"):
            function(boxes.tolist(), scores, 0.5)


def test_scores_are_filtered_before_and_boxes_counted_after() -> None:
    boxes, scores = tensors()
    everything = cvmm.nms(boxes, scores, 0.4)[1]
    assert torch.equal(cvmm.nms(boxes, scores, 0.4, max_num=3)[1], everything[:3])
    assert torch.equal(cvmm.nms(boxes, scores, 0.4, max_num=0)[1], everything)
    limit = float(scores[everything[4]])
    dets, inds = cvmm.nms(boxes, scores, 0.4, score_threshold=limit)
    assert torch.equal(inds, everything[:4])  # a score equal to the threshold is out
    assert torch.equal(dets[:, 4], scores[inds])
    assert cvmm.nms(boxes, scores, 0.4, score_threshold=2.0)[0].shape == (0, 5)


def test_an_offset_makes_pixels_wide_and_leaves_boxes() -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1], [1.0, 0, 2, 1]])  # 2 x 2 pixels, a column shared: 1/3
    scores = torch.tensor([0.9, 0.8])
    assert len(cvmm.nms(boxes, scores, 0.3)[1]) == 2
    dets, inds = cvmm.nms(boxes, scores, 0.3, offset=1)
    assert inds.tolist() == [0]
    assert torch.equal(dets[:, :4], boxes[:1])
    new = cvmm.soft_nms(boxes, scores, 0.3, offset=1)[0][:, 4]
    torch.testing.assert_close(new, torch.tensor([0.9, 0.8 * 2 / 3]))
    for function in (cvmm.nms, cvmm.soft_nms):
        with pytest.raises(ValueError, match="expected offset to be 0 or 1, got 2"):
            function(boxes, scores, 0.3, offset=2)


def test_the_old_name_of_the_threshold() -> None:
    boxes, scores = tensors()
    for function in (cvmm.nms, cvmm.soft_nms):
        with pytest.warns(DeprecationWarning, match='"iou_thr" is deprecated'):
            ours = function(boxes, scores, iou_thr=0.4)
        assert torch.equal(ours[1], function(boxes, scores, iou_threshold=0.4)[1])
        with pytest.raises(TypeError, match="got both"):
            function(boxes, scores, iou_thr=0.4, iou_threshold=0.4)
    with pytest.warns(DeprecationWarning, match='"iou_thr" is deprecated'):
        cvmm.batched_nms(boxes, scores, torch.zeros(COUNT), {"iou_thr": 0.4})


def test_soft_nms_edges() -> None:
    boxes, scores = tensors()
    with pytest.raises(ValueError, match="expected method in"):
        cvmm.soft_nms(boxes, scores, method="hard")
    # Nothing is below 0: mmcv returns what "naive" suppresses with the score 0.
    dets, inds = cvmm.soft_nms(boxes, scores, 0.4, min_score=0, method="naive")
    assert sorted(inds.tolist()) == list(range(COUNT))
    kept = int((dets[:, 4] > 0).sum())
    assert inds[:kept].tolist() == cvmm.soft_nms(boxes, scores, 0.4, method="naive")[1].tolist()
    assert len(cvmm.soft_nms(boxes, scores, min_score=-1.0)[1]) == COUNT
    nothing = torch.full((COUNT,), math.nan)
    assert len(cvmm.soft_nms(boxes, nothing)[1]) == 0
    nothing[3] = 0.0
    assert cvmm.soft_nms(boxes, nothing)[1].tolist() == [3]


def test_no_boxes() -> None:
    boxes, scores = torch.zeros(0, 4), torch.zeros(0)
    for function in (cvmm.nms, cvmm.soft_nms):
        dets, inds = function(boxes, scores, 0.5)
        assert dets.shape == (0, 5) and inds.shape == (0,)
        assert function(boxes.numpy(), scores.numpy(), 0.5)[0].shape == (0, 5)
    assert cvmm.nms_match(torch.zeros(0, 5), 0.5) == []
    rotated = torch.zeros(0, 5)
    dets, none = cvmm.nms_rotated(rotated, scores, 0.5)
    assert dets is rotated and none is None
    assert cvmm.box_iou_rotated(rotated, torch.zeros(3, 5)).shape == (0, 3)
    configurations: list[Any] = [None, {"iou_threshold": 0.5}, {"type": "soft_nms"}]
    for configuration in [*configurations, {"type": cvmm_like, "max_num": 3}]:
        dets, keep = cvmm.batched_nms(boxes, scores, scores, configuration)
        assert dets.shape == (0, 5) and keep.shape == (0,)
    turned = {"type": "nms_rotated", "iou_threshold": 0.5}
    assert cvmm.batched_nms(rotated, scores, scores, turned)[0].shape == (0, 6)


def test_dets_have_gradients() -> None:
    boxes, scores = (value.requires_grad_() for value in tensors())
    for dets, _ in (
        cvmm.nms(boxes, scores, 0.5),
        cvmm.soft_nms(boxes, scores),
        cvmm.batched_nms(boxes, scores, torch.zeros(COUNT), {"type": "soft_nms"}),
    ):
        grads = torch.autograd.grad(dets.sum(), (boxes, scores))
        assert float(grads[0].sum()) == 4 * len(dets)
        assert float(grads[1].sum()) > 0


# -------------------------------------------------------------------------------------------------
# batched_nms
# -------------------------------------------------------------------------------------------------


def cvmm_like(boxes: Tensor, scores: Tensor, fraction: float = 0.5) -> tuple[Tensor, Tensor]:
    """A function of mmcv's convention that cvkernels does not know: the best part of the boxes."""
    keep = scores.argsort(descending=True)[: math.ceil(fraction * len(scores))]
    return torch.cat([boxes[keep], scores[keep, None]], 1), keep


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float32])
@pytest.mark.parametrize("kind", ["nms", "soft_nms", cvmm.nms, cvmm_like])
@pytest.mark.parametrize("max_num", [-1, 5])
def test_batched_nms_is_class_by_class(dtype: torch.dtype, kind: Any, max_num: int) -> None:
    boxes, scores = tensors()
    idxs = (torch.arange(COUNT) % 2).to(dtype)
    configuration = {"type": kind, "split_thr": 10, "max_num": max_num}
    if kind is not cvmm_like:
        configuration["iou_threshold"] = 0.4
    given = dict(configuration)
    dets, keep = cvmm.batched_nms(boxes, scores, idxs, configuration)
    assert configuration == given
    function = {"nms": cvmm.nms, "soft_nms": cvmm.soft_nms}.get(kind, kind)
    options = {} if kind is cvmm_like else {"iou_threshold": 0.4}
    parts = []
    for rows in ((idxs == 0).nonzero()[:, 0], (idxs == 1).nonzero()[:, 0]):
        one, inds = function(boxes[rows], scores[rows], **options)
        parts.append((one, rows[inds]))
    new, order = torch.cat([part[0][:, 4] for part in parts]).sort(descending=True, stable=True)
    wanted = torch.cat([part[1] for part in parts])[order]
    most = max_num if max_num > 0 else len(wanted)
    assert torch.equal(keep, wanted[:most])
    torch.testing.assert_close(dets, torch.cat([boxes[keep], new[:most, None]], 1))


def test_batched_nms_does_not_move_boxes() -> None:
    """mmcv shifts by max + 1 per class: with negative coordinates classes meet, far ones round."""
    boxes = torch.tensor([[-9.0, -9.0, -1.0, -1.0]]).repeat(3, 1)
    scores = torch.tensor([0.7, 0.9, 0.8])
    configuration = {"type": "nms", "iou_threshold": 0.5}
    for idxs in ([0, 1, 2], [0, 10**12, -3]):
        keep = cvmm.batched_nms(boxes, scores, torch.tensor(idxs), configuration)[1]
        assert keep.tolist() == [1, 2, 0]
    agnostic = cvmm.batched_nms(boxes, scores, torch.arange(3), configuration, True)
    assert agnostic[1].tolist() == [1]
    configuration["class_agnostic"] = False  # wins over the argument
    both = cvmm.batched_nms(boxes, scores, torch.arange(3), configuration, class_agnostic=True)
    assert len(both[1]) == 3


def test_batched_nms_without_configuration_sorts() -> None:
    boxes, scores = tensors()
    dets, keep = cvmm.batched_nms(boxes, scores, torch.zeros(COUNT), None)
    assert torch.equal(keep, scores.argsort(descending=True))
    assert torch.equal(dets, torch.cat([boxes[keep], scores[keep, None]], 1))


def test_batched_nms_refuses() -> None:
    boxes, scores = tensors()
    with pytest.raises(ValueError, match="expected type in"):
        cvmm.batched_nms(boxes, scores, torch.zeros(COUNT), {"type": "nms_triangular"})
    with pytest.raises(TypeError, match="iou_treshold"):
        cvmm.batched_nms(boxes, scores, torch.zeros(COUNT), {"iou_treshold": 0.5})


# -------------------------------------------------------------------------------------------------
# Rotated boxes
# -------------------------------------------------------------------------------------------------


def rotated(count: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    numbers = torch.rand(count, 5, generator=generator)
    boxes = numbers * torch.tensor([10, 10, 6, 3, 3.0]) + torch.tensor([0, 0, 1, 1, 0.0])
    return boxes, (torch.randperm(count, generator=generator) + 1.0) / (count + 1)


@pytest.mark.parametrize("clockwise", [True, False])
def test_nms_rotated(clockwise: bool) -> None:
    boxes, scores = rotated()
    labels = torch.arange(len(boxes)) % 3
    overlaps = cvmm.box_iou_rotated(boxes, boxes, clockwise=clockwise)
    for classes in (None, labels):
        wanted: list[int] = []
        for j in scores.argsort(descending=True).tolist():
            rivals = [i for i in wanted if classes is None or classes[i] == classes[j]]
            if all(overlaps[i, j] <= 0.2 for i in rivals):
                wanted.append(j)
        dets, inds = cvmm.nms_rotated(boxes, scores, 0.2, classes, clockwise)
        assert inds is not None and inds.tolist() == wanted
        assert torch.equal(dets, torch.cat([boxes[wanted], scores[wanted, None]], 1))
        configuration = {"type": "nms_rotated", "iou_threshold": 0.2, "clockwise": clockwise}
        dets, keep = cvmm.batched_nms(
            boxes, scores, labels, configuration, class_agnostic=classes is None
        )
        assert keep.tolist() == wanted and dets.shape == (len(wanted), 6)


def test_box_iou_rotated() -> None:
    upright = torch.tensor([[5.0, 5, 4, 2, 0], [5.0, 6, 4, 2, 0]])
    turned = torch.tensor([[5.0, 5, 2, 4, math.pi / 2]])
    torch.testing.assert_close(
        cvmm.box_iou_rotated(upright, turned), torch.tensor([[1.0], [1 / 3]]), rtol=1e-5, atol=1e-6
    )
    aligned = cvmm.box_iou_rotated(upright, upright.flip(0), "iof", True)
    torch.testing.assert_close(aligned, torch.tensor([0.5, 0.5]))
    # Turning the other way is another overlap: as with both angles negated.
    boxes, _ = rotated()
    mirrored = boxes * torch.tensor([1, 1, 1, 1, -1.0])
    torch.testing.assert_close(
        cvmm.box_iou_rotated(boxes, boxes, clockwise=False),
        cvmm.box_iou_rotated(mirrored, mirrored),
    )


# -------------------------------------------------------------------------------------------------
# Patching
# -------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_mmcv(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, types.ModuleType]]:
    """A package laid out as mmcv is, and a user of it that imported by name."""
    homes = {name: f"mmcv.ops.{'nms' if 'nms' in name else name}" for name in SIGNATURES}
    names = ("mmcv", "mmcv.ops", *homes.values(), "detector_of_somebody")
    modules = {name: types.ModuleType(name) for name in names}
    for name in SIGNATURES:
        home = modules[homes[name]]

        def original(*args: Any, _name: str = name, **kwargs: Any) -> str:
            return f"mmcv's {_name}"

        setattr(home, name, original)
        setattr(modules["mmcv.ops"], name, original)  # as `from .nms import nms` does
    modules["mmcv.ops"].nms_quadri = cvmm_like  # type: ignore[attr-defined]
    modules["mmcv"].__version__ = "2.2.0"  # type: ignore[attr-defined]
    user = modules["detector_of_somebody"]
    user.postprocess = modules["mmcv.ops"].batched_nms  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return modules


def test_patched(fake_mmcv: dict[str, types.ModuleType]) -> None:
    ops, user = fake_mmcv["mmcv.ops"], fake_mmcv["detector_of_somebody"]
    before = {name: dict(vars(module)) for name, module in fake_mmcv.items()}
    boxes, scores = tensors()
    configuration = {"type": "nms", "iou_threshold": 0.5}
    with cvmm.patched() as names:
        assert "mmcv.ops.nms" in names and "mmcv.ops.nms.nms" in names
        assert "mmcv.ops.box_iou_rotated.box_iou_rotated" in names
        assert "detector_of_somebody.postprocess" in names
        assert len(names) == 2 * len(SIGNATURES) + 1
        for name in SIGNATURES:
            assert inspect.signature(getattr(ops, name)) == inspect.signature(getattr(cvmm, name))
        assert torch.equal(ops.nms(boxes, scores, 0.5)[1], cvmm.nms(boxes, scores, 0.5)[1])
        dets, _ = user.postprocess(boxes, scores, torch.zeros(COUNT), configuration)
        assert isinstance(dets, Tensor)
        user.late = ops.soft_nms  # type: ignore[attr-defined]
        with cvmm.patched():
            assert isinstance(ops.nms(boxes, scores, 0.5)[1], Tensor)
        assert isinstance(ops.nms(boxes, scores, 0.5)[1], Tensor)
        assert isinstance(ops.roi_pool(torch.ones(1, 1, 2, 2), torch.ones(1, 5) * 0, 1), Tensor)
    assert user.late() == "mmcv's soft_nms"
    del user.late
    assert {name: dict(vars(module)) for name, module in fake_mmcv.items()} == before
    assert callable(cvmm.nms) and cvmm.nms(boxes, scores, 0.5) is not None


def test_patched_is_undone_after_an_error(fake_mmcv: dict[str, types.ModuleType]) -> None:
    with pytest.raises(ZeroDivisionError), cvmm.patched():
        _ = 1 // 0
    assert fake_mmcv["mmcv.ops"].nms() == "mmcv's nms"


def test_types_of_mmcv(fake_mmcv: dict[str, types.ModuleType]) -> None:
    """Ours for mmcv's functions of the same name, mmcv's own, class by class, for the others."""
    boxes, scores = tensors()
    idxs = torch.arange(COUNT) % 2
    configuration: dict[str, Any] = {"type": "nms_quadri", "fraction": 0.1}
    dets, keep = cvmm.batched_nms(boxes, scores, idxs, configuration)
    assert len(keep) == 2 * math.ceil(0.1 * COUNT / 2)
    assert bool((dets[:, 4].diff() <= 0).all())
    original = fake_mmcv["mmcv.ops.nms"].nms
    original.__module__, original.__name__ = "mmcv.ops.nms", "nms"
    configuration = {"type": original, "iou_threshold": 0.5}
    ours = cvmm.batched_nms(boxes, scores, idxs, {**configuration, "type": "nms"})
    assert torch.equal(cvmm.batched_nms(boxes, scores, idxs, configuration)[1], ours[1])


def test_patched_without_mmcv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mmcv", raising=False)
    monkeypatch.setitem(sys.modules, "mmcv.ops", None)
    if "mmcv" not in sys.modules:
        with pytest.raises(ImportError, match="mmcv"), cvmm.patched():
            pass
    monkeypatch.setitem(sys.modules, "mmcv", types.ModuleType("mmcv"))
    with pytest.raises(ImportError, match="operators do not load"), cvmm.patched():
        pass
    monkeypatch.setitem(sys.modules, "mmcv.ops", types.ModuleType("mmcv.ops"))
    with pytest.raises(ImportError, match=r"has no nms, soft_nms"), cvmm.patched():
        pass
