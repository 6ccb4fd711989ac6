"""Real S3 servers on loopback, and a proxy that breaks things between them and a client.

rclone checks signatures but ignores conditions; moto honours conditions but checks no signatures. Neither alone stands
for R2: each is used for what it does right.
"""

from __future__ import annotations

import http.client
import http.server
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

from coldstream.operate.demo_bucket import s3_server

_MOTO = """
import sys, threading
from moto import backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

# It looks for them on the disk at every request, which is a third of a request's time.
modules = frozenset(backends.list_of_moto_modules())
backends.list_of_moto_modules = lambda: modules
application = DomainDispatcherApplication(create_backend_app)
writing = threading.Lock()

def serve(environ, start_response):
    # moto looks at a condition and then writes; S3 does both as one, and so must a stand-in.
    conditional = environ["REQUEST_METHOD"] == "PUT" and {"HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"} & environ.keys()
    with writing if conditional else threading.Lock():
        return application(environ, start_response)

def answer(environ, start_response):
    # moto knows no word for a part of an upload that is gone; S3 does.
    head = []
    body = serve(environ, lambda *given: head.extend(given))
    if head[0].startswith("500") and environ["REQUEST_METHOD"] == "PUT" and "uploadId=" in environ["QUERY_STRING"]:
        head[:2] = ["404 NOT FOUND", [("Content-Type", "application/xml")]]
        body = [b"<Error><Code>NoSuchUpload</Code><Message>The upload is gone.</Message></Error>"]
    start_response(*head)
    return body

server = make_server("127.0.0.1", 0, answer, threaded=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.port, flush=True)
sys.stdin.read()
server.shutdown()
"""


@dataclass(frozen=True)
class S3Server:
    """A running server and the keys that open it."""

    endpoint: str
    access_key: str
    secret_key: str

    def create_bucket(self, name: str) -> None:
        """Creates a bucket through the server's own API."""
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}),
        )
        client.create_bucket(Bucket=name)
        client.close()

    def environ(self, bucket: str) -> dict[str, str]:
        """What coldstream needs to use a bucket of this server."""
        return {
            "R2_ENDPOINT": self.endpoint,
            "R2_BUCKET": bucket,
            "R2_ACCESS_KEY": self.access_key,
            "R2_SECRET_KEY": self.secret_key,
        }


@contextmanager
def rclone_server(root: Path) -> Iterator[S3Server]:
    """`rclone serve s3` over a folder."""
    with s3_server(root) as server:
        yield S3Server(server.endpoint, server.access_key, server.secret_key)


@contextmanager
def moto_server() -> Iterator[S3Server]:
    """moto's server, in a process of its own that ends when its standard input does."""
    process = subprocess.Popen(
        [sys.executable, "-c", _MOTO],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "MOTO_S3_ALLOW_CROSSACCOUNT_ACCESS": "true"},
    )
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        port = int(process.stdout.readline())
        try:
            yield S3Server(f"http://127.0.0.1:{port}", "testing-access-key", "testing-secret-key")
        finally:
            process.stdin.close()
            process.wait(10)


@dataclass
class Fault:
    """What happens to the next `left` requests whose "METHOD path?query" matches."""

    match: re.Pattern[str]
    kind: str
    left: int
    status: int = 503
    code: str = "SlowDown"
    retry_after: str | None = None
    after_bytes: int = 0
    text: str = ""


@dataclass
class Faults:
    """The faults to come and the requests that were seen. Thread-safe."""

    pending: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # ("METHOD path?query", Range)
    headers: list[str] = field(default_factory=list)  # of each request, as text
    drop_range: bool = False
    drop_etag: bool = False  # from answers to reads, as rclone's `--etag-hash ""` does
    on_request: Callable[[str], None] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, match: str = "", *, times: int = 1, **options: object) -> None:
        """Arranges a fault: "fail", "cut_response", "cut_request", "lose_answer" or "page"."""
        with self._lock:
            self.pending.append(Fault(re.compile(match), kind, times, **options))  # type: ignore[arg-type]

    def take(self, line: str, ranged: str | None) -> Fault | None:
        """Notes a request and gives the fault that is meant for it, if any."""
        with self._lock:
            self.requests.append((line, ranged))
            for fault in self.pending:
                if fault.left > 0 and fault.match.search(line):
                    fault.left -= 1
                    return fault
        return None


@contextmanager
def fault_proxy(upstream: S3Server, *, tls: Path | None = None) -> Iterator[tuple[S3Server, Faults]]:
    """A reverse proxy before a server. The Host header stays the client's, so signatures stay valid.

    Args:
        upstream: The server.
        tls: PEM file of a certificate and its key, or None for plain HTTP.
    """
    faults = Faults()
    target = urlsplit(upstream.endpoint).netloc

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _serve(self) -> None:
            line = f"{self.command} {self.path}"
            fault = faults.take(line, self.headers.get("Range"))
            faults.headers.append(str(self.headers))
            if faults.on_request:
                faults.on_request(line)
            length = int(self.headers.get("Content-Length") or 0)
            if fault and fault.kind == "cut_request":
                self.rfile.read(min(length, fault.after_bytes))
                self._cut()
                return
            body = self.rfile.read(length)
            if fault and fault.kind == "fail":
                self._refuse(fault)
                return
            if fault and fault.kind == "page":
                self._page(fault)
                return
            headers = {
                name: value
                for name, value in self.headers.items()
                if name.lower() != "connection" and not (faults.drop_range and name.lower() == "range")
            }
            connection = http.client.HTTPConnection(target, timeout=60)
            try:
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                content = b"" if self.command == "HEAD" else answer.read()
            finally:
                connection.close()
            if fault and fault.kind == "lose_answer":
                self._cut()
                return
            self.send_response(answer.status)
            dropped = {"transfer-encoding", "connection", "content-length", "server", "date"}
            if faults.drop_etag and self.command in {"GET", "HEAD"}:
                dropped.add("etag")
            for name, value in answer.getheaders():
                if name.lower() not in dropped:
                    self.send_header(name, value)
            stated = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", stated or "0")
            self.end_headers()
            if fault and fault.kind == "cut_response":
                self.wfile.write(content[: fault.after_bytes])
                self._cut()
                return
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

        def _refuse(self, fault: Fault) -> None:
            text = f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>injected</Message></Error>".encode()
            self.send_response(fault.status)
            if fault.retry_after:
                self.send_header("Retry-After", fault.retry_after)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        def _page(self, fault: Fault) -> None:
            self.send_response(200)
            for name, value in {"ETag": '"5f1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(fault.text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(fault.text.encode())

        def _cut(self) -> None:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that went away is what the tests are about

    server = Server(("127.0.0.1", 0), Handler)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls)
        # The handshake is the connection's thread's: a client that has ended must not keep the others waiting.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
        yield S3Server(endpoint, upstream.access_key, upstream.secret_key), faults
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
