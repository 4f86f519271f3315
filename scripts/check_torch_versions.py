"""Loads the libraries that are built in place under several versions of torch, and runs them.

    python scripts/check_torch_versions.py 2.10.0 2.13.0+cpu newest

Each version is installed into a throw-away environment, which is removed afterwards (a CUDA build
of torch takes 5 GB). Nothing is rebuilt: that the same files work everywhere is the point. Prints
one line per version.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

SMOKE_TEST = str(ROOT / "scripts" / "smoke_test.py")


def check(version: str, extra: list[str]) -> bool:
    """Installs one torch, runs the smoke test in it, says how it went."""
    requirement = "torch" if version == "newest" else f"torch=={version}"
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cvkernels-torch-") as directory:
        venv.create(directory, with_pip=True)
        python = str(Path(directory) / "bin" / "python")
        install = [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-cache-dir",
        ]
        steps = ([*install, requirement, "numpy", *extra], [python, SMOKE_TEST])
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        for command in steps:
            # Away from the source tree: PYTHONPATH alone decides which package is imported.
            done = subprocess.run(
                command, cwd=directory, env=environment, capture_output=True, text=True
            )
            if done.returncode != 0:
                print(f"{requirement}: FAILED in {command[1:4]}\n{done.stdout}{done.stderr}")
                return False
    print(f"{requirement}: {done.stdout.strip()} ({time.monotonic() - started:.0f} s)", flush=True)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("versions", nargs="+", help="versions of torch, or 'newest'")
    parser.add_argument("--extra", nargs="*", default=[], help="further requirements for pip")
    arguments = parser.parse_args()
    for path in sorted((ROOT / "cvkernels").glob("*.so")):
        print(f"{path.name}: sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}")
    results = [check(version, arguments.extra) for version in arguments.versions]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
