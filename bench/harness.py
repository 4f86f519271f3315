"""What a bench is, how one is run, and what a report holds.

A bench module in `bench/ops/` gives a list of `Case`s. Running one builds its inputs, checks our
result against an oracle, and only then times ours and the peers, interleaved. A wrong result is
reported as such and never timed: a fast wrong answer is not a figure.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.libraries import Libraries
from bench.machine import Ceilings, Cost, describe, measure_ceilings
from bench.timing import Candidate, Clock, DeviceClock, Ratio, Stats, WallClock, interleave

SCHEMA = 1
EXACT = "exact"

_TOLERANCE = {  # largest error allowed, relative to the largest value expected
    "float64": 1e-12,
    "float32": 2e-5,
    "float16": 2e-3,
    "bfloat16": 1.6e-2,
    "tf32": 2e-3,
}


class Mismatch(AssertionError):
    """Our result is not the expected one."""


@dataclass(frozen=True)
class Trial:
    """One workload made concrete: calls to time and the truth to hold them against.

    Attributes:
        ours: Our call.
        peers: The peers' calls by library name, the most important first.
        cost: Least traffic and arithmetic; None where no honest bound is known.
        expected: Gives the right result; None takes the first peer's.
        match: `EXACT` for indices, else a dtype name that selects the tolerance.
        note: Something the reader of the figure should know.
    """

    ours: Callable[[], Any]
    peers: dict[str, Callable[[], Any]]
    cost: Cost | None
    match: str
    expected: Callable[[], Any] | None = None
    note: str = ""


@dataclass(frozen=True)
class Context:
    """Where and with what to build a trial."""

    device: torch.device
    libraries: Libraries = field(default_factory=Libraries)


@dataclass(frozen=True)
class Case:
    """A benchmark before its inputs exist; `quick` ones make up `--quick` and `pytest bench`.

    Attributes:
        device: The kind of device it is for, "cpu" or "cuda"; empty for any.
    """

    op: str
    direction: str  # "fwd" or "fwd+bwd"
    dtype: str
    workload: str
    build: Callable[[Context], Trial]
    quick: bool = False
    device: str = ""

    @property
    def name(self) -> str:
        return f"{self.op} {self.direction} {self.dtype} {self.workload}"


@dataclass
class Result:
    """One line of the report.

    Attributes:
        status: "ok", "mismatch" (wrong result), or "failed" (an exception).
        wall: Wall time by library.
        device: Device time with a cold L2 by library; empty on CPU.
        ratio: Peer over ours by peer; of the device time on CUDA.
        bound_s: Shortest possible time by the machine's ceilings.
        message: Why it is not ok, or the trial's note.
    """

    op: str
    direction: str
    dtype: str
    workload: str
    status: str = "ok"
    ours: str = ""
    wall: dict[str, Stats] = field(default_factory=dict)
    device: dict[str, Stats] = field(default_factory=dict)
    ratio: dict[str, Ratio] = field(default_factory=dict)
    backend: dict[str, str] = field(default_factory=dict)
    cost: Cost | None = None
    bound_s: float | None = None
    message: str = ""

    @property
    def times(self) -> dict[str, Stats]:
        """The times to judge by: the device's where there is one."""
        return self.device or self.wall

    @property
    def percent_of_bound(self) -> float | None:
        if self.bound_s is None or self.ours not in self.times:
            return None
        return 100.0 * self.bound_s / self.times[self.ours].median


def run_case(
    case: Case,
    context: Context,
    ceilings: Ceilings | None,
    *,
    budget_s: float = 1.0,
    min_rounds: int = 3,
) -> Result:
    """Checks and times one case; a failure becomes part of the result instead of ending the run."""
    result = Result(case.op, case.direction, case.dtype, case.workload, ours=context.libraries.ours)
    try:
        trial = case.build(context)
        peers, result.message = check(trial)
        result.cost = trial.cost
        if trial.cost is not None and ceilings is not None:
            result.bound_s = ceilings.bound_s(trial.cost, case.dtype)
        # In a run of torchvision against itself both go by the same library name.
        ours = result.ours = "ours" if result.ours in peers else result.ours
        candidates = [Candidate(name, run) for name, run in {ours: trial.ours, **peers}.items()]
        result.backend = {c.name: backend(c.name, context.device) for c in candidates}
        for clock, times in _clocks(context.device, result):
            with _nvtx(case.name, context.device):
                samples = interleave(candidates, clock, budget_s=budget_s, min_rounds=min_rounds)
            times.update({name: taken.stats for name, taken in samples.items()})
            result.ratio = {p: Ratio.of(samples[ours], samples[p]) for p in peers}
    except Mismatch as error:
        result.status, result.message = "mismatch", str(error)
    except Exception as error:  # a bench must reach its last line whatever one case does
        result.status, result.message = "failed", f"{type(error).__name__}: {first_line(error)}"
    return result


