"""The promises of the first release about speed, each measured by one command.

    python -m bench.acceptance [--quick] [--json FILE]

Every line compares candidates interleaved in one process with two CPU threads, after their results
were checked. A full run takes some minutes, most of them torchvision's on 100,000 boxes; `--quick`
leaves those out and writes no file unless asked. The status is 0 if every line holds.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import cli, workloads
from bench.harness import SCHEMA, Context, Trial, check, first_line, write_json
from bench.libraries import OURS, TORCHVISION, Libraries
from bench.machine import describe
from bench.ops import (
    matrix_nms,
    multiscale_roi_align,
    nms,
    ps_roi_align,
    roi_align,
    roi_pool,
    soft_nms,
)
from bench.report import seconds
from bench.timing import Candidate, Ratio, Samples, Stats, WallClock, interleave
from cvkernels.demo._detectors import MaskRcnn
from cvkernels.demo._timing import compare_detections, interleaved, operator, run_recorded

THREADS = 2


@dataclass(frozen=True)
class Row:
    """One promise and what became of it.

    Attributes:
        line: Number of the acceptance line in the plan.
        what: What was measured.
        target: The promise, for example `>= 12x`.
        measured: The figure in the target's unit; None where the measurement failed.
        passed: Whether it holds.
        detail: Spread and times, or why the measurement failed.
        times: The samples' statistics by candidate.
    """

    line: int
    what: str
    target: str
    measured: float | None
    passed: bool
    detail: str
    times: dict[str, Stats]

    def __str__(self) -> str:
        measured = "-" if self.measured is None else f"{self.measured:.2f}"
        verdict = "pass" if self.passed else "FAIL"
        start = f"{self.line:<5} {self.what:<47} {self.target:>8} {measured:>9}"
        return f"{start} {verdict:<5} {self.detail}"


def rows(context: Context, *, quick: bool = False) -> Iterator[Row]:
    """Measures every promise, in the plan's order."""
    yield from roi_align_rows(context, budget_s=2 if quick else 10)
    yield from nms_rows(context, quick=quick)
    yield from tiny_rows(context)
    if context.libraries.ours == OURS:
        yield from family_rows(context, quick=quick)
        yield from roi_family_rows(context, budget_s=2 if quick else 10)
        yield from pyramid_rows(context, quick=quick)
        from bench import acceptance_conv  # which imports from here

        yield from acceptance_conv.rows(context, quick=quick)


# --- line 2: RoI Align ---


def roi_align_rows(context: Context, *, budget_s: float) -> Iterator[Row]:
    """Both directions on the C4 workload: against torchvision, by layout, dtype and threads."""
    data = workloads.c4()
    for direction, target in (("fwd", 12.0), ("fwd+bwd", 20.0)):
        what = f"roi_align {direction}"
        build = partial(roi_align.trial, context, data, direction)
        trials = {
            "nchw": partial(build, "float32"),
            "channels_last": partial(build, "float32", channels_last=True),
            "bf16": partial(build, "bfloat16"),
        }
        candidates, failed, _ = _checked(trials)
        if "nchw" in candidates:
            single = Candidate("1 thread", candidates["nchw"].run, threads=1)
            candidates["1 thread"] = single
        found = _time(candidates, budget_s)
        # (fast, slow) by row: the ratio says how many times faster the first is.
        for name, fast, slow, least in (
            (f"{what}, torchvision / ours", "nchw", "torchvision", target),
            (f"{what}, NCHW / channels_last", "channels_last", "nchw", 1.0),
            (f"{what}, fp32 / bf16", "bf16", "nchw", 1.0),
            (f"{what}, 1 thread / {THREADS} threads", "nchw", "1 thread", 1.7),
        ):
            yield _at_least(2, name, found, fast, slow, least, failed)


# --- line 3: NMS ---


