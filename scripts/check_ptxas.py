"""Reads the `ptxas -v` reports that the CUDA build keeps; fails on spills and local memory.

    python scripts/check_ptxas.py BUILD_DIR [--all]

Prints the registers, shared memory and spills of every kernel (the widest instantiation of each
name and architecture; --all prints every instantiation).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class KernelUse:
    """What one kernel instantiation uses on one architecture."""

    name: str
    arch: str
    registers: int
    shared: int
    stack: int
    spills: int

    @property
    def is_clean(self) -> bool:
        return self.stack == 0 and self.spills == 0


def parse_report(text: str) -> list[KernelUse]:
    """Parses one report: three lines per kernel, which name it, its stack and its registers."""
    uses = []
    name = arch = ""
    stack = spills = 0
    for line in text.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line):
            name, arch, stack, spills = match.group(1), match.group(2), 0, 0
        elif match := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", line
        ):
            # Also printed for device functions that were not inlined: the largest counts.
            stack = max(stack, int(match.group(1)))
            spills = max(spills, int(match.group(2)) + int(match.group(3)))
        elif (match := re.search(r"Used (\d+) registers", line)) and name:
            shared = re.search(r"(\d+) bytes smem", line)
            uses.append(
                KernelUse(
                    name,
                    arch,
                    int(match.group(1)),
                    int(shared.group(1)) if shared else 0,
                    stack,
                    spills,
                )
            )
            name = ""
    return uses


def read_reports(build_dir: Path) -> list[KernelUse]:
    """All kernels of all reports under ``build_dir``, with demangled names."""
    uses = [
        use
        for path in sorted(build_dir.rglob("*.ptxas.txt"))
        for use in parse_report(path.read_text())
    ]
    mangled = "\n".join(use.name for use in uses)
    names = subprocess.run(
        ["c++filt"], input=mangled, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    return [
        KernelUse(short_name(name), use.arch, use.registers, use.shared, use.stack, use.spills)
        for name, use in zip(names, uses, strict=True)
    ]


def short_name(demangled: str) -> str:
    """`void cvk::(anonymous namespace)::f_kernel<float, 2>(cvk::P)` -> `f_kernel<float, 2>`."""
    text = demangled.replace("(anonymous namespace)::", "").replace("cvk::", "")
    text = text.removeprefix("void ")
    depth = 0
    for position, character in enumerate(text):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            return text[:position]
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("build_dir", type=Path)
    parser.add_argument("--all", action="store_true", help="print every instantiation")
    arguments = parser.parse_args()
    uses = read_reports(arguments.build_dir)
    if not uses:
        print(f"ptxas: no report with a kernel under {arguments.build_dir}: was CUDA built?")
        return 1
    shown: dict[tuple[str, str], KernelUse] = {}
    for use in uses:
        key = (
            use.name if arguments.all or not use.is_clean else use.name.partition("<")[0],
            use.arch,
        )
        if key not in shown or shown[key].registers < use.registers:
            shown[key] = use
    print(f"{'arch':<8} {'registers':>9} {'shared':>7} {'stack':>6} {'spills':>7}  kernel")
    for use in sorted(shown.values(), key=lambda u: (u.name, u.arch)):
        numbers = f"{use.registers:>9} {use.shared:>7} {use.stack:>6} {use.spills:>7}"
        print(f"{use.arch:<8} {numbers}  {use.name}")
    bad = [use for use in uses if not use.is_clean]
    print(
        f"ptxas: {len(uses)} kernel instantiations, {len(bad)} with spills or a local-memory stack"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
