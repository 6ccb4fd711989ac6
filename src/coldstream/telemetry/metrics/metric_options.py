"""The options of the metrics, checked before a load begins."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from coldstream.errors import ConfigError, UsageError
from coldstream.model.names import expanded
from coldstream.settings import Settings

HOST = "127.0.0.1"
SUFFIX = ".prom"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricOptions:
    """Where metrics are served and written.

    Attributes:
        host: The address they are served on.
        port: The port; 0 picks a free one; None: they are not served.
        file: The file they are added to; None: no file.
    """

    host: str = HOST
    port: int | None = None
    file: Path | None = None


def metric_options(settings: Settings) -> MetricOptions | None:
    """The configured metrics, or None.

    Raises:
        ConfigError: The port is not valid, or a host is set without one.
        UsageError: The file cannot be written, or is not a .prom file.
    """
    port_text, path = settings.get("COLDSTREAM_METRICS_PORT"), settings.get("COLDSTREAM_METRICS_FILE")
    host = settings.get("COLDSTREAM_METRICS_HOST")
    if port_text is None and host is not None and settings.origins["COLDSTREAM_METRICS_HOST"] == "flag":
        raise ConfigError("--metrics-host needs a port", hint="add --metrics-port (0 picks a free port)")
    if port_text is None and path is None:
        return None
    file = checked_file(path) if path is not None else None
    return MetricOptions(host=host or HOST, port=_checked_port(port_text) if port_text is not None else None, file=file)


def _checked_port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise ConfigError(
            f"{text[:20]!r} is not a valid metrics port", hint="set --metrics-port to 0 to 65535 (0 picks a free port)"
        )
    return int(text)


def checked_file(text: str) -> Path:
    """Checks the path of a metrics file.

    Raises:
        UsageError: It cannot be written, or is not a .prom file.
    """
    path = expanded(text).absolute()
    if path.suffix != SUFFIX:
        raise UsageError(
            f"the metrics' file {text} does not end in {SUFFIX}",
            hint="node exporter only reads such files: coldstream.prom",
        )
    if path.is_dir():
        raise UsageError(f"the metrics' file {text} is a folder")
    if not path.parent.is_dir():
        raise UsageError(
            f"the metrics' file {text} is in a folder that does not exist",
            hint=f"mkdir -p {shlex.quote(str(path.parent))}",
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"the metrics' file {text} is in a folder that this user cannot write to")
    return path
