"""Spot notices, against a stand-in for the three clouds' metadata services, and what happens after one."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest

from coldstream.engines.vllm.program import VllmEndpoint
from coldstream.node import spot_notice as module
from coldstream.node.spot_notice import SpotNotice, SpotWatcher, cloud_here, drain

TOKEN = "a-session-token"


class Metadata:
    """What the services say. Each asks for the header that its documentation names, as the real ones do."""

    def __init__(self) -> None:
        self.taken = False
        self.asked = 0
        self.tokens = 0
        self.refuse_token = False
        self.when = datetime.now(timezone.utc) + timedelta(seconds=100)

    def answer(self, method: str, path: str, headers: Any) -> tuple[int, bytes]:
        if path == "/latest/api/token":
            self.tokens += 1
            fine = method == "PUT" and headers.get("X-aws-ec2-metadata-token-ttl-seconds")
            return (200, TOKEN.encode()) if fine else (400, b"")
        self.asked += 1
        if path == "/latest/meta-data/spot/instance-action":
            if headers.get("X-aws-ec2-metadata-token") != TOKEN or self.refuse_token:
                self.refuse_token = False
                return 401, b""
            action = {"action": "terminate", "time": f"{self.when:%Y-%m-%dT%H:%M:%SZ}"}
            return (200, json.dumps(action).encode()) if self.taken else (404, b"")
        if path == "/computeMetadata/v1/instance/preempted":
            fine = headers.get("Metadata-Flavor") == "Google"
            return (200, b"TRUE" if self.taken else b"FALSE") if fine else (403, b"")
        if path.startswith("/metadata/scheduledevents?"):
            event = {"EventType": "Preempt", "NotBefore": format_datetime(self.when, usegmt=True)}
            events = [{"EventType": "Reboot"}, *([event] if self.taken else [])]
            return (200, json.dumps({"Events": events}).encode()) if headers.get("Metadata") == "true" else (400, b"")
        return 404, b""


@contextmanager
def served(answer: Callable[[str, str, Any], tuple[int, bytes]]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def _answer(self) -> None:
            status, body = answer(self.command, self.path, self.headers)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = _answer

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_a_notice_is_heard_once(cloud: str) -> None:
    metadata = Metadata()
    heard: list[SpotNotice] = []
    with served(metadata.answer) as url, SpotWatcher(cloud, heard.append, service=url, seconds=0.01):
        until(lambda: metadata.asked > 3)
        assert heard == []
        metadata.taken = True
        until(lambda: heard)
    (notice,) = heard
    assert notice.cloud == cloud
    assert notice.action == ("terminate" if cloud == "aws" else "preempt")
    assert 20 < notice.seconds <= 100
    assert metadata.tokens == (1 if cloud == "aws" else 0)


def test_an_expired_token_is_renewed() -> None:
    metadata = Metadata()
    heard: list[SpotNotice] = []
    with served(metadata.answer) as url, SpotWatcher("aws", heard.append, service=url, seconds=0.01):
        until(lambda: metadata.asked > 2)
        metadata.refuse_token = True
        until(lambda: metadata.tokens == 2)
        metadata.taken = True
        until(lambda: heard)


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
@pytest.mark.parametrize(
    "body", [b"", b"nonsense", b"[]", b'{"Events": 3}', b'{"action": "\\u001b[2J", "time": 5}', b"\xff"]
)
def test_rubbish_is_no_notice_or_a_harmless_one(cloud: str, body: bytes) -> None:
    asked: list[str] = []
    heard: list[SpotNotice] = []

    def answer(method: str, path: str, headers: Any) -> tuple[int, bytes]:
        asked.append(path)
        return 200, body

    with served(answer) as url, SpotWatcher(cloud, heard.append, service=url, seconds=0.01):
        until(lambda: len(asked) > 4 or heard)
    for notice in heard:
        # AWS says with the status alone that there is one.
        assert cloud == "aws"
        assert (notice.action, notice.seconds) == ("terminate", 30.0)


def test_a_service_that_is_not_there_is_asked_again() -> None:
    heard: list[SpotNotice] = []
    with served(lambda *_: (404, b"")) as url:
        pass
    with SpotWatcher("gcp", heard.append, service=url, seconds=0.01) as watcher:
        time.sleep(0.1)
    watcher._thread.join(10)
    assert not watcher._thread.is_alive()
    assert heard == []


def test_the_cloud_is_told_by_the_firmware(tmp_path: Path) -> None:
    vendor = tmp_path / "sys_vendor"
    assert cloud_here(vendor) is None
    for name, cloud in (("Amazon EC2", "aws"), ("Google", "gcp"), ("Microsoft Corporation", "azure"), ("QEMU", None)):
        vendor.write_text(f"{name}\n")
        assert cloud_here(vendor) == cloud


def metrics(running: int, waiting: int = 0) -> str:
    return (
        "# HELP vllm:num_requests_running Number\n"
        f'vllm:num_requests_running{{engine="0",model_name="m"}} {running}.0\n'
        f'vllm:num_requests_waiting{{engine="0",model_name="m"}} {waiting}.0\n'
        'vllm:num_requests_waiting_by_reason{reason="x"} 7.0\n'
    )


class FakeEndpoint(VllmEndpoint):
    said: ClassVar[list[str]] = []

    def metrics(self) -> str:
        return self.said.pop(0) if len(self.said) > 1 else self.said[0]


class PassingTime(threading.Event):
    """An engine that has not ended; waiting for its end takes no time but that of the clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.seconds = 0.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.seconds)

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds += timeout or 0.0
        return False


def drained(seconds: float, *said: str, over: threading.Event) -> tuple[list[str], int]:
    """(what was said, how many answers of the metrics were left)."""
    FakeEndpoint.said = list(said)
    lines: list[str] = []
    ended: list[bool] = []
    drain(
        SpotNotice(cloud="aws", action="terminate", seconds=seconds),
        FakeEndpoint(),
        None,
        name="vLLM",
        end=lambda: ended.append(True),
        over=over,
        say=lines.append,
    )
    assert ended == [True]
    return lines, len(FakeEndpoint.said)


def test_it_waits_for_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    lines, left = drained(120, metrics(2), metrics(1, 1), metrics(0), over=PassingTime(monkeypatch))
    assert left == 1
    assert lines == ["warning: spot interruption by aws in 120 s (terminate): vLLM finishes its requests and exits"]


def test_it_does_not_wait_longer_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    over = PassingTime(monkeypatch)
    drained(28.5, metrics(5), over=over)
    assert 20 < over.seconds < 28.5
    assert "now" in drained(0, metrics(5), over=over)[0][0]


def test_a_vllm_that_has_ended_is_not_waited_for() -> None:
    over = threading.Event()
    over.set()
    ended: list[bool] = []
    FakeEndpoint.said = [metrics(5)]
    notice = SpotNotice(cloud="gcp", action="preempt", seconds=30)
    drain(notice, FakeEndpoint(), None, name="vLLM", end=lambda: ended.append(True), over=over, say=lambda _: None)
    assert ended == []