def nms_rows(context: Context, *, quick: bool) -> Iterator[Row]:
    """Spread, growing, crowded and classed boxes."""
    budget = 0.5 if quick else 3.0
    for n, target in ((1000, 5.0), (4000, 25.0), (12_000, 60.0), (100_000, 60.0)):
        if quick and n > 12_000:
            continue
        data = workloads.uniform(n)
        yield _against_torchvision(context, data, 3, f"nms spread N={n:,}", target, budget)
    sizes = (1000, 10_000, 100_000) if quick else (10_000, 100_000, 1_000_000)
    if context.libraries.ours == TORCHVISION:  # quadratic: the larger ones would take minutes
        sizes = (300, 1000, 3000)
    yield _growth(context, sizes)
    for n in (10, 30, 100, 1000, 10_000) if quick else (10, 20, 30, 100, 300, 1000, 3000, 10_000):
        data = workloads.crowded(n)
        yield _against_torchvision(context, data, 3, f"nms crowded N={n:,}", 1.0, budget)
    if not quick:
        data = workloads.crowded(100_000)
        yield _against_torchvision(context, data, 3, "nms crowded N=100,000", 1.0, budget)
    batched = (10, 100, 1000, 10_000) if quick else (10, 30, 100, 300, 1000, 4000, 12_000, 100_000)
    for n in batched:
        data = workloads.uniform(n, classes=80)
        what = f"batched_nms 80 classes N={n:,}"
        yield _against_torchvision(context, data, 3, what, 1.0, budget)
    yield _exact(context)


def _growth(context: Context, sizes: Sequence[int]) -> Row:
    """The power of N in the cost at constant density; N log N alone gives about 1.1 here."""
    what = "nms cost ~ N^x at constant density, x"
    try:
        function = context.libraries.our("nms", "nms")
        candidates = {}
        for n in sizes:
            data = workloads.constant_density(n)
            run = partial(function, data.boxes, data.scores, data.threshold)
            candidates[f"{n:,}"] = Candidate(f"{n:,}", run)
        found = _time(candidates, 5.0)
    except Exception as error:
        return Row(3, what, "<= 1.20", None, False, first_line(error), {})
    times = {name: samples.stats for name, samples in found.items()}
    power = growth(sizes, [stats.median for stats in times.values()])
    detail = ", ".join(f"N={name}: {seconds(stats.median)}" for name, stats in times.items())
    return Row(3, what, "<= 1.20", power, power <= 1.2, detail, times)


def growth(sizes: Sequence[float], times: Sequence[float]) -> float:
    """The exponent x of the least-squares fit of times ~ sizes^x."""
    x = [math.log(size) for size in sizes]
    y = [math.log(time) for time in times]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    products = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return products / sum((a - mean_x) ** 2 for a in x)


def _exact(context: Context) -> Row:
    """Small boxes on a large image: how many of our indices a loop over classes does not give."""
    what, target = "batched_nms exact on an aerial image", "0 wrong"
    try:
        _, note = check(nms.trial(context, workloads.aerial()))
    except Exception as error:
        return Row(3, what, target, None, False, first_line(error), {})
    return Row(3, what, target, 0.0, True, note, {})


# --- lines 32 and 34: lines 2 and 4 of the plan of the NMS family ---


def family_rows(context: Context, *, quick: bool) -> Iterator[Row]:
    """Soft-NMS and Matrix NMS against what people run today, the merging variants against ours."""
    budget = 0.5 if quick else 3.0
    for n in (1000, 5000):
        data = workloads.uniform(n)
        for method in ("linear", "gaussian"):
            for peer, least in (("numpy", 15.0), ("plain C++", 5.0)):
                what = f"soft_nms {method} N={n:,}, {peer}"
                build = partial(soft_nms.trial, context, data, method)
                yield _against_peer(32, what, build, peer, least, budget)
    for name, make in (("spread", workloads.uniform), ("crowded", workloads.crowded)):
        for n in (1000, 10_000):
            yield _price(context, make(n), f"{name} N={n:,}", budget)
    for kernel in ("linear", "gaussian"):
        what = f"matrix_nms {kernel} N=2,000"
        build = partial(matrix_nms.trial, context, workloads.uniform(2000), kernel)
        yield _against_peer(32, what, build, "torch matrices", 10.0, budget)
    if not quick:
        yield _scaling_of_size(context)
        yield _memory()


