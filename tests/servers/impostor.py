"""What is not the server that was asked: a portal, a web site, a proxy's page. It gives every request one answer."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

PORTAL = (
    "<!DOCTYPE html>\n<html><head><title>Sign in to Hotel Wi-Fi</title></head><body>\n<p>Room &amp; name<br></body>"
)


@dataclass(frozen=True)
class Reply:
    """An answer; "HERE" in a header stands for the server's own URL."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


ANSWERS: dict[str, Reply] = {
    "a redirect to a page": Reply(302, {"Location": "HERE/login"}, b""),
    "a redirect for good": Reply(
        301, {"Location": "HERE/elsewhere", "Content-Type": "text/html"}, b"<html>moved</html>"
    ),
    "a redirect that keeps the method": Reply(307, {"Location": "HERE/elsewhere"}, b""),
    "a redirect to nowhere": Reply(302, {}, b""),
    "a page": Reply(200, {"Content-Type": "text/html; charset=utf-8"}, PORTAL.encode()),
    "a page that is XML": Reply(
        200,
        {"Content-Type": "application/xhtml+xml", "ETag": '"5f1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"},
        b"<html><head><title>Welcome to nginx!</title></head><body><p>It works.</p></body></html>",
    ),
    "nothing": Reply(200, {}, b""),
    "broken XML": Reply(200, {"Content-Type": "application/xml"}, b'<?xml version="1.0"?><ListBucketResult><Name>'),
    "JSON": Reply(200, {"Content-Type": "application/json"}, b'{"status": "ok", "version": 3}'),
    "a page that is not found": Reply(404, {"Content-Type": "text/html"}, b"<html><title>404 Not Found</title></html>"),
}


@contextmanager
def impostor(reply: Reply) -> Iterator[str]:
    """Answers everything with `reply` until the context ends; gives its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _serve(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value.replace("HERE", url))
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
