"""Throws bad arguments at the operators; run by test_fuzz.py in a process of its own.

    python tests/fuzz.py FIRST LAST [JOURNAL]

Case number n is a pure function of n, so any failure can be had again with ``fuzz.py n n+1``. For
each case the operator and its reference must agree: both refuse it with the same type and the same
words, or both give the same result. A refusal must be a ValueError, TypeError or
NotImplementedError whose text begins with the operator's name. JOURNAL always holds the number of
the case at work, so that the parent knows which one brought the process down.
"""

from __future__ import annotations

import importlib
import inspect
import math
import random
import re
import sys
import time
import traceback
import warnings
from typing import Any

import torch
from harness import EMULATED, as_tuple, assert_close, assert_same
from torch import Tensor

from cvkernels import ops, reference

Args = dict[str, Any]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
NOT_FLOATS = [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float8_e5m2]
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
STRANGE = [math.nan, math.inf, -math.inf, 1e9, -1e9, 3e38, -3e38, 1e-30, -0.0, 65504.0, 1e300]
SECONDS = 20.0  # more for one small case is a hang


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


def roi_align_case(rng: random.Random) -> Args:
    n, c, h, w = rng.choice([1, 1, 2, 3]), rng.randint(1, 5), rng.randint(1, 9), rng.randint(1, 9)
    k = rng.randint(0, 6)
    dtype = rng.choice(FLOATS)
    x = values(rng, [n, c, h, w], -8, 8)
    rows = []
    for _ in range(k):
        x1, y1 = dyadic(rng, -4, w), dyadic(rng, -4, h)
        rows.append([rng.randrange(n), x1, y1, x1 + dyadic(rng, 0, 12), y1 + dyadic(rng, 0, 12)])
    boxes = torch.tensor(rows, dtype=torch.float64).reshape(k, 5)
    args: Args = {
        "input": x,
        "boxes": boxes,
        "output_size": rng.choice([1, 2, 3, (2, 4), [1, 3]]),
        "spatial_scale": rng.choice([1.0, 0.5, 0.25, 2, 1]),
        "sampling_ratio": rng.choice([-1, 0, 1, 2, 4]),
        "aligned": rng.choice([False, True]),
        "mode": rng.choice(["avg", "max"]),
    }
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        kind = rng.choice(
            ["boxes", "coordinates", "index", "scalar", "restride", "tensor", "list", "empty"]
        )
        if kind == "boxes" and k:
            args["boxes"] = boxes = boxes[:, [0, 3, 4, 1, 2]]  # inverted
        elif kind == "coordinates":
            boxes = boxes.clone()
            boxes[:, 1:] = sprinkle(rng, boxes[:, 1:].contiguous(), STRANGE)
            args["boxes"] = boxes
        elif kind == "index" and k:
            boxes = boxes.clone()
            boxes[rng.randrange(k), 0] = rng.choice([n, -1, -0.5, n + 0.5, *STRANGE])
            args["boxes"] = boxes
        elif kind == "scalar":
            name, pool = rng.choice(
                [
                    (
                        "output_size",
                        [
                            0,
                            -3,
                            (0, 1),
                            (1, 2, 3),
                            (),
                            "7",
                            2.0,
                            None,
                            2**31,
                            2**80,
                            (1, -(2**70)),
                            (2**31 - 1, 2**31 - 1),
                        ],
                    ),
                    (
                        "spatial_scale",
                        [
                            0.0,
                            -1.0,
                            math.nan,
                            math.inf,
                            "1",
                            None,
                            1e-38,
                            1e38,
                            1e308,
                            10**400,
                            True,
                        ],
                    ),
                    (
                        "sampling_ratio",
                        [-(2**31), -(2**63), 2**15 + 1, 2**31, 2**63, 2**70, 1.5, "2", None, 7],
                    ),
                    ("aligned", ["yes", 0, 1, 2.5, [True]]),
                    ("mode", ["AVG", "", None, 3, "median"]),
                ]
            )
            args[name] = rng.choice(pool)
        elif kind == "empty":
            shape = list(x.shape)
            shape[rng.randrange(4)] = 0
            args["input"] = x = x.new_zeros(shape)
            n = shape[0]
        elif kind == "list" and isinstance(args["boxes"], Tensor) and n:
            args["boxes"] = [boxes[boxes[:, 0] == i, 1:] for i in range(n)]
            if rng.random() < 0.3:
                args["boxes"].append(
                    rng.choice([None, boxes, boxes[:, 1:], torch.ones(2, 4, dtype=torch.int64)])
                )
            elif rng.random() < 0.3:
                args["boxes"] = rng.choice([(), [], tuple(args["boxes"]), "boxes", {0: boxes}])
        elif kind == "restride":
            name = rng.choice(["input", "boxes"])
            if isinstance(args[name], Tensor):
                args[name] = restride(rng, args[name])
        elif kind == "tensor":
            name = rng.choice(["input", "boxes"])
            if isinstance(args[name], Tensor):
                args[name] = spoil_tensor(rng, args[name])
            break
    boxes_dtype = rng.choice(FLOATS)
    for name, to in (("input", dtype), ("boxes", boxes_dtype)):
        value = args[name]
        if isinstance(value, Tensor) and value.dtype == torch.float64 and not value.requires_grad:
            args[name] = value.to(to)
    return args


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
    parameters = list(inspect.signature(OPERATORS[op][1]).parameters)
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


