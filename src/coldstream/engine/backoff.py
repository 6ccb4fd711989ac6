"""How long a chunk rests after a failure, and which failures are for good. Pure.

A load gives up when nothing has moved for long, never because one chunk has failed so and so often: while others
arrive, the bucket lives.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

BACKOFF_SECONDS = 0.05
BACKOFF_SECONDS_MAX = 5.0
RETRY_AFTER_SECONDS_MAX = 60.0
CORRUPT_MAX = 3
MISRANGED_MAX = 3
# What no second attempt changes, as the kind of the load's failure.
PERMANENT = {"changed": "conflict", "gone": "not-found", "tls": "unavailable"}


@dataclass(slots=True)
class Trouble:
    """What went wrong with a chunk so far.

    Attributes:
        failures: In a row, without a byte.
        corrupt: How often its digest was wrong.
        misranged: How often another range came than was asked for.
        takeovers: How often a slow connection was stopped.
    """

    failures: int = 0
    corrupt: int = 0
    misranged: int = 0
    takeovers: int = 0

    def rest(self, asked_seconds: float | None, rng: random.Random) -> float:
        """Notes a failure; how long to rest after it, in seconds.

        Args:
            asked_seconds: What the server asked for, or None.
            rng: For jitter: everyone else was told the same second.
        """
        self.failures += 1
        if asked_seconds is not None:
            return min(asked_seconds, RETRY_AFTER_SECONDS_MAX) + rng.uniform(0.0, 0.2)
        if self.failures == 1:
            return rng.uniform(0.0, BACKOFF_SECONDS)
        mean: float = min(BACKOFF_SECONDS * 2.0 ** (self.failures - 1), BACKOFF_SECONDS_MAX)
        return rng.uniform(0.5, 1.5) * mean
