"""Connections to a server that injects faults, plain and by both TLS libraries."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from coldstream.errors import ConfigError
from coldstream.net import tls
from coldstream.net.connection import Connection, RangeReply, Timeouts
from coldstream.net.http_message import FetchError, parse_target
from coldstream.net.tls import TlsSettings
from tests.servers.ranged import RangedServer, certificates

DATA = random.Random(1).randbytes(3_000_000)

PATH = "/bucket/model-00001.safetensors"

QUICK = Timeouts(connect_seconds=30, idle_seconds=30, poll_seconds=0.02)

IMPATIENT = Timeouts(connect_seconds=0.3, idle_seconds=0.3, poll_seconds=0.02)

try:
    tls.context_for(TlsSettings(ca_files=(str(certificates().ca_file),), backend="cryptography"))
    BACKENDS = ["plain", "ssl", "cryptography"]
except ConfigError:
    BACKENDS = ["plain", "ssl"]


def trust(backend: str = "ssl") -> TlsSettings:
    return TlsSettings(ca_files=(str(certificates().ca_file),), backend=backend)  # type: ignore[arg-type]


@dataclass
class Setup:
    """A server, and connections to it of one kind."""

    server: RangedServer
    settings: TlsSettings | None
    opened: list[Connection]

    def connect(self, timeouts: Timeouts = QUICK) -> Connection:
        connection = Connection(parse_target(self.server.url), tls=self.settings, timeouts=timeouts)
        self.opened.append(connection)
        return connection

    def get(
        self, start: int = 0, stop: int = len(DATA), connection: Connection | None = None, **options: Any
    ) -> tuple[RangeReply, bytearray]:
        """Fetches a range and compares it."""
        connection = connection or self.connect()
        buffer = bytearray(stop - start)
        arguments = {"etag": self.server.etags[PATH], "size": len(DATA)} | options
        with memoryview(buffer) as view:
            answer = connection.get(parse_target(self.server.link(PATH)), start, stop, view, **arguments)
        assert buffer == DATA[start:stop]
        return answer, buffer

    def fail(
        self, start: int = 0, stop: int = len(DATA), connection: Connection | None = None, **options: Any
    ) -> FetchError:
        """Fetches a range in vain; what was received must be right, and nothing behind it claimed."""
        connection = connection or self.connect()
        buffer = bytearray(stop - start)
        arguments = {"etag": self.server.etags[PATH], "size": len(DATA)} | options
        with pytest.raises(FetchError) as caught:
            connection.get(parse_target(self.server.link(PATH)), start, stop, memoryview(buffer), **arguments)
        received = caught.value.received
        assert 0 <= received < stop - start
        assert buffer[:received] == DATA[start : start + received]
        return caught.value


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits for something that will happen soon; the deadline only ends a test that hangs."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


class Later:
    """A call in a thread, and the FetchError that it ends with."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.error: FetchError | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._call()
        except FetchError as exc:
            self.error = exc

    def join(self) -> FetchError:
        self._wait()
        assert self.error is not None
        return self.error

    def succeed(self) -> None:
        self._wait()
        assert self.error is None

    def _wait(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


TLS_BACKENDS = [backend for backend in BACKENDS if backend != "plain"]
