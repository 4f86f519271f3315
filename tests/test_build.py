"""The package as built: light import, clear failures, command line, libraries as promised."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cvkernels
from cvkernels import _load

# One run is enough: what is particular to the emulated library is asked for by name.
pytestmark = pytest.mark.native

ROOT = Path(__file__).resolve().parent.parent
IN_SOURCE_TREE = (ROOT / "setup.py").is_file()
KERNEL_BUILD = Path(os.environ.get("CVKERNELS_BUILD_DIR", ROOT / "build" / "kernels"))


def run_python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def run_script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_import_is_light() -> None:
    done = run_python(
        "import sys, cvkernels\n"
        "dir(cvkernels); print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_submodules_come_on_first_access() -> None:
    done = run_python(
        "import cvkernels; print(cvkernels.ops.nms.__name__, cvkernels.reference.nms.__name__)"
    )
    assert done.stdout.split() == ["nms", "nms"], done.stderr
    with pytest.raises(AttributeError, match="no_such_module"):
        _ = cvkernels.no_such_module
    assert {"ops", "nms", "roi_align", "numpy"} <= set(dir(cvkernels))


def test_operator_modules_stay_modules() -> None:
    done = run_python(
        "import cvkernels.roi_align, cvkernels.nms, cvkernels; from cvkernels import ops\n"
        "print(type(cvkernels.roi_align).__name__, type(cvkernels.nms).__name__)"
    )
    assert done.stdout.split() == ["module", "module"], done.stderr


def test_version_is_said_once() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", cvkernels.__version__)
    assert _load.info()["build"]["version"] == cvkernels.__version__


@pytest.mark.parametrize("backend", ["native", "emulated"])
def test_info(backend: str) -> None:
    if backend == "emulated" and not _load.library_path("_emulated").exists():
        pytest.skip("not built: CVKERNELS_BUILD_EMULATED=1 builds it")
    info = [sys.executable, "-m", "cvkernels", "info"]
    environment = {**os.environ, "CVKERNELS_BACKEND": backend}
    done = subprocess.run(
        [*info, "--json"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads(done.stdout)
    assert report["torch"] == torch.__version__
    assert report["error"] is None
    assert ("_emulated" in report["loaded"]) == (backend == "emulated")
    assert ("_C" in report["loaded"]) == (backend == "native")
    assert report["build"]["cpu_isa"] in report["build"]["cpu_isas"]
    assert report["build"]["compiler"]
    table = subprocess.run(info, env=environment, capture_output=True, text=True, check=True)
    for word in ("torch", "CPU ISA chosen", "threads", "CUDA kernels", "GPU", torch.__version__):
        assert word in table.stdout


@pytest.mark.parametrize("cap", ["v2", "v3"])
def test_instruction_set_can_be_lowered(cap: str) -> None:
    program = (
        "import torch; from cvkernels import ops, _load\n"
        "b = torch.tensor([[0., 0, 9, 9], [1, 1, 9, 9]]); s = torch.tensor([.5, .9])\n"
        "print(ops.nms(b, s, .5).tolist(), _load.info()['build']['cpu_isa'])"
    )
    done = run_python(program, CVKERNELS_CPU_ISA=cap)
    assert done.returncode == 0, done.stderr
    keep, isa = done.stdout.split()
    assert keep == "[1]"
    assert isa <= f"x86-64-{cap}" or not isa.startswith("x86-64")


def test_command_line_says_what_is_wrong() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cvkernels", "nonsense"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "info | demo | bench" in done.stderr


def test_missing_library_says_where_and_what_to_do(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(_load, "_PACKAGE_DIR", tmp_path)
    monkeypatch.setattr(_load, "_loaded", ())
    monkeypatch.delenv("CVKERNELS_BACKEND", raising=False)
    with pytest.raises(ImportError) as error:
        _load.load()
    for part in ("_C.so was not found", str(tmp_path), "no library at all", "pip install"):
        assert part in str(error.value)


def test_broken_library_says_why(monkeypatch, tmp_path) -> None:
    (tmp_path / "_C.so").write_bytes(b"not a library")
    monkeypatch.setattr(_load, "_PACKAGE_DIR", tmp_path)
    monkeypatch.setattr(_load, "_loaded", ())
    monkeypatch.delenv("CVKERNELS_BACKEND", raising=False)
    with pytest.raises(ImportError, match=r"_C\.so cannot be loaded into torch .*\. Build it"):
        _load.load()


def test_unknown_backend_is_refused() -> None:
    done = run_python("from cvkernels import ops", CVKERNELS_BACKEND="gpu")
    assert done.returncode != 0
    assert "CVKERNELS_BACKEND must be native or emulated, got 'gpu'" in done.stderr


def test_old_torch_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    monkeypatch.setattr(_load, "_loaded", ())
    with pytest.raises(ImportError, match=r"torch >= 2\.10 is needed, found torch 2\.9\.1\+cpu"):
        _load.load()


def test_missing_torch_is_said() -> None:
    done = run_python(
        "import sys; sys.modules['torch'] = None\nfrom cvkernels import _load; _load.load()"
    )
    assert "the operators need torch >= 2.10, but `import torch` failed" in done.stderr
    assert "cvkernels.numpy" in done.stderr


def test_cpu_only_torch_never_tries_the_cuda_library(monkeypatch, tmp_path) -> None:
    # A CPU-only torch with a _cuda.so at hand: it must not even be opened.
    for name in ("_C", "_cuda"):
        (tmp_path / f"{name}.so").write_bytes(b"")
    opened: list[str] = []
    monkeypatch.setattr(_load, "_PACKAGE_DIR", tmp_path)
    monkeypatch.setattr(_load, "_loaded", ())
    monkeypatch.delenv("CVKERNELS_BACKEND", raising=False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: opened.append(Path(path).name))
    _load.load()
    assert opened == ["_C.so"]
    monkeypatch.setattr(_load, "_loaded", ())
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    _load.load()
    assert opened == ["_C.so", "_C.so", "_cuda.so"]


def test_build_without_cuda_kernels_says_so_when_called() -> None:
    # On the Meta-free path a CUDA tensor needs a GPU; the registration itself can be looked at
    # without one.
    program = """
