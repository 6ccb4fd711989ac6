"""SGLang's own models on the CPU have the same parameters as with SGLang's own loader: streamed, reloaded, split."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import coldstream
from coldstream.loading.options import Options
from coldstream.node.http_endpoint import free_port
from coldstream.node.load_service import VARIABLE, LoadService
from coldstream.settings import load_settings
from tests.servers.ranged import RangedServer
from tests.sglang.conftest import begin_inside, finish
from tests.vllm.test_tokens import served

MODELS = ("llama", "tied-llama", "qwen3", "mixtral")


@contextmanager
def prepared(folder: Path, cache: Path) -> Iterator[tuple[str, RangedServer, str]]:
    """A model on a server, and our folder for an engine: the folder, the server, and the URI."""
    settings = load_settings({"COLDSTREAM_CACHE_DIR": str(cache), "COLDSTREAM_CACHE_LIMIT": "20GB"}, environ={})
    with RangedServer(served(folder)) as server:
        uri = f"{server.url}/m"
        yield coldstream.prepare(uri, settings=settings), server, uri


def results(jobs: dict[str, str], folder: Path, world: int = 1, **environ: str) -> list[dict[str, Any]]:
    """What each of `world` processes says of the jobs."""
    folder.mkdir()
    (folder / "jobs.json").write_text(json.dumps(jobs))
    port = free_port()
    outs = [folder / f"{rank}.json" for rank in range(world)]
    words = ("tests.sglang.inside", folder / "jobs.json")
    finish(*(begin_inside(*words, out, str(rank), str(world), str(port), **environ) for rank, out in enumerate(outs)))
    return [json.loads(out.read_text()) for out in outs]


def test_parameters_equal_those_of_sglang_s_own_loader(model: Callable[[str], Path], tmp_path: Path) -> None:
    jobs: dict[str, str] = {}
    with ExitStack() as stack:
        for name in MODELS:
            folder, _, _ = stack.enter_context(prepared(model(name), tmp_path / f"cache-{name}"))
            jobs |= {f"{name} own": str(model(name)), f"{name} streamed": folder}
        (found,) = results(jobs, tmp_path / "jobs", COLDSTREAM_CACHE_DIR=str(tmp_path / "cache"))
    for name in MODELS:
        own = found[f"{name} own"]
        assert "error" not in own, own
        assert len(set(own["first"].values())) > 10
        assert own["reloaded"] == own["first"]
        assert found[f"{name} streamed"] == own, name


def test_two_ranks_read_one_stream(model: Callable[[str], Path], tmp_path: Path) -> None:
    """The service's first load begins before SGLang does, and is for both; without a service they share too."""
    settings = load_settings({"COLDSTREAM_CACHE_DIR": str(tmp_path / "cache")}, environ={})
    weights = sum(path.stat().st_size for path in model("mixtral").glob("*.safetensors"))
    with prepared(model("mixtral"), tmp_path / "cache") as (folder, server, uri):
        jobs = {"own": str(model("mixtral")), "streamed": folder, "alone": folder}
        environ = {"COLDSTREAM_CACHE_DIR": str(tmp_path / "cache"), "COLDSTREAM_CACHE_LIMIT": "0"}
        with LoadService(uri, options=Options(settings=settings, cache=False, metrics=False)) as service:
            service.begin(consumers=2)
            found = results(jobs, tmp_path / "jobs", 2, **environ, **{VARIABLE: service.address})
            assert not service.failures
            assert [share.wait(0) is not None for share in service.of_start] == [True]
    for rank in found:
        assert "error" not in rank["own"], rank["own"]
        assert rank["streamed"] == rank["alone"] == rank["own"]
    assert found[0]["own"]["first"] != found[1]["own"]["first"]
    # A start and a reload, with the service and without it, for both ranks.
    assert sum(request.sent for request in server.requests) < 4.4 * weights
