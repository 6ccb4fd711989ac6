"""A server of ranged GETs that fails on demand, its certificates, and a small HTTP proxy. All on loopback, in threads.

    with RangedServer({"/m/a.bin": data}) as server:
        server.add("cut", "a.bin", at=1000)             # the first request for a.bin ends after 1000 bytes of its body
        server.add("status", status=503, first=3)       # so is the third request of all refused
        server.add("flip", probability=0.01, times=None)  # and one in a hundred answers has a wrong bit
        ... fetch server.link("/m/a.bin") ...
        assert server.count("a.bin") == 2

Faults that match one request are all applied to its answer, in the order in which they were added. `RangedServer`'s
docstring lists them. What is random comes from a seed.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import functools
import gzip
import hashlib
import random
import re
import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

Kind = Literal[
    "status", "reset", "cut", "stall", "slow", "late", "unanswered", "short", "long", "excess", "wrong-range", "size",
    "whole", "ok-range", "no-range", "gzip", "chunked", "etag", "no-etag", "flip", "close", "garbage", "endless",
    "redirect", "header", "bad-record", "page",
]  # fmt: skip

PIECE = 1 << 20
HEAD_BYTES_MAX = 64 << 10
REASONS = {200: "OK", 206: "Partial Content", 302: "Found", 403: "Forbidden", 404: "Not Found", 503: "Slow Down"}


@dataclass(slots=True)
class Fault:
    """One trouble to come; see `RangedServer` for what the kinds do and which of the options they read."""

    kind: Kind
    match: re.Pattern[str]
    first: int = 1
    times: int | None = 1
    probability: float = 1.0
    status: int = 503
    code: str = ""
    retry_after: str | None = None
    at: int = 0
    by: int = 1
    seconds: float = 0.0
    bytes_per_second: float = 1e6
    value: str = ""
    location: str = ""
    seen: int = 0
    used: int = 0
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        """Lets a "stall" or a "late" go on."""
        self.released.set()


@dataclass(slots=True)
class Request:
    """A request as it came, and what became of it."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    connection: int
    status: int = 0
    sent: int = 0

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


@dataclass(slots=True)
class Reply:
    """What is to be sent."""

    status: int
    headers: dict[str, str]
    body: memoryview
    start: int = 0
    total: int = 0
    raw: bytes | None = None
    endless: bool = False
    chunk: int = 0
    excess: bytes = b""
    wait: Fault | None = None
    end: Fault | None = None
    stalls: list[Fault] = field(default_factory=list)
    bytes_per_second: float | None = None
    keep: bool = True


class _EndError(Exception):
    """This connection is over."""


