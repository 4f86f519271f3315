"""Command line: ``python -m cvkernels info | demo | bench``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import cvkernels


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Args:
        argv: Arguments without the program's name; None takes them from the command line.

    Returns:
        The exit status: 0 when all went well.
    """
    parser = argparse.ArgumentParser(prog="python -m cvkernels", description=cvkernels.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--version", action="version", version=f"cvkernels {cvkernels.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="info | demo | bench")
    info = commands.add_parser("info", help="versions, libraries, instruction set, threads, GPUs")
    info.add_argument("--json", action="store_true", help="print JSON instead of a table")
    for name, text in (
        (
            "demo",
            "find a face in a photograph with an unmodified detector on these kernels; "
            "demo nms: draw one crowded scene under each variant of NMS",
        ),
        ("bench", "time the operators against torchvision"),
    ):
        # Each parses its own arguments, --help included.
        commands.add_parser(name, help=text, add_help=False)
    arguments, rest = parser.parse_known_args(argv)

    if arguments.command == "info":
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        return print_info(as_json=arguments.json)
    if arguments.command == "demo":
        from cvkernels.demo import main as demo_main

        return int(demo_main(rest) or 0)
    from cvkernels._bench import main as bench_main

    return int(bench_main(rest) or 0)


def print_info(*, as_json: bool) -> int:
    """Prints what is installed and built; the status is 1 when the operators cannot be loaded."""
    from cvkernels._load import info

    report = info()
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        for label, value in _rows(report):
            print(f"{label:<18} {value}")
    return 0 if report["error"] is None else 1


def _rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    build = report["build"]
    cuda_archs = build.get("cuda_archs")
    rows = [
        ("cvkernels", f"{report['cvkernels']} in {report['package']}"),
        ("python", f"{report['python']}, {report['platform']}"),
        (
            "torch",
            f"{report['torch'] or 'not usable'} (CUDA {report['torch_cuda'] or 'none: CPU-only'})",
        ),
        ("torchvision", report["torchvision"] or "not installed"),
        ("numpy", report["numpy"] or "not installed"),
        ("compiled by", build.get("compiler", "unknown")),
        ("CPU kernels", ", ".join(build.get("cpu_isas", [])) or "unknown"),
        ("CPU ISA chosen", build.get("cpu_isa", "unknown") + _bf16(build)),
        ("threads", str(report["threads"] or "unknown")),
        ("CUDA kernels", ", ".join(cuda_archs) if cuda_archs else "none: this is a CPU-only build"),
        ("GPU", "; ".join(report["gpus"]) or "none found"),
        ("backend", report.get("backend", "unknown")),
    ]
    for name, path in report["libraries"].items():
        state = "loaded" if name in report["loaded"] else "found" if path else "not built"
        rows.append((f"library {name}", state))
    if report["error"]:
        rows.append(("ERROR", report["error"]))
    return rows


def _bf16(build: dict[str, Any]) -> str:
    tiles = {"amx": " and AMX", "emulated": " and emulated tiles"}
    dot = " and AVX512_BF16" if build.get("cpu_bf16_pairs") else ""
    return dot + tiles.get(build.get("cpu_bf16_tiles", "none"), "")


if __name__ == "__main__":
    sys.exit(main())
