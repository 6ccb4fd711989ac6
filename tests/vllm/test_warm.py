"""The warm-start bundle with a real vLLM that compiles: the second node compiles nothing, and answers the same."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from coldstream.places.opening import open_store
from coldstream.settings import load_settings
from tests.conftest import fresh_bucket
from tests.e2e.command import Command
from tests.servers.stores import S3Server
from tests.vllm.conftest import clean_environ
from tests.vllm.test_serve import Serving, serving

FLAGS = ("--max-num-batched-tokens", "256")
_PUBLISH_SECONDS = 60


def wait_for(serve: Serving, text: str) -> None:
    deadline = time.monotonic() + _PUBLISH_SECONDS
    while text not in serve.log:
        assert time.monotonic() < deadline, serve.log[-3000:]
        time.sleep(0.1)


def test_the_next_node_compiles_nothing(moto: S3Server, model: Callable[[str], Path], tmp_path: Path) -> None:
    command = Command(moto, fresh_bucket(moto), cwd=tmp_path)
    command.run("upload", str(model("llama")), "--as", "org/llama")
    given = moto.environ(command.environ["R2_BUCKET"]) | {"COLDSTREAM_BUNDLE_KEY": "k" * 40, "VLLM_CACHE_ROOT": ""}
    options = {"environ": clean_environ(**given), "folder": tmp_path, "vllm": FLAGS, "eager": False, "own_worker": True}
    with serving("org/llama", **options) as first:
        first.wait_until_ready()
        wait_for(first, "warm-start bundle: published")
        said = first.says("org/llama")
        first.end()
    (bundle,) = json.loads(command.run("bundle", "list", "--json")[0])["bundles"]
    assert bundle["bundle"]["archive"]["files"] > 5
    assert bundle["bundle"]["reads"]["size"] > 10_000, "thousands of files were read"
    shutil.rmtree(tmp_path / "cache")

    with serving("org/llama", **options) as second:
        second.wait_until_ready()
        assert "warm-start bundle: restored" in second.log
        assert second.says("org/llama") == said
        second.end()
    assert "did not spare compiling" not in second.log
    store = open_store(load_settings(given, environ={}))
    assert len([info for info in store.list(".coldstream/") if info.key.endswith(".gz")]) == 1, "nothing new to publish"
