"""What the tests of the NMS family share: cases, bad arguments, random problems."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from boxes import INF, NAN, classes, crowd, odd_boxes, random_scores, spread, whole_boxes
from harness import DTYPES, EMULATED, Args, Case, ErrorCase, OpSpec, assert_matches
from torch import Tensor

CRITERIA = ["iou", "giou", "diou", "ciou"]
# Emulated kernels take minutes for a thousand: CVKERNELS_RANDOM_PROBLEMS=1000 asks for them.
RANDOM_PROBLEMS = int(os.environ.get("CVKERNELS_RANDOM_PROBLEMS", 40 if EMULATED else 1000))


def padded_args(args: Args, width: int, *, ties: bool) -> Args:
    """Three images of one problem: as it is, its boxes reversed, and all scores equal (or not)."""
    result = dict(args)
    for name, value in args.items():
        if not isinstance(value, Tensor):
            continue
        third = value if name != "scores" else torch.ones_like(value) if ties else value.roll(1)
        second = value.flip(0) if name == "boxes" else value
        result[name] = torch.stack([value, second, third])
    return {**result, "max_output": width}


def case(
    name: str,
    make: Callable[[], tuple[Tensor, Tensor]],
    *,
    padded: int | None = None,
    extra: Callable[[Tensor], Args] = lambda boxes: {},
    idxs: int = 0,
    small: bool = False,
    keeps: tuple[str, ...] = (),
    gradient_dtypes: Sequence[torch.dtype] = tuple(DTYPES),
    **options: Any,
) -> Case:
    """One case of a function of the family; ``extra`` gives further tensors for the boxes."""

    def arguments() -> Args:
        boxes, scores = make()
        args: Args = {"boxes": boxes, "scores": scores, **extra(boxes)}
        if idxs:
            args["idxs"] = classes(len(boxes), idxs)
        if padded is not None:  # equal scores have no gradient that a difference quotient shows
            args = padded_args(args, padded, ties=not small)
        return {**args, **options}

    return Case(name, arguments, small=small, keeps=keeps, gradient_dtypes=gradient_dtypes)


# --------------------------------------------------------------------------------------------------
# Bad arguments

FLOATS = "float16, bfloat16, float32 or float64"
INTEGERS = "uint8, int8, int16, int32 or int64"
BAD_NUMBERS: dict[str, tuple[str, list[float]]] = {
    "iou_threshold": ("finite", [NAN, INF, -INF]),
    "sigma": ("finite and positive", [0.0, -1.0, NAN, INF]),
    "sigma_t": ("finite and positive", [0.0, -1.0, NAN, INF]),
    "beta": ("finite and positive", [0.0, -0.5, NAN, INF]),
    "min_score": ("finite and at least 0", [-0.1, NAN, INF]),
}
CHOICES = {
    "method": "'linear', 'gaussian' or 'hard'",
    "kernel": "'linear' or 'gaussian'",
    "mode": "'hard', 'score_penalty' or 'weighted'",
    "criterion": "'iou', 'giou', 'diou' or 'ciou'",
}


def bad_arguments(
    op: str,
    parameters: Sequence[str],
    *,
    extra: Sequence[str] = (),
    padded: bool = False,
    idxs: bool = True,
    needs_idxs: bool = False,
    first: str = "boxes",
) -> list[ErrorCase]:
    """Every documented refusal of one function, which takes ``parameters`` besides tensors.

    ``extra`` names the tensors beside scores that have one value per box, or four ("variances");
    ``first`` the tensor that stands in place of the boxes.
    """
    lead = (2,) if padded else ()
    rows = (*lead, 10)
    columns = (*rows, 10 if first == "overlaps" else 4)
    text_of = {(10,): "(10,)", (2, 10): "(2, 10)", (10, 4): "(10, 4)"}

    def good() -> Args:
        args: Args = {first: torch.ones(columns), "scores": torch.ones(rows)}
        for name in extra:
            args[name] = torch.ones(columns if name == "variances" else rows)
        if "iou_threshold" in parameters:
            args["iou_threshold"] = 0.5
        if needs_idxs:
            args["idxs"] = torch.zeros(rows, dtype=torch.int64)
        if padded:
            args["max_output"] = 3
        return args

    cases: list[ErrorCase] = []

    def add(
        name: str, change: Callable[[], Args], text: str, kind: type[Exception] = ValueError
    ) -> None:
        cases.append(
            ErrorCase(name, lambda: {**good(), **change()}, f"{op}: expected {text}", kind)
        )

    def bad_type(name: str, value: Any, wanted: str) -> None:
        text = f"{name} to be {wanted}, got {type(value).__name__}"
        add(f"{name} type", lambda: {name: value}, text, TypeError)

    shape = "(N, N)" if first == "overlaps" else f"({'B, ' if padded else ''}N, 4)"
    wide = (*rows, 5)
    add("columns", lambda: {first: torch.ones(wide)}, f"{first} of shape {shape}, got {wide}")
    add("dims", lambda: {first: torch.ones(40)}, f"{first} of shape {shape}, got (40,)")
    add(
        "boxes dtype",
        lambda: {first: torch.ones(columns, dtype=torch.int64)},
        f"{first} of dtype {FLOATS}, got int64",
    )
    add(
        "boxes sparse",
        lambda: {first: torch.ones(columns).to_sparse()},
        f"{first} to be a dense tensor, got sparse_coo",
    )
    bad_type(first, None, "a tensor")
    for name in ("scores", *extra):
        like = columns if name == "variances" else rows
        wanted = f"{name} of shape {text_of[like]}"
        short = (*lead, 9, *like[len(rows) :])
        more = (*like, 1)
        got = str(short)
        add(f"{name} length", lambda n=name, s=short: {n: torch.ones(s)}, f"{wanted}, got {got}")
        add(f"{name} dims", lambda n=name, s=more: {n: torch.ones(s)}, f"{wanted}, got {more}")
        add(
            f"{name} dtype",
            lambda n=name, s=like: {n: torch.ones(s, dtype=torch.int32)},
            f"{name} of dtype {FLOATS}, got int32",
        )
        add(
            f"{name} device",
            lambda n=name, s=like: {n: torch.ones(s, device="meta")},
            f"{name} on the device of {first} (cpu), got meta",
        )
        bad_type(name, [0.5], "a tensor")
    if idxs or needs_idxs:

        def spoiled(size: tuple[int, ...], **options: Any) -> Callable[[], Args]:
            return lambda: {"idxs": torch.zeros(size, **options)}

        short = (*lead, 9)
        wanted = f"idxs of shape {text_of[rows]}"
        add("idxs shape", spoiled(short, dtype=torch.int64), f"{wanted}, got {short}")
        for dtype in (torch.float32, torch.bool):
            got = str(dtype).removeprefix("torch.")
            text = f"idxs of dtype {INTEGERS}, got {got}"
            add(f"idxs {got}", spoiled(rows, dtype=dtype), text)
        text = f"idxs on the device of {first} (cpu), got meta"
        add("idxs device", spoiled(rows, device="meta", dtype=torch.int64), text)
        bad_type("idxs", 3, "a tensor")
    if needs_idxs:
        text = "idxs to be a tensor, got NoneType"
        add("idxs none", lambda: {"idxs": None}, text, TypeError)
    for name in parameters:
        if name in BAD_NUMBERS:
            wanted, values = BAD_NUMBERS[name]
            for value in values:
                text = f"{name} to be {wanted}, got {value:g}"
                add(f"{name} {value:g}", lambda n=name, v=value: {n: v}, text)
            bad_type(name, "0.5", "a number")
        elif name in CHOICES:
            for bad in ("foo", "", None, 3):
                text = f"{name} to be {CHOICES[name]}, got {bad!r}"
                add(f"{name} {bad!r}", lambda n=name, v=bad: {n: v}, text)
        else:
            assert name == "max_output"
            least = "at least 0" if padded else "None or at least 0"
            add("max_output", lambda: {"max_output": -1}, f"max_output to be {least}, got -1")
            add(
                "max_output large",
                lambda: {"max_output": 2**70},
                f"max_output below 2^63, got {2**70}",
            )
            bad_type("max_output", 2.5, "an integer")
    # Of several bad arguments the first in the documented order is named: the tensors as they
    # stand in the signature, then iou_threshold, sigma, min_score, sigma_t, max_output, choices.
    order = ["iou_threshold", "sigma", "min_score", "sigma_t", "max_output", *CHOICES, "beta"]
    bad_values = {
        "max_output": -1,
        **{name: values[0] for name, (_, values) in BAD_NUMBERS.items()},
    }
    bad_values |= dict.fromkeys(CHOICES, "foo")
    present = [name for name in order if name in parameters]
    messages = {case.name: case.message for case in cases}
    for place, name in enumerate(present):
        change = {later: bad_values[later] for later in present[place:]}
        value = bad_values[name]
        key = name if name == "max_output" else f"{name} {value!r}"
        key = key if name not in BAD_NUMBERS else f"{name} {value:g}"
        text = messages[key].removeprefix(f"{op}: expected ")
        add(f"from {name} on", lambda c=change: c, text)
    add(
        "everything",
        lambda: {
            **dict.fromkeys(["scores", *extra], torch.ones(1)),
            **{name: bad_values[name] for name in present},
        },
        messages["scores length"].split(": expected ")[1].rsplit(", got", 1)[0] + ", got (1,)",
    )
    return cases


# --------------------------------------------------------------------------------------------------
# Random problems


def random_problem(seed: int, *, most: int = 60) -> tuple[Args, random.Random]:
    """Boxes, scores and perhaps classes of any kind and dtypes, the same for the same seed."""
    rng = random.Random(seed)
    count = rng.randint(0, most)
    kinds: list[Callable[[], Tensor]] = [
        lambda: spread(count, seed, side=rng.choice([60, 150, 400])),
        lambda: crowd(count, rng.randint(1, 6), seed),
        lambda: whole_boxes(count, seed),
        lambda: odd_boxes(count, seed),
    ]
    boxes = rng.choice(kinds)().to(rng.choice(DTYPES))
    scores = random_scores(count, seed, rng.choice([None, None, 7])).to(rng.choice(DTYPES))
    if count > 3 and rng.random() < 0.3:
        scores[rng.randrange(count)] = rng.choice([NAN, -1.0, 0.0, 2.0])
    args: Args = {"boxes": boxes, "scores": scores}
    if rng.random() < 0.4:
        dtype = rng.choice([torch.uint8, torch.int8, torch.int32, torch.int64])
        args["idxs"] = classes(count, rng.randint(1, 4), seed, dtype)
    return args, rng


def random_options(rng: random.Random, names: Sequence[str]) -> Args:
    """Values for some or all of the parameters named."""
    pools: dict[str, Callable[[], Any]] = {
        "iou_threshold": lambda: rng.choice([0.0, rng.uniform(0, 1)]),
        "sigma": lambda: rng.uniform(0.05, 1.5),
        "sigma_t": lambda: rng.uniform(0.005, 0.5),
        "min_score": lambda: rng.choice([0.0, 1e-3, rng.uniform(0, 0.5)]),
        "max_output": lambda: rng.choice([None, 0, 1, rng.randint(0, 60)]),
        "width": lambda: rng.choice([0, 1, rng.randint(0, 70)]),
        "criterion": lambda: rng.choice(CRITERIA),
        "beta": lambda: rng.choice([1.0, 1.0, rng.uniform(0.3, 2.5)]),
        "method": lambda: rng.choice(["linear", "gaussian", "hard"]),
        "kernel": lambda: rng.choice(["linear", "gaussian"]),
        "mode": lambda: rng.choice(["hard", "score_penalty", "weighted"]),
    }
    return {"max_output" if name == "width" else name: pools[name]() for name in names}


def assert_agree(spec: OpSpec, args: Args, what: str) -> None:
    """The operator gives what the reference gives for the same arguments."""
    expected = spec.reference(**args)
    assert_matches(spec, spec.op(**args), expected, torch.float32, what)
