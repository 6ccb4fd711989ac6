"""LoRA adapters from the bucket give the tokens that vLLM gives with the same adapters in local folders."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.adapters import adapter_files, llama_shapes
from tests.conftest import fresh_bucket
from tests.e2e.command import Command
from tests.models import write_model
from tests.servers.stores import S3Server
from tests.vllm.conftest import PYTHON, clean_environ
from tests.vllm.models import CONTEXT, HIDDEN
from tests.vllm.test_serve import Serving, serving

BASE = "org/llama"
MODULES = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")
# Those in the bucket under org/…; `new` is what replaces `a`.
RANKS = {"a": 8, "b": 16, "c": 12, "new": 8}


class Adapters:
    """A bucket with a base and adapters, and the same adapters in folders."""

    def __init__(self, server: S3Server, base: Path, tmp_path: Path) -> None:
        self.bucket = fresh_bucket(server)
        self.command = Command(server, self.bucket, cwd=tmp_path)
        self.environ = server.environ(self.bucket)
        self.command.run("upload", str(base), "--as", BASE)
        shapes = llama_shapes(layers=4, hidden=HIDDEN)
        self.folders = {
            name: write_model(
                tmp_path / "adapters" / name, adapter_files(BASE, rank=rank, modules=MODULES, shapes=shapes, seed=seed)
            )
            for seed, (name, rank) in enumerate(RANKS.items())
        }
        self.folders["other"] = write_model(tmp_path / "adapters/other", adapter_files("org/other-base"))
        small = adapter_files(BASE, shapes=llama_shapes(layers=4, hidden=HIDDEN // 2))
        self.folders["small"] = write_model(tmp_path / "adapters/small", small)
        for name in ("a", "b", "c", "other", "small"):
            self.upload(name, f"org/{name}")

    def upload(self, name: str, stored: str) -> None:
        self.command.run("upload", str(self.folders[name]), "--as", stored)

    def remove(self, stored: str) -> None:
        self.command.run("remove", stored, "--yes")

    def local_flags(self, *names: str) -> tuple[str, ...]:
        """vLLM's flag for the adapters in folders."""
        return ("--lora-modules", *(f"local-{name}={self.folders[name]}" for name in names))


@pytest.fixture
def adapters(rclone: S3Server, model: Callable[[str], Path], tmp_path: Path) -> Adapters:
    return Adapters(rclone, model("llama"), tmp_path)


def post(server: Serving, path: str, **body: object) -> tuple[int, str]:
    """The status and the text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def load(server: Serving, name: str, path: str, **more: object) -> tuple[int, str]:
    return post(server, "/v1/load_lora_adapter", lora_name=name, lora_path=path, **more)


def long_text(server: Serving, name: str) -> str:
    """What the model says in some seconds."""
    answer = server.ask(
        "/v1/completions", model=name, prompt="the river", max_tokens=600, temperature=0, ignore_eos=True
    )
    return str(answer["choices"][0]["text"])


def unload(server: Serving, name: str) -> None:
    assert post(server, "/v1/unload_lora_adapter", lora_name=name)[0] == 200


def test_at_the_start_on_demand_by_the_api_and_after_an_update(adapters: Adapters, tmp_path: Path) -> None:
    """coldstream serve org/llama --adapters org/a,on-demand"""
    environ = clean_environ(**adapters.environ, COLDSTREAM_ADAPTER_SECONDS="0.2")
    flags = (*adapters.local_flags(*RANKS), "--max-model-len", str(CONTEXT))
    options = {"environ": environ, "folder": tmp_path, "vllm": flags, "own_worker": True}
    with serving(BASE, "--adapters", "org/a,on-demand", **options) as server:
        server.wait_until_ready()
        own = {name: server.says(f"local-{name}") for name in RANKS}
        assert len({*own.values(), server.says(BASE)}) == 5, own
        assert server.says("org/a") == own["a"]
        assert server.says("org/b") == own["b"]
        assert load(server, "mine", "org/c")[0] == 200
        assert load(server, "uri", f"s3://{adapters.bucket}/org/b")[0] == 200
        assert (server.says("mine"), server.says("uri")) == (own["c"], own["b"])
        _check_refusals(server, adapters)
        # A new version is served without a call, but not to a request that runs; a removed one stays.
        with ThreadPoolExecutor(1) as threads:
            running = threads.submit(long_text, server, "org/a")
            adapters.upload("new", "org/a")
            adapters.remove("org/b")
            deadline = time.monotonic() + 60
            while server.says("org/a") != own["new"]:
                assert time.monotonic() < deadline, server.log[-6000:]
            assert running.result() == long_text(server, "local-a")
        assert server.says("org/b") == own["b"]
        assert load(server, "org/a", "org/a", load_inplace=True)[0] == 200
        assert server.says("org/a") == own["new"]
        adapters.upload("c", "org/a")
        unload(server, "org/a")
        assert server.says("org/a") == own["c"]
        unload(server, "org/b")
        assert post(server, "/v1/completions", model="org/b", prompt="x")[0] == 404
        log = server.log
    assert "adapter org/b: " in log
    assert "adapter 'org/a' was updated" in log
    assert "adapter org/other was not loaded: org/other is an adapter of org/other-base, not of org/llama" in log
    assert environ["R2_SECRET_KEY"] not in log


def _check_refusals(server: Serving, adapters: Adapters) -> None:
    for unknown in ("org/absent", "../../etc", "/etc", f"s3://{adapters.bucket}/org/a"):
        status, text = post(server, "/v1/completions", model=unknown, prompt="x")
        assert (status, "does not exist" in text) == (404, True), text
    status, text = post(server, "/v1/completions", model="org/other", prompt="x")
    assert (status, "org/other is an adapter of org/other-base, not of org/llama" in text) == (400, True), text
    misfit = "org/small does not fit org/llama: model.layers.0.self_attn.q_proj"
    for status, text in (
        post(server, "/v1/completions", model="org/small", prompt="x"),
        load(server, "x", "org/small"),
    ):
        assert (status, misfit in text) == (400, True), text
    assert load(server, "x", "org/absent")[0] == 404
    for path in (str(adapters.folders["a"]), "s3://others/org/a", "org/other", "hf://org/a"):
        assert load(server, "x", path)[0] == 400, path


def test_with_two_ranks_and_by_vllm_s_own_flag(adapters: Adapters, tmp_path: Path) -> None:
    """coldstream serve org/llama --adapters all -- --tensor-parallel-size 2 --lora-modules x=s3://bucket/org/b"""
    environ = clean_environ(**adapters.environ)
    module = json.dumps({"name": "y", "path": "org/c", "base_model_name": BASE})
    flags = (*adapters.local_flags("a", "b", "c"), f"x=s3://{adapters.bucket}/org/b", module)
    ranks = ("--tensor-parallel-size", "2")
    with serving(BASE, "--adapters", "all", environ=environ, folder=tmp_path, vllm=(*flags, *ranks)) as server:
        server.wait_until_ready()
        own = {name: server.says(f"local-{name}") for name in ("a", "b", "c")}
        assert [server.says(name) for name in ("org/a", "x", "y")] == [own[name] for name in ("a", "b", "c")]
        assert "warning: adapter org/small is left out: org/small does not fit org/llama: " in server.log
        assert load(server, "z", "org/a")[0] == 404, "vLLM has no such route unless its variable is set"
        assert post(server, "/v1/completions", model="org/other", prompt="x")[0] == 404


