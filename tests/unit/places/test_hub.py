"""Files that the Hub's storage does not give over plain HTTP come through hf-xet, by ranges."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from coldstream.errors import UnavailableError
from coldstream.net.retry import Backoff, Retry
from coldstream.places.hub import HubSnapshot
from coldstream.places.place import ObjectInfo
from coldstream.settings import load_settings
from tests.models import safetensors_bytes
from tests.servers.hub import FakeHub

REPO = "org/large"
TOKEN = "hf_good_token_00000x9Qz"
CONTENT = safetensors_bytes({"a": 3_000_000, "b": 500_000})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    with FakeHub(xet_store=tmp_path / "xet") as server:
        server.accepted_tokens.add(TOKEN)
        server.add_repo(REPO, {"model.safetensors": CONTENT, "config.json": b"{}"}, gated=True)
        server.faults.fail(1000, status=400, where="cdn")
        yield server


def opened(hub: FakeHub) -> tuple[HubSnapshot, ObjectInfo]:
    settings = load_settings({"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN}, environ={})
    retry = Retry(Backoff(first_seconds=0.01, longest_seconds=0.02, give_up_seconds=0.1))
    source = HubSnapshot(REPO, settings=settings, retry=retry)
    return source, next(info for info in source.list("") if info.key == "model.safetensors")


def read(source: HubSnapshot, file: ObjectInfo, start: int, stop: int) -> bytes:
    buffer = bytearray(stop - start)
    counts: list[int] = []
    source.read_into(file.key, start, memoryview(buffer), on_read=counts.append)
    assert sum(counts) == stop - start
    return bytes(buffer)


def test_ranges_come_through_xet(hub: FakeHub) -> None:
    source, file = opened(hub)
    source.retry.backoff = Backoff(give_up_seconds=30)
    ends = sorted(random.Random(1).choices(range(len(CONTENT)), k=6))
    for start, stop in [(0, len(CONTENT)), (ends[0], ends[1]), (ends[2], ends[5]), (ends[3], ends[3] + 1)]:
        assert read(source, file, start, stop) == CONTENT[start:stop]
    asked = [record for record in hub.requests if record.listener == "cdn"]
    assert len(asked) == 1  # after the first refusal nobody asks there again
    assert not any(record.had_authorization for record in asked)


def test_what_is_switched_off_is_said(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    source, file = opened(hub)
    with pytest.raises(UnavailableError, match="only through hf-xet") as caught:
        read(source, file, 0, 10)
    assert "HF_HUB_DISABLE_XET" in (caught.value.hint or "")
    assert not caught.value.retryable


def test_what_xet_lacks_is_said(hub: FakeHub, tmp_path: Path) -> None:
    source, file = opened(hub)
    for xorb in (tmp_path / "xet").rglob("*"):
        if xorb.is_file() and "xorbs" in xorb.parts:
            xorb.unlink()
    with pytest.raises(UnavailableError, match=r"hf-xet (failed|gave)") as caught:
        read(source, file, 0, 10)
    assert TOKEN not in f"{caught.value}{caught.value.hint}"
