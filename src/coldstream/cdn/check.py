"""Each object on two reads: whether it can be kept, whether it is, and what mends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from coldstream.cdn.edge import Answer, Edge
from coldstream.cdn.objects import Object

KEPT = {"HIT", "REVALIDATED", "UPDATING", "STALE"}
# Comes to be kept by being read: that the second read is none yet may be the place of the first.
COMING = {"MISS", "EXPIRED"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What became of an object.

    Attributes:
        object: Which.
        state: "kept", "coming" (kept soon), "too large", "not kept", "wrong" (other bytes than the bucket's),
            "refused", "unreachable".
        first: `cf-cache-status` of the first read; "" when there was none.
        second: Of the second.
        mend: What to do; "" when nothing.
    """

    object: Object
    state: str
    first: str
    second: str
    mend: str


def check(
    edge: Edge, objects: Sequence[Object], *, limit_bytes: int, connections: int, on_done: Callable[[Finding], None]
) -> list[Finding]:
    """Reads the first byte of each object, twice.

    Args:
        edge: The domain.
        objects: Of a model.
        limit_bytes: The largest that is kept.
        connections: How many are asked at the same time.
        on_done: Told as each is known, from several threads.
    """

    def one(item: Object) -> Finding:
        first = edge.head(item.key)
        second = edge.head(item.key) if first.status in {200, 206} else first
        found = judge(item, first, second, limit_bytes)
        on_done(found)
        return found

    with ThreadPoolExecutor(connections) as pool:
        return list(pool.map(one, objects))


def judge(item: Object, first: Answer, second: Answer, limit_bytes: int) -> Finding:
    """What two reads say of an object. Pure."""
    state, mend = _judged(item, first, second, limit_bytes)
    return Finding(object=item, state=state, first=first.cache, second=second.cache, mend=mend)


def _judged(item: Object, first: Answer, second: Answer, limit_bytes: int) -> tuple[str, str]:
    fault = fault_of(item, second)
    if fault is not None:
        return fault
    if item.size > limit_bytes:
        return "too large", "coldstream upload … --object-bytes-max 480MiB, or a plan that keeps more"
    if second.cache in KEPT:
        return "kept", ""
    if second.cache in COMING or first.cache in COMING:
        return "coming", "coldstream cdn warm"
    if second.cache == "BYPASS":
        return "not kept", "something says so: a rule, a cookie, Cache-Control of the object"
    return "not kept", "coldstream cdn rule" if second.cache else "is the domain proxied by Cloudflare?"


def fault_of(item: Object, answer: Answer) -> tuple[str, str] | None:
    """What is wrong with an answer whatever the cache says: (state, what mends it); None when nothing is. Pure."""
    if answer.status == 0:
        return "unreachable", answer.fault
    if answer.status in {401, 403}:
        return "refused", "set what the domain asks for: COLDSTREAM_CDN_HEADER, or CF_ACCESS_CLIENT_ID and its secret"
    if answer.status in {301, 302, 303, 307, 308}:
        return "refused", "it redirects, to a login of Access? Set CF_ACCESS_CLIENT_ID and its secret"
    if answer.status == 404:
        return "wrong", "404: is it this bucket's domain? A 404 from before an upload goes with: coldstream cdn purge"
    if answer.status not in {200, 206}:
        return "wrong", f"it answers {answer.status}"
    if answer.is_page and not item.key.endswith((".html", ".htm")):
        return "wrong", "an HTML page with status 200: is it this bucket's domain?"
    if answer.size is not None and answer.size != item.size:
        return "wrong", f"it has {answer.size} bytes, and the bucket's {item.size}: coldstream cdn purge"
    if answer.etag and item.etag and answer.etag != item.etag:
        return "wrong", "an older version is kept: coldstream cdn purge"
    if answer.sha256 and item.sha256 and answer.sha256 != item.sha256:
        return "wrong", "other bytes than the bucket's: coldstream cdn purge"
    return None
