"""One connection against a server that does everything wrong, over real sockets, plain and by both TLS libraries."""

from __future__ import annotations

import itertools
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldstream import __version__
from coldstream.errors import ConfigError
from coldstream.net import connection as http
from coldstream.net import tls
from coldstream.net.connection import Connection, RangeReply, Timeouts
from coldstream.net.http_message import FetchError, Proxy, parse_target, proxy_for
from coldstream.net.pool import ConnectionPool, read
from coldstream.net.tls import TlsSettings
from tests.servers.impostor import PORTAL
from tests.servers.ranged import HttpProxy, RangedServer, certificates

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


@pytest.fixture(params=BACKENDS)
def setup(request: pytest.FixtureRequest) -> Iterator[Setup]:
    secure = request.param != "plain"
    with RangedServer({PATH: DATA, "/empty": b""}, tls=secure) as server:
        setup = Setup(server, trust(request.param) if secure else None, [])
        yield setup
        for connection in setup.opened:
            connection.close()


@pytest.fixture
def server() -> Iterator[RangedServer]:
    with RangedServer({PATH: DATA, "/empty": b"", "/small": b"0123456789"}) as server:
        yield server


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
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert self.error is not None
        return self.error


# When all is well.


def test_ranges_arrive_and_the_connection_is_kept(setup: Setup) -> None:
    connection = setup.connect()
    for start, stop in [(0, 1), (5, 1_500_000), (0, len(DATA)), (len(DATA) - 1, len(DATA)), (100, 40_000)]:
        answer, _ = setup.get(start, stop, connection)
        assert (answer.status, answer.size, answer.etag) == (206, len(DATA), setup.server.etags[PATH])
        assert answer.first_byte_seconds > 0
    assert setup.server.connections == 1
    assert connection.is_open
    seen = setup.server.requests[1]
    assert seen.range == "bytes=5-1499999"
    assert seen.headers["if-match"] == f'"{setup.server.etags[PATH]}"'
    assert seen.headers["accept-encoding"] == "identity"
    assert seen.headers["user-agent"] == f"coldstream/{__version__}"
    assert seen.headers["host"] == f"127.0.0.1:{setup.server.port}"


def test_its_repr_shows_its_state(setup: Setup) -> None:
    connection = setup.connect()
    place = f"{setup.server.url}"
    assert repr(connection) == f"Connection({place}, closed)"
    setup.get(0, 10, connection)
    assert re.fullmatch(rf"Connection\({place}, (plain|ssl|cryptography \(OpenSSL .*\))\)", repr(connection))
    connection.close()
    connection.close()
    assert not connection.is_open
    setup.get(0, 10, connection)
    connection.cancel()
    assert repr(connection) == f"Connection({place}, cancelled)"


def test_progress_is_reported_as_bytes_arrive(setup: Setup) -> None:
    told: list[int] = []
    setup.get(on_progress=told.append)
    assert told == sorted(told)
    assert told[-1] == len(DATA)


def test_progress_is_reported_for_slow_bytes_too(setup: Setup) -> None:
    setup.server.add("slow", bytes_per_second=200_000)
    told: list[int] = []
    setup.get(0, 40_000, on_progress=told.append)
    assert len(told) > 3
    assert told[-1] == 40_000


def test_a_stall_that_ends_in_time_is_not_a_failure(setup: Setup) -> None:
    fault = setup.server.add("stall", at=1_234_567)
    told: list[int] = []

    def progress(count: int) -> None:
        told.append(count)
        if count == 1_234_567:
            fault.release()

    setup.get(on_progress=progress)
    assert 1_234_567 in told


def test_a_late_first_byte_is_measured(setup: Setup) -> None:
    setup.server.add("late", seconds=0.2)
    answer, _ = setup.get(0, 10)
    assert answer.first_byte_seconds >= 0.2


def test_a_200_with_the_right_range_is_taken(setup: Setup) -> None:
    setup.server.add("ok-range")
    answer, _ = setup.get(7, 70_000)
    assert (answer.status, answer.size) == (200, len(DATA))


def test_a_200_is_taken_for_a_whole_object(setup: Setup) -> None:
    setup.server.add("whole", times=2)
    assert setup.get()[0].status == 200
    assert setup.get(size=None, etag=None)[0].size == len(DATA)


@pytest.mark.parametrize("chunk", [1, 7, 65_536, len(DATA)])
def test_chunked_bodies_are_decoded(setup: Setup, chunk: int) -> None:
    connection = setup.connect()
    stop = min(len(DATA), chunk * 3000)
    setup.server.add("chunked", by=chunk, times=2)
    setup.get(0, stop, connection)
    setup.get(0, stop, connection)
    assert setup.server.connections == 1


def test_a_missing_etag_and_an_unknown_size_are_taken(setup: Setup) -> None:
    setup.server.add("no-etag")
    assert setup.get(0, 9)[0].etag is None
    setup.server.add("header", value="Content-Range: bytes 0-8/*")
    assert setup.get(0, 9)[0].size is None


def test_weak_etags_compare_and_are_no_condition(setup: Setup) -> None:
    weak = f'W/"{setup.server.etags[PATH]}"'
    setup.server.add("etag", value=weak, times=2)
    answer, _ = setup.get(0, 9)
    assert answer.etag == weak.replace('"', "")
    setup.get(0, 9, etag=answer.etag)
    assert "if-match" not in setup.server.requests[-1].headers


