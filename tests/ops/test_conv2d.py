"""conv2d: the generic matrix, then what is particular to the operator."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conv_family import normal, random_geometry
from harness import (
    DTYPES,
    EMULATED,
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
)
from torch import Tensor, nn

from cvkernels import reference
from cvkernels.conv2d import Conv2d, SeparableConv2d, conv2d

RANDOM = int(os.environ.get("CVKERNELS_RANDOM_CONVOLUTIONS", "40" if EMULATED else "300"))


def case(
    name: str,
    input: tuple[int, ...],
    weight: tuple[int, ...],
    bias: bool = True,
    activation: str | None = None,
    options: dict[str, Any] | None = None,
    **arguments: Any,
) -> Case:
    def make() -> Args:
        return {
            "input": normal(*input, seed=1),
            "weight": normal(*weight, seed=2),
            "bias": normal(weight[0], seed=3) if bias else None,
            **arguments,
            "activation": activation,
        }

    return Case(name, make, **(options or {}))


SMALL = {"small": True}
# Applied by torch where a gradient is wanted: in half precision that rounds more than once.
ROUNDED = {"gradient_dtypes": (torch.float32, torch.float64)}
CASES = [
    case("small", (2, 2, 5, 4), (3, 2, 3, 3), options=SMALL, padding=1),
    case(
        "small groups",
        (1, 4, 6, 5),
        (2, 2, 2, 3),
        options=SMALL,
        stride=(2, 1),
        padding=(0, 1),
        dilation=(2, 1),
        groups=2,
    ),
    case("small depthwise", (2, 3, 5, 5), (3, 1, 3, 3), options=SMALL, padding=1, groups=3),
    case("small relu", (2, 2, 4, 5), (3, 2, 2, 2), activation="relu", options=SMALL),
    case("small 1x1", (2, 3, 3, 3), (4, 3, 1, 1), options=SMALL),
    case("tile edges", (1, 33, 9, 8), (65, 33, 3, 3), bias=False, padding=1),
    case("three channels", (1, 3, 16, 15), (17, 3, 7, 7), stride=2, padding=3),
    case("deep", (1, 70, 5, 5), (20, 70, 3, 3), padding=1),
    case("large kernel", (1, 2, 24, 22), (3, 2, 19, 17), padding=3),
    case("kernel as large as the map", (2, 3, 4, 5), (5, 3, 4, 5)),
    case("one row", (2, 4, 1, 40), (6, 4, 1, 5), padding=(0, 2)),
    case("one column", (2, 4, 37, 1), (6, 4, 3, 1)),
    case("one pixel", (3, 20, 1, 1), (18, 20, 1, 1)),
    case("one pixel padded", (2, 5, 1, 1), (4, 5, 3, 3), padding=1),
    case("1x1 strided", (2, 9, 7, 6), (11, 9, 1, 1), stride=2),
    case("stride above the kernel", (1, 3, 14, 13), (4, 3, 2, 2), stride=(5, 4)),
    case("padding above the kernel", (1, 2, 3, 3), (2, 2, 2, 2), padding=4),
    case("dilated", (1, 5, 12, 13), (7, 5, 3, 3), dilation=(2, 3), padding=(2, 3)),
    case("same", (1, 3, 8, 7), (4, 3, 3, 3), padding="same", dilation=2),
    case("same even", (1, 3, 8, 7), (4, 3, 2, 4), padding="same"),
    case("valid", (1, 3, 8, 7), (4, 3, 3, 3), padding="valid"),
    case("groups of four", (1, 16, 6, 7), (16, 4, 3, 3), padding=1, groups=4),
    case("group multiplier", (1, 4, 6, 7), (12, 1, 3, 3), padding=1, groups=4),
    case("depthwise 5x5 strided", (2, 18, 9, 11), (18, 1, 5, 5), stride=2, padding=2, groups=18),
    case("depthwise dilated", (1, 5, 12, 40), (5, 1, 3, 3), dilation=2, padding=1, groups=5),
    case("depthwise stride 3", (1, 7, 17, 40), (7, 1, 4, 2), stride=3, padding=1, groups=7),
    case("depthwise 1x1", (2, 6, 5, 4), (6, 1, 1, 1), groups=6),
    case("depthwise blocks of channels", (1, 80, 6, 6), (80, 1, 3, 3), padding=1, groups=80),
    case("depthwise vectors", (2, 16, 9, 11), (16, 1, 3, 3), padding=1, groups=16),
    case("depthwise vectors strided", (1, 24, 13, 14), (24, 1, 3, 3), stride=2, groups=24),
    case("depthwise vectors 5x5", (1, 8, 11, 9), (8, 1, 5, 5), padding=2, groups=8),
    case("depthwise vectors dilated", (1, 8, 12, 17), (8, 1, 3, 4), dilation=2, groups=8),
    case("depthwise wide padding", (1, 2, 5, 6), (2, 1, 3, 3), dilation=700, padding=700, groups=2),
    case("depthwise rows and columns", (1, 20, 14, 18), (20, 1, 7, 7), padding=3, groups=20),
    case("depthwise strips", (1, 2, 50, 100), (2, 1, 3, 3), padding=1, groups=2),
    case("no images", (0, 3, 4, 5), (2, 3, 3, 3)),
    case("no channels", (2, 0, 4, 5), (3, 0, 3, 3)),
    case("no filters", (2, 3, 4, 5), (0, 3, 3, 3)),
    *[
        case(name, (1, 4, 5, 6), (9, 4, 3, 3), activation=name, padding=1, options=options)
        for name, options in (
            ("relu", {}),
            ("silu", ROUNDED),
            ("gelu", ROUNDED),
            ("gelu_tanh", ROUNDED),
        )
    ],
    case(
        "depthwise silu", (1, 8, 5, 6), (8, 1, 3, 3), activation="silu", groups=8, options=ROUNDED
    ),
]


def good(**changes: Any) -> Callable[[], Args]:
    """Acceptable arguments with some replaced; tensors are made when called (fake or real)."""

    def make() -> Args:
        args: Args = {"input": torch.ones(2, 4, 8, 8), "weight": torch.ones(6, 4, 3, 3)}
        args.update({k: v() if callable(v) else v for k, v in changes.items()})
        return args

    return make


FLOATS = "float16, bfloat16, float32 or float64"
ERRORS = [
    ErrorCase(
        "input dims",
        good(input=lambda: torch.ones(3, 4)),
        "conv2d: expected input of shape (N, C, H, W), got (3, 4)",
    ),
    ErrorCase(
        "input dtype",
        good(input=lambda: torch.ones(2, 4, 8, 8, dtype=torch.int64)),
        f"conv2d: expected input of dtype {FLOATS}, got int64",
    ),
    ErrorCase(
        "input type",
        good(input=[1.0]),
        "conv2d: expected input to be a tensor, got list",
        type=TypeError,
    ),
    ErrorCase(
        "weight type",
        good(weight=None),
        "conv2d: expected weight to be a tensor, got NoneType",
        type=TypeError,
    ),
    ErrorCase(
        "weight dims",
        good(weight=lambda: torch.ones(6, 4)),
        "conv2d: expected weight of four dimensions, got (6, 4)",
    ),
    ErrorCase(
        "weight dtype",
        good(weight=lambda: torch.ones(6, 4, 3, 3, dtype=torch.float64)),
        "conv2d: expected weight of the dtype of input (float32), got float64",
    ),
    ErrorCase(
        "weight device",
        good(weight=lambda: torch.ones(6, 4, 3, 3, device="meta")),
        "conv2d: expected weight on the device of input (cpu), got meta",
        fake=False,
    ),
    ErrorCase(
        "channels",
        good(weight=lambda: torch.ones(6, 3, 3, 3)),
        "conv2d: expected input of 3 channels (weight (6, 3, 3, 3), groups 1), got 4",
    ),
    ErrorCase("groups", good(groups=0), "conv2d: expected groups from 1 to 2^31 - 1, got 0"),
    ErrorCase(
        "groups type",
        good(groups=1.5),
        "conv2d: expected groups to be an integer, got float",
        type=TypeError,
    ),
    ErrorCase(
        "groups and filters",
        good(groups=4, weight=lambda: torch.ones(6, 1, 3, 3)),
        "conv2d: expected weight of a multiple of 4 rows (groups), got (6, 1, 3, 3)",
    ),
    ErrorCase(
        "kernel",
        good(weight=lambda: torch.ones(6, 4, 0, 3)),
        "conv2d: expected weight of a kernel of at least 1 x 1, got (6, 4, 0, 3)",
    ),
    ErrorCase(
        "bias",
        good(bias=lambda: torch.ones(4)),
        "conv2d: expected bias of shape (6,), got (4,)",
    ),
    ErrorCase(
        "bias dtype",
        good(bias=lambda: torch.ones(6, dtype=torch.float16)),
        "conv2d: expected bias of the dtype of input (float32), got float16",
    ),
    ErrorCase(
        "stride",
        good(stride=0),
        "conv2d: expected stride of 2 values from 1 to 2^31 - 1, got (0, 0)",
    ),
    ErrorCase(
        "stride values",
        good(stride=(1, 2, 3)),
        "conv2d: expected stride to be an integer or a pair of integers, got 3 values",
    ),
    ErrorCase(
        "stride type",
        good(stride="2"),
        "conv2d: expected stride to be an integer, got str",
        type=TypeError,
    ),
    ErrorCase(
        "padding",
        good(padding=(0, -1)),
        "conv2d: expected padding of 4 values from 0 to 2^31 - 1, got (0, 0, -1, -1)",
    ),
    ErrorCase(
        "padding word",
        good(padding="full"),
        "conv2d: expected padding to be 'valid' or 'same', got 'full'",
    ),
    ErrorCase(
        "same with a stride",
        good(padding="same", stride=2),
        "conv2d: expected stride 1 with padding 'same', got (2, 2)",
    ),
    ErrorCase(
        "dilation",
        good(dilation=(1, 0)),
        "conv2d: expected dilation of 2 values from 1 to 2^31 - 1, got (1, 0)",
    ),
    ErrorCase(
        "kernel larger than the map",
        good(padding=1, dilation=5),
        "conv2d: expected a kernel within the padded input of (10, 10), got one that spans "
        "(11, 11)",
    ),
    ErrorCase(
        "weight rank, same padding",
        good(padding="same", weight=lambda: normal(6, 2, 3)),
        "conv2d: expected weight of four dimensions, got (6, 2, 3)",
    ),
    ErrorCase(
        "padded size",
        good(padding=2**30),
        "conv2d: expected padded sizes below 2^31, got (2147483656, 2147483656)",
    ),
    ErrorCase(
        "activation",
        good(activation="tanh"),
        "conv2d: expected activation to be None, 'relu', 'silu', 'gelu' or 'gelu_tanh', got 'tanh'",
    ),
]

PAIRS = ([2, 1], [1, 0, 2, 1], [1, 2], 2)  # stride, padding, dilation, groups


def sample_conv(dtype: torch.dtype) -> tuple[Any, ...]:
    input, weight = normal(2, 4, 7, 8).to(dtype), normal(6, 2, 3, 2, seed=1).to(dtype)
    return input, weight, normal(6, seed=2).to(dtype), *PAIRS, "relu", False


def sample_backward_input(dtype: torch.dtype) -> tuple[Any, ...]:
    return (
        normal(2, 6, 3, 9).to(dtype).requires_grad_(),
        normal(6, 2, 3, 2, seed=1).to(dtype).requires_grad_(),
        7,
        8,
        *PAIRS,
        True,
        False,
    )


def sample_backward_weight(dtype: torch.dtype) -> tuple[Any, ...]:
    return (
        normal(2, 6, 3, 9).to(dtype).requires_grad_(),
        normal(2, 4, 7, 8, seed=1).to(dtype).requires_grad_(),
        3,
        2,
        *PAIRS,
        False,
        True,
        False,
    )


def sample_differentiable(dtype: torch.dtype) -> tuple[Any, ...]:
    input, weight, bias, *rest, _, tf32 = sample_conv(dtype)
    return (*(t.requires_grad_() for t in (input, weight, bias)), *rest, "none", tf32)


SAMPLES = [
    Sample("conv2d", "relu", sample_conv),
    Sample("conv2d", "differentiable", sample_differentiable),
    Sample("conv2d_backward_input", "channels_last", sample_backward_input),
    Sample("conv2d_backward_weight", "mixed", sample_backward_weight),
]


def input_gradient(grad: Tensor, w: Tensor) -> Tensor:
    op = torch.ops.cvkernels.conv2d_backward_input
    return op(grad, w, 7, 8, *PAIRS, False, False)  # type: ignore[no-any-return]


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    op = torch.ops.cvkernels.conv2d_backward_weight
    return op(grad, x, 3, 2, *PAIRS, False, False, False)  # type: ignore[no-any-return]


VMAPS = [
    VmapCase(
        "images",
        lambda x, w: conv2d(x, w, padding=1),
        lambda: (normal(3, 2, 4, 5, 6), normal(3, 4, 3, 3, seed=1)),
        (0, None),
    ),
    VmapCase(
        "images, another dimension",
        lambda x, w, b: conv2d(x, w, b, activation="relu"),
        lambda: (normal(2, 4, 3, 5, 6), normal(3, 4, 3, 3, seed=1), normal(3, seed=2)),
        (2, None, None),
    ),
    VmapCase(
        "weights",
        lambda x, w: conv2d(x, w, groups=2),
        lambda: (normal(2, 4, 5, 6), normal(3, 6, 2, 3, 3, seed=1)),
        (None, 0),
    ),
    VmapCase(
        "all",
        lambda x, w, b: conv2d(x, w, b, 2, 1),
        lambda: (normal(3, 2, 4, 5, 6), normal(6, 4, 3, 3, 3, seed=1), normal(3, 6, seed=2)),
        (0, 3, 0),
    ),
    VmapCase(
        "bias",
        lambda x, w, b: conv2d(x, w, b),
        lambda: (normal(2, 4, 5, 6), normal(6, 4, 3, 3, seed=1), normal(3, 6, seed=2)),
        (None, None, 0),
    ),
    VmapCase(
        "input gradient",
        input_gradient,
        lambda: (normal(3, 2, 6, 3, 9), normal(6, 2, 3, 2, seed=1)),
        (0, None),
    ),
    VmapCase(
        "input gradient, weights",
        input_gradient,
        lambda: (normal(2, 6, 3, 9), normal(6, 2, 3, 3, 2, seed=1)),
        (None, 2),
    ),
    VmapCase(
        "weight gradient",
        weight_gradient,
        lambda: (normal(3, 2, 6, 3, 9), normal(2, 4, 3, 7, 8, seed=1)),
        (0, 2),
    ),
    VmapCase(
        "weight gradient, shared input",
        weight_gradient,
        lambda: (normal(3, 2, 6, 3, 9), normal(2, 4, 7, 8, seed=1)),
        (0, None),
    ),
]

SPEC = OpSpec(
    name="conv2d",
    op=conv2d,
    reference=reference.conv2d,
    cases=CASES,
    differentiable=("input", "weight", "bias"),
    second_order=lambda args: True,
    errors=ERRORS,
    samples=SAMPLES,
    vmaps=VMAPS,
)


class TestConv2d(DifferentiableOpTests):
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
            actual = conv2d(**args)
        assert_same(actual, conv2d(**cast), small_case.name)


# --------------------------------------------------------------------------------------------------
# Against torch


def widest(dtype: torch.dtype) -> torch.dtype:
    """torch's own half convolutions round in between; its float32 on the same numbers is truth."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def compare_with_torch(seed: int) -> None:
    """One random geometry, dtype and layout: forward and all gradients equal torch's."""
    g = torch.Generator().manual_seed(seed)
    geometry = random_geometry(g)
    dtype = DTYPES[int(torch.randint(0, 4, (), generator=g))]
    layouts = ["contiguous", "channels_last", "sliced", "unaligned"]
    layout, grad_layout = (layouts[int(i)] for i in torch.randint(0, 4, (2,), generator=g))
    shapes = [geometry.input, geometry.weight]
    if geometry.bias:
        shapes.append(geometry.weight[:1])
    values = [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]
    ours = [lay_out(v, layout).detach().requires_grad_() for v in values]
    theirs = [v.to(torch.float64).requires_grad_() for v in values]
    out = conv2d(*ours, **geometry.arguments)
    expected = F.conv2d(*theirs, **geometry.arguments)
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


