"""A model's objects behind the domain: which of them a plan of Cloudflare's can cache, which are cached, and warming.

A cache may hold only the ranges of an object that were read. So the first look reads the first byte of an object, and
the second reads it again with others that may never have been requested. Cloudflare has no call that fills its cache:
reading does, near the client that reads, so `warm` has to run where the GPUs are.
"""

from __future__ import annotations

import hashlib
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

import urllib3

from coldstream.errors import CancelledError, NotFoundError, UnavailableError
from coldstream.mirror.segment_pool import ROOT
from coldstream.mirror.stored_files import StoredFile, object_key, open_model
from coldstream.model.selection import is_weights
from coldstream.net.http_message import plain_etag
from coldstream.net.pool import READ_SECONDS, HttpPool, failure
from coldstream.net.retry import Retry, is_retryable_status, retry_after
from coldstream.places.cdn_domain import CdnDomain
from coldstream.places.place import Store
from coldstream.progress import Progress
from coldstream.units import MIB

_SEGMENT = re.compile(rf"(?:^|/){re.escape(ROOT)}[0-9a-f]{{2}}/(?P<sha256>[0-9a-f]{{64}})$")
_MB = 10**6
# The largest object that a plan caches (docs cache/concepts/default-cache-behavior); Enterprise can raise its limit.
PLANS = {"free": 512 * _MB, "pro": 512 * _MB, "business": 512 * _MB, "enterprise": 5000 * _MB}
# If less of a bucket's weights can be cached, a cache rule does not speed up a load.
USEFUL_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class CdnObject:
    """One object of a model."""

    model: str
    key: str  # relative to the bucket: it follows the domain in a URL
    label: str
    size: int
    etag: str | None  # without quotes; None if it is not known
    sha256: str | None
    is_weights: bool  # whether it holds weights, or a part of them
    is_read: bool  # whether a load by coldstream reads it through the domain


def limit_of(plan: str | None) -> int:
    """The size of the largest object that a plan caches; the smallest limit of all plans for an unknown one."""
    return PLANS.get(plan or "", min(PLANS.values()))


def kept_share(objects: Iterable[CdnObject], limit_bytes: int) -> float | None:
    """The share of the weights' bytes that can be cached; None without weights."""
    sizes = [item.size for item in objects if item.is_weights]
    return sum(size for size in sizes if size <= limit_bytes) / sum(sizes) if any(sizes) else None


def objects_of(store: Store, name: str) -> list[CdnObject]:
    """The objects of a model, without its manifest, which is always read from the bucket."""
    model, prefix = open_model(store, name), key_prefix(store)
    objects: dict[str, CdnObject] = {}
    for file in model.files:
        for item in _of_file(file, model.name, prefix):
            objects.setdefault(item.key, item)
    return list(objects.values())


def is_stored(store: Store, item: CdnObject) -> bool:
    """Whether the bucket has an object now, whatever the CDN answers."""
    try:
        store.head(item.key.removeprefix(key_prefix(store)))
    except NotFoundError:
        return False
    return True


def key_prefix(store: Store) -> str:
    """The beginning of the store's keys in its bucket: a store may be a prefix, but the domain is the whole bucket."""
    prefix = urlsplit(store.uri).path.strip("/")
    return f"{prefix}/" if prefix else ""


def _of_file(file: StoredFile, name: str, prefix: str) -> Iterator[CdnObject]:
    weights = is_weights(file.path)
    for number, stored in enumerate([*file.objects, *([file.plain] if file.plain else [])], start=1):
        key = f"{prefix}{object_key(name, stored)}"
        segment = _SEGMENT.search(key)
        is_plain = stored is file.plain
        is_whole = len(file.objects) == 1 or is_plain
        yield CdnObject(
            model=name,
            key=key,
            label=f"{file.path} {number}/{len(file.objects)}" if stored.key.startswith("/") else file.path,
            size=stored.size,
            etag=stored.etag if stored.etag != "-" else None,
            sha256=segment["sha256"] if segment else file.entry.sha256 if file.entry and is_whole else None,
            is_weights=weights,
            is_read=weights and not is_plain and file.entry is not None,
        )


KEPT = {"HIT", "REVALIDATED", "UPDATING", "STALE"}
# Reads fill the cache; the second read may have reached another server than the first.
_COMING = {"MISS", "EXPIRED"}
# Attempts of one request if nothing ever came from the domain (its name or the network is the likelier fault), or if
# another request has exhausted the retry policy.
_TRIES_WITHOUT_HOPE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeAnswer:
    """The answer to one read."""

    status: int  # the HTTP status; 0 without an answer, for the reason in `fault`
    cache: str = ""  # `cf-cache-status` in upper case, or ""
    size: int | None = None  # of the whole object, like `sha256`, which needs a read of all of it
    etag: str | None = None  # without quotes; None for a weak one
    is_page: bool = False
    received: int = 0  # bytes of the body
    sha256: str | None = None
    fault: str = ""
    retry_after_seconds: float | None = None

    @property
    def failed_on_the_way(self) -> bool:
        return self.status == 0 or is_retryable_status(self.status)


