"""Inputs as real detectors make them, seeded, so that two machines bench the same numbers.

Boxes are [N, 4] float32 (x1, y1, x2, y2) in pixels; RoI boxes are [K, 5] with the image index
first. All are made on the CPU and moved afterwards: CUDA's generator gives other numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_CANVAS = 800.0
_IMAGE = (800, 1344)  # height, width: 800 x 1333 padded to a multiple of 32, as detectors pad it


@dataclass(frozen=True)
class NmsInput:
    """Input of NMS and batched NMS.

    Attributes:
        boxes: [N, 4] float32; rotated ones [N, 5].
        scores: [N] float32, all different unless the workload says otherwise.
        idxs: [N] int64 classes, or None.
        threshold: IoU above which the lower score goes.
    """

    boxes: Tensor
    scores: Tensor
    idxs: Tensor | None
    threshold: float


@dataclass(frozen=True)
class RoiLevel:
    """One call of RoI Align: a feature map and the boxes pooled from it.

    Attributes:
        shape: (N, C, H, W) of the feature map.
        boxes: [K, 5] float32.
        scale: Feature pixels per image pixel.
    """

    shape: tuple[int, int, int, int]
    boxes: Tensor
    scale: float


@dataclass(frozen=True)
class RoiInput:
    """Input of RoI Align: the levels that a detector pools one after another."""

    levels: tuple[RoiLevel, ...]
    output_size: tuple[int, int]
    sampling_ratio: int
    aligned: bool


# --- NMS ---


def uniform(n: int, *, classes: int | None = None, seed: int = 0) -> NmsInput:
    """Boxes uniform on 800 x 800 with sides 5..105, threshold 0.5: the more boxes, the denser."""
    g = _generator(seed)
    return _nms_input(_spread(n, _CANVAS, g), g, classes, 0.5)


def constant_density(n: int, *, seed: int = 0) -> NmsInput:
    """As dense as 1,000 boxes of `uniform`, on a canvas that grows with n."""
    g = _generator(seed)
    return _nms_input(_spread(n, _CANVAS * math.sqrt(n / 1000), g), g, None, 0.5)


def crowded(n: int, *, clusters: int = 500, seed: int = 0) -> NmsInput:
    """Boxes a few pixels off one of 500 objects: what a detector gives before NMS."""
    g = _generator(seed)
    objects = _spread(clusters, _CANVAS, g)
    chosen = objects[torch.randint(clusters, (n,), generator=g)]
    return _nms_input(chosen + 3 * torch.randn(n, 4, generator=g), g, None, 0.5)


def aerial(n: int = 1000, *, seed: int = 0) -> NmsInput:
    """Small objects on an 8,000 x 8,000 image: shifting 80 classes apart costs them digits."""
    g = _generator(seed)
    corner = 8000 * torch.rand(n // 4, 2, generator=g)
    objects = torch.cat([corner, corner + 4 + 12 * torch.rand(n // 4, 2, generator=g)], 1)
    chosen = torch.randint(len(objects), (n,), generator=g)
    boxes = objects[chosen] + 6 * torch.rand(n, 4, generator=g)
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    found = _nms_input(boxes, g, None, 0.5)
    return NmsInput(found.boxes, found.scores, chosen % 80, found.threshold)


def rpn(per_level: int = 1000, *, seed: int = 0) -> NmsInput:
    """Proposals of a five-level FPN on one 800 x 1333 image, before NMS at 0.7, by level.

    The best `per_level` of each level: 1,000 at inference, 2,000 in training, fewer where the level
    is small.
    """
    g = _generator(seed)
    objects, levels, scores, ids = _objects(30, 1, g)[0], [], [], []
    for level, stride in enumerate((4, 8, 16, 32, 64)):
        anchors = _anchors(_IMAGE, stride, (8 * stride,), (0.5, 1.0, 2.0))
        boxes, logits, _ = _detect(anchors, objects, g, pull=0.7)
        best = logits.topk(min(per_level, len(logits))).indices
        levels.append(boxes[best])
        scores.append(logits[best])
        ids.append(torch.full_like(best, level))
    return NmsInput(torch.cat(levels), _untie(torch.cat(scores)), torch.cat(ids), 0.7)


def retinanet(*, seed: int = 0) -> NmsInput:
    """RetinaNet's candidates: 1,000 per level above 0.05, 91 classes, threshold 0.5."""
    g = _generator(seed)
    objects, boxes, scores, ids = _objects(20, 91, g), [], [], []
    for stride in (8, 16, 32, 64, 128):
        sizes = tuple(4 * stride * 2 ** (i / 3) for i in range(3))
        anchors = _anchors(_IMAGE, stride, sizes, (0.5, 1.0, 2.0))
        found, logits, labels = _detect(anchors, objects[0], g, pull=0.9, labels=objects[1])
        best = logits.topk(min(1000, len(logits))).indices
        boxes.append(found[best])
        scores.append(logits[best])
        ids.append(labels[best])
    return NmsInput(torch.cat(boxes), _untie(torch.cat(scores)), torch.cat(ids), 0.5)