@pytest.mark.parametrize("name", ["relu", "silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_activations_over_their_range(name: str, dtype: torch.dtype) -> None:
    """Tails, the joint at zero and special values, through a kernel that is the identity."""
    special = torch.tensor([0.0, -0.0, float("nan"), 1e-30, -1e-30, 88.0, -88.0, 1e4, -1e4])
    x = torch.cat([torch.linspace(-12, 12, 4001), special]).to(dtype)
    apply = {"gelu_tanh": lambda v: F.gelu(v, approximate="tanh")}.get(name) or getattr(F, name)
    expected = apply(x.double())
    actual = conv2d(
        x.reshape(1, 1, 1, -1), torch.ones(1, 1, 1, 1, dtype=dtype), activation=name
    ).flatten()
    assert torch.equal(actual.isnan(), expected.isnan())
    error = (actual.double() - expected).nan_to_num().abs()
    unit = 6e-7 if dtype == torch.float32 else 2e-15
    assert (error <= unit * (expected.nan_to_num().abs() + x.abs().nan_to_num().clamp(max=1))).all()


def test_format_follows_input_or_weight() -> None:
    """As torch: channels_last if either is."""
    last = torch.channels_last
    x, w = torch.randn(2, 4, 6, 5), torch.randn(3, 4, 3, 3)
    for a in (x, x.contiguous(memory_format=last)):
        for b in (w, w.contiguous(memory_format=last)):
            assert conv2d(a, b).stride() == F.conv2d(a, b).stride()


# --------------------------------------------------------------------------------------------------
# Autograd


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_gradients_through_activations(activation: str) -> None:
    x, w, b = (t.requires_grad_() for t in (normal(1, 2, 4, 4), normal(3, 2, 3, 3), normal(3)))

    def function(*tensors: Tensor) -> Tensor:
        return conv2d(*tensors, activation=activation)

    assert torch.autograd.gradcheck(function, (x, w, b), fast_mode=EMULATED)
    assert torch.autograd.gradgradcheck(function, (x, w, b), fast_mode=EMULATED)


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "gelu_tanh"])
def test_gradient_of_the_fused_operator(activation: str) -> None:
    """The dispatcher operator itself, which recomputes what it did not keep."""
    op = torch.ops.cvkernels.conv2d
    tensors = [t.requires_grad_() for t in (normal(1, 2, 4, 4), normal(3, 2, 3, 3), normal(3))]
    rest = ([1, 1], [0, 0, 0, 0], [1, 1], 1)
    out = op(*tensors, *rest, activation, False)
    upstream = normal(*out.shape, seed=5)
    fused = torch.autograd.grad(out, tensors, upstream)
    plain = torch.autograd.grad(conv2d(*tensors, activation=activation), tensors, upstream)
    for a, e in zip(fused, plain, strict=True):
        assert_close(a, e, torch.float64)


