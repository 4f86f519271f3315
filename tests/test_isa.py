"""The CPU kernels of every instruction set, not only of the best that this machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cvkernels

HERE = Path(__file__).parent
# Hand-worked numbers, RoI Align in two layouts and every dtype (its kernels convert), NMS in the
# type it computes in, and enough boxes to reach the index of nms.
TESTS = (
    "hand or every_block or layouts_agree or (many_boxes and 257) or non_finite"
    " or ((test_forward or test_gradient) and float32 and contiguous)"
    " or (test_roi_align and (adaptive or"
    " ((test_forward or test_gradient) and (contiguous or channels_last))))"
)


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("isa", ["v2", "v3"])
def test_lower_instruction_sets(isa: str) -> None:
    root = str(Path(cvkernels.__file__).resolve().parents[1])
    env = {
        **os.environ,
        "CVKERNELS_CPU_ISA": isa,
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
    }
    asked = "from cvkernels.numpy import build_info; print(build_info()['cpu_isa'])"
    chosen = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, env=env, timeout=120
    ).stdout.strip()
    if chosen != f"x86-64-{isa}":
        pytest.skip(f"this machine runs {chosen}")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", TESTS]
    done = subprocess.run(
        [*command, str(HERE / "ops")],
        capture_output=True,
        text=True,
        env=env,
        cwd=HERE.parent,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
