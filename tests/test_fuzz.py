"""Bad inputs, over ten thousand of each family: a clear error or the result, never a crash."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import harness
import pytest

CASES = 600 if harness.EMULATED else 24_000  # five in eleven of each family
HERE = Path(__file__).parent


@pytest.mark.slow
def test_bad_inputs(tmp_path: Path) -> None:
    journal = tmp_path / "case"
    arguments = [sys.executable, str(HERE / "fuzz.py"), "0", str(CASES), str(journal)]
    # The child must import the package that is tested here, wherever that is.
    import cvkernels

    root = str(Path(cvkernels.__file__).resolve().parents[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(arguments, capture_output=True, text=True, env=env, timeout=1200)
    at = journal.read_text() if journal.exists() else "none"
    assert done.returncode >= 0, (
        f"crashed with signal {-done.returncode} in case {at}:\n{done.stderr[-2000:]}"
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-2000:]}"
    counts = {what: int(n) for what, n in re.findall(r"'([a-z, ]+)': (\d+)", done.stdout)}
    # The fuzz is worth something only if it reaches both sides.
    assert counts["refused"] > CASES // 5, counts
    assert counts["computed"] > CASES // 5, counts


def test_a_crash_is_reported(tmp_path: Path) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode < 0
