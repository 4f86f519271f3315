"""`pytest bench`: the same cases under pytest-benchmark, for its JSON and its comparisons.

By default the quick cases with a tenth of a second each; `--bench-all` runs every case.
pytest-benchmark times one implementation after the other, so its ratios drift with the machine:
`python -m cvkernels bench` interleaves them and is the one to quote.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("cvkernels bench")
    group.addoption("--bench-all", action="store_true", help="every case, not only the quick ones")
    group.addoption("--bench-device", default="cpu", help="cpu (default) or cuda")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("pytest bench needs pytest-benchmark: pip install pytest-benchmark")