def test_only_wanted_gradients_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    module = importlib.import_module("cvkernels.conv2d")
    called: list[str] = []
    for name in ("_op_input", "_op_weight"):
        op = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *args, op=op, name=name: (called.append(name), op(*args))[1]
        )
    x, w = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3)
    conv2d(x.requires_grad_(), w).sum().backward()
    assert called == ["_op_input"] and w.grad is None
    called.clear()
    conv2d(x.detach(), w.requires_grad_()).sum().backward()
    assert called == ["_op_weight"]


def test_weights_are_never_stale() -> None:
    """In-place changes of any kind are seen by the next call."""
    x, w = torch.randn(1, 3, 6, 6), torch.randn(4, 3, 3, 3)
    for layout in (torch.contiguous_format, torch.channels_last):
        x, w = x.contiguous(memory_format=layout), w.contiguous(memory_format=layout)
        before = conv2d(x, w)
        w.mul_(2)
        assert_same(conv2d(x, w), before * 2)
        w.data.mul_(2)  # not counted by the version counter
        assert_same(conv2d(x, w), before * 4)
        w.detach().numpy()[...] *= 0.5
        assert_same(conv2d(x, w), before * 2)


# --------------------------------------------------------------------------------------------------
# Arguments and modules


def test_forms_of_arguments() -> None:
    x, w = torch.randn(2, 3, 8, 9), torch.randn(4, 3, 3, 3)
    base = conv2d(x, w, None, (2, 2), (1, 1), (1, 1))
    for stride in (2, [2, 2], (2,), torch.Size([2, 2])):
        assert_same(conv2d(x, w, stride=stride, padding=[1]), base)
    assert_same(conv2d(x[0], w, stride=2, padding=1), base[0])
    assert conv2d(x[0], w[:, :, :1, :1]).is_contiguous()


