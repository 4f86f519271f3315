"""Arguments of the RoI family, good and bad, for whatever its functions take."""

from __future__ import annotations

import inspect
import math
import random
from typing import Any

import torch
from fuzz_values import (
    FLOATS,
    STRANGE,
    Args,
    dyadic,
    restride,
    spoil_tensor,
    sprinkle,
    values,
)
from torch import Tensor

from cvkernels import ops

NOT_NUMBERS = ["1", None, [0.5], 1j, object()]
BAD_SCALES = [0.0, -1.0, math.nan, math.inf, 1e-38, 1e38, 1e308, 10**400, True, *NOT_NUMBERS]
GOOD: dict[str, list[Any]] = {
    "output_size": [1, 2, 3, (2, 4), [1, 3]],
    "spatial_scale": [1.0, 0.5, 0.25, 2, 1],
    "sampling_ratio": [-1, 0, 1, 2, 4],
    "aligned": [False, True],
    "clockwise": [False, True],
    "mode": ["avg", "max"],
    "gamma": [0.1, 0.5, 1, 0.0],
    "canonical_scale": [224, 4, 16.0],
    "canonical_level": [4, 1, 2],
}
BAD: dict[str, list[Any]] = {
    "output_size": [
        *(0, -3, (0, 1), (1, 2, 3), (), "7", 2.0, None, 2**31, 2**80, (1, -(2**70))),
        (2**31 - 1, 2**31 - 1),
    ],
    "spatial_scale": BAD_SCALES,
    "sampling_ratio": [-(2**31), -(2**63), 2**15 + 1, 2**31, 2**63, 2**70, 1.5, "2", None, 7],
    "aligned": ["yes", 0, 1, 2.5, [True]],
    "clockwise": ["yes", 0, 1, 2.5, [True]],
    "mode": ["AVG", "", None, 3, "median"],
    "gamma": [math.nan, math.inf, -1.0, 1e300, 10**400, *NOT_NUMBERS],
    "canonical_scale": [0, -3, math.nan, math.inf, 10**400, *NOT_NUMBERS],
    "canonical_level": [-5, 2**31, 2**70, 1.5, "4", None],
    "spatial_scales": [None, 1.0, (), (1.0,), (1.0, -1.0), "1", (math.nan, 1.0)],
}


def boxes_of(rng: random.Random, op: str, images: int, height: int, width: int) -> Tensor:
    """[K, 5] rows of corners, or [K, 6] of centres, sizes and an angle."""
    rows = []
    for _ in range(rng.randint(0, 6)):
        x, y = dyadic(rng, -4, width), dyadic(rng, -4, height)
        w, h = dyadic(rng, 0, 12), dyadic(rng, 0, 12)
        image = float(rng.randrange(images)) if images else 0.0
        if "rotated" in op:
            rows.append([image, x, y, w, h, rng.choice([0.0, 0.5, -1.25, 3.0])])
        else:
            rows.append([image, x, y, x + w, y + h])
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 6 if "rotated" in op else 5)


def roi_case(rng: random.Random, op: str) -> Args:
    """Arguments of one function of the RoI family, most of them nearly good."""
    parameters = list(inspect.signature(getattr(ops, op)).parameters)
    maps_name, boxes_name = parameters[:2]
    size = rng.choice(GOOD["output_size"])
    bins = math.prod(size) if isinstance(size, (tuple, list)) else size * size
    n, h, w = rng.choice([1, 1, 2, 3]), rng.randint(1, 9), rng.randint(1, 9)
    c = rng.randint(1, 5) if not op.startswith("ps_") else bins * rng.randint(1, 2)
    args: Args = {}
    if maps_name == "input":
        args["input"] = values(rng, [n, c, h, w], -8, 8)
    else:
        levels = rng.randint(1, 4)
        args[maps_name] = [
            values(rng, [n, c, max(1, h >> i), max(1, w >> i)], -8, 8) for i in range(levels)
        ]
    boxes = boxes_of(rng, op, n, h, w)
    args[boxes_name] = boxes
    if "offset" in parameters:
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        offset = values(rng, [len(boxes), 2, height, width], -2, 2)
        args["offset"] = rng.choice([None, offset, offset, offset])
    args["output_size"] = size
    if "spatial_scales" in parameters:
        args["spatial_scales"] = [0.5 ** (i + 1) for i in range(len(args[maps_name]))]
    for name, good in GOOD.items():
        if name in parameters and name != "output_size" and rng.random() < 0.7:
            args[name] = rng.choice(good)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        if spoil(rng, op, args, maps_name, boxes_name, n):
            break
    # Rounded to some dtype at the end, so that the values stay the same for the reference.
    narrow(rng, args, (maps_name, "offset"), rng.choice(FLOATS))
    narrow(rng, args, (boxes_name,), rng.choice(FLOATS))
    return args


