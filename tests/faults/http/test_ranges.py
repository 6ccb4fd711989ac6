"""Range requests that succeed."""

from __future__ import annotations

import re

import pytest

from coldstream import __version__
from coldstream.net.http_message import parse_target
from tests.faults.http.connections import DATA, PATH, Setup


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
