"""HTTP by urllib3, with the proxies and certificates that the engine uses: small reads, the Hub, Cloudflare, the CDN.

Nothing is retried here. The engine's workers have their own client (`connection`), which receives into the destination.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException, IncompleteRead
from typing import TYPE_CHECKING, Any, Final

import urllib3

from coldstream.machine.closing import Closing
from coldstream.net.http_message import (
    FetchError,
    Head,
    Headers,
    Proxy,
    Target,
    check_range,
    check_version,
    checked_head,
    conditions,
    is_unexpected,
    parse_target,
    proxy_for,
    refusal,
    reported_size,
)
from coldstream.net.tls import ssl_context, tls_fault
from coldstream.package import __version__

if TYPE_CHECKING:
    pass

CONNECT_SECONDS: Final = 10.0
# Between two reads, not for the whole reply.
READ_SECONDS: Final = 60.0
REDIRECTS_MAX: Final = 5
_ERROR_BODY_BYTES_MAX: Final = 64 << 10


class HttpPool(Closing):
    """Keeps up to `count` idle connections to each host. Thread-safe. `ca_bundle` replaces AWS_CA_BUNDLE."""

    def __init__(self, count: int = 16, *, ca_bundle: str | None = None, read_seconds: float = READ_SECONDS) -> None:
        self._count, self._ca_bundle = count, ca_bundle
        self._timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=read_seconds)
        self._managers: dict[tuple[str, Proxy | None], urllib3.PoolManager] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Closes the idle connections."""
        with self._lock:
            for manager in self._managers.values():
                manager.clear()

    def request(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> urllib3.BaseHTTPResponse:
        """Sends a request, and returns the reply with its body still to be read. No redirect is followed.

        The caller closes the response; the connection is reused if the body was read to its end. Raises ConfigError,
        FetchError for a malformed URL, and urllib3's errors, which `failure` translates.
        """
        # Nothing is decompressed, so the bytes that are read are the file's.
        fixed = {"Accept-Encoding": "identity", "User-Agent": f"coldstream/{__version__}"}
        return self._manager(parse_target(url)).request(
            method,
            url,
            body=body,
            headers=fixed | dict(headers or {}),
            preload_content=False,
            redirect=False,
            retries=False,
        )

    def _manager(self, target: Target) -> urllib3.PoolManager:
        key = target.scheme, proxy_for(target)
        with self._lock:
            if key not in self._managers:
                scheme, proxy = key
                options: dict[str, Any] = {
                    "maxsize": self._count,
                    "timeout": self._timeout,
                    "ssl_context": ssl_context(ca_bundle=self._ca_bundle) if scheme == "https" else None,
                }
                if proxy is None:
                    self._managers[key] = urllib3.PoolManager(**options)
                else:
                    host = f"[{proxy.host}]" if ":" in proxy.host else proxy.host
                    secret = {"Proxy-Authorization": proxy.authorization} if proxy.authorization else {}
                    self._managers[key] = urllib3.ProxyManager(
                        f"http://{host}:{proxy.port}", proxy_headers=secret, **options
                    )
            return self._managers[key]

    @contextmanager
    def open_range(
        self, url: str, start: int, stop: int, *, headers: Headers = (), etag: str | None = None, exact: bool = False
    ) -> Iterator[RangeBody]:
        """Requests `[start, stop)` of an object, which may end before unless `exact`, and checks the head of the reply.

        Follows up to five redirects, but never from https to http. `headers` are only sent to the first host. Raises
        ConfigError, and FetchError also for failures within the context.
        """
        target = first = parse_target(url)
        for _ in range(REDIRECTS_MAX + 1):
            response = None
            try:
                response = self.request("GET", target.url, headers=dict((*conditions(start, stop, etag), *headers)))
                head = checked_head(
                    response.status, {name.lower(): response.headers[name] for name in response.headers}
                )
                location = response.get_redirect_location()
                if not location:
                    yield _checked(response, head, target, start, stop, etag, exact=exact)
                    return
                response.read(_ERROR_BODY_BYTES_MAX)
            except (urllib3.exceptions.HTTPError, OSError, ValueError) as exc:
                # ValueError: a chunk size that is not a number.
                raise failure(exc, target.host) from exc
            finally:
                if response is not None:
                    response.close()
            following = parse_target(location, base=target.url)
            if target.scheme == "https" and following.scheme == "http":
                raise FetchError("refused", f"{target.shown} redirects to plain http on {following.authority}")
            if following.place != target.place:
                # Never again: a redirect back to the first host is not the caller's request.
                headers = ()
            target = following
        raise FetchError("range", f"{first.shown}: more than {REDIRECTS_MAX} redirects")


@dataclass(frozen=True, slots=True)
class RangeBody:
    """A checked reply to a range request, whose body is still to be read; `url` is a secret."""

    response: urllib3.BaseHTTPResponse
    # One past the last byte; None where only the end of the body tells.
    stop: int | None
    # Of the whole object.
    size: int | None
    etag: str | None
    url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Ranged:
    """A small object, or a range of one; as in `RangeBody`."""

    body: bytes = field(repr=False)
    size: int
    etag: str | None
    url: str = field(repr=False)


def _checked(
    response: urllib3.BaseHTTPResponse,
    head: Head,
    target: Target,
    start: int,
    stop: int,
    etag: str | None,
    *,
    exact: bool,
) -> RangeBody:
    if head.status == 416 and start == 0 and reported_size(head) == 0:
        return RangeBody(response, 0, 0, head.etag, target.url)
    # An object may itself be a web page, so its type proves nothing; its size, a version or a later range does.
    known = start or etag is not None or (exact and head.length != stop)
    if head.status not in {200, 206} or (known and is_unexpected(head)):
        raise refusal(head, target, response.read(_ERROR_BODY_BYTES_MAX))
    total = reported_size(head) if "content-range" in head.headers else head.length
    if total is None and "content-range" not in head.headers and not start and head.status == 200:
        check_version(head, etag)
        return RangeBody(response, None, None, head.etag, target.url)
    end = stop if total is None or exact else min(stop, total)
    return RangeBody(response, end, check_range(head, start, end, None, etag), head.etag, target.url)


def read(
    url: str, *, start: int = 0, stop: int, headers: Headers = (), etag: str | None = None, pool: HttpPool | None = None
) -> Ranged:
    """Reads a range of an object, which may end before `stop`, into memory; see `HttpPool.open_range`."""
    if not 0 <= start < stop:
        raise ValueError(f"[{start}, {stop}) is not a range")
    if pool is None:
        with HttpPool() as own:
            return read(url, start=start, stop=stop, headers=headers, etag=etag, pool=own)
    limit = stop - start
    with pool.open_range(url, start, stop, headers=headers, etag=etag) as reply:
        expected = limit + 1 if reply.stop is None else reply.stop - start
        body = _read_all(reply.response, expected)
        if reply.stop is None:
            if len(body) > limit:
                raise FetchError("range", f"the answer is longer than the {limit} bytes that are allowed")
        elif len(body) < expected:
            raise FetchError("broken", "the connection was closed before the reply was complete")
        elif expected and reply.response.read(1):
            raise FetchError("range", f"the answer is longer than the {expected} bytes that it announced")
    return Ranged(body, start + len(body) if reply.size is None else reply.size, reply.etag, reply.url)


def _read_all(response: urllib3.BaseHTTPResponse, count: int) -> bytes:
    """Up to `count` bytes: one read may return fewer, chunk by chunk."""
    pieces = []
    while count and (piece := response.read(count)):
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def failure(exc: Exception, host: str) -> FetchError:
    """Translates an error of urllib3, without the URL, which it puts into its messages."""
    if fault := tls_fault(exc):
        return FetchError("tls", f"the TLS certificate of {host} is not trusted: {fault}")
    cause: BaseException = exc
    while inner := next((argument for argument in cause.args if isinstance(argument, BaseException)), cause.__cause__):
        cause = inner
    text = getattr(cause, "strerror", None) or (str(cause) if isinstance(cause, OSError) else type(cause).__name__)
    if isinstance(exc, (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ProxyError)):
        return FetchError("broken", text)
    if isinstance(exc, urllib3.exceptions.TimeoutError):
        return FetchError("broken", f"{host} did not answer in time")
    if isinstance(cause, IncompleteRead):
        return FetchError("broken", "the connection was closed before the reply was complete")
    if isinstance(exc, ValueError) or (isinstance(cause, HTTPException) and not isinstance(cause, OSError)):
        return FetchError("protocol", f"{host} does not send a valid HTTP response ({type(cause).__name__})")
    return FetchError("broken", f"the connection broke: {text}")
