"""torchvision's detectors and functions, with our operators in place of torchvision's."""

from __future__ import annotations

import copy
import functools
import gc
import importlib
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from harness import EMULATED
from torch import Tensor

import cvkernels.compat.torchvision as cvtv

torchvision = pytest.importorskip("torchvision")
detection = importlib.import_module("torchvision.models.detection")
tv = importlib.import_module("torchvision.ops")

BOXES = torchvision.ops.boxes
NMS, ROI_ALIGN, BACKWARD, *OTHERS = cvtv.OPERATORS
ROI_OPERATORS = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")
MODULES = ("torchvision.ops.boxes", "torchvision.ops")

# How far a patched detector may be from an unpatched one; everything of a tensor is relative to its
# largest element. Keys: the dtype of the model, or of autocast. The operators differ in the order
# of float32 additions only; in bfloat16 that now and then turns the last of a feature's 8 bits.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2}


@pytest.fixture(autouse=True)
def unpatched() -> Iterator[None]:
    """Every test starts and must end without the patch, and with the very same functions."""
    assert not cvtv.report().operators
    before = [sys.modules[name].batched_nms for name in MODULES]
    yield
    cvtv.uninstall()
    assert not cvtv.report().operators
    assert all(a is sys.modules[n].batched_nms for a, n in zip(before, MODULES, strict=True))


def some_boxes(count: int, *, seed: int = 0, size: float = 100.0, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * size
    sides = torch.rand(count, 2, generator=generator) * size / 4 + 1
    return torch.cat([corners, corners + sides], 1).to(device)


def some_scores(count: int, *, seed: int = 1, device: str = "cpu") -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)).to(device)


def some_classes(count: int, classes: int = 5, *, device: str = "cpu") -> Tensor:
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(2)).to(device)


def rois(device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    boxes = [[0, 1, 1, 9, 9], [1, 2, 2, 12, 8], [1, -3, 0, 40, 11.5], [0, 3, 3, 4, 3.5]]
    return torch.tensor(boxes, dtype=dtype, device=device)


def called(report: cvtv.Report) -> dict[str, int]:
    """The operators that were called, and how often."""
    return {name: count for name, count in report.counts.items() if count}


# -------------------------------------------------------------------------------------------------
# Whole detectors
# -------------------------------------------------------------------------------------------------

SIDE = 96
PROPOSALS = 100 if EMULATED else 200
RCNN = {
    "min_size": SIDE,
    "max_size": 2 * SIDE,
    "rpn_pre_nms_top_n_train": 2 * PROPOSALS,
    "rpn_pre_nms_top_n_test": 2 * PROPOSALS,
    "rpn_post_nms_top_n_train": PROPOSALS,
    "rpn_post_nms_top_n_test": PROPOSALS,
    "rpn_batch_size_per_image": 64,
    "box_batch_size_per_image": 32,
    "box_score_thresh": 0.0,  # random weights: every class is about as likely
    "box_detections_per_img": 120,
    "num_classes": 7,
}
DENSE = {
    "min_size": SIDE,
    "max_size": 2 * SIDE,
    "score_thresh": 0.0,
    "topk_candidates": PROPOSALS,
    "detections_per_img": 200,
    "num_classes": 7,
}
DETECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "faster_rcnn_mobilenet": ("fasterrcnn_mobilenet_v3_large_320_fpn", RCNN),
    "faster_rcnn_resnet50": ("fasterrcnn_resnet50_fpn", RCNN),
    "mask_rcnn": ("maskrcnn_resnet50_fpn", {**RCNN, "box_detections_per_img": 60}),
    "retinanet": ("retinanet_resnet50_fpn", DENSE),
    "fcos": ("fcos_resnet50_fpn", DENSE),
}
LAST_LAYERS = tuple(
    f"{name}.weight"
    for name in ("cls_logits", "cls_score", "bbox_pred", "bbox_reg", "bbox_ctrness")
)
ROI_HEADS = {"faster_rcnn_mobilenet": 1, "faster_rcnn_resnet50": 1, "mask_rcnn": 2}
TWO_STAGE = list(ROI_HEADS)


def make_detector(name: str, dtype: torch.dtype = torch.float32) -> Any:
    return copy.deepcopy(float32_detector(name)).to(dtype)


@functools.cache
def float32_detector(name: str) -> Any:
    """The detector with random weights, made to have opinions.

    Untrained, activations vanish or explode and scores are all alike; then equal scores, not the
    operators, would decide what is detected. So the normalisations see two images first, and the
    last layers are spread out.
    """
    builder, options = DETECTORS[name]
    torch.manual_seed(0)
    model = getattr(detection, builder)(weights=None, weights_backbone=None, **options)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # an average of all that it sees
            layer.reset_running_stats()
    images = make_images()
    with torch.no_grad():
        model.train()(images, make_targets(images))
        for key, parameter in model.named_parameters():
            if key.endswith(LAST_LAYERS):
                parameter.normal_(0, 0.05)
    return model


