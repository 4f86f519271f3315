"""Invariants 3 and 4: one name everywhere, and references that look like their operators."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from types import FunctionType

import pytest
import torch

from cvkernels import ops, reference

ROOT = Path(__file__).resolve().parents[1]
OPERATORS = sorted(path.name for path in (ROOT / "csrc/kernels").iterdir() if path.is_dir())
SECTIONS = ["Args", "Returns", "Raises", "Gradient", "Determinism", "Source"]


def stems(folder: str, pattern: str) -> list[str]:
    """What ``*`` stands for in each file of a folder that matches."""
    front, back = pattern.split("*")
    names = [path.name for path in (ROOT / folder).glob(pattern)]
    return sorted(name[len(front) : len(name) - len(back)] for name in names)


def functions(module: object) -> dict[str, FunctionType]:
    names = module.__all__  # type: ignore[attr-defined]
    return {n: getattr(module, n) for n in names if isinstance(getattr(module, n), FunctionType)}


FUNCTIONS = functions(ops)


def test_there_are_operators() -> None:
    assert {"roi_align", "nms"} <= set(OPERATORS)
    assert {"roi_align", "nms", "batched_nms", "nms_padded"} <= set(FUNCTIONS)


@pytest.mark.parametrize("op", OPERATORS)
def test_a_kernel_folder_holds_exactly_its_files(op: str) -> None:
    wanted = {f"{op}.h", f"{op}_math.h", f"{op}_cpu.cpp", f"{op}_cuda.cu", f"{op}_tuning.h"}
    found = {path.name for path in (ROOT / "csrc/kernels" / op).iterdir()}
    assert wanted <= found
    assert all(name == f"{op}.h" or name.startswith(f"{op}_") for name in found), found


@pytest.mark.parametrize(
    ("folder", "pattern"),
    [
        ("csrc/bindings/torch", "*.cpp"),
        ("tests/ops", "test_*.py"),
        ("tests/reference", "test_*_reference.py"),
        ("bench/ops", "[a-z]*.py"),
    ],
)
def test_every_operator_has_one_file_of_its_name(folder: str, pattern: str) -> None:
    if pattern.startswith("["):
        names = sorted(p.stem for p in (ROOT / folder).glob("*.py") if p.stem != "__init__")
    else:
        names = stems(folder, pattern)
    assert names == OPERATORS


@pytest.mark.parametrize("op", OPERATORS)
def test_python_has_a_module_of_its_name(op: str) -> None:
    module = importlib.import_module(f"cvkernels.{op}")
    assert op in module.__all__ and isinstance(getattr(module, op), FunctionType)
    importlib.import_module(f"cvkernels.reference.{op}")
    assert (ROOT / "cvkernels" / f"{op}.py").exists()
    assert (ROOT / "cvkernels/reference" / f"{op}.py").exists()
    assert (ROOT / "tests/cpp" / f"{op}_test.cpp").exists()


@pytest.mark.parametrize("op", OPERATORS)
def test_dispatcher_operators_are_named_after_their_file(op: str) -> None:
    text = (ROOT / "csrc/bindings/torch" / f"{op}.cpp").read_text()
    defined = re.findall(r"m\.def\(\s*\"(\w+)\(", text)
    assert op in defined
    assert all(name == op or name.startswith(f"{op}_") for name in defined), defined
    implemented = set(re.findall(r"m\.impl\(\s*\"(\w+)\"", text))
    assert implemented == set(defined)
    for name in defined:
        assert torch._C._dispatch_has_kernel(f"cvkernels::{name}")


@pytest.mark.parametrize("op", OPERATORS)
def test_namespaces_agree(op: str) -> None:
    module = importlib.import_module(f"cvkernels.{op}")
    for name in module.__all__:
        assert getattr(ops, name) is getattr(module, name)
        assert name in ops.__all__
    twin = importlib.import_module(f"cvkernels.reference.{op}")
    for name, function in functions(module).items():
        assert getattr(reference, name) is getattr(twin, name)
        assert getattr(reference, name) is not function
        assert name in reference.__all__


@pytest.mark.parametrize("name", FUNCTIONS)
def test_reference_has_the_signature_of_its_operator(name: str) -> None:
    def shape(function: FunctionType) -> list[tuple[str, object, object]]:
        return [
            (p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()
        ]

    assert shape(FUNCTIONS[name]) == shape(getattr(reference, name))


def test_references_add_no_operator() -> None:
    assert set(functions(reference)) == {*FUNCTIONS, "precision"}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("space", [ops, reference], ids=["ops", "reference"])
def test_docstrings_have_their_sections_in_order(space: object, name: str) -> None:
    text = inspect.getdoc(getattr(space, name)) or ""
    found = [line[:-1] for line in text.splitlines() if re.fullmatch(r"[A-Z]\w+:", line)]
    wanted = [*SECTIONS, "Example"] if space is ops else SECTIONS
    assert [section for section in found if section in wanted] == wanted
    arguments = text.split("Args:")[1].split("Returns:")[0]
    for parameter in inspect.signature(getattr(space, name)).parameters:
        assert re.search(rf"^\s+{parameter}: ", arguments, re.M), f"{parameter} is not described"


@pytest.mark.parametrize("op", OPERATORS)
def test_an_operators_tests_are_in_the_matrix(op: str) -> None:
    """Each public function of a family is the subject of an OpSpec."""
    tree = ast.parse((ROOT / "tests/ops" / f"test_{op}.py").read_text())
    named = {
        keyword.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "OpSpec"
        for keyword in node.keywords
        if keyword.arg == "name" and isinstance(keyword.value, ast.Constant)
    }
    assert named == set(functions(importlib.import_module(f"cvkernels.{op}")))


def test_public_docstrings_run() -> None:
    import doctest

    for op in OPERATORS:
        module = importlib.import_module(f"cvkernels.{op}")
        results = doctest.testmod(module)
        assert results.attempted > 0 and results.failed == 0, op
