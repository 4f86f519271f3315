"""The NumPy front: the same results and messages as the torch operators, without torch."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import inspect
import io
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest
import torch
from numpy_family import (
    NAMES,
    PER_BOX,
    ROTATED,
    arrays,
    error_cases,
    in_numpy,
    parameters,
    random_args,
    strange,
)
from torch import Tensor

import cvkernels.numpy as cvnp
from cvkernels import ops, reference

pytestmark = pytest.mark.native

ROOT = Path(__file__).resolve().parents[1]
BOXES = np.array([[0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]], np.float32)
SCORES = np.array([0.5, 0.9, 0.5], np.float32)
SEEDS = range(150)


def assert_same_bits(ours: Any, theirs: Any, what: str) -> None:
    """Arrays as the tensors are: type, shape, and every value that is not NaN."""
    if isinstance(theirs, Tensor):
        right = theirs.numpy()
        assert type(ours) is np.ndarray, what
        assert ours.dtype == right.dtype and ours.dtype.isnative and ours.shape == right.shape, what
        np.testing.assert_array_equal(ours, right, err_msg=what)
        numbers = ~np.isnan(right)
        assert (np.signbit(ours) == np.signbit(right))[numbers].all(), what
    else:
        assert type(ours) is type(theirs) and len(ours) == len(theirs), what
        for one, other in zip(ours, theirs, strict=True):
            assert_same_bits(one, other, what)


def assert_equal(ours: Any, others: Any) -> None:
    if isinstance(ours, np.ndarray):
        assert type(ours) is type(others) and ours.dtype == others.dtype
        np.testing.assert_array_equal(ours, others)
    else:
        assert len(ours) == len(others)
        for one, other in zip(ours, others, strict=True):
            assert_equal(one, other)


# --------------------------------------------------------------------------------------------------
# What there is


def test_every_function_of_the_family_is_there() -> None:
    everything = {n for n in ops.__all__ if isinstance(getattr(ops, n), FunctionType)}
    assert set(NAMES) == {n for n in everything if "nms" in n or "iou" in n}


@pytest.mark.parametrize("name", NAMES)
def test_signature_is_that_of_the_torch_function(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(space, name)) for space in (cvnp, ops))
    assert [(p.name, p.kind, p.default) for p in ours.parameters.values()] == [
        (p.name, p.kind, p.default) for p in theirs.parameters.values()
    ]
    for parameter in ours.parameters.values():
        annotation = theirs.parameters[parameter.name].annotation
        assert parameter.annotation == annotation.replace("Tensor", "NDArray[Any]")


@pytest.mark.parametrize("name", NAMES)
def test_docstring_has_its_sections_and_arguments(name: str) -> None:
    text = inspect.getdoc(getattr(cvnp, name)) or ""
    wanted = ["Args", "Returns", "Raises", "Determinism", "Source", "Example"]
    assert re.findall(r"^([A-Z]\w+):$", text, re.M) == wanted
    arguments = text.split("Args:")[1].split("Returns:")[0]
    assert re.findall(r"^    (\w+): ", arguments, re.M) == parameters(name)
    module = getattr(ops, name).__module__
    assert f":func:`{module}.{name}`" in text


def test_docstrings_run() -> None:
    modules = {getattr(cvnp, name).__module__ for name in NAMES}
    for module in modules:
        assert doctest.testmod(importlib.import_module(module)).failed == 0
    shown = [getattr(cvnp, name).__doc__ for name in NAMES]
    assert all(">>> " in text for text in shown)


# --------------------------------------------------------------------------------------------------
# Results


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_torch_function(name: str) -> None:
    for seed in SEEDS:
        args = random_args(name, seed)
        ours = getattr(cvnp, name)(**arrays(args))
        assert_same_bits(ours, getattr(ops, name)(**args), f"{name}, seed {seed}")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_torch_function_on_large_problems(name: str) -> None:
    for seed in range(3):
        args = random_args(
            name,
            seed,
            most=6000 if name not in ("matrix_nms_from_overlaps", "box_iou_rotated") else 600,
        )
        ours = getattr(cvnp, name)(**arrays(args))
        assert_same_bits(ours, getattr(ops, name)(**args), f"{name}, seed {seed}")


def test_by_hand() -> None:
    # IoU of the first two is 81 / 100 and 0 with the third; equal scores go by index.
    np.testing.assert_array_equal(cvnp.nms(BOXES, SCORES, 0.8), [1, 2])
    np.testing.assert_array_equal(cvnp.nms(BOXES, SCORES, 0.82), [1, 0, 2])
    np.testing.assert_array_equal(cvnp.nms(BOXES, SCORES, 0.82, max_output=2), [1, 0])
    assert cvnp.nms(BOXES, SCORES, 0.5, max_output=0).size == 0
    np.testing.assert_array_equal(cvnp.nms(BOXES, np.array([np.nan, 0.1, 0.2]), 0.5), [2, 1])


@pytest.mark.parametrize("name", NAMES)
def test_empty(name: str) -> None:
    for boxes_dtype, scores_dtype in ((np.float16, np.float64), (np.float32, np.float32)):
        args = arrays(random_args(name, 3))
        for key, value in args.items():
            if isinstance(value, np.ndarray) and key != "idxs":
                keep = value.ndim - (key in ("boxes", "boxes1", "boxes2", "variances"))
                shape = (2,) * (name.endswith("_padded")) + (0,) * (keep - name.endswith("_padded"))
                shape += value.shape[keep:]
                dtype = scores_dtype if key == "scores" else boxes_dtype
                args[key] = np.zeros(shape, dtype)
        if "idxs" in args:
            args["idxs"] = np.zeros(args["scores"].shape, np.int32)
        tensors = {
            k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in args.items()
        }
        assert_same_bits(getattr(cvnp, name)(**args), getattr(ops, name)(**tensors), name)


LAYOUTS = {
    "columns": np.asfortranarray,
    "every other": lambda a: np.repeat(a, 2, -1)[..., ::2],
    "backwards": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "frozen": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "unaligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
    "broadcast": lambda a: np.broadcast_to(a, (2, *a.shape))[1],
    "long long": lambda a: a.astype(np.longlong) if a.dtype == np.int64 else a,
    "memmap": lambda a: a.view(np.memmap),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_any_layout(name: str, layout: str) -> None:
    for seed in range(12):
        args = arrays(random_args(name, seed))
        plain = getattr(cvnp, name)(**args)
        copies = {
            k: LAYOUTS[layout](v) if isinstance(v, np.ndarray) else v for k, v in args.items()
        }
        before = {k: v.tobytes() for k, v in copies.items() if isinstance(v, np.ndarray)}
        result = getattr(cvnp, name)(**copies)
        assert_equal(result, plain)
        assert before == {k: v.tobytes() for k, v in copies.items() if isinstance(v, np.ndarray)}


def test_numbers_of_any_kind() -> None:
    plain = cvnp.soft_nms(BOXES, SCORES, sigma=1.0, min_score=0.25, max_output=2)
    for sigma in (1, True, np.float16(1), np.int8(1), Fraction(1)):
        for limit in (np.int16(2), np.uint64(2)):
            quarter = Fraction(1, 4) if sigma == 1 else np.float32(0.25)
            others = cvnp.soft_nms(BOXES, SCORES, sigma=sigma, min_score=quarter, max_output=limit)
            assert_equal(others, plain)
    boxes = np.array([[0, 0, 8, 2, 0.4], [0, 0, 8, 2, 1.2]])
    for flag in (np.True_, 1, 1.0, 1j, np.int64(1)):
        right = cvnp.box_iou_rotated(boxes, boxes, aligned=True, clockwise=True)
        assert_equal(cvnp.box_iou_rotated(boxes, boxes, aligned=flag, clockwise=flag), right)
    best = cvnp.matrix_nms(BOXES, SCORES, min_score=Fraction(1, 4), max_output=np.int32(2))
    assert_equal(best, cvnp.matrix_nms(BOXES, SCORES, min_score=0.25, max_output=2))


def test_match_takes_any_threshold() -> None:
    boxes = np.repeat(BOXES[:1], 2, 0)
    for whole in (1, 1.0, np.float32(1), Fraction(1), True):  # suppressed at exactly 1
        assert [len(g) for g in cvnp.nms_match(boxes, SCORES[:2], whole)] == [2]
    assert [len(g) for g in cvnp.nms_match(BOXES, SCORES, -sys.float_info.max)] == [3]


def test_minimum_score_is_compared_as_a_real_number() -> None:
    # float32(0.7) is below 0.7, float32(0.3) above 0.3.
    boxes = np.array([[0, 0, 1, 1], [5, 5, 6, 6]], np.float32)
    scores = np.array([0.7, 0.3], np.float32)
    for name in ("soft_nms", "matrix_nms"):
        for least, kept in ((0.7, []), (0.3, [0, 1]), (0.2, [0, 1])):
            options = {"min_score": least}
            keep = getattr(cvnp, name)(boxes, scores, **options)[0]
            np.testing.assert_array_equal(keep, kept)
            tensors = torch.from_numpy(boxes), torch.from_numpy(scores)
            np.testing.assert_array_equal(getattr(reference, name)(*tensors, **options)[0], kept)
    penalised = cvnp.cluster_nms(boxes, scores, 0.5, mode="score_penalty", min_score=0.7)
    assert [len(part) for part in penalised] == [0, 0, 0]


def test_double_results_are_rounded_to_half_as_torch_does() -> None:
    # 0.5 + 2^-12 + 2^-40 lies above the middle of two halfs, but its float32 is that middle.
    boxes = np.array([[0.0, 0, 1, 1], [9, 9, 10, 10]])
    overlaps = np.zeros((2, 2))
    overlaps[0, 1] = 1 - (0.5 + 2.0**-12 + 2.0**-40)
    scores = np.array([1.0, 1.0], np.float16)
    new = cvnp.matrix_nms_from_overlaps(overlaps, scores, kernel="linear")[1]
    tensors = torch.from_numpy(overlaps), torch.from_numpy(scores)
    assert_same_bits(new, ops.matrix_nms_from_overlaps(*tensors, kernel="linear")[1], "half")
    assert new.tolist() == [1.0, 0.5]
    assert cvnp.soft_nms(boxes, scores)[1].dtype == np.float16


# --------------------------------------------------------------------------------------------------
# Errors


def outcome(function: Any, args: dict[str, Any]) -> tuple[type | None, str]:
    try:
        function(**args)
    except Exception as error:
        return type(error), str(error)
    return None, ""


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ROTATED])
def test_documented_errors(name: str) -> None:
    cases = error_cases(name)
    assert len(cases) > 20
    for case in cases:
        found = outcome(getattr(cvnp, name), arrays(case.make()))
        assert found == (case.type, in_numpy(case.message)), case.name


@pytest.mark.parametrize("name", NAMES)
def test_fuzzed_arguments_meet_the_same_words(name: str) -> None:
    """Where the torch function refuses arguments in its own words, so does this one."""
    refused = 0
    for seed in range(600):
        rng = random.Random(seed)
        args = random_args(name, seed, most=7)
        for key in rng.sample(sorted(args), rng.choice([1, 1, 2, 3])):
            args[key] = strange(rng)
        kind, text = outcome(getattr(ops, name), args)
        found = outcome(getattr(cvnp, name), arrays(args))
        assert found[0] in (None, ValueError, TypeError), (seed, found)
        assert found[0] is None or found[1].startswith(f"{name}: expected "), (seed, found)
        if kind in (ValueError, TypeError) and text.startswith(f"{name}: expected "):
            if re.search("got (T|.*t)ensor", text):  # names or shows an array
                text, found = text.partition(", got")[0], (found[0], found[1].partition(", got")[0])
            assert found == (kind, in_numpy(text)), (seed, args)
            refused += 1
    assert refused > 300


def test_rotated_errors() -> None:
    boxes, scores = np.ones((10, 5), np.float32), np.ones(10, np.float32)
    for change, text in (
        ({"boxes": boxes[:, :4]}, "boxes of shape (N, 5), got (10, 4)"),
        (
            {"boxes": boxes.astype(np.uint16)},
            "boxes of dtype float16, float32 or float64, got uint16",
        ),
        ({"scores": scores[:9]}, "scores of shape (10,), got (9,)"),
        ({"idxs": scores}, "idxs of dtype uint8, int8, int16, int32 or int64, got float32"),
        ({"iou_threshold": np.inf}, "iou_threshold to be finite, got inf"),
        ({"max_output": -1}, "max_output to be None or at least 0, got -1"),
        ({"clockwise": "no"}, "clockwise to be a bool, got str"),
    ):
        args = {"boxes": boxes, "scores": scores, "iou_threshold": 0.5, **change}
        assert outcome(cvnp.nms_rotated, args)[1] == f"nms_rotated: expected {text}"
    for change, text in (
        ({"boxes1": boxes[:, :4]}, "boxes1 of shape (N, 5), got (10, 4)"),
        ({"boxes2": boxes[None]}, "boxes2 of shape (M, 5), got (1, 10, 5)"),
        (
            {"boxes2": boxes[:4], "aligned": True},
            "boxes2 of shape (10, 5) where aligned, got (4, 5)",
        ),
        ({"mode": "giou"}, "mode to be 'iou' or 'iof', got 'giou'"),
        ({"boxes1": None}, "boxes1 to be an array, got NoneType"),
    ):
        found = outcome(cvnp.box_iou_rotated, {"boxes1": boxes, "boxes2": boxes, **change})
        assert found[1] == f"box_iou_rotated: expected {text}"


@pytest.mark.parametrize(
    "dtype", ["uint64", "longdouble", "complex64", "bool", "U3", "object", "m8[s]"]
)
def test_dtypes_that_only_numpy_has(dtype: str) -> None:
    odd = np.zeros((3, 4)).astype(dtype)
    text = f"nms: expected boxes of dtype float16, float32 or float64, got {odd.dtype.name}"
    assert outcome(cvnp.nms, {"boxes": odd, "scores": SCORES, "iou_threshold": 0.5})[1] == text
    idxs = odd[:, 0]
    text = f"expected idxs of dtype uint8, int8, int16, int32 or int64, got {odd.dtype.name}"
    with pytest.raises(ValueError, match=re.escape(f"batched_nms: {text}")):
        cvnp.batched_nms(BOXES, SCORES, idxs, 0.5)


def test_impossible_sizes() -> None:
    for width in (2**40, 2**62, 2**63 - 1):
        for function in (cvnp.nms_padded, cvnp.weighted_nms_padded):
            with pytest.raises(MemoryError):
                function(BOXES[None], SCORES[None], 0.5, width)
        with pytest.raises(MemoryError):
            cvnp.soft_nms_padded(BOXES[None], SCORES[None], width)
    many = np.broadcast_to(np.float32(0), (2**31, 4))
    with pytest.raises(ValueError, match=r"nms: expected fewer than 2\^31 boxes, got 2147483648"):
        cvnp.nms(many, many[:, 0], 0.5)


# --------------------------------------------------------------------------------------------------
# Threads, processes


def heavy_args(name: str) -> dict[str, Any]:
    """Arguments that keep a function busy for tens of milliseconds at least."""
    rng = np.random.default_rng(0)
    sizes = {"box_iou_rotated": 2000, "matrix_nms_from_overlaps": 3000, "nms_rotated": 10000}
    count = sizes.get(name, 20000 if name == "matrix_nms" else 80000)
    corner = rng.uniform(0, 4000, (count, 2)).astype(np.float32)
    size = rng.uniform(5, 400, (count, 2)).astype(np.float32)
    boxes = np.concatenate([corner, corner + size], 1)
    rotated = np.concatenate([corner / 10, size, rng.uniform(-3, 3, (count, 1))], 1)
    scores = rng.uniform(0, 1, count)
    values: dict[str, Any] = {
        "boxes": boxes if name != "nms_rotated" else rotated,
        "boxes1": rotated,
        "boxes2": rotated,
        "scores": scores,
        "idxs": np.zeros(count, np.int64),
        "variances": np.ones((count, 4)),
        "iou_threshold": 0.6,
        **dict.fromkeys(PER_BOX[:2], scores),
    }
    if name == "matrix_nms_from_overlaps":
        values["overlaps"] = rng.uniform(0, 1, (count, count))
    args = {n: values[n] for n in parameters(name) if n in values}
    if name.endswith("_padded"):
        args = {k: v[None] if isinstance(v, np.ndarray) else v for k, v in args.items()}
        args["max_output"] = count
    return args


@pytest.fixture
def short_switch_interval() -> Iterator[None]:
    """The thread that takes the time starts its call at once."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("short_switch_interval")
