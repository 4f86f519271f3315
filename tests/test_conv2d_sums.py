"""conv2d: sums that many tiles, blocks and parts make, and their order."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conv_family import normal
from harness import DTYPES, assert_close, assert_same, lay_out, on_any_threads
from torch import Tensor

from cvkernels.conv2d import conv2d


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_result_does_not_depend_on_threads_or_batch(layout: str) -> None:
    """Work is cut by the number of threads; sums are not."""
    x, w = lay_out(torch.randn(3, 40, 23, 19), layout), lay_out(torch.randn(70, 40, 3, 3), layout)
    one = on_any_threads(lambda: conv2d(x, w, padding=1))
    assert_same(conv2d(x[1:2], w, padding=1), one[1:2])


@pytest.mark.native
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_weights_and_biases_that_are_not_finite(layout: str, bad: float) -> None:
    """They reach the results of their filter, of several blocks of filters and groups."""
    x, w, bias = normal(1, 96, 14, 15), normal(260, 48, 3, 3, seed=1), normal(260, seed=2)
    w[5, 3, 1, 1] = w[131, 7, 0, 2] = bias[200] = bad
    expected = F.conv2d(x, w, bias, groups=2)  # within the map: no weight meets a zero of padding
    out = conv2d(lay_out(x.float(), layout), lay_out(w.float(), layout), bias.float(), groups=2)
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.isinf(), expected.isinf())
    finite = expected.isfinite()
    assert 250 < finite.all(dim=(0, 2, 3)).sum() < 260
    assert_close(out[finite], expected[finite], torch.float32)


@pytest.mark.native
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_the_address(layout: str, dtype: torch.dtype) -> None:
    x, w = normal(2, 64, 9, 8).to(dtype), normal(40, 64, 3, 3, seed=1).to(dtype)
    x = lay_out(x, layout)
    shifted = torch.empty(x.numel() + 1, dtype=dtype)[1:].as_strided(x.shape, x.stride(), 1)
    shifted.copy_(x)
    assert shifted.data_ptr() % 4 == dtype.itemsize % 4
    assert_same(conv2d(shifted, w, padding=1), conv2d(x, w, padding=1))


@pytest.mark.native
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_winograds_form_does_not_depend_on_threads_or_batch(layout: str) -> None:
    x, w = lay_out(torch.randn(3, 70, 23, 19), layout), lay_out(torch.randn(96, 70, 3, 3), layout)
    x[:, 4, 5:7, 3] = float("inf")
    one = on_any_threads(lambda: conv2d(x, w, padding=1))
    assert_same(conv2d(x[1:2], w, padding=1), one[1:2])
    other = "channels_last" if layout == "contiguous" else "contiguous"
    blind = torch.ones(23, 19, dtype=torch.bool)
    blind[4:8, 2:6] = False  # computed by definition, whose sums have another order in each layout
    assert one.isinf().any() and one[..., blind].isfinite().all()
    assert_same(conv2d(lay_out(x, other), w, padding=1)[..., blind], one[..., blind])


@pytest.mark.native
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shape", "filters", "kernel", "stride"),
    [
        ((5, 300, 7, 5), 40, 1, 1),  # few pixels for the weights
        ((3, 140, 5, 6), 70, 3, 1),
        ((3, 600, 7, 7), 33, 3, 2),
        ((3, 3, 40, 37), 17, 3, 1),  # few channels
        ((3, 3, 64, 530), 20, 7, 2),
    ],
)
def test_small_and_thin_maps(
    layout: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    filters: int,
    kernel: int,
    stride: int,
) -> None:
    """Their own ways on the CPU: torch's results, and the same bits for any threads and batch."""
    x = normal(*shape)
    w, bias = normal(filters, shape[1], kernel, kernel, seed=1), normal(filters, seed=2)
    pad = kernel // 2
    expected = F.silu(F.conv2d(x, w, bias, stride, pad))
    x, w, bias = lay_out(x.to(dtype), layout), lay_out(w.to(dtype), layout), bias.to(dtype)

    def run(maps: Tensor) -> Tensor:
        return conv2d(maps, w, bias, stride, pad, activation="silu")

    one = on_any_threads(lambda: run(x))
    assert_close(one, expected, dtype)
    assert_same(run(x[1:2]), one[1:2])


