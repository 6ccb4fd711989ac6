"""One HTTP/1.1 connection: ranges of objects, received straight into the memory where they stay.

    Connection          get: one range into one buffer; cancel: from any thread
    ConnectionPool      idle connections for small reads
    read                a small object, or the first bytes of one: manifests, headers

The bytes of a body go from the socket into the destination with one call for each piece, and nothing else touches
them. Only the head of an answer passes through a buffer of our own. Every answer is checked before a byte of its body
is believed: status, range, total size, length, encoding, ETag. What a failed `get` has received is exact: those bytes
are the right ones, and the rest of the range can be fetched by another connection.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from coldstream.net.http_message import (
    ClosedError,
    FetchError,
    Head,
    Headers,
    Kind,
    Proxy,
    Target,
    check_range,
    check_small,
    conditions,
    default_port,
    is_unexpected,
    parse_head,
    parse_target,
    plain_etag,
    proxy_for,
    reported_size,
    request_bytes,
    same_etag,
    too_long,
)
from coldstream.net.reply import describe_reply
from coldstream.net.retry import is_retryable_status, retry_after
from coldstream.net.tls import (
    CertificateError,
    PlainWire,
    TlsSettings,
    Wire,
    context_for,
    set_timeouts,
    tls_settings,
    tls_wire,
)

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Answer",
    "Connection",
    "ConnectionPool",
    "FetchError",
    "Headers",
    "Kind",
    "Proxy",
    "Ranged",
    "Target",
    "Timeouts",
    "TlsSettings",
    "parse_target",
    "plain_etag",
    "proxy_for",
    "read",
    "same_etag",
    "tls_settings",
]

HEAD_BYTES_MAX: Final = 64 << 10
REDIRECTS_MAX: Final = 5

# As much as one receive may bring: a whole chunk, in one call into the kernel if it comes quickly. Measured: pieces of
# 1 MiB cost a quarter more CPU, because each return finds the caches full of the body and empty of the interpreter.
_PIECE_BYTES: Final = 8 << 20
# The first receive of an answer: the head, and the little of the body that comes with it, which is copied.
_SCRATCH_BYTES: Final = 16 << 10
# An error's body up to this size is read, so that the connection stays usable and the bucket's word for it is known.
_ERROR_BODY_BYTES_MAX: Final = 64 << 10
_LINE_BYTES_MAX: Final = 1 << 10
_INFORMATIONAL_MAX: Final = 8

_ERROR_CODE: Final = re.compile(rb"<Code>([A-Za-z0-9.]{1,64})</Code>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long to wait for what.

    Attributes:
        connect_seconds: For the name, the TCP connection, a proxy's tunnel and the TLS handshake together.
        idle_seconds: No byte for so long, and the connection counts as broken.
        poll_seconds: How often a waiting `get` looks up; progress is told at least as often while bytes come.
    """

    connect_seconds: float = 10.0
    idle_seconds: float = 20.0
    poll_seconds: float = 0.25


@dataclass(frozen=True, slots=True)
class Answer:
    """What came with a range.

    Attributes:
        etag: Without quotes; a weak one keeps its `W/`, because it cannot be used as a condition. None if not sent.
        size: Of the whole object, or None if not said.
        status: 206 or 200.
        first_byte_seconds: From the request, connecting not included, to the first byte of the answer.
        cache_status: What Cloudflare says of its cache, "HIT" and so on; None if nothing.
    """

    etag: str | None
    size: int | None
    status: int
    first_byte_seconds: float
    cache_status: str | None = None


