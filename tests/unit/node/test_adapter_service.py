"""What the load service answers about adapters: one fetch for all, bounded, with errors that are remembered briefly."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coldstream.errors import ColdstreamError, IntegrityError, NotFoundError, UnavailableError, UsageError
from coldstream.loading.options import Options
from coldstream.node import adapter_service as module
from coldstream.node.adapter_service import AdapterService
from coldstream.node.adapter_source import AdapterSource, StoredAdapter
from coldstream.node.load_service import LoadService
from coldstream.telemetry.metrics.registry import Metrics
from tests.adapters import adapter_files
from tests.unit.mirror.stored_models import folder_store, send
from tests.unit.node.test_adapter_source import read, source_of


class FakeCopy:
    """A held copy."""

    def __init__(self, folder: str) -> None:
        self.folder, self.closed = Path(folder), False
        self.files = (SimpleNamespace(size=60), SimpleNamespace(size=40))

    def close(self) -> None:
        self.closed = True


class FakeSource:
    """A bucket whose answers the test chooses, and waits for."""

    store_uri = "s3://models"

    def __init__(self) -> None:
        self.looks: list[str] = []
        self.looked = threading.Event()
        self.copies: list[FakeCopy] = []
        self.version = 1
        self.errors: dict[str, ColdstreamError] = {}
        self.refusal: ColdstreamError | None = None
        self.answers = threading.Event()
        self.answers.set()
        self.local: FakeCopy | None = None
        self.is_cached = False

    def name_of(self, path: str) -> str | None:
        name = path.removeprefix("s3://models/")
        return name if name.startswith("org/") else None

    def find_or_latest(self, name: str, *, seconds: float) -> StoredAdapter:
        self.looks.append(name)
        self.looked.set()
        assert self.answers.wait(20)
        if name in self.errors:
            raise self.errors[name]
        return cast("StoredAdapter", StoredAdapter(name=name, adapter=cast("Any", None), version=str(self.version)))

    def check(self, stored: StoredAdapter) -> None:
        if self.refusal is not None:
            raise self.refusal

    def fetch(self, stored: StoredAdapter, *, on_bytes: Callable[[int], None] = lambda _: None) -> FakeCopy:
        on_bytes(0 if self.is_cached else 100)
        self.copies.append(FakeCopy(f"/cache/{stored.name}/{stored.version}"))
        return self.copies[-1]

    def latest(self, name: str) -> StoredAdapter | None:
        copy = cast("Any", self.local)
        return copy and StoredAdapter(name=name, adapter=cast("Any", None), version="0", copy=copy)


@pytest.fixture
def source() -> FakeSource:
    return FakeSource()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Makes time pass for what is remembered."""
    now = [time.monotonic()]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def sleep(seconds: float) -> None:
        now[0] += seconds

    return sleep


def service_of(source: FakeSource, *, said: list[str] | None = None, **options: Any) -> AdapterService:
    say = said.append if said is not None else lambda _: None
    return AdapterService(cast("AdapterSource", source), say=say, **{"on_demand": True, **options})


def kind(service: AdapterService, path: str, *, on_demand: bool = True) -> str | None:
    """The kind of error that a request gets; None when it gets a folder."""
    return cast("str | None", service.answer({"adapter": path, "on_demand": on_demand}).get("error", {}).get("kind"))


def test_each_load_looks_for_the_present_version(source: FakeSource) -> None:
    service = service_of(source)
    folders = []
    for version in (1, 1, 2, 3):
        source.version = version
        folders.append(service.answer({"adapter": "org/a", "on_demand": True}))
    assert folders == [{"folder": f"/cache/org/a/{version}"} for version in (1, 1, 2, 3)]
    assert [copy.closed for copy in source.copies] == [False, True, False, False], "vLLM may read each version again"
    service.close()
    assert all(copy.closed for copy in source.copies)


