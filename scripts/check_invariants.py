"""Checks the source invariants, and that the CPU libraries keep their instruction sets apart.

    python scripts/check_invariants.py                   the sources
    python scripts/check_invariants.py --odr BUILD_DIR   the static CPU libraries in BUILD_DIR

Exit status 1 and one line per finding (`file:line: rule: text`) when something is wrong.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPP_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}


@dataclass(frozen=True)
class Rule:
    """A pattern that must not occur in the code under some folders."""

    name: str
    folders: tuple[str, ...]
    pattern: re.Pattern[str]
    exempt: tuple[str, ...] = ()  # path suffixes

    def applies(self, path: str) -> bool:
        return path.startswith(self.folders) and not path.endswith(self.exempt or ("\0",))


RULES = (
    Rule(
        "invariant 1: no torch or pybind11 below the bindings",
        ("csrc/common/", "csrc/kernels/", "csrc/emulation/", "csrc/gemm/"),
        re.compile(r'#\s*include\s*[<"](torch|ATen|c10|caffe2|pybind11)/'),
    ),
    Rule(
        "invariant 2: no kernel launch in the bindings",
        ("csrc/bindings/",),
        re.compile(r"<<<|\bcvk::launch(_cooperative)?\b|__global__"),
    ),
    Rule(
        "invariant 2: no arithmetic in the bindings",
        ("csrc/bindings/",),
        re.compile(
            r"#\s*include\s*<cmath>|\bstd::(sqrt|exp|log|pow|fma|floor|ceil|round)\b"
            r"|(?<![\w.])\d+\.\d*f?\b"  # a floating-point literal
        ),
    ),
    Rule(
        "invariant 5: launches go through cvk::launch",
        ("csrc/",),
        re.compile(r"<<<"),
        exempt=("common/launch.cuh",),
    ),
    Rule(
        "invariant 5: launch numbers live in *_tuning.h",
        ("csrc/kernels/", "csrc/gemm/"),
        re.compile(
            r"__launch_bounds__\s*\(\s*\d|\bdim3\s*[({][^)}]*\b(?:[2-9]|\d\d+)\b"
            r"|\bLaunchConfig\b[^;]*[{,(]\s*(?:[2-9]|\d\d+)\s*[,})]"
        ),
        exempt=("_tuning.h",),
    ),
    Rule(
        "invariant 5: inline assembly lives in ptx.cuh, simd.h, opaque.h and tiles_cpu.h",
        ("csrc/common/", "csrc/kernels/", "csrc/gemm/", "csrc/bindings/"),
        re.compile(r"\basm\s*(volatile)?\s*\("),
        exempt=("common/ptx.cuh", "common/simd.h", "common/opaque.h", "gemm/tiles_cpu.h"),
    ),
    Rule(
        "no preprocessor conditionals in an operator's files",
        ("csrc/kernels/",),
        re.compile(r"^\s*#\s*(if|ifdef|ifndef|elif)\b"),
    ),
    Rule(
        "no dtype macro",
        ("csrc/",),
        re.compile(r"\b(AT_DISPATCH_\w+|STABLE_DISPATCH_\w+|THO_DISPATCH_\w+|CVK_DISPATCH\w*)"),
    ),
)


def code_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yields (line number, line) with comments and, outside includes, string literals blanked."""
    text = re.sub(r"/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m.group()), text, flags=re.DOTALL)
    for number, line in enumerate(text.splitlines(), 1):
        if not re.match(r"\s*#\s*include\b", line):
            line = re.sub(r'"(?:[^"\\]|\\.)*"', '""', line)
        yield number, re.sub(r"//.*", "", line)


def check_sources(root: Path) -> list[str]:
    findings = []
    for path in sorted((root / "csrc").rglob("*")):
        if path.suffix not in CPP_SUFFIXES:
            continue
        name = path.relative_to(root).as_posix()
        rules = [rule for rule in RULES if rule.applies(name)]
        for number, line in code_lines(path.read_text(encoding="utf-8")):
            findings += [
                f"{name}:{number}: {rule.name}: {line.strip()}"
                for rule in rules
                if rule.pattern.search(line)
            ]
    return findings


# The value of cvk::Isa that each library's code must be a template on.
ISA_OF_LIBRARY = {"libcvk_cpu_v2.a": 0, "libcvk_cpu_v3.a": 1, "libcvk_cpu_v4.a": 2}


def check_odr(build_dir: Path) -> list[str]:
    """Every external symbol of an instruction-set library must carry its own Isa.

    A symbol without it exists in several libraries, the linker keeps one copy, and a machine
    without AVX-512 may be handed the AVX-512 one.
    """
    findings = []
    for library, isa in ISA_OF_LIBRARY.items():
        path = build_dir / library
        if not path.exists():
            findings.append(f"{path}: not found; build the kernels first")
            continue
        output = subprocess.run(
            ["nm", "--demangle", "--defined-only", "--extern-only", str(path)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for line in output.splitlines():
            match = re.match(r"^[0-9a-f]+ ([A-Za-z]) (.*)$", line)
            # DW.ref.*: a pointer to the C++ runtime, the same in every library.
            if (
                match
                and not match.group(2).startswith("DW.ref.")
                and f"(cvk::Isa){isa}" not in match.group(2)
            ):
                findings.append(
                    f"{library}: symbol not tied to its instruction set: {match.group(2)}"
                )
    return sorted(set(findings))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--odr", type=Path, metavar="BUILD_DIR", help="check static libraries instead"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="root of the sources")
    # pre-commit passes file names; the rules always look at the whole tree.
    parser.add_argument("files", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    findings = check_odr(arguments.odr) if arguments.odr else check_sources(arguments.root)
    for finding in findings:
        print(finding)
    subject = f"libraries in {arguments.odr}" if arguments.odr else "sources"
    print(
        f"invariants: {subject}: {len(findings)} findings"
        if findings
        else f"invariants: {subject}: ok"
    )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
