"""The interface through which loads and starts report; without metrics it counts nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from coldstream.errors import ColdstreamError

if TYPE_CHECKING:
    from coldstream.engine.load_statistics import LoadReport, LoadStatistics
    from coldstream.telemetry.timeline.start_record import Timeline

# The only phase before vLLM runs.
RESOLVE = "resolve"


class Loading(Protocol):
    """A load, of `coldstream.loading`, shared or not."""

    @property
    def bytes(self) -> int:
        """Bytes of all tensors; 0 until they are known."""

    @property
    def statistics(self) -> LoadStatistics | None:
        """Its statistics so far."""

    @property
    def outcome(self) -> LoadReport | ColdstreamError | None:
        """How it ended; None while it runs."""


class Meter:
    """Counts nothing. Callable from any thread; `port` is the port of the metrics, None if they are not served."""

    port: int | None = None

    def follow(
        self, loads: Callable[[], Sequence[Loading]], failures: Callable[[], Sequence[ColdstreamError]] = tuple
    ) -> None:
        """Counts loads from now on, at each scrape; called in any thread.

        Loads that have ended may be left out after a `look`. `failures` are why others could not begin.
        """

    def look(self) -> None:
        """Reads the statistics of the loads."""

    def end(self, *, start: str = "cancelled") -> None:
        """Counts loads that have not ended as cancelled, and a start of vLLM that was not counted yet as `start`."""

    def starting(self) -> None:
        """Called when a start of vLLM begins."""

    def started(self, timeline: Timeline) -> None:
        """Called when vLLM is ready."""

    def not_started(self, outcome: str, phase: str = RESOLVE) -> None:
        """Called when vLLM did not become ready; counts it once. `outcome` is "failed" or "cancelled"."""

    def adapter_fetched(self, seconds: float, size: int, received_bytes: int) -> None:
        """Counts an adapter of `size` bytes that an engine got; `received_bytes` is 0 of a copy on this machine."""

    def adapter_failed(self, error: ColdstreamError) -> None:
        """Counts an adapter that an engine did not get."""

    def bundle_restored(self, state: str) -> None:
        """Counts `WarmState.state`, the outcome of restoring the warm-start bundle."""

    def bundle_published(self, result: str) -> None:
        """Counts an attempt to publish the caches: "published", "kept" or "no"."""
