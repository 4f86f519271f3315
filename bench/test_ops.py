"""Every bench case and every implementation of it as one pytest-benchmark test, grouped by case."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from bench import cli, ops
from bench.harness import Case, Context, Trial, check, first_line, select
from bench.libraries import OURS, REFERENCE, TORCHVISION
from bench.timing import WallClock

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

_SECONDS = 0.1  # per implementation


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    everything = [case for op in ops.names() for case in ops.cases(op)]
    chosen = select(
        everything,
        quick=not metafunc.config.getoption("--bench-all"),
        device=torch.device(metafunc.config.getoption("--bench-device")).type,
    )
    pairs = [(case, name) for case in chosen for name in (OURS, TORCHVISION, REFERENCE)]
    ids = [f"{case.name} {name}".replace(" ", "-") for case, name in pairs]
    metafunc.parametrize(("case", "library"), pairs, ids=ids)


@pytest.fixture(scope="session")
def context(request: pytest.FixtureRequest) -> Context:
    return Context(cli.open_device(request.config.getoption("--bench-device")))


@pytest.fixture(scope="session")
def trials() -> dict[str, Trial]:
    """The trial of the case at hand: the implementations of a case share their tensors."""
    return {}


def test_op(
    benchmark: BenchmarkFixture,
    case: Case,
    library: str,
    context: Context,
    trials: dict[str, Trial],
) -> None:
    if case.name not in trials:
        trials.clear()  # one case's tensors at a time
        trials[case.name] = case.build(context)
    trial = trials[case.name]
    if library == OURS:
        check(trial)
    run = trial.ours if library == OURS else trial.peers.get(library)
    if run is None:
        pytest.skip(f"{library} does not take part in this case")
    clock = WallClock(context.device)
    try:
        seconds = clock.sample(run, 1)
        seconds = min(seconds, clock.sample(run, 1))
    except RuntimeError as error:
        pytest.skip(f"{library} cannot: {first_line(error)}")

    def timed() -> None:
        run()
        if context.device.type == "cuda":
            torch.cuda.synchronize(context.device)

    benchmark.group = case.name
    benchmark.extra_info.update(
        op=case.op,
        direction=case.direction,
        dtype=case.dtype,
        workload=case.workload,
        library=library,
        threads=torch.get_num_threads(),
    )
    inner = max(1, round(2e-4 / seconds))
    rounds = max(3, min(500, round(_SECONDS / (inner * seconds))))
    benchmark.pedantic(timed, rounds=rounds, iterations=inner)  # type: ignore[no-untyped-call]