def yolo(*, seed: int = 0) -> NmsInput:
    """All 8,400 boxes of a 640 x 640 YOLO, 80 classes, threshold 0.7: evaluation without a cut."""
    g = _generator(seed)
    objects, labels = _objects(25, 80, g, (640, 640))
    anchors = torch.cat([_anchors((640, 640), s, (5 * s,), (1.0,)) for s in (8, 16, 32)])
    boxes, logits, ids = _detect(anchors, objects, g, pull=0.9, labels=labels)
    noise = torch.randint(80, ids.shape, generator=g)
    ids = torch.where(torch.rand(ids.shape, generator=g) < 0.3, noise, ids)
    return NmsInput(boxes, _untie(logits), ids, 0.7)


# --- rotated boxes: (centre x, centre y, width, height, angle), [N, 5] ---


def rotated_uniform(n: int, *, seed: int = 0) -> NmsInput:
    """As `constant_density`, at any angle."""
    g = _generator(seed)
    centre = _CANVAS * math.sqrt(n / 1000) * torch.rand(n, 2, generator=g)
    side = 5 + 100 * torch.rand(n, 2, generator=g)
    angle = math.pi * (torch.rand(n, 1, generator=g) - 0.5)
    return _nms_input(torch.cat([centre, side, angle], 1), g, None, 0.5)


