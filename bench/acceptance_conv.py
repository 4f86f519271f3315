"""The promises about convolution on the CPU: lines 1 to 3 of its plan, as rows 51 to 53.

torch's side (oneDNN, MKL) is the better of its two layouts; each of ours has to hold by itself.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from bench.acceptance import THREADS, Row, _time
from bench.harness import Context, check, first_line
from bench.ops.conv2d import UNFOLD, Calls, by_unfold, trial
from bench.report import seconds
from bench.timing import Candidate, Ratio, Samples, Stats
from bench.workloads import ConvShape, conv, model_convs

LAYOUTS = {"nchw": False, "channels_last": True}
DENSE = conv(256, 256, 3, 50, 84)
ODD = (conv(3, 17, 3, 112), conv(33, 65, 3, 56))
SMALL = (
    conv(256, 256, 3, 14),
    conv(512, 512, 3, 7),
    conv(1024, 256, 1, 14),
    conv(2048, 512, 1, 7),
    conv(512, 2048, 1, 7),
)
MODELS = ("resnet50", "mobilenet_v3_large", "mobilenet_v3_small")


def rows(context: Context, *, quick: bool = False) -> Iterator[Row]:
    """Every row, in the plan's order."""
    budget = 0.5 if quick else 3.0
    yield from _layer(context, DENSE, 0.8, budget)
    for batch in (1,) if quick else (1, 8):
        yield from _models(context, batch, 0.1 if quick else 0.3)
    for layer in (*ODD, *SMALL):
        yield from _layer(context, layer, 1.2, budget)
    for layer in (DENSE, *ODD, *SMALL):
        yield from _over_unfold(context, layer, budget)
    for layout in LAYOUTS:
        yield _memory(layout)
    yield from _layer(context, DENSE, 0.7, budget, "bfloat16")
    yield _product(context, budget)


def _samples(
    context: Context, layer: ConvShape, budget: float, dtype: str = "float32"
) -> dict[str, Samples]:
    """Ours and torch's in both layouts, interleaved, after their results were checked."""
    candidates = {}
    for name, last in LAYOUTS.items():
        one = trial(context, layer, "fwd", dtype, channels_last=last)
        check(one)
        candidates[name] = Candidate(name, one.ours)
        candidates["torch " + name] = Candidate("torch " + name, one.peers["torch"])
    return _time(candidates, budget)


def _ratio(found: dict[str, Samples], layout: str) -> tuple[Ratio, str]:
    """torch's better layout over ours, and its name."""
    peer = min(("torch " + name for name in LAYOUTS), key=lambda name: found[name].stats.median)
    return Ratio.of(found[layout], found[peer]), peer


def _layer(
    context: Context, layer: ConvShape, least: float, budget: float, dtype: str = "float32"
) -> Iterator[Row]:
    line, name = (51, layer.name) if dtype == "float32" else (52, f"{layer.name} {dtype}")
    try:
        found = _samples(context, layer, budget, dtype)
    except Exception as error:
        yield _failed(line, name, f">= {least:g}x", error)
        return
    for layout in LAYOUTS:
        ratio, peer = _ratio(found, layout)
        times = {name: found[name].stats for name in (layout, peer)}
        yield _row(line, f"conv2d {name} {layout}", least, ratio.median, times, ratio)


def _models(context: Context, batch: int, budget: float) -> Iterator[Row]:
    """The geometric mean over the distinct layers of the networks."""
    what = f"conv2d of ResNet-50, MobileNetV3 N={batch}"
    try:
        layers = dict.fromkeys(shape for name in MODELS for shape in model_convs(name, batch))
        logs: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
        for layer in layers:
            found = _samples(context, layer, budget)
            for layout, values in logs.items():
                values.append(math.log(_ratio(found, layout)[0].median))
    except Exception as error:
        yield _failed(51, what, ">= 0.75x", error)
        return
    for layout, values in logs.items():
        mean = math.exp(sum(values) / len(values))
        detail = f"{len(values)} layers, {math.exp(min(values)):.2f}..{math.exp(max(values)):.2f}"
        yield Row(51, f"{what} {layout}", ">= 0.75x", mean, mean >= 0.75, detail, {})