ROTATED = ("nms_rotated", "box_iou_rotated")
FAMILY = [
    name
    for module in ("nms", "soft_nms", "weighted_nms", "matrix_nms")
    for name in importlib.import_module(f"cvkernels.{module}").__all__
]
OPERATORS = {
    name: (getattr(ops, name), getattr(reference, name))
    for name in ("roi_align", *FAMILY, *ROTATED)
}


def make(number: int) -> tuple[str, Args]:
    rng = random.Random(number)
    kind = rng.choices(["roi_align", "rotated", "family"], [2, 1, 5])[0]
    if kind == "roi_align":
        return kind, roi_align_case(rng)
    op = rng.choice(ROTATED if kind == "rotated" else FAMILY)
    return op, rotated_case(rng, op) if kind == "rotated" else family_case(rng, op)


def tensors_of(args: Args) -> list[Tensor]:
    found = []
    for value in args.values():
        found += [
            v
            for v in (value if isinstance(value, (list, tuple)) else [value])
            if isinstance(v, Tensor)
        ]
    return found


def outcome(function: Any, args: Args) -> Any:
    try:
        return function(**args)
    except Exception as error:
        return error


def reference_is_feasible(args: Args) -> bool:
    """The gathering reference holds every sample; an absurd box has billions of them."""
    boxes = args["boxes"] if isinstance(args["boxes"], Tensor) else None
    scale = args["spatial_scale"]
    if not isinstance(scale, (int, float)) or isinstance(args["output_size"], str):
        return True
    size = args["output_size"]
    if not isinstance(size, int) and isinstance(size, (list, tuple)):
        size = max([v for v in size if isinstance(v, int)], default=1)
    if isinstance(size, int) and size > 100:
        return False
    rows = (
        [boxes]
        if boxes is not None
        else [b for b in args["boxes"] if isinstance(b, Tensor)]
        if isinstance(args["boxes"], (list, tuple))
        else []
    )
    for row in rows:
        if (
            row.dim() == 2
            and row.device.type == "cpu"
            and row.layout is torch.strided
            and row.numel()
        ):
            if row.dtype not in FLOATS:
                continue
            coordinates = row.detach().double()[..., -4:].nan_to_num(0, 1e9, -1e9)
            try:
                if coordinates.abs().max() * float(scale) > 1000:
                    return False
            except OverflowError:
                return True
    return True


