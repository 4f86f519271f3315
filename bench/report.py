"""A report as lines of text, as a plot, and as a page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness import Case, Report, Result

_PEER = 14  # the longest name of a first peer


@dataclass(frozen=True)
class Widths:
    """How wide the columns of operators and workloads are."""

    op: int = 0
    workload: int = 0

    @classmethod
    def of(cls, cases: Sequence[Case]) -> Widths:
        """As wide as the longest name."""
        return cls(max(len(c.op) for c in cases), max(len(c.workload) for c in cases))


def header(widths: Widths) -> str:
    """The line above the first `line`."""
    return (
        f"{'op':<{widths.op}} {'pass':<8} {'dtype':<9} {'workload':<{widths.workload}} "
        f"{'ours':>9}  {'peer':>9} {'':<{_PEER}}{'ratio':>8} {'(p10..p90)':>15} {'% of bound':>11}"
    )


def line(result: Result, widths: Widths = Widths()) -> str:
    """One workload: our time, the first peer's, their ratio and its spread, and the bound."""
    start = (
        f"{result.op:<{widths.op}} {result.direction:<8} {result.dtype:<9} "
        f"{result.workload:<{widths.workload}} "
    )
    if result.status != "ok":
        return f"{start}{result.status.upper()}: {result.message}"
    ours = result.times[result.ours]
    text = f"{start}{seconds(ours.median):>9}  "
    peer = next(iter(result.ratio), None)
    if peer is None:
        text += f"{'-':>9} {'':<{_PEER}}{'-':>8} {'':>15}"
    else:
        ratio = result.ratio[peer]
        spread = f"({ratio.p10:.3g}..{ratio.p90:.3g})"
        text += f"{seconds(result.times[peer].median):>9} {peer:<{_PEER}}"
        text += f"{ratio.median:>7.2f}x {spread:>15}"
    percent = result.percent_of_bound
    text += f" {'-' if percent is None else f'{percent:.2g}%':>11}"
    if result.device:
        text += f"  wall {seconds(result.wall[result.ours].median)}"
        if peer is not None:
            text += f" / {seconds(result.wall[peer].median)}"
    return text + (f"  # {result.message}" if result.message else "")


def seconds(value: float) -> str:
    """A time with three digits and its unit: `12.3 us`."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}" if value < 1000 * scale else f"{value:.0f} s"
    return f"{value / 1e-9:.3g} ns"


def machine_lines(report: Report) -> list[str]:
    """The machine and its ceilings, for the top of a printed report."""
    m, c = report.machine, report.ceilings
    copy = ", ".join(f"{_size(size)} {rate / 1e9:.0f}" for size, rate in c.copy)
    lines = [
        f"{m.get('gpu') or m['cpu']}, {m['threads']} threads, torch {m['torch']}, "
        f"torchvision {m['torchvision'] or 'absent'}, revision {m['revision'] or 'unknown'}",
        f"ceilings: {c.flops / 1e9:.0f} GFLOP/s fp32, {c.flops64 / 1e9:.0f} fp64; "
        f"copy in GB/s by bytes moved: {copy}",
    ]
    if m["device"] == "cpu" and m["load_average"] > 0.5:
        lines.append(
            f"WARNING: load average {m['load_average']} on {m['cpus']} CPUs before the start:"
            " other work shares this machine, read the spread before the ratio"
        )
    return lines


def _size(value: float) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= scale:
            return f"{value / scale:g} {unit}"
    return f"{value:g} B"


def plot(results: Sequence[Result], path: Path, title: str) -> None:
    """Bars of the ratio to each peer, one per workload, on a logarithmic axis.

    Raises:
        RuntimeError: matplotlib is absent.
        ValueError: No result has a peer.
    """
    require_matplotlib()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bars = [(r, peer, ratio) for r in results for peer, ratio in r.ratio.items()]
    if not bars:
        raise ValueError("bench: nothing to plot, no workload has a peer")
    figure, axes = pyplot.subplots(figsize=(10, 1.2 + 0.28 * len(bars)), layout="constrained")
    peers = list(dict.fromkeys(peer for _, peer, _ in bars))
    for place, (_, peer, ratio) in enumerate(bars):
        low, high = max(0.0, ratio.median - ratio.p10), max(0.0, ratio.p90 - ratio.median)
        color = f"C{peers.index(peer)}"
        whiskers = {"xerr": [[low], [high]], "ecolor": "0.4", "capsize": 2}
        axes.barh(place, ratio.median - 1, left=1, color=color, **whiskers)
        end = max(ratio.median, ratio.p90, 1) * 1.05
        axes.text(end, place, f"{ratio.median:.3g}x", va="center", fontsize=8)
    labels = [f"{r.op} {r.direction} {r.dtype} {r.workload}" for r, _, _ in bars]
    axes.set_yticks(range(len(bars)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="0.2", linewidth=1)
    axes.set_xlabel("times faster than the peer (median; whiskers p10 to p90 of the rounds)")
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=f"C{i}") for i in range(len(peers))]
    axes.legend(handles, peers, loc="lower right")
    axes.set_title(title, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    pyplot.close(figure)


def require_matplotlib() -> None:
    """Fails before the timing, not after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise RuntimeError("bench: --plot needs matplotlib: pip install matplotlib") from None


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem;
       color: #1c1e21; background: #fff }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #e3e5e8;
         white-space: nowrap }
