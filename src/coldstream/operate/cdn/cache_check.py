"""Reads each object twice: whether it can be cached, whether all of it is, and how to fix it.

A cache may keep only the ranges of an object that were read. The first look is at the first byte; the second is at
that and at others that may never have been requested.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from coldstream.operate.cdn.edge import Edge, EdgeAnswer
from coldstream.operate.cdn.model_objects import CdnObject

KEPT = {"HIT", "REVALIDATED", "UPDATING", "STALE"}
# Comes to be kept by being read: that the second read is none yet may be the place of the first.
COMING = {"MISS", "EXPIRED"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFinding:
    """What became of an object.

    Attributes:
        object: Which.
        state: "kept", "coming" (kept soon), "too large", "not kept", "kept 404" (that the object was not there is what
            is kept), "wrong" (other bytes than the bucket's), "refused", "unreachable".
        first: `cf-cache-status` of the first read; "" when there was none.
        second: Of the second look: of the first byte that is not kept, or of the last that is.
        fix: What to do; "" if nothing.
    """

    object: CdnObject
    state: str
    first: str
    second: str
    fix: str


def check(
    edge: Edge,
    objects: Sequence[CdnObject],
    *,
    limit_bytes: int,
    connections: int,
    in_bucket: Callable[[CdnObject], bool],
    on_done: Callable[[CacheFinding], None],
) -> list[CacheFinding]:
    """Looks twice at each object, at four bytes in all.

    Args:
        edge: The domain.
        objects: Of a model.
        limit_bytes: The largest that is kept.
        connections: How many are asked at the same time.
        in_bucket: Whether the bucket has an object, for those that the domain says are not there.
        on_done: Told as each is known, from several threads.
    """

    def one(item: CdnObject) -> CacheFinding:
        first = edge.byte(item.key, places(item)[0])
        second, partly = look_again(edge.byte, item) if first.status in {200, 206} else (first, False)
        held = in_bucket(item) if second.status == 404 else None
        finding = judge(item, first, second, limit_bytes, partly=partly, in_bucket=held)
        on_done(finding)
        return finding

    with ThreadPoolExecutor(connections) as pool:
        return list(pool.map(one, objects))


def places(item: CdnObject) -> list[int | None]:
    """The bytes that tell whether all of an object is kept: its first, its last and one between.

    That one is drawn anew, so that what earlier looks have left in the cache does not pass for the object.
    """
    last = item.size - 1
    return [*dict.fromkeys((0, last, random.randint(0, last)))] if item.size else [None]


def look_again(read: Callable[[str, int | None], EdgeAnswer], item: CdnObject) -> tuple[EdgeAnswer, bool]:
    """Reads an object's bytes until one is not kept.

    Args:
        read: Asks for one byte of a key.
        item: The object.

    Returns:
        (the last answer, whether others before it were kept and it is not).
    """
    answer = None
    for count, at in enumerate(places(item)):
        answer = read(item.key, at)
        if fault_of(item, answer) or answer.cache not in KEPT:
            return answer, count > 0
    assert answer is not None
    return answer, False


def judge(
    item: CdnObject,
    first: EdgeAnswer,
    second: EdgeAnswer,
    limit_bytes: int,
    *,
    partly: bool = False,
    in_bucket: bool | None = None,
) -> CacheFinding:
    """What two looks say of an object. Pure.

    Args:
        item: The object.
        first: The answer to the first look.
        second: To the second, as `look_again` gives it.
        limit_bytes: The largest that is kept.
        partly: Whether other bytes of it are kept than the one in `second`.
        in_bucket: Whether the bucket has it; None if that was not checked.
    """
    state, fix = _lost(item, second, in_bucket=in_bucket) or _judged(item, first, second, limit_bytes, partly=partly)
    return CacheFinding(object=item, state=state, first=first.cache, second=second.cache, fix=fix)


def _judged(
    item: CdnObject, first: EdgeAnswer, second: EdgeAnswer, limit_bytes: int, *, partly: bool
) -> tuple[str, str]:
    fault = fault_of(item, second)
    if fault is not None:
        return fault
    if item.size > limit_bytes:
        return "too large", "coldstream upload … --object-bytes-max 480MiB, or a plan that keeps more"
    if second.cache in KEPT:
        return "kept", ""
    if second.cache in COMING or first.cache in COMING:
        fix = f"coldstream cdn warm {item.model}"
        return "coming", f"only a part is kept: {fix}" if partly else fix
    if second.cache == "BYPASS":
        return "not kept", "something says so: a rule, a cookie, Cache-Control of the object"
    return "not kept", "coldstream cdn rule" if second.cache else "is the domain proxied by Cloudflare?"


def _lost(item: CdnObject, answer: EdgeAnswer, *, in_bucket: bool | None) -> tuple[str, str] | None:
    """What a 404 means, when the bucket has been asked as well; None for other answers."""
    if answer.status != 404 or in_bucket is None:
        return None
    if not in_bucket:
        return "wrong", f"404, and the bucket has none either: coldstream verify {item.model}"
    if answer.cache in KEPT:
        fix = f"coldstream cdn purge {item.model}, or wait 3 minutes"
        return "kept 404", f"a 404 from before the upload is kept, and the bucket has the object: {fix}"
    return "wrong", "404, and the bucket has the object: is it this bucket's domain?"


def fault_of(item: CdnObject, answer: EdgeAnswer) -> tuple[str, str] | None:
    """The fault of an answer, regardless of the cache: (state, fix); None if there is none. Pure."""
    purge = f"coldstream cdn purge {item.model}"
    if answer.status == 0:
        return "unreachable", answer.fault
    if answer.status in {401, 403}:
        return "refused", "set what the domain asks for: COLDSTREAM_CDN_HEADER, or CF_ACCESS_CLIENT_ID and its secret"
    if answer.status in {301, 302, 303, 307, 308}:
        return "refused", "it redirects, to a login of Access? Set CF_ACCESS_CLIENT_ID and its secret"
    if answer.status not in {200, 206}:
        return "wrong", f"it answers {answer.status}"
    if answer.is_page and not item.key.endswith((".html", ".htm")):
        return "wrong", "an HTML page with status 200: is it this bucket's domain?"
    if answer.size is not None and answer.size != item.size:
        return "wrong", f"it has {answer.size} bytes, and the bucket's {item.size}: {purge}"
    if answer.etag and item.etag and answer.etag != item.etag:
        return "wrong", f"an older version is kept: {purge}"
    if answer.sha256 and item.sha256 and answer.sha256 != item.sha256:
        return "wrong", f"other bytes than the bucket's: {purge}"
    return None
