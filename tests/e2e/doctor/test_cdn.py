"""`coldstream doctor`: the CDN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coldstream.operate.doctor import store_checks
from tests.e2e.doctor.doctor_place import FILES, NAME, Place
from tests.servers.ranged import RangedServer


def cdn_check(place: Place, *, code: int = 0) -> dict[str, Any]:
    found = place.command.json("doctor", NAME, "--only", "cdn", code=code)["checks"][0]
    assert isinstance(found, dict)
    return found


def answers(server: RangedServer, *statuses: str) -> None:
    for number, status in enumerate(statuses, 1):
        last = number == len(statuses)
        times = None if last else 1
        server.add("header", first=number, times=times, value=f"CF-Cache-Status: {status}")


def test_a_cdn_that_caches(place: Place, domain: RangedServer) -> None:
    answers(domain, "MISS", "HIT")
    check = cdn_check(place)
    assert check["state"] == "ok"
    assert check["found"].endswith("serves the bucket's bytes: MISS, then HIT")


@pytest.mark.parametrize(("statuses", "reads"), [(("DYNAMIC",), 2), (("MISS",), 3), ((), 2)])
def test_a_cdn_that_keeps_nothing(place: Place, domain: RangedServer, statuses: tuple[str, ...], reads: int) -> None:
    answers(domain, *statuses)
    check = cdn_check(place)
    assert check["state"] == "warn"
    assert "cache rule" in check["hint"]
    assert domain.count("config.json") == reads


def test_shards_that_a_cdn_does_not_keep(place: Place, domain: RangedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(domain, "HIT")
    monkeypatch.setattr(store_checks, "CACHED_BYTES_MAX", 1000)
    check = cdn_check(place)
    assert check["state"] == "warn"
    assert "2 shards above 512 MB are never cached" in check["found"]


def test_a_cdn_that_gives_other_bytes(place: Place, domain: RangedServer) -> None:
    domain.put(f"/{NAME}/config.json", b"{}")
    check = cdn_check(place, code=1)
    assert "serves other bytes than the bucket" in check["found"]
    domain.add("header", value="Content-Type: text/html; charset=utf-8", times=None)
    assert "serves an HTML page" in cdn_check(place, code=1)["found"]


@pytest.mark.parametrize(("status", "says"), [(403, "blocks this machine"), (404, "belongs to this bucket")])
def test_a_cdn_that_refuses(place: Place, domain: RangedServer, status: int, says: str) -> None:
    domain.add("status", status=status, times=None)
    check = cdn_check(place, code=1)
    assert check["found"].endswith(f"answers {status}")
    assert says in check["hint"]


def test_a_cdn_that_keeps_a_404_from_before_the_upload(place: Place, domain: RangedServer) -> None:
    domain.add("status", status=404, times=None)
    answers(domain, "HIT")
    assert f"coldstream cdn purge {NAME}, or wait 3 minutes" in cdn_check(place, code=1)["hint"]


def test_an_unreachable_cdn(place: Place, domain: RangedServer) -> None:
    with domain.refusing():
        check = cdn_check(place, code=1)
    assert check["found"].startswith(f"cannot reach {domain.url}: ")
    assert "Traceback" not in check["found"]
    place.command.environ["R2_CDN_DOMAIN"] = "cdn.example.com/models"
    assert "the domain by itself" in cdn_check(place, code=1)["found"]


def test_a_cdn_before_a_store_below_a_prefix(place: Place, domain: RangedServer, tmp_path: Path) -> None:
    answers(domain, "HIT")
    uri = f"s3://{place.command.environ['R2_BUCKET']}/below"
    place.command.run("upload", str(tmp_path / "m"), "--as", NAME, "--store", uri)
    domain.put(f"/below/{NAME}/config.json", FILES["config.json"])
    assert place.command.json("doctor", NAME, "--only", "cdn", "--store", uri)["ok"] == 1
    assert domain.count(f"GET /below/{NAME}/config.json") == 2
