"""The harness itself: it passes a right operator and catches ones that are wrong in one way."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness import (
    Case,
    DifferentiableOpTests,
    OpSpec,
    assert_close,
    build,
    lay_out,
)
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from cvkernels import reference

pytestmark = pytest.mark.native  # no kernel runs here


def arguments() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 7, 6, generator=generator, dtype=torch.float64)
    boxes = torch.tensor([[0.0, 1, 1, 4, 5], [1, 0, 2, 5, 6]], dtype=torch.float64)
    return {"input": x, "boxes": boxes, "output_size": 2, "sampling_ratio": 2}


CASE = Case("plain", arguments, small=True)


def matrix_for(op: Callable[..., Any]) -> DifferentiableOpTests:
    tests = DifferentiableOpTests()
    tests.spec = OpSpec(
        "roi_align",
        op,
        reference.roi_align,
        [CASE],
        differentiable=("input",),
        memory_format_of="input",
        second_order=lambda args: True,
    )
    return tests


def right(**kwargs: Any) -> Tensor:
    return reference.roi_align(**kwargs)


def run_forward(tests: DifferentiableOpTests, dtype: torch.dtype) -> None:
    for layout in ("contiguous", "channels_last", "sliced", "unaligned"):
        tests.test_forward(CASE, dtype, layout, "cpu")


def run_gradient(tests: DifferentiableOpTests, dtype: torch.dtype) -> None:
    for layout in ("contiguous", "channels_last", "sliced", "unaligned"):
        tests.test_gradient(CASE, dtype, layout, "cpu")


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_reference_passes(dtype: torch.dtype) -> None:
    run_forward(matrix_for(right), dtype)
    run_gradient(matrix_for(right), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_error_of_four_roundings_is_caught(dtype: torch.dtype) -> None:
    slightly = 1 + {torch.float32: 1e-4, torch.float64: 1e-10}.get(
        dtype, 4 * torch.finfo(dtype).eps
    )

    def wrong(**kwargs: Any) -> Tensor:
        return right(**kwargs) * slightly

    with pytest.raises(AssertionError):
        run_forward(matrix_for(wrong), dtype)
    with pytest.raises(AssertionError):
        run_gradient(matrix_for(wrong), dtype)


def test_one_wrong_element_is_caught() -> None:
    def wrong(**kwargs: Any) -> Tensor:
        out = right(**kwargs)
        mask = torch.zeros_like(out)
        mask[1, 2, 1, 1] = 0.01
        return out + mask

    with pytest.raises(AssertionError, match="1 of 24 elements"):
        run_forward(matrix_for(wrong), torch.float32)


def test_reading_memory_in_order_is_caught() -> None:
    def wrong(input: Tensor, **kwargs: Any) -> Tensor:  # ignores strides
        flat = torch.as_strided(input, input.shape, torch.empty(input.shape).stride())
        return right(input=flat, **kwargs)

    with pytest.raises(AssertionError):
        run_forward(matrix_for(wrong), torch.float32)


def test_losing_the_memory_format_is_caught() -> None:
    with pytest.raises(AssertionError):
        run_forward(matrix_for(lambda **kwargs: right(**kwargs).contiguous()), torch.float32)


def test_writing_to_an_argument_is_caught() -> None:
    def wrong(input: Tensor, **kwargs: Any) -> Tensor:
        out = right(input=input, **kwargs)
        input[0, 0, 0, 0] += 1
        return out

    with pytest.raises(AssertionError, match="argument input was modified"):
        run_forward(matrix_for(wrong), torch.float32)


def test_a_wrong_gradient_is_caught() -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, input: Tensor, kwargs: dict[str, Any]) -> Tensor:
            ctx.shape = input.shape
            return right(input=input, **kwargs)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            return grad.new_full(ctx.shape, grad.mean().item()), None

    tests = matrix_for(lambda input, **kwargs: Wrong.apply(input, kwargs))
    with pytest.raises(AssertionError):
        run_gradient(tests, torch.float64)
    with pytest.raises(GradcheckError):
        tests.test_gradcheck(CASE, "cpu")


def test_unrepeatable_results_are_caught() -> None:
    state = {"calls": 0}

    def wrong(**kwargs: Any) -> Tensor:
        state["calls"] += 1
        return right(**kwargs) + 1e-15 * state["calls"]

    with pytest.raises(AssertionError):
        matrix_for(wrong).test_bitwise_repeatable(CASE, torch.float64, "cpu")


def test_nan_is_not_close_to_a_number() -> None:
    with pytest.raises(AssertionError, match="NaN in different places"):
        assert_close(torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0]), torch.float32)


def test_what_differs_is_said_in_short() -> None:
    with pytest.raises(AssertionError, match="1 of 2 elements differ") as caught:
        assert_close(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0]), torch.float32)
    assert "tensor(" not in str(caught.value)


def test_layouts_hold_the_same_values() -> None:
    x = build(CASE)["input"]
    for layout in ("contiguous", "channels_last", "sliced", "unaligned"):
        assert torch.equal(lay_out(x, layout), x)
    assert lay_out(x, "channels_last").is_contiguous(memory_format=torch.channels_last)
    assert not lay_out(x, "sliced").is_contiguous()
    assert lay_out(x, "unaligned").data_ptr() % 16 != 0
    assert importlib.import_module("harness").TOLERANCES.keys() == set(DTYPES)


# --------------------------------------------------------------------------------------------------
# Operators that select


def selecting(op: Callable[..., Any], **options: Any) -> DifferentiableOpTests:
    def make() -> dict[str, Any]:
        boxes = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [8, 0, 18, 10]]).double()
        return {"boxes": boxes, "scores": torch.tensor([0.9, 0.8, 0.7]).double()}

    tests = DifferentiableOpTests()
    case = Case("plain", make, small=True)
    tests.spec = OpSpec(
        "soft_nms",
        op,
        reference.soft_nms,
        [case],
        selects=True,
        differentiable=("scores",),
        **options,
    )
    return tests


def test_a_right_selection_passes() -> None:
    tests = selecting(lambda **kwargs: reference.soft_nms(**kwargs))
    for dtype in DTYPES:
        tests.test_forward(tests.spec.cases[0], dtype, "contiguous", "cpu")
        tests.test_gradient(tests.spec.cases[0], dtype, "contiguous", "cpu")
    tests.test_gradcheck(tests.spec.cases[0], "cpu")


def test_a_wrong_index_score_or_dtype_is_caught() -> None:
    def another_index(**kwargs: Any) -> Any:
        keep, new_scores = reference.soft_nms(**kwargs)
        return keep + 1, new_scores

    def another_score(**kwargs: Any) -> Any:
        keep, new_scores = reference.soft_nms(**kwargs)
        return keep, new_scores * 1.0001

    def another_dtype(**kwargs: Any) -> Any:
        keep, new_scores = reference.soft_nms(**kwargs)
        return keep, new_scores.double()

    def one_more(**kwargs: Any) -> Any:
        return (*reference.soft_nms(**kwargs), torch.zeros(1))

    for wrong in (another_index, another_score, another_dtype, one_more):
        tests = selecting(wrong)
        with pytest.raises((AssertionError, ValueError)):
            tests.test_forward(tests.spec.cases[0], torch.float32, "contiguous", "cpu")


def test_a_detached_score_is_caught() -> None:
    tests = selecting(lambda **kwargs: tuple(r.detach() for r in reference.soft_nms(**kwargs)))
    with pytest.raises((AssertionError, RuntimeError)):
        tests.test_gradient(tests.spec.cases[0], torch.float32, "contiguous", "cpu")


def test_infinities_are_compared() -> None:
    inf = float("inf")
    values = torch.tensor([1.0, inf, -inf, float("nan")])
    assert_close(values, values.clone(), torch.float32)
    for wrong in ([1.0, -inf, -inf], [1.0, 3e38, -inf], [inf, inf, -inf], [1.0, inf, float("nan")]):
        with pytest.raises(AssertionError):
            assert_close(torch.tensor(wrong), values[:3], torch.float32)
