"""What is told to whoever counts. Nobody does, where no metrics are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from coldstream.errors import ColdstreamError

if TYPE_CHECKING:
    from coldstream.engine.load_statistics import LoadReport, LoadStatistics
    from coldstream.telemetry.timeline.start_record import Timeline


# Before vLLM runs there is this phase alone.
RESOLVE = "resolve"


class Loading(Protocol):
    """A load, as `coldstream.loading` has them: alone or shared."""

    @property
    def bytes(self) -> int:
        """Of all tensors; 0 as long as they are not known."""

    @property
    def statistics(self) -> LoadStatistics | None:
        """What it has done so far."""

    @property
    def outcome(self) -> LoadReport | ColdstreamError | None:
        """How it ended; None while it runs."""


class Meter:
    """MetricCounts nothing. May be told in any thread.

    Attributes:
        port: Where somebody may ask for what was counted; None: nowhere.
    """

    port: int | None = None

    def follow(
        self, loads: Callable[[], Sequence[Loading]], failures: Callable[[], Sequence[ColdstreamError]] = tuple
    ) -> None:
        """Loads are counted from now on, whenever somebody looks.

        Args:
            loads: Those that have begun, so far; asked in any thread. After a `look` those that have ended may be
                left out.
            failures: Why others could not begin.
        """

    def look(self) -> None:
        """Takes in what the loads have done so far."""

    def end(self, *, start: str = "cancelled") -> None:
        """Nothing goes on: loads that have not ended were cancelled.

        Args:
            start: What is to be said of a start of vLLM that has not been counted: "failed" or "cancelled".
        """

    def starting(self) -> None:
        """A start of vLLM has begun."""

    def started(self, timeline: Timeline) -> None:
        """It answered."""

    def not_started(self, outcome: str, phase: str = RESOLVE) -> None:
        """It did not, if it has not been counted yet.

        Args:
            outcome: "failed" or "cancelled".
            phase: That it ended in.
        """

    def bundle_restored(self, state: str) -> None:
        """What became of the warm-start bundle, as `WarmState.state` says."""

    def bundle_published(self, published: str | None) -> None:
        """Whether the caches were published, as `WarmState.published` says; None: that was not tried."""