@pytest.mark.native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("shape", "filters"),
    [
        ((3, 250, 1, 1), 340),  # eight pixels or fewer
        ((1, 33, 2, 3), 66),  # the same in one layout
        ((2, 40, 1, 1), 0),  # none to add up
        ((2, 70, 14, 14), 350),  # many pixels, several blocks of the depth
    ],
)
def test_gradients_of_1x1(
    layout: str, dtype: torch.dtype, shape: tuple[int, ...], filters: int
) -> None:
    """Their own ways on the CPU: torch's gradients, and the same bits for any threads."""
    x, w = normal(*shape).to(dtype), normal(filters, shape[1], 1, 1, seed=1).to(dtype)
    grad = normal(shape[0], filters, *shape[2:], seed=2).to(dtype)
    expected = (
        torch.einsum("nohw,oc->nchw", grad.double(), w[:, :, 0, 0].double()),
        torch.einsum("nohw,nchw->oc", grad.double(), x.double())[:, :, None, None],
    )
    x, w = (lay_out(t, layout).requires_grad_() for t in (x, w))
    grad = lay_out(grad, layout)

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(conv2d(x, w), (x, w), grad)

    for found, wanted in zip(on_any_threads(run), expected, strict=True):
        assert_close(found, wanted, dtype)


@pytest.mark.native
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_sign_of_zero_does_not_depend_on_the_batch(layout: str) -> None:
    x = lay_out(torch.full((8, 20, 3, 3), -1e-30), layout)
    w = lay_out(torch.full((5, 20, 1, 1), 1e-30), layout)
    assert torch.equal(conv2d(x, w)[3:4].signbit(), conv2d(x[3:4], w).signbit())


@pytest.mark.native
def test_product_of_strides_beyond_32_bits() -> None:
    """9 * 954437177 is 1 modulo 2^32; the kernel sees the first pixel of each axis only."""
    x = torch.ones(1, 16, 1, 4).contiguous(memory_format=torch.channels_last)
    w = torch.ones(3, 16, 1, 1)
    op = torch.ops.cvkernels.conv2d
    out = op(x, w, None, [9, 954437177], [0, 27, 0, 0], [1, 1], 1, "none", False)
    expected = torch.zeros(1, 3, 4, 1)
    expected[:, :, 0] = 16
    assert torch.equal(out, expected)


