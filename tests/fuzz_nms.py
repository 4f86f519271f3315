"""Arguments of the NMS family, good and bad."""

from __future__ import annotations

import importlib
import inspect
import math
import random
from typing import Any

import torch
from fuzz_values import FLOATS, INTEGERS, STRANGE, Args, restride, spoil_tensor, sprinkle, values
from torch import Tensor

from cvkernels import ops

ROTATED = ("nms_rotated", "box_iou_rotated")
FAMILY = [
    name
    for module in ("nms", "soft_nms", "weighted_nms", "matrix_nms")
    for name in importlib.import_module(f"cvkernels.{module}").__all__
]

# What the parameters of the NMS family may be, and what they may not.
GOOD: dict[str, list[Any]] = {
    "iou_threshold": [-0.5, 0, 0.0, 0.3, 0.5, 0.7, 1, 1.5, 1e300, -1e300],
    "max_output": [None, 0, 1, 5, 10**6, 2**62],
    "criterion": ["iou", "giou", "diou", "ciou"],
    "beta": [1.0, 1, 0.7, 2.3, True],
    "sigma": [0.5, 1, 0.1, 3.0, 1e-300, 1e300],
    "sigma_t": [0.02, 1, 0.5, 1e-300, 1e300],
    "min_score": [0, 0.0, 1e-3, 0.5, 1e300, 1e-300, True],
    "method": ["linear", "gaussian", "hard"],
    "kernel": ["linear", "gaussian"],
    "mode": ["hard", "score_penalty", "weighted"],
}
NOT_NUMBERS = ["0.5", None, [0.5], 1j, object()]
NOT_POSITIVE = [math.nan, math.inf, -math.inf, 0, 0.0, -1.0, 10**400, False, *NOT_NUMBERS]
BAD_CHOICES = ["foo", "", "IoU", "it's", None, 3, []]
BAD: dict[str, list[Any]] = {
    "iou_threshold": [math.nan, math.inf, -math.inf, 10**400, *NOT_NUMBERS],
    "max_output": [-1, -(2**63), -(2**70), 2**70, 1.5, "3", [3]],
    "beta": NOT_POSITIVE,
    "sigma": NOT_POSITIVE,
    "sigma_t": NOT_POSITIVE,
    "min_score": [math.nan, math.inf, -math.inf, -0.5, -1e-300, 10**400, *NOT_NUMBERS],
    **dict.fromkeys(("criterion", "method", "kernel", "mode"), BAD_CHOICES),
}


def family_case(rng: random.Random, op: str) -> Args:
    """Arguments of any function of the NMS family but the rotated one."""
    parameters = list(inspect.signature(getattr(ops, op)).parameters)
    padded = op.endswith("_padded")
    n = rng.choice([0, 1, 2, 9, 40, 70])
    lead = [rng.randint(0, 3)] if padded else []
    args: Args = {}
    first = parameters[0]
    if first == "overlaps":
        args[first] = values(rng, [n, n], 0, 1)
    else:
        boxes = values(rng, [*lead, n, 4], -3, 9)
        if rng.random() < 0.7:
            low = torch.minimum(boxes[..., :2], boxes[..., 2:])
            boxes = torch.cat([low, torch.maximum(boxes[..., :2], boxes[..., 2:])], -1)
        args[first] = boxes
    # Equal scores only where they cannot meet rounded factors, which would decide their order.
    ties = op in ("nms", "batched_nms", "nms_padded", "diou_nms", "diou_nms_padded", "nms_match")
    scores = values(rng, [*lead, n], -2, 2)
    if not ties:
        scores = torch.tensor([rng.uniform(-0.2, 1) for _ in range(scores.numel())]).reshape(
            scores.shape
        )
    args["scores"] = scores.double()
    for name in ("densities", "localization", "variances"):
        if name in parameters:
            shape = [*lead, n, 4] if name == "variances" else [*lead, n]
            args[name] = values(rng, shape, -1 if rng.random() < 0.3 else 0, 2)
    tensors = list(args)
    for name in parameters:
        needed = (name == "iou_threshold" and op != "soft_nms" and op != "soft_nms_padded") or (
            name == "max_output" and padded
        )
        if name in GOOD and (needed or rng.random() < 0.4):
            args[name] = rng.choice(
                [0, 1, 5, 100] if name == "max_output" and padded else GOOD[name]
            )
    if args.get("criterion") == "ciou" and args.get("iou_threshold", 0) < 0:
        args["iou_threshold"] = 0.3  # the aspect of an inverted box is nobody's business
    if op == "batched_nms" or ("idxs" in parameters and rng.random() < 0.5):
        classes = [rng.choice([0, 1, 2, -1, 100, 127]) for _ in range(math.prod([*lead, n]))]
        dtype = rng.choice(INTEGERS)
        args["idxs"] = torch.tensor(classes, dtype=torch.int64).reshape([*lead, n]).to(dtype)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        kind = rng.choice(["values", "values", "scalar", "scalar", "restride", "tensor", "idxs"])
        name = rng.choice(tensors)
        if kind == "values" and isinstance(args[name], Tensor):
            args[name] = sprinkle(rng, args[name], STRANGE)
        elif kind == "scalar":
            name = rng.choice([name for name in parameters if name in BAD])
            args[name] = rng.choice(BAD[name])
        elif kind == "idxs" and "idxs" in args:
            args["idxs"] = rng.choice(
                [
                    None,
                    3,
                    [0, 1],
                    torch.zeros(n + 1, dtype=torch.int64),
                    torch.zeros([*lead, n]),
                    torch.zeros([*lead, n], dtype=torch.bool),
                    torch.zeros([*lead, n, 1], dtype=torch.int64),
                    torch.zeros([*lead, n], dtype=torch.int64, device="meta"),
                ]
            )
        elif kind in ("restride", "tensor") and isinstance(args[name], Tensor):
            args[name] = (restride if kind == "restride" else spoil_tensor)(rng, args[name])
            if kind == "tensor":
                break
    for name in tensors:
        to = rng.choice(FLOATS)
        value = args[name]
        if isinstance(value, Tensor) and value.dtype == torch.float64 and not value.requires_grad:
            args[name] = value.to(to)
    return args