def make_images(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = ((3, SIDE, SIDE + 24), (3, SIDE + 8, SIDE))
    return [torch.rand(shape, generator=generator).to(dtype) for shape in shapes]


def make_targets(images: list[Tensor]) -> list[dict[str, Tensor]]:
    targets = []
    for seed, image in enumerate(images):
        height, width = image.shape[-2:]
        boxes = some_boxes(4, seed=seed, size=SIDE / 2).to(image)
        masks = torch.zeros(4, height, width, dtype=torch.uint8, device=image.device)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        labels = torch.arange(1, 5, device=image.device)
        targets.append({"boxes": boxes, "labels": labels, "masks": masks})
    return targets


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype, what: str) -> None:
    assert actual.shape == expected.shape, what
    assert actual.dtype == expected.dtype, what
    largest = expected.double().abs().max().item() if expected.numel() else 0.0
    difference = (actual.double() - expected.double()).abs().max().item() if largest else 0.0
    assert difference <= TOLERANCES[dtype] * largest, f"{what}: {difference} of {largest}"


def detect(model: Any, images: list[Tensor]) -> list[dict[str, Tensor]]:
    with torch.inference_mode():
        return model.eval()(images)


def matched(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our detections in the order of theirs: scores may be closer together than float32 tells."""

    def key(image: dict[str, Tensor]) -> Tensor:
        label, score = image["labels"][:, None], image["scores"][:, None]
        return torch.cat([image["boxes"], 1e3 * label, 1e2 * score], 1).double()

    nearest = torch.cdist(key(theirs), key(ours)).argmin(1)
    assert nearest.unique().numel() == nearest.numel()
    return {name: tensor[nearest] for name, tensor in ours.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", DETECTORS)
def test_same_detections(name: str, dtype: torch.dtype) -> None:
    model, images = make_detector(name, dtype), make_images(dtype)
    expected = detect(model, images)
    with cvtv.patched(count=True) as report:
        actual = detect(model, images)
    assert report.counts[cvtv.BATCHED_NMS] > 0
    assert report.counts[cvtv.MULTISCALE] == ROI_HEADS.get(name, 0)
    assert report.counts[ROI_ALIGN] == 0
    assert sum(len(image["boxes"]) for image in expected) >= 100
    for ours, theirs in zip(actual, expected, strict=True):
        assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
        assert len(theirs["labels"].unique()) > 1
        ours = matched(ours, theirs)
        assert torch.equal(ours["labels"], theirs["labels"])
        for key in theirs:
            assert_near(ours[key], theirs[key], dtype, key)


Step = tuple[dict[str, Tensor], dict[str, Tensor]]


def training_step(model: Any, images: list[Tensor], targets: Any, autocast: bool) -> Step:
    """Losses and gradients; the sampling of proposals is seeded."""
    model.train()
    model.zero_grad(set_to_none=True)
    torch.manual_seed(7)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        losses = model(images, targets)
    torch.stack([loss.float() if autocast else loss for loss in losses.values()]).sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {k: v.detach() for k, v in losses.items()}, gradients


def batched_nms_in_float32(boxes: Tensor, scores: Tensor, idxs: Tensor, limit: float) -> Tensor:
    """torchvision's, without one flaw: under autocast it shifts the classes apart in bfloat16.

    That rounds the coordinates, and other proposals are kept than those that overlap least.
    """
    return BOXES._batched_nms_coordinate_trick(boxes.float(), scores.float(), idxs, limit)


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=["float64", "float32", "autocast"])
@pytest.mark.parametrize("name", DETECTORS)
def test_same_training_step(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    autocast = dtype is torch.bfloat16
    if name not in TWO_STAGE and dtype is not torch.float32:
        pytest.skip("calls none of the operators in training; once is enough")
    if EMULATED and name == "faster_rcnn_resnet50":
        pytest.skip("Mask R-CNN contains it; emulated kernels are slow")
    of_model = torch.float32 if autocast else dtype
    model, images = make_detector(name, of_model), make_images(of_model)
    targets = make_targets(images)
    with monkeypatch.context() as context:
        if autocast:
            context.setattr(BOXES, "batched_nms", batched_nms_in_float32)
        losses, gradients = training_step(model, images, targets, autocast)
    with cvtv.patched(count=True) as report:
        our_losses, our_gradients = training_step(model, images, targets, autocast)
    if name in TWO_STAGE:
        assert report.counts[cvtv.MULTISCALE] == ROI_HEADS[name]
        # Mask R-CNN also crops the masks of the targets, which have no gradient.
        assert report.counts[ROI_ALIGN] == (len(images) if name == "mask_rcnn" else 0)
        assert report.counts[BACKWARD] == 0
        assert report.counts[cvtv.BATCHED_NMS] == len(images)
    assert len(gradients) > 50
    assert gradients.keys() == our_gradients.keys()
    assert losses.keys() == our_losses.keys()
    for key in losses:
        assert torch.isfinite(losses[key])
        assert_near(our_losses[key], losses[key], dtype, key)
    ours = torch.cat([our_gradients[key].flatten() for key in gradients]).double()
    theirs = torch.cat([gradients[key].flatten() for key in gradients]).double()
    whole = theirs.norm().item()
    assert whole > 0
    assert (ours - theirs).norm().item() <= TOLERANCES[dtype] * whole
    if autocast:
        return  # Each layer's gradient is noisy in bfloat16.
    for key in gradients:
        # A bias in front of a normalisation has gradient zero but for rounding.
        if gradients[key].norm().item() > 1e-6 * whole:
            assert_near(our_gradients[key], gradients[key], dtype, key)


def test_autocast_hands_half_features_to_the_pooling() -> None:
    model, images = make_detector("faster_rcnn_mobilenet"), make_images()
    seen: list[torch.dtype] = []

    def on_call(name: str, arguments: tuple[Any, ...]) -> None:
        if name == cvtv.MULTISCALE:
            seen.extend(level.dtype for level in arguments[0])

    with torch.autocast("cpu", dtype=torch.bfloat16), cvtv.patched(on_call=on_call):
        detect(model, images)
    assert set(seen) == {torch.bfloat16}


def test_a_half_precision_detector_runs_on_the_cpu() -> None:
    """torchvision's own operators refuse it."""
    dtype = torch.bfloat16
    model, images = make_detector("faster_rcnn_mobilenet", dtype), make_images(dtype)
    with pytest.raises(RuntimeError, match="not implemented"):
        detect(model, images)
    with cvtv.patched():
        result = detect(model, images)
    assert sum(len(image["boxes"]) for image in result) > 0


# -------------------------------------------------------------------------------------------------
# Single operators
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 40, 1200])
def test_nms_keeps_the_same_boxes(count: int, device: str) -> None:
    boxes, scores = some_boxes(count, device=device), some_scores(count, device=device)
    expected = tv.nms(boxes, scores, 0.3)
    with cvtv.patched(count=True) as report:
        assert torch.equal(tv.nms(boxes, scores, 0.3), expected)
        assert report.counts[NMS] == 1


