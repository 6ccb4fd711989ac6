"""One read through the domain, and what came."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

import urllib3

from coldstream.net.http_message import plain_etag
from coldstream.net.retry import is_retryable_status, retry_after
from coldstream.net.trust import connections
from coldstream.places.cdn_domain import CdnDomain
from coldstream.units import MIB

_READ_BYTES = MIB
_CONNECT_SECONDS = 15.0
_READ_SECONDS = 60.0
_STATUS = re.compile(r"[A-Z]{1,20}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeAnswer:
    """What came.

    Attributes:
        status: The HTTP status; 0 when nothing did.
        cache: `cf-cache-status`, in upper case; "" when there is none.
        size: Of the whole object, as the answer says; None when it does not.
        etag: Without quotes; None when there is none, or only a weak one.
        is_page: Whether it is an HTML page.
        received: Bytes of the body.
        sha256: Of them, when the whole object was read.
        fault: Why nothing came, without a secret.
        retry_after_seconds: How long it asks to wait; None when it does not.
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
        """Whether the same question may be answered later: nothing came, or a status that is not final."""
        return self.status == 0 or is_retryable_status(self.status)


class Edge:
    """The domain, as one asks it. Thread-safe."""

    def __init__(self, cdn: CdnDomain, *, count: int = 1) -> None:
        """Touches no network.

        Args:
            cdn: The domain and the headers that it asks for, which only go to it: no redirect is followed.
            count: Connections that are kept.
        """
        self.cdn = cdn
        self._pools = connections(count)

    def byte(self, key: str, at: int | None) -> EdgeAnswer:
        """Asks for one byte: what is in the way of those around it is in its way, too.

        Args:
            key: Relative to the bucket.
            at: Which; None for an object that has none.
        """
        return self._ask(key, {} if at is None else {"Range": f"bytes={at}-{at}"}, None)

    def whole(self, key: str, on_bytes: Callable[[int], None]) -> EdgeAnswer:
        """Reads all of an object.

        Args:
            key: Relative to the bucket.
            on_bytes: Told of bytes as they come; what it raises ends the read.
        """
        return self._ask(key, {}, on_bytes)

    def _ask(self, key: str, headers: dict[str, str], on_bytes: Callable[[int], None] | None) -> EdgeAnswer:
        url = self.cdn.link(key)
        try:
            answer = self._pools(url).request(
                "GET",
                url,
                headers={**headers, "Accept-Encoding": "identity", **dict(self.cdn.headers)},
                timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=_READ_SECONDS),
                retries=False,
                redirect=False,
                preload_content=False,
            )
        except urllib3.exceptions.HTTPError as exc:
            return EdgeAnswer(status=0, fault=_reason(exc))
        digest, received, done, read = hashlib.sha256(), 0, False, False
        try:
            if on_bytes is not None and answer.status == 200:
                for piece in answer.stream(_READ_BYTES, decode_content=False):
                    digest.update(piece)
                    received += len(piece)
                    on_bytes(len(piece))
                done = read = True
            elif answer.status == 206 and answer.headers.get("Content-Length") == "1":
                answer.read(1, decode_content=False)
                read = True
        except urllib3.exceptions.HTTPError as exc:
            return EdgeAnswer(status=0, received=received, fault=_reason(exc))
        finally:
            # What is left of a body is not worth the connection.
            answer.release_conn() if read else answer.close()
        return _answer(answer, received, digest.hexdigest() if done else None)


def _answer(answer: urllib3.BaseHTTPResponse, received: int, sha256: str | None) -> EdgeAnswer:
    headers = {name.lower(): value for name, value in answer.headers.items()}
    cache = headers.get("cf-cache-status", "").strip().upper()
    etag = headers.get("etag", "")
    total = re.fullmatch(r"bytes \d+-\d+/(\d+)", headers.get("content-range", "").strip())
    length = headers.get("content-length", "")
    size = int(total[1]) if total else int(length) if answer.status == 200 and length.isdecimal() else None
    return EdgeAnswer(
        status=answer.status,
        cache=cache if _STATUS.fullmatch(cache) else "",
        size=size,
        etag=plain_etag(etag) if etag and not etag.startswith("W/") else None,
        is_page="html" in headers.get("content-type", "").lower(),
        received=received,
        sha256=sha256,
        retry_after_seconds=retry_after(answer.headers),
    )


def _reason(exc: Exception) -> str:
    """Why, without the URL: urllib3 puts it into its messages."""
    text = re.sub(r"^.*Caused by \w+\((.*)\)\)?$", r"\1", str(exc))
    text = re.sub(r"<[^>]*>:? ?", "", text)
    return f"{type(exc).__name__}: {text[:160]}"