def check(trial: Trial) -> tuple[dict[str, Callable[[], Any]], str]:
    """Compares ours with the truth; a difference is a `Mismatch`.

    Returns:
        The peers that can run this case at all, and notes: who cannot, and which peer is off.
    """
    notes = [trial.note] if trial.note else []
    peers: dict[str, Callable[[], Any]] = {}
    expected = trial.expected() if trial.expected else None
    for name, run in trial.peers.items():
        try:
            answer = run()
        except Exception as error:  # a peer may lack a dtype; that is worth knowing, not fatal
            notes.append(f"{name} cannot: {first_line(error)}")
            continue
        peers[name] = run
        if expected is None:
            expected = answer
        elif difference := compare(answer, expected, trial.match):
            notes.append(f"{name} is off: {difference}")
    if expected is None:
        notes.append("result not checked: no peer")
    elif difference := compare(trial.ours(), expected, trial.match):
        raise Mismatch(difference)
    return peers, "; ".join(notes)


def compare(actual: Any, expected: Any, match: str) -> str:
    """What is different, in words; empty where the two agree."""
    if isinstance(expected, (tuple, list)):
        if len(actual) != len(expected):
            return f"{len(actual)} results instead of {len(expected)}"
        pairs = enumerate(zip(actual, expected, strict=True))
        found = ((i, compare(a, e, match)) for i, (a, e) in pairs)
        return next((f"result {i}: {words}" for i, words in found if words), "")
    if actual.shape != expected.shape:
        return f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    expected = expected.to(actual.device)  # a truth may be worked out on the CPU
    if match == EXACT:
        wrong = int((actual != expected).sum())
        return f"{wrong} of {expected.numel()} values differ" if wrong else ""
    if expected.numel() == 0:
        return ""
    actual, expected = actual.double(), expected.double()
    scale = max(float(expected.abs().max()), 1e-30)
    error = float((actual - expected).abs().max()) / scale
    if error <= _TOLERANCE[match]:  # written so that NaN is not within tolerance
        return ""
    return f"relative error {error:.1e} above {_TOLERANCE[match]:.1e} for {match}"


def _clocks(device: torch.device, result: Result) -> Iterator[tuple[Clock, dict[str, Stats]]]:
    yield WallClock(device), result.wall
    if device.type == "cuda":
        yield DeviceClock(device), result.device


@contextlib.contextmanager
def _nvtx(name: str, device: torch.device) -> Iterator[None]:
    """Names the case in an nsys timeline."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.nvtx.range_push(name)
    try:
        yield
    finally:
        torch.cuda.nvtx.range_pop()


def backend(library: str, device: torch.device) -> str:
    """What really runs under a library's name."""
    if library == "reference":
        return f"pure PyTorch {torch.__version__}"
    if library == "torchvision":
        import torchvision

        return f"torchvision {torchvision.__version__} {device.type.upper()} kernels"
    return f"{library} {device.type.upper()} kernels"


def first_line(error: BaseException) -> str:
    """The error in one line, without the source location that some libraries put before it."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"^.*\.(?:cpp|cu|cuh|h):\d+, ", "", line)[:200]


@dataclass
class Report:
    """A whole run; `to_dict` is the JSON of `bench/results/`."""

    machine: dict[str, Any]
    ceilings: Ceilings
    results: list[Result] = field(default_factory=list)

    @classmethod
    def start(cls, device: torch.device, *, ceiling_s: float = 2.0) -> Report:
        return cls(describe(device), measure_ceilings(device, seconds=ceiling_s))

    def to_dict(self) -> dict[str, Any]:
        lines = [
            asdict(result) | {"percent_of_bound": result.percent_of_bound}
            for result in self.results
        ]
        return {
            "schema": SCHEMA,
            "machine": self.machine,
            "ceilings": self.ceilings.to_dict(),
            "results": lines,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Report:
        """Reads what `to_dict` gave; `ValueError` names what is missing or foreign."""
        if values.get("schema") != SCHEMA:
            raise ValueError(f"bench: expected schema {SCHEMA}, got {values.get('schema')!r}")
        missing = {"machine", "ceilings", "results"} - values.keys()
        if missing:
            raise ValueError(f"bench: the report has no {', '.join(sorted(missing))}")
        results = []
        for line in values["results"]:
            line = {key: value for key, value in line.items() if key != "percent_of_bound"}
            for key in ("wall", "device"):
                line[key] = {name: Stats(**stats) for name, stats in line[key].items()}
            line["ratio"] = {name: Ratio(**ratio) for name, ratio in line["ratio"].items()}
            line["cost"] = Cost(**line["cost"]) if line["cost"] else None
            results.append(Result(**line))
        return cls(values["machine"], Ceilings.from_dict(values["ceilings"]), results)

    def write_json(self, path: Path) -> None:
        write_json(path, self.to_dict())


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes JSON, making the folder; used by every report, so that all look alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def select(
    cases: Sequence[Case], *, quick: bool, pattern: str = "", device: str = "cpu"
) -> list[Case]:
    """The quick cases or all, of these the ones whose name contains `pattern` and for `device`."""
    return [
        case
        for case in cases
        if (case.quick or not quick)
        and pattern.lower() in case.name.lower()
        and case.device in ("", device)
    ]