def test_headers_are_sent_along_and_checked(setup: Setup) -> None:
    setup.server.authorization = "Bearer x"
    setup.get(0, 9, headers=[("Authorization", "Bearer x")])
    assert setup.fail(0, 9).kind == "refused"
    for bad in [("X\r\nY", "1"), ("X", "1\r\nY: 2"), ("X", "ü"), ("", "1"), ("X", "a\x00b")]:
        with pytest.raises(ValueError, match="cannot be sent"):
            setup.connect().get(
                parse_target(setup.server.link(PATH)),
                0,
                1,
                memoryview(bytearray(1)),
                etag=None,
                size=None,
                headers=[bad],
            )


def test_what_cannot_be_meant_is_refused(setup: Setup) -> None:
    target = parse_target(setup.server.link(PATH))
    view = memoryview(bytearray(8))
    for start, stop in [(0, 9), (8, 8), (-1, 7)]:
        with pytest.raises(ValueError, match="does not fit"):
            setup.connect().get(target, start, stop, view, etag=None, size=None)
    with pytest.raises(ValueError, match="not on the host"):
        setup.connect().get(parse_target("http://127.0.0.1:1/"), 0, 8, view, etag=None, size=None)


# Connections that end.


def test_a_connection_that_was_closed_while_idle_is_replaced(setup: Setup) -> None:
    setup.server.requests_per_connection = 2
    connection = setup.connect()
    for _ in range(5):
        setup.get(0, 1000, connection)
    assert setup.server.connections == 3


def test_a_connection_that_closes_as_we_ask_is_replaced_once(setup: Setup) -> None:
    connection = setup.connect()
    setup.get(0, 1000, connection)
    setup.server.add("unanswered")
    setup.get(0, 1000, connection)
    assert setup.server.connections == 2
    setup.server.add("unanswered", times=2)
    assert setup.fail(0, 1000, connection).kind == "broken"
    assert setup.server.count() == 5


def test_a_new_connection_that_closes_is_not(setup: Setup) -> None:
    setup.server.add("unanswered")
    error = setup.fail(0, 1000)
    assert (error.kind, error.received, error.status) == ("broken", 0, None)
    assert setup.server.count() == 1


def test_a_polite_close_is_understood(setup: Setup) -> None:
    connection = setup.connect()
    setup.server.add("close")
    setup.get(0, 1000, connection)
    assert not connection.is_open
    setup.get(0, 1000, connection)
    assert setup.server.connections == 2


def test_bytes_beyond_the_announced_length_end_only_the_connection(setup: Setup) -> None:
    connection = setup.connect()
    setup.server.add("excess", by=100)
    setup.get(0, 200_000, connection)
    # They may come a moment after the body.
    deadline = time.monotonic() + 10
    while connection._stream is not None and connection._stream.is_quiet():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    setup.get(0, 200_000, connection)
    assert setup.server.connections == 2


@pytest.mark.parametrize("kind", ["cut", "reset"])
def test_what_came_before_an_end_is_kept(setup: Setup, kind: Any) -> None:
    rng = random.Random(2)
    for at in [0, 1, 20_000, 1 << 20, len(DATA) - 1, *[rng.randrange(len(DATA)) for _ in range(10)]]:
        setup.server.add(kind, at=at)
        error = setup.fail()
        assert error.kind == "broken"
        # A reset may overtake bytes that were sent before it; an end in order may not.
        assert error.received == at if kind == "cut" else error.received <= at
        setup.get(error.received, len(DATA))


def test_a_cut_within_chunks_is_exact(setup: Setup) -> None:
    for at in [0, 5, 65_536, 65_537, 2_000_000]:
        setup.server.add("chunked", by=65_536)
        setup.server.add("cut", at=at)
        error = setup.fail()
        assert (error.kind, error.received) == ("broken", at)


def test_a_missing_last_chunk_is_not_missed(setup: Setup) -> None:
    connection = setup.connect()
    setup.server.add("chunked", by=65_536)
    setup.server.add("cut", at=len(DATA))
    setup.get(connection=connection)
    assert not connection.is_open


def test_a_silent_server_is_broken_and_what_came_is_kept(setup: Setup) -> None:
    setup.server.add("stall", at=1_111_111)
    error = setup.fail(connection=setup.connect(IMPATIENT))
    assert (error.kind, error.received) == ("broken", 1_111_111)
    assert "no data for 0.3 s" in error.message
    setup.server.add("late")
    error = setup.fail(connection=setup.connect(IMPATIENT))
    assert (error.kind, error.received) == ("broken", 0)


def test_a_refused_connection_is_broken(setup: Setup) -> None:
    with setup.server.refusing():
        error = setup.fail()
        assert error.kind == "broken"
        assert "refused" in error.message
    setup.get()


def test_a_connection_hung_up_on_is_opened_again(setup: Setup) -> None:
    connection = setup.connect()
    for _ in range(3):
        setup.get(0, 1000, connection)
        setup.server.hang_up()
    assert setup.server.connections == 3


@pytest.mark.parametrize("backend", [backend for backend in BACKENDS if backend != "plain"])
def test_a_bad_tls_record_is_broken(backend: str) -> None:
    with RangedServer({PATH: DATA}, tls=True) as server:
        setup = Setup(server, trust(backend), [])
        server.add("bad-record", at=1_000_000)
        error = setup.fail()
        assert (error.kind, error.received) == ("broken", 1_000_000)
        setup.get(error.received, len(DATA))
        for connection in setup.opened:
            connection.close()


