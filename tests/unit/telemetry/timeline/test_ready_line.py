"""The line of JSON that tells programs when vLLM answers."""

from __future__ import annotations

import json

import pytest

from coldstream.telemetry.timeline.start_record import Timeline, format_ready_line, parse_ready_line
from tests.unit.telemetry.timeline import logs
from tests.unit.telemetry.timeline.starts import finished, recorded, streamed

URL = "http://127.0.0.1:8000"
NOISE = (
    "(APIServer pid=1) INFO 11-24 10:26:10 [model.py:733] Resolved architecture: LlamaForCausalLM",
    "ready in 3.0 s",
    '{"coldstream":"started","url":"http://127.0.0.1:8000"}',
    '{"coldstream":"ready","url":"http://127.0.0.1:8000"}',
    '{"coldstream":"ready","url":',
)


def plain() -> Timeline:
    return finished(recorded(logs.CUDA_COLD, ready=70.0))


@pytest.mark.parametrize("timeline", [streamed(), plain()], ids=["with a first token", "without"])
def test_the_line_is_read_back(timeline: Timeline) -> None:
    line = parse_ready_line([format_ready_line(timeline, URL)])
    assert line is not None
    assert line.url == URL
    assert line.ready_seconds == timeline.ready_seconds
    assert line.first_token_seconds == timeline.first_token_seconds
    assert line.phases == timeline.phases
    assert line.spans == timeline.spans


def test_the_fields_are_a_contract() -> None:
    text = format_ready_line(streamed(), URL)
    assert "\n" not in text
    document = json.loads(text)
    assert [*document] == [
        "coldstream", "url", "run", "model", "ready_seconds", "first_token_seconds", "phases", "spans",
    ]  # fmt: skip
    assert document["coldstream"] == "ready"
    assert [*document["phases"][0]] == ["name", "start", "stop", "note", "group"]
    assert [*document["spans"][0]] == ["name", "start", "stop", "note"]


def test_unknown_fields_are_ignored() -> None:
    document = json.loads(format_ready_line(plain(), URL)) | {"new": 1}
    assert parse_ready_line([json.dumps(document, separators=(",", ":"))]) is not None


def test_prefixes_of_log_collectors_and_other_lines_are_skipped() -> None:
    line = format_ready_line(streamed(), URL)
    for before in ("(llama, pid=123) ", "(worker1, rank=1, pid=9, ip=10.0.0.2) ", "2026-11-24T10:20:01Z "):
        lines = [before + text for text in (*NOISE, line, *NOISE)]
        assert parse_ready_line(lines) == parse_ready_line([line]), before


@pytest.mark.parametrize("lines", [[], list(NOISE)])
def test_a_log_without_the_line(lines: list[str]) -> None:
    assert parse_ready_line(lines) is None


def test_the_last_line_counts() -> None:
    first, second = (format_ready_line(timeline, URL) for timeline in (streamed(), plain()))
    assert parse_ready_line([first, "Job 2 starts", second]) == parse_ready_line([second])
