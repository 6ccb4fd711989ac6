"""Plans are read back as they were written, or not at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from coldstream.cache.cache import Cache
from coldstream.cache.copy_records import CopyPlan, parse_plan
from coldstream.cache.copy_writer import CopyWriter
from coldstream.errors import DiskError
from tests.unit.cache.cached_models import (
    URI,
    Model,
)


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: b"",
        lambda plan: b"{",
        lambda plan: b"[]",
        lambda plan: b"[" * 100_000,
        lambda plan: b"\xff" + plan,
        lambda plan: plan.replace(b'"format":1', b'"format":2'),
        lambda plan: plan.replace(b'"size":15', b'"size":16'),
        lambda plan: plan.replace(b'"size":15', b'"size":true'),
        lambda plan: plan.replace(b"[5,10,15]", b"[5,5,15]"),
        lambda plan: plan.replace(b"[5,10,15]", b"[5.0,10,15]"),
        lambda plan: plan.replace(b"[5,10,15]", b"[-5,10,15]"),
        lambda plan: plan.replace(b"[5,10,15]", b"[5,15]"),
        lambda plan: plan.replace(b'"path":"a"', b'"path":"../a"'),
        lambda plan: plan.replace(b'"path":"a"', b'"path":"/a"'),
        lambda plan: plan.replace(b'"path":"a"', b'"path":".coldstream/journal"'),
        lambda plan: plan.replace(b'"name":"org/model"', b'"name":"../x"'),
        lambda plan: plan.replace(b'"name":"org/model"', b'"name":7'),
        lambda plan: plan.replace(b'"version":"sha256:1"', b'"version":".."'),
        lambda plan: plan.replace(b'"files":[', b'"files":[7,'),
        lambda plan: plan.replace(b'"xxh3_128":"', b'"xxh3_128":"zz'),
        lambda plan: plan.replace(b'"xxh3_128":"', b'"xxh3_128":"00'),
    ],
)
def test_a_plan_that_cannot_be_trusted_starts_over(cache: Cache, change: Callable[[bytes], bytes]) -> None:
    model = Model({"a": [5, 5, 5]})
    folder = model.fill(cache)
    path = folder / ".coldstream/plan.json"
    changed = change(path.read_bytes())
    assert changed != path.read_bytes()
    path.write_bytes(changed)
    assert parse_plan(changed) is None
    assert cache.latest(URI) is None
    (entry,) = cache.entries()
    assert not entry.complete
    with pytest.raises(DiskError, match="no plan"):
        CopyWriter.open(folder)
    with model.open(cache) as copy:
        assert model.check(copy) == 0
        assert not (folder / "a").exists()


def test_plans_are_read_within_bounds(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    model.fill(cache)
    monkeypatch.setattr("coldstream.cache.cached_files.PLAN_BYTES_MAX", 100)
    assert cache.latest(URI) is None


def test_a_plan_comes_back_as_it_was() -> None:
    for hashed in (True, False):
        plan = CopyPlan(uri=URI, name="org/model", version="x", files=tuple(Model(hashed=hashed).files))
        assert parse_plan(plan.serialize()) == plan
