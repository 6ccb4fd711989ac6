"""Collecting from several threads at once."""

from __future__ import annotations

import threading

import pytest

from coldstream.engines.vllm.vllm_log import read_line
from coldstream.telemetry.timeline.recorder import Recorder
from tests.unit.telemetry.timeline import logs
from tests.unit.telemetry.timeline.starts import finished, recorded


def test_threads_may_tell_at_the_same_time() -> None:
    recorder = Recorder(0.0, read_line)
    together = threading.Barrier(4)

    def tell(number: int) -> None:
        together.wait(10)
        for step in range(200):
            recorder.mark("spawned", 1.0 + number)
            recorder.line(f"[d.py:1] Loading weights took {step} seconds", 2.0 + step / 100)
            recorder.span("stream", 1.0, 2.0)
            recorder.figures({f"figure {number}": step})
            assert recorder.marks

    threads = [threading.Thread(target=tell, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.mark("ready", 9.0)
    # A record bounds what it holds; here only the sums count.
    assert len(recorder._spans) == 800
    recorder._spans.clear()
    timeline = finished(recorder)
    assert set(timeline.figures) == {"weights_seconds", *(f"figure {number}" for number in range(4))}
    assert timeline.phases[-1].stop == 9.0


def test_times_before_the_command_are_its_beginning() -> None:
    recorder = Recorder(100.0, read_line)
    recorder.mark("spawned", 99.0)
    recorder.span("stream", 90.0, 95.0)
    recorder.span("bundle", 105.0, 104.0)
    recorder.mark("ready", 110.0)
    timeline = finished(recorder)
    assert [(span.start, span.stop) for span in timeline.spans] == [(0.0, 0.0), (5.0, 5.0)]


def test_a_start_that_is_not_ready_has_no_timeline() -> None:
    with pytest.raises(KeyError, match="ready"):
        finished(Recorder(0.0, read_line))


def test_names_are_cleaned() -> None:
    recorder = Recorder(0.0, read_line)
    recorder.span("bundle", 0.0, 1.0, note="a\x1b[2Jb")
    recorder.mark("ready", 2.0)
    timeline = finished(recorder, model="m\x1b]0;x\x07", bundle={"state": "no\nne", "files": [1, 2]})
    assert timeline.spans[0].note == "a?[2Jb"
    assert timeline.model == "m?]0;x?"
    assert timeline.bundle == {"state": "no?ne"}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (logs.COMPILED_ON_CPU, "unknown"),
        (logs.EAGER, "none"),
        (logs.CUDA_COLD, "compiled"),
        (logs.CUDA_AOT, "loaded"),
        (logs.CUDA_PIECES, "loaded"),
        (logs.HEAD, "unknown"),
        ((*logs.CUDA_PIECES, *logs.CUDA_COLD), "compiled"),
    ],
    ids=["cpu", "eager", "cold", "ahead of time", "pieces", "no end", "one piece was missing"],
)
def test_whether_the_compile_caches_were_used(lines: logs.Lines, expected: str) -> None:
    assert finished(recorded(lines, ready=120.0)).compile_caches == expected


def test_a_log_without_lines_says_nothing_about_the_compile_caches() -> None:
    assert finished(recorded((), ready=1.0)).compile_caches == "unknown"
