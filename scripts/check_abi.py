"""Checks that the operator libraries use the LibTorch stable ABI only.

One build then serves every torch >= 2.10.

    python scripts/check_abi.py [PACKAGE_DIR]

For each of _C.so, _cuda.so and _emulated.so: no undefined C++ symbol of torch, ATen or c10 (the
stable ABI is made of C functions), no link to libtorch_python, libpython or a particular
libcudart, and nothing exported but what C++ must.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

UNSTABLE = re.compile(r"^(?:\w+ for )?(?:[\w:<>&* ]+ )?(?:at|c10|torch|caffe2|c10d)::")
FORBIDDEN_LIBRARIES = re.compile(r"^lib(torch_python|python|cudart|c10_cuda)\b")
EXPORTED = re.compile(r"\b(cuda[A-Z]\w+|cu[A-Z]\w+|cvk::)")


def run(*command: str) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def check_library(path: Path) -> list[str]:
    findings = []
    undefined = [
        line.split(maxsplit=1)[-1] for line in run("nm", "-DC", "--undefined-only", str(path))
    ]
    findings += [f"uses the unstable symbol {name}" for name in undefined if UNSTABLE.match(name)]
    findings += [f"misses {name}" for name in undefined if "cvk::" in name]
    for line in run("readelf", "--dynamic", "--wide", str(path)):
        match = re.search(r"\(NEEDED\).*\[(.+)\]", line)
        if match and FORBIDDEN_LIBRARIES.match(match.group(1)):
            findings.append(f"is linked to {match.group(1)}")
    for line in run("nm", "-DC", "--defined-only", str(path)):
        name = line.split(maxsplit=2)[-1]
        if EXPORTED.match(name):
            findings.append(f"exports {name}")
    shims = sorted(name for name in undefined if name.startswith(("aoti_torch_", "torch_")))
    print(f"{path.name}: {len(shims)} torch shim functions, {len(findings)} findings")
    return [f"{path.name} {finding}" for finding in findings]


def main() -> int:
    package = (
        Path(sys.argv[1])
        if len(sys.argv) > 1
        else Path(__file__).resolve().parent.parent / "cvkernels"
    )
    libraries = [
        path for name in ("_C", "_cuda", "_emulated") if (path := package / f"{name}.so").exists()
    ]
    if not libraries:
        print(f"check_abi: no operator library in {package}; build first")
        return 1
    findings = [finding for path in libraries for finding in check_library(path)]
    for finding in findings:
        print(finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
