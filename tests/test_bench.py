"""The benches' own logic: statistics, bounds, interleaving, reports and the command line."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

# Last, so that an installed cvkernels is not shadowed by the checkout's.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from bench import acceptance, cli, machine, ops, report, workloads
from bench.harness import (
    EXACT,
    Case,
    Context,
    Mismatch,
    Report,
    Result,
    Trial,
    check,
    compare,
    run_case,
    select,
)
from bench.libraries import Libraries
from bench.machine import Ceilings, Cost
from bench.ops import nms, roi_align, soft_nms
from bench.timing import Candidate, Ratio, Samples, Stats, WallClock, interleave, quantile
from cvkernels import _bench

CEILINGS = Ceilings(copy=((1e6, 100e9), (1e8, 20e9)), flops=1e12, flops64=5e11)
CPU = Context(torch.device("cpu"))


class FakeClock:
    """Gives each function the seconds it carries, and remembers who ran when."""

    max_inner = 1000

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.threads: list[int] = []

    def sample(self, run: Callable[[], object], inner: int) -> float:
        name, value = run()  # type: ignore[misc]
        self.runs.append(name)
        self.threads.append(torch.get_num_threads())
        return float(value)


def candidate(name: str, value: float, threads: int | None = None) -> Candidate:
    return Candidate(name, lambda: (name, value), threads)


# --- statistics ---


def test_quantile_interpolates_between_the_nearest_samples() -> None:
    assert quantile([4, 1, 3, 2], 0.5) == 2.5
    assert quantile([10, 0], 0.1) == 1
    assert quantile([7], 0.9) == 7
    assert quantile(list(range(11)), 0.9) == 9


def test_quantile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected at least one sample"):
        quantile([], 0.5)


def test_stats_of_samples() -> None:
    assert Stats.of([3.0, 1.0, 2.0]) == Stats(median=2.0, p10=1.2, p90=2.8, samples=3)


def test_ratio_pairs_the_rounds_so_that_a_slow_spell_cancels() -> None:
    ours = Samples([1, 10, 1], [1, 10, 1])
    peer = Samples([5, 50, 5], [5, 50, 5])
    assert Ratio.of(ours, peer) == Ratio(median=5, p10=5, p90=5)


# --- interleaving ---


def test_interleave_rotates_who_is_first() -> None:
    clock = FakeClock()
    candidates = [candidate("a", 0.1), candidate("b", 0.1)]
    found = interleave(candidates, clock, budget_s=0.8, min_rounds=2)
    assert "".join(clock.runs) == "ab" + "ab" + "ba" + "ab" + "ba"  # a look at each, then rounds
    assert found["a"].all == [0.1] * 4


def test_interleave_keeps_to_the_budget_but_not_below_the_fewest_rounds() -> None:
    for budget, rounds in ((0.0, 3), (1.0, 10), (1e9, 200)):
        found = interleave([candidate("a", 0.1)], FakeClock(), budget_s=budget)
        assert len(found["a"].rounds) == rounds


def test_interleave_samples_a_fast_candidate_more_often_than_a_slow_one() -> None:
    found = interleave([candidate("fast", 0.001), candidate("slow", 1.0)], FakeClock(), budget_s=0)
    assert (len(found["slow"].all), len(found["slow"].rounds)) == (3, 3)
    assert (len(found["fast"].all), len(found["fast"].rounds)) == (15, 3)


def test_interleave_repeats_short_calls_until_they_fill_a_sample() -> None:
    inner = []

    class Clock(FakeClock):
        def sample(self, run: Callable[[], object], inner_calls: int) -> float:
            inner.append(inner_calls)
            return super().sample(run, inner_calls)

    interleave([candidate("a", 1e-5)], Clock(), budget_s=0, sample_s=1e-3)
    assert inner == [1, 1, 100, 100, 100]


def test_interleave_sets_and_restores_the_threads() -> None:
    before = torch.get_num_threads()
    clock = FakeClock()
    interleave([candidate("a", 0.1, threads=1), candidate("b", 0.1)], clock, budget_s=0)
    assert set(zip(clock.runs, clock.threads, strict=True)) == {("a", 1), ("b", before)}
    assert torch.get_num_threads() == before


def test_wall_clock_is_per_call() -> None:
    calls = []
    seconds = WallClock(torch.device("cpu")).sample(lambda: calls.append(1), 10)
    assert len(calls) == 10
    assert 0 < seconds < 1


# --- bounds ---


def test_bandwidth_is_interpolated_in_the_logarithm_of_the_size() -> None:
    assert CEILINGS.bandwidth(1) == 100e9
    assert CEILINGS.bandwidth(1e7) == pytest.approx(60e9)
    assert CEILINGS.bandwidth(1e12) == 20e9


def test_bound_is_the_larger_of_memory_and_arithmetic() -> None:
    assert CEILINGS.bound_s(Cost(bytes=1e8, flops=1), "float32") == pytest.approx(5e-3)
    assert CEILINGS.bound_s(Cost(bytes=1, flops=1e12), "bfloat16") == pytest.approx(1)
    assert CEILINGS.bound_s(Cost(bytes=1, flops=1e12), "float64") == pytest.approx(2)


def test_percent_of_bound() -> None:
    result = Result("nms", "fwd", "float32", "w", ours="o", bound_s=0.5)
    assert result.percent_of_bound is None
    result.wall["o"] = Stats(2.0, 2.0, 2.0, 1)
    assert result.percent_of_bound == 25
    result.device["o"] = Stats(1.0, 1.0, 1.0, 1)  # where there is a device time, it is the one
    assert result.percent_of_bound == 50


def test_roi_align_cost_by_hand() -> None:
    rois = torch.tensor([[0.0, 0.0, 0.0, 3.0, 3.0], [0.0, 1.0, 1.0, 3.0, 3.0]])
    level = workloads.RoiLevel((1, 3, 8, 8), rois, 1.0)
    data = workloads.RoiInput((level,), (2, 2), 2, True)
    touched, pooled, boxes = 16 * 3 * 4, 2 * 4 * 3 * 4, 2 * 5 * 4  # a 4 x 4 corner, once
    flops = 8 * (2 * 4 * 4) * 3
    assert roi_align.cost(data, "fwd", 4) == Cost(touched + pooled + boxes, flops)
    backward = pooled + boxes + 8 * 8 * 3 * 4
    assert roi_align.cost(data, "fwd+bwd", 4) == Cost(
        touched + pooled + boxes + backward, 2 * flops
    )


def test_roi_align_cost_counts_the_adaptive_grid() -> None:
    rois = torch.tensor([[0.0, 0.0, 0.0, 5.0, 3.0]])  # 3 x 2 samples in each of 2 x 2 bins
    level = workloads.RoiLevel((1, 1, 8, 8), rois, 1.0)
    data = workloads.RoiInput((level,), (2, 2), -1, False)
    assert roi_align.cost(data, "fwd", 4).flops == 8 * 4 * 6


def test_measured_ceilings_are_positive_and_finite() -> None:
    found = machine.measure_ceilings(torch.device("cpu"), seconds=0.01)
    rates = [rate for _, rate in found.copy] + [found.flops, found.flops64]
    assert all(0 < rate < math.inf for rate in rates)
    assert Ceilings.from_dict(json.loads(json.dumps(found.to_dict()))) == found


# --- checking results ---


def test_compare() -> None:
    a = torch.tensor([1.0, 2.0])
    assert compare(a, a.clone(), "float32") == ""
    assert compare(a, a + 1e-3, "bfloat16") == ""
    assert "relative error" in compare(a, a + 1e-3, "float32")
    assert "relative error nan" in compare(a * math.nan, a, "float32")
    assert "shape (2,) instead of (1,)" in compare(a, a[:1], EXACT)
    assert "1 of 2 values differ" in compare(a, torch.tensor([1.0, 3.0]), EXACT)
    assert "result 1" in compare([a, a + 1], [a, a], "float32")
    assert "1 results instead of 2" in compare([a], [a, a], "float32")
    assert compare(torch.empty(0, 3), torch.empty(0, 3), "float32") == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_truth_worked_out_on_the_cpu_serves_for_cuda() -> None:
    a = torch.tensor([1.0, 2.0])
    for match in (EXACT, "float32"):
        assert compare(a.cuda(), a, match) == ""
        assert compare(a.cuda(), a + 1, match) != ""


def test_loops_on_the_cpu_are_no_peers_of_cuda() -> None:
    found = soft_nms.trial(CPU, workloads.uniform(10), "linear")
    assert found.peers.keys() == {"plain C++", "numpy"}
    with FakeTensorMode():  # wherever there is no GPU
        found = soft_nms.trial(Context(torch.device("cuda")), workloads.uniform(10), "linear")
    assert not found.peers
    assert found.expected


def trial(ours: object, peer: object = None, truth: object = None) -> Trial:
    def raising() -> object:
        raise RuntimeError("no such dtype\nand more")

    peers = {} if peer is None else {"peer": raising if peer == "raise" else lambda: peer}
    expected = None if truth is None else lambda: truth
    return Trial(lambda: ours, peers, None, EXACT, expected)


def test_check_tells_who_is_wrong() -> None:
    one, two = torch.tensor([1]), torch.tensor([2])
    assert check(trial(one, one))[1] == ""
    with pytest.raises(Mismatch, match="1 of 1 values differ"):
        check(trial(one, two))
    peers, note = check(trial(one, two, truth=one))
    assert list(peers) == ["peer"]
    assert "peer is off" in note
    peers, note = check(trial(one, "raise", truth=one))
    assert not peers
    assert note == "peer cannot: no such dtype"
    assert "not checked" in check(trial(one))[1]


def test_a_wrong_or_failing_case_is_reported_and_not_timed() -> None:
    def fails(_: Context) -> Trial:
        raise ValueError("no input")

    wrong = Case(
        "nms", "fwd", "float32", "w", lambda _: trial(torch.tensor([1]), torch.tensor([2]))
    )
    result = run_case(wrong, CPU, CEILINGS)
    assert (result.status, result.wall) == ("mismatch", {})
    assert "MISMATCH: 1 of 1 values differ" in report.line(result)
    result = run_case(Case("nms", "fwd", "float32", "w", fails), CPU, CEILINGS)
    assert (result.status, result.message) == ("failed", "ValueError: no input")


# --- reports ---


def ran() -> Report:
    """A report of one real, small case against torchvision itself."""
    pytest.importorskip("torchvision")
    case = next(c for c in ops.cases("nms") if c.workload == "uniform_10")
    context = Context(torch.device("cpu"), Libraries("torchvision", ("torchvision",)))
    found = Report(machine.describe(torch.device("cpu")), CEILINGS)
    found.results.append(run_case(case, context, CEILINGS, budget_s=0.01))
    return found


def test_report_survives_json(tmp_path: Path) -> None:
    found = ran()
    found.write_json(tmp_path / "new" / "r.json")
    values = json.loads((tmp_path / "new" / "r.json").read_text())
    assert Report.from_dict(values) == found
    assert values.keys() == {"schema", "machine", "ceilings", "results"}
    needed = {"cpu", "threads", "torch", "torchvision", "date", "revision", "load_average"}
    assert needed <= values["machine"].keys()
    line = values["results"][0]
    assert line["status"] == "ok", line["message"]
    assert line["wall"].keys() == {"ours", "torchvision"}
    assert line["wall"]["ours"].keys() == {"median", "p10", "p90", "samples"}
    assert line["ratio"]["torchvision"].keys() == {"median", "p10", "p90"}
    assert line["percent_of_bound"] > 0


def test_report_of_another_schema_is_refused() -> None:
    with pytest.raises(ValueError, match="expected schema 1, got 7"):
        Report.from_dict({"schema": 7})
    with pytest.raises(ValueError, match="has no ceilings, machine"):
        Report.from_dict({"schema": 1, "results": []})


def test_line_and_page_show_the_figures() -> None:
    found = ran()
    assert "uniform_10" in report.line(found.results[0])
    assert "torchvision" in report.line(found.results[0])
    found.machine["cpu"] = "a <b>"
    page = report.page(found)
    assert "a &lt;b&gt;" in page
    assert "uniform_10" in page
    assert "http" not in page  # self-contained


def test_lines_are_aligned() -> None:
    cases = [case for op in ops.names() for case in ops.cases(op)]
    widths = report.Widths.of(cases)
    stats = Stats(1.0, 1.0, 1.0, 3)
    columns = set()
    for case in cases:
        result = Result(case.op, case.direction, case.dtype, case.workload, ours="ours")
        result.wall = {"ours": stats, "torch matrices": stats}
        result.ratio = {"torch matrices": Ratio(1.0, 1.0, 1.0)}
        columns.add(report.line(result, widths).index("1.00x"))
    assert len(columns) == 1
    assert report.header(widths).index("ratio") == columns.pop()


def test_seconds() -> None:
    words = [report.seconds(value) for value in (2.5, 0.0123, 4.56e-5, 1e-9, 1234.0)]
    assert words == ["2.5 s", "12.3 ms", "45.6 us", "1 ns", "1234 s"]


def test_plot_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RuntimeError, match="pip install matplotlib"):
        report.require_matplotlib()


def test_plot_writes_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report.plot(ran().results, tmp_path / "p.png", "title")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_slug_names_a_folder() -> None:
    described = {"device": "cpu", "cpu": "Intel(R) Xeon(R) CPU @ 2.10GHz (family 6)", "threads": 2}
    assert machine.slug(described) == "intel-xeon-family-6-2t"
    assert machine.slug({"device": "cuda", "gpu": "NVIDIA H200"}) == "nvidia-h200"


# --- workloads ---


@pytest.mark.parametrize("make", [workloads.rpn, workloads.retinanet, workloads.yolo])
def test_detector_outputs_are_plausible(make: Callable[[], workloads.NmsInput]) -> None:
    data, again = make(), make()
    assert torch.equal(data.boxes, again.boxes)
    assert data.idxs is not None
    assert (data.boxes[:, 2:] > data.boxes[:, :2]).all()
    assert len(data.scores.unique()) == len(data.boxes) == len(data.idxs)
    assert data.idxs.max() < 91


def test_sizes_of_the_workloads() -> None:
    assert len(workloads.rpn().boxes) == 4 * 1000 + 3 * 13 * 21
    assert len(workloads.yolo().boxes) == 8400
    box = workloads.fpn(1000, 7)
    assert [level.shape[2:] for level in box.levels] == [(200, 336), (100, 168), (50, 84), (25, 42)]
    assert sum(len(level.boxes) for level in box.levels) == 1000
    assert all(len(level.boxes) for level in box.levels)


def test_constant_density_keeps_the_density() -> None:
    small, large = workloads.constant_density(1000), workloads.constant_density(16_000)
    assert large.boxes.max() / small.boxes.max() == pytest.approx(4, rel=0.1)


def test_case_names_are_unique_and_quick_ones_exist_for_every_operator() -> None:
    for op in ops.names():
        cases = ops.cases(op)
        assert len({case.name for case in cases}) == len(cases)
        assert 0 < len(select(cases, quick=True)) < len(cases)
    kernels = Path(__file__).resolve().parents[1] / "csrc/kernels"
    assert ops.names() == sorted(path.name for path in kernels.iterdir())


def test_batched_truth_is_a_loop_over_classes() -> None:
    pytest.importorskip("torchvision")
    data = workloads.uniform(200, classes=3)
    assert data.idxs is not None
    keep = nms._per_class(data.boxes, data.scores, data.idxs, 0.5)
    assert (data.scores[keep].diff() < 0).all()
    single = workloads.uniform(200, classes=1)
    assert single.idxs is not None
    from torchvision.ops import nms as peer

    found = nms._per_class(single.boxes, single.scores, single.idxs, 0.5)
    assert torch.equal(found, peer(single.boxes, single.scores, 0.5))


# --- the command line ---


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["roi_align", "--list", "--filter", "FPN_MASK"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["roi_align fwd float32 fpn_mask_100", "roi_align fwd+bwd float32 fpn_mask_100"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["box_iou"], f"expected an operator out of {', '.join(ops.names())}, got 'box_iou'"),
        (["--filter", "zebra"], "no case holds 'zebra'"),
        (["--device", "meta"], "expected device cpu or cuda, got 'meta'"),
    ],
)
def test_bad_command_lines_are_one_clear_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_cuda_where_there_is_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["nms", "--device", "cuda"]) == 2
    assert "is_available() is False" in capsys.readouterr().err


def test_missing_library_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="cvkernels has no nothing"):
        Libraries().our("nms", "nothing")
    monkeypatch.setitem(sys.modules, "cvkernels.nms", None)
    with pytest.raises(RuntimeError, match=r"bench: .*cvkernels\.nms"):
        Libraries().our("nms", "nms")


def test_a_run_writes_json_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchvision")
    files = [tmp_path / "r.json", tmp_path / "r.html"]
    arguments = ["nms", "--noise", "--quick", "--filter", "crowded_10", "--budget", "0.01"]
    status = cli.main([*arguments, "--json", str(files[0]), "--html", str(files[1])])
    assert status == 0, capsys.readouterr()
    assert len(Report.from_dict(json.loads(files[0].read_text())).results) == 2
    assert files[1].read_text().startswith("<!doctype html>")
    assert "crowded_1000" in capsys.readouterr().out


def test_front_finds_the_checkout(capsys: pytest.CaptureFixture[str]) -> None:
    assert _bench.main(["--list", "--quick"]) == 0
    assert "nms fwd float32 uniform_10" in capsys.readouterr().out


def test_front_of_a_bare_wheel_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_bench, "__file__", str(tmp_path / "site" / "cvkernels" / "_bench.py"))
    monkeypatch.chdir(tmp_path)
    assert _bench.main([]) == 2
    assert "Run it from a checkout" in capsys.readouterr().err


# --- acceptance ---


def test_growth_is_the_exponent() -> None:
    sizes = [1e4, 1e5, 1e6]
    assert acceptance.growth(sizes, [3e-3 * (n / 1e4) ** 1.5 for n in sizes]) == pytest.approx(1.5)


def test_acceptance_rows_pass_and_fail_on_the_ratio() -> None:
    found = {"ours": Samples([1.0], [1.0]), "peer": Samples([5.0], [5.0])}
    assert acceptance._at_least(3, "w", found, "ours", "peer", 5.0, {}).passed
    row = acceptance._at_least(3, "w", found, "ours", "peer", 5.1, {})
    assert not row.passed
    assert row.measured == 5
    assert "FAIL" in str(row)
    row = acceptance._at_least(3, "w", found, "bf16", "peer", 1.0, {"bf16": "no kernel"})
    assert (row.measured, row.passed, row.detail) == (None, False, "bf16: no kernel")
