"""Loads through a CDN in front of a real S3 server: equal bytes whatever the CDN does, and a report that says it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from coldstream.engine.load_statistics import CdnReport, LoadReport
from coldstream.errors import CancelledError, ConfigError
from coldstream.loading.options import Options
from coldstream.loading.streaming import Load
from coldstream.model.manifest import Manifest, parse
from coldstream.net.retry import Backoff, Retry
from coldstream.operate.cdn.cache_fill import Warmed, warm
from coldstream.operate.cdn.edge import Edge
from coldstream.operate.cdn.model_objects import objects_of
from coldstream.places.cdn_domain import cdn_of
from coldstream.places.opening import open_model_reader
from coldstream.places.place import Store
from coldstream.progress import Progress
from coldstream.settings import Settings, load_settings
from tests.checkpoints import MIB, expected_tensors, raw_bytes, sharded_checkpoint
from tests.conftest import fresh_bucket, quick_store
from tests.e2e.command import Command
from tests.faults.test_engine import manifest_of
from tests.segments import in_segments
from tests.servers.ranged import RangedServer, Reply, Request
from tests.servers.stores import Faults, S3Server, fault_proxy

NAME = "org/model"
PREFIX = "models/v=1+x"
SECRET = "5ec2e7-7a1ue"
PAGE = b"<!doctype html><title>Attention Required!</title>" + b" " * 4000


class FakeCdn(RangedServer):
    """Cloudflare, as far as a reader sees it: `cf-cache-status`, a rule that asks for a header, and its pages."""

    status: str | None = "HIT"
    secret: tuple[str, str] | None = None
    page = False
    misses = ("", "")  # a path, and what a range of it that is not kept begins with

    def _reply(self, request: Request) -> Reply:
        if self.secret is not None and request.headers.get(self.secret[0].lower()) != self.secret[1]:
            return Reply(403, {"Content-Type": "text/html", "cf-cache-status": "BYPASS"}, memoryview(PAGE))
        if self.page:
            return Reply(200, {"Content-Type": "text/html"}, memoryview(PAGE))
        # Conditions are what a cache may trip over: none is asked.
        assert "if-match" not in request.headers
        reply = super()._reply(request)
        if self.status is not None:
            path, beginning = self.misses
            missed = request.path == path and (request.range or "").startswith(beginning)
            reply.headers["CF-Cache-Status"] = "MISS" if missed else self.status
        return reply


@dataclass
class Place:
    """A model in a bucket, and the CDN in front of that."""

    cdn: FakeCdn
    faults: Faults
    bucket: str
    settings: Settings

    def load(self, **options: object) -> Load:
        options = {"framework": "buffer", "cache": False, "settings": self.settings, "connections": 8} | options
        return Load(NAME, Options(**options))  # type: ignore[arg-type]

    def having(self, **values: str) -> Place:
        """The same with other settings."""
        flags = {**self.settings.values, **values}
        return dataclasses.replace(self, settings=load_settings(flags, environ={}))

    @property
    def asked(self) -> list[str]:
        """The requests for weights that the bucket has seen, the headers' not counted."""
        return [line for line, wanted in self.faults.requests if "/objects/" in line and wanted and "bytes=" in wanted]


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return sharded_checkpoint(shards=3, layers=4, rows=1024, columns=1024)


