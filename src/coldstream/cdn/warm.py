"""Each object that can be kept, pulled through the domain from where this runs; then looked at again.

Cloudflare has no call that fills its cache: reading does, and only near whoever reads. It is for where the GPUs are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from coldstream.cdn.check import KEPT, Finding, fault_of, judge, look_again
from coldstream.cdn.edge import Edge
from coldstream.cdn.objects import Object
from coldstream.errors import CancelledError
from coldstream.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmed:
    """What was done.

    Attributes:
        findings: Of each object, by the second look; of those that are too large, of none.
        bytes: That were read in the first pass.
        seconds: That it took.
        first_hits: Objects that the first pass found kept already.
        hits: That the second look found kept: their first byte, their last and one between.
        hit_bytes: Their bytes.
        left_out: Objects that are too large to be kept.
    """

    findings: tuple[Finding, ...]
    bytes: int
    seconds: float
    first_hits: int
    hits: int
    hit_bytes: int
    left_out: tuple[Object, ...]


def warm(
    edge: Edge,
    objects: Sequence[Object],
    *,
    limit_bytes: int,
    connections: int,
    in_bucket: Callable[[Object], bool],
    progress: Progress,
) -> Warmed:
    """Reads all of each object, compares it with what is known of it, and looks once more, at three bytes of it.

    Args:
        edge: The domain.
        objects: Of a model.
        limit_bytes: The largest that is kept.
        connections: How many are read at the same time.
        in_bucket: Whether the bucket has an object, for those that the domain says are not there.
        progress: Told of bytes.

    Raises:
        CancelledError: It was interrupted; what has been read stays kept.
    """
    small = [item for item in objects if item.size <= limit_bytes]
    stop = threading.Event()
    began = time.monotonic()
    counted = {"bytes": 0, "hits": 0}
    lock = threading.Lock()

    def one(item: Object) -> Finding:
        def on_bytes(count: int) -> None:
            if stop.is_set():
                raise CancelledError("cancelled", hint="what has been read stays kept; run it again to go on")
            progress.fetched(item.key, count)

        progress.begin(item.key, item.size, stages=1)
        first = edge.whole(item.key, on_bytes)
        with lock:
            counted["bytes"] += first.received
            # A page or a 404 may be kept as well.
            counted["hits"] += first.cache in KEPT and not fault_of(item, first)
        second, partly = (first, False) if fault_of(item, first) else look_again(edge.byte, item)
        held = in_bucket(item) if second.status == 404 else None
        found = judge(item, first, second, limit_bytes, partly=partly, in_bucket=held)
        progress.end(item.key, second.cache or found.state)
        return found

    with ThreadPoolExecutor(connections) as pool:
        try:
            findings = list(pool.map(one, small))
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    kept = [found.object for found in findings if found.state == "kept"]
    return Warmed(
        findings=tuple(findings),
        bytes=counted["bytes"],
        seconds=time.monotonic() - began,
        first_hits=counted["hits"],
        hits=len(kept),
        hit_bytes=sum(item.size for item in kept),
        left_out=tuple(item for item in objects if item.size > limit_bytes),
    )