# Answers that are not what was asked for.


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "refused"), (401, "refused"), (403, "refused"), (404, "gone"), (405, "refused"), (408, "busy"),
        (410, "gone"), (412, "changed"), (425, "busy"), (429, "busy"), (500, "busy"), (503, "busy"), (504, "busy"),
        (204, "unexpected"), (304, "unexpected"), (416, "range"),
    ],
)  # fmt: skip
def test_each_status_has_its_kind_and_keeps_the_connection(setup: Setup, status: int, kind: str) -> None:
    connection = setup.connect()
    setup.server.add("status", status=status, code="SomeReason")
    error = setup.fail(connection=connection)
    assert (error.kind, error.status, error.received) == (kind, status, 0)
    assert re.search(rf"{status} .*SomeReason", error.message)
    setup.get(0, 1000, connection)
    assert setup.server.connections == 1


@pytest.mark.parametrize(("text", "seconds"), [("7", 7.0), ("0", 0.0), ("soon", None), ("-3", None), (None, None)])
def test_retry_after_in_seconds(setup: Setup, text: str | None, seconds: float | None) -> None:
    setup.server.add("status", status=503, retry_after=text)
    assert setup.fail().retry_after_seconds == seconds


def test_retry_after_as_a_date(setup: Setup) -> None:
    setup.server.add("status", status=429, retry_after=formatdate(time.time() + 100, usegmt=True))
    wait = setup.fail().retry_after_seconds
    assert wait is not None
    assert 0 < wait <= 100
    setup.server.add("status", status=429, retry_after=formatdate(time.time() - 100, usegmt=True))
    assert setup.fail().retry_after_seconds == 0


@pytest.mark.parametrize(
    ("fault", "options", "kind"),
    [
        ("short", {"by": 1}, "range"),
        ("long", {"by": 1}, "range"),
        ("wrong-range", {"by": 1}, "range"),
        ("whole", {}, "range"),
        ("no-range", {}, "range"),
        ("gzip", {}, "range"),
        ("redirect", {"location": "http://127.0.0.1:1/"}, "unexpected"),
        ("page", {"value": PORTAL}, "unexpected"),
        ("page", {"value": ""}, "unexpected"),
        ("header", {"value": "Content-Range: bytes 5-4/3000000"}, "range"),
        ("header", {"value": "Content-Range: bytes 100-199/150"}, "range"),
        ("header", {"value": "Content-Range: lines 100-199/3000000"}, "range"),
        ("header", {"value": "Content-Range: bytes */3000000"}, "range"),
        ("size", {"by": 1}, "changed"),
        ("etag", {"value": '"another"'}, "changed"),
        ("etag", {"value": 'W/"another"'}, "changed"),
        ("garbage", {}, "protocol"),
        ("garbage", {"value": "HTTP/1.1 206 OK\r\nNo colon\r\n\r\n"}, "protocol"),
        ("garbage", {"value": "HTTP/2 206 OK\r\n\r\n"}, "protocol"),
        ("garbage", {"value": "HTTP/1.1 100 Continue\r\n\r\n" * 9}, "protocol"),
        ("garbage", {"value": "HTTP/1.1 101 Switching\r\n\r\n"}, "protocol"),
        ("garbage", {"value": "HTTP/1.1 206 OK\r\nETag: a\r\nETag: b\r\n\r\n"}, "protocol"),
        ("header", {"value": "Content-Length: many"}, "protocol"),
        ("header", {"value": "Transfer-Encoding: gzip, chunked"}, "protocol"),
        ("header", {"value": "Transfer-Encoding: chunked"}, "protocol"),
        ("endless", {}, "protocol"),
    ],
)
def test_lies_are_seen_before_a_byte_is_believed(setup: Setup, fault: Any, options: dict[str, Any], kind: str) -> None:
    connection = setup.connect()
    setup.server.add(fault, **options)
    error = setup.fail(100, 200, connection)
    assert (error.kind, error.received) == (kind, 0)
    setup.get(100, 200, connection)


@pytest.mark.parametrize("more", [("etag", {"value": '"another"'}), ("chunked", {"by": 50}), ("close", {})])
def test_a_page_in_place_of_a_range_is_named_and_is_not_another_version(setup: Setup, more: Any) -> None:
    setup.server.add("page", value=PORTAL)
    setup.server.add(more[0], **more[1])
    error = setup.fail(0, 200)
    assert (error.kind, error.status) == ("unexpected", 200)
    assert 'answers 200 text/html "Sign in to Hotel Wi-Fi"' in error.message
    setup.server.add("page", value=PORTAL)
    with ConnectionPool(tls=setup.settings) as pool, pytest.raises(FetchError, match="Hotel Wi-Fi"):
        read(setup.server.link(PATH), start=5, stop=9, bytes_max=9, pool=pool)


def test_a_redirect_in_place_of_a_range_shows_only_the_host(setup: Setup) -> None:
    setup.server.add("redirect", location="https://login.example/path?secret=1")
    assert "302, a redirect to login.example" in setup.fail(0, 200).message


def test_informational_answers_are_skipped(setup: Setup) -> None:
    body = DATA[:5].decode("latin-1")
    value = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 206 OK\r\nContent-Range: bytes 0-4/3000000\r\n"
    setup.server.add("garbage", value=f"{value}Content-Length: 5\r\n\r\n{body}")
    assert setup.get(0, 5)[1] == DATA[:5]


