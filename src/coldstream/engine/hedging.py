"""Finds connections that are so slow that another should fetch the rest of their chunk. Pure; time is passed in.

One range in a hundred comes from a slow disk or over a lossy path, and would make the whole load wait. Slow means slow
compared with the others: if all are slow, the bucket is, and stopping connections would not help.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# A connection is slow when it delivers less than this share of what the others deliver, and another one would fetch
# its rest sooner.
SLOW_SHARE = 0.25
SLOW_SECONDS_MIN = 0.15
STALL_SECONDS_MIN = 1.0
STALL_SECONDS_UNKNOWN = 5.0  # while nothing is known of the bucket, it may always be this silent
SPARE_PATIENCE = 5  # with connections to spare, a request may be slow after so many times the usual first byte's time
# A connection tells that its reply has begun, and then how far it is about every quarter of a second.
PROGRESS_SECONDS, REPLY_BYTES = 0.3, 16 << 10
_STALL_PATIENCE_MAX = 4.0  # the limit of patience with silent connections, as a factor
# A connection that has not stopped is told again: it may have been connecting, and have missed the first message.
STOP_AGAIN_SECONDS = 1.0
CAUSES = ("slow", "silent")  # why a connection is stopped: it delivers too little, or nothing at all
TAKEOVER_SHARE = 0.25  # the share of connections that may be stopped at a time: if most are slow, the bucket is
# How many finished requests define what is usual, and for how long after the last one.
_RATES_MIN = 4
_RECENT_SECONDS = 2.0


@dataclass(slots=True)
class Flight:
    """The fetch of a connection."""

    chunk: int  # its number
    is_local: bool  # whether from this machine
    skip: int  # where in the chunk it began
    size: int  # bytes to fetch
    began: float  # when
    takeovers: int  # how often a connection was stopped for this chunk; each doubles the patience
    moved: float  # when the last byte was received
    received: int = 0  # bytes so far
    stopped: float | None = None  # when it was told to stop, or None
    cdn: bool = False  # whether through the CDN


class Speeds:
    """What a connection usually delivers, and which ones deliver less."""

    def __init__(self) -> None:
        self._rates: deque[float] = deque(maxlen=32)  # bytes/s of finished requests
        self._first_bytes: deque[float] = deque(maxlen=32)
        self._finished = 0.0

    def finished(self, flight: Flight, first_byte_seconds: float, now: float, *, chunk_bytes: int) -> None:
        """A request has delivered everything."""
        self._finished = now
        # The last few bytes of a chunk tell more about the round trip than about the rate.
        if 2 * flight.size >= chunk_bytes:
            self._rates.append(flight.size / max(now - flight.began, 1e-6))
            self._first_bytes.append(first_byte_seconds)

    def to_stop(
        self,
        flights: Sequence[tuple[int, Flight]],  # remote ones, by connection
        target: int,  # how many connections there should be
        now: float,
        *,
        least: tuple[float, float] | None = None,  # (bytes per second, after so many seconds) for each connection
        spare: bool = False,  # whether connections are idle because nothing is left to fetch
    ) -> Iterator[tuple[int, str | None]]:
        """Connections to stop, because another would fetch the rest of their chunk sooner.

        Each with one of `CAUSES`; None if it was told before.
        """
        allowed = max(2, int(TAKEOVER_SHARE * target)) - sum(flight.stopped is not None for _, flight in flights)
        usual = self._usual([flight for _, flight in flights], now)
        first_byte = _median(self._first_bytes) if self._first_bytes else 0.0
        for connection, flight in flights:
            elapsed = now - flight.began
            is_under = least is not None and elapsed > least[1] and flight.received < least[0] * elapsed
            if flight.stopped is not None:
                if now - flight.stopped >= STOP_AGAIN_SECONDS:
                    flight.stopped = now
                    yield connection, None
            elif allowed > 0 and (
                cause := _cause_to_stop(flight, usual, first_byte, now, spare=spare) or ("slow" if is_under else None)
            ):
                flight.stopped = now
                allowed -= 1
                yield connection, cause

    def _usual(self, flights: Sequence[Flight], now: float) -> float | None:
        """What a connection usually delivers, in bytes per second; None if too little is known."""
        if len(self._rates) < _RATES_MIN:
            return None
        usual = max(1.0, _median(self._rates))
        if now - self._finished > _RECENT_SECONDS:
            # If all have become slow, it is not this connection.
            rates = [
                flight.received / (now - flight.began) for flight in flights if now - flight.began > SLOW_SECONDS_MIN
            ]
            if len(rates) >= _RATES_MIN:
                usual = max(1.0, min(usual, _median(rates)))
        return usual


def _cause_to_stop(flight: Flight, usual: float | None, first_byte: float, now: float, *, spare: bool) -> str | None:
    """One of `CAUSES` if the connection should be stopped."""
    patience = 2.0 ** min(flight.takeovers, 6)
    silent = (now - flight.moved) / min(patience, _STALL_PATIENCE_MAX)
    if usual is None:
        return "silent" if silent > STALL_SECONDS_UNKNOWN else None
    elapsed = now - flight.began
    # With connections to spare another try costs nothing, and the whole load waits for this one.
    usual_seconds = SPARE_PATIENCE * first_byte if spare else 2 * (first_byte + flight.size / usual)
    if elapsed < patience * (SLOW_SECONDS_MIN + usual_seconds):
        return None
    if silent > max(STALL_SECONDS_MIN, 4 * first_byte):
        return "silent"
    if now - flight.moved < PROGRESS_SECONDS:
        if flight.received <= REPLY_BYTES:
            return None
        elapsed = flight.moved - flight.began
    rate = flight.received / max(elapsed, 1e-6)
    rest = flight.size - flight.received
    is_slow = rate < SLOW_SHARE * usual and (rate <= 0 or rest / rate > 2 * (first_byte + rest / usual))
    return "slow" if is_slow else None


def _median(values: Sequence[float] | deque[float]) -> float:
    """The upper median; importing `statistics` would take longer than importing the whole engine."""
    return sorted(values)[len(values) // 2]
