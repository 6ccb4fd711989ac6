"""Links that are made out of another one are those that boto3 would have made."""

from __future__ import annotations

from typing import Any

import pytest

from coldstream.places.s3_client import link_maker
from coldstream.places.s3_store import S3Store
from coldstream.settings import load_settings

SECRET = "s3cr3t/+key"
KEYS = ["a", "org/model/model-00001-of-00002.safetensors", "x y/a+b=\u00fc~(1)'!&?#.bin", "1%2F2"]
PLACES = [
    {"R2_ENDPOINT": "https://account.r2.cloudflarestorage.com"},
    {"R2_ENDPOINT": "http://127.0.0.1:9000", "R2_SESSION_TOKEN": "to/k+en=="},
    {"AWS_REGION": "eu-west-1"},
    {},
]


def store_of(place: dict[str, str], prefix: str = "") -> S3Store:
    flags = {"R2_BUCKET": "abc", "R2_ACCESS_KEY": "id", "R2_SECRET_KEY": SECRET, **place}
    return S3Store("abc", prefix=prefix, settings=load_settings(flags, environ={}))


@pytest.mark.parametrize("place", PLACES)
def test_they_are_boto3_s(place: dict[str, str]) -> None:
    store = store_of(place)
    # All in the same second, sooner or later.
    for _ in range(20):
        links = [str(_by_boto(store, key)) for key in KEYS]
        if len({link.partition("X-Amz-Date=")[2][:16] for link in links}) == 1:
            break
    template = link_maker(links[0], KEYS[0], SECRET)
    assert template is not None
    assert [template(key) for key in KEYS] == links
    assert SECRET not in repr(template)


@pytest.mark.parametrize("place", PLACES[:2])
def test_own_links_are_boto3_s(place: dict[str, str]) -> None:
    store = store_of(place)
    for _ in range(20):
        pairs = [(str(_by_boto(store, key)), store.presign(key, seconds=900)) for key in KEYS]
        if len({link.partition("X-Amz-Date=")[2][:16] for pair in pairs for link in pair}) == 1:
            break
    for by_boto, own in pairs:
        assert own.partition("?")[0] == by_boto.partition("?")[0]
        assert sorted(own.partition("?")[2].split("&")) == sorted(by_boto.partition("?")[2].split("&"))
    assert SECRET not in repr(store._make_link)


@pytest.mark.parametrize("place", [{"AWS_REGION": "eu-west-1"}, {"R2_ENDPOINT": "https://example.com:443"}])
def test_what_boto3_may_sign_otherwise_is_left_to_it(place: dict[str, str]) -> None:
    assert store_of(place)._make_link is None


def _by_boto(store: S3Store, key: str) -> Any:
    params = {"Bucket": "abc", "Key": key}
    return store._client.generate_presigned_url("get_object", Params=params, ExpiresIn=900)


def test_what_is_signed_otherwise_makes_none() -> None:
    link = _by_boto(store_of({}), "a")
    assert link_maker(link, "a", "another key") is None
    assert link_maker(link, "b", SECRET) is None
    assert link_maker(link.replace("X-Amz-SignedHeaders=host", "X-Amz-SignedHeaders=host%3Bx"), "a", SECRET) is None
    assert link_maker(link.partition("&X-Amz-Signature")[0], "a", SECRET) is None
    assert link_maker("https://example.com/a", "a", SECRET) is None


def test_hundreds_of_links_are_one_of_boto3_and_end_when_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of({}, prefix="some/where")
    asked: list[str] = []
    by_boto = store._client.generate_presigned_url

    def counted(method: str, **words: Any) -> Any:
        asked.append(words["Params"]["Key"])
        return by_boto(method, **words)

    monkeypatch.setattr(store._client, "generate_presigned_url", counted)
    first = store.presign("org/m/0", seconds=43_200)
    links = [store.presign(f"org/m/{number}", seconds=43_200) for number in range(1, 1000)]
    assert asked == ["some/where/org/m/0"]
    assert len({first, *links}) == 1000
    assert all("/some/where/org/m/" in link for link in links)
    # Another life, or other credentials, are asked of boto3.
    assert "X-Amz-Expires=60&" in store.presign("a", seconds=60)
    made = store._links
    assert made is not None
    store._links = (*made[:2], made[2] - 1.0, made[3])
    store.presign("b", seconds=60)
    assert store._links is not made
