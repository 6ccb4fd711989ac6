"""Replies that are not the range that was requested: status, headers, framing."""

from __future__ import annotations

import re
import time
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldstream.net.connection import Connection
from coldstream.net.http_message import FetchError, parse_target
from coldstream.net.pool import HttpPool, read
from tests.faults.http.connections import DATA, PATH, QUICK, Setup
from tests.servers.impostor import PORTAL
from tests.servers.ranged import RangedServer, certificates


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
    with HttpPool(ca_bundle=str(certificates().ca_file)) as pool, pytest.raises(FetchError, match="Hotel Wi-Fi"):
        read(setup.server.link(PATH), start=5, stop=9, pool=pool)


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


@settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
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
