"""Which reads go through the CDN, and which to the bucket."""

from __future__ import annotations

from pathlib import Path

import pytest

from coldstream.errors import ConfigError
from coldstream.loading.streaming import Load
from coldstream.places.opening import open_model_reader
from coldstream.settings import load_settings
from tests.checkpoints import raw_bytes
from tests.conftest import fresh_bucket
from tests.e2e.command import Command
from tests.faults.cdn.fake_cdn import NAME, Place, bytes_of, foreign, reports_of
from tests.servers.stores import S3Server


def test_it_is_asked_for_and_there_is_none(place: Place, tmp_path: Path) -> None:
    values = {name: value for name, value in place.settings.values.items() if name != "R2_CDN_DOMAIN"}
    settings = load_settings(values, environ={})
    with pytest.raises(ConfigError, match="R2_CDN_DOMAIN is not set"):
        open_model_reader(NAME, settings, via="cdn")
    for uri in ("hf://org/model", "https://example.com/m", str(tmp_path), "s3://another-bucket/m"):
        with pytest.raises(ConfigError, match="configured bucket"):
            open_model_reader(uri, place.settings, via="cdn")
    command = Command(None, "", cwd=tmp_path)
    command.environ |= values
    _, err = command.run("load", NAME, "--via", "cdn", code=2)
    assert "R2_CDN_DOMAIN" in err


def test_another_bucket_is_not_behind_it(place: Place, moto: S3Server) -> None:
    other = fresh_bucket(moto)
    origin = open_model_reader(f"s3://{other}/m", place.settings)
    assert origin._cdn is None  # type: ignore[attr-defined]
    assert open_model_reader(f"s3://{place.bucket}/m", place.settings)._cdn is not None  # type: ignore[attr-defined]


def test_unverified_loads_read_from_the_bucket(place: Place, files: dict[str, bytes], tmp_path: Path) -> None:
    foreign(place, files)
    loading = Load("foreign", place.load(via="cdn")._options)
    bytes_of(loading)
    report, cdn = reports_of(loading)
    assert not report.verified
    assert not place.cdn.requests
    assert cdn.summary.startswith("the CDN was not used: no manifest tells the hashes")
    loading = place.load(verify=False)
    bytes_of(loading)
    assert not place.cdn.requests
    assert "--no-verify" in reports_of(loading)[1].summary
    command = Command(None, "", cwd=tmp_path)
    command.environ |= place.settings.values
    text, _ = command.run("load", "foreign", "--no-cache")
    assert "the CDN was not used" in text


def test_the_local_cache_is_filled_through_it(place: Place, expected: dict[str, bytes], tmp_path: Path) -> None:
    place.cdn.add("flip", at=5, times=2)
    loading = place.load(cache=tmp_path)
    with loading:
        assert {name: raw_bytes(tensor) for name, tensor in loading} == expected
        assert loading.wait_for_cache() == "written"
    seen = len(place.cdn.requests)
    warm = place.load(cache=tmp_path)
    assert bytes_of(warm) == expected
    report, cdn = reports_of(warm)
    assert report.received_bytes == 0
    assert len(place.cdn.requests) == seen
    assert cdn.summary == "the CDN was not asked: nothing had to be fetched"


def test_the_command_says_what_it_did(place: Place, tmp_path: Path) -> None:
    command = Command(None, "", cwd=tmp_path)
    command.environ |= place.settings.values
    text, err = command.run("load", NAME, "--no-cache", "--via", "cdn")
    assert "answers HIT, " in text
    assert not err
    document = command.json("load", NAME, "--no-cache")
    assert list(document["cdn"]["statuses"]) == ["HIT"]
    assert document["cdn"]["url"] == place.cdn.url
    assert command.json("load", NAME, "--no-cache", "--via", "s3")["cdn"] is None
