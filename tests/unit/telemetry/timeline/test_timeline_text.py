"""What a terminal shows of a start, and what a log holds of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.engines.vllm.vllm_log import read_line
from coldstream.telemetry.timeline.recorder import Recorder
from coldstream.telemetry.timeline.timeline_text import COLUMNS_MAX, bar, rows_text, side_by_side, summary_text
from tests.unit.telemetry.timeline import logs
from tests.unit.telemetry.timeline.starts import Report, finished, recorded, streamed


def test_a_start_on_a_terminal() -> None:
    rows = rows_text(streamed(), bars=True)
    assert [row.split("  ")[1].strip() for row in rows][:5] == [
        *("resolve", "· manifest", "· stream", "· bundle", "api import"),
    ]
    stream = rows[2]
    assert "█" in stream
    assert stream.endswith("8.0 s  16.1 GB, 2.01 GB/s, 100% hidden by the start")
    assert max(map(len, rows)) <= COLUMNS_MAX
    assert summary_text(streamed(), url="http://127.0.0.1:8000") == [
        "ready in 110.0 s   first token after 110.5 s   http://127.0.0.1:8000",
        "phases known for 100 % of start-up",
        "weights: ready 36 s before vLLM needed them; limited by the bucket: each connection gave 34.0 MB/s",
        "bottleneck: compile (55 % of start-up)",
    ]


def test_a_log_has_no_bars_and_nothing_cut() -> None:
    rows = rows_text(streamed(), bars=False)
    assert not any(block in "".join(rows) for block in "▏▎▍▌▋▊▉█▐")
    assert ["compile", "61.0", "s", "compile,"] in [row.split()[:4] for row in rows]


def test_two_starts_side_by_side() -> None:
    recorder = Recorder(100.0, read_line)
    recorder.mark("downloaded", 160.0)
    for name, at in (("spawned", 161.0), ("args", 170.0), ("ready", 180.0)):
        recorder.mark(name, at)
    starts = {"streamed": streamed(), "downloaded first": finished(recorder, loader="default")}
    plain = [line.split() for line in side_by_side(starts, bars=False)]
    assert plain[:5] == [
        ["streamed", "downloaded", "first"],
        ["·", "stream", "8.0", "s", "-"],
        ["download", "-", "60.0", "s"],
        ["resolve", "1.0", "s", "1.0", "s"],
        ["api", "import", "12.0", "s", "9.0", "s"],
    ]
    drawn = side_by_side(starts, bars=True, columns=80)
    assert max(map(len, drawn)) <= 80
    stream, download = drawn[1], drawn[2]
    assert stream.count("█") < download.count("█"), "on one axis"
    assert drawn[0].index("downloaded first") <= download.index("█")


def test_a_narrow_terminal_and_a_long_verdict() -> None:
    timeline = streamed(limited_by="limited by the bucket: " + "each connection gave what it could, " * 4)
    lines = rows_text(timeline, bars=True, columns=80) + summary_text(timeline, columns=80)
    assert max(map(len, lines)) <= 80
    assert "hidden by the start" not in "".join(lines)
    assert max(map(len, rows_text(timeline, bars=True, columns=40))) <= 40
    whole = " ".join(" ".join(summary_text(timeline, columns=60)).split())
    assert whole.count("each connection gave what it could") == 4


def test_what_was_waited_for_is_said() -> None:
    recorder = recorded(logs.CUDA_COLD, ready=70.0)
    recorder.span("stream", 101.0, 142.5)
    timeline = finished(recorder, report=Report(seconds=41.5))
    assert timeline.stream is not None
    assert timeline.stream.waited_seconds == pytest.approx(1.5)
    assert timeline.stream.hidden_share == pytest.approx(40 / 41.5)
    assert timeline.verdict[0].startswith("weights: vLLM waited 1.5 s for them; limited by the bucket")
    assert (
        timeline.verdict[1]
        == "bottleneck: imports (37 % of start-up: api import 12 s, engine spawn 9.0 s, worker spawn 5.0 s)"
    )


def test_a_stream_that_nobody_waited_for_has_no_limit() -> None:
    timeline = streamed(limit="consumer", limited_by="limited by the consumer: tensors waited for it 100 % of the time")
    assert timeline.verdict[0] == "weights: ready 36 s before vLLM needed them"


def test_other_loaders_read_by_themselves() -> None:
    timeline = finished(recorded(logs.EAGER, ready=50.0), loader="runai")
    assert timeline.verdict[0] == "weights: read by vLLM itself (runai) in 200 ms"
    assert finished(recorded((), ready=50.0)).verdict[0] == "weights: no report"


def test_a_name_is_not_rounded_up_to_all() -> None:
    recorder = recorded(
        ((8.996, logs.EAGER[0][1]), (9.0, "[c.py:1] init engine (profile, create kv cache, warmup model) took")),
        ready=9.0,
    )
    timeline = finished(recorder)
    assert 0.999 < timeline.named_share < 1
    assert summary_text(timeline)[1] == "phases known for 99 % of start-up"


@given(st.floats(0, 1), st.floats(0, 1), st.integers(4, 60))
def test_every_bar_is_seen_and_none_is_too_long(one: float, other: float, columns: int) -> None:
    start, stop = sorted((one, other))
    drawn = bar(start, stop, 1.0, columns=columns)
    assert len(drawn) == columns
    assert drawn.strip()
    width = len(drawn.strip())
    assert abs(width - columns * (stop - start)) <= 2
