"""What each line of vLLM's log says about a start."""

from __future__ import annotations

import pytest

from coldstream.engines.vllm.log_marks import metrics, read_line
from coldstream.telemetry.timeline.recorder import LogFacts
from tests.unit.telemetry.timeline import logs


@pytest.mark.parametrize(
    ("line", "mark"),
    [
        # Words that stand in a value are not vLLM's own.
        ("[a.py:1] non-default args: {'model': 'Loading weights took 1 seconds'}", "args"),
        ("[c.py:1] Initializing a V1 LLM engine (v0.32.0) with config: model='Graph capturing finished in '", "engine"),
        ("[g.py:1] Loading model from scratch...", "loading"),
        ("[m.py:1] torch.compile takes 3.00 s in total", "compiled"),
        ("[b.py:1] [eagle_head] torch.compile took 3.00 s in total", "compiled"),
    ],
)
def test_a_line_sets_one_mark(line: str, mark: str) -> None:
    assert read_line(line).mark == mark


def test_other_lines_set_none() -> None:
    assert read_line("(Worker pid=9) INFO [weight_utils.py:1108] Filesystem type for checkpoints: EXT4.").mark is None
    assert read_line("") == LogFacts()
    assert read_line("[c.py:1] torch.compile took 3.00 s in total").compile_event is None


def test_the_figures_that_vllm_prints() -> None:
    figures: dict[str, float] = {}
    for _, line in logs.CUDA_COLD:
        figures |= read_line(line).figures
    assert figures == {
        "model_init_seconds": 0.9,
        "weights_seconds": 1.98,
        "model_loading_seconds": 3.4,
        "dynamo_seconds": 3.21,
        "torch_compile_seconds": 12.5,
        "graph_capture_seconds": 5.0,
        "init_engine_seconds": 23.4,
        "compilation_seconds": 12.5,
        "kv_cache_tokens": 401000.0,
    }


def test_the_metrics_of_the_first_token() -> None:
    text = """# HELP vllm:time_to_first_token_seconds Histogram of time to first token in seconds.
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="/m"} 0.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="/m"} 1.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="/m"} 0.25
vllm:time_to_first_token_seconds_sum{engine="1",model_name="/m"} 0.0
vllm:request_queue_time_seconds_sum{engine="0",model_name="} 9"} 2.5e-05
vllm:request_prefill_time_seconds_sum{engine="0"} NaN
process_start_time_seconds 1.7
"""
    assert metrics(text) == {"time_to_first_token_seconds": 0.25, "queue_seconds": 2.5e-05}
    assert metrics("<html>") == {}
