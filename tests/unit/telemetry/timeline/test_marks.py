"""What each line of vLLM says of a start."""

from __future__ import annotations

import pytest

from coldstream.telemetry.timeline.marks import compile_caches, compile_event, figures, metrics, passed
from tests.unit.telemetry.timeline import logs
from tests.unit.telemetry.timeline.starts import recorded


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
    assert recorded(lines, ready=120.0).compile_caches == expected


def test_nothing_said_is_not_known() -> None:
    assert compile_caches(set(), {}) == "unknown"


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
    found = passed(line)
    assert found is not None
    assert found[0] == mark


def test_other_lines_set_none() -> None:
    assert passed("(Worker pid=9) INFO [weight_utils.py:1108] Filesystem type for checkpoints: EXT4.") is None
    assert passed("") is None
    assert compile_event("[c.py:1] torch.compile took 3.00 s in total") is None


def test_what_vllm_says_of_itself() -> None:
    found = {}
    for _, line in logs.CUDA_COLD:
        found |= figures(line)
    assert found == {
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


def test_what_its_metrics_say() -> None:
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
