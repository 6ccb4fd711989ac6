"""Speculative decoding with a draft model from the bucket: the same tokens and guesses as from local folders."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.conftest import fresh_bucket
from tests.e2e.command import Command
from tests.servers.ranged import RangedServer
from tests.servers.stores import S3Server
from tests.vllm.conftest import Offline, clean_environ
from tests.vllm.models import PROMPTS
from tests.vllm.test_serve import serving
from tests.vllm.test_tokens import served

ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"


def test_a_draft_model_streams_like_the_model(
    rclone: S3Server, model: Callable[[str], Path], offline: Offline, tmp_path: Path
) -> None:
    """coldstream upload, twice; coldstream serve org/llama -- --speculative-config '{"model": "org/draft"}'

    Before that, two prepared folders in one engine, without a load service.
    """
    target, draft = model("llama"), model("draft-llama")
    with RangedServer(served(target)) as first, RangedServer(served(draft)) as second:
        uris = {"uri": f"{first.url}/m", "draft_uri": f"{second.url}/m", "cache": str(tmp_path / "cache")}
        jobs = [
            {"id": "own", "model": str(target), "draft": str(draft), "format": "safetensors"},
            {"id": "prepared", "format": "coldstream", **uris},
            {"id": "local draft", "format": "coldstream", "draft": str(draft), **uris},
        ]
        jobs[2].pop("draft_uri")
        found = offline.run(jobs, tmp_path / "jobs")
    own = found["own"]
    assert own["accepted"] > 0, "the draft model guesses some tokens, so its weights count"
    assert found["prepared"] == own
    assert found["local draft"] == own

    command = Command(rclone, fresh_bucket(rclone), cwd=tmp_path)
    command.run("upload", str(target), "--as", "org/llama")
    command.run("upload", str(draft), "--as", "org/draft")
    environ = clean_environ(**rclone.environ(command.environ["R2_BUCKET"]))
    config = json.dumps({"model": "org/draft", "num_speculative_tokens": 3})
    with serving("org/llama", environ=environ, folder=tmp_path, vllm=("--speculative-config", config)) as both:
        both.wait_until_ready()
        asked = {"model": "org/llama", "max_tokens": 16, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        answers = [both.ask("/v1/completions", prompt=prompt, **asked) for prompt in PROMPTS]
        with urllib.request.urlopen(f"http://127.0.0.1:{both.port}/metrics", timeout=60) as answer:
            metrics = answer.read().decode()
        both.end()
        log = both.log
    assert [answer["choices"][0]["token_ids"] for answer in answers] == own["first"]
    accepted = [float(line.rpartition(" ")[2]) for line in metrics.splitlines() if line.startswith(f"{ACCEPTED}{{")]
    assert accepted
    assert accepted[0] >= own["accepted"], "and those of the first token's request"
    assert "· draft" in log
    assert "org/draft: " in log
    assert log.count("from the stream of this node") == 2