import torch
from cvkernels import _load
from pathlib import Path
real = _load.library_path
_load.library_path = lambda name: Path("/nonexistent/_cuda.so") if name == "_cuda" else real(name)
torch.version.cuda = torch.version.cuda or "13.0"
_load.load()
assert torch._C._dispatch_has_kernel_for_dispatch_key("cvkernels::nms", "CUDA")
handle = torch.ops.cvkernels.nms.default
try:
    handle.redispatch(
        torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), torch.zeros(1, 4), torch.zeros(1),
        None, 0.5, -1, "iou", 1.0, None
    )
except RuntimeError as error:
    print(error)
"""
    done = run_python(program, CVKERNELS_BACKEND="native")
    assert "this build has no CUDA kernels" in done.stdout, done.stderr
    assert "Rebuild where nvcc is on PATH" in done.stdout


@pytest.mark.skipif(not IN_SOURCE_TREE, reason="needs the source tree")
def test_source_invariants_hold() -> None:
    done = run_script("check_invariants.py")
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(not IN_SOURCE_TREE, reason="needs the source tree")
@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("csrc/kernels/x/x_cpu.cpp", "#include <torch/extension.h>"),
        ("csrc/common/x.h", '#include "pybind11/pybind11.h"'),
        ("csrc/bindings/torch/x.cpp", "kernel<<<1, 2>>>();"),
        ("csrc/bindings/torch/x.cpp", "auto y = x * 0.5f;"),
        ("csrc/kernels/x/x_cuda.cu", "__global__ void __launch_bounds__(256) f() {}"),
        ("csrc/kernels/x/x_cuda.cu", "return launch(f, LaunchConfig{dim3(n), dim3(256)}, stream);"),
        ("csrc/kernels/x/x_cuda.cu", 'asm volatile("nop;");'),
        ("csrc/kernels/x/x_cpu.cpp", "#ifdef __AVX2__"),
        ("csrc/kernels/x/x_cpu.cpp", "AT_DISPATCH_FLOATING_TYPES(x)"),
    ],
)
def test_each_invariant_is_enforced(tmp_path, path: str, line: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(f"// A comment may say kernel<<<1, 2>>>() and asm volatile().\n{line}\n")
    done = run_script("check_invariants.py", "--root", str(tmp_path))
    assert done.returncode == 1
    assert f"{path}:2:" in done.stdout


@pytest.mark.skipif(
    not (KERNEL_BUILD / "libcvk_cpu_v3.a").exists(), reason="no x86-64 kernel build here"
)
def test_instruction_sets_stay_apart() -> None:
    done = run_script("check_invariants.py", "--odr", str(KERNEL_BUILD))
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(not IN_SOURCE_TREE, reason="needs the source tree")
def test_libraries_use_the_stable_abi_only() -> None:
    done = run_script("check_abi.py", str(Path(_load.__file__).parent))
    assert done.returncode == 0, done.stdout


HAS_CUDA_BUILD = (KERNEL_BUILD / "libcvk_cuda.a").exists()


@pytest.mark.skipif(not HAS_CUDA_BUILD, reason="no CUDA build here: nvcc was not found")
def test_cuda_kernels_do_not_spill() -> None:
    done = run_script("check_ptxas.py", str(KERNEL_BUILD), "--all")
    assert done.returncode == 0, done.stdout
    for arch in ("sm_80", "sm_90a"):
        assert arch in done.stdout


@pytest.mark.skipif(not IN_SOURCE_TREE, reason="needs the source tree")
def test_spills_are_reported(tmp_path) -> None:
    (tmp_path / "x.o.ptxas.txt").write_text(
        "ptxas info    : Compiling entry function '_ZN3cvk1fEv' for 'sm_90a'\n"
        "ptxas info    : Function properties for _ZN3cvk1fEv\n"
        "    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads\n"
        "ptxas info    : Used 255 registers, used 1 barriers, 1024 bytes smem\n"
    )
    done = run_script("check_ptxas.py", str(tmp_path))
    assert done.returncode == 1
    assert "1 with spills" in done.stdout
