"""Unmodified models, with our convolutions in place of torch's."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harness import EMULATED, assert_same
from torch import Tensor, nn

import cvkernels.compat.torch as cvt
from cvkernels.conv2d import conv2d
from cvkernels.conv_transpose2d import conv_transpose2d

# Whether the model trains, its dtype, and how far results may be from those of the unpatched model,
# relative to the largest element. Gradients in float32 are noise in places: the batch norms of an
# untrained network amplify whatever differs in the order of sums.
MODES = [(False, torch.float32, 1e-4), (False, torch.float64, 1e-10), (True, torch.float64, 1e-10)]


def model_named(name: str, dtype: torch.dtype) -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    return getattr(models, name)(weights=None, num_classes=10).to(dtype)  # type: ignore[no-any-return]


def results(model: nn.Module, images: Tensor, training: bool) -> dict[str, Tensor]:
    """The output and, in training, the gradients of the images and of every parameter."""
    model.train(training)
    torch.manual_seed(1)  # of dropout
    images = images.clone().requires_grad_()
    out = model(images)
    if not training:
        return {"output": out.detach()}
    leaves = {"images": images, **dict(model.named_parameters())}
    loss = (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return {"output": out.detach(), **dict(zip(leaves, grads, strict=True))}


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("training", "dtype", "tolerance"), MODES, ids=str)
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
@pytest.mark.skipif(EMULATED, reason="a network takes minutes")
def test_network(
    name: str, training: bool, dtype: torch.dtype, tolerance: float, channels_last: bool
) -> None:
    model = model_named(name, dtype)
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(3, 3, 96, 80, generator=generator).to(dtype)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.contiguous(memory_format=torch.channels_last)
    expected = results(model, images, training)
    with cvt.patched() as report:
        actual = results(model, images, training)
    count = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    assert report.counts == {"conv2d": count} and not report.left
    for key, value in expected.items():
        error = float((actual[key] - value).abs().max())
        assert error <= tolerance * float(value.abs().max()) + 1e-15, key


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.ConvTranspose2d(8, 3, 2, 2),
    )


IMAGE = torch.linspace(-1, 1, 3 * 12 * 11).reshape(1, 3, 12, 11)
ALL = {"conv2d": 2, "conv_transpose2d": 1}


def test_calls_are_ours_and_nothing_stays() -> None:
    """Bit for bit ours inside; torch itself afterwards."""
    x, w = torch.randn(2, 4, 9, 8), torch.randn(6, 4, 3, 3)
    v = torch.randn(4, 6, 3, 3)
    before = F.conv2d(x, w)
    with cvt.patched() as report:
        assert_same(F.conv2d(x, w, stride=2), conv2d(x, w, stride=2))
        assert_same(torch.conv2d(x, w, padding="same"), conv2d(x, w, padding="same"))
        assert_same(F.conv2d(input=x[0], weight=w), conv2d(x[0], w))
        out = F.conv_transpose2d(x, v, None, 2, 1, 1, 1, 2)
        assert_same(out, conv_transpose2d(x, v, None, 2, 1, 1, 1, 2))
    assert report.counts == {"conv2d": 3, "conv_transpose2d": 1} and not report.left
    assert_same(F.conv2d(x, w), before)
    assert report.counts["conv2d"] == 3


def test_report() -> None:
    model = layers()
    with cvt.patched() as report:
        assert str(report) == "cvkernels.compat.torch\n  no convolution was called"
        model(IMAGE)
        with cvt.patched() as inner:
            model[0](IMAGE)
        F.conv2d(IMAGE.to(torch.complex64), torch.ones(1, 3, 1, 1, dtype=torch.complex64))
    assert inner.counts == {"conv2d": 1}
    assert str(report).splitlines() == [
        "cvkernels.compat.torch",
        "  conv2d: 2 by cvkernels",
        "  conv_transpose2d: 1 by cvkernels",
        "  conv2d: 1 by torch, dtype complex64",
    ]


class Subclass(Tensor):
    pass


def meta(x: Tensor) -> Any:
    return F.conv2d(x.to("meta"), torch.ones(2, 3, 3, 3, device="meta"))


def subclass(x: Tensor) -> Any:
    return F.conv2d(x.as_subclass(Subclass), torch.ones(2, 3, 3, 3))


def traced(x: Tensor) -> Any:
    return torch.jit.trace(nn.Conv2d(3, 2, 3), x, check_trace=False)


def transformed(x: Tensor) -> None:
    torch.func.grad(lambda w: F.conv2d(x, w).sum())(torch.ones(2, 3, 3, 3))


def forward_mode(x: Tensor) -> Any:
    return torch.func.jvp(lambda t: F.conv2d(t, torch.ones(2, 3, 3, 3)), (x,), (x,))


@pytest.mark.filterwarnings("ignore")  # of torch.jit, deprecated
@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (meta, "device meta"),
        (subclass, "a Subclass"),
        (traced, "torch.jit tracing"),
        (forward_mode, "forward-mode differentiation"),
        (transformed, "torch.func.grad"),
    ],
)
def test_left_to_torch(call: Callable[[Tensor], Any], reason: str) -> None:
    with cvt.patched() as report:
        call(IMAGE)
    assert set(report.left) == {("conv2d", reason)} and not report.counts


def test_errors_are_torchs() -> None:
    wrong = torch.ones(2, 4, 3, 3)
    with pytest.raises(RuntimeError) as expected:
        F.conv2d(IMAGE, wrong)
    with cvt.patched(), pytest.raises(RuntimeError) as actual:
        F.conv2d(IMAGE, wrong)
    assert str(actual.value) == str(expected.value)


def test_backward_after_the_block() -> None:
    model = layers()
    with cvt.patched():
        out = model(IMAGE)
        inside = torch.autograd.grad(out.sum(), list(model.parameters()), retain_graph=True)
    after = torch.autograd.grad(out.sum(), list(model.parameters()))
    for a, b in zip(inside, after, strict=True):
        assert_same(a, b)


def test_transforms_and_autocast() -> None:
    model = layers()
    with cvt.patched() as report, torch.no_grad():
        expected = model(IMAGE)
        mapped = torch.func.vmap(model)(torch.stack([IMAGE, -IMAGE]))
        with torch.autocast("cpu", torch.bfloat16):
            assert model(IMAGE).dtype == torch.bfloat16
    assert_same(mapped[0], expected)
    assert report.counts == {name: 3 * count for name, count in ALL.items()}


def test_compile() -> None:
    """A graph holds our operators exactly where it was compiled inside a block."""
    graphs: list[str] = []

    def backend(module: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(str(module.graph))
        return module.forward

    torch.compiler.reset()
    model = layers()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for inside in (False, True, False):
        if inside:
            with cvt.patched() as report:
                assert_same(compiled(IMAGE), model(IMAGE))
            assert report.counts == ALL  # of the model alone
        else:
            assert_same(compiled(IMAGE), model(IMAGE))
    assert ["cvkernels" in graph for graph in graphs] == [False, True]
    torch.compiler.reset()


def test_docstrings() -> None:
    results = doctest.testmod(cvt)
    assert results.attempted and not results.failed
    for name in cvt.__all__:
        assert inspect.getdoc(getattr(cvt, name))
