"""Counts that go on from process to process."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coldstream.telemetry.metrics.families import MODELS_MAX, Families, Family, merged, since

COUNT = ("n_total", ())


def counter(value: float) -> Families:
    return {"n": Family("counter", "N.", {COUNT: value})}


def gauge(**values: float) -> Families:
    return {"g": Family("gauge", "G.", {("g", (("model", model),)): value for model, value in values.items()})}


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=20))
def test_counts_add_up(counts: list[int]) -> None:
    found: Families = {}
    for count in counts:
        found = merged(found, counter(count))
    assert found["n"].samples[COUNT] == sum(counts)


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=20))
def test_a_process_that_writes_often_is_counted_once(steps: list[int]) -> None:
    found: Families = {}
    last: Families = {}
    total = 0
    for step in steps:
        total += step
        now = counter(total)
        found = merged(found, since(now, last))
        last = now
    assert found["n"].samples[COUNT] == total


def test_gauges_are_the_newer_ones_and_those_of_other_models_stay() -> None:
    found = merged(gauge(a=1, b=2), gauge(b=3))
    assert found == gauge(a=1, b=3)
    old = {"info": Family("gauge", "I.", {("info", (("version", "1"),)): 1.0})}
    new = {"info": Family("gauge", "I.", {("info", (("version", "2"),)): 1.0})}
    assert merged(old, new) == new
    assert merged(old, counter(1)) == {**old, **counter(1)}, "what this process does not know stays"


def test_other_buckets_begin_anew() -> None:
    def histogram(*bounds: str) -> Families:
        return {"h": Family("histogram", "H.", {("h_bucket", (("le", bound),)): 1.0 for bound in bounds})}

    assert merged(histogram("1", "2"), histogram("1", "3")) == histogram("1", "3")
    doubled = merged(histogram("1", "2"), histogram("1", "2"))["h"].samples
    assert set(doubled.values()) == {2.0}


def test_the_models_that_were_loaded_last_stay() -> None:
    found: Families = {}
    for number in range(2 * MODELS_MAX):
        labels = (("model", f"m{number}"),)
        new = {
            "loads": Family("counter", "L.", {("loads_total", labels): 1.0}),
            "coldstream_last_load_timestamp_seconds": Family(
                "gauge", "T.", {("coldstream_last_load_timestamp_seconds", labels): 1000.0 + number}
            ),
        }
        found = merged(found, new)
    models = {dict(labels)["model"] for _, labels in found["loads"].samples}
    assert models == {f"m{number}" for number in range(MODELS_MAX, 2 * MODELS_MAX)}
