"""Each object that can be kept, pulled through the domain from where this runs; then looked at again.

Cloudflare has no call that fills its cache: reading does, near the client that reads, so it runs where the GPUs are.
Requests that fail with a reset, a 5xx or a 429 are retried.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from coldstream.errors import CancelledError, UnavailableError
from coldstream.net.retry import Retry
from coldstream.operate.cdn.cache_check import KEPT, CacheFinding, fault_of, judge, look_again
from coldstream.operate.cdn.edge import Edge, EdgeAnswer
from coldstream.operate.cdn.model_objects import CdnObject
from coldstream.progress import Progress

# Of one request, when nothing has ever come from the domain (its name or the network is the likelier fault), or when
# another one has waited in vain for as long as the policy allows.
_TRIES_WITHOUT_HOPE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmed:
    """What was done.

    Attributes:
        findings: Of each object, by the second look; of those that are too large, of none.
        bytes: That were read in the first pass.
        seconds: That it took.
        first_hits: Objects that the first pass finding kept already.
        hits: That the second look finding kept: their first byte, their last and one between.
        hit_bytes: Their bytes.
        retries: How often a request was repeated.
        left_out: Objects that are too large to be kept.
    """

    findings: tuple[CacheFinding, ...]
    bytes: int
    seconds: float
    first_hits: int
    hits: int
    hit_bytes: int
    retries: int
    left_out: tuple[CdnObject, ...]


def warm(
    edge: Edge,
    objects: Sequence[CdnObject],
    *,
    limit_bytes: int,
    connections: int,
    in_bucket: Callable[[CdnObject], bool],
    progress: Progress,
    retry: Retry,
) -> Warmed:
    """Reads all of each object, compares it with what is known of it, and looks once more, at three bytes of it.

    Args:
        edge: The domain.
        objects: Of a model.
        limit_bytes: The largest that is kept.
        connections: How many are read at the same time.
        in_bucket: Whether the bucket has an object, for those that the domain says are not there.
        progress: Told of bytes.
        retry: The policy of its requests, of its own: it is cancelled when this is interrupted.

    Raises:
        CancelledError: It was interrupted; what has been read stays kept.
    """
    small = [item for item in objects if item.size <= limit_bytes]
    asking = _Asking(retry)
    began = time.monotonic()
    counted = {"bytes": 0, "hits": 0}
    lock = threading.Lock()

    def one(item: CdnObject) -> CacheFinding:
        def on_bytes(count: int) -> None:
            if retry.cancel.is_set():
                raise CancelledError("cancelled", hint="what has been read stays kept; run it again to go on")
            progress.fetched(item.key, count)

        def read() -> EdgeAnswer:
            answer = edge.whole(item.key, on_bytes)
            if answer.failed_on_the_way:
                # All of it is read again: only a whole answer is kept.
                progress.fetched(item.key, -answer.received)
            return answer

        progress.begin(item.key, item.size, stages=1)
        first = asking(read)
        with lock:
            counted["bytes"] += first.received
            # A page or a 404 may be kept as well.
            counted["hits"] += first.cache in KEPT and not fault_of(item, first)
        second, partly = (first, False) if fault_of(item, first) else look_again(byte, item)
        held = in_bucket(item) if second.status == 404 else None
        finding = judge(item, first, second, limit_bytes, partly=partly, in_bucket=held)
        progress.end(item.key, second.cache or finding.state)
        return finding

    def byte(key: str, at: int | None) -> EdgeAnswer:
        return asking(lambda: edge.byte(key, at))

    with ThreadPoolExecutor(connections) as pool:
        try:
            findings = list(pool.map(one, small))
        except BaseException:
            retry.cancel.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    kept = [finding.object for finding in findings if finding.state == "kept"]
    return Warmed(
        findings=tuple(findings),
        bytes=counted["bytes"],
        seconds=time.monotonic() - began,
        first_hits=counted["hits"],
        hits=len(kept),
        hit_bytes=sum(item.size for item in kept),
        retries=retry.count,
        left_out=tuple(item for item in objects if item.size > limit_bytes),
    )


class _Asking:
    """Requests through the domain, repeated while they fail on the way. Thread-safe.

    The policy's patience is for the domain, not for each of its objects: once one request has used it up, the others
    are repeated a few times only.
    """

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self._answered = threading.Event()
        self._spent = threading.Event()

    def __call__(self, request: Callable[[], EdgeAnswer]) -> EdgeAnswer:
        """The answer; that to the last attempt when all have failed."""
        answers: list[EdgeAnswer] = []

        def attempt() -> EdgeAnswer:
            answer = request()
            answers.append(answer)
            if answer.status or answer.received:
                self._answered.set()
            if answer.failed_on_the_way:
                hope = self._answered.is_set() and not self._spent.is_set()
                quick = len(answers) < _TRIES_WITHOUT_HOPE and answer.retry_after_seconds is None
                raise UnavailableError(
                    f"the domain answers {answer.status}" if answer.status else f"the domain: {answer.fault}",
                    retryable=hope or quick,
                    retry_after_seconds=answer.retry_after_seconds,
                )
            return answer

        try:
            return self._retry.run(attempt)
        except UnavailableError:
            if self._answered.is_set():
                self._spent.set()
            return answers[-1]