class Edge:
    """The CDN as its clients see it. Thread-safe; redirects are not followed, because `cdn` holds secret headers."""

    def __init__(self, cdn: CdnDomain, *, count: int = 1, read_seconds: float = READ_SECONDS) -> None:
        self.cdn, self.connections = cdn, count
        self._pool = HttpPool(count, read_seconds=read_seconds)

    def byte(self, key: str, at: int | None) -> EdgeAnswer:
        """Reads one byte of an object, or an empty object if `at` is None."""
        return self._read(key, {} if at is None else {"Range": f"bytes={at}-{at}"}, None)

    def whole(self, key: str, on_bytes: Callable[[int], None] = lambda _: None) -> EdgeAnswer:
        """Reads all of an object; calls `on_bytes` with the size of each piece, which may raise to end the read."""
        return self._read(key, {}, on_bytes)

    def _read(self, key: str, headers: dict[str, str], on_bytes: Callable[[int], None] | None) -> EdgeAnswer:
        url = self.cdn.link(key)
        digest, received, is_whole = hashlib.sha256(), 0, False
        try:
            # Reading the rest of a body that is not needed costs more than a new connection.
            with self._pool.request("GET", url, headers=headers | dict(self.cdn.headers)) as answer:
                if on_bytes is not None and answer.status == 200:
                    for piece in answer.stream(MIB, decode_content=False):
                        digest.update(piece)
                        received += len(piece)
                        on_bytes(len(piece))
                    is_whole = True
                elif answer.status == 206 and answer.headers.get("Content-Length") == "1":
                    answer.read(1, decode_content=False)
        except urllib3.exceptions.HTTPError as exc:
            return EdgeAnswer(status=0, received=received, fault=failure(exc, urlsplit(url).netloc).message)
        return _parsed(answer, received, digest.hexdigest() if is_whole else None)


