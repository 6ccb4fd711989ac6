"""Loads by the library in the metrics' file that the environment names. No load fails for it."""

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
_said: set[str] = set()


def counted(load: Loading, uri: Uri, options: Options, settings: Settings) -> Callable[[], None]:
    """Follows a load that begins, if its options allow it and a file is configured; else nothing is imported.

    A command has the metrics around it, and a port as well; in a program every process would ask for the same port.

    Args:
        load: That begins.
        uri: Of the model, as the user named it.
        options: Of the load.
        settings: What is configured.

    Returns:
        To be called when the load has ended, in this process; again does nothing, and in a forked one neither.
    """
    file = settings.get("COLDSTREAM_METRICS_FILE") if options.metrics else None
    if file is None:
        return lambda: None
    try:
        from coldstream.telemetry.metrics.library_metrics import Single

        single = Single(load, model=model_name(uri), uri=uri_key(uri, settings), file=file)
    except Exception as exc:  # noqa: BLE001  # whatever it is, the load goes on
        _warn(exc)
        return lambda: None

    def end() -> None:
        try:
            if warning := single.end():
                _say(warning)
        except Exception as exc:  # noqa: BLE001  # the same
            _warn(exc)

    return end


def _warn(exc: Exception) -> None:
    # Another's message may hold anything.
    _say(f"the metrics are not kept: {exc.message if isinstance(exc, ColdstreamError) else type(exc).__name__}")


def _say(text: str) -> None:
    """Once for each text: a program may load every minute."""
    if text not in _said:
        _said.add(text)
        _logger.warning(text)
