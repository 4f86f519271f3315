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
    "hand or every_block or small_and_thin or layouts_agree or (many_boxes and 257) or non_finite"
    " or ((test_forward or test_gradient) and float32 and contiguous)"
    " or (test_roi_align and (adaptive or"
    " ((test_forward or test_gradient) and (contiguous or channels_last))))"
)


# Convolutions in bfloat16, values and gradients, where the others take AVX512_BF16.
BFLOAT16_TESTS = "conv and bfloat16 and (test_forward or test_gradient or random)"


def environment(**variables: str) -> dict[str, str]:
    """Of a child process that finds the same package, and CPU variables only as given."""
    root = str(Path(cvkernels.__file__).resolve().parents[1])
    own = {k: v for k, v in os.environ.items() if not k.startswith("CVKERNELS_CPU_")}
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    return {**own, **variables, "PYTHONPATH": path}


def chosen(env: dict[str, str]) -> str:
    """What a child process computes with."""
    asked = (
        "from cvkernels.numpy import build_info; i = build_info()\n"
        "print(i['cpu_isa'] + ' with AVX512_BF16' * i['cpu_bf16_pairs'], i['cpu_bf16_tiles'])"
    )
    command = [sys.executable, "-c", asked]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    return done.stdout.strip()


def run_tests(tests: str, env: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", tests]
    done = subprocess.run(
        [*command, str(HERE / "ops"), str(HERE / "test_conv2d_sums.py")],
        capture_output=True,
        text=True,
        env=env,
        cwd=HERE.parent,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize(
    ("isa", "tests"), [("v2", TESTS), ("v3", TESTS), ("v4", BFLOAT16_TESTS)], ids=["v2", "v3", "v4"]
)
def test_lower_instruction_sets(isa: str, tests: str) -> None:
    env = environment(CVKERNELS_CPU_ISA=isa)
    if (machine := chosen(env)) != f"x86-64-{isa} none":
        pytest.skip(f"this machine runs {machine}")
    run_tests(tests, env)


@pytest.mark.native
@pytest.mark.slow
def test_emulated_tiles() -> None:
    """bfloat16 convolutions as a machine with AMX computes them, on a model of its tiles."""
    env = environment(CVKERNELS_CPU_TILES="emulated")
    if not (machine := chosen(env)).endswith(" emulated"):
        pytest.skip(f"this machine and build run {machine}")
    run_tests(BFLOAT16_TESTS, env)


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("pairs", ["0", "1"])
def test_pairs_of_bfloat16(pairs: str) -> None:
    """The way that this machine does not take by itself."""
    if chosen(environment(CVKERNELS_CPU_PAIRS=pairs)) == (machine := chosen(environment())):
        pytest.skip(f"this machine runs {machine}")
    run_tests(BFLOAT16_TESTS, environment(CVKERNELS_CPU_PAIRS=pairs))


@pytest.mark.native
def test_tiles_are_left_out() -> None:
    assert chosen(environment(CVKERNELS_CPU_TILES="0")).endswith(" none")
    lower = environment(CVKERNELS_CPU_TILES="emulated", CVKERNELS_CPU_ISA="v4")
    assert chosen(lower).endswith(" none")
