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
        meter: What runs reports to it; it counts nothing if no metrics are configured.
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
    options: MetricOptions | None, *, model: str, uri: str, say: Callable[[str], None]
) -> Iterator[CommandMetrics]:
    """Serves the metrics for the length of the block, and leaves them in the file at its end, however it ends.

    Args:
        options: The configured metrics; None: does nothing.
        model: Its name, for the label.
        uri: Its source, with the scheme.
        say: Prints the address, and warnings about the file.

    Raises:
        UsageError: The port is taken, or the file holds metrics of others.
        DiskError: The file cannot be read.
    """
    if options is None:
        yield CommandMetrics(say)
        return
    from coldstream.telemetry.metrics.registry import Metrics
    from coldstream.telemetry.metrics.scrape_endpoint import ScrapeEndpoint
    from coldstream.telemetry.metrics.textfile import TextFile

    metrics = Metrics(model, uri=uri)
    file = TextFile(options.file) if options.file is not None else None
    if file is not None:
        file.check()
    command = CommandMetrics(say, metrics, file)
    with ExitStack() as stack:
        if options.port is not None:
            endpoint = ScrapeEndpoint(options.host, options.port, metrics.text)
            stack.callback(endpoint.stop)
            metrics.port = endpoint.port
            far = "" if options.host == HOST else ", reachable from other machines"
            say(f"metrics     {endpoint.url}{far}")
        try:
            yield command
        except ColdstreamError:
            metrics.end(start="failed")
            raise
        finally:
            metrics.end()
            command.write()
