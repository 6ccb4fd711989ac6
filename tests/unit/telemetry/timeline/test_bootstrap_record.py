"""What the bootstrap program leaves in the environment for the timeline."""

from __future__ import annotations

import json
import os
import time

import pytest

from coldstream.engines.vllm.vllm_log import read_line
from coldstream.telemetry.timeline.recorder import BOOTSTRAP_VARIABLE, BootstrapRecord, Recorder, bootstrap_record
from tests.unit.telemetry.timeline.starts import finished


def left(monkeypatch: pytest.MonkeyPatch, document: object) -> BootstrapRecord | None:
    monkeypatch.setenv(BOOTSTRAP_VARIABLE, document if isinstance(document, str) else json.dumps(document))
    record = bootstrap_record()
    # No process that coldstream starts takes it for its own.
    assert BOOTSTRAP_VARIABLE not in os.environ
    return record


def test_a_record_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now, monotonic_now = time.time(), time.monotonic()
    record = left(monkeypatch, {"began": now - 5, "phases": [["fetch", now - 4, now - 2, "link"]]})
    assert record is not None
    assert record.phases == [("fetch", now - 4, now - 2, "link")]
    assert record.monotonic_began == pytest.approx(monotonic_now - 5, abs=0.5)
    assert bootstrap_record() is None


@pytest.mark.parametrize("age", [-60, 3700, 1e9])
def test_a_record_of_another_start_is_ignored(monkeypatch: pytest.MonkeyPatch, age: float) -> None:
    assert left(monkeypatch, {"began": max(time.time() - age, 0), "phases": []}) is None


@pytest.mark.parametrize(
    "document",
    [
        "",
        "{",
        "null",
        "[]",
        '{"began": "now", "phases": []}',
        '{"began": -1, "phases": []}',
        '{"began": 1}',
        '{"began": 1, "phases": [["other", 1, 2, "link"]]}',
        '{"began": 1, "phases": [["fetch", 1, 2, "luck"]]}',
        '{"began": 1, "phases": [["fetch", 1]]}',
        json.dumps({"began": 1, "phases": [["fetch", 1, 2, "link"]] * 9}),
    ],
)
def test_what_is_not_valid_is_ignored(monkeypatch: pytest.MonkeyPatch, document: str) -> None:
    monkeypatch.setattr(time, "time", lambda: 2.0)
    assert left(monkeypatch, document) is None


@pytest.mark.parametrize("way", ["mount", "unpack"])
def test_its_steps_are_in_the_timeline(way: str) -> None:
    now = time.time()
    record = BootstrapRecord(
        began=now - 30, phases=[("fetch", now - 28, now - 20, "link"), (way, now - 20, now - 12, "processor")]
    )
    recorder = Recorder(record.monotonic_began, read_line)
    record.apply(recorder)
    recorder.mark("ready", record.monotonic_began + 30)
    timeline = finished(recorder)
    spans = {span.name: span for span in timeline.spans}
    assert set(spans) == {"runtime fetch", f"runtime {way}"}
    fetch, provided = spans["runtime fetch"], spans[f"runtime {way}"]
    assert (fetch.note, provided.note) == ("limited by the link", "limited by the processor")
    assert (round(fetch.start), round(fetch.stop), round(provided.stop)) == (2, 10, 18)
    assert [(phase.name, round(phase.stop)) for phase in timeline.phases][:2] == [
        ("runtime fetch", 10),
        ("runtime", 18),
    ]