def _over_unfold(context: Context, layer: ConvShape, budget: float) -> Iterator[Row]:
    """Against F.unfold and a matrix product on contiguous maps."""
    for layout, last in LAYOUTS.items():
        what = f"unfold / conv2d {layer.name} {layout}"
        try:
            one = trial(context, layer, "fwd", "float32", channels_last=last)
            plain = Calls(layer, "fwd", torch.float32, context.device, False).of(by_unfold)
            check(one)
            found = _time(
                {
                    layout: Candidate(layout, one.ours),
                    UNFOLD: Candidate(UNFOLD, plain),
                },
                budget,
            )
        except Exception as error:
            yield _failed(51, what, ">= 2x", error)
            continue
        ratio = Ratio.of(found[layout], found[UNFOLD])
        times = {name: samples.stats for name, samples in found.items()}
        yield _row(51, what, 2.0, ratio.median, times, ratio)


_MEMORY_PROBE = """
import re, sys, torch
from cvkernels.conv2d import conv2d
torch.set_num_threads({threads})
layout = torch.channels_last if "{layout}" == "channels_last" else torch.contiguous_format
x = torch.randn(1, 256, 50, 84).contiguous(memory_format=layout)
w = torch.randn(256, 256, 3, 3).contiguous(memory_format=layout)
torch.ones(1 << 22).exp_()  # the threads are there
conv2d(x[:, :8, :9, :9].contiguous(memory_format=layout), w[:8, :8].contiguous(), None, 1, 1)
def kibibytes(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = kibibytes("VmRSS")
out = conv2d(x, w, None, 1, 1)
print((kibibytes("VmHWM") - before) * 1024 - out.numel() * 4)
"""


def _memory(layout: str) -> Row:
    """Peak resident memory of a call above its input, weights and output."""
    what, target = f"conv2d MiB a thread, 256->256 3x3 {layout}", "< 4"
    try:
        probe = _MEMORY_PROBE.format(threads=THREADS, layout=layout)
        done = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True)
        each = int(done.stdout) / THREADS / 2**20
    except Exception as error:
        return _failed(51, what, target, error)
    return Row(51, what, target, each, each < 4, "peak resident memory, Linux", {})


def _product(context: Context, budget: float) -> Row:
    """The engine as a matrix product: a 1 x 1 convolution of 1024 pixels, 1024 -> 1024."""
    what, target = "product 1024^3, torch.matmul / ours", ">= 0.85x"
    try:
        g = torch.Generator().manual_seed(1)
        a, b = torch.randn(1024, 1024, generator=g), torch.randn(1024, 1024, generator=g)
        pixels = a.t().reshape(1, 1024, 32, 32).contiguous(memory_format=torch.channels_last)
        weight = b.t().contiguous()[:, :, None, None]
        function = context.libraries.our("conv2d", "conv2d")
        torch.testing.assert_close(
            function(pixels, weight).permute(0, 2, 3, 1).reshape(1024, 1024),
            a @ b,
            rtol=1e-4,
            atol=1e-3,
        )
        found = _time(
            {
                "ours": Candidate("ours", lambda: function(pixels, weight)),
                "matmul": Candidate("matmul", lambda: torch.matmul(a, b)),
                "torch conv2d": Candidate("torch conv2d", lambda: F.conv2d(pixels, weight)),
            },
            budget,
        )
    except Exception as error:
        return _failed(53, what, target, error)
    ratio = Ratio.of(found["ours"], found["matmul"])
    times = {name: samples.stats for name, samples in found.items()}
    return _row(53, what, 0.85, ratio.median, times, ratio)


def _row(
    line: int, what: str, least: float, measured: float, times: dict[str, Stats], ratio: Ratio
) -> Row:
    shown: Sequence[str] = [f"{name} {seconds(stats.median)}" for name, stats in times.items()]
    detail = f"({ratio.p10:.3g}..{ratio.p90:.3g}) " + ", ".join(shown)
    return Row(line, what, f">= {least:g}x", measured, measured >= least, detail, times)


def _failed(line: int, what: str, target: str, error: Exception) -> Row:
    return Row(line, what, target, None, False, first_line(error), {})
