"""Builds cvkernels: torch-free kernels through CMake, then bindings through torch's tools.

Libraries, all inside the package directory:

* ``_C.so``         operator schemas and CPU implementations, LibTorch stable ABI
* ``_cuda.so``      CUDA implementations; built where nvcc is found
* ``_emulated.so``  the CUDA kernels executed on the CPU, for tests; built when
CVKERNELS_BUILD_EMULATED=1
* ``_numpy.*.so``   pybind11 module for NumPy arrays and build information; links no torch

Environment:
    MAX_JOBS                  parallel compilations (default: number of CPUs)
    CVKERNELS_BUILD_CUDA      auto (default: build CUDA when nvcc is found), 1 (required) or 0 (off)
    CVKERNELS_BUILD_EMULATED  1 builds ``_emulated.so`` too
    CVKERNELS_CUDA_ARCHS      CMake architecture list (default: 80-real;90a-real;90-virtual)
    CVKERNELS_BUILD_DIR       where CMake builds the kernels (default: build/kernels)
    CMAKE_ARGS                further arguments for CMake
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from setuptools import Extension, setup

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    raise SystemExit(
        "cvkernels: building needs torch >= 2.10, which cannot be imported here "
        f"({error}). Install torch first, or let pip do it: `pip install .` without "
        "--no-build-isolation."
    ) from error

ROOT = Path(__file__).resolve().parent

# The one pin of the LibTorch stable ABI: the libraries use no symbol newer than torch 2.10.
TORCH_TARGET_VERSION = "0x020a000000000000"
OLDEST_TORCH = (2, 10)


def package_version() -> str:
    text = (ROOT / "cvkernels" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise SystemExit('cvkernels: cvkernels/__init__.py has no line __version__ = "..."')
    return match.group(1)


def jobs() -> int:
    text = os.environ.get("MAX_JOBS", "")
    return max(1, int(text)) if text.isdigit() else os.cpu_count() or 1


def add_tools_to_path() -> None:
    """Puts this interpreter's scripts and the cmake and ninja wheels in front of PATH.

    torch looks for ninja on PATH only, and ``python setup.py`` may run without an activated
    environment.
    """
    directories = [str(Path(sys.executable).parent)]
    for module, attribute in (("ninja", "BIN_DIR"), ("cmake", "CMAKE_BIN_DIR")):
        try:
            directories.append(getattr(__import__(module), attribute))
        except (ImportError, AttributeError):
            continue  # not installed as a wheel: PATH decides
    os.environ["PATH"] = os.pathsep.join([*directories, os.environ.get("PATH", os.defpath)])


def cuda_option() -> str:
    value = os.environ.get("CVKERNELS_BUILD_CUDA", "auto").lower()
    options = {"auto": "AUTO", "": "AUTO", "1": "ON", "on": "ON", "0": "OFF", "off": "OFF"}
    if value not in options:
        raise SystemExit(f"cvkernels: CVKERNELS_BUILD_CUDA must be auto, 1 or 0, got {value!r}")
    return options[value]


@contextlib.contextmanager
def exclusive_build() -> Iterator[None]:
    """Lets one build at a time into this tree: two at once corrupt ninja's records."""
    (ROOT / "build").mkdir(exist_ok=True)
    with open(ROOT / "build" / ".lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print("cvkernels: waiting for another build in this tree to finish", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_kernels() -> dict[str, object]:
    """Configures and builds the kernel libraries; returns what CMake says it built."""
    cmake = shutil.which("cmake")
    if cmake is None:
        raise SystemExit("cvkernels: cmake >= 3.24 was not found. Install it: `pip install cmake`.")
    build_dir = Path(os.environ.get("CVKERNELS_BUILD_DIR", ROOT / "build" / "kernels")).resolve()
    emulated = os.environ.get("CVKERNELS_BUILD_EMULATED", "0") == "1"
    configure = [
        cmake,
        "-S",
        str(ROOT),
        "-B",
        str(build_dir),
        f"-DCVK_VERSION={package_version()}",
        f"-DCVK_BUILD_CUDA={cuda_option()}",
        f"-DCVK_BUILD_EMULATED={'ON' if emulated else 'OFF'}",
    ]
    if archs := os.environ.get("CVKERNELS_CUDA_ARCHS"):
        configure.append(f"-DCMAKE_CUDA_ARCHITECTURES={archs}")
    # The path of ninja is given every time: an isolated build leaves one that is gone afterwards.
    if ninja := shutil.which("ninja"):
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
    subprocess.run(configure, check=True)
    subprocess.run([cmake, "--build", str(build_dir), "--parallel", str(jobs())], check=True)
    built: dict[str, object] = json.loads((build_dir / "cvk_build.json").read_text("utf-8"))
    return {
        key: [item for item in value if item] if isinstance(value, list) else value
        for key, value in built.items()
    }


BINDING_SOURCES = sorted(glob.glob("csrc/bindings/torch/*.cpp", root_dir=ROOT))
HEADERS = sorted(
    glob.glob("csrc/**/*.h", root_dir=ROOT, recursive=True)
    + glob.glob("csrc/**/*.cuh", root_dir=ROOT, recursive=True)
)
COMPILE_ARGS = ["-O2", "-g0", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-Wall"]
# --exclude-libs keeps the static libraries' symbols private. For cudart this matters: torch's own
# copy is in the global symbol scope and would otherwise take over half of the calls.
LINK_ARGS = ["-Wl,--exclude-libs,ALL", "-Wl,--strip-debug"]


def operator_library(name: str, backend: str, *defines: str) -> Extension:
    """One of the libraries that torch.ops.load_library loads, all from the same sources."""
    return CppExtension(
        f"cvkernels.{name}",
        BINDING_SOURCES,
        include_dirs=[str(ROOT), str(ROOT / "csrc")],
        depends=HEADERS,
        extra_compile_args=[
            *COMPILE_ARGS,
            f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
            f"-DCVK_BACKEND_{backend}",
            *defines,
        ],
        # A missing symbol is an error here and not at load time. (_cuda: see add_kernels.)
        extra_link_args=[*LINK_ARGS, "-Wl,-z,defs"],
        py_limited_api=True,  # links no libtorch_python; the libraries hold no Python at all
    )


def extensions() -> list[Extension]:
    import pybind11

    libraries = [
        operator_library("_C", "CPU"),
        operator_library("_cuda", "CUDA", "-DUSE_CUDA"),
        operator_library("_emulated", "EMULATED", "-DCVK_EMULATED"),
    ]
    module = Extension(
        "cvkernels._numpy",
        sorted(glob.glob("csrc/bindings/numpy/*.cpp", root_dir=ROOT)),
        include_dirs=[str(ROOT), str(ROOT / "csrc"), pybind11.get_include()],
        depends=HEADERS,
        extra_compile_args=list(COMPILE_ARGS),
        extra_link_args=[*LINK_ARGS, "-pthread"],
        language="c++",
    )
    return [module, *libraries]


class BuildKernelsAndBindings(BuildExtension):
    """BuildExtension that runs CMake first and then links its libraries into the bindings."""

    def run(self) -> None:
        if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
            raise SystemExit(
                f"cvkernels: torch >= 2.10 is needed to build, found {torch.__version__}."
            )
        with exclusive_build():
            self.build_all()

    def build_all(self) -> None:
        built = build_kernels()
        has_cuda, has_emulated = bool(built["cuda"]), bool(built["emulated"])
        wanted = {"_C": True, "_numpy": True, "_cuda": has_cuda, "_emulated": has_emulated}
        self.extensions = [e for e in self.extensions if wanted[e.name.rpartition(".")[2]]]
        for extension in self.extensions:
            self.add_kernels(extension, built)
        super().run()
        archs = ", ".join(built["cuda_archs"])
        if has_cuda:
            print(f"cvkernels: built with CUDA {built['cuda_version']} kernels for {archs}.")
        else:
            (ROOT / "cvkernels" / "_cuda.so").unlink(missing_ok=True)  # left by an earlier build
            print(
                f"cvkernels: this is a CPU-only build, without CUDA kernels: {built['cuda_note']}."
            )

    def add_kernels(self, extension: Extension, built: dict) -> None:
        name = extension.name.rpartition(".")[2]
        kernels = {"_cuda": built["cuda"], "_emulated": built["emulated"]}.get(name, built["cpu"])
        objects = [*kernels, *built["common"]]
        extension.extra_objects = objects
        extension.depends = [*extension.depends, *objects]
        if name == "_numpy":
            extension.include_dirs.append(built["generated_include_dir"])
        if name == "_cuda":
            # The static CUDA runtime: the one binary then asks for no libcudart of a certain major
            # version and loads beside any torch. Both runtimes share the driver's primary context,
            # and streams are driver handles, so torch's streams and tensors are ours too.
            extension.include_dirs += built["cuda_include_dirs"]
            extension.library_dirs.append(built["cuda_library_dir"])
            extension.libraries += ["cudart_static", "rt", "dl", "pthread"]
            # torch's CUDA symbols come at load time through libtorch.so, which on CUDA builds of
            # torch brings libtorch_cuda. It must be named although nothing is taken from it here,
            # and the torch that is compiled against may be a CPU-only one without those symbols.
            extension.extra_link_args = [*LINK_ARGS, "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu"]

    def build_extension(self, ext: Extension) -> None:
        # The same sources are compiled for several libraries: each gets its own directory of
        # objects.
        shared, self.build_temp = self.build_temp, os.path.join(self.build_temp, ext.name)
        os.makedirs(self.build_temp, exist_ok=True)
        try:
            super().build_extension(ext)
        finally:
            self.build_temp = shared

    def get_ext_filename(self, ext_name: str) -> str:
        if ext_name.rpartition(".")[2] in ("_C", "_cuda", "_emulated"):
            return os.path.join(*ext_name.split(".")) + ".so"
        return str(super().get_ext_filename(ext_name))


add_tools_to_path()
setup(ext_modules=extensions(), cmdclass={"build_ext": BuildKernelsAndBindings})
