"""What runs, for whom it can be reached, and what its caches depend on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from coldstream.engines.sglang.sglang_caches import SglangCaches
from coldstream.engines.sglang.sglang_engine import SglangEngine
from coldstream.engines.sglang.sglang_program import SglangEndpoint, SglangFlags, SglangProgram
from coldstream.errors import ConfigError, NotFoundError, UsageError
from coldstream.loading.options import Options
from coldstream.machine.child_environment import CREDENTIALS
from coldstream.model.names import Uri
from coldstream.node.child import Command
from coldstream.node.inference_engine import ServeRequest
from coldstream.node.load_service import VARIABLE

ENTRY = ("-P", "-m", "coldstream.engines.sglang.sglang_entry")


@pytest.fixture
def program(tmp_path: Path) -> str:
    """An SGLang with coldstream beside it, as its image has it: editable, so that its modules are elsewhere."""
    site = tmp_path / "lib/python3.12/dist-packages"
    for name in ("sglang-0.5.23", "coldstream-0.1.0", "torch-2.14.1"):
        (site / f"{name}.dist-info").mkdir(parents=True)
    path = tmp_path / "bin/sglang"
    path.parent.mkdir()
    path.write_text("#!/usr/bin/python3\n")
    path.chmod(0o755)
    return str(path)


def engine(program: str | None, *arguments: str, loader: str = "coldstream") -> SglangEngine:
    request = ServeRequest(uri=Uri("org/m"), arguments=arguments, loader=loader, options=Options(), program=program)
    return SglangEngine(request)


def streamed(program: str, model: Path, *arguments: str) -> Command:
    return engine(program, *arguments).streaming_command(model, "/tmp/x/loads", "/tmp/x")


def test_only_what_is_missing_is_added(program: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    command = streamed(program, model, "--port", "1", "--load-format", "safetensors")
    assert command.arguments == (
        *("/usr/bin/python3", *ENTRY, "serve", "--model-path", str(model)),
        *("--served-model-name", "org/m", "--enable-metrics", "--port", "1", "--load-format", "safetensors"),
    )
    assert command.environment == {VARIABLE: "/tmp/x/loads"}
    assert {*command.without} == CREDENTIALS
    arguments = ("--served-model-name=mine", "--enable-metrics")
    assert streamed(program, model, *arguments).arguments[-2:] == arguments
    with pytest.raises(UsageError, match="--load-format gguf"):
        streamed(program, model, "--load-format", "gguf")
    (model / "config.json").unlink()
    with pytest.raises(UsageError, match=r"no config\.json"):
        streamed(program, model)


def test_the_key_is_passed_on_in_the_environment_only(
    program: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "s3cr3t")
    command = streamed(program, model)
    assert "s3cr3t" not in " ".join([*command.arguments, *command.shown_environment()])
    assert {*command.without} == CREDENTIALS - {"VLLM_API_KEY"}
    # The user's own key wins.
    assert {*streamed(program, model, "--api-key", "mine").without} == CREDENTIALS
    (Path(program).parents[1] / "lib/python3.12/dist-packages/coldstream-0.1.0.dist-info").rmdir()
    with pytest.raises(ConfigError, match="VLLM_API_KEY"):
        streamed(program, model)


def test_what_it_is(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(program, "--tp", "4", "--pp-size=2", "--nnodes", "2", "--node-rank", "0")
    assert (made.version, made.ranks, made.has_api, made.is_headless, made.api_name) == (
        *("0.5.23", 4, True, False),
        "org/m",
    )
    assert made.warnings({}) == []
    follower = engine(program, "--nnodes", "2", "--node-rank", "1")
    assert (follower.has_api, follower.is_headless) == (False, True)
    assert not engine(program, "--help").has_api
    assert not engine(program, "--device", "cpu").uses_gpus
    with pytest.raises(UsageError, match="--loader runai is for vLLM"):
        engine(program, loader="runai")
    adapters = ("all", "on-demand")
    request = ServeRequest(uri=Uri("org/m"), arguments=(), loader="coldstream", options=Options(), adapters=adapters)
    with pytest.raises(UsageError, match="--adapters on-demand is for vLLM") as refused:
        SglangEngine(request)
    assert refused.value.hint == "name the adapters, or pass: --adapters all"
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NotFoundError, match="SGLang is not installed") as missing:
        engine(None)
    assert "--sglang PATH" in (missing.value.hint or "")


def test_a_draft_model_that_is_not_in_a_folder_comes_from_the_hub(program: str, tmp_path: Path) -> None:
    flag = "--speculative-draft-model-path"
    (warning,) = engine(program, flag, "org/draft").warnings({})
    assert "SGLang reads the draft model org/draft from the Hub itself" in warning
    assert "`coldstream download org/draft`" in warning
    assert engine(program, "--speculative-draft-model", "org/draft").warnings({}) == [warning]
    assert engine(program, flag, str(tmp_path)).warnings({}) == engine(program, flag, "./draft").warnings({}) == []


def test_adapters_are_named_by_their_folders(program: str, model: Path) -> None:
    def flags(*arguments: str, count: int = 2) -> tuple[str, ...]:
        made = engine(program, *arguments)
        assert made.needs_adapter_folders
        paths = {f"org/{number}": f"/cache/{number}" for number in range(count)}
        made.add_adapters(paths, rank_max=16, on_demand=False, update_seconds=60)
        command = made.streaming_command(model, "/tmp/x/loads", "/tmp/x").arguments
        return command[command.index("--enable-metrics") + 1 :]

    ours = ('{"lora_name": "org/0", "lora_path": "/cache/0"}', '{"lora_name": "org/1", "lora_path": "/cache/1"}')
    assert flags() == ("--lora-paths", *ours, "--enable-lora", "--max-loras-per-batch", "3")
    own = ("--lora-paths", "x=/x", "--port", "1", "--max-loras-per-batch", "2")
    assert flags(*own) == (*own[2:], "--lora-paths", "x=/x", *ours, "--enable-lora")
    assert flags(count=20)[-1] == "8", "as many as SGLang itself would reserve memory for"
    assert flags(count=0) == ()
    assert engine(program).adapter_rank_max(24) == 24
    assert engine(program, "--max-lora-rank=16").adapter_rank_max(24) == 16


def test_warnings(program: str) -> None:
    site = Path(program).parents[1] / "lib/python3.12/dist-packages"
    (site / "sglang-0.5.23.dist-info").rename(site / "sglang-0.5.12.dist-info")
    (site / "coldstream-0.1.0.dist-info").rmdir()
    version, missing, plugins = engine(program).warnings({"SGLANG_PLUGINS": "other"})
    assert version == "SGLang 0.5.12 has not been tested with coldstream, which supports 0.5.23"
    assert "coldstream is not installed" in missing
    assert "SGLANG_PLUGINS" in plugins
    assert "SGLANG_PLUGINS" not in " ".join(engine(program).warnings({"SGLANG_PLUGINS": "other, coldstream"}))


@pytest.mark.parametrize(
    ("arguments", "environ", "url", "is_exposed"),
    [
        ((), {}, "http://127.0.0.1:30000", False),
        (("--host", "0.0.0.0", "--port", "8000"), {}, "http://127.0.0.1:8000", True),
        (("--host", "::", "--api-key", "k"), {}, "http://[::1]:30000", False),
        (("--host=10.0.0.1",), {"VLLM_API_KEY": "k"}, "http://10.0.0.1:30000", False),
        (("--ssl-certfile", "c", "--ssl-keyfile", "k"), {}, "https://127.0.0.1:30000", False),
    ],
)
def test_where_it_answers(arguments: tuple[str, ...], environ: Mapping[str, str], url: str, is_exposed: bool) -> None:
    endpoint = SglangEndpoint.of(SglangFlags(arguments), environ)
    assert endpoint.url == url
    assert (endpoint.exposure is not None) == is_exposed


def test_its_requests_are_counted_in_its_metrics() -> None:
    metrics = (
        "# HELP sglang:num_running_reqs The number of running requests.\n"
        'sglang:num_running_reqs{engine_type="unified",model_name="m",tp_rank="0"} 2.0\n'
        'sglang:num_queue_reqs{engine_type="unified",model_name="m",tp_rank="0"} 3.0\n'
        'sglang:num_grammar_queue_reqs{model_name="m"} 7.0\n'
    )
    assert SglangEndpoint.requests_line.findall(metrics) == ["2.0", "3.0"]


def test_what_its_caches_depend_on() -> None:
    program = SglangProgram(
        path="/bin/sglang", version="0.5.23", compiled=True, packages={"sglang": "0.5.23", "torch": "2.14.1"}
    )
    flags = SglangFlags(("--tp", "2", "--api-key", "s3cr3t", "--port", "1", "--quantization", "fp8"))
    parts = SglangCaches().key_parts(
        program, flags, {"SGLANG_CACHE_DIR": "/x", "SGLANG_DG_USE_NVRTC": "1", "HOME": "/"}
    )
    assert (parts["sglang"], parts["torch"], parts["tensor-parallel"]) == ("0.5.23", "2.14.1", "2")
    assert parts["arguments"] == "--quantization=fp8"
    assert parts["environment"] == "SGLANG_DG_USE_NVRTC=1"


def test_where_its_caches_are() -> None:
    layout = SglangCaches()
    variables = layout.environment("/c", {"TRITON_CACHE_DIR": "/mine", "SGLANG_CACHE_DIR": "/mine"})
    assert variables["SGLANG_CACHE_DIR"] == "/c/sglang"
    assert variables["SGLANG_DG_CACHE_DIR"] == "/c/deep_gemm"
    assert "TRITON_CACHE_DIR" not in variables
    assert layout.is_compiled("sglang/jit/sm90/x.so")
    assert not layout.is_compiled("sglang/gpu_p2p_access_cache_for_0.json")
    assert not layout.keeps("sglang/ple/table.bin")
    assert not layout.keeps("deep_gemm/locks/a")
    assert layout.keeps("sglang/gpu_p2p_access_cache_for_0.json")
