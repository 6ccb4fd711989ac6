"""Runs in vLLM's environment: engines one after another in one process, which spares their imports.

    .venv-vllm/bin/python -m tests.vllm.inside

Each line of standard input is a folder with jobs.json, and results.json is written there. A job is `{"id", "model" or
"uri", "format", "cache", "pooling", "reload", "extra", "draft" or "draft_uri"}`; its result is what the model said:
tokens, or embeddings, and again after a reload; or the error.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def main(folder: Path) -> None:
    """Does the jobs of a folder."""
    results: dict[str, Any] = {}
    for job in json.loads((folder / "jobs.json").read_text()):
        os.environ["COLDSTREAM_CACHE_DIR"] = job.get("cache", "")
        try:
            results[job["id"]] = said(job)
        except Exception as exc:  # the test wants to see it
            results[job["id"]] = {"error": f"{type(exc).__name__}: {exc}"}
        gc.collect()
    part = folder / "results.part"
    part.write_text(json.dumps(results))
    part.rename(folder / "results.json")


def said(job: dict[str, Any]) -> dict[str, Any]:
    """What the model of one job says."""
    import coldstream
    from vllm import LLM

    model = job["model"] if "model" in job else coldstream.prepare(job["uri"])
    draft = coldstream.prepare(job["draft_uri"]) if "draft_uri" in job else job.get("draft")
    engine = LLM(
        model=model,
        load_format=job["format"],
        model_loader_extra_config=job.get("extra", {}),
        enforce_eager=True,
        max_model_len=256,
        distributed_executor_backend="uni",
        disable_log_stats=False,
        speculative_config={"model": draft, "num_speculative_tokens": 3} if draft else None,
        **({"runner": "pooling", "dtype": "float32"} if job.get("pooling") else {}),
    )
    found = {"first": answers(engine, job)}
    if draft:
        found["accepted"] = accepted(engine)
    if job.get("reload"):
        engine.collective_rpc("reload_weights")
        found["reloaded"] = answers(engine, job)
    return found


def answers(engine: Any, job: dict[str, Any]) -> Any:
    """Greedy tokens, or embeddings."""
    from tests.vllm.models import PROMPTS
    from vllm import SamplingParams

    if job.get("pooling"):
        return [output.outputs.embedding for output in engine.embed(list(PROMPTS), use_tqdm=False)]
    greedy = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    return [list(output.outputs[0].token_ids) for output in engine.generate(list(PROMPTS), greedy, use_tqdm=False)]


def accepted(engine: Any) -> float:
    """How many of the draft model's tokens the model accepted."""
    names = {"vllm:spec_decode_num_accepted_tokens"}
    return sum(metric.value for metric in engine.get_metrics() if metric.name in names)


if __name__ == "__main__":
    for line in sys.stdin:
        main(Path(line.rstrip("\n")))
