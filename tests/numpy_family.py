"""What the tests of cvkernels.numpy share: arguments for every function, good and bad."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from typing import Any

import nms_family
import numpy as np
import torch
from harness import ErrorCase
from torch import Tensor

import cvkernels.numpy as cvnp
from cvkernels import ops

Args = dict[str, Any]
NAMES = [name for name in cvnp.__all__ if name != "build_info"]
ROTATED = ["nms_rotated", "box_iou_rotated"]
FLOATS = [torch.float16, torch.float32, torch.float64]
PER_BOX = ["densities", "localization", "variances"]  # beside the scores


def parameters(name: str) -> list[str]:
    return list(inspect.signature(getattr(ops, name)).parameters)


def arrays(args: Args) -> Args:
    return {k: v.numpy() if isinstance(v, Tensor) else v for k, v in args.items()}


def random_args(name: str, seed: int, *, most: int = 60) -> Args:
    """Tensors and options for a function, of any kind and dtypes, the same for the same seed."""
    args, rng = nms_family.random_problem(seed, most=most)
    generator = torch.Generator().manual_seed(seed)
    taken = parameters(name)

    def some(*shape: int) -> Tensor:
        values = torch.rand(*shape, generator=generator, dtype=torch.float64)
        return sprinkled(values, rng).to(rng.choice(FLOATS))

    count = len(args["boxes"])
    rotated = torch.rand(2, count, 5, generator=generator, dtype=torch.float64)
    rotated = sprinkled(rotated * torch.tensor([90, 90, 40, 40, 8], dtype=torch.float64), rng)
    values = {
        **args,
        "idxs": args.get("idxs", None if rng.random() < 0.5 else torch.zeros(count).long()),
        "densities": some(count),
        "localization": some(count),
        "variances": some(count, 4),
        "overlaps": some(count, count),
        "boxes1": rotated[0].to(rng.choice(FLOATS)),
        "boxes2": rotated[1].to(rng.choice(FLOATS)),
        "clockwise": rng.choice([True, False]),
        "aligned": rng.choice([True, False]),
    }
    if name == "batched_nms" and values["idxs"] is None:
        values["idxs"] = torch.zeros(count).long()
    if name == "nms_rotated":
        values["boxes"] = values["boxes1"]
    if name == "box_iou_rotated":
        values["mode"] = rng.choice(["iou", "iof"])
    names = [n for n in taken if n not in values]
    if name.endswith("_padded"):
        names[names.index("max_output")] = "width"
    values |= nms_family.random_options(rng, names)
    result = {n: narrowed(values[n]) for n in taken}
    if name.endswith("_padded"):
        images = rng.choice([0, 1, 3])
        for key, value in result.items():
            if isinstance(value, Tensor):
                turned = [value.roll(i, 0) for i in range(max(images, 1))]
                result[key] = torch.stack(turned)[:images]
    return result


def narrowed(value: Any) -> Any:
    """NumPy has no bfloat16."""
    is_bfloat16 = isinstance(value, Tensor) and value.dtype == torch.bfloat16
    return value.half() if is_bfloat16 else value


def sprinkled(values: Tensor, rng: random.Random) -> Tensor:
    flat = values.view(-1)
    if rng.random() < 0.4:
        for _ in range(len(flat) // 20):
            flat[rng.randrange(len(flat))] = rng.choice([np.nan, np.inf, -1.0, 0.0, -0.0])
    return values


# --------------------------------------------------------------------------------------------------
# Bad arguments


def in_numpy(message: str) -> str:
    """The message of a torch function as it reads for arrays."""
    return message.replace("a tensor", "an array").replace("bfloat16, ", "")


def error_cases(name: str) -> list[ErrorCase]:
    """Every documented refusal that has to do with arrays."""
    if name in ROTATED:
        return []
    taken = parameters(name)
    options = {"max_output", *nms_family.BAD_NUMBERS, *nms_family.CHOICES}
    cases = nms_family.bad_arguments(
        name,
        [n for n in taken if n in options],
        extra=[n for n in taken if n in PER_BOX],
        padded=name.endswith("_padded"),
        idxs="idxs" in taken,
        needs_idxs=name == "batched_nms",
        first=taken[0],
    )
    return [c for c in cases if not c.name.endswith((" sparse", " device"))]


def strange(rng: random.Random) -> Any:
    """A value that an argument should not have, or hardly ever."""
    size = [rng.choice([0, 1, 2, 4, 5, 7]) for _ in range(rng.randint(0, 4))]
    kinds: list[Callable[[], Any]] = [
        lambda: None,
        lambda: rng.choice([0, 1, -1, 3, True, False, 10**400, -(10**400), 2**63, 2**70]),
        lambda: rng.choice([0.0, -0.0, 0.5, np.nan, np.inf, -np.inf, 1e308, -1e308, 5e-324, 1e-40]),
        lambda: rng.choice([1j, b"iou", object(), [], {}, (0.5,), "", "iou", "hard", "\ud800"]),
        lambda: rng.choice([np.float64(0.5), np.int64(2), np.uint8(3), np.float64(np.inf)]),
        lambda: torch.ones(size, dtype=rng.choice([*FLOATS, torch.int32, torch.bool])),
        lambda: torch.ones(size or [3], dtype=rng.choice([torch.complex64, torch.int64])),
    ]
    value = rng.choice(kinds)()
    return torch.ones(1) if isinstance(value, Tensor) and value.ndim == 0 else value
