"""Counts loads of the library in the metrics file that the environment names. No load fails because of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from coldstream.errors import ColdstreamError
from coldstream.loading.load_plan import uri_key
from coldstream.loading.options import Options
from coldstream.model.names import model_name
from coldstream.model.uri import Uri
from coldstream.settings import Settings

if TYPE_CHECKING:
    from coldstream.telemetry.metrics.meter import Loading

_logger = logging.getLogger("coldstream")
_logged: set[str] = set()


def counted(load: Loading, uri: Uri, options: Options, settings: Settings) -> Callable[[], None]:
    """Follows a load that begins, if its options allow that and a file is configured; returns what ends that.

    Only to a file: commands also have a port, but every process of a program would use the same one.
    """
    file = settings.get("COLDSTREAM_METRICS_FILE") if options.metrics else None
    if file is None:
        return lambda: None
    try:
        from coldstream.telemetry.metrics.measuring import LibraryLoad

        single = LibraryLoad(load, model=model_name(uri), uri=uri_key(uri, settings), file=file)
    except Exception as exc:  # noqa: BLE001  # the load goes on in any case
        _warn(exc)
        return lambda: None

    def end() -> None:
        try:
            if warning := single.end():
                _log_once(warning)
        except Exception as exc:  # noqa: BLE001  # the load goes on in any case
            _warn(exc)

    return end


def _warn(exc: Exception) -> None:
    # Other messages may contain anything, secrets included.
    _log_once(f"the metrics are not kept: {exc.message if isinstance(exc, ColdstreamError) else type(exc).__name__}")


def _log_once(text: str) -> None:
    """Logs each text once: a program may load every minute."""
    if text not in _logged:
        _logged.add(text)
        _logger.warning(text)
