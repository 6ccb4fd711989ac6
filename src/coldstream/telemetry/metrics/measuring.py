"""Metrics around one command: the port is taken before it begins, the file is written when it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from coldstream.errors import ColdstreamError
from coldstream.telemetry.metrics.meter import Meter
from coldstream.telemetry.metrics.metric_options import HOST, MetricOptions

if TYPE_CHECKING:
    from coldstream.telemetry.metrics.registry import Metrics
    from coldstream.telemetry.metrics.textfile import TextFile


class CommandMetrics:
    """The metrics of a running command.

    Attributes:
        meter: To be told; it counts nothing when nobody asked for metrics.
    """

    def __init__(
        self, say: Callable[[str], None], metrics: Metrics | None = None, file: TextFile | None = None
    ) -> None:
        self.meter: Meter = metrics or Meter()
        self._metrics, self._file, self._say = metrics, file, say
        self._one_at_a_time = threading.Lock()

    def write(self) -> None:
        """Adds to the file what was counted since. A file that cannot be written is a warning."""
        if self._file is None or self._metrics is None:
            return
        try:
            with self._one_at_a_time:
                warning = self._file.add(self._metrics.families(live=False))
        except ColdstreamError as exc:
            warning = f"the metrics are not kept: {exc.message}"
        if warning:
            self._say(f"warning: {warning}")


@contextmanager
def measured(
    asked: MetricOptions | None, *, model: str, uri: str, say: Callable[[str], None]
) -> Iterator[CommandMetrics]:
    """Serves the metrics for the length of the block, and leaves them in the file at its end, however it ends.

    Args:
        asked: What the user wants; None: nothing, and nothing is done.
        model: What it is called.
        uri: Where it comes from, with its scheme.
        say: Told where they are served, and what goes wrong with the file.

    Raises:
        UsageError: The port is taken, or the file holds metrics of others.
        DiskError: The file cannot be read.
    """
    if asked is None:
        yield CommandMetrics(say)
        return
    from coldstream.telemetry.metrics.registry import Metrics
    from coldstream.telemetry.metrics.scrape_endpoint import ScrapeEndpoint
    from coldstream.telemetry.metrics.textfile import TextFile

    metrics = Metrics(model, uri=uri)
    file = TextFile(asked.file) if asked.file is not None else None
    if file is not None:
        file.check()
    found = CommandMetrics(say, metrics, file)
    with ExitStack() as stack:
        if asked.port is not None:
            endpoint = ScrapeEndpoint(asked.host, asked.port, metrics.text)
            stack.callback(endpoint.stop)
            metrics.port = endpoint.port
            far = "" if asked.host == HOST else ", for whoever reaches that address"
            say(f"metrics     {endpoint.url}{far}")
        try:
            yield found
        except ColdstreamError:
            metrics.end(start="failed")
            raise
        finally:
            metrics.end()
            found.write()