def _against_peer(
    line: int, what: str, build: Callable[[], Trial], peer: str, least: float, budget: float
) -> Row:
    candidates, failed, _ = _checked({"ours": build})
    try:
        candidates = {"ours": candidates["ours"], peer: Candidate(peer, build().peers[peer])}
        found = _time(candidates, budget)
    except Exception as error:
        found, failed = {}, {"ours": first_line(error), **failed}
    return _at_least(line, what, found, "ours", peer, least, failed)


def _price(context: Context, data: workloads.NmsInput, what: str, budget: float) -> Row:
    """The dearer of weighted and DIoU NMS as a multiple of hard NMS on the same boxes."""
    what, target = f"weighted and diou / hard NMS, {what}", "<= 1.50"
    boxes, scores, threshold = data.boxes, data.scores, data.threshold
    our = context.libraries.our
    try:
        runs = {
            "hard": partial(our("nms", "nms"), boxes, scores, threshold),
            "diou": partial(our("nms", "diou_nms"), boxes, scores, threshold),
            "weighted": partial(our("weighted_nms", "weighted_nms"), boxes, scores, threshold),
        }
        found = _time({name: Candidate(name, run) for name, run in runs.items()}, budget)
    except Exception as error:
        return Row(32, what, target, None, False, first_line(error), {})
    times = {name: samples.stats for name, samples in found.items()}
    ratio = {name: times[name].median / times["hard"].median for name in ("diou", "weighted")}
    detail = ", ".join(f"{name} {value:.2f}" for name, value in ratio.items())
    worst = max(ratio.values())
    return Row(32, what, target, worst, worst <= 1.5, detail, times)


def _scaling_of_size(context: Context) -> Row:
    what, target = "nms time(1,000,000) / time(100,000)", "<= 15"
    function = context.libraries.our("nms", "nms")
    candidates = {}
    for n in (100_000, 1_000_000):
        data = workloads.constant_density(n)
        run = partial(function, data.boxes, data.scores, data.threshold)
        candidates[f"{n:,}"] = Candidate(f"{n:,}", run)
    times = {name: samples.stats for name, samples in _time(candidates, 8.0).items()}
    small, large = times["100,000"].median, times["1,000,000"].median
    detail = f"{seconds(small)}, {seconds(large)}"
    return Row(34, what, target, large / small, large <= 15 * small, detail, times)


_MEMORY_PROBE = """
import re
from bench import workloads
from cvkernels.nms import nms
data = workloads.constant_density(1_000_000)
nms(data.boxes[:1000], data.scores[:1000], data.threshold)
def kibibytes(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = kibibytes("VmRSS")
nms(data.boxes, data.scores, data.threshold)
print((kibibytes("VmHWM") - before) * 1024)
"""


def _memory() -> Row:
    """Peak resident memory of a call on 1,000,000 boxes above what was resident before it."""
    what, target = "nms bytes per box at N=1,000,000", "< 200"
    try:
        done = subprocess.run(
            [sys.executable, "-c", _MEMORY_PROBE], check=True, capture_output=True, text=True
        )
        per_box = int(done.stdout) / 1e6
    except Exception as error:
        return Row(34, what, target, None, False, first_line(error), {})
    return Row(34, what, target, per_box, per_box < 200, "peak resident memory, Linux", {})


# --- line 41: line 1 of the plan of the RoI family ---


def roi_family_rows(context: Context, *, budget_s: float) -> Iterator[Row]:
    """The quantised and the position-sensitive operators against torchvision's."""
    for direction, least in (("fwd", 12.0), ("fwd+bwd", 10.0)):
        build = partial(roi_pool.trial, context, workloads.c4(), direction, "float32")
        yield _against_peer(41, f"roi_pool {direction}", build, TORCHVISION, least, budget_s)
    build = partial(ps_roi_align.trial, context, workloads.rfcn(), "fwd", "float32")
    yield _against_peer(41, "ps_roi_align fwd", build, TORCHVISION, 8.0, budget_s)


