"""Decides how many connections to use, from what the bucket delivers. Pure; time is passed in.

It doubles while doubling helps, then takes small steps up and keeps those that help, and halves when the bucket is
overloaded. One connection to an object store gives 20 to 70 MB/s and a node needs gigabytes, so the right number
differs by a factor of a hundred between a test on loopback and a bucket across a continent; too many cost CPU, and
cause 503s.
"""

from __future__ import annotations

from collections import deque
from math import inf

# A step is judged after at least this time, and this many bytes per connection: new ones first have to connect.
STEP_SECONDS = 0.15
STEP_BYTES = 4 << 20
SMALL_STEP_SECONDS = 0.25  # a small step makes a small difference, which takes longer to see
STEP_SECONDS_MAX = 2.0  # a slower bucket is judged after this time
# A bucket that takes so long to answer gets many connections at once: until fewer are judged, a load is half over.
FAR_SECONDS, FAR_CONNECTIONS, NEAR_CONNECTIONS = 0.025, 64, 8
# A server on this machine or beside it fills a core with one connection or two.
BESIDE_SECONDS, BESIDE_CONNECTIONS = 0.002, 4
# The growth in throughput for which a doubling is kept, and the share of its own growth for which a small step is.
DOUBLING_GAIN = 1.2
STEP_GAIN_SHARE = 0.5
# Time between steps; doubled after each that did not help.
STEADY_SECONDS = 2.0
STEADY_SECONDS_MAX = 16.0
# One 503 is an accident; this share of the last answers is an overloaded bucket.
BUSY_SHARE = 0.25
BUSY_WINDOW = 48
BUSY_MIN = 8
HELD_SECONDS = 5.0  # how long to stay below the number that overloaded the bucket
TARGET_MIN = 4  # so few connections do not overload a bucket


def first_connections(answer_seconds: float) -> int:
    """With how many connections to begin, when the place has taken so long to answer; 0 if that is not known."""
    if answer_seconds >= FAR_SECONDS:
        return FAR_CONNECTIONS
    return BESIDE_CONNECTIONS if 0 < answer_seconds < BESIDE_SECONDS else NEAR_CONNECTIONS


class Pace:
    """Decides the number of connections."""

    def __init__(self, *, first: int, limit: int) -> None:
        self.limit = limit
        self.target = max(1, min(first, limit))  # how many should be fetching, at most `limit`
        self.saturated = False  # whether more connections were tried and did not help
        self.throttled = 0  # how often the bucket was overloaded
        self._doubling_to = limit if first < FAR_CONNECTIONS else 0  # above this, small steps
        self._before: tuple[int, float] | None = None  # the number before the present step, and its bytes per second
        self._steady_seconds = STEADY_SECONDS
        self._since: float | None = None  # when the present step began; None: at the next `observe`
        self._bytes = 0
        self._idle = False
        self._step = 0
        self._tries_fewer = 0 if self._doubling_to else 2
        self._answers: deque[bool] = deque(maxlen=BUSY_WINDOW)
        self._halved = self._held_until = -inf
        self._refused_at = limit

    def __repr__(self) -> str:
        return f"Pace({self.target} of {self.limit} connections{', saturated' if self.saturated else ''})"

    def limit_to(self, limit: int) -> None:
        """Changes the maximum, because other loads of this machine have come or gone."""
        self.limit = limit
        if self.target > limit:
            self.target, self._before, self._since = max(1, limit), None, None

    def answered(self, *, busy: bool, began: float, now: float) -> None:
        """A request was answered with data, or with a request to slow down."""
        # Requests from before the last step down say nothing about the present number.
        if began < self._halved:
            return
        self._answers.append(busy)
        if busy and sum(self._answers) >= max(BUSY_MIN, BUSY_SHARE * len(self._answers)):
            self._halve(now)

    def idle(self) -> None:
        """Not every connection had work, because memory is full or the load nearly done: the step says nothing."""
        self._idle = True

    def observe(self, received_bytes: int, now: float) -> None:
        """Takes in how much was received since the load began; changes `target` when a step is over."""
        if now < self._held_until:
            return
        if self._since is not None:
            lasted, count = now - self._since, received_bytes - self._bytes
            minimum = self._step_seconds()
            if lasted < minimum or (count < STEP_BYTES * self.target and lasted < minimum + STEP_SECONDS_MAX):
                return
            if not self._idle:
                self._judge(count / lasted)
        self._since, self._bytes, self._idle = now, received_bytes, False

    def _step_seconds(self) -> float:
        if self._before is None:
            return STEP_SECONDS if self._doubles or not self.saturated else self._steady_seconds
        return STEP_SECONDS if self.target >= 2 * self._before[0] else SMALL_STEP_SECONDS

    @property
    def _doubles(self) -> bool:
        return self.target < self._doubling_to

    def _judge(self, rate: float) -> None:
        if self._before is not None:
            number, earlier = self._before
            gain = 1 + STEP_GAIN_SHARE * (self.target / number - 1)
            self._before = None
            is_fewer = self.target < number
            self.saturated = (rate >= earlier * gain) if is_fewer else (rate < earlier * min(gain, DOUBLING_GAIN))
            if is_fewer or self.saturated:
                self.target = min(number, self.limit)
                self._doubling_to = self._step = 0
                self._steady_seconds = min(2 * self._steady_seconds, STEADY_SECONDS_MAX)
                return
            self._steady_seconds = STEADY_SECONDS
        if self._doubles:
            raised = min(2 * self.target, self._doubling_to, self.limit)
        else:
            self._step = min(2 * self._step or max(1, self.target // 8), self.target)
            raised = min(self.target + self._step, self.limit)
        if raised == self.target and self._tries_fewer:
            # At the limit from the start, fewer show whether more would help. The first step includes the first byte.
            self._tries_fewer -= 1
            raised -= 0 if self._tries_fewer else raised // 4
        if raised != self.target:
            self._before = (self.target, rate)
            self.target = raised

    def _halve(self, now: float) -> None:
        if now >= self._held_until:
            self._refused_at = self.target
        # A step up that overloads the bucket is undone, because the number before it did not.
        is_step_up = self._before is not None and self._before[0] < self.target
        fewer = self._before[0] if self._before is not None and is_step_up else self.target // 2
        self.target = min(self.target, max(TARGET_MIN, fewer))
        self.throttled += 1
        self._halved, self._held_until = now, now + HELD_SECONDS
        # Then quickly up again, but not to the number that overloaded the bucket.
        self._doubling_to = max(self.target, self._refused_at // 2)
        self._answers.clear()
        self._before = self._since = None
        self._step = 0
