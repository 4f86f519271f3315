"""Reads the machine code of the CUDA kernels; fails where it is not what the source asks for.

    python scripts/check_sass.py BUILD_DIR [--all]

What must hold on every architecture built:

* No kernel touches local memory (registers that spilled, arrays that were indexed at run time).
* A forward kernel of the RoI family that takes several channels at once from a channels-last map
  (``<op>_forward_kernel<T, group, false, ...>`` with a group above 1) loads 16 bytes at a time.
* A kernel of tensor cores multiplies with them, and its operands come by asynchronous copies of 16
  bytes. One that multiplies by warpgroups does so on sm_90a, and is a trap elsewhere.

Needs cuobjdump (CUDA toolkit, or PyPI's nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm) and
c++filt. Exits with 77 where one is missing.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TYPES = r"(?:float|double|cvk::half_t|cvk::bfloat16_t)"
_WIDE = re.compile(rf"\w+_forward\w*_kernel<(?:[^()]*?, )?{_TYPES}, (\d+), false")
_TENSOR = re.compile(r"\w*_mma\w*_kernel<")
_WARPGROUP = "GemmWarpgroupShape<"


@dataclass(frozen=True)
class Kernel:
    """The instructions of one kernel instantiation on one architecture."""

    name: str
    arch: str
    opcodes: frozenset[str]

    def has(self, prefix: str) -> bool:
        return any(opcode.startswith(prefix) for opcode in self.opcodes)

    @property
    def is_wide(self) -> bool:
        match = _WIDE.search(self.name)
        return match is not None and int(match[1]) > 1

    @property
    def problem(self) -> str | None:
        """What is wrong with it."""
        if self.has("LDL") or self.has("STL"):
            return "uses local memory"
        if self.is_wide and not self.has("LDG.E.128"):
            return "has no 16-byte load"
        if _TENSOR.search(self.name):
            if _WARPGROUP in self.name:
                if self.arch != "sm_90a":
                    return None if self.has("BPT") else "is no trap"
                if not self.has("HGMMA"):
                    return "has no warpgroup instruction"
            elif not (self.has("HMMA") or self.has("DMMA")):
                return "has no tensor-core instruction"
            if not any(code.startswith("LDGSTS") and "128" in code for code in self.opcodes):
                return "has no 16-byte copy"
        return None


def find_tool() -> str | None:
    """The path of cuobjdump: on PATH, or where PyPI's package puts it."""
    found = shutil.which("cuobjdump")
    if found is None:
        packages = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
        found = next((str(p) for p in sorted(packages.glob("*/bin/cuobjdump"))), None)
    return found


def parse(text: str) -> Iterator[Kernel]:
    """The kernels in the output of ``cuobjdump -sass``, under their mangled names."""
    arch, name, opcodes = "", "", set[str]()
    for line in [*text.splitlines(), "Function : end"]:
        header = re.match(r"\s*(code for|Function :) (\S+)", line)
        if header is None:
            if match := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line):
                opcodes.add(match[1])
            continue
        if name:
            yield Kernel(name, arch, frozenset(opcodes))
        name, opcodes = "", set()
        if header[1] == "code for":
            arch = header[2]
        else:
            name = header[2]


def kernels(build: Path, tool: str) -> list[Kernel]:
    """Every kernel of the CUDA objects under ``build``, with readable names."""
    found: list[Kernel] = []
    for path in sorted(build.glob("**/cvk_cuda.dir/**/*_cuda.cu.o")):
        command = [tool, "-sass", str(path)]
        found += parse(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    names = "\n".join(kernel.name for kernel in found)
    done = subprocess.run(["c++filt"], input=names, check=True, capture_output=True, text=True)
    return [
        Kernel(name.replace("(anonymous namespace)::", ""), kernel.arch, kernel.opcodes)
        for name, kernel in zip(done.stdout.splitlines(), found, strict=True)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("build", type=Path)
    parser.add_argument("--all", action="store_true", help="print every kernel")
    arguments = parser.parse_args()
    tool = find_tool()
    if tool is None or shutil.which("c++filt") is None:
        print("sass: SKIPPED, cuobjdump or c++filt was not found")
        return 77
    found = kernels(arguments.build, tool)
    if not found:
        print(f"sass: no CUDA objects under {arguments.build}")
        return 1
    bad = [kernel for kernel in found if kernel.problem]
    for kernel in found if arguments.all else bad:
        word = kernel.problem or ("16-byte loads" if kernel.is_wide else "ok")
        print(f"{kernel.arch:8} {word:32} {kernel.name.split('(')[0]}")
    wide = sum(kernel.is_wide for kernel in found)
    print(f"sass: {len(found)} kernels, {wide} with 16-byte loads asked for, {len(bad)} wrong")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