# --- lines 41 and 42: pyramids, of lines 1 and 2 of the plan of the RoI family ---


def pyramid_rows(context: Context, *, quick: bool) -> Iterator[Row]:
    """Mask R-CNN's box head, and all of its RoI and NMS operators, at 800 x 1333."""
    build = partial(multiscale_roi_align.trial, context, workloads.fpn(1000, 7), "fwd", "float32")
    what = "MultiScaleRoIAlign fwd, box head"
    yield _against_peer(41, what, build, TORCHVISION, 10.0, 2 if quick else 10)
    if not quick:
        yield mask_rcnn_row()


def mask_rcnn_row(height: int = 800, width: int = 1333, seconds: float = 15.0) -> Row:
    """The calls that one run of the detector makes, replayed with torchvision's and our operators.

    Weights and image are seeded noise.
    """
    what, target = "Mask R-CNN, its RoI and NMS operators", ">= 8x"
    try:
        image = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(0))
        detector = MaskRcnn((image * 255).to(torch.uint8).numpy(), min_size=height, max_size=width)
        with torch.inference_mode():
            cli.progress("running Mask R-CNN twice")
            result, _, calls, _ = run_recorded(detector)
            agree, note = compare_detections(result, detector())
            replay = [(operator(name), call) for name in calls for call in calls[name]]

            def run() -> None:
                for function, arguments in replay:
                    function(*arguments)

            cli.progress("timing its operators")
            theirs, ours, _ = interleaved(run, seconds=seconds, least=5)
            cli.progress("")
    except Exception as error:
        return Row(42, what, target, None, False, first_line(error), {})
    # Not one detection may be another: the note counts those that match where some do not.
    agree = agree and len(result[0]) > 0 and " of " not in note
    detail = f"cvkernels {ours:.1f} ms, torchvision {theirs:.1f} ms, {note}"
    return Row(42, what, target, theirs / ours, agree and theirs >= 8 * ours, detail, {})


# --- line 4: tiny calls ---


def tiny_rows(context: Context) -> Iterator[Row]:
    """Ten boxes: the price of a call as a multiple of torchvision's, at most 1.5."""
    trials: dict[str, Callable[[], Trial]] = {
        "nms": lambda: nms.trial(context, workloads.uniform(10)),
        "batched_nms": lambda: nms.trial(context, workloads.uniform(10, classes=3)),
        "roi_align": lambda: roi_align.trial(context, workloads.tiny(), "fwd", "float32"),
        "roi_align fwd+bwd": lambda: roi_align.trial(
            context, workloads.tiny(), "fwd+bwd", "float32"
        ),
    }
    for name, build in trials.items():
        candidates, failed, _ = _checked({"ours": build})
        what = f"{name} of 10 boxes, ours / torchvision"
        found = _time(candidates, 2.0)
        row = _at_least(4, what, found, "torchvision", "ours", 0.0, failed)
        measured = row.measured
        passed = measured is not None and measured <= 1.5
        yield Row(4, what, "<= 1.5x", measured, passed, row.detail, row.times)


# --- measuring ---


def _against_torchvision(
    context: Context,
    data: workloads.NmsInput,
    line: int,
    what: str,
    target: float,
    budget_s: float,
) -> Row:
    candidates, failed, note = _checked({"ours": lambda: nms.trial(context, data)})
    # Where torchvision takes seconds, two rounds must do.
    slow = len(data.boxes) >= 100_000
    found = _time(candidates, budget_s, min_rounds=2 if slow else 5)
    return _at_least(line, what, found, "ours", "torchvision", target, failed, note)


