"""Filling the CDN's cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from coldstream.errors import CancelledError
from coldstream.net.retry import Backoff, Retry
from coldstream.operate.cdn.edge_cache import Edge, Warmed, objects_of, warm
from coldstream.places.cdn_domain import cdn_of
from coldstream.places.place import Store
from coldstream.progress import Progress
from tests.conftest import quick_store
from tests.e2e.command import Command
from tests.faults.cdn.fake_cdn import NAME, Place

QUICK = Backoff(first_seconds=0.001, longest_seconds=0.002, give_up_seconds=30)


def warmed(place: Place, backoff: Backoff = QUICK, *, connections: int = 4) -> Warmed:
    store: Store = quick_store(dict(place.settings.values))
    cdn = cdn_of(place.settings)
    assert cdn is not None
    return warm(
        Edge(cdn, count=connections),
        [item for item in objects_of(store, NAME) if item.is_read],
        limit_bytes=512_000_000,
        in_bucket=lambda item: True,
        progress=Progress(),
        retry=Retry(backoff),
    )


ON_THE_WAY: dict[str, tuple[str, dict[str, object]]] = {
    "503": ("status", {"status": 503}),
    "429": ("status", {"status": 429, "retry_after": "0"}),
    "520": ("status", {"status": 520}),
    "resets": ("reset", {"at": 1000}),
    "cuts": ("cut", {"at": 1000}),
    "closes before it answers": ("unanswered", {}),
    "no HTTP": ("garbage", {}),
}


@pytest.mark.parametrize("how", ON_THE_WAY)
def test_warming_asks_again_for_what_failed_on_the_way(how: str, place: Place) -> None:
    kind, options = ON_THE_WAY[how]
    # Of the second object all of it, twice, and then the first of its bytes.
    place.cdn.add(kind, times=2, first=5, **options)  # type: ignore[arg-type]
    place.cdn.add(kind, first=8, **({**options, "at": 0} if "at" in options else options))  # type: ignore[arg-type]
    found = warmed(place, connections=1)
    assert {finding.state for finding in found.findings} == {"kept"}
    assert found.hits == len(found.findings)
    assert found.bytes == found.hit_bytes == sum(finding.object.size for finding in found.findings)
    assert found.retries == 3
    assert len(place.cdn.requests) == 4 * len(found.findings) + 3


def test_warming_waits_as_long_as_retry_after_says(place: Place) -> None:
    place.cdn.add("status", status=429, retry_after="1", first=2)
    found = warmed(place, connections=1)
    assert found.retries == 1
    assert found.seconds > 1.0


def test_warming_waits_once_for_a_domain_that_is_down_and_not_for_each_object(place: Place) -> None:
    place.cdn.add("status", status=503, first=2, times=None)
    patience = Backoff(first_seconds=0.05, longest_seconds=0.1, give_up_seconds=1.0)
    found = warmed(place, patience, connections=1)
    assert len(found.findings) > 5
    assert {(finding.state, finding.fix) for finding in found.findings} == {("wrong", "it answers 503")}
    # The first is asked for until the patience ends, each of the others three times.
    behind = [request.path for request in place.cdn.requests][-3:]
    assert len(set(behind)) == 1
    assert found.retries < 25 + 2 * len(found.findings)


def test_warming_a_domain_that_never_answers_ends_soon(place: Place) -> None:
    place.cdn.close()
    found = warmed(place)
    assert {finding.state for finding in found.findings} == {"unreachable"}
    assert found.retries == 2 * len(found.findings)


@pytest.mark.parametrize("status", [401, 403, 404, 416])
def test_warming_takes_a_refusal_for_one(status: int, place: Place) -> None:
    place.cdn.add("status", status=status, times=None)
    found = warmed(place)
    assert found.retries == 0
    assert len(place.cdn.requests) == len(found.findings)


def test_warming_is_interrupted_while_it_waits(place: Place) -> None:
    place.cdn.add("status", status=503, first=2, times=None)
    retry = Retry(Backoff(first_seconds=60, longest_seconds=60, give_up_seconds=600))
    retry.on_retry = lambda error, wait: retry.cancel.set()
    store: Store = quick_store(dict(place.settings.values))
    cdn = cdn_of(place.settings)
    assert cdn is not None
    with pytest.raises(CancelledError):
        warm(
            Edge(cdn, count=2),
            objects_of(store, NAME),
            limit_bytes=512_000_000,
            in_bucket=lambda item: True,
            progress=Progress(),
            retry=retry,
        )


def test_the_command_says_how_often_it_asked_again(place: Place, tmp_path: Path) -> None:
    command = Command(None, "", cwd=tmp_path)
    command.environ |= place.settings.values
    # Of any request, whatever comes third: a look asks for a byte, and has nothing to be cut.
    place.cdn.add("status", status=503, times=2, first=3)
    document = command.json("cdn", "warm", NAME)
    assert document["retries"] == 2
    assert document["hits"] == document["objects"]
    place.cdn.add("status", status=503, first=2)
    out, err = command.run("cdn", "warm", NAME)
    assert ", 1 retried\n" in out
    assert "100% of the bytes" in out
    assert "Traceback" not in out + err


def test_the_command_reports_partly_cached_objects(place: Place, tmp_path: Path) -> None:
    command = Command(None, "", cwd=tmp_path)
    command.environ |= place.settings.values
    # The last byte of the first segment that is asked for is never a HIT.
    largest = max(place.cdn.files, key=lambda path: len(place.cdn.files[path]))
    place.cdn.misses = (largest, f"bytes={len(place.cdn.files[largest]) - 1}-")
    document = command.json("cdn", "warm", NAME)
    assert document["hits"] == document["objects"] - 1
    assert document["faults"] == []
    out, _ = command.run("cdn", "warm", NAME)
    assert "not kept yet, or only a part: " in out
    assert "\nnot all warm   " in out
