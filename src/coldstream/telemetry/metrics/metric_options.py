"""Which metrics the user asks for: checked before anything begins."""

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
    """What is to be done with the metrics.

    Attributes:
        host: Where they are served.
        port: The same; 0: the kernel chooses; None: they are not served.
        file: Where they are left at the end; None: nowhere.
    """

    host: str = HOST
    port: int | None = None
    file: Path | None = None


def metric_options(settings: Settings) -> MetricOptions | None:
    """What is configured; None: nobody asks for metrics.

    Raises:
        ConfigError: The port is none, or a host stands without one.
        UsageError: The file could not be written, or nobody would read it.
    """
    port_text, path = settings.get("COLDSTREAM_METRICS_PORT"), settings.get("COLDSTREAM_METRICS_FILE")
    host = settings.get("COLDSTREAM_METRICS_HOST")
    if port_text is None and host is not None and settings.origins["COLDSTREAM_METRICS_HOST"] == "flag":
        raise ConfigError("--metrics-host stands without a port", hint="add --metrics-port, 0 for any that is free")
    if port_text is None and path is None:
        return None
    file = checked_file(path) if path is not None else None
    return MetricOptions(host=host or HOST, port=_checked_port(port_text) if port_text is not None else None, file=file)


def _checked_port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise ConfigError(
            f"the metrics' port is {text[:20]!r}, which is none", hint="0 to 65535; 0 takes any that is free"
        )
    return int(text)


def checked_file(text: str) -> Path:
    """The file that the user has named.

    Raises:
        UsageError: It could not be written, or nobody would read it.
    """
    path = expanded(text).absolute()
    if path.suffix != SUFFIX:
        raise UsageError(
            f"the metrics' file {text} does not end in {SUFFIX}", hint="node exporter reads no other: coldstream.prom"
        )
    if path.is_dir():
        raise UsageError(f"the metrics' file {text} is a folder")
    if not path.parent.is_dir():
        raise UsageError(
            f"the metrics' file {text} is in a folder that does not exist",
            hint=f"mkdir -p {shlex.quote(str(path.parent))}",
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"the metrics' file {text} is in a folder that this user may not write to")
    return path
