"""Which connections are so slow that another should fetch the rest of their chunk. Pure; time is passed in.

One range in a hundred comes from a tired disk or over a lossy path; waiting for it would make the whole load wait. What
is slow shows only beside the others: when all are, the bucket is, and stopping connections would not help.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# A connection is slow when it gives less than this share of what the others give, and its rest would be
# here sooner from another one.
SLOW_SHARE = 0.25
SLOW_SECONDS_MIN = 0.15
STALL_SECONDS_MIN = 1.0
# As long as nothing is known of the bucket, silence may also be its way.
STALL_SECONDS_UNKNOWN = 5.0
# More patience than so many times that is not for the silent.
_STALL_PATIENCE_MAX = 4.0
# Whoever was told to stop and has not is told again: the word is lost on a connection that is just being made.
STOP_AGAIN_SECONDS = 1.0
# Why a connection is stopped: it gives too little, or nothing at all.
CAUSES = ("slow", "silent")
# Of the connections, so many may be replaced at a time: if most are slow, the bucket is.
TAKEOVER_SHARE = 0.25
# So many finished requests say what is usual, and for so long after the last one.
_RATES_MIN = 4
_RECENT_SECONDS = 2.0


@dataclass(slots=True)
class Flight:
    """What a connection is doing.

    Attributes:
        chunk: The chunk that it fetches.
        here: Whether from this machine.
        skip: Where in the chunk it began.
        size: Bytes that it is to bring.
        began: When.
        takeovers: How often a connection was stopped for this chunk before: each makes us twice as patient.
        received: Bytes that have arrived.
        moved: When the last of them did.
        stopped: When it was told to stop, or None.
        cdn: Whether through the CDN.
    """

    chunk: int
    here: bool
    skip: int
    size: int
    began: float
    takeovers: int
    moved: float
    received: int = 0
    stopped: float | None = None
    cdn: bool = False


class Speeds:
    """What a connection usually gives, and who gives less."""

    def __init__(self) -> None:
        self._rates: deque[float] = deque(maxlen=32)  # bytes/s of finished requests
        self._first_bytes: deque[float] = deque(maxlen=32)
        self._finished = 0.0

    def finished(self, flight: Flight, first_byte_seconds: float, now: float, *, chunk_bytes: int) -> None:
        """A request has brought all that it should."""
        self._finished = now
        # The last few bytes of a chunk say more of the round trip than of the rate.
        if 2 * flight.size >= chunk_bytes:
            self._rates.append(flight.size / max(now - flight.began, 1e-6))
            self._first_bytes.append(first_byte_seconds)

    def to_stop(
        self,
        flights: Sequence[tuple[int, Flight]],
        target: int,
        now: float,
        *,
        least: tuple[float, float] | None = None,
    ) -> Iterator[tuple[int, str | None]]:
        """Connections to stop, because another would bring the rest of their chunk sooner.

        Args:
            flights: By connection; remote ones.
            target: How many connections there should be.
            now: The time.
            least: (bytes per second, seconds): one that gives less after so long is stopped whatever others give.

        Yields:
            The connection, and which of `CAUSES` it is stopped for; None when it was told so before.
        """
        allowed = max(2, int(TAKEOVER_SHARE * target)) - sum(flight.stopped is not None for _, flight in flights)
        usual = self._usual([flight for _, flight in flights], now)
        first_byte = _median(self._first_bytes) if self._first_bytes else 0.0
        for connection, flight in flights:
            if flight.stopped is not None:
                if now - flight.stopped >= STOP_AGAIN_SECONDS:
                    flight.stopped = now
                    yield connection, None
            elif allowed > 0 and (
                cause := _fault(flight, usual, first_byte, now)
                or ("slow" if least and _is_under(flight, now, *least) else None)
            ):
                flight.stopped = now
                allowed -= 1
                yield connection, cause

    def _usual(self, flights: Sequence[Flight], now: float) -> float | None:
        """What a connection usually gives, in bytes per second; None when too little is known."""
        if len(self._rates) < _RATES_MIN:
            return None
        usual = max(1.0, _median(self._rates))
        if now - self._finished > _RECENT_SECONDS:
            # When everybody has become slow, it is not this connection.
            rates = [
                flight.received / (now - flight.began) for flight in flights if now - flight.began > SLOW_SECONDS_MIN
            ]
            if len(rates) >= _RATES_MIN:
                usual = max(1.0, min(usual, _median(rates)))
        return usual


def _fault(flight: Flight, usual: float | None, first_byte: float, now: float) -> str | None:
    """Which of `CAUSES` there is to stop a connection, if any."""
    patience = 2.0 ** min(flight.takeovers, 6)
    silent = (now - flight.moved) / min(patience, _STALL_PATIENCE_MAX)
    if usual is None:
        return "silent" if silent > STALL_SECONDS_UNKNOWN else None
    elapsed = now - flight.began
    if elapsed < patience * (SLOW_SECONDS_MIN + 2 * (first_byte + flight.size / usual)):
        return None
    if silent > max(STALL_SECONDS_MIN, 4 * first_byte):
        return "silent"
    rate = flight.received / elapsed
    rest = flight.size - flight.received
    is_slow = rate < SLOW_SHARE * usual and (rate <= 0 or rest / rate > 2 * (first_byte + rest / usual))
    return "slow" if is_slow else None


def _is_under(flight: Flight, now: float, bytes_per_second: float, seconds: float) -> bool:
    elapsed = now - flight.began
    return elapsed > seconds and flight.received < bytes_per_second * elapsed


def _median(values: Sequence[float] | deque[float]) -> float:
    """The middle one, or the mean of the two; `statistics` would take longer to import than all of this."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
