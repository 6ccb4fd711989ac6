"""One load that a program made by itself, without a command around it, in the file that is configured."""

from __future__ import annotations

import os

from coldstream.telemetry.metrics.meter import Loading
from coldstream.telemetry.metrics.metric_options import checked_file
from coldstream.telemetry.metrics.registry import Metrics
from coldstream.telemetry.metrics.textfile import TextFile


class LibraryLoad:
    """Follows it; a process forked from this one counts nothing."""

    def __init__(self, load: Loading, *, model: str, uri: str, file: str) -> None:
        """Looks at the file, before anything flows.

        Args:
            load: That begins.
            model: What it is called.
            uri: Where it comes from, with its scheme.
            file: As the user has named it.

        Raises:
            UsageError: It cannot be written, nobody would read it, or it holds metrics of others.
            DiskError: It cannot be read.
        """
        self._file = TextFile(checked_file(file))
        self._file.check()
        self._metrics: Metrics | None = Metrics(model, uri=uri)
        self._metrics.follow(lambda: [load])
        self._pid = os.getpid()

    def end(self) -> str | None:
        """It has ended, however it did; one without an outcome was cancelled. Idempotent.

        Returns:
            What the user should know: that the file was damaged, and begins anew.

        Raises:
            UsageError: The file holds metrics of others by now.
            DiskError: It cannot be written.
        """
        # Its load is let go of.
        metrics, self._metrics = self._metrics, None
        if metrics is None or os.getpid() != self._pid:
            return None
        metrics.end()
        return self._file.add(metrics.families(live=False))