def test_module_is_torchs() -> None:
    torch.manual_seed(0)
    theirs = nn.Conv2d(4, 6, (3, 2), 2, (1, 0), 2, 2)
    ours = Conv2d(4, 6, (3, 2), 2, (1, 0), 2, 2)
    ours.load_state_dict(theirs.state_dict())
    assert isinstance(ours, nn.Conv2d) and repr(ours) == repr(theirs)
    x = torch.randn(2, 4, 9, 8)
    assert_close(ours(x), theirs(x), torch.float32)
    again = copy.deepcopy(ours)
    assert_same(again(x), ours(x))
    relu = Conv2d(4, 6, 3, activation="relu")
    assert "activation='relu'" in repr(relu) and bool((relu(x) >= 0).all())
    with pytest.raises(ValueError, match=r"^conv2d: expected activation"):
        Conv2d(4, 6, 3, activation="tanh")


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, (2, 1), "same", "valid"], ids=str)
def test_module_padding(mode: str, padding: Any) -> None:
    torch.manual_seed(0)
    theirs = nn.Conv2d(3, 4, 3, padding=padding, padding_mode=mode)
    ours = Conv2d(3, 4, 3, padding=padding, padding_mode=mode)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 7, 6)
    assert_close(ours(x), theirs(x), torch.float32)


