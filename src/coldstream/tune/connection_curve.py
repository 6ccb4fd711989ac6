"""Times the real bucket at a rising number of connections, and says from where on more of them do not help."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from coldstream.cache.cache import cache_of
from coldstream.errors import ConfigError
from coldstream.loading.options import Options
from coldstream.loading.streaming import Load
from coldstream.machine.atomic_file import write_atomically
from coldstream.machine.disk import checked_root, disk_errors, make_folders, read_bounded
from coldstream.settings import Settings

STEPS = (1, 2, 4, 8, 16, 32, 64)
# The first part of each is the ramp of the connections.
_SECONDS = 4.0
_RAMP_SHARE = 0.4
# With so many times as many connections at least so much more must come, or the bucket gives no more.
_GAIN = 1.15
# All numbers of connections are run in turn, at least so often, and until their runs agree this well.
PASSES = (3, 6)
_AGREED = 0.10
# Runs that still differ by more say nothing: a step of the curve is a doubling, and is judged by a gain of 15%.
_NOISE = 0.25
_FILE_BYTES_MAX = 64 << 10
# Networks change: a measurement is believed for so long.
_FRESH_SECONDS = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What so many connections gave.

    Attributes:
        connections: At most.
        bytes_per_second: Once they were all running; of several runs the median.
        spread: How far the runs beside the median are from each other, as a share of it; None where it is not known.
    """

    connections: int
    bytes_per_second: float
    spread: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What the bucket gives: `min(connections * each, most)`.

    Attributes:
        samples: Measured, by rising connections.
        each: Bytes a second of one connection while all of them gain.
        most: Bytes a second of all together.
    """

    samples: tuple[Sample, ...]
    each: float
    most: float

    @property
    def connections(self) -> int:
        """From where on more do not help, and some to spare."""
        enough = self.most / self.each if self.each else 1.0
        return next((step for step in STEPS if step >= enough), STEPS[-1])

    @property
    def spread(self) -> float | None:
        """The largest of its samples' spreads; None where none is known."""
        return max((sample.spread for sample in self.samples if sample.spread is not None), default=None)

    @property
    def is_noisy(self) -> bool:
        """Whether its runs differ by so much that nothing should be concluded from them."""
        return (self.spread or 0.0) > _NOISE

    def at(self, connections: int) -> float:
        """Bytes a second of so many connections."""
        return min(connections * self.each, self.most)


def fitted(samples: Sequence[Sample]) -> Curve:
    """A curve through samples. Pure.

    Each connection's rate is the median over the samples at which doubling still paid; the most is the best sample.
    """
    rising = [samples[0]]
    for before, after in pairwise(samples):
        if after.bytes_per_second < _GAIN * before.bytes_per_second:
            break
        # The last one may be cut by the top already.
        rising.append(after)
    # Those that the top has not reached yet.
    below = rising[:-1] if len(rising) > 1 else rising
    each = statistics.median(sample.bytes_per_second / sample.connections for sample in below)
    return Curve(samples=tuple(samples), each=each, most=max(sample.bytes_per_second for sample in samples))


def measured(
    uri: str,
    options: Options,
    *,
    steps: Sequence[int] = STEPS,
    seconds: float = _SECONDS,
    bytes_max: int | None = None,
    passes: tuple[int, int] = (1, 1),
    on_sample: Callable[[Sample], None] | None = None,
) -> Curve:
    """Measures. Each step is a load of its own that is broken off; the local cache is left alone.

    Args:
        uri: Of a model in the bucket, the larger the better.
        options: Of the loads.
        steps: Numbers of connections.
        seconds: For each.
        bytes_max: For each too: what a look at the speed may cost.
        passes: How often all steps are run in turn: at least, and at most while their runs do not agree.
        on_sample: Told of each run.

    Raises:
        What `Load` raises.
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
    least, most = passes
    for number in range(1, most):
        if number >= least and max(map(_spread, rates.values())) <= _AGREED:
            break
        # In turn, so that all of them are measured under the same changes of the network.
        for connections in rates:
            run(connections)
    return fitted(
        [
            Sample(connections, statistics.median(runs), _spread(runs) if len(runs) > 2 else None)
            for connections, runs in rates.items()
        ]
    )


def _spread(runs: Sequence[float]) -> float:
    """How far the runs on both sides of the median are apart, as a share of it. One that went astray does not count."""
    ordered, middle = sorted(runs), len(runs) // 2
    near = ordered[max(0, middle - 1) : middle + 2]
    median = statistics.median(runs)
    return (near[-1] - near[0]) / median if median else float("inf")


def _rate(uri: str, options: Options, seconds: float, bytes_max: int | None) -> float:
    """Bytes a second once the connections run; of a model that is through sooner, over all of it."""
    seen: list[tuple[float, int]] = []
    options = replace(options, on_progress=lambda done, _total: seen.append((time.monotonic(), done)))
    entered = time.monotonic()
    with Load(uri, options) as loading:
        began: float | None = None
        for _ in loading:
            if began is None:
                # Its processes have started and its manifest is read: neither is the bucket's speed.
                began = time.monotonic()
            if time.monotonic() - began > seconds or (bytes_max is not None and seen and seen[-1][1] > bytes_max):
                break
    rate = steady(seen)
    if rate == 0 and seen:
        # All of a small model was there when that was first asked.
        last, count = seen[-1]
        rate = count / max(last - entered, 1e-9)
    return rate


def steady(seen: Sequence[tuple[float, int]]) -> float:
    """Bytes a second after the ramp. Pure.

    Args:
        seen: (time, bytes there), rising.
    """
    if len(seen) < 2:
        return 0.0
    (first, start), (last, end) = seen[0], seen[-1]
    after = first + _RAMP_SHARE * (last - first)
    time_, count = next(point for point in seen if point[0] >= after)
    if last - time_ < 1e-3:
        time_, count = first, start
    return (end - count) / max(last - time_, 1e-9)


def remember(curve: Curve, settings: Settings) -> Path:
    """Keeps a measurement of the configured store for this machine's loads; where.

    Raises:
        DiskError: It cannot be written.
        ConfigError: No store is configured.
    """
    root = cache_of(settings).root
    path = _path(settings)
    checked_root(root, create=True)
    with disk_errors(path):
        make_folders(path.parent)
        record = {
            "format": 1,
            "store": settings.store_uri(),
            "measured": time.time(),
            "connections": curve.connections,
            "each": curve.each,
            "most": curve.most,
            "samples": [[sample.connections, sample.bytes_per_second] for sample in curve.samples],
        }
        write_atomically(path, json.dumps(record).encode(), staging=path.parent)
    return path


def remembered(settings: Settings) -> Curve | None:
    """The last measurement of the configured store, if it is not too old; None without one."""
    with suppress(OSError, ValueError, KeyError, TypeError, ConfigError):
        record: dict[str, Any] = json.loads(read_bounded(_path(settings), _FILE_BYTES_MAX) or b"")
        fresh = 0 <= time.time() - record["measured"] < _FRESH_SECONDS
        if record["format"] == 1 and record["store"] == settings.store_uri() and fresh:
            samples = tuple(Sample(int(connections), float(rate)) for connections, rate in record["samples"])
            return Curve(samples=samples, each=float(record["each"]), most=float(record["most"]))
    return None


def _path(settings: Settings) -> Path:
    name = hashlib.sha256(settings.store_uri().encode()).hexdigest()[:16]
    return cache_of(settings).root / "measured" / f"{name}.json"
