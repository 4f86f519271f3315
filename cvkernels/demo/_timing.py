"""Recording the calls of replaced operators, checking their results and timing them."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

CLEAR_TURNS = 5  # Fewer turns that happen to agree say nothing about which side is faster.
WHOLE_SECONDS = 12.0  # Spent on timing each detector as a whole.


@dataclass
class Row:
    """One line of the table. Times are milliseconds for all calls of one run of the detector."""

    detector: str
    operator: str
    calls: int
    torchvision_ms: float | None = None
    cvkernels_ms: float | None = None
    ratio: float | None = None
    agree: bool | None = None
    note: str = ""


Call = tuple[Any, ...]


def _kept(argument: Any) -> Any:
    """A copy that later in-place changes by the detector do not reach."""
    return argument.detach().clone() if hasattr(argument, "detach") else argument


def run_recorded(detector: Callable[[], Any]) -> tuple[Any, float, dict[str, list[Call]], Any]:
    """Runs the detector with our operators in place.

    Returns:
        Its result, the seconds it took, the arguments of every call of a replaced operator, and
        the report of what was replaced.
    """
    import torch

    from cvkernels.compat import torchvision as compat

    calls: dict[str, list[Call]] = {}

    def keep(name: str, arguments: Call) -> None:
        calls.setdefault(name, []).append(tuple(map(_kept, arguments)))

    with torch.inference_mode(), compat.patched(on_call=keep) as report:
        start = time.perf_counter()
        result = detector()
        seconds = time.perf_counter() - start
    assert report.counts == {name: len(calls.get(name, [])) for name in report.operators}
    return result, seconds, calls, report


def operator(name: str) -> Callable[..., Any]:
    """The operator of that name in a report: whichever implementation is in place when called."""
    import torch
    import torchvision.ops

    if name == "torchvision.ops.MultiScaleRoIAlign":
        return lambda *arguments: torchvision.ops.poolers._multiscale_roi_align(*arguments)
    if "::" not in name:
        return lambda *arguments: torchvision.ops.boxes.batched_nms(*arguments)
    overload = getattr(torch.ops.torchvision, name.partition("::")[2]).default
    return lambda *arguments: overload(*arguments)


def compare(ours: Any, theirs: Any) -> tuple[bool, str]:
    """Whether two results agree: indices exactly, floats to float32 accuracy of their largest."""
    import torch

    ours, theirs = torch.as_tensor(ours), torch.as_tensor(theirs)
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False, f"shape {tuple(ours.shape)} and {tuple(theirs.shape)}"
    if torch.equal(ours, theirs):
        return True, ""
    if not ours.is_floating_point():
        return False, f"{int((ours != theirs).sum())} of {ours.numel()} differ"
    difference = float((ours.double() - theirs.double()).abs().max())
    scale = max(float(theirs.double().abs().max()), 1e-30)
    return difference <= 1e-5 * scale, f"largest difference {difference / scale:.0e} of the largest"


def compare_kept(name: str, arguments: Call, ours: Any, theirs: Any) -> tuple[bool, str]:
    """Whether two results of an NMS agree. Runs torchvision's nms, so outside the patch.

    Boxes of equal score may come in any order. Where batched_nms differs, torchvision's nms of one
    class after the other decides: what torchvision's batched_nms does, shifting the coordinates of
    each class, rounds them.
    """
    import torch

    if torch.equal(ours, theirs):
        return True, ""
    boxes, scores, *classes, threshold = arguments
    descending = bool((scores[ours].diff() <= 0).all())
    if descending and torch.equal(ours.sort()[0], theirs.sort()[0]):
        return True, "equal scores in another order"
    if classes and descending:
        kept = []
        for one in classes[0].unique():
            rows = (classes[0] == one).nonzero()[:, 0]
            kept.append(rows[torch.ops.torchvision.nms(boxes[rows], scores[rows], threshold)])
        if torch.equal(ours.sort()[0], torch.cat(kept).sort()[0]):
            return True, f"as torchvision's nms class by class; {name} rounds"
    return False, f"{len(ours)} and {len(theirs)} boxes are kept, or others"


def compare_all(results: Sequence[tuple[bool, str]]) -> tuple[bool, str]:
    """One verdict from that of each call: the first disagreement, or the last note."""
    for agree, note in results:
        if not agree:
            return False, note
    return True, next((note for _, note in reversed(results) if note), "")


def interleaved(
    run: Callable[[], Any], *, seconds: float, least: int = 3, most: int = 51
) -> tuple[float, float, bool]:
    """Times ``run`` with torchvision's operators and with ours, by turns.

    ``run`` must have run once already, both ways.

    Returns:
        The two medians in milliseconds, and whether turn after turn the same one was faster.
    """
    from cvkernels.compat import torchvision as compat

    times: dict[bool, list[float]] = {False: [], True: []}
    stop = time.perf_counter() + seconds
    for turn in range(1, most + 1):
        for ours in (False, True) if turn % 2 else (True, False):
            with compat.patched() if ours else contextlib.nullcontext():
                start = time.perf_counter()
                run()
                elapsed = time.perf_counter() - start
            times[ours].append(elapsed * 1e3)
        if turn >= least and time.perf_counter() > stop:
            break
    faster = {ours < theirs for theirs, ours in zip(times[False], times[True], strict=True)}
    clear = len(faster) == 1 and len(times[True]) >= CLEAR_TURNS
    return statistics.median(times[False]), statistics.median(times[True]), clear


def _why_unused(name: str) -> str:
    """What the table says of a replaced operator that the detector did not call."""
    if name == "torchvision::nms":
        return "not called: batched_nms no longer needs it"
    if name.endswith("_backward"):
        return "not called: training only"
    return "not called by this detector"


def measure(
    detector: Any, calls: dict[str, list[Call]], report: Any, result: Any, *, seconds: float
) -> list[Row]:
    """The table's rows for one detector: each replaced operator, then the detector as a whole."""
    import torch

    from cvkernels.compat import torchvision as compat

    rows = []
    called = [name for name in report.operators if calls.get(name)]
    with torch.inference_mode():
        for name in report.operators:
            row = Row(detector.name, name, len(calls.get(name, [])))
            rows.append(row)
            if not row.calls:
                row.note = _why_unused(name)
                continue
            function = operator(name)
            with compat.patched():
                ours = [function(*arguments) for arguments in calls[name]]
            theirs = [function(*arguments) for arguments in calls[name]]
            row.agree, row.note = compare_all(
                [
                    compare_kept(name, arguments, *pair)
                    if pair[1].dtype is torch.int64
                    else compare(*pair)
                    for arguments, *pair in zip(calls[name], ours, theirs, strict=True)
                ]
            )

            def replay(function: Callable[..., Any] = function, name: str = name) -> None:
                for arguments in calls[name]:
                    function(*arguments)

            row.torchvision_ms, row.cvkernels_ms, _ = interleaved(
                replay, seconds=seconds / len(called)
            )
            row.ratio = row.torchvision_ms / row.cvkernels_ms
        whole = Row(detector.name, "the whole detector", 1)
        rows.append(whole)
        theirs = detector()
        whole.agree, whole.note = compare_detections(result, theirs)
        whole.torchvision_ms, whole.cvkernels_ms, clear = interleaved(
            detector, seconds=WHOLE_SECONDS, most=CLEAR_TURNS
        )
        if clear:
            whole.ratio = whole.torchvision_ms / whole.cvkernels_ms
        else:  # The operators are a small part of it, and other work on the machine is not.
            whole.note += ", times equal within noise"
    return rows


def compare_detections(ours: Sequence[Any], theirs: Sequence[Any]) -> tuple[bool, str]:
    """Whether a detector's results agree: boxes, scores and so on, detection by detection.

    Detections are paired by box and score, to 1e-3 of the largest value. Rounding may bring another
    detection over a threshold now and then, so nine in ten have to agree; the note says how many.
    """
    import numpy as np

    mine = [np.asarray(part, dtype=np.float64) for part in ours]
    peer = [np.asarray(part, dtype=np.float64) for part in theirs]
    count = max(len(mine[0]), len(peer[0]))
    scales = [max(float(np.abs(part).max(initial=0.0)), 1e-30) for part in peer]
    left = list(range(len(peer[0])))
    matched = 0
    for row in range(len(mine[0])):
        for other in left:
            if all(
                np.abs(a[row] - b[other]).max() <= 1e-3 * scale
                for a, b, scale in zip(mine, peer, scales, strict=True)
            ):
                left.remove(other)
                matched += 1
                break
    if matched == count:
        return True, f"{count} detection{'' if count == 1 else 's'}"
    return matched >= 0.9 * count, f"{matched} of {count} detections match"