def test_separable_module() -> None:
    torch.manual_seed(0)
    block = SeparableConv2d(
        6, 9, 3, 2, 1, bias=False, depthwise_activation="relu", activation="silu"
    )
    x = torch.randn(2, 6, 9, 8)
    inner = F.relu(F.conv2d(x, block.depthwise.weight, None, 2, 1, 1, 6))
    expected = F.silu(F.conv2d(inner, block.pointwise.weight))
    assert_close(block(x), expected, torch.float32)
    with torch.no_grad():
        assert_close(block(x), expected, torch.float32)


# ---- what a review found


@pytest.mark.parametrize("stride", [2**31 - 1, 2**31 - 2, 2**30])
def test_strides_beyond_every_map(stride: int) -> None:
    x, w = normal(1, 3, 4, 5).requires_grad_(), normal(2, 3, 3, 2, seed=1).requires_grad_()
    ours = conv2d(x, w, stride=stride)
    peer = torch.nn.functional.conv2d(x, w, stride=stride)
    assert_close(ours, peer, torch.float64)
    for a, e in zip(
        torch.autograd.grad(ours.sum(), (x, w)),
        torch.autograd.grad(peer.sum(), (x, w)),
        strict=True,
    ):
        assert_close(a, e, torch.float64)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_second_derivative_of_the_fused_operator(activation: str) -> None:
    """Under vmap, where no tensor says that it wants a gradient, and of the operator itself."""
    x, w = normal(2, 1, 2, 3, 3).requires_grad_(), normal(3, 2, 2, 2, seed=1)
    mapped = torch.vmap(lambda a: conv2d(a, w, activation=activation))(x)
    plain = torch.stack([conv2d(a, w, activation=activation) for a in x])
    seconds = []
    for y in (mapped, plain):
        (first,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), x)[0])
    assert_close(*seconds, torch.float64)
    op = torch.ops.cvkernels.conv2d
    rest = ([1, 1], [0, 0, 0, 0], [1, 1], 1, activation, False)
    inputs = (normal(1, 2, 3, 3).requires_grad_(), w.detach().requires_grad_())
    assert torch.autograd.gradgradcheck(
        lambda a, b: op(a, b, None, *rest), inputs, fast_mode=EMULATED
    )


