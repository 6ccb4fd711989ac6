"""What a load has done so far: the streamer's last word, for whoever looks while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coldstream.engine.attach import Owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What a load has done so far; every count only grows.

    Attributes:
        received_bytes: Over the network.
        here_bytes: From the local cache, or from local files.
        requests: That were sent.
        retries: Those that failed, by cause: `engine.actions.Failure.kind`.
        hedges: Connections that were stopped and taken over, by cause: `engine.slow.CAUSES`.
        corrupt: Chunks that held wrong bytes.
        connections_peak: Most connections at the same time.
        connections: That fetch now; no count.
    """

    received_bytes: int
    here_bytes: int
    requests: int
    retries: Mapping[str, int]
    hedges: Mapping[str, int]
    corrupt: int
    connections_peak: int
    connections: int


def account_of(owner: Owner) -> Account | None:
    """As far as its streamer has told; None when it has not yet. Safe in any thread: nothing is received here."""
    ended = owner.report is not None or owner.failure is not None or owner.gone
    progress = owner.progress
    counts: Mapping[str, Any] | None = owner.report or (progress and progress["counts"])
    if progress is None or counts is None:
        return None
    return Account(
        received_bytes=counts["received_bytes"],
        here_bytes=counts["here_bytes"],
        requests=counts["requests"],
        retries=counts["retries_by"],
        hedges=counts["takeovers_by"],
        corrupt=counts["corrupt"],
        connections_peak=counts["connections_peak"],
        connections=0 if ended else progress["connections"],
    )
