"""Whether chunks go through the CDN in front of the bucket, from how it does. Pure.

Every chunk can be had from the bucket as well, so a CDN that fails costs a request and no load: what it did not bring
is fetched from the bucket next, and never from the CDN again. One that fails too often is given up for the rest of the
load.
"""

from __future__ import annotations

from collections import Counter, deque

# Failures without an answer in between: a server that has died, a rule that refuses.
FAILURES_MAX = 8
# And of so many last answers at most such a share: a point of presence that damages every other range.
WINDOW = 32
FAILED_SHARE = 0.5
# A connection that gives less than this after so long leaves the rest of its chunk to the bucket. One stream from R2
# gives 5 to 70 MB/s by what users report.
SLOW_SECONDS = 3.0
BYTES_PER_SECOND_MIN = 1e6

# What `cf-cache-status` may say; by number on the wire, where 0 stands for an answer that came from no CDN.
STATUSES = (
    "",
    "none",
    "HIT",
    "MISS",
    "EXPIRED",
    "STALE",
    "BYPASS",
    "REVALIDATED",
    "UPDATING",
    "DYNAMIC",
    "other",
)
_NUMBERS = {name: number for number, name in enumerate(STATUSES)}


def status_number(text: str | None) -> int:
    """The number of what an answer's `cf-cache-status` says."""
    return _NUMBERS["none"] if not text else _NUMBERS.get(text.strip().upper(), _NUMBERS["other"])


class Cdn:
    """How the CDN has done so far.

    Attributes:
        open: Whether chunks may go through it.
        gave_up: Why it was given up, for people; empty when it was not.
        failures: How often it failed, by kind: as in `Failure`, and "slow".
    """

    def __init__(self) -> None:
        self.open = True
        self.gave_up = ""
        self.failures: Counter[str] = Counter()
        self._back: set[int] = set()  # chunks that are the bucket's now
        self._in_a_row = 0
        self._last: deque[bool] = deque(maxlen=WINDOW)

    def __repr__(self) -> str:
        state = "open" if self.open else "given up"
        return f"Cdn({state}, {sum(self.failures.values())} failures)"

    def takes(self, chunk: int) -> bool:
        """Whether it is to be asked for this chunk."""
        return self.open and chunk not in self._back

    def succeeded(self) -> None:
        """It has brought a chunk, whole and verified."""
        self._in_a_row = 0
        self._last.append(True)

    def failed(self, chunk: int, kind: str, message: str) -> None:
        """It has not brought a chunk, or only a part of it; the rest is the bucket's."""
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
            self._give_up(f"{failed} of its last {WINDOW} answers were no good", kind, message)

    def _give_up(self, why: str, kind: str, message: str) -> None:
        self.open = False
        self.gave_up = f"{why}, at last for being slow" if kind == "slow" else f"{why}, at last with: {message or kind}"
