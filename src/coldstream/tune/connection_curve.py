"""Measures a bucket's throughput with more and more connections, to find how many are enough."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from coldstream.cache.cache import cache_of
from coldstream.errors import ConfigError
from coldstream.loading.options import Options
from coldstream.loading.streaming import Load
from coldstream.machine.atomic_file import write_atomically
from coldstream.machine.disk import checked_root, disk_errors, make_folders, read_bounded
from coldstream.settings import Settings

STEPS = (1, 2, 4, 8, 16, 32, 64)
# The first part of each run, while the connections are opened, does not count.
_SECONDS = 4.0
_RAMP_SHARE = 0.4
# Doubling the connections must raise the throughput by this factor, or the bucket is saturated.
_GAIN = 1.15
# All numbers of connections are run in turn: at least and at most this often, until their runs agree this well.
PASSES = (3, 6)
_AGREED = 0.10
# If runs still differ by more, no conclusion is drawn: a doubling is judged by a gain of only 15 %.
_NOISE = 0.25
_FILE_BYTES_MAX = 64 << 10
# Networks change, so a measurement expires.
_FRESH_SECONDS = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The throughput with a number of connections, after the ramp: the median of several runs."""

    connections: int
    bytes_per_second: float
    spread: float | None = None  # between the runs beside the median, relative to it; None if unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A bucket's throughput by connections: `min(connections * each, most)`, in bytes per second."""

    samples: tuple[Sample, ...]
    each: float
    most: float

    @property
    def connections(self) -> int:
        """How many connections are enough, rounded up to a step."""
        enough = self.most / self.each if self.each else 1.0
        return next((step for step in STEPS if step >= enough), STEPS[-1])

    @property
    def spread(self) -> float | None:
        """The largest spread of the samples; None if none is known."""
        return max((sample.spread for sample in self.samples if sample.spread is not None), default=None)

    @property
    def is_noisy(self) -> bool:
        """Whether the runs differ too much to draw a conclusion."""
        return (self.spread or 0.0) > _NOISE

    def at(self, connections: int) -> float:
        """The bytes per second of this many connections."""
        return min(connections * self.each, self.most)


def fit_curve(samples: Sequence[Sample]) -> Curve:
    """Fits a curve; one connection has the median over the samples at which doubling still helped. Pure."""
    rising = [samples[0]]
    for before, after in pairwise(samples):
        if after.bytes_per_second < _GAIN * before.bytes_per_second:
            break
        rising.append(after)
    # The last rising sample may be limited by the maximum already.
    below = rising[:-1] if len(rising) > 1 else rising
    each = statistics.median(sample.bytes_per_second / sample.connections for sample in below)
    return Curve(samples=tuple(samples), each=each, most=max(sample.bytes_per_second for sample in samples))


def measure_curve(
    uri: str,
    options: Options,
    *,
    steps: Sequence[int] = STEPS,
    seconds: float = _SECONDS,
    bytes_max: int | None = None,
    passes: tuple[int, int] = (1, 1),
    on_sample: Callable[[Sample], None] | None = None,
) -> Curve:
    """Measures a bucket by the loads of a model, the larger the better, each for some seconds or until `bytes_max`.

    The local cache is not used. `passes` is how often all steps are run in turn: at least, and at most while their
    runs differ. Raises the errors of `Load`.
    """
    rates: dict[int, list[float]] = {}

    def run(connections: int) -> float:
        rate = _rate(uri, replace(options, connections=connections, cache=False, metrics=False), seconds, bytes_max)
        rates.setdefault(connections, []).append(rate)
        if on_sample:
            on_sample(Sample(connections, rate))
        return rate

    first: list[float] = []
    for connections in steps:
        first.append(run(connections))
        if len(first) > 2 and first[-1] < _GAIN * first[-3]:
            break
    for number in range(1, passes[1]):
        if number >= passes[0] and max(map(_spread, rates.values())) <= _AGREED:
            break
        # In turn, so that changes of the network affect all steps alike.
        for connections in rates:
            run(connections)
    spreads = {connections: _spread(runs) if len(runs) > 2 else None for connections, runs in rates.items()}
    return fit_curve([Sample(each, statistics.median(runs), spreads[each]) for each, runs in rates.items()])


def _spread(runs: Sequence[float]) -> float:
    """The distance between the runs beside the median, relative to it. A single outlier does not count."""
    ordered, middle = sorted(runs), len(runs) // 2
    near = ordered[max(0, middle - 1) : middle + 2]
    median = statistics.median(runs)
    return (near[-1] - near[0]) / median if median else float("inf")


def _rate(uri: str, options: Options, seconds: float, bytes_max: int | None) -> float:
    """The bytes per second after the ramp; over the whole load if the model is small."""
    seen: list[tuple[float, int]] = []
    options = replace(options, on_progress=lambda done, _total: seen.append((time.monotonic(), done)))
    entered = time.monotonic()
    with Load(uri, options) as loading:
        began = 0.0
        for _ in loading:
            # Start of the processes and the manifest's read are not the bucket's throughput.
            began = began or time.monotonic()
            if time.monotonic() - began > seconds or (bytes_max is not None and seen and seen[-1][1] > bytes_max):
                break
    rate = steady(seen)
    if rate == 0 and seen:
        # A small model was complete at the first report.
        last, count = seen[-1]
        rate = count / max(last - entered, 1e-9)
    return rate


def steady(seen: Sequence[tuple[float, int]]) -> float:
    """The bytes per second after the ramp, of rising times and bytes received. Pure."""
    if len(seen) < 2:
        return 0.0
    (first, start), (last, end) = seen[0], seen[-1]
    after = first + _RAMP_SHARE * (last - first)
    time_, count = next(point for point in seen if point[0] >= after)
    if last - time_ < 1e-3:
        time_, count = first, start
    return (end - count) / max(last - time_, 1e-9)


def save_curve(curve: Curve, settings: Settings) -> Path:
    """Saves a measurement of the configured store for this machine's loads; returns the file's path."""
    path = _path(settings)
    checked_root(cache_of(settings).root, create=True)
    with disk_errors(path):
        make_folders(path.parent)
        record = {"format": 2, "store": settings.store_uri(), "measured": time.time(), "curve": asdict(curve)}
        record["connections"] = curve.connections
        write_atomically(path, json.dumps(record).encode(), staging=path.parent)
    return path


def saved_curve(settings: Settings) -> Curve | None:
    """The last measurement of the configured store, unless it has expired; None without one."""
    with suppress(OSError, ValueError, KeyError, TypeError, ConfigError):
        record: dict[str, Any] = json.loads(read_bounded(_path(settings), _FILE_BYTES_MAX) or b"")
        is_fresh = 0 <= time.time() - record["measured"] < _FRESH_SECONDS
        if record["format"] == 2 and record["store"] == settings.store_uri() and is_fresh:
            return msgspec.convert(record["curve"], Curve)
    return None


def _path(settings: Settings) -> Path:
    name = hashlib.sha256(settings.store_uri().encode()).hexdigest()[:16]
    return cache_of(settings).root / "measured" / f"{name}.json"
