"""Small reads: a pool of idle connections, and `read`, which follows redirects."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from coldstream.net.connection import Connection, Ranged, Timeouts
from coldstream.net.http_message import FetchError, Headers, Target, parse_target, proxy_for
from coldstream.net.tls import TlsSettings, tls_settings

if TYPE_CHECKING:
    from typing_extensions import Self

REDIRECTS_MAX: Final = 5


class ConnectionPool:
    """Keeps idle connections, so that one handshake serves many small reads. Thread-safe.

    Args:
        tls: The trusted certificates; None for those of the environment.
        ca_bundle: In place of the environment's AWS_CA_BUNDLE, or None.
        environ: Where proxies are configured; `os.environ` if None.
        idle_max: Idle connections kept per host; more are closed after use.
    """

    def __init__(
        self,
        *,
        tls: TlsSettings | None = None,
        ca_bundle: str | None = None,
        timeouts: Timeouts | None = None,
        environ: Mapping[str, str] | None = None,
        idle_max: int = 16,
    ) -> None:
        self._tls = tls
        self._ca_bundle = ca_bundle
        self._timeouts = timeouts
        self._environ = environ
        self._idle_max = idle_max
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, str, int], list[Connection]] = {}
        self._closed = False

    def take(self, target: Target) -> Connection:
        """Returns an idle or new connection to the target's host. It belongs to the caller until `give`.

        Raises:
            ConfigError: The environment's proxy is not supported, or its certificates do not exist.
        """
        with self._lock:
            if idle := self._idle.get(target.place):
                # The last one used: servers close those that are idle for long.
                return idle.pop()
        tls = self._tls
        if self._ca_bundle and target.scheme == "https":
            tls = tls_settings(ca_bundle=self._ca_bundle)
        return Connection(target, proxy=proxy_for(target, self._environ), tls=tls, timeouts=self._timeouts)

    def give(self, connection: Connection) -> None:
        """Takes a connection back, and closes it if it cannot be reused."""
        with self._lock:
            idle = self._idle.setdefault(connection.place, [])
            if connection.is_open and not self._closed and len(idle) < self._idle_max:
                idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Closes the idle connections, and from now on those that are given back. Idempotent."""
        with self._lock:
            self._closed = True
            idle = [connection for connections in self._idle.values() for connection in connections]
            self._idle.clear()
        for connection in idle:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def read(
    url: str,
    *,
    start: int = 0,
    stop: int | None = None,
    bytes_max: int,
    headers: Headers = (),
    etag: str | None = None,
    timeouts: Timeouts | None = None,
    pool: ConnectionPool | None = None,
) -> Ranged:
    """Reads a small object, or a range of one, into memory.

    Follows up to five redirects, but never from https to http. `headers` are only sent to the first host.

    Args:
        start: The first byte.
        stop: One past the last byte; the object may end before it. None for the whole object.
        bytes_max: A longer reply is refused, not truncated.
        etag: The required version, or None.
        timeouts: Only used without a pool.
        pool: Provides the connections; None for a new one.

    Raises:
        FetchError: As for `Connection.get`; nothing is retried here.
        ConfigError: A proxy or the trusted certificates cannot be used.
    """
    if start < 0 or (stop is not None and not start < stop <= start + bytes_max):
        raise ValueError(f"[{start}, {stop}) is not a range of at most {bytes_max} bytes")
    if pool is None:
        with ConnectionPool(timeouts=timeouts) as own:
            return read(url, start=start, stop=stop, bytes_max=bytes_max, headers=headers, etag=etag, pool=own)
    target = first = parse_target(url)
    for _ in range(REDIRECTS_MAX + 1):
        sent = headers if target.place == first.place else ()
        connection = pool.take(target)
        try:
            reply = connection.read(target, start, stop, bytes_max=bytes_max, etag=etag, headers=sent)
        finally:
            pool.give(connection)
        if isinstance(reply, Ranged):
            return reply
        following = parse_target(reply, base=target.url)
        if target.scheme == "https" and following.scheme == "http":
            raise FetchError("refused", f"{target.shown} redirects to plain http on {following.authority}")
        if following.place != target.place:
            # Never again: a redirect back to the first host is not the caller's request.
            headers = ()
        target = following
    raise FetchError("range", f"{first.shown}: more than {REDIRECTS_MAX} redirects")
