"""A port that is taken is found before vLLM starts, and whoever listens is told apart from vLLM."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from coldstream.engines.vllm.program import VllmEndpoint
from coldstream.errors import ColdstreamError
from coldstream.node import http_endpoint
from coldstream.node.http_endpoint import free_port
from coldstream.node.listener import check_free, is_listening


@pytest.mark.parametrize("host", ["127.0.0.1", "", "0.0.0.0"])
def test_a_port_that_another_server_has(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(
            ColdstreamError, match=f"port {port}.*another server does \\(process {os.getpid()}, "
        ) as exc:
            check_free(VllmEndpoint(bind_host=host, port=port), "vLLM")
    assert exc.value.hint == f"choose another port: -- --port {port + 1}"
    check_free(VllmEndpoint(bind_host=host, port=port), "vLLM")


@pytest.mark.parametrize(
    ("host", "port", "why"), [("192.0.2.1", 8000, "assign"), ("a..b", 8000, ""), ("", 70000, "0-65535")]
)
def test_an_address_that_this_machine_has_not(host: str, port: int, why: str) -> None:
    with pytest.raises(ColdstreamError, match=f"cannot listen on port {port}.*{why}"):
        check_free(VllmEndpoint(bind_host=host, port=port), "vLLM")


def test_a_unix_socket_that_exists(tmp_path: Path) -> None:
    path = str(tmp_path / "vllm.sock")
    endpoint = VllmEndpoint(socket_path=path)
    check_free(endpoint, "vLLM")
    assert is_listening(endpoint, [os.getpid()]) is None
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        assert is_listening(endpoint, [os.getpid()])
        assert is_listening(endpoint, []) is False
    with pytest.raises(ColdstreamError, match="the file exists"):
        check_free(endpoint, "vLLM")


def test_who_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        endpoint = VllmEndpoint(port=sock.getsockname()[1])
        assert is_listening(endpoint, [1 << 30, os.getpid()])
        assert is_listening(endpoint, [1 << 30]) is False
    assert is_listening(VllmEndpoint(port=free_port()), [os.getpid()]) is None


def test_a_free_port_is_not_taken_and_below_those_of_outgoing_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 20_000 <= free_port() < 30_000
    with socket.create_server(("127.0.0.1", 0)) as sock:
        taken = sock.getsockname()[1]
        monkeypatch.setattr(http_endpoint, "SystemRandom", lambda: SimpleNamespace(sample=lambda *_: [taken]))
        with pytest.raises(OSError, match="in use"):
            free_port()
