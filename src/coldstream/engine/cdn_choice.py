"""Decides whether chunks go through the CDN in front of the bucket, from its failures. Pure.

The bucket has every chunk too, so a failure of the CDN costs a request and not the load: the chunk is fetched from the
bucket next, and never from the CDN again. A CDN that fails too often is given up for the rest of the load.
"""

from __future__ import annotations

from collections import Counter, deque

FAILURES_MAX = 8  # consecutive failures: a server that has died, a rule that blocks
# The share of failures among this many last answers: a point of presence that damages every other range.
WINDOW = 32
FAILED_SHARE = 0.5
# A connection that is slower than this after so long leaves the rest of its chunk to the bucket. Users report 5 to
# 70 MB/s for one stream from R2.
SLOW_SECONDS = 3.0
BYTES_PER_SECOND_MIN = 1e6

# Values of `cf-cache-status`, by their number on the wire; 0 is an answer that did not come through the CDN.
STATUSES = ("", "none", "HIT", "MISS", "EXPIRED", "STALE", "BYPASS", "REVALIDATED", "UPDATING", "DYNAMIC", "other")
_NUMBERS = {name: number for number, name in enumerate(STATUSES)}


def status_number(text: str | None) -> int:
    """The number of a value of `cf-cache-status`."""
    return _NUMBERS["none"] if not text else _NUMBERS.get(text.strip().upper(), _NUMBERS["other"])


class CdnHealth:
    """Tracks how reliable the CDN is."""

    def __init__(self) -> None:
        self.open = True  # whether chunks may go through it
        self.gave_up = ""  # why it was given up, or ""
        self.failures: Counter[str] = Counter()  # by kind: as in `Failure`, and "slow"
        self._back: set[int] = set()  # chunks that only the bucket may deliver
        self._in_a_row = 0
        self._last: deque[bool] = deque(maxlen=WINDOW)

    def __repr__(self) -> str:
        state = "open" if self.open else "given up"
        return f"CdnHealth({state}, {sum(self.failures.values())} failures)"

    def takes(self, chunk: int) -> bool:
        """Whether to fetch this chunk through the CDN."""
        return self.open and chunk not in self._back

    def succeeded(self) -> None:
        """It has delivered a chunk, complete and verified."""
        self._in_a_row = 0
        self._last.append(True)

    def failed(self, chunk: int, kind: str, message: str) -> None:
        """It has failed to deliver a chunk, or delivered only a part; the bucket delivers the rest."""
        self._back.add(chunk)
        self.failures[kind] += 1
        self._in_a_row += 1
        self._last.append(False)
        if not self.open:
            return
        failed = self._last.count(False)
        if self._in_a_row >= FAILURES_MAX:
            self._give_up(f"it failed {self._in_a_row} times in a row", kind, message)
        elif len(self._last) == WINDOW and failed > FAILED_SHARE * WINDOW:
            self._give_up(f"{failed} of its last {WINDOW} answers were bad", kind, message)

    def _give_up(self, why: str, kind: str, message: str) -> None:
        self.open = False
        self.gave_up = f"{why}, at last for being slow" if kind == "slow" else f"{why}, at last with: {message or kind}"
