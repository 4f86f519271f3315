"""A crowded scene, MTCNN's first candidates, and what each variant of NMS makes of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cvkernels import ops
from cvkernels.demo._detectors import Mtcnn

THRESHOLD = 0.5  # MTCNN's own, of its first NMS.
LEAST_SCORE = 0.3  # For variants that lower scores: half of what MTCNN asks of a candidate.
ON_A_FACE = 0.3  # IoU with a face from which a box counts as one on it.
TIMING_SECONDS = 0.1  # For each variant.

GUESSES = """\
What a network would predict is derived from the candidates alone, not from the known faces:
  softer     variance of a coordinate: its spread over the candidates that overlap the box > 0.5,
             plus that of the grid, whose windows lie a sixth of a side apart
  iou-guided localization: sum of the overlaps > 0.5 with other candidates / (their number + 1)
  adaptive   density: of the boxes that survive NMS at 0.7, the survivor nearest to the box, and its
             largest overlap with another survivor, in hundredths
A network that has learned them does better; that of adaptive NMS takes duplicates for neighbours
here, because nothing in the boxes alone tells a crowd from one object found many times."""


@dataclass
class Scene:
    """Candidates and what is known of the photograph, in its pixels."""

    boxes: Tensor  # [N, 4]
    scores: Tensor  # [N]
    faces: Tensor  # [F, 4], what the whole of MTCNN finds


@dataclass
class Guesses:
    """Stands for what a network would predict; see GUESSES."""

    variances: Tensor  # [N, 4]
    densities: Tensor  # [N]
    localization: Tensor  # [N]


Output = tuple[Tensor, Tensor, Tensor]  # boxes, scores, indices of the candidates they come from


@dataclass
class Result:
    """What one variant made of the scene."""

    variant: str
    call: str
    boxes: Tensor
    scores: Tensor
    keep: Tensor
    milliseconds: float | None = None
    changed: str = ""
    per_face: float | None = None  # mean number of boxes on a face
    top_iou: float | None = None  # of the box of the highest score on a face, mean over faces
    closest_iou: float | None = None  # of the box on a face that fits best, mean over faces


def crowded(mtcnn: Mtcnn) -> Scene:
    """Runs MTCNN and keeps the candidates of its first stage, before it suppresses any.

    Each is moved by the offsets that the first network predicts for it, as MTCNN does with those
    that it keeps.
    """
    from facenet_pytorch.models.utils import detect_face

    generate = detect_face.generateBoundingBox
    pyramid: list[Tensor] = []

    def recording(*arguments: Any) -> Any:
        candidates, images = generate(*arguments)
        pyramid.append(candidates.detach().clone())
        return candidates, images

    detect_face.generateBoundingBox = recording
    try:
        with torch.inference_mode():
            faces = [face.box for face in mtcnn.faces(mtcnn(), 1.0)]
    finally:
        detect_face.generateBoundingBox = generate
    rows = torch.cat(pyramid).clone()  # Outside of inference mode: an ordinary tensor.
    corners, scores, offsets = rows[:, :4], rows[:, 4], rows[:, 5:9]
    sides = (corners[:, 2:] - corners[:, :2]).repeat(1, 2)
    return Scene(
        corners + offsets * sides, scores.contiguous(), torch.tensor(faces).reshape(-1, 4).float()
    )


def guessed(scene: Scene) -> Guesses:
    """Variances, densities and localization from the candidates."""
    boxes = scene.boxes.double()
    overlaps = box_iou(boxes, boxes)
    near = overlaps > 0.5
    share = near.double() / near.sum(1, keepdim=True).clamp(min=1)
    means = share @ boxes
    # About the own mean of each neighbourhood, so that nothing cancels.
    spread = torch.zeros_like(boxes)
    for j, mean in enumerate(means):
        spread[j] = share[j] @ (boxes - mean) ** 2
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    variances = spread + (sides / 6) ** 2 / 12  # of a uniform distribution that wide
    others = (overlaps * near).sum(1) - overlaps.diagonal()
    localization = others / near.sum(1).clamp(min=1)
    densities = torch.zeros(len(boxes), dtype=boxes.dtype)
    survivors = ops.nms(scene.boxes, scene.scores, 0.7)
    if len(survivors):
        rivals = overlaps[survivors][:, survivors].fill_diagonal_(0).amax(1)
        # Rounded up: the density is that overlap, and has to be above it in float32 too.
        densities = (rivals * 100).ceil()[overlaps[:, survivors].argmax(1)] / 100
    return Guesses(variances.float(), densities.float(), localization.float())


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """torchvision's, which the demo has anyway."""
    import torchvision.ops

    overlaps: Tensor = torchvision.ops.box_iou(boxes, others)
    return overlaps


# -------------------------------------------------------------------------------------------------
# The variants
# -------------------------------------------------------------------------------------------------

Run = Callable[[Scene, Guesses], Output]


def _kept(scene: Scene, keep: Tensor, scores: Tensor | None = None) -> Output:
    return scene.boxes[keep], scene.scores[keep] if scores is None else scores, keep