def rotated_boxes(rng: random.Random, n: int) -> Tensor:
    boxes = values(rng, [n, 5], -3, 9)
    if rng.random() < 0.7:
        boxes[:, 2:4] = boxes[:, 2:4].abs() + 0.25
    if rng.random() < 0.5:
        boxes[:, 4] *= math.pi / 4
    return boxes


def rotated_case(rng: random.Random, op: str) -> Args:
    def one_of(good: list[Any], bad: list[Any]) -> Any:
        return rng.choice(bad if rng.random() < 0.1 else good)

    n = rng.choice([0, 1, 2, 9, 40])
    args: Args
    if op == "nms_rotated":
        args = {
            "boxes": rotated_boxes(rng, n),
            "scores": values(rng, [n], -2, 2),
            "iou_threshold": one_of(
                [-0.5, 0, 0.3, 0.5, 1, 1e300], [math.nan, math.inf, "0.5", None]
            ),
        }
        if rng.random() < 0.5:
            labels = torch.tensor([rng.choice([0, 1, 100]) for _ in range(n)])
            good = [labels.to(dtype) for dtype in INTEGERS]
            args["idxs"] = one_of([None, *good], [3, labels[:-1], labels.float(), labels[None]])
        if rng.random() < 0.3:
            args["max_output"] = one_of([None, 0, 1, 5, 2**62], [-1, -(2**63), 2**70, 1.5, "3"])
    else:
        m = n if rng.random() < 0.5 else rng.choice([0, 1, 7, 33])
        args = {
            "boxes1": rotated_boxes(rng, n),
            "boxes2": rotated_boxes(rng, m),
            "mode": one_of(["iou", "iof"], ["giou", "", None, 3]),
            "aligned": one_of([False, m == n, 0], [True, "yes", None, [True]]),
        }
    if rng.random() < 0.5:
        args["clockwise"] = one_of([True, False, 1], ["no", None, [False]])
    for name in [name for name in args if name.startswith(("boxes", "scores"))]:
        kind = rng.choice(["plain"] * 4 + ["coordinates", "coordinates", "restride", "tensor"])
        if kind == "coordinates":
            args[name] = sprinkle(rng, args[name], STRANGE)
        elif kind == "restride":
            args[name] = restride(rng, args[name])
        elif kind == "tensor":
            args[name] = spoil_tensor(rng, args[name])
        value = args[name]
        if isinstance(value, Tensor) and value.dtype == torch.float64 and not value.requires_grad:
            args[name] = value.to(rng.choice(FLOATS))
    return args