class RangedServer:
    """Serves bytes over HTTP/1.1 with ranges, strong ETags, If-Match and keep-alive, and fails as told.

    Args:
        files: Path to content. The paths start with a slash and are not encoded.
        tls: True for a certificate that `certificates().ca_file` vouches for, or the PEM file of another one.
        seed: Of the probabilities.
        requests_per_connection: So many answers, and the connection is closed without a word; None: never.
        query_token: What `token=` in the query has to be; 403 otherwise. May be changed at any time (links expire).
        authorization: What the Authorization header has to be; 401 otherwise.
        bytes_per_second: How fast each connection is served; None: as fast as it goes.

    Faults, `add(kind, match="", ...)`. `match` is searched in "METHOD path?query". Of the requests that match, the
    `first`-th (counted from 1, from when the fault was added) and those behind it have it, each with `probability`,
    `times` in all (None: always).

        "status"      answers `status`, with an S3 error `code` in the body and a `retry_after` header if given
        "reset"       RST after `at` bytes of the body          "cut"    FIN after `at` bytes of the body
        "stall"       goes silent after `at` bytes until `release()` or the end   "slow"  `bytes_per_second`
        "late"        waits `seconds`, or for `release()` when 0, before the first byte of the answer
        "unanswered"  closes before the first byte of the answer
        "short"       body and Content-Length are `by` bytes less than the Content-Range says; "long": more
        "excess"      `by` bytes follow the body beyond the announced length
        "wrong-range" Content-Range and body are `by` bytes further on      "size"  the total is `by` bytes more
        "whole"       200 with the whole object   "ok-range"  200 with the range   "no-range"  206 without Content-Range
        "gzip"        Content-Encoding: gzip      "chunked"   in chunks of `by` bytes
        "etag"        the ETag header is `value`  "no-etag"   there is none       "header"  adds `value` ("Name: text")
        "flip"        bit 0 of byte `at` of the body is wrong
        "close"       says `Connection: close` and does
        "garbage"     `value`, or what is no HTTP, instead of a head       "endless"  headers that never end
        "page"        200 with `value`, which may be empty, as a web page
        "redirect"    `status` (302 unless 3xx) to `location`
        "bad-record"  after `at` bytes of the body, bytes that are no TLS (TLS only)
    """

    def __init__(
        self,
        files: Mapping[str, bytes],
        *,
        tls: bool | Path = False,
        seed: int = 0,
        requests_per_connection: int | None = None,
        query_token: str | None = None,
        authorization: str | None = None,
        bytes_per_second: float | None = None,
    ) -> None:
        self.files: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}
        for path, content in files.items():
            self.put(path, content)
        self.requests_per_connection = requests_per_connection
        self.query_token = query_token
        self.authorization = authorization
        self.bytes_per_second = bytes_per_second
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.connections = 0
        self.bytes_sent = 0
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._open: dict[int, socket.socket] = {}
        self._threads: list[threading.Thread] = []
        self._context: ssl.SSLContext | None = None
        if tls:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificates().good if tls is True else tls)
        self._listener = self._bind(0)
        self.host, self.port = self._listener.getsockname()
        self._listen()

    # What tests use.

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"{'https' if self._context else 'http'}://{self.host}:{self.port}"

    def link(self, path: str, *, host: str | None = None) -> str:
        """The URL of a file, with the token if there is one."""
        query = f"?token={self.query_token}" if self.query_token else ""
        return f"{'https' if self._context else 'http'}://{host or self.host}:{self.port}{path}{query}"

    def put(self, path: str, content: bytes) -> None:
        """Adds or replaces a file; its ETag is its MD5."""
        self.etags[path] = hashlib.md5(content, usedforsecurity=False).hexdigest()
        self.files[path] = content

    def add(self, kind: Kind, match: str = "", **options: object) -> Fault:
        """Arranges a fault; the class's docstring has them all."""
        fault = Fault(kind, re.compile(match), **options)  # type: ignore[arg-type]
        with self._lock:
            self.faults.append(fault)
        return fault

    def heal(self) -> None:
        """Ends all faults, and lets go what they hold up."""
        with self._lock:
            faults, self.faults = self.faults, []
        for fault in faults:
            fault.release()

    def count(self, match: str = "") -> int:
        """How many requests match."""
        with self._lock:
            return sum(bool(re.search(match, f"{seen.method} {seen.path}?{seen.query}")) for seen in self.requests)

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """While it lasts, new connections to the port are refused; open ones go on."""
        # It holds the port, which another program could take.
        bound = self._bind(self.port)
        self._stop_listening()
        try:
            yield
        finally:
            self._listener = bound
            self._listen()

    def hang_up(self) -> None:
        """Closes every open connection."""
        with self._lock:
            connections = list(self._open.values())
        for connection in connections:
            _shut(connection)

    def close(self) -> None:
        """Closes everything and waits for its threads."""
        self._closing.set()
        self.heal()
        self._stop_listening()
        self.hang_up()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> RangedServer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # Connections.

    @staticmethod
    def _bind(port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", port))
        return listener

    def _listen(self) -> None:
        self._listener.listen(256)
        self._accepting = self._start(self._accept, self._listener)

    def _start(self, run: Callable[..., None], *args: object) -> threading.Thread:
        thread = threading.Thread(target=run, args=args, daemon=True)
        self._threads = [old for old in self._threads if old.is_alive()] + [thread]
        thread.start()
        return thread

    def _stop_listening(self) -> None:
        _shut(self._listener)
        self._accepting.join()
        self._listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.connections += 1
                number = self.connections
                self._open[number] = connection
            self._start(self._serve, connection, number)

    def _serve(self, connection: socket.socket, number: int) -> None:
        try:
            if self._context:
                wrapped = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                with self._lock:
                    self._open[number] = connection = wrapped
                if self._closing.is_set():
                    return
                wrapped.do_handshake()
            left = b""
            answered = 0
            while not self._closing.is_set() and answered != self.requests_per_connection:
                request, left = self._read(connection, number, left)
                self._answer(connection, request)
                answered += 1
        except (_EndError, OSError):
            pass
        finally:
            with self._lock:
                del self._open[number]
            # The client sees what was sent and then the end, not a reset for what it sent and the server did not read.
            _shut(connection)
            connection.close()

    def _read(self, connection: socket.socket, number: int, data: bytes) -> tuple[Request, bytes]:
        while (end := data.find(b"\r\n\r\n")) < 0:
            more = connection.recv(HEAD_BYTES_MAX)
            if not more or len(data) > HEAD_BYTES_MAX:
                raise _EndError
            data += more
            if not data[:1].isalpha():
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
                raise _EndError
        first, *lines = data[:end].decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        path, _, query = target.partition("?")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        request = Request(method, unquote(path), query, headers, number)
        with self._lock:
            self.requests.append(request)
        return request, data[end + 4 :]

    # Answers.

    def _answer(self, connection: socket.socket, request: Request) -> None:
        reply = self._reply(request)
        for fault in self._take(request):
            self._apply(fault, reply, request)
        request.status = reply.status
        if reply.wait:
            reply.wait.reached.set()
            if reply.wait.seconds:
                self._closing.wait(reply.wait.seconds)
            else:
                self._hold(reply.wait)
        if reply.end and reply.end.kind == "unanswered":
            raise _EndError
        if reply.raw is not None:
            connection.sendall(reply.raw)
            while reply.endless:
                connection.sendall(b"X-Filler: " + b"x" * 1000 + b"\r\n")
            raise _EndError
        if request.headers.get("connection", "").lower() == "close":
            reply.keep = False
        if not reply.keep:
            reply.headers["Connection"] = "close"
        if reply.chunk:
            reply.headers["Transfer-Encoding"] = "chunked"
        else:
            reply.headers.setdefault("Content-Length", str(len(reply.body)))
        head = f"HTTP/1.1 {reply.status} {REASONS.get(reply.status, 'Whatever')}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items()) + "\r\n"
        connection.sendall(head.encode("latin-1"))
        if request.method != "HEAD":
            self._send_body(connection, request, reply)
        if not reply.keep:
            raise _EndError

    def _reply(self, request: Request) -> Reply:
        content = self.files.get(request.path)
        if self.query_token is not None and f"token={self.query_token}" not in request.query.split("&"):
            return _refusal(403, "AccessDenied")
        if self.authorization is not None and request.headers.get("authorization") != self.authorization:
            return _refusal(401, "Unauthorized")
        if request.method not in {"GET", "HEAD"}:
            return _refusal(405, "MethodNotAllowed")
        if content is None:
            return _refusal(404, "NoSuchKey")
        etag = f'"{self.etags[request.path]}"'
        wanted = request.headers.get("if-match")
        if wanted is not None and wanted != "*" and etag not in [one.strip() for one in wanted.split(",")]:
            return _refusal(412, "PreconditionFailed")
        headers = {"ETag": etag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        total = len(content)
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.range or "")
        if not match or not (match[1] or match[2]):
            return Reply(200, headers, memoryview(content), 0, total)
        if match[1]:
            start, stop = int(match[1]), min(int(match[2]) + 1 if match[2] else total, total)
        else:
            start, stop = max(total - int(match[2]), 0), total
        if start >= stop:
            reply = _refusal(416, "InvalidRange")
            reply.headers["Content-Range"] = f"bytes */{total}"
            return reply
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{total}"
        return Reply(206, headers, memoryview(content)[start:stop], start, total)

    def _take(self, request: Request) -> list[Fault]:
        line = f"{request.method} {request.path}?{request.query}"
        found = []
        with self._lock:
            for fault in self.faults:
                if not fault.match.search(line):
                    continue
                fault.seen += 1
                if fault.seen < fault.first or (fault.times is not None and fault.used >= fault.times):
                    continue
                if fault.probability >= 1 or self._random.random() < fault.probability:
                    fault.used += 1
                    found.append(fault)
        return found

    def _apply(self, fault: Fault, reply: Reply, request: Request) -> None:
        content = memoryview(self.files.get(request.path, b""))
        start, stop = reply.start, reply.start + len(reply.body)
        match fault.kind:
            case "status":
                refusal = _refusal(fault.status, fault.code or "Whatever")
                reply.status, reply.headers, reply.body = refusal.status, refusal.headers, refusal.body
                if fault.retry_after is not None:
                    reply.headers["Retry-After"] = fault.retry_after
            case "redirect":
                reply.status = fault.status if 300 <= fault.status < 400 else 302
                reply.headers, reply.body = {"Location": fault.location}, memoryview(b"elsewhere")
            case "page":
                reply.status, reply.body = 200, memoryview(fault.value.encode())
                reply.headers = {"Content-Type": "text/html; charset=utf-8"}
            case "reset" | "cut" | "unanswered" | "bad-record":
                reply.end = fault
            case "stall":
                reply.stalls.append(fault)
            case "slow":
                reply.bytes_per_second = fault.bytes_per_second
            case "late":
                reply.wait = fault
            case "short":
                reply.body = reply.body[: -fault.by]
            case "long":
                reply.body = memoryview(bytes(reply.body) + b"\xee" * fault.by)
            case "excess":
                reply.headers["Content-Length"] = str(len(reply.body))
                reply.excess = b"\xee" * fault.by
            case "wrong-range":
                start, stop = start + fault.by, stop + fault.by
                reply.body = content[start:stop]
                reply.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{reply.total}"
            case "size":
                reply.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{reply.total + fault.by}"
            case "whole":
                reply.status, reply.body = 200, content
                reply.headers.pop("Content-Range", None)
            case "ok-range":
                reply.status = 200
            case "no-range":
                reply.headers.pop("Content-Range", None)
            case "gzip":
                reply.headers["Content-Encoding"] = "gzip"
                reply.body = memoryview(gzip.compress(reply.body, 1))
            case "chunked":
                reply.chunk = fault.by
            case "etag":
                reply.headers["ETag"] = fault.value
            case "no-etag":
                reply.headers.pop("ETag", None)
            case "header":
                name, _, value = fault.value.partition(": ")
                reply.headers[name] = value
            case "flip":
                if fault.at < len(reply.body):
                    wrong = bytearray(reply.body)
                    wrong[fault.at] ^= 1
                    reply.body = memoryview(bytes(wrong))
            case "close":
                reply.keep = False
            case "garbage":
                reply.raw = fault.value.encode("latin-1") or b"SSH-2.0-nothing\r\n\r\n"
            case "endless":
                reply.raw, reply.endless = b"HTTP/1.1 200 OK\r\n", True

    def _send_body(self, connection: socket.socket, request: Request, reply: Reply) -> None:
        rate = reply.bytes_per_second or self.bytes_per_second
        piece = max(int(rate * 0.02), 1) if rate else PIECE
        marks = sorted(reply.stalls, key=lambda fault: fault.at)
        end = min(reply.end.at, len(reply.body)) if reply.end else len(reply.body)
        sent = 0
        while True:
            while marks and marks[0].at <= sent:
                self._hold(marks.pop(0))
            if sent >= end:
                break
            upto = min(end, sent + (reply.chunk or piece), marks[0].at if marks else end)
            part = reply.body[sent:upto]
            if reply.chunk:
                connection.sendall(b"%x\r\n%b\r\n" % (len(part), part))
            else:
                connection.sendall(part)
            request.sent += len(part)
            with self._lock:
                self.bytes_sent += len(part)
            sent = upto
            if rate and self._closing.wait(len(part) / rate):
                raise _EndError
        if reply.end:
            self._end(connection, reply.end)
        if reply.chunk:
            connection.sendall(b"0\r\n\r\n")
        if reply.excess:
            connection.sendall(reply.excess)

    def _hold(self, fault: Fault) -> None:
        fault.reached.set()
        while not fault.released.wait(0.05):
            if self._closing.is_set():
                raise _EndError

    @staticmethod
    def _end(connection: socket.socket, fault: Fault) -> None:
        fault.reached.set()
        if fault.kind == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        elif fault.kind == "bad-record":
            # Past the TLS layer, straight into the stream: a record that no key opens.
            socket.socket.sendall(connection, b"\x17\x03\x03\x00\x40" + b"\x00" * 64)
        raise _EndError


def _refusal(status: int, code: str) -> Reply:
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as told</Message></Error>"
    return Reply(status, {"Content-Type": "application/xml"}, memoryview(text.encode()))


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


class HttpProxy:
    """A proxy for http (absolute form) and https (CONNECT), with optional basic credentials.

    Args:
        credentials: "user:password" that it asks for, or None.
        refuse: Answers this status to everything, when set.
        chatty: Sends bytes of its own right behind the answer to CONNECT.
    """

    def __init__(self, *, credentials: str | None = None, refuse: int | None = None, chatty: bool = False) -> None:
        self.credentials, self.refuse, self.chatty = credentials, refuse, chatty
        self.lines: list[str] = []
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = self._listener.getsockname()
        self._run(self._accept)

    @property
    def url(self) -> str:
        """As it stands in HTTP_PROXY, with the credentials."""
        return f"http://{self.credentials + '@' if self.credentials else ''}{self.host}:{self.port}"

    def __enter__(self) -> HttpProxy:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for sock in [self._listener, *self._sockets]:
            _shut(sock)
        for thread in self._threads:
            thread.join()
        for sock in [self._listener, *self._sockets]:
            sock.close()

    def _run(self, run: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=run, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(client)
            self._run(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        try:
            data = b""
            while b"\r\n\r\n" not in data:
                more = client.recv(65536)
                if not more:
                    return
                data += more
            head, _, rest = data.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            self.lines.append(first)
            wanted = f"Basic {base64.b64encode((self.credentials or '').encode()).decode()}"
            given = [line.partition(": ")[2] for line in lines if line.lower().startswith("proxy-authorization:")]
            if self.credentials and given != [wanted]:
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
            if self.refuse:
                client.sendall(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % self.refuse)
                return
            method, target, _ = first.split(" ")
            split = urlsplit(f"//{target}" if method == "CONNECT" else target)
            server = socket.create_connection((split.hostname or "", split.port or 80))
            self._sockets.append(server)
            if method == "CONNECT":
                client.sendall(b"HTTP/1.1 200 Go\r\n\r\n" + (b"\x15hello" if self.chatty else b""))
            else:
                path = (split.path or "/") + (f"?{split.query}" if split.query else "")
                kept = [line for line in lines if not line.lower().startswith(("proxy-", "connection:"))]
                request = "\r\n".join([f"{method} {path} HTTP/1.1", *kept, "Connection: close"])
                server.sendall(request.encode("latin-1") + b"\r\n\r\n")
            if rest:
                server.sendall(rest)
            self._run(self._pump, client, server)
            self._pump(server, client)
        except OSError:
            pass
        finally:
            _shut(client)

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 18):
                sink.sendall(data)
        _shut(sink)


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files: a CA, and servers' certificates with their keys.

    Attributes:
        ca_file: What to trust.
        good: For localhost, 127.0.0.1 and ::1.
        wrong_host: By the same CA, for another name.
        expired: By the same CA, over since yesterday.
        unknown: For the right names, by an untrusted CA.
    """

    ca_file: Path
    good: Path
    wrong_host: Path
    expired: Path
    unknown: Path


@functools.cache
def certificates() -> Certificates:
    """Made once per process, in a folder that goes with it."""
    folder = tempfile.TemporaryDirectory(prefix="certificates-")
    _kept.append(folder)
    root = Path(folder.name)
    return make_certificates(root)


_kept: list[tempfile.TemporaryDirectory[str]] = []


def make_certificates(folder: Path) -> Certificates:
    """Writes all of `Certificates` into a folder."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    now = dt.datetime.now(dt.timezone.utc)
    day = dt.timedelta(days=1)
    names = ("localhost", "127.0.0.1", "::1")

    def make(
        name: str, signer: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None, hosts: tuple[str, ...], until: int
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer, issuer_key = signer or (subject, key)
        alternatives = [x509.IPAddress(ip_address(h)) if h[0] in "1:" else x509.DNSName(h) for h in hosts]
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 30 * day)
            .not_valid_after(now + until * day)
            .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        )
        if signer:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        else:
            usage = dict.fromkeys(
                ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
                 "encipher_only", "decipher_only"), False)  # fmt: skip
            builder = builder.add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
        signed = builder.sign(issuer_key, hashes.SHA256())
        path = folder / f"{name.replace(' ', '-')}.pem"
        pem = signed.public_bytes(serialization.Encoding.PEM)
        if signer:
            pem += key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        path.write_bytes(pem)
        return path, (subject, key)

    ca_file, trusted = make("trusted test CA", None, (), 365)
    _, stranger = make("unknown test CA", None, (), 365)
    return Certificates(
        ca_file=ca_file,
        good=make("good", trusted, names, 365)[0],
        wrong_host=make("wrong host", trusted, ("elsewhere.example",), 365)[0],
        expired=make("expired", trusted, names, -1)[0],
        unknown=make("unknown", stranger, names, 365)[0],
    )
