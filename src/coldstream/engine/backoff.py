"""How long a chunk rests after a failure, and which failures are permanent. Pure.

A load gives up when nothing at all has moved for long, never because one chunk has failed a number of times: while
others arrive, the bucket works.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

BACKOFF_SECONDS = 0.05
BACKOFF_SECONDS_MAX = 5.0
RETRY_AFTER_SECONDS_MAX = 60.0
CORRUPT_MAX = 3
MISRANGED_MAX = 3
# Failures that a retry cannot fix, and the kind of the load's failure.
PERMANENT = {"changed": "conflict", "gone": "not-found", "tls": "unavailable"}


@dataclass(slots=True)
class RetryState:
    """A chunk's failures so far.

    Attributes:
        failures: Consecutive ones without a received byte.
        corrupt: Wrong digests.
        misranged: Answers with a range that was not requested.
        takeovers: Slow connections that were stopped.
    """

    failures: int = 0
    corrupt: int = 0
    misranged: int = 0
    takeovers: int = 0

    def rest(self, retry_after_seconds: float | None, rng: random.Random) -> float:
        """Counts a failure; returns how many seconds to rest, with jitter, since other clients got the same answer."""
        self.failures += 1
        if retry_after_seconds is not None:
            return min(retry_after_seconds, RETRY_AFTER_SECONDS_MAX) + rng.uniform(0.0, 0.2)
        if self.failures == 1:
            return rng.uniform(0.0, BACKOFF_SECONDS)
        mean: float = min(BACKOFF_SECONDS * 2.0 ** (self.failures - 1), BACKOFF_SECONDS_MAX)
        return rng.uniform(0.5, 1.5) * mean