@pytest.mark.parametrize("count", [0, 1, 40, 1200])  # above 1000 torchvision loops over classes
def test_batched_nms_keeps_the_same_boxes(count: int, device: str) -> None:
    boxes, scores = some_boxes(count, device=device), some_scores(count, device=device)
    classes = some_classes(count, device=device)
    expected = tv.batched_nms(boxes, scores, classes, 0.3)
    with cvtv.patched(count=True) as report:
        assert torch.equal(tv.batched_nms(boxes, scores, classes, 0.3), expected)
        assert called(report) == {cvtv.BATCHED_NMS: 1}


def test_batched_nms_is_exact_where_torchvision_is_not() -> None:
    boxes = torch.tensor([[-9.0, -9.0, -1.0, -1.0], [-9.0, -9.0, -1.0, -1.0]])
    scores, classes = torch.tensor([0.9, 0.8]), torch.tensor([0, 1])
    assert tv.batched_nms(boxes, scores, classes, 0.5).tolist() == [0]
    with cvtv.patched():
        assert tv.batched_nms(boxes, scores, classes, 0.5).tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool, torch.int32])
def test_batched_nms_takes_class_ids_of_any_dtype(dtype: torch.dtype) -> None:
    boxes, scores, classes = some_boxes(60), some_scores(60), some_classes(60, 2)
    expected = tv.batched_nms(boxes, scores, classes, 0.3)
    with cvtv.patched():
        assert torch.equal(tv.batched_nms(boxes, scores, classes.to(dtype), 0.3), expected)
        zeros = torch.tensor([0.0, -0.0]).repeat(30)
        assert torch.equal(tv.batched_nms(boxes, scores, zeros, 0.3), tv.nms(boxes, scores, 0.3))


def test_batched_nms_takes_an_empty_tensor_of_any_rank() -> None:
    with cvtv.patched():
        assert tv.batched_nms(torch.empty(0), torch.empty(0), torch.empty(0), 0.5).shape == (0,)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [-1, 2])
def test_roi_align_and_its_gradient(
    layout: torch.memory_format, aligned: bool, sampling_ratio: int, device: str
) -> None:
    generator = torch.Generator().manual_seed(4)
    base = torch.rand(2, 5, 13, 17, generator=generator).to(device, memory_format=layout)
    weight = torch.rand(4, 5, 3, 2, generator=generator).to(device)

    def run() -> tuple[Tensor, Tensor]:
        features = base.clone(memory_format=torch.preserve_format).requires_grad_()
        pooled = tv.roi_align(features, rois(device), (3, 2), 0.5, sampling_ratio, aligned)
        (gradient,) = torch.autograd.grad((pooled * weight).sum(), features)
        return pooled.detach(), gradient

    expected = run()
    with cvtv.patched(count=True) as report:
        actual = run()
        assert (report.counts[ROI_ALIGN], report.counts[BACKWARD]) == (1, 1)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.stride() == theirs.stride()


# Name, what follows the scale, whether our result must have torchvision's bits.
POOLING = [
    ("roi_pool", (), True),
    ("ps_roi_align", (-1,), False),
    ("ps_roi_align", (2,), False),
    ("ps_roi_pool", (), True),
]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("name", "rest", "exact"), POOLING)
def test_pooling_and_its_gradient(
    name: str, rest: tuple[int, ...], exact: bool, layout: torch.memory_format, device: str
) -> None:
    generator = torch.Generator().manual_seed(4)
    base = torch.rand(2, 24, 26, 34, generator=generator).to(device, memory_format=layout)
    weight = torch.rand(3, 4 if name != "roi_pool" else 24, 3, 2, generator=generator).to(device)
    boxes = rois(device)[[0, 1, 3]]  # on the map, away from its rim

    def run() -> tuple[Tensor, Tensor, Tensor]:
        features = base.clone(memory_format=torch.preserve_format).requires_grad_()
        pooled, indices = getattr(torch.ops.torchvision, name)(features, boxes, 1.0, 3, 2, *rest)
        (gradient,) = torch.autograd.grad((pooled * weight).sum(), features)
        return pooled.detach(), indices, gradient

    expected = run()
    with cvtv.patched(count=True) as report:
        actual = run()
        forward, backward = f"torchvision::{name}", f"torchvision::_{name}_backward"
        assert called(report) == {forward: 1, backward: 1}
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.stride() == theirs.stride() and ours.dtype == theirs.dtype
    if exact:
        assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


