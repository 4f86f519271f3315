"""Throws bad arguments at the operators; run by test_fuzz.py in a process of its own.

    python tests/fuzz.py FIRST LAST [JOURNAL]

Case number n is a pure function of n, so any failure can be had again with ``fuzz.py n n+1``. For
each case the operator and its reference must agree: both refuse it with the same type and the same
words, or both give the same result. A refusal must be a ValueError, TypeError or
NotImplementedError whose text begins with the operator's name. JOURNAL always holds the number of
the case at work, so that the parent knows which one brought the process down.
"""

from __future__ import annotations

import inspect
import random
import re
import sys
import time
import traceback
import warnings
from typing import Any

import torch
from fuzz_nms import FAMILY, ROTATED, family_case, rotated_case
from fuzz_roi import is_feasible, roi_case
from fuzz_values import Args
from harness import EMULATED, as_tuple, assert_close, assert_same
from torch import Tensor

from cvkernels import ops, reference

SECONDS = 20.0  # more for one small case is a hang
ROI = sorted(
    name
    for name in ops.__all__
    if {"boxes", "rois"} & set(list(inspect.signature(getattr(ops, name)).parameters)[1:2])
    and "output_size" in inspect.signature(getattr(ops, name)).parameters
)
OPERATORS = {
    name: (getattr(ops, name), getattr(reference, name)) for name in (*ROI, *FAMILY, *ROTATED)
}


def make(number: int) -> tuple[str, Args]:
    rng = random.Random(number)
    kind = rng.choices(["roi", "rotated", "nms"], [5, 1, 5])[0]
    if kind == "roi":
        op = rng.choice(ROI)
        return op, roi_case(rng, op)
    op = rng.choice(ROTATED if kind == "rotated" else FAMILY)
    return op, rotated_case(rng, op) if kind == "rotated" else family_case(rng, op)


def maps_of(args: Args) -> list[Tensor]:
    """The feature maps of a case of the RoI family, as far as they are some."""
    maps = next(iter(args.values()))
    return [
        m for m in (maps if isinstance(maps, (list, tuple)) else [maps]) if isinstance(m, Tensor)
    ]


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


def check_alone(op: str, args: Args, result: Any) -> None:
    """What must hold without a reference: bounded values or a clear refusal."""
    if isinstance(result, Exception):
        text = str(result)
        if isinstance(result, RuntimeError) and ("allocate" in text or "overflow" in text):
            return  # an honest request for more memory than there is
        check_error(op, result)
        return
    maps = maps_of(args)
    most = max((m.detach().double().abs().max() for m in maps if m.numel()), default=0)
    if all(m.isfinite().all() for m in maps) and result.numel():
        assert result.detach().double().abs().max() <= most * (1 + 1e-5), (
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
    if op in ROI and not is_feasible(args):
        check_alone(op, args, actual)
        return "refused" if isinstance(actual, Exception) else "computed, bounded"
    # An integral over next to nothing is as good as its limits.
    wide = (
        op not in ROI or op == "prroi_pool" or any(m.dtype == torch.float64 for m in maps_of(args))
    )
    with reference.precision(torch.float64 if wide else torch.float32):
        expected = outcome(ref, args)
    if EMULATED and isinstance(expected, ValueError) and "[:, 0] in [0, " in str(expected):
        assert not isinstance(actual, Exception), repr(actual)
        return "zero rows"
    if isinstance(expected, Exception) or isinstance(actual, Exception):
        assert type(actual) is type(expected), f"{actual!r} but the reference says {expected!r}"
        assert str(actual) == str(expected), f"{actual!r} but the reference says {expected!r}"
        check_error(op, actual)
        return "refused"
    if op in ROI:
        maps = maps_of(args)
        assert actual.dtype == maps[0].dtype
        # Beside the largest feature: where samples cancel, what is left is rounding.
        largest = [
            m.detach().abs().flatten().max()[None].to(actual.dtype) for m in maps if m.numel()
        ]
        assert actual.shape == expected.shape
        a, e = (torch.cat([r.detach().flatten(), *largest]) for r in (actual, expected))
        assert_close(a, e, actual.dtype)
        wanted = [m for m in maps if m.requires_grad]
        if wanted and actual.dtype == torch.float64:
            found = torch.autograd.grad(actual.sum(), wanted)
            for a, e in zip(found, torch.autograd.grad(expected.sum(), wanted), strict=True):
                assert_close(a, e, a.dtype)
    else:
        for a, e in zip(as_tuple(actual), as_tuple(expected), strict=True):
            assert a.dtype == e.dtype
            if e.is_floating_point():
                # Corners of a box of side 1e9 are no better than its digits, nor is a mean with it.
                if op in ROTATED or e.shape[1:] == (4,):
                    far = [t.detach().double().nan_to_num(0, 0, 0) for t in tensors if t.numel()]
                    far = [f.abs().max()[None].to(e.dtype) for f in far if f.abs().max() > 1e3]
                    a, e = (torch.cat([r.flatten(), *far]) for r in (a, e))
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
