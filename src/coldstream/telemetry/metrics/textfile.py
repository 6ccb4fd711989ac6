"""The file that node exporter's textfile collector reads: what loads on this machine have counted, and their cost.

A load is shorter than the time between two scrapes, so its counts are added to what the file holds, under a lock, and
the file is replaced as a whole. It only holds metrics of coldstream.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from coldstream.errors import DiskError, IntegrityError
from coldstream.machine.atomic_file import write_atomically
from coldstream.machine.disk import read_bounded, try_lock, unlock
from coldstream.telemetry.metrics.families import Families, Family, Sample, merged, parse, render, since
from coldstream.telemetry.metrics.metric_names import METRICS

_METRICS_BYTES_MAX = 8 << 20
# Others hold the lock for milliseconds; one that was stopped must not stop us.
_LOCK_SECONDS = 10.0


class TextFile:
    """One such file, which ends in `.prom`, in an existing folder. Safe across processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: Families = {}

    def check(self) -> None:
        """Raises UsageError, before a load begins, if the file holds metrics of other programs."""
        # A damaged file is replaced, with a warning, when it is written.
        with suppress(IntegrityError):
            self._read()

    def add(self, families: Families) -> str | None:
        """Adds what a process has counted since it last did; returns a warning if a damaged file was replaced.

        Raises:
            UsageError: The file holds metrics of other programs.
            DiskError: It cannot be written.
        """
        warning = None
        with _disk_errors(self.path), self._alone():
            try:
                old = self._read()
            except IntegrityError as exc:
                old, warning = {}, f"{exc.message}; its counts start over"
            # Readable whatever the umask: the collector is another user.
            write_atomically(self.path, render(merged(old, since(families, self._written))), mode=0o644)
        self._written = families
        return warning

    def _read(self) -> Families:
        with _disk_errors(self.path):
            data = read_bounded(self.path, _METRICS_BYTES_MAX)
            if data is None and self.path.exists():
                raise IntegrityError(f"the metrics' file {self.path} is too large to be one of coldstream's")
        return parse(data, where=str(self.path)) if data else {}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = os.open(self.path.with_name(f".{self.path.name}.lock"), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            until = time.monotonic() + _LOCK_SECONDS
            while not try_lock(lock, exclusive=True):
                if time.monotonic() > until:
                    raise DiskError(f"another process holds the metrics' file {self.path}")
                time.sleep(0.01)
            yield
        finally:
            unlock(lock)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except DiskError:
        raise
    except OSError as exc:
        raise DiskError(
            f"cannot use the metrics' file {path}: {exc.strerror or exc}",
            hint="set --metrics-file to a path in a writable directory",
            operation="metrics",
            target=str(path),
        ) from exc


def cost_file(path: Path, projected: float, budget: float | None = None) -> str | None:
    """Adds the month's projected cost and budget, in dollars, as `TextFile.add` does."""
    metric = next(metric for metric in METRICS if metric.name == "coldstream_month_dollars")
    dollars = {"projected": projected} | ({"budget": budget} if budget is not None else {})
    samples: dict[Sample, float] = {(metric.name, (("kind", kind),)): amount for kind, amount in dollars.items()}
    return TextFile(path).add({metric.name: Family(metric.kind, metric.help, samples)})