def test_a_body_without_a_length_ends_with_the_connection(setup: Setup) -> None:
    head = "HTTP/1.0 206 OK\r\nContent-Range: bytes 0-99/3000000\r\n\r\n"
    connection = setup.connect()
    setup.server.add("garbage", value=head + DATA[:100].decode("latin-1"))
    setup.get(0, 100, connection)
    assert not connection.is_open
    setup.server.add("garbage", value=head + DATA[:50].decode("latin-1"))
    error = setup.fail(0, 100, connection)
    assert (error.kind, error.received) == ("broken", 50)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("5\r\nabcde\r\n0\r\n\r\n", "range"),
        ("b\r\nabcdefghijk\r\n0\r\n\r\n", "range"),
        ("5\r\nabcde\r\n6\r\nabcdef\r\n0\r\n\r\n", "range"),
        ("x\r\n", "protocol"),
        ("-5\r\nabcde\r\n", "protocol"),
        ("5\r\nabcdefgh\r\n", "protocol"),
        ("9" * 2000, "protocol"),
        ("a\r\n" + "0123456789\r\n0\r\n" + "T: x\r\n" * 20_000, "protocol"),
    ],
)
def test_chunks_that_lie(setup: Setup, body: str, kind: str) -> None:
    head = "HTTP/1.1 206 OK\r\nContent-Range: bytes 0-9/3000000\r\nTransfer-Encoding: chunked\r\n\r\n"
    setup.server.add("garbage", value=head + body)
    error = setup.fail(0, 10)
    assert (error.kind, error.received) == (kind, 0)


def test_a_changed_object_is_seen_by_its_condition(setup: Setup) -> None:
    before = setup.server.etags[PATH]
    setup.server.put(PATH, bytes(len(DATA)))
    error = setup.fail(etag=before)
    assert (error.kind, error.status) == ("changed", 412)


def test_a_shorter_object_is_changed_and_not_only_out_of_range(setup: Setup) -> None:
    setup.server.put(PATH, DATA[:1000])
    error = setup.fail(2000, 3000, etag=None)
    assert (error.kind, error.status) == ("changed", 416)
    # Another length without a Content-Range may be anything's.
    setup.server.add("whole")
    assert setup.fail(0, 3000, etag=None).kind == "range"


def test_links_expire_and_their_token_is_never_shown(setup: Setup) -> None:
    setup.server.query_token = "s3cr3t"
    old = parse_target(setup.server.link(PATH))
    connection = setup.connect()
    setup.get(0, 10, connection)
    setup.server.query_token = "n3w"
    with pytest.raises(FetchError, match="403 AccessDenied") as caught:
        connection.get(old, 0, 10, memoryview(bytearray(10)), etag=None, size=None)
    assert caught.value.kind == "refused"
    for text in [str(caught.value), repr(caught.value), repr(old), repr(connection)]:
        assert "s3cr3t" not in text
    setup.get(0, 10, connection)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.one_of(
        st.text(st.characters(max_codepoint=255), max_size=200),
        st.lists(
            st.sampled_from(
                ["HTTP/1.1 ", "206 ", "200", "\r\n", "\n", "Content-Range: ", "bytes ", "0-9/", "10", "*", ":", " ",
                 "Content-Length: ", "Transfer-Encoding: chunked", "a\r\n0123456789\r\n", "0\r\n\r\n", "ETag: ", '"']
            ),
            max_size=25,
        ).map("".join),
    )
)  # fmt: skip
def test_whatever_a_server_says_is_an_answer_or_a_fetch_error(server: RangedServer, text: str) -> None:
    server.add("garbage", value=text or "\r")
    connection = Connection(parse_target(server.url), timeouts=QUICK)
    try:
        connection.get(parse_target(server.link(PATH)), 0, 10, memoryview(bytearray(10)), etag=None, size=None)
    except FetchError as exc:
        assert exc.kind in {"protocol", "range", "broken", "busy", "refused", "gone"}
    finally:
        connection.close()


# Cancel.


def test_cancel_while_the_body_comes(setup: Setup) -> None:
    fault = setup.server.add("stall", at=1_300_000)
    connection = setup.connect()
    told: list[int] = []
    later = Later(
        lambda: setup.fail(connection=connection, on_progress=told.append) and setup.fail(connection=connection)
    )
    assert fault.reached.wait(30)
    wait_until(lambda: 1_300_000 in told)
    connection.cancel()
    later._thread.join(60)
    error = setup.fail(connection=connection)
    assert (error.kind, error.received) == ("cancelled", 0)


def test_cancel_reports_the_bytes_already_received(setup: Setup) -> None:
    setup.server.add("stall", at=1_300_000)
    connection = setup.connect()
    told: list[int] = []
    buffer = bytearray(len(DATA))
    target = parse_target(setup.server.link(PATH))
    later = Later(
        lambda: connection.get(target, 0, len(DATA), memoryview(buffer), etag=None, size=None, on_progress=told.append)
    )
    wait_until(lambda: 1_300_000 in told)
    connection.cancel()
    error = later.join()
    assert (error.kind, error.received) == ("cancelled", 1_300_000)
    assert buffer[:1_300_000] == DATA[:1_300_000]
    setup.get(error.received, len(DATA))


def test_cancel_from_within_progress(setup: Setup) -> None:
    setup.server.add("stall", at=1_000_000)
    connection = setup.connect()
    error = setup.fail(connection=connection, on_progress=lambda _count: connection.cancel())
    assert error.kind == "cancelled"
    assert 1 <= error.received <= 1_000_000


def test_cancel_while_waiting_for_the_answer(setup: Setup) -> None:
    fault = setup.server.add("late")
    connection = setup.connect()
    later = Later(lambda: read_into(setup, connection))
    assert fault.reached.wait(30)
    connection.cancel()
    assert later.join().kind == "cancelled"


