"""The two third-party detectors, as published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Face:
    """One detected face, in pixels of the image as given."""

    box: list[float]
    score: float
    landmarks: list[list[float]]


class Mtcnn:
    """facenet-pytorch's MTCNN as published: code and weights untouched."""

    name = "MTCNN"

    def __init__(self, image: Any) -> None:
        import numpy as np
        from facenet_pytorch import MTCNN

        self.network = MTCNN(keep_all=True)
        self.image = np.asarray(image)

    def __call__(self) -> tuple[Any, ...]:
        """Boxes, scores and landmarks, or three empty tuples."""
        boxes, scores, landmarks = self.network.detect(self.image, landmarks=True)
        if boxes is None:
            return ((), (), ())
        return (boxes, scores, landmarks)

    def faces(self, result: tuple[Any, ...], factor: float) -> list[Face]:
        """Faces in pixels of the original image, the most certain first."""
        found = [
            Face(
                [float(side) * factor for side in box],
                float(score),
                [[float(x) * factor, float(y) * factor] for x, y in points],
            )
            for box, score, points in zip(*result, strict=True)
        ]
        return sorted(found, key=lambda face: -face.score)


class MaskRcnn:
    """torchvision's Mask R-CNN (ResNet-50 with feature pyramid), random weights from seed 0."""

    name = "Mask R-CNN"

    def __init__(self, image: Any, min_size: int = 320, max_size: int = 512) -> None:
        import numpy as np
        import torch
        from torchvision.models.detection import maskrcnn_resnet50_fpn

        state = torch.random.get_rng_state()
        torch.manual_seed(0)
        # Untrained, every class scores about 1/91 = 0.011: this threshold leaves thousands of
        # boxes to the last NMS. The sizes keep a forward to seconds on two cores.
        self.network = maskrcnn_resnet50_fpn(
            weights=None,
            weights_backbone=None,
            min_size=min_size,
            max_size=max_size,
            box_score_thresh=0.0115,
            box_detections_per_img=25,
        ).eval()
        torch.random.set_rng_state(state)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        self.images = [pixels.to(torch.float32) / 255]

    def __call__(self) -> tuple[Any, ...]:
        """Boxes, scores, labels and masks."""
        (result,) = self.network(self.images)
        return (result["boxes"], result["scores"], result["labels"], result["masks"])