def _checked(
    trials: Mapping[str, Callable[[], Trial]],
) -> tuple[dict[str, Candidate], dict[str, str], str]:
    """Ours by trial and torchvision of the first trial, those only whose results are right.

    Returns:
        The candidates by name, what went wrong by name, and the notes of the check.
    """
    candidates: dict[str, Candidate] = {}
    failed: dict[str, str] = {}
    notes = []
    for name, build in trials.items():
        try:
            trial = build()
            peers, note = check(trial)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {first_line(error)}"
            continue
        candidates[name] = Candidate(name, trial.ours)
        notes.append(note)
        if TORCHVISION in peers and name == next(iter(trials)):
            candidates[TORCHVISION] = Candidate(TORCHVISION, peers[TORCHVISION])
    return candidates, failed, "; ".join(note for note in notes if note)


def _time(
    candidates: dict[str, Candidate], budget_s: float, min_rounds: int = 5
) -> dict[str, Samples]:
    if not candidates:
        return {}
    cli.progress("timing " + ", ".join(candidates))
    clock = WallClock(torch.device("cpu"))
    found = interleave(list(candidates.values()), clock, budget_s=budget_s, min_rounds=min_rounds)
    cli.progress("")
    return found


def _at_least(
    line: int,
    what: str,
    found: dict[str, Samples],
    fast: str,
    slow: str,
    least: float,
    failed: dict[str, str],
    note: str = "",
) -> Row:
    """A row that passes if `fast` is at least `least` times faster than `slow`."""
    target = f">= {least:g}x"
    missing = [name for name in (fast, slow) if name not in found]
    if missing:
        detail = "; ".join(f"{name}: {failed.get(name, 'not measured')}" for name in missing)
        return Row(line, what, target, None, False, detail, {})
    ratio = Ratio.of(found[fast], found[slow])
    times = {name: found[name].stats for name in (fast, slow)}
    detail = f"({ratio.p10:.3g}..{ratio.p90:.3g}) " + ", ".join(
        f"{name} {seconds(stats.median)}" for name, stats in times.items()
    )
    passed = ratio.median >= least
    return Row(line, what, target, ratio.median, passed, f"{detail}  {note}".rstrip(), times)


def run(*, quick: bool = False, path: Path | None = None, noise: bool = False) -> int:
    """Measures, prints and writes; 0 if every promise holds."""
    libraries = Libraries(TORCHVISION, (TORCHVISION,)) if noise else Libraries()
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        machine = describe(torch.device("cpu"))
        libraries.our("nms", "nms")
        libraries.our("roi_align", "roi_align")
        print(
            f"{machine['cpu']}, {THREADS} threads, load average {machine['load_average']}, "
            f"torch {machine['torch']}, torchvision {machine['torchvision']}, "
            f"revision {machine['revision']}"
        )
        if machine["load_average"] > 0.5:
            print("WARNING: other work shares this machine; these figures are not to be quoted")
        print(f"\n{'line':<5} {'what':<47} {'target':>8} {'measured':>9}")
        found = []
        for row in rows(Context(torch.device("cpu"), libraries), quick=quick):
            print(row, flush=True)
            found.append(row)
    finally:
        torch.set_num_threads(before)
    held = sum(row.passed for row in found)
    print(f"\n{held} of {len(found)} hold")
    if path is None and not (quick or noise):
        path = cli.results_folder(machine) / "acceptance.json"
    if path is not None:
        values: dict[str, Any] = {"schema": SCHEMA, "machine": machine}
        write_json(path, values | {"rows": [asdict(row) for row in found]})
        print(f"written: {path}")
    return 0 if held == len(found) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of this module."""
    p = argparse.ArgumentParser(prog="python -m bench.acceptance", description=__doc__)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    p.add_argument("--quick", action="store_true", help="shorter, without 100,000 boxes")
    p.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    p.add_argument("--noise", action="store_true", help="torchvision against itself")
    arguments = p.parse_args(argv)
    try:
        return run(quick=arguments.quick, path=arguments.json, noise=arguments.noise)
    except (RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
