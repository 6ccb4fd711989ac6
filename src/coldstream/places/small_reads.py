"""Small reads over HTTP for the places: tried again where that can help, with errors that say what to do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from coldstream.errors import CredentialsError, NotFoundError, UnavailableError, during
from coldstream.net.http_message import FetchError, parse_target, proxy_for
from coldstream.net.retry import Retry
from coldstream.net.tls import tls_fault
from coldstream.places.place import Link, Location, Piece, replaced

if TYPE_CHECKING:
    from coldstream.net.connection import Connection, RangeReply
    from coldstream.net.pool import HttpPool, Ranged

# What a link is tried with: enough for any answer to be a real one.
_PROBE_BYTES = 8
_IDLE_SECONDS = 20.0
_EXPIRED_CODES = {"ExpiredToken", "ExpiredRequest", "InvalidToken", "TokenRefreshRequired"}


class LinkReader:
    """Reads from the servers of one place. Thread-safe. As a context manager it keeps connections open.

    `forbidden` is the hint for when the server refuses; `ca_bundle` replaces AWS_CA_BUNDLE. `reached` is whether the
    servers are known to answer: before that, a wrong address is likelier than a passing fault.
    """

    def __init__(self, retry: Retry, *, forbidden: str, ca_bundle: str | None = None, connections: int = 16) -> None:
        self.retry = retry
        self._forbidden = forbidden
        self.reached = False
        self._options = (connections, ca_bundle)
        self._lock = threading.Lock()
        self._entered = 0
        self._pool: HttpPool | None = None
        self._idle: list[Connection] = []

    def __enter__(self) -> None:
        with self._lock:
            self._entered += 1

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._entered -= 1
            if self._entered:
                return
            while self._idle:
                self._idle.pop().close()
            if self._pool:
                self._pool.close()

    @property
    def pool(self) -> HttpPool:
        """The connections. urllib3 is imported here: an opened place may never be read."""
        from coldstream.net.pool import HttpPool

        with self._lock:
            if self._pool is None:
                count, ca_bundle = self._options
                self._pool = HttpPool(count, ca_bundle=ca_bundle, read_seconds=_IDLE_SECONDS)
            return self._pool

    def get(self, link: Link, *, where: str, start: int = 0, stop: int, etag: str | None = None) -> Ranged:
        """Reads a range, which may reach past the end.

        Raises NotFoundError, CredentialsError, ConflictError (another version) and UnavailableError.
        """
        from coldstream.net.pool import read

        url, headers = link

        def attempt() -> Ranged:
            with self, self.translated(url, where):
                return read(url, start=start, stop=stop, headers=headers, etag=etag, pool=self.pool)

        return self.retry.run(attempt)

    def get_whole(self, url: str, bytes_max: int) -> tuple[bytes, RangeReply]:
        """Reads a small object once, without urllib3, whose import takes longer. Raises FetchError and ConfigError."""
        from coldstream.net.connection import Connection
        from coldstream.net.tls import tls_settings

        target = parse_target(url)
        with self:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None or connection.place != target.place:
                tls = tls_settings(ca_bundle=self._options[1])
                connection = Connection(target, proxy=proxy_for(target), tls=tls)
            whole = connection.get_whole(target, bytes_max)
            self._idle.append(connection)
        return whole

    def follow(self, link: Link, *, where: str) -> Link:
        """The link that a link leads to in the end: the engine follows no redirects."""
        return _final_link(link, self.get(link, where=where, stop=_PROBE_BYTES))

    def read_piece(self, link: Link, start: int, stop: int, *, etag: str | None, where: str) -> Piece:
        """Reads `[start, stop)` of what a link gives; see `Place.read_piece`."""
        read = self.get(link, where=where, start=start, stop=stop, etag=etag)
        location = Location(*_final_link(link, read))
        return Piece(body=read.body, size=read.size, etag=read.etag, stamp=read.etag or "", location=location)

    @contextmanager
    def translated(self, url: str, where: str) -> Iterator[None]:
        """Turns each FetchError into an error that says what to do."""
        try:
            yield
            self.reached = True
        except FetchError as exc:
            self.reached = self.reached or (exc.status is not None and exc.kind != "unexpected")
            raise during("GET", self._error(exc, where, urlsplit(url).hostname or "the server")) from exc

    def _error(self, exc: FetchError, where: str, host: str) -> Exception:
        # AWS replies with 400 and ExpiredToken when temporary credentials have expired.
        expired = exc.code in _EXPIRED_CODES
        if exc.kind == "gone":
            return NotFoundError(f"{where} does not exist", target=where)
        if exc.kind == "changed":
            return replaced(where)
        if exc.kind == "refused" and (exc.status in {None, 401, 403} or expired):
            answer = f"{exc.status} {exc.code if expired else ''}".rstrip() if exc.status else exc.message
            return CredentialsError(
                f"{where}: {host} refuses ({answer})",
                hint="the link or its credentials have expired; create new ones" if expired else self._forbidden,
                target=where,
            )
        message = exc.message if where in exc.message else f"{where}: {exc.message}"
        hint: str | None = None
        retryable = exc.kind in {"busy", "broken"}
        if exc.kind == "refused":
            message = f"{where}: {host} answers {exc.status}"
            hint = "the server does not give this file by ranges; copy the model into a bucket: coldstream upload"
        elif exc.kind == "unexpected":
            hint = "a captive portal, a proxy or another server answers there; check the address and HTTPS_PROXY"
            retryable = self.reached
        elif exc.kind == "busy":
            message = f"{where}: {host} answered {exc.status}"
            hint = "the server is overloaded or down; try again later"
        elif exc.kind == "tls":
            message = f"{host}: TLS failed: {exc.message}"
            hint = "check the URL's host and this machine's certificates (SSL_CERT_FILE names others)"
        elif exc.kind == "broken" and not self.reached:
            # Before anything ever answered, the address is the likelier fault: say so now, not in three minutes.
            message, retryable = f"cannot reach {host}: {exc.message}", False
            hint = "check the address, the network and HTTPS_PROXY"
        elif exc.kind != "broken":
            hint = "a proxy or a CDN in between may change answers or ignore ranges; try the store's own endpoint"
        return UnavailableError(
            message,
            hint=hint,
            target=where,
            retryable=retryable,
            retry_after_seconds=exc.retry_after_seconds,
        )


def unanswered(exc: Exception, where: str, host: str, *, reached: bool, hint: str) -> UnavailableError:
    """The error for an exception of an HTTP client without an answer; `hint` is for a host that nothing reached yet."""
    if tls_fault(exc):
        return UnavailableError(f"{host}: TLS failed", hint="check SSL_CERT_FILE and HTTPS_PROXY", retryable=False)
    # Before anything ever answered, the address or the network is the likelier fault: say so at once.
    if not reached:
        return UnavailableError(f"cannot reach {host}", hint=hint, retryable=False)
    return UnavailableError(f"{where}: the connection to {host} broke ({type(exc).__name__})")


def _final_link(link: Link, response: Ranged) -> Link:
    """Where a read ended, with the headers for it: none on another host than the one they are for."""
    url, headers = link
    return response.url, headers if parse_target(response.url).place == parse_target(url).place else ()