def test_requests_at_the_same_time_share_a_fetch(source: FakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = threading.Semaphore(0)

    class CountingEvent(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waiting.release()
            return super().wait(timeout)

    fetch = module._Fetch
    monkeypatch.setattr(module, "_Fetch", lambda **more: fetch(is_found=CountingEvent(), **more))
    service, answers = service_of(source), list[str]()
    source.answers.clear()
    threads = [
        threading.Thread(target=lambda: answers.append(service.folder("org/a", on_demand=True))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    assert all(waiting.acquire(timeout=20) for _ in threads)
    source.answers.set()
    for thread in threads:
        thread.join(20)
    assert answers == ["/cache/org/a/1"] * 8
    assert len(source.looks) == len(source.copies) == 1


@pytest.mark.parametrize(
    ("error", "expected", "seconds"),
    [
        (NotFoundError("there is no model org/a"), "not-found", 10),
        (UsageError("org/a is an adapter of org/other"), "usage", 10),
        (UnavailableError("the bucket is down"), "unavailable", 2),
    ],
)
def test_an_error_stands_for_a_moment(
    error: ColdstreamError, expected: str, seconds: float, source: FakeSource, clock: Callable[[float], None]
) -> None:
    service = service_of(source)
    source.errors["org/a"] = error
    assert [kind(service, "org/a") for _ in range(3)] == [expected] * 3
    assert source.looks == ["org/a"]
    clock(seconds + 0.1)
    del source.errors["org/a"]
    assert kind(service, "org/a") is None


def test_the_errors_that_are_remembered_are_bounded(source: FakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED_MAX", 2)
    service = service_of(source)
    for name in ("org/a", "org/b", "org/c"):
        source.errors[name] = NotFoundError("no")
        kind(service, name)
    assert [*service._errors] == ["org/b", "org/c"]


def test_what_is_refused_is_logged_and_what_is_unknown_is_not(source: FakeSource) -> None:
    said: list[str] = []
    service = service_of(source, said=said)
    source.errors["org/absent"] = NotFoundError("there is no model org/absent")
    source.refusal = UsageError("org/a is an adapter of org/other, not of org/base")
    assert kind(service, "org/absent") == "not-found"
    assert service.answer({"adapter": "org/a", "on_demand": True})["error"]["message"] == source.refusal.message
    assert said == ["adapter org/a was not loaded: org/a is an adapter of org/other, not of org/base"]


def test_a_slow_bucket_keeps_nobody_waiting(source: FakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    service = service_of(source)
    source.answers.clear()
    assert kind(service, "org/a") == "unavailable"
    source.local = FakeCopy("/cache/org/a/0")
    assert service.answer({"adapter": "org/a", "on_demand": True}) == {"folder": "/cache/org/a/0"}
    assert source.looked.wait(20)
    assert source.looks == ["org/a"], "both wait for the same request"
    source.answers.set()


def test_what_is_looked_up_and_held_is_bounded(source: FakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(module, "_LOOKS_MAX", 1)
    monkeypatch.setattr(module, "_HELD_MAX", 1)
    service = service_of(source)
    source.answers.clear()
    kind(service, "org/a")
    with pytest.raises(UnavailableError, match="org/b: 1 other adapters are being fetched"):
        service.folder("org/b", on_demand=True)
    assert source.looked.wait(20)
    assert source.looks == ["org/a"]
    source.answers.set()
    monkeypatch.setattr(module, "LOOK_SECONDS", 20)
    assert kind(service, "org/a") is None
    with pytest.raises(UnavailableError, match="org/b: 1 other adapters are served"):
        service.folder("org/b", on_demand=True)
    assert kind(service, "org/a") is None


def test_one_that_was_removed_from_the_bucket_is_named(source: FakeSource) -> None:
    service = service_of(source)
    assert kind(service, "org/a") is None
    source.errors["org/a"] = NotFoundError("there is no model org/a")
    with pytest.raises(NotFoundError, match="org/a was removed from the bucket"):
        service.folder("org/a", on_demand=True)
    assert not source.copies[0].closed, "the engine may still serve it"


@pytest.mark.parametrize("path", ["/etc", "../../etc", "s3://others/org/a", "file:///etc"])
def test_a_request_names_nothing_but_adapters_of_the_bucket(path: str, source: FakeSource) -> None:
    service = service_of(source)
    assert kind(service, path) == "not-found"
    assert kind(service, path, on_demand=False) == "usage"
    permissive = service_of(source, accepts_paths=True)
    assert kind(permissive, path) == "not-found"
    assert permissive.answer({"adapter": path}) == {"folder": path}, "vLLM's own variable allows it"
    assert source.looks == []


def test_only_the_operator_may_write_a_name_as_a_uri(source: FakeSource) -> None:
    service = service_of(source)
    assert kind(service, "s3://models/org/a") == "not-found"
    assert kind(service, "s3://models/org/a", on_demand=False) is None


def test_without_on_demand_only_the_operator_loads(source: FakeSource) -> None:
    service = service_of(source, on_demand=False)
    assert kind(service, "org/a") == "not-found"
    assert kind(service, "org/a", on_demand=False) is None
    permissive = service_of(source, on_demand=False, accepts_paths=True)
    source.errors["org/hub"] = NotFoundError("no")
    assert permissive.answer({"adapter": "org/hub"}) == {"folder": "org/hub"}, "vLLM looks for it on the Hub"


def test_those_of_the_start_are_copied_before_they_are_requested(source: FakeSource) -> None:
    service = service_of(source)
    stored = source.find_or_latest("org/a", seconds=1)
    service.begin([stored, stored])
    assert service.folder("org/a", on_demand=False) == "/cache/org/a/1"
    assert len(source.copies) == len(source.looks) == 1
    source.version = 2
    assert service.folder("org/a", on_demand=False) == "/cache/org/a/2", "a later load looks again"
    assert service.failures_of_start == []


def test_why_one_of_the_start_failed_is_kept_for_the_last_line(
    source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = IntegrityError("org/a/adapter_model.safetensors: [0, 8) is not what the manifest says")

    def fail(stored: StoredAdapter, **_: object) -> FakeCopy:
        raise error

    stored = source.find_or_latest("org/a", seconds=1)
    monkeypatch.setattr(source, "fetch", fail)
    service = service_of(source)
    service.begin([stored])
    with pytest.raises(IntegrityError):
        service.folder("org/a", on_demand=False)
    assert [failure.message for failure in service.failures_of_start] == [error.message]
    with pytest.raises(IntegrityError):
        service.folder("org/b", on_demand=True)
    assert len(service.failures_of_start) == 1


def test_fetches_are_counted_and_those_of_the_start_are_kept(source: FakeSource) -> None:
    metrics, said = Metrics("org/base", uri="s3://models/org/base"), list[str]()
    service = service_of(source, said=said, meter=metrics)
    service.begin([source.find_or_latest("org/a", seconds=1)])
    service.folder("org/a", on_demand=False)
    source.is_cached = True
    service.folder("org/b", on_demand=True)
    source.errors["org/absent"] = NotFoundError("there is no model org/absent")
    for _ in range(3):
        kind(service, "org/absent")
    (fetch,) = service.of_start
    assert (fetch.name, fetch.bytes, fetch.received_bytes) == ("org/a", 100, 100)
    assert [line.rpartition(" in ")[0] for line in said] == [
        "adapter org/a: 100 B",
        "adapter org/b: from the local cache,",
    ]
    samples = metrics.families(live=False)
    for source_name in ("network", "cache"):
        key = ("coldstream_adapter_fetches_total", (("from", source_name),))
        assert samples["coldstream_adapter_fetches"].samples[key] == 1
    failures = samples["coldstream_adapter_failures"].samples
    assert sum(failures.values()) == failures["coldstream_adapter_failures_total", (("kind", "not-found"),)] == 1


def test_a_look_for_an_update_is_silent_until_there_is_something_new(source: FakeSource) -> None:
    metrics, said = Metrics("org/base", uri="s3://models/org/base"), list[str]()
    service = service_of(source, said=said, meter=metrics, on_demand=False)

    def looked() -> Any:
        answer = service.answer({"adapter": "org/a", "on_demand": False, "is_update": True})
        return answer.get("folder") or answer["error"]["message"]

    first = service.folder("org/a", on_demand=False)
    said.clear()
    assert [looked(), looked()] == [first, first]
    assert said == []
    assert source.copies[-1].closed
    source.version = 2
    assert looked() == "/cache/org/a/2"
    assert len(said) == 1
    samples = metrics.families(live=False)["coldstream_adapter_fetches"].samples
    assert sum(samples.values()) == 2
    source.refusal = UsageError("org/a has the rank 64, and the server accepts ranks up to 16")
    for _ in range(2):
        assert looked() == source.refusal.message
    assert said[1:] == [f"adapter org/a was not loaded: {source.refusal.message}"]


def test_an_update_is_never_a_path_that_vllm_reads_itself(source: FakeSource) -> None:
    """While an upload runs, the bucket has no such adapter."""
    service = service_of(source, accepts_paths=True)
    source.errors["org/a"] = NotFoundError("the upload of org/a is incomplete")
    assert service.answer({"adapter": "org/a"}) == {"folder": "org/a"}
    service._errors.clear()
    answer = service.answer({"adapter": "org/a", "is_update": True})
    assert answer["error"]["message"] == "the upload of org/a is incomplete"
    source.errors.clear()
    assert kind(service, "org/a") is None, "the error does not stand for a request after it"


def test_an_internal_error_reaches_those_who_wait(source: FakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(stored: StoredAdapter, **_: object) -> FakeCopy:
        raise KeyError("a secret")

    monkeypatch.setattr(source, "fetch", fail)
    with pytest.raises(
        ColdstreamError, match=r"org/a: internal error: KeyError at test_adapter_service\.py:"
    ) as caught:
        service_of(source).folder("org/a", on_demand=True)
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("request_", [{"adapter": 3}, {"adapter": None}, {"adapter": ["org/a"]}])
def test_an_invalid_request_is_answered(request_: dict[str, Any], source: FakeSource) -> None:
    assert service_of(source).answer(request_)["error"]["message"] == "invalid request"


def test_two_services_of_a_node_copy_an_adapter_once(tmp_path: Path) -> None:
    send(folder_store(tmp_path), tmp_path, adapter_files(), "org/a")
    services = [AdapterService(source_of(tmp_path), on_demand=True) for _ in range(2)]
    folders: list[str] = []
    threads = [
        threading.Thread(target=lambda each=each: folders.append(each.folder("org/a", on_demand=True)))  # type: ignore[misc]
        for each in services
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert folders[0] == folders[1]
    assert read(Path(folders[0]))["adapter_model.safetensors"] == adapter_files()["adapter_model.safetensors"]
    services[0].close()
    cache = source_of(tmp_path)._cache()
    assert cache.prune() == [], "the other one still serves it"
    services[1].close()
    assert len(cache.prune()) == 1


@pytest.fixture
def loads(tmp_path: Path) -> Iterator[LoadService]:
    with LoadService(str(tmp_path), options=Options()) as service:
        yield service


def test_the_load_service_passes_requests_on(loads: LoadService, source: FakeSource) -> None:
    def ask(**request: object) -> Any:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(loads.address)
            sock.sendall(json.dumps(request).encode() + b"\n")
            return json.loads(sock.makefile().readline())

    assert ask(adapter="org/a")["error"]["message"] == "no adapters are served"
    loads.adapters = service_of(source)
    assert ask(adapter="org/a", on_demand=True) == {"folder": "/cache/org/a/1"}
