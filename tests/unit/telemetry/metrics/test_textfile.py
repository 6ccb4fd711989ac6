"""The file for the textfile collector."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstream.engine.load_statistics import LoadStatistics
from coldstream.errors import DiskError, IntegrityError, UsageError
from coldstream.telemetry.metrics.registry import Metrics
from coldstream.telemetry.metrics.textfile import (
    MODELS_MAX,
    Families,
    Family,
    TextFile,
    cost_file,
    merged,
    parse,
    render,
    since,
)
from tests.unit.telemetry.metrics.loads import Load, report, value

COUNT = ("n_total", ())
OK = {"model": "org/m", "outcome": "ok", "source": "s3", "verified": "yes"}


def one_load(model: str = "org/m") -> Metrics:
    found = Metrics(model, uri="s3://bucket/org/m")
    load = Load(statistics=LoadStatistics(received_bytes=10), outcome=report(seconds=2.0))
    found.follow(lambda: [load])
    return found


def add(path: Path, metrics: Metrics) -> str | None:
    return TextFile(path).add(metrics.families(live=False))


def read(path: Path, name: str, **labels: str) -> float | None:
    return value(parse(path.read_bytes(), where="it"), name, **labels)


def test_counters_go_on_from_load_to_load(tmp_path: Path) -> None:
    path = tmp_path / "coldstream.prom"
    for number in range(1, 4):
        assert add(path, one_load()) is None
        assert read(path, "coldstream_loads_total", **OK) == number
        assert read(path, "coldstream_load_seconds_sum", model="org/m") == 2.0 * number
        assert read(path, "coldstream_load_bytes_total", model="org/m", **{"from": "network"}) == 10 * number
        assert read(path, "coldstream_last_load_seconds", model="org/m") == 2.0
    add(path, one_load("org/other"))
    assert read(path, "coldstream_loads_total", **OK) == 3
    assert read(path, "coldstream_loads_total", **{**OK, "model": "org/other"}) == 1


def test_what_a_process_writes_twice_is_counted_once(tmp_path: Path) -> None:
    file, metrics = TextFile(tmp_path / "c.prom"), one_load()
    for _ in range(3):
        file.add(metrics.families(live=False))
    assert read(file.path, "coldstream_loads_total", **OK) == 1


def test_others_can_read_it_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        add(tmp_path / "c.prom", one_load())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "c.prom").stat().st_mode) == 0o644
    assert len([*tmp_path.glob("*.prom")]) == 1, "the collector sees one file"


@pytest.mark.parametrize(
    "damage",
    [
        b"coldstream_loads_total{model=",
        b"\xff\xfe\x00",
        b'# TYPE coldstream_loads counter\ncoldstream_loads_total{a="b"} -5\n',
        b"# TYPE coldstream_x gauge\ncoldstream_x NaN\n",
        b"# TYPE coldstream_x summary\ncoldstream_x 1\n",
        b"coldstream_x 1\n",
        2 * b"# TYPE coldstream_x gauge\ncoldstream_x 1\n# TYPE coldstream_y gauge\ncoldstream_y 1\n",
    ],
)
def test_a_damaged_file_begins_anew_and_says_so(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "c.prom"
    path.write_bytes(damage)
    TextFile(path).check()
    warning = add(path, one_load())
    assert warning is not None
    assert "damaged" in warning
    assert read(path, "coldstream_loads_total", **OK) == 1


def test_a_file_that_is_cut_short_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "c.prom"
    add(path, one_load())
    whole = path.read_bytes()
    for stop in range(0, len(whole), 97):
        path.write_bytes(whole[:stop])
        add(path, one_load())
        assert (read(path, "coldstream_loads_total", **OK) or 0) >= 1


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "c.prom"
    with open(path, "wb") as file:
        file.truncate(1 << 30)
    assert "too large" in (add(path, one_load()) or "")


@pytest.mark.parametrize(
    "content", [b"# TYPE apt_upgrades gauge\napt_upgrades 3\n", b"apt_upgrades 3\n\xff", b"# TYPE apt_upgrades\n{"]
)
def test_the_file_of_others_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "apt.prom"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="apt_upgrades"):
        TextFile(path).check()
    with pytest.raises(UsageError, match="does not belong to coldstream"):
        add(path, one_load())
    assert path.read_bytes() == content


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="cannot use the metrics' file"):
        add(tmp_path / "gone/c.prom", one_load())


def test_loads_that_end_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.prom"
    threads = [threading.Thread(target=add, args=(path, one_load())) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(path, "coldstream_loads_total", **OK) == 16


def test_the_month_s_dollars_stand_beside_the_loads(tmp_path: Path) -> None:
    path = tmp_path / "c.prom"
    add(path, one_load())
    assert cost_file(path, 82.5, 100) is None
    add(path, one_load())
    cost_file(path, 90)
    assert read(path, "coldstream_month_dollars", kind="projected") == 90
    assert read(path, "coldstream_month_dollars", kind="budget") is None
    assert read(path, "coldstream_loads_total", **OK) == 2


@settings(max_examples=20, deadline=None)
@given(st.text(max_size=60))
def test_any_model_s_name_survives(model: str) -> None:
    families = one_load(model).families(live=False)
    assert parse(render(families), where="it") == families


@given(st.lists(st.sampled_from(["coldstream_a", '{b="c"}', "# TYPE coldstream_a", *'{}"= \n1\\', " gauge"])))
def test_any_file_is_read_or_refused(parts: list[str]) -> None:
    try:
        families = parse("".join(parts).encode(), where="it")
    except (IntegrityError, UsageError):
        return
    assert all(name.startswith("coldstream_") for name in families)


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
