"""Values, shapes and strides that the fuzz makes its arguments of."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from torch import Tensor

Args = dict[str, Any]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
NOT_FLOATS = [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float8_e5m2]
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
STRANGE = [math.nan, math.inf, -math.inf, 1e9, -1e9, 3e38, -3e38, 1e-30, -0.0, 65504.0, 1e300]


def dyadic(rng: random.Random, low: int, high: int) -> float:
    return rng.randint(4 * low, 4 * high) / 4


def some_shape(rng: random.Random) -> list[int]:
    return [rng.choice([0, 1, 2, 4, 5, 7]) for _ in range(rng.randint(0, 5))]


def values(rng: random.Random, shape: list[int], low: int, high: int) -> Tensor:
    count = math.prod(shape)
    return torch.tensor(
        [dyadic(rng, low, high) for _ in range(count)], dtype=torch.float64
    ).reshape(shape)


def sprinkle(rng: random.Random, tensor: Tensor, pool: list[float]) -> Tensor:
    tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
    flat = tensor.view(-1)
    for _ in range(rng.randint(1, 3)):
        if len(flat):
            flat[rng.randrange(len(flat))] = rng.choice(pool)
    return tensor


def restride(rng: random.Random, tensor: Tensor) -> Tensor:
    """Other strides or other bookkeeping for the same values (or fewer of them)."""
    kind = rng.choice(["t", "sliced", "offset", "grad", "expanded", "reversed", "parameter"])
    if kind == "t" and tensor.dim() > 1:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if kind == "sliced" and tensor.dim() > 0:
        return tensor.repeat_interleave(2, -1)[..., ::2]
    if kind == "offset":
        return torch.cat([tensor.new_zeros(3), tensor.reshape(-1)])[3:].reshape(tensor.shape)
    if kind == "grad" and tensor.is_floating_point():
        return tensor.detach().clone().requires_grad_()
    if kind == "expanded" and tensor.dim() > 0 and len(tensor) > 0:
        return tensor[:1].expand(tensor.shape)
    if kind == "reversed" and tensor.dim() > 0:
        return tensor.flip(0)
    if kind == "parameter" and tensor.is_floating_point():
        return torch.nn.Parameter(tensor)
    return tensor


def spoil_tensor(rng: random.Random, tensor: Tensor) -> Any:
    """Something that is not an acceptable tensor here, or hardly."""
    kind = rng.choice(
        ["shape", "dtype", "meta", "sparse", "none", "list", "numpy", "number", "empty"]
    )
    if kind == "shape":
        return values(rng, some_shape(rng), -2, 9).to(tensor.dtype)
    if kind == "dtype":
        return tensor.nan_to_num(0, 0, 0).to(rng.choice(NOT_FLOATS))
    if kind == "meta":
        return tensor.to("meta")
    if kind == "sparse":
        return tensor.detach().to_sparse()
    if kind == "none":
        return None
    if kind == "list":
        return tensor.tolist()
    if kind == "numpy":
        return tensor.detach().float().numpy()
    if kind == "number":
        return rng.choice([0, 1.5, "boxes", object(), True])
    return tensor.new_zeros([0] * tensor.dim())
