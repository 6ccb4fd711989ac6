"""What is asked for, checked before anything begins; and the port."""

from __future__ import annotations

import gzip
import http.client
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from coldstream.errors import ConfigError, UsageError
from coldstream.settings import load_settings
from coldstream.telemetry.metrics.measuring import MetricOptions, measured, metric_options
from coldstream.telemetry.metrics.scrape_endpoint import ScrapeEndpoint


def asked(flags: dict[str, str] | None = None, **environ: str) -> MetricOptions | None:
    given = {f"COLDSTREAM_METRICS_{name}": value for name, value in environ.items()}
    given_flags = {f"COLDSTREAM_METRICS_{name}": value for name, value in (flags or {}).items()}
    return metric_options(load_settings(given_flags, environ=given))


def test_what_is_asked_for(tmp_path: Path) -> None:
    assert asked() is None
    assert asked(HOST="10.0.0.1") is None, "set for all, and this command has no port"
    assert asked(PORT="0") == MetricOptions(port=0)
    assert asked({"PORT": "9"}, PORT="8", HOST="::1") == MetricOptions(host="::1", port=9)
    assert asked(FILE=str(tmp_path / "c.prom")) == MetricOptions(file=tmp_path / "c.prom")


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"PORT": "http"}, "'http' is not a valid metrics port"),
        ({"PORT": "65536"}, "is not a valid metrics port"),
        ({"PORT": "-1"}, "is not a valid metrics port"),
        ({"FILE": "metrics.txt"}, "does not end in .prom"),
        ({"FILE": "/nowhere/at/all/c.prom"}, "a folder that does not exist"),
    ],
)
def test_what_makes_no_sense(environ: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        asked(**environ)


def test_a_host_without_a_port() -> None:
    with pytest.raises(ConfigError, match="needs a port"):
        asked({"HOST": "127.0.0.1"})


def test_a_file_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "c.prom").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        asked(FILE=str(tmp_path / "c.prom"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_of_others() -> None:
    with pytest.raises(UsageError, match="may not write to"):
        asked(FILE="/usr/c.prom")


@pytest.fixture
def endpoint() -> Iterator[ScrapeEndpoint]:
    found = ScrapeEndpoint("127.0.0.1", 0, lambda: b"coldstream_x 1\n")
    yield found
    found.stop()


def ask(port: int, method: str, path: str, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def test_it_answers_scrapes(endpoint: ScrapeEndpoint) -> None:
    answer, body = ask(endpoint.port, "GET", "/metrics?x=1")
    assert (answer.status, body) == (200, b"coldstream_x 1\n")
    assert answer.getheader("Content-Type") == "text/plain; version=0.0.4; charset=utf-8"
    answer, body = ask(endpoint.port, "GET", "/metrics", **{"Accept-Encoding": "gzip"})
    assert gzip.decompress(body) == b"coldstream_x 1\n"
    answer, body = ask(endpoint.port, "HEAD", "/metrics")
    assert (answer.status, body) == (200, b"")
    assert ask(endpoint.port, "GET", "/")[0].status == 404
    assert ask(endpoint.port, "POST", "/metrics")[0].status == 501


def test_the_port_is_free_again_at_once(endpoint: ScrapeEndpoint) -> None:
    ask(endpoint.port, "GET", "/metrics")
    endpoint.stop()
    ScrapeEndpoint("127.0.0.1", endpoint.port, bytes).stop()


def test_a_client_that_says_nothing_stops_nobody(endpoint: ScrapeEndpoint) -> None:
    with socket.create_connection(("127.0.0.1", endpoint.port)) as silent:
        silent.sendall(b"GET /metr")
        assert ask(endpoint.port, "GET", "/metrics")[0].status == 200
        endpoint.stop()


@pytest.mark.parametrize(
    ("host", "message"),
    [("127.0.0.1", "is in use"), ("192.0.2.1", "cannot be opened"), ("x.invalid", "cannot be opened")],
)
def test_a_port_that_cannot_be_had(endpoint: ScrapeEndpoint, host: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ScrapeEndpoint(host, endpoint.port, bytes)


def test_nothing_listens_after_the_block_however_it_ends() -> None:
    said: list[str] = []

    def interrupted() -> None:
        with measured(MetricOptions(port=0), model="m", uri="s3://b/m", say=said.append):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    (line,) = said
    assert line.startswith("metrics     http://127.0.0.1:")
    port = int(line.rpartition(":")[2].removesuffix("/metrics"))
    with pytest.raises(ConnectionRefusedError):
        ask(port, "GET", "/metrics")
