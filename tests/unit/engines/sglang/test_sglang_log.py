"""What each line of SGLang's log says about a start, and why it failed. The lines are of 0.5.23's source."""

from __future__ import annotations

import pytest

from coldstream.engines.sglang.sglang_log import READER, SglangFailure

LINES = {
    "[2026-11-30 16:00:00] server_args={'model_path': '/m', 'api_key': '****', 'load_format': 'auto'}": "configured",
    "[2026-11-30 16:00:10 TP1] Load weight begin. avail mem=78.50 GB": "loading",
    "[2026-11-30 16:00:10 TP1] coldstream: reading s3://b/org/m from the stream of this node": "created",
    "[2026-11-30 16:00:12 TP0] Load weight end. elapsed=2.41 s, type=LlamaForCausalLM, avail mem=60.00 GB, "
    "mem usage=18.50 GB.": "weights",
    "[2026-11-30 16:00:13 TP0] Memory pool end. avail mem=8.02 GB": "sized",
    "[2026-11-30 16:00:14 TP0] Capture target prefill CUDA graph begin. backend=full, num_tokens=[4]": None,
    "[2026-11-30 16:00:19 TP0] Capture target decode CUDA graph end. bs=[1, 2], elapsed=4.75 s, mem usage=0.5 GB, "
    "avail mem=7.5 GB.": "captured",
    "[2026-11-30 16:00:19 TP0] max_total_num_tokens=453981, chunked_prefill_size=8192, max_prefill_tokens=16384, "
    "max_running_requests=4096, context_len=131072, available_gpu_mem=7.50 GB": "initialised",
    "[2026-11-30 16:00:20] The server is fired up and ready to roll!": None,
}


@pytest.mark.parametrize(("line", "mark"), LINES.items())
def test_marks(line: str, mark: str | None) -> None:
    assert READER.read_line(line).mark == mark


def test_figures() -> None:
    figures = {name: value for line in LINES for name, value in READER.read_line(line).figures.items()}
    assert figures == {"weights_seconds": 2.41, "graph_capture_seconds": 4.75, "kv_cache_tokens": 453981}


def reason(*lines: str) -> SglangFailure:
    failure = SglangFailure()
    for line in lines:
        failure.line(line)
    return failure


def test_the_exception_of_a_scheduler_counts_and_not_that_it_died() -> None:
    failure = reason(
        "[2026-11-30 16:00:12 TP0] Scheduler hit an exception: Traceback (most recent call last):",
        '  File "/sgl-workspace/sglang/python/sglang/srt/managers/scheduler.py", line 6300, in run',
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB",
        "",
        "[2026-11-30 16:00:13] Received sigquit from a child process. It usually means the child failed.",
        "RuntimeError: Rank 0 scheduler died during initialization (exit code: -9). If exit code is -9, …",
    )
    assert failure.text == "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB"
    assert failure.hint is None


def test_our_own_error_needs_no_class() -> None:
    assert reason("coldstream.errors.IntegrityError: model-1.safetensors: …").text == "model-1.safetensors: …"


def test_wrong_arguments_are_named_without_their_values() -> None:
    failure = reason("usage: sglang serve [-h] ...", "sglang serve: error: unrecognized arguments: --api-kye s3cr3t")
    assert failure.text == "error: unrecognized arguments: --api-kye"


def test_an_sglang_without_coldstream_has_a_hint() -> None:
    failure = reason("safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata")
    assert failure.text is not None
    assert "install coldstream in SGLang's own environment" in (failure.hint or "")
