"""Temporary credentials: what is signed, what is asked for, which way is taken, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest

from coldstream.errors import ColdstreamError, ConfigError, IntegrityError, UsageError
from coldstream.fleet.credentials import (
    TTL_SECONDS_MAX,
    TTL_SECONDS_MIN,
    Credentials,
    KeyPlan,
    Terms,
    parse_ttl,
    plan_keys,
    prefixes_of,
)
from coldstream.places.cloudflare import Api
from coldstream.settings import Settings, load_settings
from tests.servers.r2 import ACCESS_KEY, ACCOUNT, SECRET_KEY, Answer, FakeApi, FakeR2, cloudflare
from tests.servers.stores import S3Server

NOW = 1_800_000_000.7
ENDPOINT = f"https://{ACCOUNT}.r2.cloudflarestorage.com"
PREFIXES = ("org/model/", ".coldstream/bundles/org/model/")
R2 = {"R2_ENDPOINT": ENDPOINT, "R2_BUCKET": "models", "R2_ACCESS_KEY": ACCESS_KEY, "R2_SECRET_KEY": SECRET_KEY}


def settings(**values: str | None) -> Settings:
    return load_settings(R2 | values, environ={}, env_file=None)


def planned(**changes: Any) -> KeyPlan:
    values = {"how": "signed", "endpoint": ENDPOINT, "bucket": "models", "prefixes": PREFIXES, "ttl_seconds": 3600}
    return KeyPlan(**{**values, "access_key": ACCESS_KEY, "secret_key": SECRET_KEY, **changes})


def mint(*arguments: Any, now: float | None = None) -> Credentials:
    return plan_keys(*arguments).mint(now)


def mint_for(adapters: list[str]) -> Credentials:
    return plan_keys(settings(), "org/model", 900, beside=adapters).mint()


def terms_of(*arguments: Any, now: float | None = None, **more: Any) -> Terms:
    return plan_keys(*arguments, **more).terms(now)


def signed(**changes: Any) -> Credentials:
    return planned(**changes).mint(NOW)


def parts_of(found: Credentials) -> list[bytes]:
    assert found.session_token is not None
    text = base64.b64decode(found.session_token, validate=True)
    assert text.startswith(b"jwt/")
    return text.removeprefix(b"jwt/").split(b".")


def decoded(part: bytes) -> Any:
    assert b"=" not in part
    return json.loads(base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4)))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_token_says_what_r2_s_documents_say() -> None:
    found = signed()
    header, claims, signature = parts_of(found)
    assert decoded(header) == {"alg": "HS256", "typ": "JWT"}
    assert decoded(claims) == {
        "bucket": "models",
        "scope": "object-read-only",
        "paths": {"prefixPaths": list(PREFIXES), "objectPaths": []},
        "sub": ACCOUNT,
        "iss": ACCESS_KEY,
        "aud": f"{ACCOUNT}.r2.cloudflarestorage.com",
        "iat": 1_800_000_000,
        "exp": 1_800_003_600,
    }
    digest = hmac.digest(SECRET_KEY.encode(), header + b"." + claims, "sha256")
    assert base64.urlsafe_b64decode(signature + b"=") == digest
    assert found.access_key == ACCESS_KEY
    assert found.secret_key == hashlib.sha256(b".".join([header, claims, signature])).hexdigest()
    assert (found.terms.how, found.terms.expires_at, found.terms.prefixes) == ("signed", 1_800_003_600, PREFIXES)


@pytest.mark.parametrize("jurisdiction", ["", ".eu", ".us", ".fedramp"])
def test_a_jurisdiction_s_host_is_the_audience(jurisdiction: str) -> None:
    host = f"{ACCOUNT}{jurisdiction}.r2.cloudflarestorage.com"
    claims = decoded(parts_of(signed(endpoint=f"https://{host.upper()}/"))[1])
    assert (claims["aud"], claims["sub"]) == (host, ACCOUNT)


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "https://s3.amazonaws.com",
        "https://r2.cloudflarestorage.com",
        "https://abc.r2.cloudflarestorage.com",
        f"https://{ACCOUNT}.r2.cloudflarestorage.com.example.org",
        f"https://x{ACCOUNT}.r2.cloudflarestorage.com",
    ],
)
def test_another_host_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="names no account"):
        signed(endpoint=endpoint)


@pytest.mark.parametrize("seconds", [TTL_SECONDS_MIN - 1, TTL_SECONDS_MAX + 1, 0, -5])
def test_a_life_out_of_range_is_refused(seconds: int) -> None:
    with pytest.raises(UsageError, match="60 s to 604800 s"):
        signed(ttl_seconds=seconds)
    with pytest.raises(UsageError, match="60 s to 604800 s"):
        mint(settings(), "org/model", seconds)


def test_the_longest_and_the_shortest_life() -> None:
    assert signed(ttl_seconds=TTL_SECONDS_MAX).terms.expires_at == 1_800_000_000 + 604_800
    assert signed(ttl_seconds=TTL_SECONDS_MIN).terms.expires_at == 1_800_000_060


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("24h", 86400), ("7d", 604800), ("90m", 5400), ("3600s", 3600), ("3600", 3600), ("1.5H", 5400)],
)
def test_a_life_is_read(text: str, seconds: int) -> None:
    assert parse_ttl(text) == seconds


@pytest.mark.parametrize("text", ["59s", "8d", "0", "999999999999d"])
def test_a_life_that_is_read_must_be_in_range(text: str) -> None:
    with pytest.raises(UsageError, match="only for 60 s to 604800 s"):
        parse_ttl(text)


@pytest.mark.parametrize("text", ["", "soon", "-1h", "1w", "1h30m", "inf", "1e9"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="not a duration"):
        parse_ttl(text)


def test_prefixes_end_in_slashes() -> None:
    assert prefixes_of("org/model", "") == PREFIXES
    assert prefixes_of("org/model", "a", runtime="f" * 64)[-1] == f"a/.coldstream/runtimes/{'f' * 64}/"
    adapters = prefixes_of("org/model", "a", beside=("org/x", "me/y"))
    assert adapters == ("a/org/model/", "a/.coldstream/bundles/org/model/", "a/org/x/", "a/me/y/")
    assert prefixes_of("org/model", "/a/b/") == ("a/b/org/model/", "a/b/.coldstream/bundles/org/model/")
    for name in ("", "../x", ".coldstream/bundles", "org//model", "/org/model", "org/model/"):
        with pytest.raises(UsageError):
            prefixes_of(name, "")


def test_more_adapters_than_a_token_can_name() -> None:
    names = [f"me/adapter-{number:03}" for number in range(300)]
    assert mint_for(names[:100]).session_token is not None
    assert len(str(mint_for(names[:200]).session_token)) < 8192 - 1024
    with pytest.raises(UsageError, match="300 adapters are too many for temporary keys"):
        mint_for(names)
    assert plan_keys(settings(), "org/model", 900, "own", beside=names).terms().how == "own"


def test_no_prefix_would_mean_the_whole_bucket() -> None:
    for prefixes in ((), ("",), ("org/model/", "")):
        with pytest.raises(AssertionError):
            signed(prefixes=prefixes)


def test_nothing_secret_is_shown() -> None:
    found = signed()
    for shown in (repr(found), str(found)):
        assert found.secret_key not in shown
        assert str(found.session_token) not in shown
        assert SECRET_KEY not in shown
    assert found.environment == {
        "R2_ACCESS_KEY": ACCESS_KEY,
        "R2_SECRET_KEY": found.secret_key,
        "R2_SESSION_TOKEN": found.session_token,
    }


def test_auto_signs_with_the_parent_s_keys() -> None:
    found = mint(settings(COLDSTREAM_STORE="s3://models/team/a"), "org/model", 3600, now=NOW)
    assert found == signed(prefixes=("team/a/org/model/", "team/a/.coldstream/bundles/org/model/"))
    assert mint(settings(CLOUDFLARE_API_TOKEN="t" * 40), "org/model", 3600, now=NOW).terms.how == "signed"
    names = {
        "R2_ACCESS_KEY": None,
        "R2_SECRET_KEY": None,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    }
    found = mint(load_settings({**R2, **names}, environ={}), "org/model", 3600, now=NOW)
    assert found == signed()


def test_temporary_keys_cannot_sign() -> None:
    for how in ("auto", "sign"):
        with pytest.raises(ConfigError, match="temporary themselves") as raised:
            mint(settings(R2_SESSION_TOKEN="session"), "org/model", 3600, how)
        assert "R2_SECRET_KEY" in str(raised.value.hint)
        assert "CLOUDFLARE_API_TOKEN" in str(raised.value.hint)


def test_no_keys_at_all() -> None:
    bare = {name: value for name, value in R2.items() if "KEY" not in name}
    for flags in (bare, {"R2_BUCKET": "models"}):
        with pytest.raises(ConfigError, match="no credentials for the bucket") as raised:
            mint(load_settings(flags, environ={}), "org/model", 3600)
        assert "R2_ACCESS_KEY and R2_SECRET_KEY" in str(raised.value.hint)


@pytest.mark.parametrize("endpoint", [None, "https://minio.example.org"])
def test_other_servers_get_the_user_s_own_keys(endpoint: str | None) -> None:
    found = mint(settings(R2_ENDPOINT=endpoint, R2_SESSION_TOKEN="session"), "org/model", 3600)
    assert (found.terms.how, found.terms.expires_at, found.terms.prefixes) == ("own", None, ())
    assert found.environment["R2_SESSION_TOKEN"] == "session"
    for how in ("sign", "api"):
        with pytest.raises(UsageError, match="does not support temporary credentials"):
            mint(settings(R2_ENDPOINT=endpoint), "org/model", 3600, how)


def test_own_keys_on_r2() -> None:
    found = mint(settings(), "org/model", 3600, "own")
    assert found.environment == {"R2_ACCESS_KEY": ACCESS_KEY, "R2_SECRET_KEY": SECRET_KEY, "R2_SESSION_TOKEN": ""}


def test_own_keys_of_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = tmp_path / "credentials"
    profile.write_text("[work]\naws_access_key_id = AKIAWORK\naws_secret_access_key = of-work\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    flags = {"R2_BUCKET": "models", "AWS_PROFILE": "work"}
    found = mint(load_settings(flags, environ={}), "org/model", 3600)
    assert (found.terms.how, found.access_key, found.secret_key, found.session_token) == (
        "own",
        "AKIAWORK",
        "of-work",
        None,
    )
    with pytest.raises(ConfigError, match="absent"):
        mint(load_settings({**flags, "AWS_PROFILE": "absent"}, environ={}), "org/model", 3600)
    flags["R2_ENDPOINT"] = ENDPOINT
    assert mint(load_settings(flags, environ={}), "org/model", 3600).terms.how == "signed"


def test_a_folder_needs_no_credentials(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="directory of this machine"):
        mint(settings(COLDSTREAM_STORE=tmp_path.as_uri()), "org/model", 3600)


def test_the_api_needs_a_token() -> None:
    with pytest.raises(ConfigError, match="CLOUDFLARE_API_TOKEN is not set") as raised:
        mint(settings(), "org/model", 3600, "api")
    assert "Workers R2 Storage: Edit" in str(raised.value.hint)


def given_out(api: FakeApi, **more: str) -> Settings:
    return settings(**{**api.environ(), **more})


def test_the_api_issues() -> None:
    double = FakeR2(S3Server("", "", ""))
    with cloudflare(double) as api:
        for chosen in (
            mint(given_out(api), "org/model", 900, "api", now=NOW),
            mint(given_out(api, R2_SESSION_TOKEN="s"), "org/model", 900, now=NOW),
        ):
            assert (chosen.terms.how, chosen.access_key, chosen.terms.prefixes) == ("issued", ACCESS_KEY, PREFIXES)
            assert chosen.terms.expires_at == 1_800_000_900
            assert chosen.secret_key not in repr(chosen)
            claims = decoded(parts_of(chosen)[1])
            assert claims["paths"]["prefixPaths"] == list(PREFIXES)
        assert api.requests[0] == (
            f"POST /accounts/{ACCOUNT}/r2/temp-access-credentials",
            {
                "bucket": "models",
                "parentAccessKeyId": ACCESS_KEY,
                "permission": "object-read-only",
                "ttlSeconds": 900,
                "prefixes": list(PREFIXES),
            },
        )


def test_what_keys_will_be_is_known_before_they_are_made() -> None:
    with cloudflare(FakeR2(S3Server("", "", ""))) as api:
        for flags, how, made in (
            (given_out(api), "api", "issued"),
            (given_out(api, R2_SESSION_TOKEN="s"), "auto", "issued"),
            (given_out(api), "auto", "signed"),
            (settings(), "sign", "signed"),
            (settings(R2_SESSION_TOKEN="s"), "own", "own"),
            (settings(R2_ENDPOINT="https://minio.example.org"), "auto", "own"),
        ):
            before = len(api.requests)
            found = terms_of(flags, "org/model", 900, how, now=NOW)
            assert len(api.requests) == before
            assert found.how == made
            assert found == mint(flags, "org/model", 900, how, now=NOW).terms
            assert len(api.requests) == before + (made == "issued")
    in_segments = terms_of(settings(), "org/model", 900, in_segments=True, now=NOW)
    assert in_segments == Terms(how="signed", expires_at=1_800_000_900, prefixes=(*PREFIXES, ".coldstream/segments/"))


@pytest.mark.parametrize(
    ("values", "how", "seconds", "kind", "says"),
    [
        ({}, "api", 900, ConfigError, "CLOUDFLARE_API_TOKEN is not set"),
        ({"R2_SESSION_TOKEN": "s"}, "sign", 900, ConfigError, "temporary themselves"),
        ({"R2_SESSION_TOKEN": "s"}, "auto", 900, ConfigError, "temporary themselves"),
        ({"R2_ACCESS_KEY": None, "R2_SECRET_KEY": None}, "auto", 900, ConfigError, "no credentials for the bucket"),
        (
            {"R2_ENDPOINT": "https://minio.example.org"},
            "sign",
            900,
            UsageError,
            "does not support temporary credentials",
        ),
        ({"R2_ENDPOINT": "https://x.r2.cloudflarestorage.com"}, "auto", 900, ConfigError, "x.r2"),
        ({}, "auto", 1, UsageError, "cannot be valid for 1 s"),
    ],
)
def test_keys_that_could_not_be_made_are_refused_before_anybody_agrees(
    values: dict[str, str | None], how: str, seconds: int, kind: type[ColdstreamError], says: str
) -> None:
    with pytest.raises(kind, match=says):
        terms_of(settings(**values), "org/model", seconds, how)


@pytest.mark.parametrize(
    "result",
    [
        None,
        [],
        {},
        {"accessKeyId": "a", "secretAccessKey": "b"},
        {"accessKeyId": 1, "secretAccessKey": "b", "sessionToken": "c"},
        {"accessKeyId": "a", "secretAccessKey": "b\nR2_X=1", "sessionToken": "c"},
        {"accessKeyId": "a", "secretAccessKey": "", "sessionToken": "c"},
    ],
)
def test_what_is_no_credential_is_refused(result: Any) -> None:
    with cloudflare() as api:
        api.answers.append(Answer(200, {"success": True, "errors": [], "messages": [], "result": result}))
        with pytest.raises(IntegrityError, match="no temporary credentials"):
            planned(how="issued", ttl_seconds=900, api=Api(api.token, api.url)).mint(NOW)


def test_a_refusal_of_the_api_is_told_without_secrets() -> None:
    with cloudflare() as api:
        flags = given_out(api, CLOUDFLARE_API_TOKEN="another-token-of-some-length")
        with pytest.raises(ColdstreamError, match="CLOUDFLARE_API_TOKEN") as raised:
            mint(flags, "org/model", 900, "api")
        assert "another-token" not in f"{raised.value.message} {raised.value.hint}"
        assert SECRET_KEY not in f"{raised.value.message} {raised.value.hint}"
