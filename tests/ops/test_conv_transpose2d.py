"""conv_transpose2d: the generic matrix, then what is particular to the operator."""

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
    build,
    lay_out,
    on_any_threads,
)
from test_conv2d import RANDOM
from torch import Tensor, nn

from cvkernels import reference
from cvkernels.conv_transpose2d import ConvTranspose2d, conv_transpose2d


def case(
    name: str,
    input: tuple[int, ...],
    weight: tuple[int, ...],
    bias: bool = True,
    options: dict[str, Any] | None = None,
    **arguments: Any,
) -> Case:
    channels = weight[1] * arguments.get("groups", 1)

    def make() -> Args:
        return {
            "input": normal(*input, seed=1),
            "weight": normal(*weight, seed=2),
            "bias": normal(channels, seed=3) if bias else None,
            **arguments,
        }

    return Case(name, make, **(options or {}))


SMALL = {"small": True}
CASES = [
    case("small", (2, 2, 3, 4), (2, 3, 3, 3), options=SMALL, stride=2, padding=1),
    case(
        "small groups",
        (1, 4, 3, 2),
        (4, 1, 2, 3),
        options=SMALL,
        stride=(3, 1),
        padding=(0, 1),
        output_padding=(2, 0),
        groups=2,
        dilation=(1, 2),
    ),
    case("small depthwise", (1, 3, 4, 4), (3, 1, 3, 3), options=SMALL, stride=2, groups=3),
    case("dense", (1, 33, 7, 8), (33, 65, 3, 3), bias=False, padding=1),
    case("upsampling", (2, 8, 5, 6), (8, 5, 4, 4), stride=2, padding=1),
    case("gaps", (1, 3, 4, 3), (3, 4, 2, 2), stride=(5, 4)),
    case("gaps at the end", (1, 3, 4, 3), (3, 4, 2, 2), stride=5, output_padding=4),
    case(
        "output padding above the stride", (1, 2, 4, 4), (2, 3, 2, 2), output_padding=2, dilation=3
    ),
    case(
        "output padding above padding", (1, 2, 4, 4), (2, 3, 3, 3), stride=3, output_padding=(2, 1)
    ),
    case("stride and dilation share a divisor", (1, 3, 5, 5), (3, 2, 3, 4), stride=4, dilation=6),
    case("stride and dilation", (1, 3, 5, 5), (3, 2, 3, 4), stride=(2, 3), dilation=(3, 2)),
    case("1x1", (2, 9, 4, 5), (9, 20, 1, 1)),
    case("1x1 strided", (2, 9, 4, 5), (9, 20, 1, 1), stride=3),
    case("one pixel", (3, 5, 1, 1), (5, 4, 7, 7)),
    case("one pixel left", (1, 3, 1, 1), (3, 2, 3, 3), padding=1),
    case("groups of four", (1, 8, 5, 6), (8, 4, 3, 3), stride=2, groups=2),
    case(
        "depthwise blocks of channels", (1, 80, 4, 4), (80, 1, 4, 4), stride=2, padding=1, groups=80
    ),
    case("depthwise vectors", (1, 16, 6, 7), (16, 1, 3, 3), padding=1, groups=16),
    case("depthwise vectors strided", (1, 8, 6, 7), (8, 1, 3, 3), stride=2, groups=8),
    case("depthwise wide", (1, 2, 20, 60), (2, 1, 4, 4), stride=2, padding=1, groups=2),
    case("depthwise dilated", (1, 5, 6, 7), (5, 1, 3, 3), stride=3, dilation=2, groups=5),
    case("no images", (0, 3, 4, 5), (3, 2, 3, 3)),
    case("no outputs", (2, 3, 4, 5), (3, 0, 3, 3)),
]


def good(**changes: Any) -> Callable[[], Args]:
    """Acceptable arguments with some replaced; tensors are made when called (fake or real)."""

    def make() -> Args:
        args: Args = {"input": torch.ones(2, 4, 5, 5), "weight": torch.ones(4, 3, 3, 3)}
        args.update({k: v() if callable(v) else v for k, v in changes.items()})
        return args

    return make


