"""The machine under the figures: what it is, and the fastest it can copy and multiply.

A figure without its machine is worth nothing, so every report carries `describe()`; and a time
without a bound says nothing about what is left to gain, so every report carries `Ceilings`,
measured in the same process with the same number of threads.
"""

from __future__ import annotations

import datetime
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

_COPY_BYTES = tuple(1 << shift for shift in (18, 20, 22, 24, 26, 28))  # 256 KiB .. 256 MiB moved


@dataclass(frozen=True)
class Cost:
    """What an operation must do, however it is written.

    Attributes:
        bytes: Memory it must read and write at least once.
        flops: Arithmetic it must do, a fused multiply-add counted as two.
    """

    bytes: float
    flops: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.bytes + other.bytes, self.flops + other.flops)


@dataclass(frozen=True)
class Ceilings:
    """Measured limits of the machine.

    Attributes:
        copy: (bytes moved, bytes per second) of a plain copy, by working set, smallest first. Small
            sets live in caches, so a bound from main memory alone would be too easy to beat.
        flops: fp32 rate of the fastest dense product found, in FLOP/s; stands for the FMA rate.
        flops64: The same in fp64.
        flops_tf32, flops16: Of the tensor cores in TF32 and bf16; 0 where there are none.
    """

    copy: tuple[tuple[float, float], ...]
    flops: float
    flops64: float
    flops_tf32: float = 0.0
    flops16: float = 0.0

    def bandwidth(self, working_set: float) -> float:
        """Copy bandwidth for a working set, interpolated in the logarithm of its size."""
        if working_set <= self.copy[0][0]:
            return self.copy[0][1]
        for (small, slow), (large, fast) in zip(self.copy, self.copy[1:], strict=False):
            if working_set <= large:
                weight = math.log(working_set / small) / math.log(large / small)
                return slow + weight * (fast - slow)
        return self.copy[-1][1]

    def bound_s(self, cost: Cost, dtype: str) -> float:
        """Shortest time the machine could need: the larger of memory and arithmetic."""
        rates = {
            "float64": self.flops64,
            "tf32": self.flops_tf32,
            "float16": self.flops16,
            "bfloat16": self.flops16,
        }
        rate = rates.get(dtype) or self.flops
        return max(cost.bytes / self.bandwidth(cost.bytes), cost.flops / rate)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Ceilings:
        pairs = tuple((float(size), float(rate)) for size, rate in values["copy"])
        rates = ("flops", "flops64", "flops_tf32", "flops16")
        return cls(pairs, *(float(values.get(rate, 0.0)) for rate in rates))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_ceilings(device: torch.device, *, seconds: float = 2.0) -> Ceilings:
    """Measures `Ceilings` on `device` with the current number of threads."""
    sizes = _COPY_BYTES if device.type == "cpu" else (*_COPY_BYTES, 1 << 30, 1 << 32)
    share = seconds / (len(sizes) + 4)
    copy = []
    for size in sizes:
        source = torch.ones(size // 8, device=device)
        target = torch.empty_like(source)
        copy.append((float(size), size / _best(partial(target.copy_, source), device, share)))
    # A small set can always be moved as fast as part of a large one.
    copy = [(size, max(rate for _, rate in copy[i:])) for i, (size, _) in enumerate(copy)]
    on_cpu = device.type == "cpu"
    n = 1536 if on_cpu else 8192
    flops = _product_rate(n, torch.float32, device, share)
    if on_cpu:  # on CUDA a convolution may go to the tensor cores
        flops = max(flops, _conv_rate(share))
    return Ceilings(
        copy=tuple(copy),
        flops=flops,
        flops64=_product_rate(n // 2, torch.float64, device, share),
        flops_tf32=0.0 if on_cpu else _product_rate(n, torch.float32, device, share, tf32=True),
        flops16=0.0 if on_cpu else _product_rate(n, torch.bfloat16, device, share),
    )


def _product_rate(
    n: int, dtype: torch.dtype, device: torch.device, seconds: float, *, tf32: bool = False
) -> float:
    # Random factors: on zeros or ones a GPU draws less power and runs faster than on real data.
    a, b = torch.randn(2, n, n, device=device).to(dtype).unbind()
    out = torch.empty_like(a)
    switches = torch.backends.cuda.matmul
    before, switches.fp32_precision = switches.fp32_precision, "tf32" if tf32 else "ieee"
    try:
        return 2.0 * n**3 / _best(lambda: torch.mm(a, b, out=out), device, seconds)
    finally:
        switches.fp32_precision = before


def _conv_rate(seconds: float) -> float:
    """A 3x3 convolution: on some CPUs the convolution library beats the matrix library."""
    side, channels = 56, 128
    image = torch.ones(1, channels, side, side)
    weight = torch.ones(channels, channels, 3, 3)
    run = partial(torch.nn.functional.conv2d, image, weight)
    best = _best(run, torch.device("cpu"), seconds)
    return 2.0 * channels * channels * 9 * (side - 2) ** 2 / best


def _best(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The fastest of repeated runs: a ceiling is what the machine can do at its best."""
    run()
    _finish(device)
    best, runs = math.inf, 0
    begin = start = time.perf_counter()
    # Short runs need many tries on a busy machine, long ones cannot have them.
    while start - begin < seconds or runs < 3 or (runs < 30 and start - begin < 3 * seconds):
        run()
        _finish(device)
        now = time.perf_counter()
        best, runs, start = min(best, now - start), runs + 1, now
    return best


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe(device: torch.device) -> dict[str, Any]:
    """Everything a reader needs to judge a figure."""
    found: dict[str, Any] = {
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": _torchvision_version(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": device.type,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "revision": git_revision(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "gpu_capability": f"{properties.major}.{properties.minor}",
            "gpu_multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
        }
    return found


def cpu_model() -> str:
    """The processor's own name, or what the platform says where it hides it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    fields = {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    }
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields and "model" in fields:
        name += f" (family {fields['cpu family']} model {fields['model']})"
    return name


def slug(machine: dict[str, Any]) -> str:
    """Folder name for this machine's results, for example `amd-epyc-family-25-model-17-2t`."""
    name = (
        machine["gpu"] if machine["device"] == "cuda" else f"{machine['cpu']} {machine['threads']}t"
    )
    name = re.sub(r"\((?:R|TM)\)|\bCPU\b|@.*?GHz", " ", name)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def git_revision() -> str | None:
    """Commit of the source beside this file, with `+` where the tree differs; None outside git."""
    root = Path(__file__).resolve().parent.parent
    try:
        revision = _git(root, "rev-parse", "--short=12", "HEAD")
        return revision + ("+" if _git(root, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True, timeout=10
    )
    return done.stdout.strip()


def _torchvision_version() -> str | None:
    try:
        import torchvision
    except ImportError:
        return None
    version: str = torchvision.__version__
    return version
