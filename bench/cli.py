"""`python -m cvkernels bench`: times operators beside their peers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import machine, ops, report
from bench.harness import Case, Context, Report, Result, run_case, select
from bench.libraries import OURS, REFERENCE, TORCHVISION, Libraries


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m cvkernels bench",
        description="Time operators beside their peers, interleaved, and check every result first.",
    )
    p.add_argument("op", nargs="*", help=f"operators; all by default: {', '.join(ops.names())}")
    p.add_argument("--list", action="store_true", help="print the cases and stop")
    p.add_argument("--quick", action="store_true", help="few cases, about half a minute")
    p.add_argument("--filter", default="", metavar="TEXT", help="only cases whose name holds TEXT")
    p.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    p.add_argument("--threads", type=int, help="CPU threads; torch's choice by default")
    p.add_argument("--budget", type=float, metavar="S", help="seconds per case (1, quick 0.2)")
    p.add_argument(
        "--peers",
        default=f"{TORCHVISION},{REFERENCE}",
        metavar="A,B",
        help="libraries to time beside ours (default %(default)s); a reference may take long",
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    p.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the ratios (matplotlib)")
    p.add_argument("--html", type=Path, metavar="FILE", help="write the report as one page")
    p.add_argument("--save", action="store_true", help="write JSON to bench/results/<device>/")
    p.add_argument(
        "--noise",
        action="store_true",
        help="time torchvision against itself: the ratios show how noisy this machine is",
    )
    p.add_argument("--acceptance", action="store_true", help="measure the acceptance targets only")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; 0 if every case ran and every result was right."""
    arguments = parser().parse_args(argv)
    try:
        return _run(arguments)
    except (ValueError, RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace) -> int:
    if arguments.acceptance:
        from bench import acceptance

        return acceptance.run(quick=arguments.quick, path=arguments.json, noise=arguments.noise)
    everything = [case for op in arguments.op or ops.names() for case in ops.cases(op)]
    kind = torch.device(arguments.device).type
    chosen = select(everything, quick=arguments.quick, pattern=arguments.filter, device=kind)
    if not chosen:
        raise ValueError(f"bench: no case holds {arguments.filter!r}; see --list")
    if arguments.noise:  # torchvision has no bfloat16 on the CPU
        chosen = [case for case in chosen if case.dtype != "bfloat16"]
    if arguments.list:
        print("\n".join(case.name for case in chosen))
        return 0
    if arguments.plot:
        report.require_matplotlib()
    device = open_device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    libraries = Libraries(peers=tuple(arguments.peers.split(",")))
    if arguments.noise:
        libraries = Libraries(TORCHVISION, (TORCHVISION,))
    for op in {case.op for case in chosen}:
        libraries.our(op, op)  # fail now, in one line, where nothing is built
    budget = arguments.budget or (0.2 if arguments.quick else 1.0)
    found = run(chosen, Context(device, libraries), budget_s=budget, quick=arguments.quick)
    _write(found, arguments)
    wrong = [result for result in found.results if result.status != "ok"]
    if wrong:
        print(f"{len(wrong)} of {len(found.results)} cases are not right", file=sys.stderr)
    return 1 if wrong else 0


def open_device(name: str) -> torch.device:
    """The device, or a `RuntimeError` that says why it cannot be had."""
    device = torch.device(name)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"bench: expected device cpu or cuda, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("bench: --device cuda, but torch.cuda.is_available() is False here")
    if device.type == "cuda":
        # float32 means float32: the cases in TF32 ask for it. And the peer at its best.
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = True
    return device


def run(cases: Sequence[Case], context: Context, *, budget_s: float, quick: bool = False) -> Report:
    """Runs the cases and prints a line for each as it comes."""
    progress("measuring the machine's ceilings")
    found = Report.start(context.device, ceiling_s=0.6 if quick else 2.0)
    progress("")
    if context.libraries.ours == OURS:
        peers = context.libraries.peers
        absent = [name for name in peers if not _present(name, context, cases)]
        if absent:
            print(f"note: {' and '.join(absent)} not importable here, so not a peer")
    widths = report.Widths.of(cases)
    print("\n".join(report.machine_lines(found)) + "\n\n" + report.header(widths), flush=True)
    for number, case in enumerate(cases, 1):
        progress(f"[{number}/{len(cases)}] {case.name}")
        try:
            result = run_case(case, context, found.ceilings, budget_s=budget_s)
        except KeyboardInterrupt:  # what has been measured is not lost
            print(f"interrupted: {number - 1} of {len(cases)} cases measured", file=sys.stderr)
            break
        progress("")
        print(report.line(result, widths), flush=True)
        found.results.append(result)
    return found


def _present(name: str, context: Context, cases: Sequence[Case]) -> bool:
    return any(name in context.libraries.find(op, op) for op in {case.op for case in cases})


def progress(text: str) -> None:
    """Shows what is running on the terminal's last line; an empty text clears it."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def _write(found: Report, arguments: argparse.Namespace) -> None:
    written = []
    if arguments.json:
        found.write_json(arguments.json)
        written.append(arguments.json)
    if arguments.save:
        folder = results_folder(found.machine)
        for op in dict.fromkeys(result.op for result in found.results):
            part = Report(found.machine, found.ceilings, _of(found.results, op))
            part.write_json(folder / f"{op}.json")
            written.append(folder / f"{op}.json")
    if arguments.html:
        arguments.html.parent.mkdir(parents=True, exist_ok=True)
        arguments.html.write_text(report.page(found), encoding="utf-8")
        written.append(arguments.html)
    if arguments.plot:
        m = found.machine
        title = f"{m.get('gpu') or m['cpu']}, {m['threads']} threads, torch {m['torch']}"
        report.plot(found.results, arguments.plot, title)
        written.append(arguments.plot)
    if written:
        print("written: " + ", ".join(str(path) for path in written))


def _of(results: Sequence[Result], op: str) -> list[Result]:
    return [result for result in results if result.op == op]


def results_folder(described: dict[str, object]) -> Path:
    """Where this machine's committed figures live."""
    return Path(__file__).resolve().parent / "results" / machine.slug(described)
