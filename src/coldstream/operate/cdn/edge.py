"""Single reads through the CDN's domain."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import urllib3

from coldstream.net.http_message import plain_etag
from coldstream.net.pool import READ_SECONDS, HttpPool, failure
from coldstream.net.retry import is_retryable_status, retry_after
from coldstream.places.cdn_domain import CdnDomain
from coldstream.units import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeAnswer:
    """The answer to one read.

    Attributes:
        status: The HTTP status; 0 without an answer.
        cache: `cf-cache-status` in upper case, or "".
        size: Of the whole object, from the headers.
        etag: Without quotes; None for a weak one.
        is_page: Whether it is an HTML page.
        received: Bytes of the body.
        sha256: Of the whole object, if it was read.
        fault: Why there is no answer, without secrets.
    """

    status: int
    cache: str = ""
    size: int | None = None
    etag: str | None = None
    is_page: bool = False
    received: int = 0
    sha256: str | None = None
    fault: str = ""
    retry_after_seconds: float | None = None

    @property
    def failed_on_the_way(self) -> bool:
        """Whether the same read may succeed later."""
        return self.status == 0 or is_retryable_status(self.status)


class Edge:
    """The CDN as its clients see it. Thread-safe; redirects are not followed, because `cdn` holds secret headers."""

    def __init__(self, cdn: CdnDomain, *, count: int = 1, read_seconds: float = READ_SECONDS) -> None:
        """Touches no network; keeps up to `count` connections."""
        self.cdn = cdn
        self._pool = HttpPool(count, read_seconds=read_seconds)

    def byte(self, key: str, at: int | None) -> EdgeAnswer:
        """Reads one byte of an object, or an empty object if `at` is None."""
        return self._read(key, {} if at is None else {"Range": f"bytes={at}-{at}"}, None)

    def whole(self, key: str, on_bytes: Callable[[int], None] = lambda _: None) -> EdgeAnswer:
        """Reads all of an object; calls `on_bytes` with the size of each piece, which may raise to end the read."""
        return self._read(key, {}, on_bytes)

    def _read(self, key: str, headers: dict[str, str], on_bytes: Callable[[int], None] | None) -> EdgeAnswer:
        url = self.cdn.link(key)
        digest, received, is_whole, is_read = hashlib.sha256(), 0, False, False
        try:
            answer = self._pool.request("GET", url, headers=headers | dict(self.cdn.headers))
        except urllib3.exceptions.HTTPError as exc:
            return EdgeAnswer(status=0, fault=failure(exc, urlsplit(url).netloc).message)
        try:
            if on_bytes is not None and answer.status == 200:
                for piece in answer.stream(MIB, decode_content=False):
                    digest.update(piece)
                    received += len(piece)
                    on_bytes(len(piece))
                is_whole = is_read = True
            elif answer.status == 206 and answer.headers.get("Content-Length") == "1":
                answer.read(1, decode_content=False)
                is_read = True
        except urllib3.exceptions.HTTPError as exc:
            return EdgeAnswer(status=0, received=received, fault=failure(exc, urlsplit(url).netloc).message)
        finally:
            # Reading the rest of a body costs more than a new connection.
            answer.release_conn() if is_read else answer.close()
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
