"""New versions of loaded adapters: under the old name, with a number and a path of their own, beside the requests."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from types import SimpleNamespace

import msgspec
import pytest

from coldstream.engines.vllm import _tell_versions_apart
from coldstream.engines.vllm.lora_updates import AdapterUpdates
from coldstream.errors import ColdstreamError, UsageError


class Request(msgspec.Struct):
    """vLLM's request for an adapter, which it compares by name."""

    lora_name: str
    lora_int_id: int
    lora_path: str
    load_inplace: bool = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Request) and self.lora_name == other.lora_name

    def __hash__(self) -> int:
        return hash(self.lora_name)


class Counter:
    """vLLM's counter of adapters."""

    def __init__(self) -> None:
        self.value = 7

    def inc(self, by: int) -> int:
        self.value += by
        return self.value


class Models:
    """vLLM's list of models, and its engine."""

    def __init__(self) -> None:
        self.engine_client = self
        self.lora_requests = {
            "sql": Request("sql", 1, "/cache/1", load_inplace=True),
            "local": Request("local", 2, "/x"),
        }
        self.lora_id_counter = Counter()
        self.lora_resolver_lock: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.loads: list[Request] = []
        self.fault: Exception | None = None

    async def add_lora(self, request: Request) -> None:
        assert self.lora_resolver_lock[request.lora_name].locked()
        self.loads.append(request)
        if self.fault:
            raise self.fault

    def fields(self, name: str) -> tuple[str, int, str, bool]:
        request = self.lora_requests[name]
        return request.lora_name, request.lora_int_id, request.lora_path, request.load_inplace


class Bucket:
    """Answers for the present folder of an adapter."""

    def __init__(self) -> None:
        self.version = 1
        self.looks: list[str] = []
        self.error: ColdstreamError | None = None

    async def folder_of(self, path: str) -> str:
        self.looks.append(path)
        if self.error is not None:
            raise self.error
        return f"/cache/{self.version}"


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def updates(bucket: Bucket) -> AdapterUpdates:
    made = AdapterUpdates(bucket.folder_of)
    made.paths["sql"] = "org/a"
    return made


def look(updates: AdapterUpdates, models: Models) -> None:
    async def once() -> None:
        for name in [*models.lora_requests]:
            await updates.update(models, name)

    asyncio.run(once())


def test_a_new_version_gets_the_name_and_the_old_one_stays_for_those_who_hold_it(
    bucket: Bucket, updates: AdapterUpdates
) -> None:
    models = Models()
    held = models.lora_requests["sql"]
    look(updates, models)
    assert models.loads == []
    bucket.version = 2
    look(updates, models)
    look(updates, models)
    assert models.fields("sql") == ("sql", 8, "/cache/2", False)
    assert (held.lora_int_id, held.lora_path) == (1, "/cache/1")
    assert len(models.loads) == 1
    assert {*bucket.looks} == {"org/a"}, "an adapter in a local folder is not looked for"


@pytest.mark.parametrize("error", [UsageError("org/a has the rank 64"), ColdstreamError("the bucket does not answer")])
def test_while_the_bucket_has_none_that_fits_the_old_one_stays(
    error: ColdstreamError, bucket: Bucket, updates: AdapterUpdates
) -> None:
    models = Models()
    bucket.version, bucket.error = 2, error
    look(updates, models)
    assert models.fields("sql")[1:3] == (1, "/cache/1")
    bucket.error = None
    look(updates, models)
    assert models.fields("sql")[1:3] == (8, "/cache/2")


def test_a_version_that_vllm_cannot_load_is_tried_three_times(
    bucket: Bucket, updates: AdapterUpdates, caplog: pytest.LogCaptureFixture
) -> None:
    models = Models()
    bucket.version, models.fault = 2, RuntimeError("unexpected modules")
    for _ in range(5):
        look(updates, models)
    assert (len(models.loads), models.fields("sql")[2]) == (3, "/cache/1")
    assert "adapter 'sql' keeps its version, a newer one failed: unexpected modules" in caplog.text
    bucket.version, models.fault = 3, None
    look(updates, models)
    assert models.fields("sql")[2] == "/cache/3"


def test_one_that_is_unloaded_or_replaced_by_the_api_is_left_alone(bucket: Bucket, updates: AdapterUpdates) -> None:
    models = Models()
    bucket.version = 2

    async def replaced_while_it_looks(path: str) -> str:
        models.lora_requests["sql"] = Request("sql", 5, "/other")
        return await bucket.folder_of(path)

    replaced = AdapterUpdates(replaced_while_it_looks)
    replaced.paths["sql"] = "org/a"
    look(replaced, models)
    assert (models.loads, models.fields("sql")[2]) == ([], "/other")
    del models.lora_requests["sql"]
    asyncio.run(updates.update(models, "sql"))
    assert "sql" not in models.lora_requests


def test_it_looks_until_it_is_cancelled(bucket: Bucket, updates: AdapterUpdates) -> None:
    async def follow() -> None:
        task = asyncio.create_task(updates.run(Models(), 0.001))
        while len(bucket.looks) < 3:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(follow())


def test_two_versions_of_a_name_are_two_for_vllm_s_workers() -> None:
    old, new = Request("sql", 1, "/cache/1"), Request("sql", 8, "/cache/2")
    assert len({old, new}) == 1, "as vLLM has it"
    _tell_versions_apart(SimpleNamespace(LoRARequest=Request))
    assert len({old, new, Request("sql", 8, "/cache/2")}) == 2
    assert old != new
    assert old != "sql"
