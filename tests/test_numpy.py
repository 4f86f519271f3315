"""The NumPy front: the same results and messages as the torch operators, without torch."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import cvkernels.numpy as cvnp
from cvkernels import ops, reference

pytestmark = pytest.mark.native


def random_problem(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 200, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 60, (count, 2))], 1)
    return boxes, rng.uniform(0, 1, count)


@pytest.mark.parametrize("count", [0, 1, 2, 17, 300, 5000])
@pytest.mark.parametrize("box_dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("score_dtype", ["float16", "float32", "float64"])
def test_equals_the_torch_operator(count: int, box_dtype: str, score_dtype: str) -> None:
    boxes, scores = random_problem(count)
    boxes, scores = boxes.astype(box_dtype), scores.astype(score_dtype)
    keep = cvnp.nms(boxes, scores, 0.4)
    assert keep.dtype == np.int64
    expected = ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.4)
    np.testing.assert_array_equal(keep, expected.numpy())
    if count == 300:
        np.testing.assert_array_equal(
            keep, reference.nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.4).numpy()
        )


def test_by_hand() -> None:
    # IoU of the first two is 81 / 100 and 0 with the third; equal scores go by index.
    boxes = np.array([[0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]], np.float32)
    scores = np.array([0.5, 0.9, 0.5], np.float32)
    np.testing.assert_array_equal(cvnp.nms(boxes, scores, 0.8), [1, 2])
    np.testing.assert_array_equal(cvnp.nms(boxes, scores, 0.82), [1, 0, 2])
    np.testing.assert_array_equal(cvnp.nms(boxes, scores, 0.82, max_output=2), [1, 0])
    assert cvnp.nms(boxes, scores, 0.5, max_output=0).size == 0


def test_nan_score_is_never_kept() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10]], np.float64)
    np.testing.assert_array_equal(cvnp.nms(boxes, np.array([np.nan, 0.1]), 0.5), [1])


def test_any_strides() -> None:
    boxes, scores = random_problem(400)
    expected = cvnp.nms(boxes, scores, 0.3)
    wide = np.zeros((400, 9))
    wide[:, 1:8:2] = boxes[:, :4]
    np.testing.assert_array_equal(cvnp.nms(wide[:, 1:8:2], scores, 0.3), expected)
    np.testing.assert_array_equal(cvnp.nms(np.asfortranarray(boxes), scores, 0.3), expected)
    backwards = cvnp.nms(boxes[::-1].copy()[::-1], scores[::-1].copy()[::-1], 0.3)
    np.testing.assert_array_equal(backwards, expected)
    swapped = boxes.astype(boxes.dtype.newbyteorder())
    np.testing.assert_array_equal(cvnp.nms(swapped, scores, 0.3), expected)
    frozen = boxes.copy()
    frozen.setflags(write=False)
    np.testing.assert_array_equal(cvnp.nms(frozen, scores, 0.3), expected)


@pytest.mark.parametrize(
    ("boxes", "scores", "threshold", "options"),
    [
        (np.zeros((10, 5), np.float32), np.zeros(10, np.float32), 0.5, {}),
        (np.zeros(4, np.float32), np.zeros(1, np.float32), 0.5, {}),
        (np.zeros((10, 4), np.float32), np.zeros(9, np.float32), 0.5, {}),
        (np.zeros((10, 4), np.float32), np.zeros((10, 1), np.float32), 0.5, {}),
        (np.zeros((1, 4), np.float32), np.zeros(1, np.float32), float("nan"), {}),
        (np.zeros((1, 4), np.float32), np.zeros(1, np.float32), float("inf"), {}),
        (np.zeros((1, 4), np.float32), np.zeros(1, np.float32), 0.5, {"max_output": -1}),
        (np.zeros((1, 4), np.float32), np.zeros(1, np.float32), 0.5, {"max_output": 1.5}),
        (np.zeros((1, 4), np.float32), np.zeros(1, np.float32), "0.5", {}),
    ],
)
def test_same_messages_as_the_torch_operator(boxes, scores, threshold, options) -> None:
    with pytest.raises((ValueError, TypeError)) as ours:
        cvnp.nms(boxes, scores, threshold, **options)
    with pytest.raises(ours.type) as theirs:
        ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold, **options)
    assert str(ours.value) == str(theirs.value)


def test_dtype_and_type_are_checked() -> None:
    boxes, scores = random_problem(3)
    with pytest.raises(ValueError, match=r"nms: expected boxes of dtype float16, .* got int64"):
        cvnp.nms(boxes.astype(np.int64), scores, 0.5)
    with pytest.raises(
        ValueError, match=r"nms: expected scores of dtype float16, .* got complex128"
    ):
        cvnp.nms(boxes, scores.astype(np.complex128), 0.5)
    with pytest.raises(TypeError, match=r"nms: expected boxes to be an array, got list"):
        cvnp.nms(boxes.tolist(), scores, 0.5)


def test_threads_call_at_the_same_time() -> None:
    problems = [random_problem(3000, seed) for seed in range(4)]
    expected = [cvnp.nms(*problem, 0.5) for problem in problems]
    results: list[np.ndarray | None] = [None] * len(problems)

    def work(index: int) -> None:
        for _ in range(5):
            results[index] = cvnp.nms(*problems[index], 0.5)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(problems))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, right in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, right)


def test_works_where_torch_cannot_be_imported() -> None:
    program = """
import sys
sys.modules["torch"] = None  # every `import torch` now fails
import numpy as np
import cvkernels
boxes = np.array([[0, 0, 10, 10], [1, 1, 10, 10]], np.float32)
print(cvkernels.numpy.nms(boxes, np.array([0.5, 0.9]), 0.5).tolist(),
cvkernels.numpy.build_info()["version"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[1]", "0.1.0"]
