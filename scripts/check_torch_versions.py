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

SMOKE_TEST = """
import torch
from cvkernels import _load, ops, reference

torch.manual_seed(0)
_load.load()
cuda_build = torch.version.cuda is not None
assert ("_cuda" in _load.info()["loaded"]) == (cuda_build and
_load.library_path("_cuda").exists()), _load.info() for device in ["cpu"] + (["cuda"] if
torch.cuda.is_available() else []):
    corner = torch.rand(200, 2) * 60
    boxes = torch.cat([corner, corner + 4 + torch.rand(200, 2) * 20], 1)
    scores = torch.rand(200)
    keep = ops.nms(boxes.to(device), scores.to(device), 0.4).cpu()
    assert torch.equal(keep, reference.nms(boxes, scores, 0.4)), "nms differs from its reference"
    x = torch.randn(2, 8, 40, 40, dtype=torch.float64)
    rois = torch.cat([torch.arange(200).remainder(2)[:, None].double(), boxes.double()], 1)
    x_device = x.to(device).requires_grad_()
    out = ops.roi_align(x_device, rois.to(device), (7, 7), 0.5, 2, True)
    out.square().sum().backward()
    x.requires_grad_()
    expected = reference.roi_align(x, rois, (7, 7), 0.5, 2, True)
    expected.square().sum().backward()
    torch.testing.assert_close(out.detach().cpu(), expected.detach())
    torch.testing.assert_close(x_device.grad.cpu(), x.grad)
loaded = " + ".join(_load.info()["loaded"])
gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
print(f"ok: torch {torch.__version__}, CUDA {torch.version.cuda}, loaded {loaded}, ran on CPU,
{gpu}")
"""


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
        steps = ([*install, requirement, "numpy", *extra], [python, "-c", SMOKE_TEST])
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