@pytest.mark.parametrize(("name", "rest", "exact"), POOLING)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_pooling_of_half_features(
    dtype: torch.dtype, name: str, rest: tuple[int, ...], exact: bool
) -> None:
    """torchvision refuses boxes of another dtype, and on the CPU bfloat16 altogether."""
    features = torch.rand(2, 8, 20, 50, generator=torch.Generator().manual_seed(6)).to(dtype)
    call = getattr(tv, name)
    expected = call(features.float(), rois(), 2, 1.0, *rest)
    with pytest.raises(RuntimeError):
        call(features, rois(), 2, 1.0, *rest)
    with cvtv.patched():
        actual = call(features, rois(), 2, 1.0, *rest)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert call(features, rois(), 2, 1.0, *rest).dtype is dtype
    assert actual.dtype is dtype
    torch.testing.assert_close(actual.float(), expected, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize(("name", "rest", "exact"), POOLING)
def test_compiled_pooling(name: str, rest: tuple[int, ...], exact: bool) -> None:
    features = torch.rand(2, 8, 20, 50, generator=torch.Generator().manual_seed(8))

    def run(function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        leaf = features.clone().requires_grad_()
        pooled = function(leaf)
        (gradient,) = torch.autograd.grad(pooled.square().sum(), leaf)
        return pooled.detach(), gradient

    def pool(features: Tensor) -> Tensor:
        result: Tensor = getattr(tv, name)(features, rois(dtype=torch.float64), 2, 1.0, *rest)
        return result

    torch.compiler.reset()
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    with cvtv.patched():
        expected = run(pool)
        actual = run(compiled)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_roi_align_of_views_and_expanded_gradients(device: str) -> None:
    generator = torch.Generator().manual_seed(5)
    wide = torch.rand(2, 10, 13, 34, generator=generator).to(device)

    def run() -> tuple[Tensor, Tensor]:
        features = wide.clone().requires_grad_()
        pooled = tv.roi_align(features[:, ::2, :, 3:20].transpose(2, 3), rois(device), 4)
        (gradient,) = torch.autograd.grad(pooled.sum(), features)  # an expanded scalar
        return pooled.detach(), gradient

    expected = run()
    with cvtv.patched():
        actual = run()
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_boxes_may_be_more_precise_than_features(dtype: torch.dtype) -> None:
    features = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(6)).to(dtype)
    expected = tv.roi_align(features.float(), rois(), 3)
    with cvtv.patched():
        actual = tv.roi_align(features, rois(), 3)
    assert actual.dtype is dtype
    torch.testing.assert_close(actual.float(), expected, rtol=torch.finfo(dtype).eps, atol=0)


def test_boxes_have_no_gradient_as_in_torchvision() -> None:
    features = torch.rand(2, 3, 12, 12, requires_grad=True)
    boxes = rois().requires_grad_()
    with cvtv.patched():
        tv.roi_align(features, boxes, 3).sum().backward()
    assert features.grad is not None and boxes.grad is None


@pytest.mark.parametrize("name", ROI_OPERATORS)
def test_double_backward_is_still_refused_by_torchvision(name: str) -> None:
    features = torch.rand(2, 9, 12, 12, requires_grad=True)
    with cvtv.patched():
        pooled = getattr(tv, name)(features, rois(), 3)
        (gradient,) = torch.autograd.grad(pooled.square().sum(), features, create_graph=True)
        with pytest.raises(RuntimeError, match="double backward"):
            gradient.sum().backward()


@pytest.mark.parametrize(
    "call",
    [
        lambda: tv.nms(torch.rand(4), torch.rand(4), 0.5),
        lambda: tv.nms(torch.rand(3, 5), torch.rand(3), 0.5),
        lambda: tv.nms(torch.rand(3, 4), torch.rand(3, 2), 0.5),
        lambda: tv.nms(torch.rand(3, 4), torch.rand(4), 0.5),
        lambda: tv.batched_nms(torch.rand(3, 4), torch.rand(4), torch.zeros(3).long(), 0.5),
        lambda: tv.batched_nms(torch.rand(3, 4), torch.rand(3), torch.zeros(4).long(), 0.5),
        lambda: torch.ops.torchvision.roi_align(
            torch.rand(1, 2, 5, 5), torch.rand(3, 4), 1.0, 2, 2, 2, False
        ),
        lambda: torch.ops.torchvision.ps_roi_pool(
            torch.rand(1, 2, 5, 5), torch.rand(3, 5), 1.0, 2, 2
        ),
        lambda: torch.ops.torchvision.ps_roi_align(
            torch.rand(1, 2, 5, 5), torch.rand(3, 5), 1.0, 2, 2, 2
        ),
    ],
)
def test_bad_arguments_raise_as_torchvision_does(call: Callable[[], Tensor]) -> None:
    with pytest.raises(RuntimeError):
        call()
    with cvtv.patched(), pytest.raises(RuntimeError, match="expected"):
        call()


def test_bad_boxes_raise_where_torchvision_reads_beyond_them() -> None:
    with cvtv.patched(), pytest.raises(RuntimeError, match=r"expected boxes of shape \(K, 5\)"):
        torch.ops.torchvision.roi_pool(torch.rand(1, 2, 5, 5), torch.rand(3, 4), 1.0, 2, 2)


@pytest.mark.native
@pytest.mark.parametrize("name", ROI_OPERATORS)
def test_a_bad_batch_index_raises_where_torchvision_crashes(name: str) -> None:
    with cvtv.patched(), pytest.raises(RuntimeError, match="row 0"):
        getattr(tv, name)(torch.rand(1, 4, 5, 5), torch.tensor([[7.0, 0, 0, 3, 3]]), 2)


# -------------------------------------------------------------------------------------------------
# torch.compile and TorchScript
# -------------------------------------------------------------------------------------------------


def postprocess(boxes: Tensor, scores: Tensor, classes: Tensor) -> Tensor:
    keep = tv.batched_nms(boxes, scores, classes, 0.3)
    return boxes[keep] * scores[keep, None]


@pytest.mark.parametrize("count", [40, 1200])
def test_compiled_batched_nms(count: int) -> None:
    """Any size in one graph; torchvision's own cannot be compiled whole above 1000 boxes."""
    arguments = some_boxes(count), some_scores(count), some_classes(count)
    expected = postprocess(*arguments)
    torch.compiler.reset()
    compiled = torch.compile(postprocess, fullgraph=True, backend="aot_eager")
    with cvtv.patched():
        assert torch.equal(compiled(*arguments), expected)


def test_a_compiled_function_follows_the_patch() -> None:
    boxes = some_boxes(40)
    # With no coordinate above -1, torchvision's shift of the classes is zero: the two differ.
    arguments = boxes - boxes.max() - 1, some_scores(40), some_classes(40)
    without = postprocess(*arguments)
    with cvtv.patched():
        within = postprocess(*arguments)
    assert without.shape != within.shape
    torch.compiler.reset()
    compiled = torch.compile(postprocess, backend="aot_eager")
    for expected in (without, within, without):
        if expected is within:
            with cvtv.patched():
                assert torch.equal(compiled(*arguments), expected)
        else:
            assert torch.equal(compiled(*arguments), expected)


@pytest.mark.parametrize("autocast", [False, True])
def test_compiled_roi_align(autocast: bool) -> None:
    features = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(8))

    def pool(features: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            features = torch.nn.functional.conv2d(features, torch.ones(3, 3, 1, 1) / 3)
            return tv.roi_align(features, rois(), 4, sampling_ratio=2)

    def run(function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        leaf = features.clone().requires_grad_()
        pooled = function(leaf)
        (gradient,) = torch.autograd.grad(pooled.float().square().sum(), leaf)
        return pooled.detach(), gradient

    torch.compiler.reset()
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    with cvtv.patched(count=True) as report:
        expected = run(pool)
        assert expected[0].dtype is (torch.bfloat16 if autocast else torch.float32)
        actual = run(compiled)
        assert (report.counts[ROI_ALIGN], report.counts[BACKWARD]) == (2, 2)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", ROI_OPERATORS)
def test_shapes_do_not_depend_on_the_patch(name: str) -> None:
    features = torch.rand(2, 8, 12, 12, device="meta").to(memory_format=torch.channels_last)
    expected = getattr(tv, name)(features, rois("meta"), 2)
    with cvtv.patched():
        actual = getattr(tv, name)(features, rois("meta"), 2)
    assert (actual.shape, actual.stride()) == (expected.shape, expected.stride())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torchscript() -> None:
    arguments = some_boxes(40), some_scores(40), some_classes(40)
    expected = tv.batched_nms(*arguments, 0.3)
    with cvtv.patched(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(torch.jit.script(BOXES.batched_nms)(*arguments, 0.3), expected)
        traced = torch.jit.trace(lambda *a: tv.batched_nms(*a, 0.3), arguments)
        assert torch.equal(traced(*arguments), expected)
        assert "cvkernels" not in str(traced.inlined_graph)


# -------------------------------------------------------------------------------------------------
# Feature pyramids
# -------------------------------------------------------------------------------------------------

PYRAMID = [str(i) for i in range(4)]


def pyramid(device: str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(12)
    sides = [64 >> i for i in range(4)]
    maps = {
        name: torch.randn(2, 6, side, side + 8, generator=generator).to(device, dtype)
        for name, side in zip(PYRAMID, sides, strict=True)
    }
    return maps | {"pool": maps["3"][..., ::2, ::2]}


def proposals(device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Boxes of every level, some of no size, of a negative one and of none that is known."""
    sides = 8 * 2 ** (torch.arange(24) / 3.5)[:, None]
    boxes = torch.cat([torch.full((24, 2), 3.0), 3 + sides * torch.tensor([1.1, 0.9])], 1)
    odd = [[9.0, 9, 9, 9], [30, 8, 4, 20], [30, 20, 4, 8], [1, float("nan"), 30, 20]]
    return [x.to(device, dtype) for x in (boxes, torch.tensor(odd))]


def pooled(maps: dict[str, Tensor], boxes: list[Tensor], **changes: Any) -> Tensor:
    arguments = {"featmap_names": PYRAMID, "output_size": (3, 2), "sampling_ratio": 2} | changes
    result: Tensor = tv.MultiScaleRoIAlign(**arguments)(maps, boxes, [(256, 288), (250, 256)])
    return result


@pytest.mark.parametrize("changes", [{}, {"canonical_scale": 100, "canonical_level": 3}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pyramid_is_one_call(device: str, dtype: torch.dtype, changes: dict[str, Any]) -> None:
    maps, boxes = pyramid(device, dtype), proposals(device, dtype)
    boxes[1] = boxes[1][:-1]  # on NaN torchvision reads outside its maps
    leaves = [maps[name].requires_grad_() for name in PYRAMID]
    expected = pooled(maps, boxes, **changes)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(expected)
    gradients = torch.autograd.grad(expected, leaves, upstream)
    with cvtv.patched(count=True) as report:
        actual = pooled(maps, boxes, **changes)
        ours = torch.autograd.grad(actual, leaves, upstream)
    assert called(report) == {cvtv.MULTISCALE: 1}
    assert (actual[:24].flatten(1) != 0).any(1).all()
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(ours, gradients)
    with cvtv.patched():
        last = {name: m.to(memory_format=torch.channels_last) for name, m in maps.items()}
        assert pooled(last, boxes).is_contiguous()


@pytest.mark.parametrize("of_boxes", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_levels_of_boxes_of_any_dtype_are_torchvision_s(
    device: str, dtype: torch.dtype, of_boxes: torch.dtype
) -> None:
    maps, boxes = pyramid(device, dtype), proposals(device, of_boxes)
    mapper = torchvision.ops.poolers.LevelMapper(2, 5)
    rows = torch.cat(
        [
            torch.arange(2, device=device).repeat_interleave(torch.tensor([24, 4], device=device))[
                :, None
            ],
            torch.cat(boxes).float(),
        ],
        1,
    )
    with cvtv.patched(count=True) as report:
        actual = pooled(maps, boxes)
        assert called(report) == {cvtv.MULTISCALE: 1}
        levels = mapper(boxes)
        expected = torch.zeros_like(actual)
        for level, name in enumerate(PYRAMID):
            chosen = (levels == level).nonzero()[:, 0]
            expected[chosen] = tv.roi_align(maps[name], rows[chosen], (3, 2), 0.25 / 2**level, 2)
    assert torch.equal(actual, expected)
    assert not actual[25].any()  # no level: one side is negative
    assert not actual[27].any()


def test_a_pyramid_that_skips_a_level(device: str) -> None:
    maps, boxes = pyramid(device), proposals(device)[:1]
    maps = {name: maps[name][:1] for name in ("0", "1", "3")}
    expected = pooled(maps, boxes)
    with cvtv.patched(count=True) as report:
        actual = pooled(maps, boxes)
    assert called(report) == {cvtv.MULTISCALE: 1}
    torch.testing.assert_close(actual, expected)
    assert not actual[-1].any()


class Coarsest(torchvision.ops.poolers.LevelMapper):  # type: ignore[misc, name-defined]
    def __call__(self, boxlists: list[Tensor]) -> Tensor:
        return torch.cat(boxlists)[:, 0].long() * 0 + 3


def test_pyramids_that_are_left_to_torchvision(device: str) -> None:
    maps, boxes = pyramid(device), proposals(device)
    boxes[1] = boxes[1][:-1]
    shapes = [(256, 288), (250, 256)]
    own = tv.MultiScaleRoIAlign(PYRAMID, 3, 2)
    own(maps, boxes, shapes)
    own.map_levels = Coarsest(2, 5)
    single = tv.MultiScaleRoIAlign(["1"], 3, 2)
    for module, calls in ((own, 4), (single, 1)):
        expected = module(maps, boxes, shapes)
        with cvtv.patched(count=True) as report:
            torch.testing.assert_close(module(maps, boxes, shapes), expected)
        assert called(report) == {ROI_ALIGN: calls}
    mixed = maps | {"2": maps["2"].double()}
    with cvtv.patched(count=True) as report:
        assert pooled(mixed, boxes).dtype is torch.float32
    assert called(report) == {ROI_ALIGN: 4}
    more = [*boxes, boxes[0]]  # boxes of an image that is not there
    with cvtv.patched():
        if device == "cuda" or EMULATED:  # a kernel cannot raise: they give zeros
            actual = pooled(maps, more)
            assert torch.equal(actual[:27], pooled(maps, boxes))
            assert len(actual) == 27 + 24
            assert not actual[27:].any()
        else:
            with pytest.raises(RuntimeError, match="in row 27"):
                pooled(maps, more)
    with pytest.raises(ValueError, match="images list should not be empty"), cvtv.patched():
        tv.MultiScaleRoIAlign(PYRAMID, 3, 2)(maps, boxes, [])


def test_a_pyramid_compiles_without_breaks() -> None:
    maps, boxes = pyramid(), proposals()
    module = tv.MultiScaleRoIAlign(PYRAMID, 3, 2)
    boxes[1] = boxes[1][:-1]
    expected = module(maps, boxes, [(256, 288), (250, 256)])
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with cvtv.patched():
        actual = compiled(maps, boxes, [(256, 288), (250, 256)])
    torch.testing.assert_close(actual, expected)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_scripted_pyramid_is_torchvision_s() -> None:
    maps, boxes = pyramid(), proposals()
    boxes[1] = boxes[1][:-1]
    shapes = [(256, 288), (250, 256)]
    module = tv.MultiScaleRoIAlign(PYRAMID, 3, 2)
    expected = module(maps, boxes, shapes)
    with cvtv.patched(count=True) as report:
        scripted = torch.jit.script(module)
        torch.testing.assert_close(scripted(maps, boxes, shapes), expected)
    assert called(report) == {ROI_ALIGN: 4}
    torch.testing.assert_close(scripted(maps, boxes, shapes), expected)


def test_a_leaked_pooling_function_is_torchvision_s() -> None:
    maps, boxes = pyramid(), proposals()
    boxes[1] = boxes[1][:-1]
    features = [maps[name] for name in PYRAMID]
    mapper = torchvision.ops.poolers.LevelMapper(2, 5)
    arguments = (features, boxes, (3, 3), 2, [0.25, 0.125, 0.0625, 0.03125], mapper)
    before = torchvision.ops.poolers._multiscale_roi_align
    with cvtv.patched():
        leaked = torchvision.ops.poolers._multiscale_roi_align
        assert leaked is not before
    assert torchvision.ops.poolers._multiscale_roi_align is before
    assert torch.equal(leaked(*arguments), before(*arguments))


# -------------------------------------------------------------------------------------------------
# Installing and removing
# -------------------------------------------------------------------------------------------------


def calls_reach_us() -> bool:
    """Whether the dispatcher's and the Python function's calls end in our kernels."""
    boxes, scores = some_boxes(4), some_scores(4)
    half = boxes.bfloat16()  # torchvision's kernel refuses it
    outcomes = set()
    for call in (
        lambda: tv.nms(half, scores, 0.5),
        lambda: tv.batched_nms(half, scores, torch.zeros(4, dtype=torch.int64), 0.5),
        lambda: tv.roi_align(torch.rand(1, 1, 4, 4).bfloat16(), [half], 2),
    ):
        try:
            call()
            outcomes.add(True)
        except RuntimeError:
            outcomes.add(False)
    (outcome,) = outcomes
    return outcome


def test_install_and_uninstall() -> None:
    assert not calls_reach_us()
    first = cvtv.install()
    assert cvtv.install() is first
    assert cvtv.report() is first
    assert calls_reach_us()
    cvtv.uninstall()
    assert not calls_reach_us()
    cvtv.uninstall()
    assert not cvtv.report().operators


def test_patched_restores_after_an_exception() -> None:
    @cvtv.patched()
    def fail() -> None:
        assert calls_reach_us()
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail()
    assert not calls_reach_us()


def test_patched_nests_and_respects_install() -> None:
    with cvtv.patched():
        with cvtv.patched():
            assert calls_reach_us()
        assert calls_reach_us()
        cvtv.install()
    assert calls_reach_us()
    with cvtv.patched():
        cvtv.uninstall()
        assert calls_reach_us()
    assert not calls_reach_us()


def test_patched_is_a_decorator() -> None:
    @cvtv.patched()
    def inside() -> bool:
        return calls_reach_us()

    assert inside()
    assert not calls_reach_us()


def test_report_names_what_was_replaced() -> None:
    with cvtv.patched() as report:
        text = str(report)
    functions = {cvtv.BATCHED_NMS, cvtv.MULTISCALE}
    assert {NMS, ROI_ALIGN, BACKWARD, *OTHERS} | functions == set(report.operators)
    assert {"CPU", "AutocastCPU"} <= set(report.operators[NMS])
    for name in ROI_OPERATORS:
        assert {"CPU", "AutocastCPU", "Meta"} <= set(report.operators[f"torchvision::{name}"])
        assert {"CPU", "Meta"} == set(report.operators[f"torchvision::_{name}_backward"]) - {"CUDA"}
    assert {report.operators[name] for name in functions} == {("Python",)}
    assert ("CUDA" in report.operators[NMS]) != ("CUDA" in report.skipped)
    assert {f"{name}.batched_nms" for name in MODULES} <= set(report.names)
    assert "torchvision.ops.poolers._multiscale_roi_align" in report.names
    for name in (*report.operators, *report.names, *report.skipped):
        assert name in text
    assert "nothing" in str(cvtv.report())


def test_counts() -> None:
    boxes, scores, classes = some_boxes(9), some_scores(9), some_classes(9)
    with cvtv.patched(count=True) as outer:
        tv.nms(boxes, scores, 0.5)
        with cvtv.patched(count=True) as inner:
            tv.batched_nms(boxes, scores, classes, 0.5)
            assert cvtv.counts() == inner.counts
        tv.nms(boxes, scores, 0.5)
    tv.nms(boxes, scores, 0.5)
    assert called(inner) == {cvtv.BATCHED_NMS: 1}
    assert called(outer) == {NMS: 2, cvtv.BATCHED_NMS: 1}
    assert set(outer.counts) == {*cvtv.OPERATORS, cvtv.BATCHED_NMS, cvtv.MULTISCALE}
    assert "2 calls" in str(outer)


def test_counting_can_be_added_to_an_installation() -> None:
    boxes, scores = some_boxes(9), some_scores(9)
    plain = cvtv.install()
    tv.nms(boxes, scores, 0.5)
    with pytest.raises(RuntimeError, match="count=True"):
        _ = plain.counts
    counting = cvtv.install(count=True)
    tv.nms(boxes, scores, 0.5)
    assert cvtv.install() is counting
    assert counting.counts[NMS] == 1
    cvtv.uninstall()
    tv.nms(boxes, scores, 0.5)
    assert counting.counts[NMS] == 1


def test_on_call_sees_the_arguments() -> None:
    seen: list[tuple[str, tuple[Any, ...]]] = []
    boxes, scores = some_boxes(9), some_scores(9)
    with cvtv.patched(on_call=lambda *call: seen.append(call)) as report:
        tv.nms(boxes, scores, 0.5)
        with cvtv.patched():
            tv.nms(boxes, scores, 0.25)
    tv.nms(boxes, scores, 0.5)
    assert [name for name, _ in seen] == [NMS, NMS]
    assert [arguments[2] for _, arguments in seen] == [0.5, 0.25]
    assert torch.equal(seen[0][1][0], boxes)
    assert report.counts[NMS] == 2


def test_names_bound_in_other_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    original = BOXES.batched_nms
    early = types.ModuleType("a_third_party_module")
    early.batched_nms = original
    early.another_name = original
    monkeypatch.setitem(sys.modules, early.__name__, early)
    late = types.ModuleType("a_module_imported_later")
    keep = {"function": original}  # not a module attribute
    leaked = {}
    with cvtv.patched(count=True) as report:
        assert early.batched_nms is BOXES.batched_nms is tv.batched_nms
        assert early.another_name is BOXES.batched_nms
        assert {"a_third_party_module.another_name"} <= set(report.names)
        monkeypatch.setitem(sys.modules, late.__name__, late)
        exec("from torchvision.ops.boxes import batched_nms", vars(late))
        leaked["function"] = late.batched_nms
        arguments = some_boxes(9), some_scores(9), some_classes(9)
        keep["function"](*arguments, 0.5)  # torchvision's function reaches our nms
        assert report.counts[NMS] == 1
        assert report.counts[cvtv.BATCHED_NMS] == 0
        early.batched_nms(*arguments, 0.5)
        assert report.counts[cvtv.BATCHED_NMS] == 1
    assert early.batched_nms is early.another_name is late.batched_nms is original
    # What leaked during the patch is torchvision's again, in effect.
    boxes = torch.tensor([[-9.0, -9.0, -1.0, -1.0]]).repeat(2, 1)
    assert len(leaked["function"](boxes, torch.tensor([0.9, 0.8]), torch.arange(2), 0.5)) == 1


def test_a_user_s_own_replacement_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(*_: Any) -> str:
        return "mine"

    monkeypatch.setattr(tv, "batched_nms", mine)
    with cvtv.patched():
        assert tv.batched_nms is mine
    assert tv.batched_nms is mine
    monkeypatch.undo()


def test_threads_install_and_call_together() -> None:
    boxes, scores = some_boxes(50), some_scores(50)
    expected = tv.nms(boxes, scores, 0.3)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                with cvtv.patched(count=True) as report:
                    assert torch.equal(tv.nms(boxes, scores, 0.3), expected)
                    assert report.counts[NMS] >= 1
                    assert report.operators
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not calls_reach_us()


def test_installing_again_and_again_leaves_nothing_behind() -> None:
    for _ in range(3):
        with cvtv.patched(count=True):
            pass
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(50):
        with cvtv.patched(count=True):
            pass
    gc.collect()
    assert len(gc.get_objects()) - before < 200


# -------------------------------------------------------------------------------------------------
# Without torchvision, or with one that is not known
# -------------------------------------------------------------------------------------------------


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in list(sys.modules):
        if name == package or name.startswith(package + "."):
            monkeypatch.setitem(sys.modules, name, None)


def test_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        hide(context, "torchvision")
        with pytest.raises(ImportError, match="pip install torchvision"):
            cvtv.install()
        with pytest.raises(ImportError, match="pip install torchvision"), cvtv.patched():
            pass
    assert not cvtv.report().operators
    assert not calls_reach_us()


def test_torchvision_that_could_not_load_its_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.extension._has_ops", lambda: False)
    with pytest.raises(ImportError, match="could not load its operators"):
        cvtv.install()


def test_torchvision_with_other_schemas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cvtv.OPERATORS, NMS, "(Tensor dets, float other) -> Tensor")
    with pytest.raises(ImportError, match=r"not supported: expected torchvision::nms\(.*other"):
        cvtv.install()
    monkeypatch.undo()
    monkeypatch.setitem(cvtv.OPERATORS, "torchvision::no_such_operator", "() -> ()")
    with pytest.raises(ImportError, match="no operator torchvision::no_such_operator"):
        cvtv.install()
    assert not calls_reach_us()


def test_a_failed_installation_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device_key: str) -> dict[str, Any]:
        raise OSError("no kernels today")

    monkeypatch.setattr(cvtv._kernels, "of_device", broken)
    with pytest.raises(OSError, match="no kernels today"):
        cvtv.install()
    with pytest.raises(OSError, match="no kernels today"), cvtv.patched():
        pass
    assert not cvtv.report().operators
    assert not calls_reach_us()


def test_importing_the_module_does_not_need_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "torchvision")
    monkeypatch.setattr("cvkernels.compat.torchvision", cvtv)  # set back: the import binds another
    monkeypatch.delitem(sys.modules, "cvkernels.compat.torchvision")
    importlib.import_module("cvkernels.compat.torchvision")
