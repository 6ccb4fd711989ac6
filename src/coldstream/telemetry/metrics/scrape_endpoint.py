"""Answers scrapes over HTTP, as long as the process lives."""

from __future__ import annotations

import errno
import gzip
import socket
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

from coldstream.errors import UsageError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_REQUEST_SECONDS = 10.0
_AT_ONCE_MAX = 16


class ScrapeEndpoint:
    """Serves scrapes at `url` in its own threads until `stop`."""

    def __init__(self, host: str, port: int, text: Callable[[], bytes]) -> None:
        """Takes the port, or a free one for 0; UsageError if it cannot. `text` is called in any thread."""
        try:
            self._server = _server(host, port, text)
        except OSError as exc:
            why = "is in use" if exc.errno == errno.EADDRINUSE else f"cannot be opened: {exc.strerror or exc}"
            hint = "set another port, or 0 to pick a free one: --metrics-port, COLDSTREAM_METRICS_PORT"
            raise UsageError(f"the metrics' port {port} on {host} {why}", hint=hint) from exc
        self.port: int = self._server.server_address[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/metrics"
        self._thread = threading.Thread(target=self._server.serve_forever, name="coldstream-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends it, and waits for the answer that is being sent. Idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _server(host: str, port: int, text: Callable[[], bytes]) -> socketserver.ThreadingTCPServer:
    at_once = threading.BoundedSemaphore(_AT_ONCE_MAX)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version, sys_version = "coldstream", ""
        timeout = _REQUEST_SECONDS

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name there
            pass

        def do_GET(self) -> None:
            is_metrics = self.path.partition("?")[0] == "/metrics"
            with at_once:
                body = text() if is_metrics else b"metrics are at /metrics\n"
            self.send_response(200 if is_metrics else 404)
            self.send_header("Content-Type", CONTENT_TYPE if is_metrics else "text/plain; charset=utf-8")
            if "gzip" in self.headers.get("Accept-Encoding", ""):
                body = gzip.compress(body, compresslevel=1)
                self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(body)))
            # A scraper comes every few seconds; an open connection would hold a thread in between.
            self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

    class ScrapeServer(socketserver.ThreadingTCPServer):
        allow_reuse_address, daemon_threads, block_on_close = True, True, False
        address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]

        def handle_error(self, request: object, client_address: object) -> None:
            """The client closed the connection."""

    return ScrapeServer((host, port), Handler)