_CODE = """
import asyncio, json, os, sys
from types import SimpleNamespace
import coldstream.engines.vllm
coldstream.engines.vllm.register()
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest
from vllm.lora.resolver import LoRAResolverRegistry
coldstream.engines.vllm.register()
loaded = []

class Engine:
    model_config = renderer = input_processor = None
    async def add_lora(self, request):
        loaded.append(request.lora_path)

async def load(path):
    models = OpenAIServingModels(Engine(), [SimpleNamespace(name="base", model_path="base")])
    answer = await models.load_lora_adapter(LoadLoRAAdapterRequest(lora_name="x", lora_path=path))
    return answer if isinstance(answer, str) else [answer.error.code, answer.error.message]

answers = [asyncio.run(load(path)) for path in sys.argv[1:]]
print("\\nFOUND", json.dumps([sorted(LoRAResolverRegistry.get_supported_resolvers()), answers, loaded]))
"""


def hooked(environ: Mapping[str, str], *paths: str) -> list[object]:
    """What vLLM's list of models does with paths: its resolvers, its answers, and the paths that its engine loads."""
    ended = subprocess.run(
        [str(PYTHON), "-c", _CODE, *paths], env=dict(environ), capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    result: list[object] = json.loads(ended.stdout.partition("\nFOUND ")[2])
    return result


def test_vllm_by_itself_loads_from_the_bucket_too(rclone: S3Server, tmp_path: Path) -> None:
    """vllm serve … --lora-modules a=s3://bucket/org/a"""
    bucket = fresh_bucket(rclone)
    command = Command(rclone, bucket, cwd=tmp_path)
    files = adapter_files(BASE)
    command.run("upload", str(write_model(tmp_path / "a", files)), "--as", "org/a")
    cache = tmp_path / "cache"
    environ = clean_environ(**rclone.environ(bucket), COLDSTREAM_CACHE_DIR=str(cache))
    resolvers, answers, loaded = hooked(
        environ, f"s3://{bucket}/org/a", f"s3://{bucket}/org/absent", "s3://others/org/a", "/some/folder", "org/a"
    )
    assert resolvers == []
    assert isinstance(loaded, list)
    assert (Path(loaded[0]) / "adapter_model.safetensors").read_bytes() == files["adapter_model.safetensors"]
    assert cache in Path(loaded[0]).parents
    assert loaded[1:] == ["/some/folder", "org/a"], "as vLLM does by itself"
    assert isinstance(answers, list)
    assert [answer[0] if isinstance(answer, list) else 200 for answer in answers] == [200, 404, 400, 200, 200]
    gone = clean_environ(COLDSTREAM_SERVICE=str(tmp_path / "no-socket"))
    resolvers, answers, loaded = hooked(gone, "org/a")
    assert (resolvers, loaded) == (["coldstream"], [])
    assert isinstance(answers, list)
    assert answers[0][0] == 503
    assert "the process that reads the bucket does not answer" in answers[0][1]
