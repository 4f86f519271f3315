"""Boxes, scores and classes for the tests of the NMS family."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

NAN, INF = float("nan"), float("inf")
THRESHOLDS = [-0.5, 0.0, 0.1, 0.3, 0.5, 0.7, 0.999, 1.0, 1.5]


def spread(count: int, seed: int = 0, side: float | None = None) -> Tensor:
    """Boxes with sides 5..105 spread evenly at constant density (or over ``side``)."""
    generator = torch.Generator().manual_seed(seed)
    side = side or 25 * math.sqrt(max(count, 1))
    corner = side * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    size = 5 + 100 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    return torch.cat([corner, corner + size], 1)


def crowd(count: int, clusters: int, seed: int = 0, offset: float = 0.0) -> Tensor:
    """Boxes that jitter around a few centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = spread(clusters, seed + 1, side=2000)
    pick = torch.randint(0, clusters, (count,), generator=generator)
    return (
        centres[pick] + 4 * torch.randn(count, 4, generator=generator, dtype=torch.float64) + offset
    )


def grid_boxes(count: int, seed: int = 0) -> Tensor:
    """Boxes with small whole coordinates: duplicates, nested, touching, empty, inverted."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 9, (count, 4), generator=generator).double()


def odd_boxes(count: int, seed: int = 0) -> Tensor:
    """Whole-number boxes, a third of which hold a NaN, an infinity or a huge number."""
    generator = torch.Generator().manual_seed(seed)
    boxes = grid_boxes(count, seed)
    strange = torch.tensor([NAN, INF, -INF, 6e4, -6e4, 1e-6])
    rows = torch.rand(count, generator=generator) < 0.33
    column = torch.randint(0, 4, (count,), generator=generator)
    value = strange[torch.randint(0, len(strange), (count,), generator=generator)].double()
    index = rows.nonzero().flatten()
    boxes[index, column[index]] = value[index]
    return boxes


def random_scores(count: int, seed: int = 100, levels: int | None = None) -> Tensor:
    """Scores in [0, 1); ``levels`` gives that many distinct ones, so ties."""
    generator = torch.Generator().manual_seed(seed)
    if levels is None:
        return torch.rand(count, generator=generator, dtype=torch.float64)
    return torch.randint(0, levels, (count,), generator=generator).double() / levels


def classes(count: int, how_many: int, seed: int = 200, dtype: torch.dtype = torch.int64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, how_many, (count,), generator=generator).to(dtype)


SETS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "empty": lambda: (torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)),
    "one": lambda: (spread(1), random_scores(1)),
    "two": lambda: (grid_boxes(2, 3), random_scores(2)),
    "spread": lambda: (spread(130), random_scores(130)),
    "crowd": lambda: (crowd(200, 7), random_scores(200)),
    "grid": lambda: (grid_boxes(150), random_scores(150, levels=20)),
    "odd": lambda: (odd_boxes(120), random_scores(120, levels=10)),
    "one score": lambda: (spread(100), torch.ones(100, dtype=torch.float64)),
    "one box": lambda: (spread(1).expand(70, 4).clone(), random_scores(70, levels=5)),
    "no area": lambda: (spread(40)[:, [0, 1, 0, 1]], random_scores(40)),
    "inverted": lambda: (spread(40, side=200)[:, [2, 3, 0, 1]], random_scores(40)),
    "far": lambda: (crowd(80, 4, offset=-3e4), random_scores(80)),
    "64": lambda: (crowd(64, 5), random_scores(64)),
    "65": lambda: (crowd(65, 5), random_scores(65)),
}


def bad_scores(count: int) -> Tensor:
    scores = random_scores(count, levels=8)
    scores[::7] = NAN
    scores[1::11] = INF
    scores[2::13] = -INF
    scores[3::5] = -0.0
    scores[4::9] = 0.0
    return scores


# A: 10 x 10 at the origin. B: A moved right by 5. C: A moved right by 8.
# IoU: A and B 50 / 150 = 1/3, A and C 20 / 180 = 1/9, B and C 70 / 130 = 7/13.
A_B_C = [[0.0, 0, 10, 10], [5, 0, 15, 10], [8, 0, 18, 10]]


def whole_boxes(count: int, seed: int = 0) -> Tensor:
    """Boxes with extent at small whole coordinates, so that many overlaps are equal."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 12, (count, 2), generator=generator)
    size = torch.randint(1, 9, (count, 2), generator=generator)
    return torch.cat([corner, corner + size], 1).double()


def apart_by_class(function: Callable[..., Tensor], idxs: Tensor) -> Tensor:
    """Indices that ``function`` gives for the rows of each class alone, in ascending order."""
    rows = [(idxs == c).nonzero().flatten() for c in idxs.unique()]
    kept = [r[function(r)] for r in rows]
    return torch.cat(kept).sort().values if kept else idxs.new_zeros(0, dtype=torch.int64)


# Small enough for references that look at every pair of boxes.
SCENES: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "empty": SETS["empty"],
    "one": SETS["one"],
    "packed": lambda: (spread(50, 1, side=150), random_scores(50)),
    "crowd": lambda: (crowd(64, 5), random_scores(64)),
    "65": lambda: (spread(65, 2, side=200), random_scores(65)),
    "far": lambda: (crowd(40, 4, offset=-3e4), random_scores(40)),
    "no area": lambda: (spread(20)[:, [0, 1, 0, 1]], random_scores(20)),
    "inverted": lambda: (spread(20, side=200)[:, [2, 3, 0, 1]], random_scores(20)),
}
# Equal overlaps, sides or scores. A gradient is not compared where sides are equal.
TIED: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "whole": lambda: (whole_boxes(60), random_scores(60)),
    "whole, ties": lambda: (whole_boxes(60), random_scores(60, levels=12)),
    "odd": lambda: (odd_boxes(60), random_scores(60, levels=10)),
    "one score": lambda: (spread(40, 3, side=150), torch.ones(40, dtype=torch.float64)),
    "one box": lambda: (spread(1).expand(30, 4).clone(), random_scores(30, levels=5)),
    "bad scores": lambda: (crowd(45, 4), bad_scores(45)),
}
