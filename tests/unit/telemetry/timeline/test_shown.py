"""A timeline read back from a log."""

from __future__ import annotations

import pytest

from coldstream.telemetry.timeline.start_record import Timeline
from coldstream.telemetry.timeline.timeline_text import read_shown, rows_text, summary_text
from tests.unit.telemetry.timeline import logs
from tests.unit.telemetry.timeline.starts import finished, recorded, streamed

NOISE = (
    "(APIServer pid=1) INFO 11-24 10:26:10 [model.py:733] Resolved architecture: LlamaForCausalLM",
    "  waited  4.0 s  for nothing in particular",
    "the model was not ready in 3.0 s",
)


def lines_of(timeline: Timeline, **more: str) -> list[str]:
    return rows_text(timeline, bars=False) + summary_text(timeline, **more)


def plain() -> Timeline:
    return finished(recorded(logs.CUDA_COLD, ready=70.0))


@pytest.mark.parametrize("timeline", [streamed(), plain()], ids=["with a token", "without"])
def test_what_was_shown_is_read_back(timeline: Timeline) -> None:
    shown = read_shown(lines_of(timeline, url="http://127.0.0.1:8000"))
    assert shown is not None
    assert shown.ready_seconds == timeline.ready_seconds
    assert shown.first_token_seconds == timeline.first_token_seconds
    there = {phase.name: phase for phase in timeline.phases} | {span.name: span for span in timeline.spans}
    assert len(shown.rows) == len(timeline.phases) + len(timeline.spans)
    for row in shown.rows:
        assert row.seconds == pytest.approx(there[row.name].seconds, abs=0.051)
        assert row.name == "stream" or row.note == there[row.name].note


def test_others_put_names_before_the_lines_and_write_around_them() -> None:
    lines = [*NOISE, *lines_of(streamed()), *NOISE]
    alone = read_shown(lines_of(streamed()))
    for before in ("(llama, pid=123) ", "(worker1, rank=1, pid=9, ip=10.0.0.2) ", "(pid=7) "):
        assert read_shown([before + line for line in lines]) == alone, before
    assert alone is not None
    assert alone.rows[0].name == "resolve"


@pytest.mark.parametrize(
    "lines",
    [
        [],
        list(NOISE),
        rows_text(streamed(), bars=False),
        ["already ready in 3.0 s"],
        ["ready in a while"],
        ["ready in 3.0 s and more words"],
    ],
)
def test_no_timeline(lines: list[str]) -> None:
    assert read_shown(lines) is None


def test_the_last_of_two_counts() -> None:
    lines = [*lines_of(streamed()), "Job 2 starts", *lines_of(plain())]
    assert read_shown(lines) == read_shown(lines_of(plain()))
    assert read_shown(lines) != read_shown(lines_of(streamed()))


def test_rows_are_those_right_above() -> None:
    shown = read_shown(["  old  1.0 s", "something else", "  load  12.5 s  from the bucket", "ready in 20.0 s", ""])
    assert shown is not None
    assert [(row.name, row.seconds, row.note) for row in shown.rows] == [("load", 12.5, "from the bucket")]
    assert read_shown(["ready in 20.0 s"]) == type(shown)(rows=(), ready_seconds=20.0, first_token_seconds=None)