def rotated_aerial(n: int = 2000, *, seed: int = 0) -> NmsInput:
    """Eight detections of each vehicle, ship or plane on a tile of 1,024 px: 15 classes, 0.1.

    The candidates of a rotated RetinaNet on DOTA before its NMS.
    """
    g = _generator(seed)
    count = max(n // 8, 1)
    length = 12 * torch.exp2(3 * torch.rand(count, 1, generator=g))
    width = length * (0.2 + 0.5 * torch.rand(count, 1, generator=g))
    angle = math.pi * (torch.rand(count, 1, generator=g) - 0.5)
    objects = torch.cat([1024 * torch.rand(count, 2, generator=g), length, width, angle], 1)
    chosen = torch.randint(count, (n,), generator=g)
    noise = torch.randn(n, 5, generator=g)
    boxes = objects[chosen]
    boxes[:, :2] += 0.1 * boxes[:, 3:4] * noise[:, :2]
    boxes[:, 2:4] *= torch.exp(0.1 * noise[:, 2:4])
    boxes[:, 4] += 0.1 * noise[:, 4]
    found = _nms_input(boxes, g, None, 0.1)
    return NmsInput(found.boxes, found.scores, chosen % 15, found.threshold)


def rotated_anchors(objects: int = 64, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The anchors of a rotated RetinaNet at 1,024 px and the objects to assign to them."""
    g = _generator(seed)
    levels = [
        _anchors((1024, 1024), stride, (4 * stride,), (1.0,)) for stride in (8, 16, 32, 64, 128)
    ]
    corners = torch.cat(levels)
    centre, size = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    anchors = torch.cat([centre, size, torch.zeros(len(corners), 1)], 1)
    return anchors, rotated_aerial(objects, seed=int(torch.randint(1000, (), generator=g))).boxes


# --- RoI Align ---


def c4(boxes: int = 512) -> RoiInput:
    """The acceptance workload: 2x256x50x84, 512 boxes of 20..320 px, 1/16, 7x7, aligned."""
    g = _generator(0)
    side = 20 + 300 * torch.rand(boxes, 2, generator=g)
    corner = torch.rand(boxes, 2, generator=g) * (torch.tensor([1344.0, 800.0]) - side)
    image = torch.randint(2, (boxes, 1), generator=g).float()
    rois = torch.cat([image, corner, corner + side], 1)
    return RoiInput((RoiLevel((2, 256, 50, 84), rois, 1 / 16),), (7, 7), 2, True)


def fpn(boxes: int, output: int, *, images: int = 1, seed: int = 0) -> RoiInput:
    """Mask R-CNN at 800 x 1333: boxes dealt to four levels by size, 256 channels each."""
    g = _generator(seed)
    height, width = _IMAGE
    side = 16 * torch.exp2(5 * torch.rand(boxes, 1, generator=g) ** 1.3)  # 16..512, more small ones
    shape = torch.exp2(torch.rand(boxes, 1, generator=g) - 0.5)
    size = torch.cat([side * shape, side / shape], 1)
    corner = torch.rand(boxes, 2, generator=g) * (
        torch.tensor([float(width), float(height)]) - size
    )
    image = torch.randint(images, (boxes, 1), generator=g).float()
    rois = torch.cat([image, corner, (corner + size)], 1)
    level = (4 + torch.log2(side[:, 0] / 224 + 1e-6)).floor().clamp(2, 5).int()
    levels = []
    for k in (2, 3, 4, 5):
        stride = 2**k
        feature = (images, 256, height // stride, width // stride)
        levels.append(RoiLevel(feature, rois[level == k].contiguous(), 1 / stride))
    return RoiInput(tuple(levels), (output, output), 2, False)


def rfcn(boxes: int = 300, output_channels: int = 10) -> RoiInput:
    """R-FCN on two 600 x 1000 images: score maps 1/16, 7 x 7 bins, boxes of 20..320 px.

    Ten channels of each bin (490 in all) are light-head R-CNN's, 21 (1,029) R-FCN's on VOC. The far
    rim is left out: torchvision's gradient of ps_roi_pool is no derivative of its result there.
    """
    g = _generator(0)
    side = 20 + 300 * torch.rand(boxes, 2, generator=g)
    corner = torch.rand(boxes, 2, generator=g) * (torch.tensor([976.0, 576.0]) - side)
    image = torch.randint(2, (boxes, 1), generator=g).float()
    rois = torch.cat([image, corner, corner + side], 1)
    return RoiInput((RoiLevel((2, 49 * output_channels, 38, 63), rois, 1 / 16),), (7, 7), 2, True)


def large() -> RoiInput:
    """Eight boxes over most of a stride-4 map, adaptive grid: few bins, thousands of samples."""
    g = _generator(0)
    corner = 100 * torch.rand(8, 2, generator=g)
    far = torch.tensor([1344.0, 800.0]) - 100 * torch.rand(8, 2, generator=g)
    rois = torch.cat([torch.zeros(8, 1), corner, far], 1)
    return RoiInput((RoiLevel((1, 256, 200, 336), rois, 0.25),), (7, 7), -1, False)


def tiny() -> RoiInput:
    """Ten boxes on a map of four channels: what is left is the cost of a call."""
    g = _generator(0)
    corner = 8 * torch.rand(10, 2, generator=g)
    rois = torch.cat([torch.zeros(10, 1), corner, corner + 6], 1)
    return RoiInput((RoiLevel((1, 4, 16, 16), rois, 1.0),), (2, 2), 2, True)


def rotated_c4(boxes: int = 512) -> RoiInput:
    """The boxes of `c4`, each turned about its centre: [K, 6]."""
    level = c4(boxes).levels[0]
    angle = math.pi * (torch.rand(boxes, 1, generator=_generator(1)) - 0.5)
    corners = level.boxes
    centre, size = (corners[:, 1:3] + corners[:, 3:]) / 2, corners[:, 3:] - corners[:, 1:3]
    rois = torch.cat([corners[:, :1], centre, size, angle], 1)
    return RoiInput((RoiLevel(level.shape, rois, level.scale),), (7, 7), 2, True)


def rotated_tile(boxes: int = 1000) -> RoiInput:
    """Detections of vehicles, ships and planes on a tile of 1,024 px, pooled at a stride of 8."""
    rois = rotated_aerial(boxes).boxes
    rois = torch.cat([torch.zeros(len(rois), 1), rois], 1)
    return RoiInput((RoiLevel((1, 256, 128, 128), rois, 1 / 8),), (7, 7), 2, True)


# --- helpers ---


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _spread(n: int, canvas: float, g: torch.Generator) -> Tensor:
    corner = canvas * torch.rand(n, 2, generator=g)
    return torch.cat([corner, corner + 5 + 100 * torch.rand(n, 2, generator=g)], 1)


def _nms_input(
    boxes: Tensor, g: torch.Generator, classes: int | None, threshold: float
) -> NmsInput:
    n = len(boxes)
    scores = (torch.randperm(n, generator=g) + 1).float() / (n + 1)
    idxs = None if classes is None else torch.randint(classes, (n,), generator=g)
    return NmsInput(boxes, scores, idxs, threshold)


def _untie(logits: Tensor) -> Tensor:
    """Scores in the order of the logits, no two alike: ties would bench two tie rules."""
    rank = torch.empty_like(logits)
    rank[logits.argsort(stable=True)] = torch.arange(1.0, len(logits) + 1)
    return rank / (len(logits) + 1)


def _anchors(
    image: tuple[int, int], stride: int, sizes: tuple[float, ...], ratios: tuple[float, ...]
) -> Tensor:
    """[A, 4] anchor boxes of one level: every size and height-to-width ratio at every pixel."""
    rows, columns = math.ceil(image[0] / stride), math.ceil(image[1] / stride)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    centre = (torch.stack([x, y], -1).reshape(-1, 1, 2) + 0.5) * stride
    half = torch.tensor([(s / r**0.5 / 2, s * r**0.5 / 2) for s in sizes for r in ratios])
    return torch.cat([centre - half, centre + half], -1).reshape(-1, 4)


def _objects(
    count: int, classes: int, g: torch.Generator, image: tuple[int, int] = _IMAGE
) -> tuple[Tensor, Tensor]:
    """Boxes of what is in the picture, and their classes."""
    height, width = image
    side = 24 * torch.exp2(4 * torch.rand(count, 1, generator=g))
    shape = torch.exp2(torch.rand(count, 1, generator=g) - 0.5)
    half = torch.cat([side * shape, side / shape], 1) / 2
    centre = torch.rand(count, 2, generator=g) * torch.tensor([float(width), float(height)])
    boxes = torch.cat([centre - half, centre + half], 1)
    return boxes, torch.randint(classes, (count,), generator=g)


def _detect(
    anchors: Tensor,
    objects: Tensor,
    g: torch.Generator,
    *,
    pull: float,
    labels: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What a plausible detector gives: anchors near an object are drawn to it and score high."""
    centre = (anchors[:, None, :2] + anchors[:, None, 2:]) / 2
    target = (objects[None, :, :2] + objects[None, :, 2:]) / 2
    size = (anchors[:, 2:] - anchors[:, :2]).prod(1).sqrt()
    wanted = (objects[:, 2:] - objects[:, :2]).prod(1).sqrt()
    apart = (centre - target).norm(dim=-1) / wanted
    unlike = (size[:, None] / wanted).log2().abs()
    distance, nearest = (apart + 0.5 * unlike).min(1)
    near = (-2 * distance * distance).exp()
    weight = (pull * near)[:, None]
    jitter = 0.06 * size[:, None] * torch.randn(len(anchors), 4, generator=g)
    boxes = (1 - weight) * anchors + weight * objects[nearest] + jitter
    boxes = torch.cat([torch.minimum(boxes[:, :2], boxes[:, 2:] - 1), boxes[:, 2:]], 1)
    logits = 6 * near - 4 + torch.randn(len(anchors), generator=g)
    return boxes, logits, nearest if labels is None else labels[nearest]


# --- convolution ---


@dataclass(frozen=True)
class ConvShape:
    """One convolution layer.

    Attributes:
        name: For reports.
        input: (N, C, H, W).
        filters: O.
        kernel: (KH, KW).
        stride, padding, dilation: Along both axes.
        groups: C for a depthwise layer.
    """

    name: str
    input: tuple[int, int, int, int]
    filters: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1

    @property
    def weight(self) -> tuple[int, int, int, int]:
        """[O, C / groups, KH, KW]."""
        return (self.filters, self.input[1] // self.groups, *self.kernel)

    @property
    def output(self) -> tuple[int, int, int, int]:
        """[N, O, OH, OW]."""
        height, width = (
            (size + 2 * self.padding - self.dilation * (k - 1) - 1) // self.stride + 1
            for size, k in zip(self.input[2:], self.kernel, strict=True)
        )
        return (self.input[0], self.filters, height, width)

    @property
    def products(self) -> int:
        """Multiply-adds."""
        return math.prod(self.output) // self.filters * math.prod(self.weight)


def conv(
    channels: int,
    filters: int,
    kernel: int,
    height: int,
    width: int | None = None,
    *,
    batch: int = 1,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
) -> ConvShape:
    """A layer that keeps the size but for its stride; a multiple of `groups` filters."""
    width = height if width is None else width
    kind = "dw " if groups > 1 else ""
    name = f"{kind}{channels}->{filters} {kernel}x{kernel} {height}x{width}"
    name += (f" s{stride}" if stride > 1 else "") + (f" d{dilation}" if dilation > 1 else "")
    name += f" N={batch}" if batch > 1 else ""
    shape = (batch, channels, height, width)
    padding = dilation * (kernel - 1) // 2
    return ConvShape(name, shape, filters, (kernel, kernel), stride, padding, dilation, groups)


def model_convs(model: str, batch: int) -> list[ConvShape]:
    """Every distinct convolution of a torchvision model on 224 x 224 images."""
    import torchvision

    found: dict[ConvShape, None] = {}

    def note(layer: torch.nn.Conv2d, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        height, width = inputs[0].shape[2:]
        shape = conv(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size[0],
            height,
            width,
            batch=batch,
            stride=layer.stride[0],
            groups=layer.groups,
        )
        assert (shape.padding, shape.padding) == layer.padding and layer.dilation == (1, 1)
        found[shape] = None

    with torch.device("meta"):
        network = getattr(torchvision.models, model)(weights=None).eval()
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.register_forward_hook(note)
        network(torch.empty(batch, 3, 224, 224))
    return list(found)