def check_alone(op: str, args: Args, result: Any) -> None:
    """What must hold without a reference: bounded values or a clear refusal."""
    if isinstance(result, Exception):
        text = str(result)
        if isinstance(result, RuntimeError) and ("allocate" in text or "overflow" in text):
            return  # an honest request for more memory than there is
        check_error(op, result)
        return
    most = args["input"].detach().double().abs().max() if args["input"].numel() else 0
    if args["input"].isfinite().all() and result.numel():
        assert result.detach().double().abs().max() <= most, (
            "an average or maximum exceeds every feature"
        )


def check_error(op: str, error: Exception) -> None:
    assert isinstance(error, (ValueError, TypeError, NotImplementedError)), repr(error)
    assert str(error).startswith(f"{op}: expected "), repr(error)


def check(number: int) -> str:
    """Runs one case; returns what happened to it ("refused", "computed", ...)."""
    op, args = make(number)
    function, ref = OPERATORS[op]
    began = time.monotonic()
    actual = outcome(function, args)
    took = time.monotonic() - began
    assert took < SECONDS, f"took {took:.0f} s"
    tensors = tensors_of(args)
    if any(t.device.type == "meta" for t in tensors):
        if isinstance(actual, Exception):
            if all(t.device.type == "meta" for t in tensors) and "nms" in op:
                # Torch's words: the size depends on data.
                assert re.search("nms|nonzero|meta", str(actual)), repr(actual)
            else:
                check_error(op, actual)
            return "refused"
        results = as_tuple(actual)
        assert all(r.device.type == "meta" for r in results)
        return "computed on meta"
    if op == "roi_align" and not reference_is_feasible(args):
        check_alone(op, args, actual)
        return "refused" if isinstance(actual, Exception) else "computed, bounded"
    with reference.precision(
        torch.float64
        if op != "roi_align"
        or not isinstance(args["input"], Tensor)
        or args["input"].dtype == torch.float64
        else torch.float32
    ):
        expected = outcome(ref, args)
    if EMULATED and isinstance(expected, ValueError) and "boxes[:, 0]" in str(expected):
        assert not isinstance(actual, Exception), repr(actual)
        return "zero rows"
    if isinstance(expected, Exception) or isinstance(actual, Exception):
        assert type(actual) is type(expected), f"{actual!r} but the reference says {expected!r}"
        assert str(actual) == str(expected), f"{actual!r} but the reference says {expected!r}"
        check_error(op, actual)
        return "refused"
    if op == "roi_align":
        assert actual.dtype == args["input"].dtype
        assert_close(actual, expected, actual.dtype)
        if args["input"].requires_grad and actual.dtype == torch.float64:
            (a,) = torch.autograd.grad(actual.sum(), args["input"])
            (e,) = torch.autograd.grad(expected.sum(), args["input"])
            assert_close(a, e, a.dtype)
    else:
        for a, e in zip(as_tuple(actual), as_tuple(expected), strict=True):
            assert a.dtype == e.dtype
            if e.is_floating_point():
                assert_close(a, e, e.dtype)
            else:
                assert_same(a, e)
    return "computed"


def describe(number: int) -> str:
    op, args = make(number)
    torch.set_printoptions(precision=8, threshold=40, edgeitems=2)
    return f"{op}(" + ", ".join(f"{k}={v!r}" for k, v in args.items()) + ")"


def main(first: int, last: int, journal: str | None = None) -> int:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    failures = 0
    outcomes: dict[str, int] = {}
    for number in range(first, last):
        if journal:
            with open(journal, "w") as file:
                file.write(str(number))
        try:
            what = check(number)
            outcomes[what] = outcomes.get(what, 0) + 1
        except Exception as error:
            failures += 1
            if failures <= 20:
                where = traceback.extract_tb(error.__traceback__)[-1]
                print(
                    f"case {number}: {describe(number)}\n  {where.name}:{where.lineno} {error!r}"[
                        :3000
                    ]
                )
    print(f"{last - first} cases, {failures} failures: {outcomes}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:4]))
