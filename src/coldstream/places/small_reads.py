"""Small reads over HTTP for the places: tried again where that can help, with errors that say what to do."""

from __future__ import annotations

import threading
from urllib.parse import urlsplit

from coldstream.errors import CancelledError, ColdstreamError, CredentialsError, NotFoundError, UnavailableError
from coldstream.net.connection import Ranged
from coldstream.net.http_message import FetchError, parse_target
from coldstream.net.pool import ConnectionPool, read
from coldstream.net.retry import Retry
from coldstream.places.place import Link, Location, Piece, replaced

# What a link is tried with: enough for any answer to be a real one.
_PROBE_BYTES = 8
_EXPIRED_CODES = {"ExpiredToken", "ExpiredRequest", "InvalidToken", "TokenRefreshRequired"}


class LinkReader:
    """Reads from the servers of one place. Thread-safe. As a context manager it keeps connections open.

    Args:
        retry: The policy of all reads.
        forbidden: What to do when the server refuses, a hint for people.
        ca_bundle: File of the certificates to trust, in place of the environment's AWS_CA_BUNDLE.

    Attributes:
        reached: Whether the servers are known to answer: before that, a wrong address is likelier than a passing fault.
    """

    def __init__(self, retry: Retry, *, forbidden: str, ca_bundle: str | None = None) -> None:
        self.retry = retry
        self._ca_bundle = ca_bundle
        self._forbidden = forbidden
        self.reached = False
        self._lock = threading.Lock()
        self._entered = 0
        self._pool: ConnectionPool | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._entered:
                self._pool = ConnectionPool(ca_bundle=self._ca_bundle)
            self._entered += 1

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._entered -= 1
            pool, self._pool = (self._pool, None) if not self._entered else (None, self._pool)
        if pool:
            pool.close()

    def get(
        self,
        link: Link,
        *,
        where: str,
        start: int = 0,
        stop: int | None = None,
        bytes_max: int,
        etag: str | None = None,
    ) -> Ranged:
        """Reads a range, or all there is, of what a link gives.

        Raises:
            NotFoundError: 404.
            CredentialsError: Refused.
            ConflictError: It is of another version.
            UnavailableError: It does not answer, or not as it should.
        """
        url, headers = link

        def attempt() -> Ranged:
            try:
                response = read(
                    url, start=start, stop=stop, bytes_max=bytes_max, headers=headers, etag=etag, pool=self._pool
                )
            except FetchError as exc:
                self.reached = self.reached or (exc.status is not None and exc.kind != "unexpected")
                raise self._ours(exc, where, urlsplit(url).hostname or "the server") from exc
            self.reached = True
            return response

        return self.retry.run(attempt)

    def follow(self, link: Link, *, where: str) -> Link:
        """The link that a link leads to in the end: the engine follows no redirects."""
        return _final_link(link, self.get(link, where=where, stop=_PROBE_BYTES, bytes_max=_PROBE_BYTES))

    def read_piece(self, link: Link, start: int, stop: int, *, etag: str | None, where: str) -> Piece:
        """Reads `[start, stop)` of what a link gives; see `Place.read_piece`."""
        read = self.get(link, where=where, start=start, stop=stop, bytes_max=stop - start, etag=etag)
        location = Location(*_final_link(link, read))
        return Piece(body=read.body, size=read.size, etag=read.etag, stamp=read.etag or "", location=location)

    def _ours(self, exc: FetchError, where: str, host: str) -> ColdstreamError:
        message = exc.message if where in exc.message else f"{where}: {exc.message}"
        if exc.kind == "cancelled":
            return CancelledError("cancelled")
        if exc.kind == "gone":
            return NotFoundError(f"{where} does not exist", operation="GET", target=where)
        # AWS replies with 400 and ExpiredToken when temporary credentials have expired.
        expired = exc.code in _EXPIRED_CODES
        answer = f"{exc.status} {exc.code if expired else ''}".rstrip() if exc.status else exc.message
        if exc.kind == "refused" and (exc.status in {None, 401, 403} or expired):
            return CredentialsError(
                f"{where}: {host} refuses ({answer})",
                hint="the link or its credentials have expired; create new ones" if expired else self._forbidden,
                operation="GET",
                target=where,
            )
        if exc.kind == "refused":
            return UnavailableError(
                f"{where}: {host} answers {exc.status}",
                hint="the server does not give this file by ranges; copy the model into a bucket: coldstream upload",
                operation="GET",
                target=where,
                retryable=False,
            )
        if exc.kind == "changed":
            return replaced(where)
        if exc.kind == "unexpected":
            return UnavailableError(
                message,
                hint="a captive portal, a proxy or another server answers there; check the address and HTTPS_PROXY",
                operation="GET",
                target=where,
                retryable=self.reached,
            )
        if exc.kind == "busy":
            return UnavailableError(
                f"{where}: {host} answered {exc.status}",
                hint="the server is overloaded or down; try again later",
                operation="GET",
                target=where,
                retry_after_seconds=exc.retry_after_seconds,
            )
        if exc.kind == "tls":
            return UnavailableError(
                f"{host}: TLS failed: {exc.message}",
                hint="check the URL's host and this machine's certificates (SSL_CERT_FILE names others)",
                retryable=False,
            )
        if exc.kind == "broken" and not self.reached:
            # Before anything ever answered, the address is the likelier fault: say so now, not in three minutes.
            return UnavailableError(
                f"cannot reach {host}: {exc.message}",
                hint="check the address, the network and HTTPS_PROXY",
                operation="GET",
                target=where,
                retryable=False,
            )
        if exc.kind == "broken":
            return UnavailableError(message, operation="GET", target=where)
        return UnavailableError(
            message,
            hint="a proxy or a CDN in between may change answers or ignore ranges; try the store's own endpoint",
            operation="GET",
            target=where,
            retryable=False,
        )


def _final_link(link: Link, response: Ranged) -> Link:
    """Where a read ended, with the headers for it: none on another host than the one they are for."""
    url, headers = link
    return response.url, headers if parse_target(response.url).place == parse_target(url).place else ()
