"""Cancelling a request in each of its steps."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from coldstream.net import connection as http
from coldstream.net.connection import Connection
from coldstream.net.http_message import FetchError, Proxy, parse_target
from tests.faults.http.connections import DATA, IMPATIENT, PATH, QUICK, TLS_BACKENDS, Later, Setup, trust, wait_until


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
    for step in range(32):
        connection = setup.connect()
        timer = threading.Timer(0.0002 * 1.2**step, connection.cancel)
        buffer = bytearray(len(DATA))
        timer.start()
        try:
            connection.get(
                parse_target(setup.server.link(PATH)), 0, len(DATA), memoryview(buffer), etag=None, size=len(DATA)
            )
            assert buffer == DATA
        except FetchError as exc:
            assert exc.kind == "cancelled"
            assert buffer[: exc.received] == DATA[: exc.received]
            cancelled += 1
        finally:
            timer.join()
    assert cancelled > 3
