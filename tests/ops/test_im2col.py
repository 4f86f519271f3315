"""im2col, col2im and convolution by columns: the generic matrix, then comparisons with torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conv_family import normal, random_geometry
from harness import (
    DTYPES,
    Args,
    Case,
    DifferentiableOpTests,
    ErrorCase,
    OpSpec,
    Sample,
    VmapCase,
    assert_close,
    assert_same,
    lay_out,
)
from test_conv2d import ERRORS as CONV2D_ERRORS
from test_conv2d import RANDOM

from cvkernels import reference
from cvkernels.conv2d import conv2d
from cvkernels.im2col import col2im, conv2d_im2col, fold, im2col, unfold

SMALL = {"small": True}


def column_case(name: str, input: tuple[int, ...], **arguments: Any) -> Case:
    options = arguments.pop("options", {})
    return Case(name, lambda: {"input": normal(*input), **arguments}, **options)


def sum_case(
    name: str, columns: tuple[int, ...], argument: str = "columns", **arguments: Any
) -> Case:
    options = arguments.pop("options", {})
    return Case(name, lambda: {argument: normal(*columns), **arguments}, **options)


def good(first: str, shape: tuple[int, ...], **defaults: Any) -> Callable[..., Any]:
    def change(**changes: Any) -> Callable[[], Args]:
        def make() -> Args:
            args: Args = {first: torch.ones(shape), **defaults}
            args.update({k: v() if callable(v) else v for k, v in changes.items()})
            return args

        return make

    return change


map_with = good("input", (2, 3, 5, 6), kernel_size=2)
FLOATS = "float16, bfloat16, float32 or float64"


def column_errors(op: str = "im2col") -> list[ErrorCase]:
    return [
        ErrorCase(
            "input dims",
            map_with(input=lambda: torch.ones(3, 4)),
            f"{op}: expected input of shape (N, C, H, W), got (3, 4)",
        ),
        ErrorCase(
            "input dtype",
            map_with(input=lambda: torch.ones(2, 3, 5, 6, dtype=torch.int64)),
            f"{op}: expected input of dtype {FLOATS}, got int64",
        ),
        ErrorCase(
            "input type",
            map_with(input=3),
            f"{op}: expected input to be a tensor, got int",
            type=TypeError,
        ),
        ErrorCase(
            "kernel",
            map_with(kernel_size=(2, 0)),
            f"{op}: expected kernel_size of 2 values from 1 to 2^31 - 1, got (2, 0)",
        ),
        ErrorCase(
            "kernel type",
            map_with(kernel_size=2.0),
            f"{op}: expected kernel_size to be an integer, got float",
            type=TypeError,
        ),
        ErrorCase(
            "padding",
            map_with(padding=-1),
            f"{op}: expected padding of 2 values from 0 to 2^31 - 1, got (-1, -1)",
        ),
        ErrorCase(
            "stride",
            map_with(stride=0),
            f"{op}: expected stride of 2 values from 1 to 2^31 - 1, got (0, 0)",
        ),
        ErrorCase(
            "fit",
            map_with(kernel_size=6, padding=(0, 1)),
            f"{op}: expected a kernel within the padded input of (5, 8), got one that spans (6, 6)",
        ),
    ]


def sum_errors(first: str, op: str = "col2im") -> list[ErrorCase]:
    columns_with = good(first, (2, 12, 20), output_size=(5, 6), kernel_size=2)
    return [
        ErrorCase(
            "columns dims",
            columns_with(**{first: lambda: torch.ones(2, 3, 4, 5)}),
            f"{op}: expected columns of shape (N, C * KH * KW, L), got (2, 3, 4, 5)",
        ),
        ErrorCase(
            "columns dtype",
            columns_with(**{first: lambda: torch.ones(2, 12, 20, dtype=torch.int64)}),
            f"{op}: expected columns of dtype {FLOATS}, got int64",
        ),
        ErrorCase(
            "rows",
            columns_with(kernel_size=(5, 1), output_size=(5, 20)),
            f"{op}: expected columns of a multiple of 5 rows and 20 positions, got (2, 12, 20)",
        ),
        ErrorCase(
            "positions",
            columns_with(padding=1),
            f"{op}: expected columns of a multiple of 4 rows and 42 positions, got (2, 12, 20)",
        ),
        ErrorCase(
            "size",
            columns_with(output_size=(5, 0)),
            f"{op}: expected output_size of 2 values from 1 to 2^31 - 1, got (5, 0)",
        ),
    ]


def sample_im2col(dtype: torch.dtype) -> tuple[Any, ...]:
    return normal(2, 3, 5, 6).to(dtype).requires_grad_(), [2, 3], [1, 2], [1, 0], [2, 1]


def sample_backward(dtype: torch.dtype) -> tuple[Any, ...]:
    columns = normal(2, 18, 6).to(dtype).requires_grad_()
    return columns, 5, 6, [2, 3], [1, 2], [1, 0], [2, 1]


COLUMN_CASES = [
    column_case("small", (2, 2, 4, 5), kernel_size=(2, 3), padding=1, stride=(2, 1), options=SMALL),
    column_case("dilated", (1, 3, 9, 8), kernel_size=3, dilation=(2, 3), padding=(2, 0)),
    column_case("strided", (2, 5, 17, 19), kernel_size=(4, 3), stride=3, padding=1),
    column_case("many channels", (1, 37, 6, 20), kernel_size=2),
    column_case("padding above the kernel", (1, 2, 3, 3), kernel_size=2, padding=4),
    column_case("no images", (0, 3, 4, 5), kernel_size=2),
    column_case("no channels", (2, 0, 4, 5), kernel_size=2),
]


def sum_cases(first: str = "columns") -> list[Case]:
    return [
        sum_case(
            "small",
            (2, 12, 15),
            first,
            output_size=(4, 5),
            kernel_size=(2, 3),
            padding=1,
            stride=(2, 1),
            options=SMALL,
        ),
        sum_case(
            "dilated",
            (1, 27, 18),
            first,
            output_size=(9, 8),
            kernel_size=3,
            dilation=(2, 3),
            padding=(2, 0),
        ),
        sum_case("gaps", (2, 8, 9), first, output_size=(11, 12), kernel_size=2, stride=(4, 5)),
        sum_case("no images", (0, 12, 12), first, output_size=(4, 5), kernel_size=2),
        sum_case("no channels", (2, 0, 12), first, output_size=(4, 5), kernel_size=2),
    ]


class TestIm2col(DifferentiableOpTests):
    spec = OpSpec(
        name="im2col",
        op=im2col,
        reference=reference.im2col,
        cases=COLUMN_CASES,
        differentiable=("input",),
        second_order=lambda args: True,
        errors=column_errors(),
        samples=[
            Sample("im2col", "strided", sample_im2col),
            Sample("im2col_backward", "strided", sample_backward),
        ],
        vmaps=[
            VmapCase("images", lambda x: im2col(x, 2), lambda: (normal(2, 3, 4, 5, 6),), (1,)),
            VmapCase("maps", lambda x: im2col(x, 2), lambda: (normal(3, 4, 5, 6),), (0,)),
        ],
    )


class TestUnfold(DifferentiableOpTests):
    spec = OpSpec(
        name="unfold",
        op=unfold,
        reference=reference.unfold,
        cases=COLUMN_CASES[:1],
        differentiable=("input",),
        second_order=lambda args: True,
        errors=column_errors(),
        vmaps=[VmapCase("maps", lambda x: unfold(x, 2), lambda: (normal(3, 4, 5, 6),), (0,))],
    )


class TestCol2im(DifferentiableOpTests):
    spec = OpSpec(
        name="col2im",
        op=col2im,
        reference=reference.col2im,
        cases=sum_cases(),
        differentiable=("columns",),
        second_order=lambda args: True,
        errors=sum_errors("columns"),
        vmaps=[
            VmapCase(
                "images", lambda x: col2im(x, (4, 5), 2), lambda: (normal(2, 8, 3, 12),), (2,)
            ),
            VmapCase("maps", lambda x: col2im(x, (4, 5), 2), lambda: (normal(2, 8, 12),), (0,)),
        ],
    )


class TestFold(DifferentiableOpTests):
    spec = OpSpec(
        name="fold",
        op=fold,
        reference=reference.fold,
        cases=sum_cases("input")[:1],
        differentiable=("input",),
        second_order=lambda args: True,
        errors=sum_errors("input"),
        vmaps=[VmapCase("maps", lambda x: fold(x, (4, 5), 2), lambda: (normal(2, 8, 12),), (0,))],
    )


def conv_case(name: str, input: tuple[int, ...], weight: tuple[int, ...], **arguments: Any) -> Case:
    def make() -> Args:
        tensors = {
            "input": normal(*input, seed=1),
            "weight": normal(*weight, seed=2),
            "bias": normal(weight[0], seed=3),
        }
        return {**tensors, **arguments}

    wide = (torch.float32, torch.float64)  # torch's product rounds halves before the bias is added
    return Case(name, make, gradient_dtypes=wide, small=name == "small")


class TestConv2dIm2col(DifferentiableOpTests):
    spec = OpSpec(
        name="conv2d_im2col",
        op=conv2d_im2col,
        reference=reference.conv2d_im2col,
        dtypes=[torch.float32, torch.float64],
        cases=[
            conv_case("small", (2, 2, 4, 5), (4, 1, 3, 2), groups=2, padding=1),
            conv_case("strided", (2, 3, 9, 8), (5, 3, 3, 3), stride=2, dilation=2),
            conv_case("same even", (1, 3, 6, 7), (4, 3, 4, 2), padding="same"),
        ],
        differentiable=("input", "weight", "bias"),
        second_order=lambda args: True,
        errors=[
            ErrorCase(
                error.name,
                error.make,
                error.message.replace("conv2d:", "conv2d_im2col:"),
                error.type,
                fake=error.fake,
            )
            for error in CONV2D_ERRORS
            if error.name != "activation"
        ],
        vmaps=[
            VmapCase(
                "images",
                lambda x, w: conv2d_im2col(x, w),
                lambda: (normal(3, 2, 4, 5, 6), normal(3, 4, 3, 3, seed=1)),
                (0, None),
            )
        ],
    )

    # The product and the sum of the bias are torch's, and so are autocast's rule for them and the
    # order of their sums.
    test_autocast = None  # type: ignore[assignment]
    test_gradient_of_strided_upstream = None  # type: ignore[assignment]


@pytest.mark.parametrize("part", range(2))
def test_random_geometries_equal_torch(part: int) -> None:
    """unfold and fold against torch's, and the convolution by columns against the implicit one."""
    for seed in range(part, RANDOM // 2, 2):
        g = torch.Generator().manual_seed(seed)
        geometry = random_geometry(g)
        dtype = DTYPES[int(torch.randint(0, 4, (), generator=g))]
        layout = ["contiguous", "channels_last", "sliced"][
            int(torch.randint(0, 3, (), generator=g))
        ]
        arguments: dict[str, Any] = geometry.arguments
        groups = arguments.pop("groups")
        kernel = geometry.weight[2:]
        x = torch.randn(geometry.input, generator=g, dtype=torch.float64).to(dtype)
        columns = unfold(lay_out(x, layout), kernel, **arguments)
        assert_same(columns, F.unfold(x.double(), kernel, **arguments).to(dtype), str(geometry))
        size = geometry.input[2:]
        y = torch.randn(columns.shape, generator=g, dtype=torch.float64).to(dtype)
        folded = fold(lay_out(y, layout), size, kernel, **arguments)
        assert_close(folded, F.fold(y.double(), size, kernel, **arguments), dtype, str(geometry))
        w = torch.randn(geometry.weight, generator=g)
        explicit = conv2d_im2col(x.float(), w, groups=groups, **arguments)
        assert_close(explicit, conv2d(x.float(), w, groups=groups, **arguments), torch.float32)


def test_unbatched() -> None:
    x = torch.randn(3, 5, 6)
    assert_same(unfold(x, 2), unfold(x[None], 2)[0])
    columns = unfold(x, 2)
    assert_same(fold(columns, (5, 6), 2), fold(columns[None], (5, 6), 2)[0])
