"""One load by a program, without a command, counted in the configured file."""

from __future__ import annotations

import os

from coldstream.telemetry.metrics.meter import Loading
from coldstream.telemetry.metrics.metric_options import checked_file
from coldstream.telemetry.metrics.registry import Metrics
from coldstream.telemetry.metrics.textfile import TextFile


class LibraryLoad:
    """Counts a load; a forked process counts nothing."""

    def __init__(self, load: Loading, *, model: str, uri: str, file: str) -> None:
        """Checks the file, before the load begins.

        Args:
            load: The load.
            model: Its name, for the label.
            uri: Its source, with the scheme.
            file: The configured path.

        Raises:
            UsageError: It cannot be written, is not a .prom file, or holds metrics of other programs.
            DiskError: It cannot be read.
        """
        self._file = TextFile(checked_file(file))
        self._file.check()
        self._metrics: Metrics | None = Metrics(model, uri=uri)
        self._metrics.follow(lambda: [load])
        self._pid = os.getpid()

    def end(self) -> str | None:
        """Counts the end of the load; one without an outcome was cancelled. Idempotent.

        Returns:
            A warning if the file was damaged and replaced.

        Raises:
            UsageError: The file holds metrics of other programs by now.
            DiskError: It cannot be written.
        """
        # Releases the load.
        metrics, self._metrics = self._metrics, None
        if metrics is None or os.getpid() != self._pid:
            return None
        metrics.end()
        return self._file.add(metrics.families(live=False))
