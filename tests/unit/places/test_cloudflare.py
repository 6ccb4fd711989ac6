"""Cloudflare's API: its envelope, its errors in our words, what is tried again, and where the token goes."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

import pytest

from coldstream.errors import (
    CancelledError,
    ColdstreamError,
    ConfigError,
    CredentialsError,
    IntegrityError,
    NotFoundError,
    UnavailableError,
)
from coldstream.net.retry import Backoff, Retry
from coldstream.places import cloudflare as module
from coldstream.places.cloudflare import BASE_URL, Api, open_api
from coldstream.settings import load_settings
from tests.servers.r2 import API_TOKEN, Answer, FakeApi, cloudflare, fault

GOOD = Answer(200, {"success": True, "errors": [], "messages": [], "result": {"id": "x"}})
HANG_UP = Answer(0)


@pytest.fixture
def server() -> Iterator[FakeApi]:
    with cloudflare() as api:
        yield api


@pytest.fixture
def api(server: FakeApi) -> Api:
    backoff = Backoff(first_seconds=0.01, longest_seconds=0.05, give_up_seconds=2.0)
    return Api(server.token, server.url, retry=Retry(backoff))


def test_a_result_comes_out_of_its_envelope(server: FakeApi, api: Api) -> None:
    server.answers += [GOOD, Answer(200, {"success": True, "errors": None, "result": None})]
    assert api.call("PUT", "/zones/z/rulesets/r?x=1", {"rules": ["é"]}) == {"id": "x"}
    assert api.call("DELETE", "/zones/z") is None
    assert server.requests == [("PUT /zones/z/rulesets/r?x=1", {"rules": ["é"]}), ("DELETE /zones/z", None)]


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (fault(401, 10000, "Authentication error"), CredentialsError, "Authentication error"),
        (fault(403, 10000, "Authentication error"), CredentialsError, "CLOUDFLARE_API_TOKEN"),
        (fault(400, 6003, "Invalid request headers"), CredentialsError, "Invalid request headers"),
        (Answer(403, b"<html>no</html>"), CredentialsError, "403"),
        (fault(404, 7003, "Could not route"), NotFoundError, r"Could not route \(code 7003\)"),
        (fault(400, 10006, "The bucket does not exist"), ColdstreamError, r"bucket does not exist \(code 10006\)"),
        (fault(200, 1234, "Odd"), ColdstreamError, r"Odd \(code 1234\)"),
        (fault(418, 0, "a\x1b[31mb\nc"), ColdstreamError, r"a \[31mb c \(418\)"),
        (Answer(302, b"", {"Location": "http://127.0.0.1:1/"}), IntegrityError, "302, a redirect to 127.0.0.1:1"),
        (Answer(501, b""), UnavailableError, "501"),
        (Answer(200, b"<html>hello"), IntegrityError, "does not answer .* as Cloudflare's API does: 200 .*hello"),
        (Answer(200, b"[1]"), IntegrityError, "does not answer .* as Cloudflare's API does"),
        (Answer(200, b"[" * 100_000), IntegrityError, "does not answer .* as Cloudflare's API does"),
        (Answer(200, {"result": 1}), IntegrityError, "does not answer .* as Cloudflare's API does"),
        (Answer(200, {"success": 1, "result": 1}), IntegrityError, "does not answer .* as Cloudflare's API does"),
    ],
)
def test_refusals(server: FakeApi, api: Api, answer: Answer, kind: type[ColdstreamError], words: str) -> None:
    server.answers.append(answer)
    with pytest.raises(kind, match=words) as raised:
        api.call("GET", "/zones/z/rulesets")
    assert type(raised.value) is kind
    assert len(server.requests) == 1
    assert API_TOKEN not in "".join(traceback.format_exception(raised.value)) + str(raised.value.hint)


@pytest.mark.parametrize(
    ("path", "permission"),
    [
        ("/accounts/a/r2/temp-access-credentials", "Workers R2 Storage: Edit"),
        ("/zones/z/purge_cache", "Cache Purge"),
        ("/zones/z/rulesets/phases/x/entrypoint", "Cache Rules: Edit"),
        ("/zones?name=example.org", "Zone: Read"),
        ("/user", "a permission"),
    ],
)
def test_a_refusal_names_the_permission(server: FakeApi, api: Api, path: str, permission: str) -> None:
    server.answers.append(fault(403, 10000, "Authentication error"))
    with pytest.raises(CredentialsError) as raised:
        api.call("GET", path)
    assert permission in str(raised.value.hint)


def test_an_echoed_token_is_not_shown(server: FakeApi, api: Api) -> None:
    server.answers.append(fault(400, 5, f"what is {API_TOKEN}?"))
    with pytest.raises(ColdstreamError, match="what is …") as raised:
        api.call("GET", "/x")
    assert API_TOKEN not in repr(raised.value)
    assert API_TOKEN not in repr(api)


@pytest.mark.parametrize("answer", [fault(429, 971, "slow down"), fault(500, 1, "x"), Answer(503, b"<html>"), HANG_UP])
def test_what_may_pass_is_tried_again(server: FakeApi, api: Api, answer: Answer) -> None:
    server.answers += [GOOD, answer, answer, GOOD]
    api.call("GET", "/zones")
    assert api.call("POST", "/zones", {}) == {"id": "x"}
    assert len(server.requests) == 4
    assert api.retry.count == 2


@pytest.mark.parametrize(
    ("answer", "again"), [(fault(429, 971, "x"), True), (fault(502, 1, "x"), False), (HANG_UP, False)]
)
def test_what_must_not_happen_twice_is_not_repeated(server: FakeApi, api: Api, answer: Answer, *, again: bool) -> None:
    server.answers += [GOOD, answer, GOOD]
    api.call("GET", "/zones")
    if again:
        assert api.call("POST", "/zones", {}, repeatable=False) == {"id": "x"}
        return
    with pytest.raises(UnavailableError):
        api.call("POST", "/zones", {}, repeatable=False)
    assert len(server.requests) == 2


def test_the_wait_that_is_asked_for_is_kept(server: FakeApi, api: Api) -> None:
    server.answers.append(fault(429, 971, "x", Retry_After="55"))
    with pytest.raises(UnavailableError, match="limits the rate") as raised:
        api.call("GET", "/zones")
    assert raised.value.retry_after_seconds == 55.0
    assert len(server.requests) == 1, "the policy gives up before that"
    server.answers += [fault(429, 971, "x", RateLimit='"default";r=0;t=1'), GOOD]
    assert api.call("GET", "/zones") == {"id": "x"}


def test_an_answer_too_large_is_refused(server: FakeApi, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESPONSE_BYTES_MAX", 1000)
    server.answers += [Answer(200, b" " * 1001), GOOD]
    with pytest.raises(IntegrityError, match="larger than"):
        api.call("GET", "/zones")
    assert api.call("GET", "/zones") == {"id": "x"}


def test_nobody_there_is_said_at_once(server: FakeApi) -> None:
    retry = Retry()
    with pytest.raises(UnavailableError, match=r"cannot reach 127\.0\.0\.1"):
        Api("t", "http://127.0.0.1:1", retry=retry).call("GET", "/zones")
    assert retry.count == 0


def test_a_cancelled_call_ends(server: FakeApi, api: Api) -> None:
    api.retry.cancel.set()
    with pytest.raises(CancelledError):
        api.call("GET", "/zones")


def test_graphql(server: FakeApi, api: Api) -> None:
    server.answers.append(Answer(200, {"data": {"viewer": {"accounts": []}}, "errors": None}))
    assert api.graphql("query { viewer }", {"a": 1}) == {"viewer": {"accounts": []}}
    assert server.requests == [("POST /graphql", {"query": "query { viewer }", "variables": {"a": 1}})]


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (Answer(200, {"data": None, "errors": [{"message": "unknown field"}]}), ColdstreamError, "unknown field"),
        (
            Answer(200, {"data": None, "errors": [{"message": "not allowed", "extensions": {"code": "authz"}}]}),
            CredentialsError,
            "not allowed",
        ),
        (Answer(403, {"data": None, "errors": [{"message": "no"}]}), CredentialsError, "no"),
        (Answer(400, {"errors": [{"message": "cannot parse"}]}), ColdstreamError, "cannot parse"),
        (Answer(200, {}), IntegrityError, "as Cloudflare's API does"),
        (Answer(200, b"x"), IntegrityError, "as Cloudflare's API does"),
    ],
)
def test_graphql_refusals(server: FakeApi, api: Api, answer: Answer, kind: type[ColdstreamError], words: str) -> None:
    server.answers.append(answer)
    with pytest.raises(kind, match=words) as raised:
        api.graphql("query", {})
    assert type(raised.value) is kind
    if kind is CredentialsError:
        assert "Account Analytics: Read" in str(raised.value.hint)


def test_graphql_is_tried_again(server: FakeApi, api: Api) -> None:
    server.answers += [Answer(502, b""), Answer(200, {"data": {}})]
    assert api.graphql("query", {}) == {}


def test_opened_by_settings(server: FakeApi) -> None:
    assert open_api(load_settings({}, environ={})) is None
    opened = open_api(load_settings({"CLOUDFLARE_API_TOKEN": "abc"}, environ={}))
    assert opened is not None
    assert opened.base_url == BASE_URL
    opened = open_api(load_settings(server.environ(), environ={}))
    assert opened is not None
    server.answers.append(GOOD)
    assert opened.call("GET", "/zones") == {"id": "x"}
    assert "cf-token" not in repr(load_settings(server.environ(), environ={}))


@pytest.mark.parametrize(
    ("token", "url", "words"),
    [
        ("two\nlines", BASE_URL, "CLOUDFLARE_API_TOKEN"),
        ("", BASE_URL, "CLOUDFLARE_API_TOKEN"),
        ("é", BASE_URL, "CLOUDFLARE_API_TOKEN"),
        ("t", "http://api.cloudflare.com/client/v4", "in the open"),
        ("t", "ftp://127.0.0.1/", "not a valid URL"),
        ("t", "https://user:secret@example.org", "not a valid URL"),
        ("t", "example.org", "not a valid URL"),
        ("t", "https://example.org:notaport", "not a valid URL"),
    ],
)
def test_what_cannot_be_a_token_or_a_url(token: str, url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        Api(token, url)
    assert "secret" not in str(raised.value)
    assert "lines" not in str(raised.value)