OP = "conv_transpose2d: expected"
ERRORS = [
    ErrorCase(
        "input dims",
        good(input=lambda: torch.ones(3, 4)),
        f"{OP} input of shape (N, C, H, W), got (3, 4)",
    ),
    ErrorCase(
        "input dtype",
        good(input=lambda: torch.ones(2, 4, 5, 5, dtype=torch.int32)),
        f"{OP} input of dtype float16, bfloat16, float32 or float64, got int32",
    ),
    ErrorCase(
        "weight dtype",
        good(weight=lambda: torch.ones(4, 3, 3, 3, dtype=torch.bfloat16)),
        f"{OP} weight of the dtype of input (float32), got bfloat16",
    ),
    ErrorCase(
        "channels",
        good(weight=lambda: torch.ones(6, 3, 3, 3)),
        f"{OP} input of 6 channels (weight (6, 3, 3, 3), groups 1), got 4",
    ),
    ErrorCase(
        "groups",
        good(groups=3),
        f"{OP} weight of a multiple of 3 rows (groups), got (4, 3, 3, 3)",
    ),
    ErrorCase(
        "bias",
        good(bias=lambda: torch.ones(3), groups=2),
        f"{OP} bias of shape (6,), got (3,)",
    ),
    ErrorCase(
        "stride", good(stride=(1, 0)), f"{OP} stride of 2 values from 1 to 2^31 - 1, got (1, 0)"
    ),
    ErrorCase(
        "padding", good(padding=-1), f"{OP} padding of 2 values from 0 to 2^31 - 1, got (-1, -1)"
    ),
    ErrorCase(
        "padding type",
        good(padding="same"),
        f"{OP} padding to be an integer, got str",
        type=TypeError,
    ),
    ErrorCase(
        "output padding",
        good(output_padding=(1, 2), stride=2),
        f"{OP} output_padding below stride or dilation, got (1, 2)",
    ),
    ErrorCase(
        "negative output padding",
        good(output_padding=-1),
        f"{OP} output_padding of 2 values from 0 to 2^31 - 1, got (-1, -1)",
    ),
    ErrorCase(
        "dilation",
        good(dilation=0),
        f"{OP} dilation of 2 values from 1 to 2^31 - 1, got (0, 0)",
    ),
    ErrorCase(
        "nothing left",
        good(padding=4),
        f"{OP} an output of at least 1 x 1, got (-1, -1) for an input of (2, 4, 5, 5)",
    ),
    ErrorCase(
        "no pixels",
        good(input=lambda: torch.ones(2, 4, 0, 5)),
        f"{OP} an output of at least 1 x 1, got (2, 7) for an input of (2, 4, 0, 5)",
    ),
    ErrorCase(
        "padded size",
        good(stride=2**29),
        f"{OP} padded sizes below 2^31, got (2147483651, 2147483651)",
    ),
]

GEOMETRY = ([2, 1], [0, 1], [1, 0], [1, 2], 2)


def sample(dtype: torch.dtype) -> tuple[Any, ...]:
    tensors = normal(2, 4, 3, 5), normal(4, 3, 3, 2, seed=1), normal(6, seed=2)
    return (*(t.to(dtype).requires_grad_() for t in tensors), *GEOMETRY, False)


VMAPS = [
    VmapCase(
        "images",
        lambda x, w: conv_transpose2d(x, w, stride=2),
        lambda: (normal(2, 3, 4, 5, 6), normal(4, 3, 3, 3, seed=1)),
        (1, None),
    ),
    VmapCase(
        "weights",
        lambda x, w, b: conv_transpose2d(x, w, b, groups=2),
        lambda: (normal(2, 4, 5, 6), normal(3, 4, 3, 3, 3, seed=1), normal(6, seed=2)),
        (None, 0, None),
    ),
    VmapCase(
        "all",
        lambda x, w, b: conv_transpose2d(x, w, b, 2, 1, 1),
        lambda: (normal(3, 2, 4, 3, 4), normal(4, 5, 3, 3, 3, seed=1), normal(5, 3, seed=2)),
        (0, 2, 1),
    ),
]

SPEC = OpSpec(
    name="conv_transpose2d",
    op=conv_transpose2d,
    reference=reference.conv_transpose2d,
    cases=CASES,
    differentiable=("input", "weight", "bias"),
    second_order=lambda args: True,
    errors=ERRORS,
    samples=[Sample("conv_transpose2d", "groups", sample)],
    vmaps=VMAPS,
)


