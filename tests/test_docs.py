"""The documents are true: their Python runs, prints what is shown, and what they name exists."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    ROOT / name
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "bench/README.md",
        "csrc/README.md",
        "csrc/gemm/README.md",
    )
]
pytestmark = [
    pytest.mark.native,  # once is enough
    pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="needs the source tree"),
]

SHOWN = re.compile(r"^\s*print\(.*\)  # (.+)$", re.M)  # print(...)  # what it prints
# Names of files and folders between backticks; patterns and names with <op> are not looked up.
PATH = re.compile(r"`((?:bench|cmake|csrc|cvkernels|requirements|scripts|tests)/[\w./-]*)`")
SOURCES = ("*.py", "*.cpp", "*.h", "*.sh", "CMakeLists.txt")


def blocks(document: Path, language: str) -> list[str]:
    if not document.exists():
        return []
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.M | re.S)


def by_name(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("number", range(len(blocks(ROOT / "README.md", "python"))))
def test_readme_runs_and_prints_what_it_shows(number: int) -> None:
    block = blocks(ROOT / "README.md", "python")[number]
    if "torchvision" in block:
        pytest.importorskip("torchvision")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, f"README.md, Python block {number}", "exec"), {})
    shown = SHOWN.findall(block)
    assert block.count("print(") == len(shown)
    # A print in a loop is shown once.
    assert list(dict.fromkeys(printed.getvalue().splitlines())) == list(dict.fromkeys(shown))


def test_readme_has_blocks() -> None:
    assert len(blocks(ROOT / "README.md", "python")) >= 4


def test_numpy_docstrings_run() -> None:  # those of the operators: test_layout.py
    import cvkernels.numpy

    results = doctest.testmod(cvkernels.numpy)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("document", DOCUMENTS, ids=by_name)
def test_files_named_exist(document: Path) -> None:
    text = document.read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    for link in links:
        if link and "://" not in link:
            assert (document.parent / link).exists(), link
    if document.parent == ROOT:  # elsewhere names are relative to the folder
        for name in PATH.findall(text):
            assert (ROOT / name).exists(), name


def test_verbs_and_variables_named_exist() -> None:
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    verbs = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make (\w+)", text)) <= verbs
    assert set(re.findall(r"^\$ make (\w+)", text, re.M)) <= verbs
    folders = [ROOT, *(ROOT / name for name in ("csrc", "cvkernels", "scripts"))]
    sources = "\n".join(
        path.read_text()
        for folder in folders
        for pattern in SOURCES
        for path in (folder.glob(pattern) if folder == ROOT else folder.rglob(pattern))
    )
    named = set(re.findall(r"CVKERNELS_[A-Z_]+\b", text))
    assert named
    assert {name for name in named if name not in sources} == set()