@pytest.fixture(scope="module")
def expected(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return expected_tensors(tmp_path_factory.mktemp("expected"), files)


@dataclass
class Stored:
    bucket: str
    objects: dict[str, tuple[bytes, str]]  # by path behind the CDN: content and ETag


@pytest.fixture(scope="module")
def stored(moto: S3Server, files: dict[str, bytes]) -> Stored:
    """The model in segments, in a prefix whose name has to be encoded; it is written once."""
    bucket = fresh_bucket(moto)
    store = quick_store(moto.environ(bucket) | {"COLDSTREAM_STORE": f"s3://{bucket}/{PREFIX}"})
    objects = {}

    def put(key: str, content: bytes) -> str:
        etag = store.put(key.removeprefix("/"), content)
        objects[f"/{PREFIX}{key}"] = (content, etag)
        return etag

    whole = manifest_of(files, dict.fromkeys(files, "unused"))
    record = in_segments(whole, files, put, every=5, chunk_bytes=MIB // 2, root="/objects/")
    found = parse(record, where="x")
    assert isinstance(found, Manifest)
    store.put(f"{NAME}/coldstream.json", record)
    return Stored(bucket, objects)


@pytest.fixture
def place(moto: S3Server, stored: Stored) -> Iterator[Place]:
    with fault_proxy(moto) as (server, faults), FakeCdn({}, seed=5) as cdn:
        for path, (content, etag) in stored.objects.items():
            cdn.put(path, content)
            cdn.etags[path] = etag
        flags = server.environ(stored.bucket) | {
            "COLDSTREAM_STORE": f"s3://{stored.bucket}/{PREFIX}",
            "R2_CDN_DOMAIN": cdn.url,
            "COLDSTREAM_RETRY_SECONDS": "20",
            "COLDSTREAM_CACHE_LIMIT": "20GB",
        }
        yield Place(cdn, faults, stored.bucket, load_settings(flags, environ={}))


def bytes_of(loading: Load) -> dict[str, bytes]:
    with loading:
        return {name: raw_bytes(tensor) for name, tensor in loading}


def of(loading: Load) -> tuple[LoadReport, CdnReport]:
    report = loading.report
    assert report is not None
    assert report.cdn is not None
    return report, report.cdn


def test_everything_comes_through_it(place: Place, expected: dict[str, bytes]) -> None:
    loading = place.load()
    assert bytes_of(loading) == expected
    report, cdn = of(loading)
    assert report.verified
    assert report.retries == report.corrupt == 0
    assert set(cdn.failures) <= {"slow"}, "a connection that this machine made wait may be taken over by the bucket"
    # What the bucket took over may in turn be taken over.
    assert cdn.fallbacks <= report.hedges == cdn.bucket_requests
    assert cdn.bytes + cdn.bucket_bytes == report.received_bytes == report.bytes
    assert cdn.bytes > 0.8 * report.bytes
    assert cdn.statuses == {"HIT": cdn.requests - cdn.fallbacks}
    assert cdn.bytes_per_second > 0
    assert " answers HIT, " in cdn.summary
    # The bucket served only the manifest, the headers and the fallbacks.
    assert len(place.asked) == 3 + cdn.bucket_requests
    assert all(request.path.startswith(f"/{PREFIX}/objects/") for request in place.cdn.requests)


def test_without_it_the_bucket_gives_everything(place: Place, expected: dict[str, bytes]) -> None:
    loading = place.load(via="s3")
    assert bytes_of(loading) == expected
    assert loading.report is not None
    assert loading.report.cdn is None
    assert not place.cdn.requests


BAD: dict[str, list[tuple[str, dict[str, object]]]] = {
    "503": [("status", {"status": 503, "retry_after": "60"})],
    "429": [("status", {"status": 429})],
    "403": [("status", {"status": 403})],
    "404": [("status", {"status": 404})],
    "520": [("status", {"status": 520})],
    "resets": [("reset", {"at": 30_000})],
    "cuts": [("cut", {"at": 30_000})],
    "closes before it answers": [("unanswered", {})],
    "silent": [("stall", {"at": 10_000})],
    "slow": [("slow", {"bytes_per_second": 30_000.0})],
    "ranges ignored": [("whole", {})],
    "another range": [("wrong-range", {"by": 64})],
    "a short body": [("short", {"by": 100})],
    "no Content-Range": [("no-range", {})],
    "compressed": [("gzip", {})],
    "an old object by its ETag": [("etag", {"value": '"0123456789abcdef0123456789abcdef"'})],
    "an old object of another size": [("size", {"by": 9})],
    "a wrong bit": [("flip", {"at": 777})],
    "an old object without an ETag": [("no-etag", {}), ("flip", {"at": 3})],
    "no HTTP": [("garbage", {})],
    "a redirect": [("redirect", {"location": "https://example.invalid/"})],
}


@pytest.mark.parametrize("how", BAD)
def test_what_it_gets_wrong_the_bucket_gives(how: str, place: Place, expected: dict[str, bytes]) -> None:
    for kind, options in BAD[how]:
        place.cdn.add(kind, times=None, **options)  # type: ignore[arg-type]
    loading = place.load()
    assert bytes_of(loading) == expected
    report, cdn = of(loading)
    assert report.verified
    assert report.retries == report.corrupt == 0, "the load itself has met no fault"
    assert cdn.gave_up
    assert 8 <= cdn.fallbacks <= 32
    assert sum(cdn.failures.values()) == cdn.fallbacks
    assert cdn.summary.startswith("the CDN was given up: ")
    if how == "ranges ignored":
        # Whole objects were offered and not taken: what the kernels' buffers hold is all that was sent.
        assert report.received_bytes == report.bytes


@pytest.mark.parametrize("how", BAD)
def test_what_it_gets_wrong_now_and_then_costs_a_request_each(
    how: str, place: Place, expected: dict[str, bytes]
) -> None:
    for kind, options in BAD[how]:
        place.cdn.add(kind, times=2, first=6, **options)  # type: ignore[arg-type]
    loading = place.load()
    assert bytes_of(loading) == expected
    report, cdn = of(loading)
    assert report.retries == report.corrupt == 0
    assert not cdn.gave_up
    assert cdn.fallbacks <= 2 * len(BAD[how]) + report.hedges
    assert cdn.statuses["HIT"] > 50
    # A kept-alive connection that is closed unanswered is no fault: the CDN is asked again over a new one.
    if cdn.fallbacks or how != "closes before it answers":
        assert "came from the bucket after all" in cdn.summary


def test_a_page_for_everything(place: Place, expected: dict[str, bytes]) -> None:
    place.cdn.page = True
    loading = place.load()
    assert bytes_of(loading) == expected
    _, cdn = of(loading)
    assert cdn.gave_up
    assert not cdn.bytes


def test_it_dies_in_the_midst(place: Place, expected: dict[str, bytes]) -> None:
    place.cdn.bytes_per_second = 8e6
    loading = place.load(memory=8 * MIB)
    found = {}
    with loading:
        for number, (name, tensor) in enumerate(loading):
            found[name] = raw_bytes(tensor)
            del tensor
            if number == 5:
                place.cdn.close()
    assert found == expected
    report, cdn = of(loading)
    assert cdn.bytes > 2 * MIB
    assert cdn.bucket_bytes > 2 * MIB
    assert "failed 8 times in a row" in cdn.gave_up or "failed" in cdn.gave_up
    assert "went to the bucket, the bucket gave " in cdn.summary
    assert report.retries == 0


def test_the_bucket_s_links_are_renewed_as_ever(place: Place, expected: dict[str, bytes]) -> None:
    place.cdn.page = True
    loading = place.load(memory=8 * MIB)
    with loading:
        name, tensor = next(loading)
        found = {name: raw_bytes(tensor)}
        del tensor
        place.faults.add("fail", r"GET .*/objects/", times=2, status=403, code="AccessDenied")
        found |= {name: raw_bytes(tensor) for name, tensor in loading}
    assert found == expected
    assert loading.report is not None
    assert loading.report.renewals >= 1


STATUSES = {
    "MISS": "had nothing cached yet",
    "EXPIRED": "had nothing cached yet",
    "DYNAMIC": "did not help: all DYNAMIC, so every byte came from the bucket through it",
    "BYPASS": "did not help: all BYPASS",
    "STALE": "HIT",
    "WEIRD": "had nothing cached yet",
    None: "so hits are unknown",
}


@pytest.mark.parametrize("status", STATUSES)
def test_cache_statuses_are_reported(status: str | None, place: Place) -> None:
    place.cdn.status = status
    loading = place.load()
    bytes_of(loading)
    _, cdn = of(loading)
    assert sum(cdn.statuses.values()) == cdn.requests - cdn.fallbacks
    assert list(cdn.statuses) == [{"WEIRD": "other", None: "none"}.get(status, status)]
    assert STATUSES[status] in cdn.summary


# Secrets.


def test_a_secret_header_opens_it_and_goes_nowhere_else(
    place: Place, expected: dict[str, bytes], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    place.cdn.secret = ("X-Models", SECRET)
    place = place.having(COLDSTREAM_CDN_HEADER=f"X-Models: {SECRET}")
    # Some of it from the bucket too: that must not see the header.
    place.cdn.add("status", status=503, times=3, first=4)
    place.cdn.add("redirect", times=3, first=10, location=f"{place.settings.values['R2_ENDPOINT']}/elsewhere")
    loading = place.load()
    assert bytes_of(loading) == expected
    _, cdn = of(loading)
    assert cdn.fallbacks >= 6
    assert all(request.headers["x-models"] == SECRET for request in place.cdn.requests)
    assert place.faults.headers
    assert not any(SECRET in text or "x-models" in text.lower() for text in place.faults.headers)
    assert not any("elsewhere" in line for line, _ in place.faults.requests)
    assert loading._prepared is not None
    out, err = capfd.readouterr()
    shown = repr((loading._prepared, loading._prepared.jobs, loading._prepared.checkpoint, loading.report))
    for text in (shown, repr(place.settings), caplog.text, out, err, repr(loading._prepared.origin)):
        assert SECRET not in text


def test_a_service_token(place: Place, expected: dict[str, bytes]) -> None:
    place.cdn.secret = ("CF-Access-Client-Secret", SECRET)
    place = place.having(CF_ACCESS_CLIENT_ID="id.access", CF_ACCESS_CLIENT_SECRET=SECRET)
    loading = place.load()
    assert bytes_of(loading) == expected
    assert set(of(loading)[1].failures) <= {"slow"}
    assert place.cdn.requests[0].headers["cf-access-client-id"] == "id.access"
    assert not any("cf-access" in text.lower() for text in place.faults.headers)


@pytest.mark.parametrize("header", ["", "X-Models: another"])
def test_a_secret_that_is_missing_or_wrong(header: str, place: Place, expected: dict[str, bytes]) -> None:
    place.cdn.secret = ("X-Models", SECRET)
    place = place.having(**({"COLDSTREAM_CDN_HEADER": header} if header else {}))
    loading = place.load()
    assert bytes_of(loading) == expected
    _, cdn = of(loading)
    assert ": 403" in cdn.gave_up
    assert set(cdn.failures) == {"refused"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"COLDSTREAM_CDN_HEADER": f"X-Models {SECRET}"},
        {"COLDSTREAM_CDN_HEADER": f"X-Models: {SECRET}\r\nX-Other: 1"},
        {"COLDSTREAM_CDN_HEADER": f"X Models: {SECRET}"},
        {"COLDSTREAM_CDN_HEADER": f"Range: {SECRET}"},
        {"CF_ACCESS_CLIENT_ID": "id", "CF_ACCESS_CLIENT_SECRET": f"{SECRET}\nX: 1"},
        {"CF_ACCESS_CLIENT_SECRET": SECRET},
        {"R2_CDN_DOMAIN": "http://models.example.com", "COLDSTREAM_CDN_HEADER": f"X-Models: {SECRET}"},
        {"R2_CDN_DOMAIN": f"https://user:{SECRET}@models.example.com"},
        {"R2_CDN_DOMAIN": "models.example.com/folder"},
        {"R2_CDN_DOMAIN": "ftp://models.example.com"},
        {"R2_CDN_DOMAIN": "mod els"},
    ],
)
def test_what_cannot_be_sent_is_refused_without_showing_it(wrong: dict[str, str], place: Place) -> None:
    with pytest.raises(ConfigError) as caught:
        place.having(**wrong).load().__next__()
    assert SECRET not in f"{caught.value!r} {caught.value} {caught.value.hint}"
    assert caught.value.hint or "no token" in caught.value.message


# What is read where.


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


def foreign(place: Place, files: dict[str, bytes]) -> None:
    store: Store = quick_store(dict(place.settings.values))
    for path, content in files.items():
        store.put(f"foreign/{path}", content)


def test_unverified_loads_read_from_the_bucket(place: Place, files: dict[str, bytes], tmp_path: Path) -> None:
    foreign(place, files)
    loading = Load("foreign", place.load(via="cdn")._options)
    bytes_of(loading)
    report, cdn = of(loading)
    assert not report.verified
    assert not place.cdn.requests
    assert cdn.summary.startswith("the CDN was not used: no manifest tells the hashes")
    loading = place.load(verify=False)
    bytes_of(loading)
    assert not place.cdn.requests
    assert "--no-verify" in of(loading)[1].summary
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
    report, cdn = of(warm)
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


# Warming.

QUICK = Backoff(first_seconds=0.001, longest_seconds=0.002, give_up_seconds=30)


def warmed(place: Place, backoff: Backoff = QUICK, *, connections: int = 4) -> Warmed:
    store: Store = quick_store(dict(place.settings.values))
    cdn = cdn_of(place.settings)
    assert cdn is not None
    return warm(
        Edge(cdn, count=connections),
        [item for item in objects_of(store, NAME) if item.is_read],
        limit_bytes=512_000_000,
        connections=connections,
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
    assert {(finding.state, finding.mend) for finding in found.findings} == {("wrong", "it answers 503")}
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
            connections=2,
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
