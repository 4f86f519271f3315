"""Clocks, interleaving and the statistics of samples.

Two implementations timed one after the other on a shared machine measure the machine's mood. Here
they take turns, a round at a time and in rotating order, so that a slow spell falls on both.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class Stats:
    """Median and spread of the samples of one implementation, in seconds per call."""

    median: float
    p10: float
    p90: float
    samples: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Stats:
        return cls(
            quantile(samples, 0.5), quantile(samples, 0.1), quantile(samples, 0.9), len(samples)
        )


def quantile(samples: Sequence[float], q: float) -> float:
    """The q-quantile with linear interpolation between the two nearest samples."""
    if not samples:
        raise ValueError("quantile: expected at least one sample, got none")
    ordered = sorted(samples)
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@dataclass(frozen=True)
class Candidate:
    """One thing to time: a call without arguments and, if it matters, its number of threads."""

    name: str
    run: Callable[[], object]
    threads: int | None = None


class Clock(Protocol):
    """Measures calls. `max_inner` caps the calls per sample: 1 where each one needs preparation."""

    max_inner: int

    def sample(self, run: Callable[[], object], inner: int) -> float:
        """Seconds per call over `inner` calls."""


class WallClock:
    """Time as the caller feels it; on CUDA from an idle device until the work is done."""

    max_inner = 100_000

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            self.max_inner = 1

    def sample(self, run: Callable[[], object], inner: int) -> float:
        cuda = self._device.type == "cuda"
        if cuda:
            torch.cuda.synchronize(self._device)
        start = time.perf_counter()
        for _ in range(inner):
            run()
        if cuda:
            torch.cuda.synchronize(self._device)
        return (time.perf_counter() - start) / inner


class DeviceClock:
    """Time between two events on the CUDA stream, with a cold L2.

    Before each call a buffer four times the L2 is overwritten, and the stream is kept busy for a
    moment so that the host is ahead and its launch cost is not counted. A call that waits for the
    device (torchvision's NMS does) is charged for the gap that this leaves on the device.
    """

    max_inner = 1
    _HEAD_START_CYCLES = 1_000_000  # about half a millisecond

    def __init__(self, device: torch.device) -> None:
        cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 1 << 26)
        self._device = device
        self._flush = torch.empty(4 * cache, dtype=torch.uint8, device=device)

    def sample(self, run: Callable[[], object], inner: int) -> float:
        total = 0.0
        for _ in range(inner):
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            self._flush.zero_()
            torch.cuda._sleep(self._HEAD_START_CYCLES)
            start.record()
            run()
            end.record()
            torch.cuda.synchronize(self._device)
            total += start.elapsed_time(end) * 1e-3
        return total / inner


@dataclass(frozen=True)
class Samples:
    """What one candidate showed: every sample, and the median of each round."""

    all: list[float]
    rounds: list[float]

    @property
    def stats(self) -> Stats:
        return Stats.of(self.all)


def interleave(
    candidates: Sequence[Candidate],
    clock: Clock,
    *,
    budget_s: float = 1.0,
    min_rounds: int = 3,
    max_rounds: int = 200,
    sample_s: float = 5e-4,
) -> dict[str, Samples]:
    """Times the candidates in turn until the budget is spent.

    A sample is one call, or as many as fill `sample_s`. Where one candidate is far slower than
    another, the fast one is sampled up to five times a round, so that its median does not rest on
    three samples.

    Args:
        candidates: What to time; names are unique. Each is called once more beforehand, to warm up.
        clock: How to time.
        budget_s: Seconds to spend; `min_rounds` wins where the two disagree.
        min_rounds: Fewest rounds.
        max_rounds: Most rounds.
        sample_s: Shortest time worth measuring.

    Returns:
        The samples of each candidate by name.
    """
    threads = torch.get_num_threads()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        once = {c.name: _calibrate(c, clock, threads) for c in candidates}
        slowest = max(max(seconds, sample_s) for seconds in once.values())
        inner, repeats = {}, {}
        for name, seconds in once.items():
            calls = math.ceil(sample_s / seconds) if seconds > 0 else clock.max_inner
            inner[name] = max(1, min(calls, clock.max_inner))
            sample = max(inner[name] * seconds, 1e-9)
            repeats[name] = max(1, min(5, int(slowest / sample)))
        one_round = sum(max(inner[n] * once[n], 1e-9) * repeats[n] for n in once)
        rounds = max(min_rounds, min(max_rounds, int(budget_s / one_round)))
        found = {c.name: Samples([], []) for c in candidates}
        for turn in range(rounds):
            first = turn % len(candidates)
            for candidate in (*candidates[first:], *candidates[:first]):
                name = candidate.name
                _use_threads(candidate, threads)
                taken = [clock.sample(candidate.run, inner[name]) for _ in range(repeats[name])]
                found[name].all.extend(taken)
                found[name].rounds.append(statistics.median(taken))
        return found
    finally:
        torch.set_num_threads(threads)
        if was_enabled:
            gc.enable()


def _calibrate(candidate: Candidate, clock: Clock, threads: int) -> float:
    """Seconds of one warm call; a second look at short ones, whose first call is rarely typical."""
    _use_threads(candidate, threads)
    seconds = clock.sample(candidate.run, 1)
    return min(seconds, clock.sample(candidate.run, 1)) if seconds < 0.05 else seconds


def _use_threads(candidate: Candidate, default: int) -> None:
    wanted = default if candidate.threads is None else candidate.threads
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)


@dataclass(frozen=True)
class Ratio:
    """How many times slower one candidate is than another; above 1 means that `of` is faster.

    Attributes:
        median: Ratio of the two medians.
        p10, p90: Spread of the ratio over the rounds; wide means noise.
    """

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, ours: Samples, peer: Samples) -> Ratio:
        paired = [p / o for o, p in zip(ours.rounds, peer.rounds, strict=True)]
        return cls(
            peer.stats.median / ours.stats.median, quantile(paired, 0.1), quantile(paired, 0.9)
        )
