"""Where vLLM answers, and the first token: against a server that behaves, refuses, talks nonsense or hangs."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from coldstream.engines.vllm.flags import Flags
from coldstream.engines.vllm.program import VllmEndpoint
from coldstream.node import http_endpoint

TOKEN = json.dumps({"choices": [{"text": " flows"}]}).encode()


class Server(http.server.ThreadingHTTPServer):
    """Answers as it is told.

    Attributes:
        status: Of every answer.
        body: Of an answer to POST.
        metrics: Of an answer to a GET of them.
        seen: Each request: method, path, headers, body.
        let_go: Set when a hanging request may end; None when none hangs.
    """

    daemon_threads = True
    metrics = b"a_metric 1\n"

    def __init__(self, status: int, body: bytes, *, hangs: bool) -> None:
        self.status, self.body = status, body
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.let_go = threading.Event() if hangs else None
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._answer(b"ok" if self.path == "/health" else self.server.metrics)

    def do_POST(self) -> None:
        self._answer(self.server.body)

    def _answer(self, body: bytes) -> None:
        given = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.command, self.path, dict(self.headers), given))
        if self.server.let_go is not None:
            self.server.let_go.wait(30)
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serving(status: int = 200, body: bytes = TOKEN, *, hangs: bool = False) -> Iterator[Server]:
    with Server(status, body, hangs=hangs) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            if server.let_go is not None:
                server.let_go.set()
            server.shutdown()
            thread.join()


def at(server: Server, **more: Any) -> VllmEndpoint:
    return VllmEndpoint(port=server.server_address[1], **more)


def test_one_token_is_asked_for() -> None:
    with serving() as server:
        endpoint = at(server)
        assert endpoint.answers()
        assert endpoint.first_token("org/m") is not None
        assert endpoint.metrics() == "a_metric 1\n"
    method, path, headers, body = server.seen[1]
    assert (method, path) == ("POST", "/v1/completions")
    assert "Authorization" not in headers
    asked = json.loads(body)
    assert asked["model"] == "org/m"
    assert asked["max_tokens"] == 1


def test_the_key_goes_where_it_is_needed_and_is_shown_nowhere() -> None:
    with serving() as server:
        endpoint = at(server, key="sesame")
        endpoint.answers()
        endpoint.first_token("m")
        endpoint.metrics()
    assert ["Authorization" in headers for _, _, headers, _ in server.seen] == [False, True, False]
    assert server.seen[1][2]["Authorization"] == "Bearer sesame"
    assert "sesame" not in repr(endpoint)


@pytest.mark.parametrize("status", [400, 401, 404, 500, 503])
def test_a_model_that_completes_nothing_has_no_first_token(status: int) -> None:
    with serving(status) as server:
        assert at(server).first_token("m") is None
        assert not at(server).answers()
        assert at(server).metrics() == ""


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"choices": []}', b"null", b"<html>", b"[" * 100_000])
def test_nonsense_is_no_token(body: bytes) -> None:
    with serving(body=body) as server:
        assert at(server).first_token("m") is None


def test_who_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_endpoint, "_TOKEN_SECONDS", 0.1)
    with serving(hangs=True) as server:
        assert at(server).first_token("m") is None


def test_nobody_there() -> None:
    with serving() as server:
        endpoint = at(server)
    assert not endpoint.answers()
    assert endpoint.first_token("m") is None


def test_a_key_that_no_header_can_hold() -> None:
    with serving() as server:
        assert at(server, key="a\nb").first_token("m") is None
        assert at(server, key="€").first_token("m") is None


def test_a_unix_socket_answers_too(tmp_path: Path) -> None:
    path = tmp_path / "vllm.sock"

    class Unix(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True

    class Quiet(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with Unix(str(path), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            endpoint = VllmEndpoint.of(Flags(("--uds", str(path))), {})
            assert endpoint.answers()
        finally:
            server.shutdown()
            thread.join()
    assert endpoint.url == f"unix:{path}"


@pytest.mark.parametrize(
    ("arguments", "url"),
    [
        ((), "http://127.0.0.1:8000"),
        (("--host", "0.0.0.0", "--port=9001"), "http://127.0.0.1:9001"),
        (("--host", "::"), "http://[::1]:8000"),
        (("--host", "10.0.0.5", "--port", "none"), "http://10.0.0.5:8000"),
        (("--ssl-certfile", "c", "--ssl-keyfile", "k"), "https://127.0.0.1:8000"),
        (("--ssl-certfile", "c"), "http://127.0.0.1:8000"),
    ],
)
def test_where_it_answers_is_told_by_its_flags(arguments: tuple[str, ...], url: str) -> None:
    assert VllmEndpoint.of(Flags(arguments), {}).url == url


def test_its_key_is_that_of_the_flags_or_the_environment() -> None:
    assert VllmEndpoint.of(Flags(("--api-key", "a", "b")), {"VLLM_API_KEY": "c"}).key == "a"
    assert VllmEndpoint.of(Flags(("--api_key=a",)), {}).key == "a"
    assert VllmEndpoint.of(Flags(()), {"VLLM_API_KEY": "c"}).key == "c"
    assert VllmEndpoint.of(Flags(()), {}).key is None


@pytest.mark.parametrize(
    ("arguments", "environ", "where"),
    [
        ((), {}, "every network interface, port 8000"),
        (("--host", "::", "--port", "9001"), {}, "every network interface, port 9001"),
        (("--host", "10.0.0.5"), {}, "10.0.0.5, port 8000"),
        ((), {"VLLM_API_KEY": "c"}, None),
        (("--host", "0.0.0.0", "--api-key", "a"), {}, None),
        (("--host", "localhost"), {}, None),
        (("--host", "::1"), {}, None),
        (("--uds", "/tmp/x"), {}, None),
    ],
)
def test_an_api_that_others_reach_without_a_key(
    arguments: tuple[str, ...], environ: dict[str, str], where: str | None
) -> None:
    warning = VllmEndpoint.of(Flags(arguments), environ).exposure
    assert where in warning if where and warning else warning is None


def test_where_it_answers_is_told_by_vllm_s_configuration_file(tmp_path: Path) -> None:
    path = tmp_path / "vllm.yaml"
    path.write_text("port: 9001\nhost: 127.0.0.2\napi_key: sesame\n")
    endpoint = VllmEndpoint.of(Flags(("--config", str(path), "--port", "9002")), {})
    assert endpoint.url == "http://127.0.0.2:9002"
    assert endpoint.key == "sesame"


def test_the_requests_that_vllm_is_working_on() -> None:
    metrics = (
        """vllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_waiting{engine="0"} 1.0\nvllm:other 7.0\n"""
    )
    for body, count in ((metrics, 3), ("", 0), ("vllm:num_requests_running 1e+01", 10)):
        with serving() as server:
            server.metrics = body.encode()
            assert at(server).requests() == count
