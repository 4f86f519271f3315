"""Throws bad arguments at the operators; run by test_fuzz.py in a process of its own.

    python tests/fuzz.py FIRST LAST [JOURNAL]

Case number n is a pure function of n, so any failure can be had again with ``fuzz.py n n+1``. For
each case the operator and its reference must agree: both refuse it with the same type and the same
words, or both give the same result. A refusal must be a ValueError, TypeError or
NotImplementedError whose text begins with the operator's name. JOURNAL always holds the number of
the case at work, so that the parent knows which one brought the process down.
"""

from __future__ import annotations

import math
import random
import sys
import time
import traceback
import warnings
from typing import Any

import torch
from harness import EMULATED, assert_close, assert_same
from torch import Tensor

from cvkernels import reference
from cvkernels.nms import batched_nms, nms, nms_padded
from cvkernels.nms_rotated import box_iou_rotated, nms_rotated
from cvkernels.roi_align import roi_align

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
    tensor = tensor.clone()
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


def nms_case(rng: random.Random, op: str) -> Args:
    n = rng.choice([0, 1, 2, 9, 40, 70])
    lead = [rng.randint(0, 3)] if op == "nms_padded" else []
    boxes = values(rng, [*lead, n, 4], -3, 9)
    if rng.random() < 0.7:
        low = torch.minimum(boxes[..., :2], boxes[..., 2:])
        boxes = torch.cat([low, torch.maximum(boxes[..., :2], boxes[..., 2:])], -1)
    scores = values(rng, [*lead, n], -2, 2)
    args: Args = {
        "boxes": boxes,
        "scores": scores,
        "iou_threshold": rng.choice([-0.5, 0, 0.0, 0.3, 0.5, 0.7, 1, 1.5, 1e300, -1e300]),
    }
    if op == "batched_nms" or (op == "nms_padded" and rng.random() < 0.5):
        classes = [rng.choice([0, 1, 2, -1, 100, 127]) for _ in range(math.prod([*lead, n]))]
        dtype = rng.choice(INTEGERS)
        args["idxs"] = torch.tensor(classes, dtype=torch.int64).reshape([*lead, n]).to(dtype)
    if op == "nms_padded":
        args["max_output"] = rng.choice([0, 1, 5, 100])
    elif rng.random() < 0.3:
        args["max_output"] = rng.choice([None, 0, 1, 5, 10**6, 2**62])
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        kind = rng.choice(["coordinates", "scores", "scalar", "restride", "tensor", "idxs"])
        if kind == "coordinates":
            args["boxes"] = sprinkle(rng, boxes, STRANGE)
        elif kind == "scores":
            args["scores"] = sprinkle(rng, scores, STRANGE)
        elif kind == "scalar":
            name, pool = rng.choice(
                [
                    (
                        "iou_threshold",
                        [math.nan, math.inf, -math.inf, "0.5", None, 10**400, [0.5], True],
                    ),
                    ("max_output", [-1, -(2**63), -(2**70), 2**70, 1.5, "3", [3]]),
                ]
            )
            args[name] = rng.choice(pool)
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
        elif kind in ("restride", "tensor"):
            name = rng.choice(["boxes", "scores"])
            if isinstance(args[name], Tensor):
                args[name] = (restride if kind == "restride" else spoil_tensor)(rng, args[name])
                if kind == "tensor":
                    break
    for name in ("boxes", "scores"):
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


OPERATORS = {
    "roi_align": (roi_align, reference.roi_align),
    "nms": (nms, reference.nms),
    "batched_nms": (batched_nms, reference.batched_nms),
    "nms_padded": (nms_padded, reference.nms_padded),
    "nms_rotated": (nms_rotated, reference.nms_rotated),
    "box_iou_rotated": (box_iou_rotated, reference.box_iou_rotated),
}
ROTATED = ("nms_rotated", "box_iou_rotated")


def make(number: int) -> tuple[str, Args]:
    rng = random.Random(number)
    op = rng.choice(["roi_align", "roi_align", "nms", "batched_nms", "nms_padded", *ROTATED])
    if op in ROTATED:
        return op, rotated_case(rng, op)
    return op, roi_align_case(rng) if op == "roi_align" else nms_case(rng, op)


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
                assert "nms" in str(actual), repr(actual)  # torch's words: the size depends on data
            else:
                check_error(op, actual)
            return "refused"
        results = actual if isinstance(actual, tuple) else (actual,)
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
    elif op == "box_iou_rotated":
        assert_close(actual, expected, actual.dtype)
    else:
        pairs = zip(actual, expected, strict=True) if op == "nms_padded" else [(actual, expected)]
        for a, e in pairs:
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