def test_gradient_of_relu_at_nan() -> None:
    x = torch.full((1, 1, 1, 1), torch.nan, requires_grad=True)
    w = torch.ones(1, 1, 1, 1)
    (grad,) = torch.autograd.grad(conv2d(x, w, activation="relu").sum(), x)
    (peer,) = torch.autograd.grad(torch.nn.functional.conv2d(x, w).relu().sum(), x)
    assert_same(grad, peer)


# ---- TF32


def test_tf32_follows_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from cvkernels import _conv

    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    on_cuda: Any = SimpleNamespace(is_cuda=True, dtype=torch.float32)
    before = conv.fp32_precision
    try:
        for precision in ("tf32", "ieee"):
            conv.fp32_precision = precision
            wanted = precision == "tf32"
            assert _conv.tf32(on_cuda) == wanted
            assert not _conv.tf32(SimpleNamespace(is_cuda=True, dtype=torch.float64))  # type: ignore[arg-type]
            assert not _conv.tf32(torch.zeros(1))
            torch._dynamo.reset()
            compiled = torch.compile(
                lambda x: x + float(_conv._tf32_switch()), fullgraph=True, backend="eager"
            )
            assert compiled(torch.zeros(1)).item() == wanted
    finally:
        conv.fp32_precision = before


def test_tf32_rounds_factors_only() -> None:
    """With the switch a product of float32 is that of factors rounded to 11 bits, and no worse."""
    op = torch.ops.cvkernels.conv2d
    rest = ([1, 1], [1, 1, 1, 1], [1, 1], 1, "none")
    for channels in (16, 5):  # copied by 16 bytes and one by one
        x, w = normal(2, channels, 6, 7).float(), normal(24, channels, 3, 3, seed=1).float()
        exact = torch.nn.functional.conv2d(x.double(), w.double(), padding=1)
        scale = torch.nn.functional.conv2d(x.double().abs(), w.double().abs(), padding=1)

        def error(tf32: bool, x: Tensor = x, w: Tensor = w) -> float:
            return ((op(x, w, None, *rest, tf32).double() - exact).abs() / scale).max().item()  # noqa: B023

        assert error(False) < 1e-6
        if EMULATED:
            assert 1e-5 < error(True) < 2.0**-10
        else:
            assert error(True) == error(False)  # the CPU has no such format
