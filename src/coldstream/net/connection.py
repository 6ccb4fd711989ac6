"""An HTTP/1.1 connection that receives ranges of objects straight into their final memory.

A body goes from the socket into the destination with one call per piece, and is not copied. Every reply is checked
before its body is trusted: status, range, total size, length, encoding, ETag. The bytes that a failed `get` has
received are correct, and another connection can fetch the rest of the range.
"""

from __future__ import annotations

import errno
import os
import random
import re
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from coldstream.net.http_message import (
    ClosedError,
    FetchError,
    Head,
    Headers,
    Kind,
    Proxy,
    Target,
    check_range,
    conditions,
    default_port,
    is_unexpected,
    parse_head,
    refusal,
    reported_size,
    request_bytes,
)
from coldstream.net.retry import is_retryable_status, retry_after
from coldstream.net.tls import (
    ByteStream,
    CertificateError,
    PlainStream,
    TlsSettings,
    context_for,
    set_timeouts,
    tls_settings,
    tls_stream,
)

HEAD_BYTES_MAX: Final = 64 << 10

# The most that one receive returns: a whole chunk in one call into the kernel, if it arrives quickly. Measured: pieces
# of 1 MiB cost 25 % more CPU, since at each return the CPU caches hold the body instead of the interpreter.
_PIECE_BYTES: Final = 8 << 20
# A thread is woken for this much at once, except at the end of a body: each packet would wake it otherwise.
_WAKE_BYTES: Final = 256 << 10
# The first receive of a reply: the head, and the start of the body that comes with it, which is copied.
_SCRATCH_BYTES: Final = 16 << 10
# The body of an error is read up to this size, for its error code, and so that the connection can be reused.
_ERROR_BODY_BYTES_MAX: Final = 64 << 10
_LINE_BYTES_MAX: Final = 1 << 10
_INFORMATIONAL_MAX: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """The timeouts of a connection."""

    # Name resolution, TCP, a proxy's tunnel and the TLS handshake together.
    connect_seconds: float = 10.0
    # After this long without a byte, the connection counts as broken.
    idle_seconds: float = 20.0
    # How often a waiting `get` checks for a cancel, and reports progress.
    poll_seconds: float = 0.25


@dataclass(frozen=True, slots=True)
class RangeReply:
    """The reply to a range request, without its body; `size` is that of the whole object."""

    # Without quotes; a weak one keeps its `W/`, because it cannot be used as a condition.
    etag: str | None
    size: int | None
    status: int
    # From the request (on an open connection) to the first byte of the reply.
    first_byte_seconds: float
    # Cloudflare's cf-cache-status ("HIT", …).
    cache_status: str | None = None