def narrow(rng: random.Random, args: Args, names: tuple[str, ...], dtype: torch.dtype) -> None:
    def to(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dtype == torch.float64 and not value.requires_grad:
            return value.to(dtype)
        return value

    for name in names:
        value = args.get(name)
        if name == names[0] and isinstance(value, list):
            args[name] = [to(v) for v in value]
        elif name in args:
            args[name] = to(value)


def spoil(rng: random.Random, op: str, args: Args, maps: str, boxes_name: str, images: int) -> bool:
    """Changes one argument, perhaps for the worse; True where no second change should follow."""
    boxes = args[boxes_name]
    kind = rng.choice(
        ["boxes", "coordinates", "index", "scalar", "scalar", "restride", "tensor", "list", "empty"]
    )
    if kind == "scalar":
        name = rng.choice([name for name in BAD if name in args])
        args[name] = rng.choice(BAD[name])
        if op == "prroi_pool" and args[name] == 1e-38:
            args[name] = 1e-3  # an area that underflows is nobody's business
    elif kind == "empty" and maps == "input" and isinstance(args["input"], Tensor):
        shape = list(args["input"].shape)
        if len(shape) == 4:
            shape[rng.randrange(4)] = 0
            args["input"] = torch.zeros(shape, dtype=torch.float64)
    elif kind in ("restride", "tensor"):
        name = rng.choice([maps, boxes_name, *(["offset"] if "offset" in args else [])])
        change = restride if kind == "restride" else spoil_tensor
        value = args[name]
        if isinstance(value, Tensor):
            args[name] = change(rng, value)
        elif isinstance(value, list) and value and name == maps:
            args[name] = list(value)
            args[name][rng.randrange(len(value))] = change(rng, value[0])
        return kind == "tensor"
    if not isinstance(boxes, Tensor) or boxes.dim() != 2 or not len(boxes):
        return False
    if kind == "boxes" and boxes.shape[1] == 5:
        args[boxes_name] = boxes[:, [0, 3, 4, 1, 2]]  # inverted
    elif kind == "coordinates":
        boxes = boxes.detach().clone()
        boxes[:, 1:] = sprinkle(rng, boxes[:, 1:].contiguous(), STRANGE)
        args[boxes_name] = boxes
    elif kind == "index":
        boxes = boxes.detach().clone()
        bad = [images, -1, -0.5, images + 0.5, *STRANGE]
        boxes[rng.randrange(len(boxes)), 0] = rng.choice(bad)
        args[boxes_name] = boxes
    elif kind == "list" and images and "offset" not in args:
        groups = [boxes[boxes[:, 0] == i, 1:] for i in range(images)]
        if rng.random() < 0.3:
            strange = [None, boxes, boxes[:, 1:], torch.ones(2, 4, dtype=torch.int64)]
            groups.append(rng.choice(strange))
        args[boxes_name] = groups
        if rng.random() < 0.2:
            args[boxes_name] = rng.choice([(), [], tuple(groups), "boxes", {0: boxes}])
    return False


def is_feasible(args: Args) -> bool:
    """The gathering references hold every sample; an absurd box has billions of them."""
    boxes = next(args[name] for name in ("boxes", "rois") if name in args)
    scale = args.get("spatial_scale", 1.0)
    if not isinstance(scale, (int, float)) or isinstance(args["output_size"], str):
        return True
    size = args["output_size"]
    if not isinstance(size, int) and isinstance(size, (list, tuple)):
        size = max([v for v in size if isinstance(v, int)], default=1)
    if isinstance(size, int) and size > 100:
        return False
    rows = [boxes] if isinstance(boxes, Tensor) else boxes
    if not isinstance(rows, (list, tuple)):
        return True
    for row in rows:
        if not isinstance(row, Tensor) or row.layout is not torch.strided:
            continue
        if row.dim() != 2 or row.device.type != "cpu" or not row.numel() or row.dtype not in FLOATS:
            continue
        coordinates = row.detach().double()[:, -4:].nan_to_num(0, 1e9, -1e9)
        try:
            if coordinates.abs().max() * abs(float(scale)) > 1000:
                return False
        except OverflowError:
            return True
    return True
