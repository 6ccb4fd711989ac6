"""Prometheus' metrics around a verb, for those that load."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from coldstream.cli.session import State

if TYPE_CHECKING:
    from coldstream.settings import Settings
    from coldstream.telemetry.metrics.measuring import Measured


def metered(state: State, settings: Settings, uri: str) -> AbstractContextManager[Measured]:
    """Serves and keeps the metrics that are configured, for the length of the block; nothing is done when none are.

    Args:
        state: The common options.
        settings: What is configured.
        uri: Of the model, as the user named it.
    """
    from coldstream.loading.load_plan import uri_key
    from coldstream.model.names import model_name
    from coldstream.model.uri import Uri
    from coldstream.telemetry.metrics.measuring import measured
    from coldstream.telemetry.metrics.metric_options import wanted

    asked = wanted(settings)
    key = uri_key(Uri(uri), settings) if asked is not None else ""
    return measured(asked, model=model_name(uri), uri=key, say=state.say)