class Connection:
    """A connection to one host, opened when it is first used. For a single thread, except `cancel`.

    Later targets may only differ in their path. Without `tls`, the environment names the trusted certificates.
    """

    def __init__(
        self,
        target: Target,
        *,
        proxy: Proxy | None = None,
        tls: TlsSettings | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        self._target = target
        self._proxy = proxy
        self._tls = tls
        self._timeouts = timeouts or Timeouts()
        self._stream: ByteStream | None = None
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        # Received bytes that follow the head and have not been used yet.
        self._left = b""
        # How many bytes of the running `get` are in its buffer.
        self._got = 0
        # Whether the last reply was read to its end, so that another request may follow.
        self._idle = False
        # The monotonic time at which waiting ends; every received byte extends it.
        self._deadline = 0.0
        # Guards `_cancelled` and `_sock` together: a thread that sets one sees the other, so that no cancel is lost,
        # and no descriptor is shut down that was closed and may belong to another file by then.
        self._lock = threading.Lock()
        self._cancelled = False
        self._sock: socket.socket | None = None
        self._woken = threading.Event()

    def __repr__(self) -> str:
        state = "cancelled" if self._cancelled else self._stream.label if self._stream else "closed"
        if state == "closed" and self._sock is not None:
            state = "connecting"
        return f"Connection({self._target.scheme}://{self._target.authority}, {state})"

    @property
    def is_open(self) -> bool:
        return self._stream is not None and not self._cancelled

    @property
    def place(self) -> tuple[str, str, int]:
        """Scheme, host and port."""
        return self._target.place

    def get(
        self,
        target: Target,
        start: int,
        stop: int,
        view: memoryview,
        *,
        etag: str | None,
        size: int | None,
        headers: Headers = (),
        cached: bool = False,
        on_progress: Callable[[int], None] | None = None,
    ) -> RangeReply:
        """Receives all bytes `[start, stop)` of an object into `view`.

        If a kept-alive connection turns out to be closed, the request is sent again on a new one.

        Args:
            view: Contiguous and writable. Not touched after this has returned or raised.
            etag: The required version. A strong one is also sent as a condition.
            size: The required size of the whole object.
            cached: A cache replies, which may not support conditions, and may weaken or drop the ETag: no condition
                is sent, and only a strong ETag is compared.
            on_progress: Called in this thread with the number of bytes received, at the end, and about every
                `poll_seconds` while bytes arrive.

        Raises:
            FetchError: Its `received` is the number of bytes in `view`, never all of them.
            ConfigError: The trusted certificates cannot be read.
        """
        if target.place != self._target.place:
            raise ValueError(f"{target!r} is not on the host of {self!r}")
        if not (0 <= start < stop and view.nbytes == len(view) == stop - start):
            raise ValueError(f"[{start}, {stop}) does not fit a buffer of {view.nbytes} bytes")
        self._got = 0
        try:
            head, first_byte_seconds = self._request(target, conditions(start, stop, None if cached else etag), headers)
            if head.status not in {200, 206} or is_unexpected(head, size):
                raise refusal(head, target, self._discard(head), size)
            if cached and head.etag is not None and head.etag.startswith("W/"):
                etag = None
            total = check_range(head, start, stop, size, etag)
            if head.chunked:
                self._fill_chunked(view, on_progress)
                if self._got != len(view):
                    raise FetchError("range", f"the chunks end after {self._got} of {len(view)} bytes")
            else:
                self._fill(view, len(view), on_progress)
            self._finish(head)
        except FetchError as exc:
            # No byte of a reply that contradicts itself is trusted.
            exc.received = 0 if exc.kind in {"range", "protocol"} else self._got
            if not self._idle:
                self._drop()
            raise
        except BaseException:
            self._drop()
            raise
        return RangeReply(head.etag, total, head.status, first_byte_seconds, head.headers.get("cf-cache-status"))

    def get_whole(self, target: Target, bytes_max: int) -> tuple[bytes, RangeReply]:
        """Receives an object of at most `bytes_max` bytes, whose size the server announces. Raises as `get` does."""
        self._got = 0
        try:
            head, first_byte_seconds = self._request(target, conditions(0, bytes_max, None), ())
            size = reported_size(head) if "content-range" in head.headers else head.length
            is_usable = head.status in {200, 206} and not head.chunked and not is_unexpected(head)
            if not is_usable or not size or size > bytes_max:
                raise refusal(head, target, b"", size)
            check_range(head, 0, size, size, None)
            body = bytearray(size)
            self._fill(memoryview(body), size, None)
            self._finish(head)
        except BaseException:
            self._drop()
            raise
        return bytes(body), RangeReply(head.etag, size, head.status, first_byte_seconds)

    def cancel(self) -> None:
        """Ends the running `get`, in any of its steps, and all later ones with "cancelled". Callable from any thread.

        A `get` that has received everything still succeeds.
        """
        with self._lock:
            self._cancelled = True
            if self._sock is not None:
                _shut_down(self._sock)
        self._woken.set()

    def close(self) -> None:
        """Closes the connection; a later `get` opens it again. Idempotent."""
        self._drop()

    # Sending the request, and receiving the head of the reply.

    def _request(self, target: Target, conditions: Headers, headers: Headers) -> tuple[Head, float]:
        proxy = self._proxy if target.scheme == "http" else None
        request = request_bytes(target, (*conditions, *headers), proxy=proxy)
        if self._stream and not self._stream.is_quiet():
            # The server closed it while idle, or sent something that would be taken for the reply.
            self._drop()
        while True:
            reused = self._stream is not None
            stream = self._stream or self._connect()
            since = time.monotonic()
            self._deadline = since + self._timeouts.idle_seconds
            self._idle, self._left = False, b""
            try:
                try:
                    stream.send(request)
                except OSError as exc:
                    raise self._translated(exc) from exc
                return self._head(since)
            except ClosedError:
                # The server closed the idle connection before it saw the request: safe to send again.
                if not reused or self._left:
                    raise
                self._drop()

    def _head(self, since: float) -> tuple[Head, float]:
        """The head of the final reply, and the seconds to the first byte."""
        first_byte_seconds = None
        data = b""
        spent = 0
        for _ in range(_INFORMATIONAL_MAX):
            while (end := data.find(b"\r\n\r\n")) < 0:
                if spent + len(data) > HEAD_BYTES_MAX:
                    raise FetchError("protocol", f"the headers are longer than {HEAD_BYTES_MAX} bytes")
                count = self._receive(self._scratch, some=True)
                if first_byte_seconds is None:
                    first_byte_seconds = time.monotonic() - since
                data += self._scratch[:count]
                self._left = data
            head = parse_head(data[:end])
            spent += end + 4
            self._left = data = data[end + 4 :]
            if head.status >= 200:
                return head, first_byte_seconds or 0.0
            if head.status == 101:
                break
        raise FetchError("protocol", f"the server sends {head.status} replies without end")

    # The body.

    def _fill(self, view: memoryview, stop: int, on_progress: Callable[[int], None] | None) -> None:
        """Receives into the view, from `_got` up to `stop`."""
        if self._left and self._got < stop:
            count = min(len(self._left), stop - self._got)
            view[self._got : self._got + count] = self._left[:count]
            self._left = self._left[count:]
            self._got += count
            if on_progress:
                on_progress(self._got)
        while self._got < stop:
            self._check_cancelled()
            bulk = min(stop - self._got - 2 * _WAKE_BYTES, _PIECE_BYTES)
            if self._stream:
                self._stream.wake_at(_WAKE_BYTES if bulk > 0 else 1)
            # Released at once: an exception's traceback must not keep the caller's memory mapped.
            with view[self._got : self._got + bulk if bulk > 0 else stop] as piece:
                self._got += self._receive(piece, some=False)
            if on_progress:
                on_progress(self._got)

    def _fill_chunked(self, view: memoryview, on_progress: Callable[[int], None] | None) -> None:
        try:
            while count := self._chunk_bytes():
                if count > len(view) - self._got:
                    raise FetchError("range", f"the chunks are longer than the expected {len(view)} bytes")
                self._fill(view, self._got + count, on_progress)
                if line := self._line():
                    raise FetchError("protocol", f"a chunk is followed by {line[:20]!r}")
        except FetchError as exc:
            if self._got < len(view) or exc.kind not in {"broken", "cancelled"}:
                raise
            # All bytes are received; only the last, empty chunk is missing.
            self._drop()

    def _chunk_bytes(self) -> int:
        """Reads the next chunk's size; after a 0, also the trailers."""
        text = self._line().partition(b";")[0].strip(b" \t")
        if not re.fullmatch(rb"[0-9a-fA-F]{1,15}", text):
            raise FetchError("protocol", f"malformed chunk size {text[:20]!r}")
        count = int(text, 16)
        if count == 0:
            spent = 0
            while line := self._line():
                spent += len(line)
                if spent > HEAD_BYTES_MAX:
                    raise FetchError("protocol", f"the trailers are longer than {HEAD_BYTES_MAX} bytes")
        return count

    def _line(self) -> bytes:
        while (end := self._left.find(b"\r\n")) < 0:
            if len(self._left) > _LINE_BYTES_MAX:
                raise FetchError("protocol", f"a line between chunks is longer than {_LINE_BYTES_MAX} bytes")
            count = self._receive(self._scratch, some=True)
            self._left += self._scratch[:count]
        line, self._left = self._left[:end], self._left[end + 2 :]
        return line

    def _receive(self, view: memoryview, *, some: bool) -> int:
        """Receives at least one byte into the view; with `some`, returns as soon as there is one."""
        stream = self._stream
        assert stream is not None
        while True:
            try:
                count = stream.receive_some(view) if some else stream.receive(view)
            except OSError as exc:
                raise self._translated(exc) from exc
            if count > 0:
                self._deadline = time.monotonic() + self._timeouts.idle_seconds
                return count
            self._check_cancelled()
            if count == 0:
                raise ClosedError("broken", "the connection was closed before the reply was complete")
            if time.monotonic() >= self._deadline:
                raise FetchError("broken", f"no data for {self._timeouts.idle_seconds:g} s")

    def _translated(self, exc: OSError) -> FetchError:
        if self._cancelled:
            return FetchError("cancelled", "cancelled")
        if isinstance(exc, (TimeoutError, BlockingIOError)):
            return FetchError("broken", f"send timed out after {self._timeouts.idle_seconds:g} s")
        return ClosedError("broken", f"the connection broke: {exc.strerror or exc}")

    # After the reply.

    def _finish(self, head: Head) -> None:
        """Keeps the connection for another request after a body was read, if both sides can."""
        if self._stream and head.keeps_alive and not self._left and (head.chunked or head.length is not None):
            self._idle = True
        else:
            self._drop()

    def _discard(self, head: Head) -> bytes:
        """Reads and returns the body of an error or redirect if it is small; otherwise closes the connection."""
        length = head.length
        if not head.chunked and (length is None or length > _ERROR_BODY_BYTES_MAX):
            self._drop()
            return b""
        body = memoryview(bytearray(_ERROR_BODY_BYTES_MAX if length is None else length))
        self._got = 0
        try:
            if length is None:
                self._fill_chunked(body, None)
            else:
                self._fill(body, length, None)
            self._finish(head)
        except FetchError as exc:
            if exc.kind == "cancelled":
                raise
            self._drop()
        finally:
            got, self._got = self._got, 0
        return bytes(body[:got])

    def _drop(self) -> None:
        with self._lock:
            sock, self._sock = self._sock, None
            if sock is not None:
                sock.close()
        self._stream = None
        self._idle = False
        self._left = b""

    # Connecting: one deadline bounds all steps, and a cancel ends each of them.

    def _connect(self) -> ByteStream:
        self._check_cancelled()
        self._deadline = time.monotonic() + self._timeouts.connect_seconds
        target, proxy = self._target, self._proxy
        host, port = (proxy.host, proxy.port) if proxy else (target.host, target.port)
        sock = self._dial(self._addresses(host, port), f"{host}:{port}")
        set_timeouts(sock, poll_seconds=self._timeouts.poll_seconds, send_seconds=self._timeouts.idle_seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream: ByteStream = PlainStream(sock)
        self._stream = stream
        if target.scheme == "https":
            if proxy:
                deadline = self._deadline
                self._tunnel(proxy)
                self._deadline = deadline
            stream = self._stream = self._secure(sock)
        return stream

    def _check_cancelled(self) -> None:
        if self._cancelled:
            raise FetchError("cancelled", "cancelled")

    def _check_deadline(self, doing: str) -> None:
        self._check_cancelled()
        if time.monotonic() >= self._deadline:
            raise FetchError("broken", f"{doing} took more than {self._timeouts.connect_seconds:g} s")

    def _addresses(self, host: str, port: int) -> list[tuple[int, tuple[str, int] | tuple[str, int, int, int]]]:
        try:
            return [(socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET, (host, port))]
        except ValueError:
            pass
        # The resolver can be neither interrupted nor given a timeout, so it runs in its own thread.
        result: list[object] = []
        woken = self._woken = threading.Event()

        def resolve() -> None:
            try:
                result.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            except (OSError, UnicodeError) as exc:
                result.append(exc)
            woken.set()

        threading.Thread(target=resolve, name="resolve", daemon=True).start()
        while not result:
            self._check_deadline(f"resolving {host}")
            woken.wait(max(self._deadline - time.monotonic(), 0.0))
        self._check_cancelled()
        entries = result[0]
        if not isinstance(entries, list):
            raise FetchError("broken", f"cannot resolve {host}: {entries}")
        # The resolver's order of the address families, but a random server of several.
        families = list(dict.fromkeys(entry[0] for entry in entries))
        random.shuffle(entries)
        return [(entry[0], entry[4]) for entry in sorted(entries, key=lambda entry: families.index(entry[0]))]

    def _dial(
        self, addresses: list[tuple[int, tuple[str, int] | tuple[str, int, int, int]]], shown: str
    ) -> socket.socket:
        """Connects to the first address that accepts."""
        why = "no address"
        for index, (family, address) in enumerate(addresses):
            left = self._deadline - time.monotonic()
            # An address that does not respond must not use up the time of the next ones.
            wait = left if index == len(addresses) - 1 else left / 2
            if wait <= 0:
                break
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
            except OSError as exc:
                why = exc.strerror or str(exc)
                continue
            sock.settimeout(0)
            # Under the lock: a cancel is either seen here, or finds a socket that its shutdown wakes.
            with self._lock:
                self._sock = sock
                code = errno.ECANCELED if self._cancelled else sock.connect_ex(address)
            if code == errno.EINPROGRESS:
                waiter = select.poll()
                waiter.register(sock, select.POLLOUT)
                code = errno.ETIMEDOUT
                if waiter.poll(wait * 1000):
                    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._check_cancelled()
            if code == 0:
                return sock
            why = os.strerror(code)
            self._drop()
        raise FetchError("broken", f"cannot connect to {shown}: {why}")

    def _tunnel(self, proxy: Proxy) -> None:
        stream, authority = self._stream, self._target.authority
        assert stream is not None
        if self._target.port == default_port("https"):
            authority += f":{self._target.port}"
        credentials = f"Proxy-Authorization: {proxy.authorization}\r\n" if proxy.authorization else ""
        request = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{credentials}\r\n"
        try:
            stream.send(request.encode("ascii"))
        except OSError as exc:
            raise self._translated(exc) from exc
        head, _ = self._head(time.monotonic())
        if 200 <= head.status < 300:
            if self._left:
                raise FetchError("protocol", "the proxy sent data of its own into the tunnel")
            return
        kind: Kind = "busy" if is_retryable_status(head.status) else "refused"
        raise FetchError(
            kind,
            f"the proxy {proxy.host}:{proxy.port} answers {head.status} to CONNECT {authority}",
            status=head.status,
            retry_after_seconds=retry_after(head.headers),
        )

    def _secure(self, sock: socket.socket) -> ByteStream:
        settings = self._tls or tls_settings()
        context_for(settings)
        host = self._target.host
        try:
            # Under the lock: a cancel finds either the plain socket or its TLS successor.
            with self._lock:
                self._check_cancelled()
                stream = tls_stream(sock, host, settings, self._timeouts.poll_seconds)
                self._sock = stream.sock
            while not stream.handshake():
                self._check_deadline(f"the TLS handshake with {host}")
        except CertificateError as exc:
            self._check_cancelled()
            raise FetchError("tls", f"the TLS certificate of {host} is not trusted: {exc}") from exc
        except OSError as exc:
            raise self._translated(exc) from exc
        self._check_cancelled()
        return stream


def _shut_down(sock: socket.socket) -> None:
    """Wakes the thread that waits on the socket. `SSLSocket.shutdown` would make received bytes be read as plain."""
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        # Not connected yet, or not any more: no thread waits.
        return