@pytest.mark.native
@pytest.mark.parametrize("of", ["result", "gradient"])
def test_winograds_form_can_be_left_out(of: str) -> None:
    """As exact as the definition, to a few roundings, and switched by the environment."""
    program = (
        "import torch; from cvkernels.conv import conv2d\n"
        "g = torch.Generator().manual_seed(0)\n"
        "x, up = torch.randn(2, 1, 64, 30, 31, generator=g)\n"
        "w = torch.randn(64, 64, 3, 3, generator=g)\n"
        "def value(of, conv, x, w, up):\n"
        "    out = conv(x, w.requires_grad_(), padding=1)\n"
        "    return out.detach() if of == 'result' else torch.autograd.grad(out, w, up)[0]\n"
        "wide = [t.double() for t in (x, w, up)]\n"
        f"exact = value({of!r}, torch.nn.functional.conv2d, *wide)\n"
        f"print(float((value({of!r}, conv2d, x, w, up).double() - exact).norm() / exact.norm()))"
    )
    error = {
        switch: float(
            subprocess.run(
                [sys.executable, "-c", program],
                env={**os.environ, "CVKERNELS_WINOGRAD": switch},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for switch in ("0", "1")
    }
    assert error["0"] != error["1"]
    assert max(error.values()) < 1e-6


def weights_gradient(
    x: Tensor, upstream: Tensor, layout: str, groups: int = 1, padding: tuple[int, int] = (0, 0)
) -> Tensor:
    """Of 3 x 3 weights, everything in one layout; what the weights are does not matter."""
    w = torch.zeros(upstream.shape[1], x.shape[1] // groups, 3, 3, dtype=x.dtype)
    x, w, upstream = (lay_out(t, layout) for t in (x, w, upstream))
    out = conv2d(x, w.requires_grad_(), None, 1, padding, 1, groups)
    return torch.autograd.grad(out, w, upstream)[0]


def torchs_gradient(
    x: Tensor, upstream: Tensor, groups: int = 1, padding: tuple[int, int] = (0, 0)
) -> Tensor:
    w = torch.zeros(
        upstream.shape[1], x.shape[1] // groups, 3, 3, dtype=torch.float64, requires_grad=True
    )
    out = F.conv2d(x.double(), w, None, 1, padding, 1, groups)
    return torch.autograd.grad(out, w, upstream.double())[0]


@pytest.mark.native
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "filters", "groups", "padding"),
    [
        ((1, 16, 14, 14), 16, 1, (1, 1)),
        ((3, 70, 23, 19), 96, 1, (1, 1)),  # odd sides, blocks of channels and of filters
        ((2, 130, 9, 31), 33, 1, (0, 2)),
        ((1, 64, 20, 21), 72, 2, (2, 0)),
        ((2, 48, 14, 15), 60, 3, (1, 1)),  # small groups: from windows over planes
        ((1, 17, 61, 140), 18, 1, (1, 1)),  # several parts, a row in two pieces
        ((40, 32, 2, 2), 32, 1, (1, 1)),
        ((5, 40, 3, 5), 50, 1, (5, 4)),  # tiles outside the map
    ],
)
def test_winograds_gradient_of_weights(
    layout: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    filters: int,
    groups: int,
    padding: tuple[int, int],
) -> None:
    x = torch.randn(shape).to(dtype)
    out = (shape[0], filters, shape[2] + 2 * padding[0] - 2, shape[3] + 2 * padding[1] - 2)
    upstream = torch.randn(out).to(dtype)
    one = on_any_threads(lambda: weights_gradient(x, upstream, layout, groups, padding))
    wanted = torchs_gradient(x, upstream, groups, padding)
    error = (one.double() - wanted).norm() / wanted.norm()
    assert error < {torch.float32: 1e-6, torch.float16: 4e-4, torch.bfloat16: 3e-3}[dtype], error


@pytest.mark.native
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_winograds_gradient_is_not_finite_where_the_definitions_is_not(layout: str) -> None:
    x = torch.randn(2, 80, 21, 18)
    upstream = torch.randn(2, 72, 21, 18)
    x[0, 3, 0, 0] = float("inf")
    x[1, 70, 20, 17] = float("nan")
    upstream[1, 5, 8, 8] = float("-inf")
    upstream[0, 66, 0, 3] = float("nan")
    out = weights_gradient(x, upstream, layout, padding=(1, 1))
    wanted = torchs_gradient(x, upstream, padding=(1, 1))
    finite = wanted.isfinite()
    assert 0.9 < finite.double().mean() < 1
    assert finite[0, 3].sum() == 5  # the corner pixel is seen through four taps
    assert torch.equal(out.isinf(), wanted.isinf()) and torch.equal(out.isnan(), wanted.isnan())
    assert torch.equal(out[wanted.isinf()].double(), wanted[wanted.isinf()])
    error = (out[finite].double() - wanted[finite]).norm() / wanted[finite].norm()
    assert error < 1e-6, error


@pytest.mark.native
def test_partial_sums_of_the_weight_gradient_are_fixed() -> None:
    """Few weights and many pixels: the pixels are cut into parts, always the same."""
    x, upstream = torch.randn(2, 3, 90, 91), torch.randn(2, 4, 88, 89)
    one = on_any_threads(lambda: weights_gradient(x, upstream, "contiguous"), counts=(2, 3, 5))
    wanted = torchs_gradient(x, upstream)
    assert_close(one, wanted, torch.float32)


@pytest.mark.native
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("large", [-1e9, 1e30, float("inf"), float("nan")])
def test_large_values_stay_where_they_are(layout: str, large: float) -> None:
    """Winograd's form adds neighbours up; these may only reach the outputs that see them."""
    x, w = normal(2, 48, 19, 22), normal(40, 48, 3, 3, seed=1)
    clean = F.conv2d(x, w, padding=1)
    for y, u in ((0, 0), (7, 8), (7, 13), (12, 21), (18, 21)):
        x[1, 5, y, u] = large
    x[0, :, :, 14:] = 0  # a letterbox: from its second column on outputs are exactly 0
    expected = F.conv2d(x, w, padding=1)
    marks = (x.isnan() | (x.abs() > 1e3)).double()
    blind = (F.conv2d(marks, torch.ones(1, 48, 3, 3).double(), padding=1) == 0).expand_as(expected)
    assert 0.9 < blind.double().mean() < 1
    out = conv2d(lay_out(x.float(), layout), lay_out(w.float(), layout), padding=1).double()
    error = (out - expected)[blind].abs().max() / clean.abs().max()
    assert error < 1e-6, error
    assert torch.equal(out[0, :, :, 15:], torch.zeros(40, 19, 7).double())
    if math.isfinite(large):
        assert_close(out[1], expected[1], torch.float32)
    else:
        assert torch.equal(out.isnan(), expected.isnan())
        assert torch.equal(out.isinf(), expected.isinf())


def test_non_finite_values_stay_where_they_are() -> None:
    """A NaN or an infinity reaches the outputs that see it and no other."""
    x = torch.ones(1, 2, 9, 9)
    x[0, 1, 4, 4] = float("nan")
    x[0, 0, 0, 8] = float("inf")
    for groups, w in ((1, torch.ones(3, 2, 3, 3)), (2, torch.ones(2, 1, 3, 3))):
        for layout in ("contiguous", "channels_last"):
            for stride in (1, 2):
                out = conv2d(lay_out(x, layout), lay_out(w, layout), None, stride, 1, 1, groups)
                expected = F.conv2d(x, w, None, stride, 1, 1, groups)
                assert torch.equal(out.isnan(), expected.isnan())
                assert torch.equal(out.isinf(), expected.isinf())