def read_into(setup: Setup, connection: Connection) -> None:
    target = parse_target(setup.server.link(PATH))
    connection.get(target, 0, 10, memoryview(bytearray(10)), etag=None, size=None)


def test_cancel_before_it_starts_and_twice(setup: Setup) -> None:
    connection = setup.connect()
    connection.cancel()
    connection.cancel()
    assert setup.fail(connection=connection).kind == "cancelled"
    assert setup.server.connections == 0
    connection = setup.connect()
    setup.get(0, 10, connection)
    connection.cancel()
    assert setup.fail(connection=connection).kind == "cancelled"
    connection.close()
    connection.cancel()


def test_cancel_while_the_name_is_looked_up(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer = threading.Event(), threading.Event()

    def slow(*_args: object, **_kwargs: object) -> Any:
        asked.set()
        answer.wait(60)
        return []

    monkeypatch.setattr(http.socket, "getaddrinfo", slow)
    target = parse_target(setup.server.link(PATH, host="localhost"))
    connection = Connection(target, tls=setup.settings, timeouts=QUICK)
    later = Later(lambda: connection.get(target, 0, 10, memoryview(bytearray(10)), etag=None, size=None))
    assert asked.wait(30)
    connection.cancel()
    assert later.join().kind == "cancelled"
    answer.set()


@pytest.fixture
def unanswering() -> Iterator[tuple[str, int]]:
    """An address that completes no connection: its queue is full."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    address = listener.getsockname()
    fillers = []
    # The queue takes one or two more than asked for; the first that does not get through is the sign.
    for _ in range(8):
        filler = socket.socket()
        filler.settimeout(0.2)
        fillers.append(filler)
        try:
            filler.connect(address)
        except TimeoutError:
            break
    else:
        pytest.fail("the queue never filled")
    yield address
    for sock in [listener, *fillers]:
        sock.close()


def test_cancel_while_connecting(unanswering: tuple[str, int]) -> None:
    target = parse_target(f"http://{unanswering[0]}:{unanswering[1]}/")
    connection = Connection(target, timeouts=QUICK)
    later = Later(lambda: connection.get(target, 0, 10, memoryview(bytearray(10)), etag=None, size=None))
    wait_until(lambda: "connecting" in repr(connection))
    connection.cancel()
    assert later.join().kind == "cancelled"


def test_connecting_takes_no_longer_than_it_may(unanswering: tuple[str, int]) -> None:
    target = parse_target(f"http://{unanswering[0]}:{unanswering[1]}/")
    connection = Connection(target, timeouts=IMPATIENT)
    with pytest.raises(FetchError, match=r"cannot connect to 127\.0\.0\.1:.*timed out") as caught:
        connection.get(target, 0, 10, memoryview(bytearray(10)), etag=None, size=None)
    assert caught.value.kind == "broken"


@pytest.fixture
def mute() -> Iterator[tuple[str, int, threading.Event]]:
    """An address that accepts, listens and never says a word; the event: it has heard something."""
    listener = socket.create_server(("127.0.0.1", 0))
    heard = threading.Event()
    accepted: list[socket.socket] = []

    def serve() -> None:
        connection, _ = listener.accept()
        accepted.append(connection)
        connection.recv(1)
        heard.set()

    thread = threading.Thread(target=serve)
    thread.start()
    yield (*listener.getsockname(), heard)
    thread.join()
    for sock in [listener, *accepted]:
        sock.close()


TLS_BACKENDS = [backend for backend in BACKENDS if backend != "plain"]


@pytest.mark.parametrize("backend", TLS_BACKENDS)
def test_cancel_in_the_tls_handshake(mute: tuple[str, int, threading.Event], backend: str) -> None:
    target = parse_target(f"https://{mute[0]}:{mute[1]}/")
    connection = Connection(target, tls=trust(backend), timeouts=QUICK)
    later = Later(lambda: connection.get(target, 0, 10, memoryview(bytearray(10)), etag=None, size=None))
    assert mute[2].wait(30)
    connection.cancel()
    assert later.join().kind == "cancelled"


@pytest.mark.parametrize("backend", TLS_BACKENDS)
def test_a_handshake_takes_no_longer_than_it_may(mute: tuple[str, int, threading.Event], backend: str) -> None:
    target = parse_target(f"https://{mute[0]}:{mute[1]}/")
    connection = Connection(target, tls=trust(backend), timeouts=IMPATIENT)
    with pytest.raises(FetchError, match=r"the TLS handshake with .* took more than") as caught:
        connection.get(target, 0, 10, memoryview(bytearray(10)), etag=None, size=None)
    assert caught.value.kind == "broken"


def test_cancel_while_a_proxy_opens_its_tunnel(mute: tuple[str, int, threading.Event]) -> None:
    target = parse_target("https://bucket.example/x")
    connection = Connection(target, proxy=Proxy(mute[0], mute[1]), tls=trust(), timeouts=QUICK)
    later = Later(lambda: connection.get(target, 0, 10, memoryview(bytearray(10)), etag=None, size=None))
    assert mute[2].wait(30)
    connection.cancel()
    assert later.join().kind == "cancelled"


class Handed:
    """A lock that goes to the canceller first whenever it is let go of: the order that the scheduler may choose."""

    def __init__(self, cancellers: list[threading.Thread]) -> None:
        self._lock = threading.Lock()
        self._cancellers = cancellers

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()
        for canceller in self._cancellers:
            if canceller is not threading.current_thread():
                canceller.join()


@pytest.mark.parametrize("step", ["set_timeouts", "tls_stream", "context_for"])
def test_no_cancel_between_two_steps_is_lost(setup: Setup, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    if setup.settings is None and step != "set_timeouts":
        pytest.skip("no step of a plain connection")
    connection = setup.connect()
    cancellers: list[threading.Thread] = []
    monkeypatch.setattr(connection, "_lock", Handed(cancellers))
    original = getattr(http, step)

    def cancelled(*args: Any, **kwargs: Any) -> Any:
        # From another thread, since this one holds the connection's lock in one of the steps: there the cancel waits.
        canceller = threading.Thread(target=connection.cancel)
        canceller.start()
        cancellers.append(canceller)
        if step != "tls_stream":
            canceller.join()
        return original(*args, **kwargs)

    monkeypatch.setattr(http, step, cancelled)
    assert setup.fail(0, 10, connection).kind == "cancelled"


def test_cancel_at_any_moment_is_exact(setup: Setup) -> None:
    """Cancels after a growing delay, so that every step is met by chance; what is in place is right each time."""
    setup.server.bytes_per_second = 100e6
    cancelled = 0
    for step in itertools.count():
        connection = setup.connect()
        timer = threading.Timer(0.0002 * 1.2**step, connection.cancel)
        buffer = bytearray(len(DATA))
        timer.start()
        try:
            connection.get(
                parse_target(setup.server.link(PATH)), 0, len(DATA), memoryview(buffer), etag=None, size=len(DATA)
            )
            assert buffer == DATA
            break
        except FetchError as exc:
            assert exc.kind == "cancelled"
            assert buffer[: exc.received] == DATA[: exc.received]
            cancelled += 1
        finally:
            timer.join()
    assert cancelled > 3


# Certificates.


@pytest.mark.parametrize("backend", TLS_BACKENDS)
@pytest.mark.parametrize(
    ("name", "host", "words"),
    [
        ("wrong_host", "127.0.0.1", "mismatch"),
        ("wrong_host", "localhost", "mismatch"),
        ("expired", "localhost", "expired"),
        ("unknown", "localhost", "unable to get local issuer"),
    ],
)
def test_certificates_are_checked(backend: str, name: str, host: str, words: str) -> None:
    with RangedServer({PATH: DATA}, tls=getattr(certificates(), name)) as server:
        target = parse_target(server.link(PATH, host=host))
        connection = Connection(target, tls=trust(backend), timeouts=QUICK)
        with pytest.raises(FetchError, match=words) as caught:
            connection.get(target, 0, 10, memoryview(bytearray(10)), etag=None, size=None)
        assert caught.value.kind == "tls"
        assert server.requests == []


@pytest.mark.parametrize("backend", TLS_BACKENDS)
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_name_and_an_address_are_both_verified(backend: str, host: str) -> None:
    with RangedServer({PATH: DATA}, tls=True) as server:
        target = parse_target(server.link(PATH, host=host))
        connection = Connection(target, tls=trust(backend), timeouts=QUICK)
        buffer = bytearray(1000)
        connection.get(target, 0, 1000, memoryview(buffer), etag=None, size=None)
        assert buffer == DATA[:1000]
        connection.close()


@pytest.mark.parametrize("backend", TLS_BACKENDS)
def test_plain_http_behind_https_is_permanent_and_https_behind_http_is_not_valid_http(backend: str) -> None:
    with RangedServer({PATH: DATA}) as plain, RangedServer({PATH: DATA}, tls=True) as secure:
        target = parse_target(f"https://127.0.0.1:{plain.port}/")
        with pytest.raises(FetchError) as caught:
            Connection(target, tls=trust(backend), timeouts=QUICK).read(target, 0, None, bytes_max=100)
        assert caught.value.kind == "tls"
        target = parse_target(f"http://127.0.0.1:{secure.port}/")
        with pytest.raises(FetchError) as caught:
            Connection(target, timeouts=QUICK).read(target, 0, None, bytes_max=100)
        assert caught.value.kind in {"broken", "protocol"}


@pytest.mark.parametrize("backend", TLS_BACKENDS)
def test_tls_1_1_is_refused(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ssl
    import warnings

    with RangedServer({PATH: DATA}, tls=True) as server:
        assert server._context is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            server._context.minimum_version = ssl.TLSVersion.TLSv1
            server._context.maximum_version = ssl.TLSVersion.TLSv1_1
        target = parse_target(server.link(PATH))
        with pytest.raises(FetchError) as caught:
            Connection(target, tls=trust(backend), timeouts=QUICK).read(target, 0, None, bytes_max=100)
        assert caught.value.kind in {"tls", "broken"}


def test_a_certificate_from_the_environment_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    with RangedServer({PATH: DATA}, tls=True) as server:
        with pytest.raises(FetchError) as caught:
            read(server.link(PATH), stop=10, bytes_max=10, timeouts=QUICK)
        assert caught.value.kind == "tls"
        for name in ["SSL_CERT_FILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"]:
            with monkeypatch.context() as patch:
                patch.setenv(name, str(certificates().ca_file))
                assert read(server.link(PATH), stop=10, bytes_max=10, timeouts=QUICK).body == DATA[:10]


# Small reads.


@pytest.fixture(params=["own", "pool"])
def pool(request: pytest.FixtureRequest) -> Iterator[ConnectionPool | None]:
    with ConnectionPool(timeouts=QUICK) as pool:
        yield pool if request.param == "pool" else None


def test_read_whole_parts_and_past_the_end(server: RangedServer, pool: ConnectionPool | None) -> None:
    link = server.link("/small")
    whole = read(link, bytes_max=10, pool=pool)
    assert (whole.body, whole.size, whole.etag, whole.url) == (b"0123456789", 10, server.etags["/small"], link)
    assert read(link, start=3, stop=5, bytes_max=10, pool=pool).body == b"34"
    assert read(link, start=3, stop=500, bytes_max=1000, pool=pool).body == b"3456789"
    assert read(link, start=3, bytes_max=10, pool=pool).body == b"3456789"
    assert read(link, start=3, stop=5, bytes_max=10, etag=whole.etag, pool=pool).size == 10
    assert server.connections == (1 if pool else 5)


def test_read_an_empty_object(server: RangedServer, pool: ConnectionPool | None) -> None:
    for stop in [None, 100]:
        found = read(server.link("/empty"), stop=stop, bytes_max=100, pool=pool)
        assert (found.body, found.size) == (b"", 0)
    with pytest.raises(FetchError) as caught:
        read(server.link("/small"), start=20, stop=30, bytes_max=10, pool=pool)
    assert (caught.value.kind, caught.value.status) == ("range", 416)


def test_read_is_bounded(server: RangedServer) -> None:
    for fault in [None, "chunked"]:
        if fault:
            server.add(fault, by=3)  # type: ignore[arg-type]
        with pytest.raises(FetchError, match="longer than the 9 bytes that are allowed") as caught:
            read(server.link("/small"), bytes_max=9)
        assert caught.value.kind == "range"
    for start, stop in [(0, 11), (5, 5), (-1, 3)]:
        with pytest.raises(ValueError, match="is not a range"):
            read(server.link("/small"), start=start, stop=stop, bytes_max=10)


def test_read_from_servers_that_ignore_ranges(server: RangedServer) -> None:
    server.add("whole", times=3)
    assert read(server.link("/small"), stop=50, bytes_max=50).body == b"0123456789"
    for start, stop in [(0, 5), (5, 8)]:
        with pytest.raises(FetchError, match="the range was ignored"):
            read(server.link("/small"), start=start, stop=stop, bytes_max=50)


def test_read_bodies_of_every_framing(server: RangedServer) -> None:
    server.add("chunked", by=3, times=2)
    assert read(server.link("/small"), bytes_max=10).body == b"0123456789"
    assert read(server.link("/small"), start=2, stop=9, bytes_max=10).body == b"2345678"
    server.add("garbage", value="HTTP/1.1 200 OK\r\n\r\nuntil the end")
    found = read(server.link("/small"), bytes_max=100)
    assert (found.body, found.size) == (b"until the end", 13)
    server.add("garbage", value="HTTP/1.1 200 OK\r\n\r\nuntil the end")
    with pytest.raises(FetchError, match="longer than the 5 bytes"):
        read(server.link("/small"), bytes_max=5)
    server.add("garbage", value="HTTP/1.1 206 OK\r\nContent-Range: bytes 0-9/10\r\n\r\n01234")
    with pytest.raises(FetchError, match="before the reply was complete") as caught:
        read(server.link("/small"), stop=10, bytes_max=10)
    assert caught.value.received == 0


@pytest.mark.parametrize("backend", TLS_BACKENDS)
def test_a_cut_is_not_an_end_where_tls_can_tell(backend: str) -> None:
    with RangedServer({PATH: DATA}, tls=True) as server:
        target = parse_target(server.link(PATH))
        server.add("garbage", value="HTTP/1.1 200 OK\r\n\r\nuntil the end")
        with pytest.raises(FetchError) as caught:
            Connection(target, tls=trust(backend), timeouts=QUICK).read(target, 0, None, bytes_max=100)
        assert caught.value.kind == "broken"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_read_follows_redirects(server: RangedServer, pool: ConnectionPool | None, status: int) -> None:
    server.add("redirect", "/first", status=status, location="second?a=b")
    server.add("redirect", "/second", status=status, location=server.link("/small"))
    found = read(server.url + "/first", bytes_max=10, headers=[("Authorization", "x")], pool=pool)
    assert (found.body, found.url) == (b"0123456789", server.link("/small"))
    assert [seen.headers.get("authorization") for seen in server.requests] == ["x"] * 3


def test_credentials_do_not_follow_to_another_host(server: RangedServer) -> None:
    with RangedServer({"/x": b"x"}) as other:
        server.add("redirect", "/first", location=other.link("/back"))
        other.add("redirect", "/back", location=server.link("/small"))
        assert read(server.url + "/first", bytes_max=10, headers=[("Authorization", "x")]).body == b"0123456789"
        assert "authorization" not in other.requests[0].headers
        assert "authorization" not in server.requests[-1].headers


def test_redirects_end(server: RangedServer) -> None:
    server.add("redirect", location="/small", times=5)
    assert read(server.link("/small"), bytes_max=10).body == b"0123456789"
    server.add("redirect", location="/small", times=6)
    with pytest.raises(FetchError, match="more than 5 redirects"):
        read(server.link("/small"), bytes_max=10)
    server.add("redirect", location="ftp://elsewhere/")
    with pytest.raises(FetchError, match="no http or https URL"):
        read(server.link("/small"), bytes_max=10)
    server.add("redirect", location="http://[::1/")
    with pytest.raises(FetchError, match="no valid host"):
        read(server.link("/small"), bytes_max=10)


def test_https_never_redirects_to_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates().ca_file))
    with RangedServer({PATH: DATA}) as plain, RangedServer({PATH: DATA}, tls=True) as secure:
        secure.add("redirect", location=plain.link(PATH))
        with pytest.raises(FetchError, match="redirects to plain http"):
            read(secure.link(PATH), stop=10, bytes_max=10)
        plain.add("redirect", location=secure.link(PATH))
        assert read(plain.link(PATH), stop=10, bytes_max=10).body == DATA[:10]


def test_the_pool_is_shared_by_threads_and_bounded(server: RangedServer) -> None:
    with ConnectionPool(timeouts=QUICK, idle_max=2) as pool:
        barrier = threading.Barrier(4)

        def work() -> None:
            for _ in range(20):
                assert read(server.link(PATH), start=10, stop=1000, bytes_max=1000, pool=pool).body == DATA[10:1000]
            barrier.wait()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.connections < 80
        server.hang_up()
        assert read(server.link("/small"), bytes_max=10, pool=pool).body == b"0123456789"
    pool.close()
    assert read(server.link("/small"), bytes_max=10, pool=pool).body == b"0123456789"


# Proxies.


@pytest.mark.parametrize("credentials", [None, "user:p%40ss"])
def test_plain_http_through_a_proxy(
    server: RangedServer, monkeypatch: pytest.MonkeyPatch, credentials: str | None
) -> None:
    with HttpProxy(credentials=credentials and "user:p@ss") as proxy:
        at = f"{credentials}@" if credentials else ""
        monkeypatch.setenv("http_proxy", f"http://{at}{proxy.host}:{proxy.port}")
        assert read(server.link("/small"), bytes_max=10).body == b"0123456789"
        assert proxy.lines == [f"GET {server.url}/small HTTP/1.1"]
        assert "proxy-authorization" not in server.requests[0].headers


@pytest.mark.parametrize("backend", TLS_BACKENDS)
def test_https_through_a_tunnel(backend: str) -> None:
    with RangedServer({PATH: DATA}, tls=True) as server, HttpProxy(credentials="user:pass") as proxy:
        target = parse_target(server.link(PATH))
        found = proxy_for(target, {"HTTPS_PROXY": proxy.url})
        connection = Connection(target, proxy=found, tls=trust(backend), timeouts=QUICK)
        buffer = bytearray(len(DATA))
        for _ in range(2):
            connection.get(target, 0, len(DATA), memoryview(buffer), etag=None, size=None)
            assert buffer == DATA
        assert proxy.lines == [f"CONNECT 127.0.0.1:{server.port} HTTP/1.1"]
        assert "proxy-authorization" not in server.requests[0].headers
        assert "pass" not in repr(found)
        connection.close()


@pytest.mark.parametrize(
    ("options", "kind", "status"),
    [
        ({"credentials": "user:pass"}, "refused", 407),
        ({"refuse": 403}, "refused", 403),
        ({"refuse": 503}, "busy", 503),
        ({"chatty": True}, "protocol", None),
    ],
)
def test_a_proxy_that_does_not_want_to(options: dict[str, Any], kind: str, status: int | None) -> None:
    with RangedServer({PATH: DATA}, tls=True) as server, HttpProxy(**options) as proxy:
        target = parse_target(server.link(PATH))
        connection = Connection(target, proxy=Proxy(proxy.host, proxy.port), tls=trust(), timeouts=QUICK)
        with pytest.raises(FetchError) as caught:
            connection.get(target, 0, 10, memoryview(bytearray(10)), etag=None, size=None)
        assert (caught.value.kind, caught.value.status) == (kind, status)


# Names.


def test_several_addresses_are_tried(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        entries = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", unused.getsockname()[1])),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", setup.server.port)),
        ]
        monkeypatch.setattr(http.socket, "getaddrinfo", lambda *_args, **_kwargs: list(entries))
        target = parse_target(setup.server.link(PATH, host="localhost"))
        for _ in range(6):
            connection = Connection(target, tls=setup.settings, timeouts=QUICK)
            buffer = bytearray(10)
            connection.get(target, 0, 10, memoryview(buffer), etag=None, size=None)
            assert buffer == DATA[:10]
            connection.close()


def test_an_unknown_name_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_args: object, **_kwargs: object) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(http.socket, "getaddrinfo", unknown)
    with pytest.raises(FetchError, match=r"cannot resolve nowhere\.example") as caught:
        read("http://nowhere.example/", bytes_max=10)
    assert caught.value.kind == "broken"


# The choice of the library.


def test_without_cryptography_the_standard_library_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(tls, "_contexts", {})
    for name in list(sys.modules):
        if name.startswith("cryptography.hazmat.bindings.openssl"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.bindings.openssl.binding", None)
    check_fallback()


def test_with_an_unexpected_cryptography_the_standard_library_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "_contexts", {})
    monkeypatch.setattr(tls._CryptographyContext, "_NAMES", "SSL_read SSL_that_went_away")
    check_fallback()


def check_fallback() -> None:
    with RangedServer({PATH: DATA}, tls=True) as server:
        target = parse_target(server.link(PATH))
        connection = Connection(target, tls=trust("auto"), timeouts=QUICK)
        connection.get(target, 0, 10, memoryview(bytearray(10)), etag=None, size=None)
        assert "ssl)" in repr(connection)
        connection.close()
        with pytest.raises(ConfigError, match="cryptography"):
            tls.context_for(trust("cryptography"))


def test_certificates_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("no certificate")
    for backend in TLS_BACKENDS:
        with pytest.raises(ConfigError, match="no certificates can be read"):
            tls.context_for(TlsSettings(ca_files=(str(tmp_path / "bad.pem"),), backend=backend))  # type: ignore[arg-type]