class TestConvTranspose2d(DifferentiableOpTests):
    spec = SPEC

    @pytest.mark.parametrize("autocast_dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_autocast(
        self, small_case: Case, dtype: torch.dtype, autocast_dtype: torch.dtype, device: str
    ) -> None:
        """As torch: everything but float64 is cast to autocast's dtype."""
        args = build(small_case, dtype, device=device)
        target = dtype if dtype == torch.float64 else autocast_dtype
        cast = {k: v.to(target) if isinstance(v, Tensor) else v for k, v in args.items()}
        with torch.autocast(device, autocast_dtype):
            actual = conv_transpose2d(**args)
        assert_same(actual, conv_transpose2d(**cast), small_case.name)


def compare_with_torch(seed: int) -> None:
    """One random geometry, dtype and layout: forward and all gradients equal torch's."""
    g = torch.Generator().manual_seed(seed)
    geometry = random_geometry(g)
    dtype = DTYPES[int(torch.randint(0, 4, (), generator=g))]
    layouts = ["contiguous", "channels_last", "sliced", "unaligned"]
    layout, grad_layout = (layouts[int(i)] for i in torch.randint(0, 4, (2,), generator=g))
    n, _, h, w = geometry.input
    arguments: dict[str, Any] = geometry.arguments
    # Padding may leave nothing; output_padding is what stride and dilation allow.
    span = [geometry.dilation[i] * (geometry.weight[2 + i] - 1) + 1 for i in (0, 1)]
    arguments["padding"] = tuple(min(geometry.padding[i], (span[i] - 1) // 2) for i in (0, 1))
    arguments["output_padding"] = tuple(
        int(torch.randint(0, max(geometry.stride[i], geometry.dilation[i]), (), generator=g))
        for i in (0, 1)
    )
    shapes = [(n, geometry.weight[0], h, w), geometry.weight]
    if geometry.bias:
        shapes.append((geometry.weight[1] * geometry.groups,))
    values = [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]
    ours = [lay_out(v, layout).detach().requires_grad_() for v in values]
    theirs = [v.to(torch.float64).requires_grad_() for v in values]
    out = conv_transpose2d(*ours, **arguments)
    expected = F.conv_transpose2d(*theirs, **arguments)
    assert_close(out, expected, dtype, f"seed {seed}: {geometry}")
    upstream = torch.randn(expected.shape, generator=g, dtype=torch.float64).to(dtype)
    grads = torch.autograd.grad(out, ours, lay_out(upstream, grad_layout))
    wanted = torch.autograd.grad(expected, theirs, upstream.double())
    for name, a, e in zip(("input", "weight", "bias"), grads, wanted, strict=False):
        assert_close(a, e, dtype, f"seed {seed}, gradient of {name}: {geometry}")


@pytest.mark.parametrize("part", range(4))
def test_random_geometries_equal_torch(part: int) -> None:
    """CVKERNELS_RANDOM_CONVOLUTIONS says how many."""
    for seed in range(part, RANDOM, 4):
        compare_with_torch(seed)


def test_format_follows_input_or_weight() -> None:
    """As torch: channels_last if either is."""
    last = torch.channels_last
    x, w = torch.randn(2, 4, 6, 5), torch.randn(4, 3, 3, 3)
    for a in (x, x.contiguous(memory_format=last)):
        for b in (w, w.contiguous(memory_format=last)):
            assert conv_transpose2d(a, b).stride() == F.conv_transpose2d(a, b).stride()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_result_does_not_depend_on_threads(layout: str) -> None:
    x, w = lay_out(torch.randn(2, 40, 13, 9), layout), lay_out(torch.randn(40, 33, 3, 3), layout)
    on_any_threads(lambda: conv_transpose2d(x, w, stride=2))


def test_module_is_torchs() -> None:
    torch.manual_seed(0)
    theirs = nn.ConvTranspose2d(4, 6, (3, 2), 2, (1, 0), 1, 2, dilation=2)
    ours = ConvTranspose2d(4, 6, (3, 2), 2, (1, 0), 1, 2, dilation=2)
    ours.load_state_dict(theirs.state_dict())
    assert isinstance(ours, nn.ConvTranspose2d) and repr(ours) == repr(theirs)
    x = torch.randn(2, 4, 5, 6)
    assert_close(ours(x), theirs(x), torch.float32)
    size = [theirs(x).shape[2] - 1, theirs(x).shape[3]]
    assert_close(ours(x, size), theirs(x, size), torch.float32)
