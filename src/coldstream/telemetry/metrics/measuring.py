"""Metrics around one command, or one load by a program: options, the port while it runs, the file when it ends."""

from __future__ import annotations

import os
import shlex
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coldstream.errors import ColdstreamError, ConfigError, UsageError
from coldstream.model.names import expanded
from coldstream.settings import Settings
from coldstream.telemetry.metrics.meter import Loading, Meter

if TYPE_CHECKING:
    from coldstream.telemetry.metrics.registry import Metrics
    from coldstream.telemetry.metrics.textfile import TextFile

_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricOptions:
    """Where metrics are served and written; without a port or a file they are not. Port 0 picks a free one."""

    host: str = _HOST
    port: int | None = None
    file: Path | None = None


def metric_options(settings: Settings) -> MetricOptions | None:
    """The configured metrics, or None. Raises ConfigError or UsageError before a load begins."""
    port, path = settings.get("COLDSTREAM_METRICS_PORT"), settings.get("COLDSTREAM_METRICS_FILE")
    host = settings.get("COLDSTREAM_METRICS_HOST")
    if port is None and host is not None and settings.origins["COLDSTREAM_METRICS_HOST"] == "flag":
        raise ConfigError("--metrics-host needs a port", hint="add --metrics-port (0 picks a free port)")
    if port is None and path is None:
        return None
    file = None if path is None else _checked_file(path)
    if port is not None and not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ConfigError(
            f"{port[:20]!r} is not a valid metrics port", hint="set --metrics-port to 0 to 65535 (0 picks a free port)"
        )
    return MetricOptions(host=host or _HOST, port=None if port is None else int(port), file=file)


def _checked_file(text: str) -> Path:
    path = expanded(text).absolute()
    hint = None
    if path.suffix != ".prom":
        why, hint = "does not end in .prom", "node exporter only reads such files: coldstream.prom"
    elif path.is_dir():
        why = "is a folder"
    elif not path.parent.is_dir():
        why, hint = "is in a folder that does not exist", f"mkdir -p {shlex.quote(str(path.parent))}"
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        why = "is in a folder that this user cannot write to"
    else:
        return path
    raise UsageError(f"the metrics' file {text} {why}", hint=hint)


class CommandMetrics:
    """The metrics of a running command. `meter` counts nothing if no metrics are configured."""

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

    `say` prints the address, and warnings about the file. Raises UsageError if the port is taken or the file holds
    metrics of other programs.
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
            far = "" if options.host == _HOST else ", reachable from other machines"
            say(f"metrics     {endpoint.url}{far}")
        try:
            yield command
        except ColdstreamError:
            metrics.end(start="failed")
            raise
        finally:
            metrics.end()
            command.write()


class LibraryLoad:
    """Counts one load by a program in the configured file; a forked process counts nothing."""

    def __init__(self, load: Loading, *, model: str, uri: str, file: str) -> None:
        """Checks the file before the load begins, as `TextFile.check` does; UsageError if it cannot be written."""
        from coldstream.telemetry.metrics.registry import Metrics
        from coldstream.telemetry.metrics.textfile import TextFile

        self._file = TextFile(_checked_file(file))
        self._file.check()
        self._metrics: Metrics | None = Metrics(model, uri=uri)
        self._metrics.follow(lambda: [load])
        self._pid = os.getpid()

    def end(self) -> str | None:
        """Counts the end of the load, as `TextFile.add` does; one without an outcome was cancelled. Idempotent."""
        # Releases the load.
        metrics, self._metrics = self._metrics, None
        if metrics is None or os.getpid() != self._pid:
            return None
        metrics.end()
        return self._file.add(metrics.families(live=False))
