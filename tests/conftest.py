"""Markers, the parameters of the generic operator tests and the Hypothesis profile."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # tests import harness
pytest.register_assert_rewrite("harness")

import harness  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile(
    "cvkernels",
    derandomize=True,  # the same examples on every machine and run
    deadline=None,
    max_examples=20 if harness.EMULATED else 100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("cvkernels")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: needs tens of seconds or gigabytes")
    config.addinivalue_line("markers", "gpu: needs a CUDA device")
    config.addinivalue_line("markers", "native: says nothing about emulated CUDA kernels")
    # Tolerances are float32's; TF32 is tested in C++ (tests/cpp/tapped_mma_test.cpp).
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Ends a pytest-xdist worker whose CUDA context is broken: its other tests would all fail."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed and harness.HAVE_CUDA and os.environ.get("PYTEST_XDIST_WORKER"):
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            print(f"broke the GPU: {item.nodeid}\n{report.longreprtext}", file=sys.stderr)
            sys.stderr.flush()
            os._exit(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if harness.EMULATED and item.get_closest_marker("native"):
            item.add_marker(pytest.mark.skip(reason="not about the emulated kernels"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    spec = getattr(metafunc.cls, "spec", None)
    if spec is not None:
        harness.parametrize(metafunc, spec)


@pytest.fixture(params=harness.DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param