class Connection:
    """One connection to one host, opened when it is first needed. Used by one thread; `cancel` by any.

    Args:
        target: Of the host; later targets may differ in their path alone.
        proxy: To go through, or None.
        tls: Whom to trust; the environment says when None.
        timeouts: How long to wait for what.
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
        self._wire: Wire | None = None
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        # Bytes that were received behind a head and are not used yet.
        self._left = b""
        # How many bytes of the buffer of the `get` under way are in place.
        self._got = 0
        # Whether the last answer was read to its end, so that another request may follow.
        self._idle = False
        # Monotonic time at which waiting ends: moved on by every byte once connected.
        self._deadline = 0.0
        # Guards `_cancelled` and `_sock` together: whoever sets one sees the other, so that no cancel is lost and no
        # descriptor is shut down that was closed, and may be somebody else's, by then.
        self._lock = threading.Lock()
        self._cancelled = False
        self._sock: socket.socket | None = None
        self._woken = threading.Event()

    def __repr__(self) -> str:
        state = "cancelled" if self._cancelled else self._wire.label if self._wire else "closed"
        if state == "closed" and self._sock is not None:
            state = "connecting"
        return f"Connection({self._target.scheme}://{self._target.authority}, {state})"

    @property
    def is_open(self) -> bool:
        """Whether it is connected, and can be expected to take another request."""
        return self._wire is not None and not self._cancelled

    @property
    def place(self) -> tuple[str, str, int]:
        """Scheme, host and port that it is for."""
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
    ) -> Answer:
        """Receives the bytes `[start, stop)` of an object into `view`, all of them.

        A kept-alive connection that turns out to be closed is replaced once, in silence.

        Args:
            target: The object; on this connection's host.
            start: First byte.
            stop: One past the last byte.
            view: Contiguous and writable, `stop - start` bytes. Not touched any more once this has returned or raised.
            etag: The version that it must be of, or None. A strong one is also sent as a condition.
            size: The size that the whole object must have, or None.
            headers: To send along.
            cached: A cache answers, which may not know what to do with a condition, and may weaken or drop the ETag:
                none is asked for, and only a strong one is compared.
            on_progress: Called in this thread with the number of bytes in place, at the end, and about every
                `poll_seconds` before that while bytes come.

        Raises:
            FetchError: Its `received` says how many bytes are in place, never all of them.
            ConfigError: The trusted certificates cannot be read.
        """
        if target.place != self._target.place:
            raise ValueError(f"{target!r} is not on the host of {self!r}")
        if not (0 <= start < stop and view.nbytes == len(view) == stop - start):
            raise ValueError(f"[{start}, {stop}) does not fit a buffer of {view.nbytes} bytes")
        self._got = 0
        try:
            head, first_byte_seconds = self._ask(target, conditions(start, stop, None if cached else etag), headers)
            if head.status not in {200, 206}:
                raise self._refusal(head, target, size)
            if is_unexpected(head, size):
                raise self._unexpected(head, target)
            if cached and head.etag is not None and head.etag.startswith("W/"):
                etag = None
            total = check_range(head, start, stop, size, etag)
            if head.chunked:
                self._fill_chunked(view, on_progress)
            else:
                self._fill(view, len(view), on_progress)
            self._finish(head)
        except FetchError as exc:
            self._failed(exc)
            raise
        except BaseException:
            self._drop()
            raise
        return Answer(head.etag, total, head.status, first_byte_seconds, head.headers.get("cf-cache-status"))

    def read(
        self,
        target: Target,
        start: int,
        stop: int | None,
        *,
        bytes_max: int,
        etag: str | None = None,
        headers: Headers = (),
    ) -> Ranged | str:
        """Receives a small object, or a range that may reach past its end; or the Location of a redirect.

        Args:
            target: The object; on this connection's host.
            start: First byte.
            stop: One past the last wanted byte, or None for all there is.
            bytes_max: A longer answer is refused.
            etag: The version that it must be of, or None.
            headers: To send along.

        Raises:
            FetchError: Nothing is kept of what was received.
        """
        self._got = 0
        try:
            head, _ = self._ask(target, conditions(start, stop, etag), headers)
            if head.status in {301, 302, 303, 307, 308} and "location" in head.headers:
                self._discard(head)
                return head.headers["location"]
            if head.status == 416 and start == 0 and reported_size(head) == 0:
                self._discard(head)
                return Ranged(b"", 0, head.etag, target.url)
            if head.status not in {200, 206}:
                raise self._refusal(head, target, None)
            # The first bytes of an object may well be a page: of which version it is has to tell.
            if (start or etag is not None) and is_unexpected(head):
                raise self._unexpected(head, target)
            limit = bytes_max if stop is None else stop - start
            expected, total = check_small(head, start, stop, limit, etag)
            body = self._small_body(head, expected, limit)
            self._finish(head)
            return Ranged(body, start + len(body) if total is None else total, head.etag, target.url)
        except FetchError as exc:
            self._got = 0
            self._failed(exc)
            raise
        except BaseException:
            self._drop()
            raise

    def cancel(self) -> None:
        """Ends a `get` under way with "cancelled", in whatever step it is, and any later one. From any thread.

        One that has everything by then still succeeds.
        """
        with self._lock:
            self._cancelled = True
            if self._sock is not None:
                _shut_down(self._sock)
        self._woken.set()

    def close(self) -> None:
        """Closes the connection; a later `get` opens it again. From the thread that uses it; idempotent."""
        self._drop()

    # The request and the head of its answer.

    def _ask(self, target: Target, asked: Headers, headers: Headers) -> tuple[Head, float]:
        proxy = self._proxy if target.scheme == "http" else None
        request = request_bytes(target, (*asked, *headers), proxy=proxy)
        if self._wire and not self._wire.is_quiet():
            # Closed by the server while idle, or it spoke unasked: its words would be taken for our answer.
            self._drop()
        while True:
            reused = self._wire is not None
            wire = self._wire or self._connect()
            since = time.monotonic()
            self._deadline = since + self._timeouts.idle_seconds
            self._idle, self._left = False, b""
            try:
                try:
                    wire.send(request)
                except OSError as exc:
                    raise self._translated(exc) from exc
                return self._head(since)
            except ClosedError:
                # A kept-alive connection was closed just as we asked: the request was not seen, and is asked again.
                if not reused or self._left:
                    raise
                self._drop()

    def _head(self, since: float) -> tuple[Head, float]:
        """The answer's head, without those of informational answers; and the seconds to its first byte."""
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
        raise FetchError("protocol", f"the server answers {head.status} without end")

    # The body.

    def _fill(self, view: memoryview, stop: int, on_progress: Callable[[int], None] | None) -> None:
        """Receives into the view, from what is in place up to `stop`."""
        if self._left and self._got < stop:
            count = min(len(self._left), stop - self._got)
            view[self._got : self._got + count] = self._left[:count]
            self._left = self._left[count:]
            self._got += count
            if on_progress:
                on_progress(self._got)
        while self._got < stop:
            self._check_cancelled()
            # Released at once: an exception's traceback must not keep somebody's memory mapped.
            with view[self._got : min(self._got + _PIECE_BYTES, stop)] as piece:
                self._got += self._receive(piece, some=False)
            if on_progress:
                on_progress(self._got)

    def _fill_chunked(self, view: memoryview, on_progress: Callable[[int], None] | None) -> None:
        try:
            while count := self._chunk_bytes():
                if count > len(view) - self._got:
                    raise FetchError("range", f"the chunks are longer than the {len(view)} bytes they should have")
                self._fill(view, self._got + count, on_progress)
                self._chunk_end()
        except FetchError as exc:
            if self._got < len(view) or exc.kind not in {"broken", "cancelled"}:
                raise
            # Everything is in place; only the last, empty chunk is missing.
            self._drop()
        if self._got != len(view):
            raise FetchError("range", f"the chunks end after {self._got} of {len(view)} bytes")

    def _chunk_bytes(self) -> int:
        """The next chunk's size; at 0 the trailers are read too."""
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

    def _chunk_end(self) -> None:
        if line := self._line():
            raise FetchError("protocol", f"a chunk is followed by {line[:20]!r}")

    def _line(self) -> bytes:
        while (end := self._left.find(b"\r\n")) < 0:
            if len(self._left) > _LINE_BYTES_MAX:
                raise FetchError("protocol", f"a line between chunks is longer than {_LINE_BYTES_MAX} bytes")
            count = self._receive(self._scratch, some=True)
            self._left += self._scratch[:count]
        line, self._left = self._left[:end], self._left[end + 2 :]
        return line

    def _small_body(self, head: Head, expected: int | None, limit: int) -> bytes:
        if head.chunked:
            body = self._chunks(limit)
        elif expected is not None:
            body = bytearray(expected)
            self._fill(memoryview(body), expected, None)
        else:
            body = self._until_close(limit)
        if expected is not None and len(body) != expected:
            raise FetchError("range", f"the answer has {len(body)} bytes, {expected} were announced")
        return bytes(body)

    def _chunks(self, limit: int) -> bytearray:
        body = bytearray()
        while count := self._chunk_bytes():
            if len(body) + count > limit:
                raise too_long(limit)
            part = bytearray(count)
            self._got = 0
            self._fill(memoryview(part), count, None)
            self._chunk_end()
            body += part
        return body

    def _until_close(self, limit: int) -> bytearray:
        body = bytearray(self._left)
        self._left = b""
        while len(body) <= limit:
            try:
                count = self._receive(self._scratch, some=True)
            except ClosedError as exc:
                # A cut looks like an end, but for TLS, where an end is said.
                if exc.orderly:
                    return body
                raise
            body += self._scratch[:count]
        raise too_long(limit)

    def _receive(self, view: memoryview, *, some: bool) -> int:
        """At least one byte into the view; with `some` as soon as there is one."""
        wire = self._wire
        assert wire is not None
        while True:
            try:
                count = wire.receive_some(view) if some else wire.receive(view)
            except OSError as exc:
                raise self._translated(exc) from exc
            if count > 0:
                self._deadline = time.monotonic() + self._timeouts.idle_seconds
                return count
            self._check_cancelled()
            if count == 0:
                raise ClosedError("the connection was closed before the answer was complete", orderly=True)
            if time.monotonic() >= self._deadline:
                raise FetchError("broken", f"no byte for {self._timeouts.idle_seconds:g} s")

    def _translated(self, exc: OSError) -> FetchError:
        if self._cancelled:
            return FetchError("cancelled", "cancelled")
        if isinstance(exc, (TimeoutError, BlockingIOError)):
            return FetchError("broken", f"send timed out after {self._timeouts.idle_seconds:g} s")
        return ClosedError(f"the connection broke: {exc.strerror or exc}", orderly=False)

    # After an answer.

    def _finish(self, head: Head) -> None:
        """The body was read: keeps the connection for another request, if both sides can."""
        if self._wire and head.keeps_alive and not self._left and (head.chunked or head.length is not None):
            self._idle = True
        else:
            self._drop()

    def _failed(self, exc: FetchError) -> None:
        # An answer that contradicts itself is not believed in part either.
        exc.received = 0 if exc.kind in {"range", "protocol"} else self._got
        if not self._idle:
            self._drop()

    def _discard(self, head: Head) -> bytes:
        """Reads a body that nobody wants, if that takes no time; what there is of it."""
        length = head.length
        if not head.chunked and (length is None or length > _ERROR_BODY_BYTES_MAX):
            self._drop()
            return b""
        body = bytearray(length or 0)
        self._got = 0
        try:
            if length is None:
                body = self._chunks(_ERROR_BODY_BYTES_MAX)
                self._got = len(body)
            else:
                self._fill(memoryview(body), length, None)
            self._finish(head)
        except FetchError as exc:
            if exc.kind == "cancelled":
                raise
            self._drop()
        finally:
            got, self._got = self._got, 0
        return bytes(body[:got])

    def _refusal(self, head: Head, target: Target, size: int | None) -> FetchError:
        """What an answer without the wanted bytes means."""
        body = self._discard(head)
        code = _ERROR_CODE.search(body)
        said = f"{target.shown}: {head.status}{' ' + code[1].decode() if code else ''}"
        status = head.status
        if is_retryable_status(status):
            return FetchError("busy", said, status=status, retry_after_seconds=retry_after(head.headers))
        if status == 416:
            total = reported_size(head)
            if size is not None and total not in {None, size}:
                return FetchError("changed", f"{said}: it has {total} bytes now, not {size}", status=status)
            return FetchError("range", f"{said}: there is no such range", status=status)
        if status < 400:
            return self._unexpected(head, target, body)
        kinds: Mapping[int, Kind] = {404: "gone", 410: "gone", 412: "changed"}
        return FetchError(kinds.get(status, "refused"), said, status=status)

    def _unexpected(self, head: Head, target: Target, body: bytes | None = None) -> FetchError:
        """What an answer means that does not come from an object; `body` where it was read already."""
        shown = describe_reply(
            head.status,
            head.headers.get("content-type"),
            self._discard(head) if body is None else body,
            location=head.headers.get("location", ""),
        )
        return FetchError(
            "unexpected", f"{target.shown} answers {shown} in place of the file's bytes", status=head.status
        )

    def _drop(self) -> None:
        with self._lock:
            sock, self._sock = self._sock, None
            if sock is not None:
                sock.close()
        self._wire = None
        self._idle = False
        self._left = b""

    # Connecting: every step is bounded by one deadline, and a cancel ends each of them.

    def _connect(self) -> Wire:
        self._check_cancelled()
        self._deadline = time.monotonic() + self._timeouts.connect_seconds
        target, proxy = self._target, self._proxy
        host, port = (proxy.host, proxy.port) if proxy else (target.host, target.port)
        sock = self._dial(self._addresses(host, port), f"{host}:{port}")
        set_timeouts(sock, poll_seconds=self._timeouts.poll_seconds, send_seconds=self._timeouts.idle_seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire: Wire = PlainWire(sock)
        self._wire = wire
        if target.scheme == "https":
            if proxy:
                deadline = self._deadline
                self._tunnel(proxy)
                self._deadline = deadline
            wire = self._wire = self._secure(sock)
        return wire

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
        # The resolver can neither be interrupted nor told how long it may take: it gets a thread of its own.
        answer: list[object] = []
        woken = self._woken = threading.Event()

        def resolve() -> None:
            try:
                answer.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            except (OSError, UnicodeError) as exc:
                answer.append(exc)
            woken.set()

        threading.Thread(target=resolve, name="resolve", daemon=True).start()
        while not answer:
            self._check_deadline(f"looking up {host}")
            woken.wait(max(self._deadline - time.monotonic(), 0.0))
        self._check_cancelled()
        found = answer[0]
        if not isinstance(found, list):
            raise FetchError("broken", f"{host} cannot be looked up: {found}")
        # The resolver's order between the families, but not always the same server of several.
        families = list(dict.fromkeys(entry[0] for entry in found))
        random.shuffle(found)
        return [(entry[0], entry[4]) for entry in sorted(found, key=lambda entry: families.index(entry[0]))]

    def _dial(
        self, addresses: list[tuple[int, tuple[str, int] | tuple[str, int, int, int]]], shown: str
    ) -> socket.socket:
        """A connected socket to the first address that answers."""
        why = "no address"
        for index, (family, address) in enumerate(addresses):
            left = self._deadline - time.monotonic()
            # A silent address must not use up the time of those behind it.
            wait = left if index == len(addresses) - 1 else left / 2
            if wait <= 0:
                break
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
            except OSError as exc:
                why = exc.strerror or str(exc)
                continue
            sock.settimeout(0)
            # Under the lock, so that a cancel either is seen here or finds a socket that its shutdown wakes.
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
        wire, authority = self._wire, f"{self._target.authority}"
        assert wire is not None
        if self._target.port == default_port("https"):
            authority += f":{self._target.port}"
        credentials = f"Proxy-Authorization: {proxy.authorization}\r\n" if proxy.authorization else ""
        request = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{credentials}\r\n"
        try:
            wire.send(request.encode("ascii"))
        except OSError as exc:
            raise self._translated(exc) from exc
        head, _ = self._head(time.monotonic())
        if 200 <= head.status < 300:
            if self._left:
                raise FetchError("protocol", "the proxy sent something of its own into the tunnel")
            return
        kind: Kind = "busy" if is_retryable_status(head.status) else "refused"
        raise FetchError(
            kind,
            f"the proxy {proxy.host}:{proxy.port} answers {head.status} to CONNECT {authority}",
            status=head.status,
            retry_after_seconds=retry_after(head.headers),
        )

    def _secure(self, sock: socket.socket) -> Wire:
        settings = self._tls or tls_settings()
        context_for(settings)
        host = self._target.host
        try:
            # A cancel finds either the plain socket or its successor.
            with self._lock:
                self._check_cancelled()
                wire = tls_wire(sock, host, settings, self._timeouts.poll_seconds)
                self._sock = wire.sock
            while not wire.handshake():
                self._check_deadline(f"the TLS handshake with {host}")
        except CertificateError as exc:
            self._check_cancelled()
            raise FetchError("tls", f"no trusted TLS with {host}: {exc}") from exc
        except OSError as exc:
            raise self._translated(exc) from exc
        self._check_cancelled()
        return wire


def _shut_down(sock: socket.socket) -> None:
    """Wakes whoever waits on the socket. Not `SSLSocket.shutdown`, after which what arrived would be read as plain."""
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        # Not connected yet, or not any more: nobody waits.
        return


@dataclass(frozen=True, slots=True)
class Ranged:
    """A small object, or a part of one.

    Attributes:
        body: The bytes from the wanted start on; fewer than wanted where the object ends.
        size: Of the whole object.
        etag: As in `Answer`.
        url: Where it was found in the end. A secret.
    """

    body: bytes = field(repr=False)
    size: int
    etag: str | None
    url: str = field(repr=False)


class ConnectionPool:
    """Idle connections for small reads, so that one handshake serves many of them. Thread-safe.

    Args:
        tls: Whom to trust; the environment says when None.
        ca_bundle: In place of the environment's AWS_CA_BUNDLE, or None.
        timeouts: How long to wait for what.
        environ: Where proxies are named; `os.environ` when None.
        idle_max: Connections kept per host; further ones are closed after use.
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
        """A connection for this target's host, idle or new; the caller's own until `give`.

        Raises:
            ConfigError: The environment names a proxy that cannot be used, or certificates that are not there.
        """
        with self._lock:
            if idle := self._idle.get(target.place):
                # The one used last: the others may be closed by the server in peace.
                return idle.pop()
        tls = self._tls
        if self._ca_bundle and target.scheme == "https":
            tls = tls_settings(ca_bundle=self._ca_bundle)
        return Connection(target, proxy=proxy_for(target, self._environ), tls=tls, timeouts=self._timeouts)

    def give(self, connection: Connection) -> None:
        """Takes a connection back; it is closed if it cannot be used again."""
        with self._lock:
            idle = self._idle.setdefault(connection.place, [])
            if connection.is_open and not self._closed and len(idle) < self._idle_max:
                idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Closes what is idle, and from now on whatever is given back. Idempotent."""
        with self._lock:
            self._closed = True
            idle = [connection for kept in self._idle.values() for connection in kept]
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
    """Reads a small object, or a part of one, into memory.

    Follows up to five redirects, but never from https to http; `headers` go to the first host alone.

    Args:
        url: What to GET.
        start: First byte.
        stop: One past the last wanted byte; the object may end before it. None: all there is, up to `bytes_max`.
        bytes_max: A longer answer is refused, not cut.
        headers: To send along.
        etag: The version that it must be of, or None.
        timeouts: How long to wait for what; without a pool of one's own.
        pool: Where to take connections from; None opens one for this call.

    Raises:
        FetchError: As `Connection.get`; nothing is tried again here.
        ConfigError: A proxy or the trusted certificates cannot be used.
    """
    if start < 0 or (stop is not None and not start < stop <= start + bytes_max):
        raise ValueError(f"[{start}, {stop}) is no range of at most {bytes_max} bytes")
    if pool is None:
        with ConnectionPool(timeouts=timeouts) as own:
            return read(url, start=start, stop=stop, bytes_max=bytes_max, headers=headers, etag=etag, pool=own)
    target = first = parse_target(url)
    for _ in range(REDIRECTS_MAX + 1):
        sent = headers if target.place == first.place else ()
        connection = pool.take(target)
        try:
            found = connection.read(target, start, stop, bytes_max=bytes_max, etag=etag, headers=sent)
        finally:
            pool.give(connection)
        if isinstance(found, Ranged):
            return found
        following = parse_target(found, base=target.url)
        if target.scheme == "https" and following.scheme == "http":
            raise FetchError("refused", f"{target.shown} redirects to plain http on {following.authority}")
        if following.place != target.place:
            # Once elsewhere, always without: a way back to the first host is not the caller's request any more.
            headers = ()
        target = following
    raise FetchError("range", f"{first.shown}: more than {REDIRECTS_MAX} redirects")