def _hard(criterion: str) -> Run:
    return lambda s, _: _kept(s, ops.nms(s.boxes, s.scores, THRESHOLD, criterion=criterion))


def _soft(method: str) -> Run:
    return lambda s, _: _kept(
        s,
        *ops.soft_nms(
            s.boxes, s.scores, method=method, iou_threshold=THRESHOLD, min_score=LEAST_SCORE
        ),
    )


def _cluster(mode: str) -> Run:
    return lambda s, _: ops.cluster_nms(
        s.boxes, s.scores, THRESHOLD, mode=mode, min_score=LEAST_SCORE
    )


#: Variant, the call shown, and what runs.
VARIANTS: list[tuple[str, str, Run]] = [
    ("none", "every candidate", lambda s, _: _kept(s, s.scores.argsort(descending=True))),
    ("nms", "nms", _hard("iou")),
    ("nms giou", 'nms(criterion="giou")', _hard("giou")),
    ("nms diou", "diou_nms", _hard("diou")),
    ("nms ciou", 'nms(criterion="ciou")', _hard("ciou")),
    (
        "adaptive",
        "adaptive_nms",
        lambda s, g: _kept(s, ops.adaptive_nms(s.boxes, s.scores, g.densities, THRESHOLD)),
    ),
    ("soft linear", "soft_nms", _soft("linear")),
    ("soft gaussian", 'soft_nms(method="gaussian")', _soft("gaussian")),
    ("weighted", "weighted_nms", lambda s, _: ops.weighted_nms(s.boxes, s.scores, THRESHOLD)),
    (
        "softer",
        "softer_nms",
        lambda s, g: ops.softer_nms(s.boxes, s.scores, g.variances, THRESHOLD),
    ),
    (
        "iou-guided",
        "iou_guided_nms",
        lambda s, g: _kept(s, *ops.iou_guided_nms(s.boxes, s.scores, g.localization, THRESHOLD)),
    ),
    ("cluster penalty", 'cluster_nms(mode="score_penalty")', _cluster("score_penalty")),
    ("cluster weighted", 'cluster_nms(mode="weighted")', _cluster("weighted")),
    (
        "matrix",
        "matrix_nms",
        lambda s, _: _kept(s, *ops.matrix_nms(s.boxes, s.scores, min_score=LEAST_SCORE)),
    ),
]


def run_variants(scene: Scene) -> list[Result]:
    """Every variant on the scene: its boxes, how they differ from those of NMS, and the time."""
    guesses = guessed(scene)
    results = []
    hard: Result | None = None
    for variant, call, run in VARIANTS:
        result = Result(variant, call, *run(scene, guesses))
        if variant != "none":
            result.milliseconds = _timed(lambda run=run: run(scene, guesses))  # type: ignore[misc]
        if variant == "nms":
            hard = result
        result.changed = _changed(result, hard, scene)
        _measure(result, scene)
        results.append(result)
    return results


def _timed(run: Callable[[], Any]) -> float:
    """The median, in milliseconds, of what has run once already; on one thread."""
    times: list[float] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # Waiting for a second one would take longer than the work.
    try:
        stop = time.perf_counter() + TIMING_SECONDS
        while len(times) < 3 or time.perf_counter() < stop:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(times) * 1e3


def _changed(result: Result, hard: Result | None, scene: Scene) -> str:
    """How a result differs from that of hard NMS, in words."""
    if hard is None:
        return "nothing is suppressed"
    if result is hard:
        return "overlaps > 0.5 with a better box are gone"
    kept, others = set(result.keep.tolist()), set(hard.keep.tolist())
    parts = []
    if kept != others:
        parts.append(f"{len(kept - others)} more, {len(others - kept)} fewer than nms")
    shift = (result.boxes - scene.boxes[result.keep]).abs().amax(1)
    moved = shift > 1e-3
    if moved.any():
        parts.append(f"{int(moved.sum())} moved by {float(shift[moved].mean()):.1f} px")
    before = scene.scores[result.keep]
    lower, higher = result.scores < before, result.scores > before
    if lower.any():
        parts.append(f"{int(lower.sum())} lower scores")
    if higher.any():
        parts.append(f"{int(higher.sum())} higher scores")
    return ", ".join(parts) or "as nms"


def _measure(result: Result, scene: Scene) -> None:
    """Fills in what is measured on the known faces, where there are any."""
    if not len(scene.faces):
        return
    overlaps = box_iou(result.boxes, scene.faces)
    on_face = overlaps > ON_A_FACE
    result.per_face = float(on_face.sum(0).double().mean())
    top, closest = [], []
    for face in range(len(scene.faces)):
        rows = on_face[:, face].nonzero()[:, 0]
        if not len(rows):
            top.append(0.0)
            closest.append(0.0)
            continue
        best = rows[result.scores[rows].argmax()]
        top.append(float(overlaps[best, face]))
        closest.append(float(overlaps[rows, face].max()))
    result.top_iou, result.closest_iou = statistics.mean(top), statistics.mean(closest)