def _parsed(answer: urllib3.BaseHTTPResponse, received: int, sha256: str | None) -> EdgeAnswer:
    headers = answer.headers
    cache = headers.get("cf-cache-status", "").strip().upper()
    etag, length = headers.get("etag", ""), headers.get("content-length", "")
    total = re.fullmatch(r"bytes \d+-\d+/(\d+)", headers.get("content-range", "").strip())
    return EdgeAnswer(
        status=answer.status,
        cache=cache if re.fullmatch(r"[A-Z]{1,20}", cache) else "",
        size=int(total[1]) if total else int(length) if answer.status == 200 and length.isdecimal() else None,
        etag=plain_etag(etag) if etag and not etag.startswith("W/") else None,
        is_page="html" in headers.get("content-type", "").lower(),
        received=received,
        sha256=sha256,
        retry_after_seconds=retry_after(headers),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFinding:
    """How the CDN serves an object."""

    object: CdnObject
    # "kept", "coming" (cached soon), "too large", "not kept", "kept 404" (a cached 404), "wrong" (other bytes
    # than the bucket's), "refused", "unreachable".
    state: str
    first: str  # `cf-cache-status` of the first look; "" without one
    second: str  # of the second look: of the first byte that is not cached, or of the last that is
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmed:
    """The result of filling the cache."""

    findings: tuple[CacheFinding, ...]  # of the objects that are not too large, by the second look
    bytes: int  # read in the first pass
    seconds: float
    first_hits: int  # objects that were cached before
    retries: int
    left_out: tuple[CdnObject, ...]  # objects that are too large to be cached

    @property
    def hits(self) -> int:
        """Objects that the second look found cached: their first byte, their last and one between."""
        return sum(finding.state == "kept" for finding in self.findings)

    @property
    def hit_bytes(self) -> int:
        return sum(finding.object.size for finding in self.findings if finding.state == "kept")


# Reads one byte of an object, by its key and the offset, as `Edge.byte` does; and tells whether the bucket has it.
ReadByte = Callable[[str, int | None], EdgeAnswer]
InBucket = Callable[[CdnObject], bool]


def check(edge: Edge, objects: Sequence[CdnObject], *, limit_bytes: int, in_bucket: InBucket) -> list[CacheFinding]:
    """Looks twice at each object, at four bytes in all; asks the bucket if the domain answers 404."""

    def look(item: CdnObject) -> CacheFinding:
        return _second_look(item, edge.byte(item.key, places(item)[0]), edge.byte, limit_bytes, in_bucket)

    with ThreadPoolExecutor(edge.connections) as pool:
        return list(pool.map(look, objects))


def warm(
    edge: Edge, objects: Sequence[CdnObject], *, limit_bytes: int, in_bucket: InBucket, progress: Progress, retry: Retry
) -> Warmed:
    """Reads and verifies all of each object, then looks at three of its bytes. An interrupt cancels `retry`."""
    small = [item for item in objects if item.size <= limit_bytes]
    retried = _RetriedRequests(retry)
    began = time.monotonic()

    def fill(item: CdnObject) -> tuple[EdgeAnswer, CacheFinding]:
        def on_bytes(count: int) -> None:
            if retry.cancel.is_set():
                raise CancelledError("cancelled", hint="what has been read stays cached; run it again to go on")
            progress.fetched(item.key, count)

        def read() -> EdgeAnswer:
            answer = edge.whole(item.key, on_bytes)
            if answer.failed_on_the_way:
                # All of it is read again: only a complete response is cached.
                progress.fetched(item.key, -answer.received)
            return answer

        progress.begin(item.key, item.size, stages=1)
        first = retried.send(read)
        finding = _second_look(item, first, byte, limit_bytes, in_bucket)
        progress.end(item.key, finding.second or finding.state)
        return first, finding

    def byte(key: str, at: int | None) -> EdgeAnswer:
        return retried.send(lambda: edge.byte(key, at))

    with ThreadPoolExecutor(edge.connections) as pool:
        try:
            results = list(pool.map(fill, small))
        except BaseException:
            retry.cancel.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return Warmed(
        findings=tuple(finding for _, finding in results),
        bytes=sum(first.received for first, _ in results),
        seconds=time.monotonic() - began,
        # A page or a 404 may be cached as well.
        first_hits=sum(first.cache in KEPT and not fault_of(finding.object, first) for first, finding in results),
        retries=retry.count,
        left_out=tuple(item for item in objects if item.size > limit_bytes),
    )


class _RetriedRequests:
    """Requests through the domain, retried while they fail on the way. Thread-safe."""

    # The policy's patience is for the domain, not for each of its objects: once one request has exhausted it, the
    # others are retried a few times only.
    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self._answered = threading.Event()
        self._exhausted = threading.Event()

    def send(self, request: Callable[[], EdgeAnswer]) -> EdgeAnswer:
        answers: list[EdgeAnswer] = []

        def attempt() -> EdgeAnswer:
            answer = request()
            answers.append(answer)
            if answer.status or answer.received:
                self._answered.set()
            if answer.failed_on_the_way:
                hope = self._answered.is_set() and not self._exhausted.is_set()
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
                self._exhausted.set()
            return answers[-1]


def _second_look(
    item: CdnObject, first: EdgeAnswer, read: ReadByte, limit_bytes: int, in_bucket: InBucket
) -> CacheFinding:
    second, partly = (first, False) if fault_of(item, first) else look_again(read, item)
    stored = in_bucket(item) if second.status == 404 else None
    return judge(item, first, second, limit_bytes, partly=partly, in_bucket=stored)


def places(item: CdnObject) -> list[int | None]:
    """The offsets that tell whether all of an object is cached: its first byte, its last and one between."""
    # A random one, because earlier looks have left the bytes that they read in the cache.
    last = item.size - 1
    return [*dict.fromkeys((0, last, random.randint(0, last)))] if item.size else [None]


def look_again(read: ReadByte, item: CdnObject) -> tuple[EdgeAnswer, bool]:
    """Reads an object's bytes until one is not cached; returns the last answer, and whether only a part is cached."""
    for count, at in enumerate(places(item)):
        answer = read(item.key, at)
        if fault_of(item, answer) or answer.cache not in KEPT:
            return answer, count > 0
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
    """Combines two looks at an object; `in_bucket` is None if the bucket was not asked. Pure."""
    state, fix = "not kept", "coldstream cdn rule" if second.cache else "is the domain proxied by Cloudflare?"
    if fault := fault_of(item, second, in_bucket=in_bucket):
        state, fix = fault
    elif item.size > limit_bytes:
        state, fix = "too large", "coldstream upload … --object-bytes-max 480MiB, or a plan that caches larger objects"
    elif second.cache in KEPT:
        state, fix = "kept", ""
    elif second.cache in _COMING or first.cache in _COMING:
        command = f"coldstream cdn warm {item.model}"
        state, fix = "coming", f"only a part is kept: {command}" if partly else command
    elif second.cache == "BYPASS":
        fix = "bypassed by a rule, a cookie, or Cache-Control of the object"
    return CacheFinding(object=item, state=state, first=first.cache, second=second.cache, fix=fix)


def fault_of(item: CdnObject, answer: EdgeAnswer, *, in_bucket: bool | None = None) -> tuple[str, str] | None:
    """The fault of an answer, regardless of the cache: (state, fix); None if there is none. Pure."""
    purge = f"coldstream cdn purge {item.model}"
    if answer.status == 404 and in_bucket is not None:
        if not in_bucket:
            return "wrong", f"404, and the bucket has none either: coldstream verify {item.model}"
        if answer.cache in KEPT:
            fix = f"{purge}, or wait 3 minutes"
            return "kept 404", f"a 404 from before the upload is kept, and the bucket has the object: {fix}"
        return "wrong", "404, and the bucket has the object: is it this bucket's domain?"
    if answer.status == 0:
        return "unreachable", answer.fault
    if answer.status in {401, 403}:
        headers = "COLDSTREAM_CDN_HEADER, or CF_ACCESS_CLIENT_ID and its secret"
        return "refused", f"set the headers that the domain requires: {headers}"
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
