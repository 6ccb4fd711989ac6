"""When to retry and when to give up: one policy for buckets, the Hub, web servers and Cloudflare's API.

Exponential back-off with full jitter, bounded by the time since anything last moved, not by a count of attempts: a
bucket that answers 503 for a minute is survived, one that is down for good is reported after `give_up_seconds`.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from coldstream.errors import CancelledError, ColdstreamError

T = TypeVar("T")

# No server makes us wait longer. The rate limits of the Hub and of Cloudflare's API have windows of five minutes.
RETRY_AFTER_SECONDS_MAX = 300.0
_RETRYABLE_4XX = frozenset({408, 425, 429})
_PERMANENT_5XX = frozenset({501, 505})


def is_retryable_status(status: int) -> bool:
    """Whether the same request may succeed later: the server is busy, limits the rate or has failed."""
    return status in _RETRYABLE_4XX or (status >= 500 and status not in _PERMANENT_5XX)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The wait in seconds that an answer requests: Retry-After in either form, or the Hub's RateLimit header.

    Header names are in lower case, or the mapping ignores case.
    """
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text):
        return min(float(text), RETRY_AFTER_SECONDS_MAX)
    if text:
        from email.utils import parsedate_to_datetime

        try:
            wait = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
        return min(max(wait, 0.0), RETRY_AFTER_SECONDS_MAX)
    if match := re.search(r";\s*t=([0-9]{1,6})\b", headers.get("ratelimit", "")):
        return min(float(match[1]), RETRY_AFTER_SECONDS_MAX)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long to wait between attempts: the mean doubles from `first_seconds` to `longest_seconds`.

    The server may request a longer wait. An operation without progress for `give_up_seconds` fails.
    """

    first_seconds: float = 0.5
    longest_seconds: float = 15.0
    give_up_seconds: float = 180.0

    def wait_seconds(self, failures: int, error: ColdstreamError) -> float:
        """The wait after the `failures`-th failure in a row (1 is the first)."""
        if error.retry_after_seconds is not None:
            # A little later, and not all at once: every client was told the same second.
            return error.retry_after_seconds + random.uniform(0.05, 0.5)
        mean: float = min(self.first_seconds * 2 ** (failures - 1), self.longest_seconds)
        return random.uniform(0.5, 1.5) * mean


@dataclass(slots=True)
class Retry:
    """Runs operations under a `Backoff`, counts the repeats, and stops when `cancel` is set. Thread-safe.

    `on_retry` is called before each wait with the error and the wait in seconds, from the thread that waits.
    """

    backoff: Backoff = field(default_factory=Backoff)
    cancel: threading.Event = field(default_factory=threading.Event)
    on_retry: Callable[[ColdstreamError, float], None] | None = None
    count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _shield: threading.local = field(default_factory=threading.local, repr=False)

    def run(self, operation: Callable[[], T], *, progress: Callable[[], int] | None = None) -> T:
        """Calls `operation` until it returns, fails permanently, or has made no progress for too long.

        `progress` returns a number that grows while the operation moves; each growth restarts the clock. Raises the
        last error, or CancelledError.
        """
        failures = 0
        moved = progress() if progress else 0
        since = time.monotonic()
        while True:
            self.check()
            try:
                return operation()
            except ColdstreamError as error:
                if not error.retryable or self._shielded:
                    raise
                if progress and progress() != moved:
                    moved, since, failures = progress(), time.monotonic(), 0
                failures += 1
                wait = self.backoff.wait_seconds(failures, error)
                if time.monotonic() + wait - since > self.backoff.give_up_seconds:
                    raise
                with self._lock:
                    self.count += 1
                if self.on_retry:
                    self.on_retry(error, wait)
                if self.cancel.wait(wait):
                    raise CancelledError("cancelled") from error

    def check(self) -> None:
        """Raises CancelledError when `cancel` is set."""
        if self.cancel.is_set() and not self._shielded:
            raise CancelledError("cancelled")

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """This thread's operations ignore `cancel` and are tried once: for the clean-up after a failure."""
        self._shield.on = True
        try:
            yield
        finally:
            self._shield.on = False

    @property
    def _shielded(self) -> bool:
        return getattr(self._shield, "on", False)