td.n, th.n { text-align: right }
td.bar { width: 30%; min-width: 10rem }
td.bar div { height: .8rem; background: #3b7dd8; border-radius: 2px }
td.bar div.slow { background: #d8603b }
td.note { white-space: normal; color: #65686c; font-size: 13px }
.bad { color: #b3261e; font-weight: 600 }
dt { float: left; clear: left; width: 13rem; color: #65686c } dd { margin-left: 13.5rem }
@media (prefers-color-scheme: dark) { body { color: #e4e6ea; background: #16181b }
th, td { border-color: #33363b } td.note, dt { color: #a0a4aa } }
"""


def page(report: Report) -> str:
    """The report as one HTML page that needs nothing else."""
    best = max((r.median for x in report.results for r in x.ratio.values()), default=1.0)
    rows = "".join(row for result in report.results for row in _rows(result, best))
    device = report.machine.get("gpu") or report.machine["cpu"]
    facts = {**report.machine, "fp32 ceiling": f"{report.ceilings.flops / 1e9:.0f} GFLOP/s"}
    facts["copy ceiling"] = ", ".join(
        f"{_size(size)}: {rate / 1e9:.0f} GB/s" for size, rate in report.ceilings.copy
    )
    listing = "".join(
        f"<dt>{html.escape(str(k))}</dt><dd>{html.escape(str(v))}</dd>" for k, v in facts.items()
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>cvkernels bench: {html.escape(str(device))}</title><style>{_STYLE}</style></head><body>
<h1>cvkernels bench</h1>
<p>{html.escape(str(device))}. Ours and the peer timed interleaved in one process; medians, with
p10 and p90 under the pointer. Bars are the ratio on a logarithmic scale. The bound is the larger of
traffic over copy bandwidth and arithmetic over the multiply-add rate, both measured in the same
process.</p>
<table><thead><tr><th>operator</th><th>pass</th><th>dtype</th><th>workload</th>
<th class="n">ours</th><th class="n">peer</th><th></th><th class="n">ratio</th><th>times faster</th>
<th class="n">% of bound</th><th>note</th></tr></thead><tbody>{rows}</tbody></table>
<h2>Machine</h2><dl>{listing}</dl></body></html>
"""


def _rows(result: Result, best: float) -> list[str]:
    name = [result.op, result.direction, result.dtype, result.workload]
    start = "".join(f"<td>{html.escape(part)}</td>" for part in name)
    if result.status != "ok":
        words = html.escape(f"{result.status}: {result.message}")
        return [f'<tr>{start}<td colspan="7" class="bad">{words}</td></tr>']
    percent = result.percent_of_bound
    bound = "" if percent is None else f"{percent:.2g}%"
    note = html.escape(result.message)
    peers: list[Any] = list(result.ratio) or [None]
    rows = []
    for peer in peers:
        cells = f'<td class="n">{_spread(result, result.ours)}</td>'
        if peer is None:
            cells += '<td class="n">-</td><td></td><td class="n">-</td><td class="bar"></td>'
        else:
            ratio = result.ratio[peer]
            backend = html.escape(result.backend.get(peer, ""))
            cells += f'<td class="n">{_spread(result, peer)}</td><td title="{backend}">{peer}</td>'
            cells += f'<td class="n">{ratio.median:.2f}x</td>{_bar(ratio.median, best)}'
        rows.append(
            f'<tr>{start}{cells}<td class="n">{bound}</td><td class="note">{note}</td></tr>'
        )
    return rows


def _spread(result: Result, library: str) -> str:
    stats = result.times[library]
    return (
        f'<span title="{seconds(stats.p10)} .. {seconds(stats.p90)}">{seconds(stats.median)}</span>'
    )


def _bar(ratio: float, best: float) -> str:
    import math

    span = math.log(max(best, 2.0))
    width = min(100.0, 100.0 * abs(math.log(max(ratio, 1e-9))) / span)
    kind = ' class="slow"' if ratio < 1 else ""
    return f'<td class="bar"><div{kind} style="width:{width:.1f}%"></div></td>'