@pytest.mark.parametrize("name", NAMES)
def test_other_threads_run_meanwhile(name: str) -> None:
    args, began, ended = heavy_args(name), [], []

    def work() -> None:
        began.append(time.perf_counter())
        getattr(cvnp, name)(**args)
        ended.append(time.perf_counter())

    thread = threading.Thread(target=work)
    thread.start()
    ticks = []
    while not ended:
        ticks.append(time.perf_counter())
    thread.join()
    took = ended[0] - began[0]
    during = [t for t in ticks if began[0] + 0.2 * took < t < ended[0] - 0.2 * took]
    assert took > 0.005, f"too short to tell: {took}"
    assert len(during) > 3


def test_threads_call_at_the_same_time() -> None:
    jobs = [
        (name, arrays(random_args(name, seed, most=300))) for name in NAMES for seed in range(4)
    ]
    alone = [getattr(cvnp, name)(**args) for name, args in jobs]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            together = list(pool.map(lambda job: getattr(cvnp, job[0])(**job[1]), jobs))
            for (name, _), one, other in zip(jobs, alone, together, strict=True):
                assert repr(one) == repr(other), name


def run_without_torch(program: str) -> str:
    blocked = 'import sys\nsys.modules["torch"] = None  # every `import torch` now fails\n'
    done = subprocess.run(
        [sys.executable, "-c", blocked + program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_works_where_torch_cannot_be_imported() -> None:
    program = """
import cvkernels, inspect, numpy as np
boxes = np.array([[0, 0, 10, 10], [1, 1, 10, 10]], np.float32)
print(cvkernels.numpy.nms(boxes, np.array([0.5, 0.9]), 0.5).tolist(),
cvkernels.numpy.build_info()["version"])
"""
    assert run_without_torch(program).split() == ["[1]", "0.1.0"]


def test_every_function_runs_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    for name in NAMES:
        for seed in (1, 2):
            args = arrays(random_args(name, seed))
            given = {k: np.array(v, object) if v is None else v for k, v in args.items()}
            np.savez(tmp_path / f"{name}-{seed}.npz", **given)
    program = f"""
from pathlib import Path
import numpy as np
import cvkernels.numpy as cvnp
for path in sorted(Path({str(tmp_path)!r}).glob("*.npz")):
    stored = np.load(path, allow_pickle=True)
    args = {{k: stored[k] if stored[k].ndim else stored[k].item() for k in stored}}
    print(path.stem, repr(getattr(cvnp, path.stem.partition("-")[0])(**args)))
assert not [name for name in sys.modules if name.startswith("torch.")]
try:
    cvnp.nms(None, None, 0.5)
except TypeError as error:
    print(error)
"""
    expected = [
        f"{name}-{seed} {getattr(cvnp, name)(**arrays(random_args(name, seed)))!r}"
        for name in sorted(NAMES)
        for seed in (1, 2)
    ]
    expected.sort(key=lambda line: line.partition(" ")[0] + ".npz")
    expected.append("nms: expected boxes to be an array, got NoneType")
    assert run_without_torch(program).split() == "\n".join(expected).split()


# --------------------------------------------------------------------------------------------------
# The example of the README

EXAMPLE = '''
import numpy as np
import cvkernels.numpy as cvnp


def detections(output, min_score=0.25, iou_threshold=0.7, max_output=300):
    """Boxes (x1, y1, x2, y2), scores and classes in a YOLO output [1, 4 + classes, candidates]."""
    centres, sizes, probabilities = np.split(output[0], [2, 4])
    classes, scores = probabilities.argmax(0), probabilities.max(0)
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2]).T
    likely = scores >= min_score
    boxes, scores, classes = boxes[likely], scores[likely], classes[likely]
    keep = cvnp.batched_nms(boxes, scores, classes, iou_threshold, max_output=max_output)
    return boxes[keep], scores[keep], classes[keep]


# output = onnxruntime.InferenceSession("yolo.onnx").run(None, {"images": images})[0]
output = np.zeros((1, 84, 8400), dtype=np.float32)
output[0, :4, :3] = np.array([[50, 50, 40, 40], [52, 50, 40, 40], [200, 80, 60, 30]]).T
output[0, 4 + 2, :3] = 0.75, 0.875, 0.5  # class 2
boxes, scores, classes = detections(output)
print(boxes.tolist())  # [[32.0, 30.0, 72.0, 70.0], [170.0, 65.0, 230.0, 95.0]]
print(scores.tolist(), classes.tolist())  # [0.875, 0.5] [2, 2]
'''


def test_example_of_a_detector() -> None:
    printed = io.StringIO()
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(printed):
        exec(EXAMPLE, names)
    assert printed.getvalue().splitlines() == re.findall(r"^print\(.*\)  # (.*)$", EXAMPLE, re.M)
    readme = (ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else ""
    assert "8400" not in readme or EXAMPLE.strip() in readme
    output = np.random.default_rng(0).uniform(0, 0.3, (1, 84, 8400)).astype(np.float32)
    output[0, :4] *= 2000
    boxes, scores, classes = names["detections"](output, min_score=0.299, iou_threshold=0.5)
    assert 50 < len(boxes) <= 300 and (np.diff(scores) <= 0).all() and scores.min() >= 0.299
    # The same with torch, candidate by candidate.
    flat = torch.from_numpy(output[0].T.copy())
    best, index = flat[:, 4:].max(1)
    flat, best, index = (t[best >= 0.299] for t in (flat, best, index))
    corners = torch.cat([flat[:, :2] - flat[:, 2:4] / 2, flat[:, :2] + flat[:, 2:4] / 2], 1)
    keep = reference.batched_nms(corners, best, index, 0.5, max_output=300)
    np.testing.assert_array_equal(boxes, corners[keep])
    np.testing.assert_array_equal(classes, index[keep])
