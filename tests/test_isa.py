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


# Convolutions in bfloat16, values and gradients, where the others take AVX512_BF16.
BFLOAT16_TESTS = "conv and bfloat16 and (test_forward or test_gradient or random)"


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize(
    ("isa", "tests"), [("v2", TESTS), ("v3", TESTS), ("v4", BFLOAT16_TESTS)], ids=["v2", "v3", "v4"]
)
def test_lower_instruction_sets(isa: str, tests: str) -> None:
    root = str(Path(cvkernels.__file__).resolve().parents[1])
    env = {
        **os.environ,
        "CVKERNELS_CPU_ISA": isa,
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
    }
    asked = (
        "from cvkernels.numpy import build_info; i = build_info()\n"
        "print(i['cpu_isa'] + ' with AVX512_BF16' * i['cpu_bf16_dot'])"
    )
    chosen = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, env=env, timeout=120
    ).stdout.strip()
    if chosen != f"x86-64-{isa}":
        pytest.skip(f"this machine runs {chosen}")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", tests]
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
