"""Finds and loads the compiled operator libraries.

``load()`` is called by every operator module; it registers the operators with torch once per
process. Nothing here fails quietly: every error says what was looked for, what was found, and what
to do.
"""

from __future__ import annotations

import os
import platform
import threading
from pathlib import Path
from typing import Any

import cvkernels

OLDEST_TORCH = (2, 10)
_PACKAGE_DIR = Path(__file__).resolve().parent
_REBUILD = (
    "Build it with `pip install .` (or `pip install -e . --no-build-isolation`) in the source "
    "tree, or install a wheel."
)

_lock = threading.Lock()
_loaded: tuple[str, ...] = ()
# torch.library registrations live as long as the object that made them.
_missing_cuda: Any = None


def library_path(name: str) -> Path:
    """Where the operator library ``name`` (``_C``, ``_cuda`` or ``_emulated``) is looked for."""
    return _PACKAGE_DIR / f"{name}.so"


def backend() -> str:
    """The backend that CVKERNELS_BACKEND asks for: ``native`` (the default) or ``emulated``."""
    value = os.environ.get("CVKERNELS_BACKEND", "") or "native"
    if value not in ("native", "emulated"):
        raise ImportError(
            f"cvkernels: CVKERNELS_BACKEND must be native or emulated, got {value!r}. "
            "Unset it to use the CPU and CUDA kernels."
        )
    return value


def load() -> None:
    """Loads the operator libraries into torch; does nothing when they are loaded already.

    Raises:
        ImportError: torch is missing or older than 2.10, a library is missing, or it cannot be
            loaded.
    """
    global _loaded
    if _loaded:
        return
    with _lock:
        if not _loaded:
            _loaded = _load_libraries()


def _load_libraries() -> tuple[str, ...]:
    torch = _import_torch()
    if backend() == "emulated":
        _load_library(torch, "_emulated", "Build with CVKERNELS_BUILD_EMULATED=1 to have it.")
        return ("_emulated",)
    _load_library(torch, "_C", _REBUILD)
    # A CPU-only torch lacks the symbols that _cuda needs, and has no CUDA tensors to hand it.
    if torch.version.cuda is None:
        return ("_C",)
    if not library_path("_cuda").exists():
        _explain_missing_cuda(torch)
        return ("_C",)
    _load_library(torch, "_cuda", _REBUILD)
    return ("_C", "_cuda")


def _import_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"cvkernels: the operators need torch >= 2.10, but `import torch` failed: {error}. "
            "Install torch, or use cvkernels.numpy, which needs none."
        ) from error
    release = torch.__version__.split("+")[0].split(".")
    if tuple(int(part) for part in release[:2]) < OLDEST_TORCH:
        raise ImportError(
            f"cvkernels: torch >= 2.10 is needed, found torch {torch.__version__} in "
            f"{Path(torch.__file__).parent}. Upgrade it: `pip install 'torch>=2.10'`."
        )
    return torch


def _load_library(torch: Any, name: str, advice: str) -> None:
    path = library_path(name)
    if not path.exists():
        found = ", ".join(sorted(p.name for p in _PACKAGE_DIR.glob("*.so"))) or "no library at all"
        raise ImportError(
            f"cvkernels: the library {path.name} was not found: looked for {path}, "
            f"found {found} there. {advice}"
        )
    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        # torch's own message hides the linker's, which names the missing symbol or library.
        reason = error.__cause__ or error
        raise ImportError(
            f"cvkernels: {path} cannot be loaded into torch {torch.__version__} "
            f"(CUDA {torch.version.cuda}): {reason}. {_REBUILD}"
        ) from error


def _explain_missing_cuda(torch: Any) -> None:
    """Makes an operator that is handed a CUDA tensor say why it cannot run, and what to do."""
    global _missing_cuda

    def no_cuda_kernels(*_: Any, **__: Any) -> Any:
        raise RuntimeError(
            f"cvkernels: this build has no CUDA kernels ({library_path('_cuda')} does not exist), "
            "so its operators cannot take CUDA tensors. Rebuild where nvcc is on PATH, or pass CPU "
            "tensors."
        )

    _missing_cuda = torch.library.Library("cvkernels", "IMPL", "CUDA")
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("cvkernels::"):
            _missing_cuda.impl(name.partition("::")[2], no_cuda_kernels)


def info() -> dict[str, Any]:
    """What is installed, built and found; reports an error instead of raising it.

    Returns:
        A dict of plain values: versions, the backend, each library's path or None, what was built
        (compiler, CPU instruction sets, CUDA architectures), the instruction set in use, thread
        count and the GPUs that torch sees.
    """
    from cvkernels.numpy import build_info

    libraries = {name: library_path(name) for name in ("_C", "_cuda", "_emulated")}
    report: dict[str, Any] = {
        "cvkernels": cvkernels.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "package": str(_PACKAGE_DIR),
        "libraries": {
            name: str(path) if path.exists() else None for name, path in libraries.items()
        },
        "torch": None,
        "torch_cuda": None,
        "torchvision": _version("torchvision"),
        "numpy": _version("numpy"),
        "threads": None,
        "gpus": [],
        "error": None,
    }
    try:
        report["build"] = build_info()
    except ImportError as error:
        report["build"] = {}
        report["error"] = str(error)
    try:
        report["backend"] = backend()
        torch = _import_torch()
        report["torch"] = torch.__version__
        report["torch_cuda"] = torch.version.cuda
        report["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            for index in range(torch.cuda.device_count()):
                major, minor = torch.cuda.get_device_capability(index)
                report["gpus"].append(f"{torch.cuda.get_device_name(index)}, sm_{major}{minor}")
        load()
    except ImportError as error:
        report["error"] = str(error)
    report["loaded"] = list(_loaded)
    return report


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
