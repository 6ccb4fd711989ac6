"""Which adapters a start has: those named, all of its model, those in vLLM's own flags, and others on demand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coldstream.engines.sglang.sglang_engine import SglangEngine
from coldstream.engines.vllm.vllm_engine import VllmEngine
from coldstream.errors import ConfigError, NotFoundError, UsageError
from coldstream.loading.options import Options
from coldstream.model.names import Uri
from coldstream.node.adapter_service import AdapterService
from coldstream.node.inference_engine import ServeRequest
from coldstream.node.serve_adapters import serve_adapters
from coldstream.places.opening import open_model_reader
from coldstream.settings import Settings, load_settings
from tests.adapters import BASE, adapter_files, base_files, llama_shapes
from tests.unit.mirror.stored_models import folder_store, send


class Start:
    """A start whose flags are known, and what it says."""

    engine_type: type[VllmEngine | SglangEngine] = VllmEngine

    def __init__(
        self, tmp_path: Path, *arguments: str, loader: str = "coldstream", uri: str = BASE, **settings: str
    ) -> None:
        program = tmp_path / "bin/vllm"
        program.parent.mkdir(exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        self.said: list[str] = []
        self.settings: Settings = load_settings(
            {
                "COLDSTREAM_STORE": folder_store(tmp_path).uri,
                "COLDSTREAM_CACHE_DIR": str(tmp_path / "cache"),
                "COLDSTREAM_RETRY_SECONDS": "1",
                **settings,
            },
            environ={},
        )
        self._given = {"arguments": arguments, "loader": loader, "program": str(program)}
        self._uri = uri
        self.model = tmp_path / "model"
        self.model.mkdir(exist_ok=True)
        (self.model / "config.json").write_text("{}")

    def serve(self, *adapters: str) -> AdapterService | None:
        request = ServeRequest(uri=Uri(self._uri), options=Options(), adapters=adapters, **self._given)  # type: ignore[arg-type]
        self.engine = self.engine_type(request)
        base = open_model_reader(self._uri, self.settings).checkpoint() if self._uri == BASE else None
        return serve_adapters(request, self.settings, self.engine, base, say=self.said.append)

    def flag(self, name: str) -> list[str]:
        """The values of a flag of the command that runs, and [] without it."""
        self.command = self.engine.streaming_command(self.model, "/tmp/x/loads", "/tmp/x")
        arguments = [*self.command.arguments, "--"]
        if name not in arguments:
            return []
        rest = arguments[arguments.index(name) + 1 :]
        return rest[: next(index for index, argument in enumerate(rest) if argument.startswith("--"))]

    def modules(self) -> dict[str, str]:
        return {module["name"]: module["path"] for module in map(json.loads, self.flag("--lora-modules"))}


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    """A base with two adapters, one of another base, and one that vLLM does not support."""
    store = folder_store(tmp_path)
    send(store, tmp_path, base_files(), BASE)
    send(store, tmp_path, adapter_files(rank=8), "org/a")
    send(store, tmp_path, adapter_files(rank=20), "org/b")
    send(store, tmp_path, adapter_files("org/other-base"), "org/other")
    send(store, tmp_path, adapter_files(use_dora=True), "org/dora")
    return tmp_path


def test_without_adapters_nothing_changes(bucket: Path) -> None:
    start = Start(bucket)
    assert start.serve() is None
    assert start.flag("--enable-lora") == start.flag("--max-loras") == []
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in start.command.environment


def test_those_that_are_named_are_served_under_their_names(bucket: Path) -> None:
    start = Start(bucket)
    service = start.serve("org/a", "org/b")
    assert service is not None
    assert start.modules() == {"org/a": "org/a", "org/b": "org/b"}
    assert start.flag("--max-lora-rank") == ["32"]
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in start.command.environment
    folder = Path(service.folder("org/a", on_demand=False))
    assert json.loads((folder / "adapter_config.json").read_bytes())["r"] == 8
    with pytest.raises(NotFoundError, match="org/other is not served"):
        service.folder("org/other", on_demand=True)


def test_all_are_those_of_the_model(bucket: Path) -> None:
    start = Start(bucket)
    start.serve("all")
    assert [*start.modules()] == ["org/a", "org/b"]
    (warning,) = (line for line in start.said if line.startswith("warning"))
    assert "adapter org/dora is left out: " in warning


def test_on_demand_none_is_loaded_at_the_start(bucket: Path) -> None:
    start = Start(bucket)
    service = start.serve("on-demand")
    assert service is not None
    assert start.flag("--lora-modules") == []
    assert start.flag("--max-lora-rank") == ["64"]
    assert start.command.environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert service.folder("org/b", on_demand=True)
    with pytest.raises(UsageError, match="org/other is an adapter of org/other-base"):
        service.folder("org/other", on_demand=True)


def test_on_demand_new_versions_are_looked_for(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(*adapters: str, version: str | None = "0.32.0", **settings: str) -> str:
        start = Start(bucket, **settings)
        request_engine = VllmEngine.__init__

        def init(self: VllmEngine, request: ServeRequest) -> None:
            request_engine(self, request)
            self.version = version

        with monkeypatch.context() as patch:
            patch.setattr(VllmEngine, "__init__", init)
            start.serve(*adapters)
        start.flag("--lora-modules")
        return start.command.environment["COLDSTREAM_ADAPTER_SECONDS"]

    assert seconds("on-demand") == seconds("on-demand", version=None) == "60"
    assert seconds("org/a", "on-demand", COLDSTREAM_ADAPTER_SECONDS="2.5") == "2.5"
    assert seconds("on-demand", COLDSTREAM_ADAPTER_SECONDS="0") == "0"
    # vLLM may have several API servers, which do not know of each other; or takes two versions for one.
    assert seconds("org/a") == seconds("on-demand", version="0.30.1") == "0"
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    assert seconds("org/a") == "60"
    with pytest.raises(ConfigError, match="COLDSTREAM_ADAPTER_SECONDS: '-1' is not a number of seconds"):
        seconds("org/a", COLDSTREAM_ADAPTER_SECONDS="-1")


@pytest.mark.parametrize(
    ("adapters", "arguments", "error", "message"),
    [
        (("org/absent",), (), NotFoundError, "there is no model org/absent"),
        ((BASE,), (), NotFoundError, "org/base is not an adapter"),
        (("org/other",), (), UsageError, "org/other is an adapter of org/other-base, not of org/base"),
        (("org/dora",), (), UsageError, "org/dora cannot be served: "),
        (("org/b",), ("--max-lora-rank", "16"), UsageError, "org/b has the rank 20, and .* up to 16"),
        (("../a",), (), UsageError, "is not a model's name"),
    ],
)
def test_what_cannot_be_served_ends_the_start(
    adapters: tuple[str, ...], arguments: tuple[str, ...], error: type[Exception], message: str, bucket: Path
) -> None:
    with pytest.raises(error, match=message):
        Start(bucket, *arguments).serve(*adapters)


MISFIT = "model.layers.0.self_attn.q_proj is for a weight of the shape [16, 16], and the base's has [32, 32]"


def test_one_whose_tensors_do_not_fit_ends_the_start_if_it_was_named(bucket: Path) -> None:
    send(folder_store(bucket), bucket, adapter_files(shapes=llama_shapes(hidden=16)), "org/small")
    for flags, names in (((), ("org/a", "org/small")), (("--enable-lora", "--lora-modules", "x=org/small"), ())):
        with pytest.raises(UsageError) as caught:
            Start(bucket, *flags).serve(*names)
        assert caught.value.message == f"org/small does not fit org/base: {MISFIT}"
        assert caught.value.hint == "see: coldstream doctor org/small"
    assert not list((bucket / "cache").glob("**/adapter_model.safetensors")), "before anything is copied"


def test_one_of_all_whose_tensors_do_not_fit_is_left_out(bucket: Path) -> None:
    send(folder_store(bucket), bucket, adapter_files(shapes=llama_shapes(layers=3)), "org/deep")
    start = Start(bucket)
    start.serve("all")
    assert [*start.modules()] == ["org/a", "org/b"]
    left_out = "warning: adapter org/deep is left out: org/deep does not fit org/base: "
    assert f"{left_out}model.layers.2.self_attn.q_proj is not in the base" in start.said


def test_one_whose_tensors_do_not_fit_is_not_loaded_on_demand(bucket: Path) -> None:
    send(folder_store(bucket), bucket, adapter_files(shapes=llama_shapes(hidden=16)), "org/small")
    service = Start(bucket).serve("on-demand")
    assert service is not None
    with pytest.raises(UsageError, match=r"org/small does not fit org/base: .*q_proj is for a weight of the shape"):
        service.folder("org/small", on_demand=True)


def test_another_loader_has_no_service(bucket: Path) -> None:
    with pytest.raises(UsageError, match="--adapters needs the loader coldstream"):
        Start(bucket, loader="runai").serve("org/a")
    assert Start(bucket, "--lora-modules", "a=org/a", loader="runai").serve() is None


def test_vllm_s_own_flags_may_name_adapters_of_the_bucket(bucket: Path, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.mkdir()
    module = json.dumps({"name": "y", "path": "org/b", "base_model_name": BASE})
    flags = ("--lora-modules", f"x={folder_store(tmp_path).uri}/org/a", module, f"z={local}", "hub=org/on-the-hub")
    start = Start(bucket, *flags, "--max-lora-rank", "32")
    assert start.serve() is not None
    assert start.modules() == {"x": "org/a", "y": "org/b", "z": str(local), "hub": "org/on-the-hub"}
    assert json.loads(start.flag("--lora-modules")[1])["base_model_name"] == BASE
    # Otherwise vLLM's defaults stay.
    assert start.flag("--max-loras") == start.flag("--enable-lora") == []
    with pytest.raises(UsageError, match="org/b has the rank 20, and the server accepts ranks up to 16"):
        Start(bucket, "--lora-modules", "y=org/b").serve()
    with pytest.raises(NotFoundError):
        Start(bucket, "--lora-modules", f"x={folder_store(tmp_path).uri}/org/absent").serve()


def test_a_local_adapter_beside_them_may_have_vllm_s_default_rank(bucket: Path, tmp_path: Path) -> None:
    start = Start(bucket, "--lora-modules", f"z={tmp_path}")
    start.serve("org/a")
    assert start.flag("--max-lora-rank") == ["16"]
    enabled = Start(bucket, "--enable-lora")
    assert enabled.serve() is not None
    assert enabled.flag("--max-lora-rank") == enabled.flag("--lora-modules") == []


def test_sglang_gets_the_folders_of_complete_copies(bucket: Path) -> None:
    start = Start(bucket)
    start.engine_type = SglangEngine
    service = start.serve("org/a", "org/b")
    assert service is not None
    folders = {}
    for text in start.flag("--lora-paths"):
        adapter = json.loads(text)
        folders[adapter["lora_name"]] = Path(adapter["lora_path"])
    assert [*folders] == ["org/a", "org/b"]
    assert all((folder / "adapter_model.safetensors").stat().st_size for folder in folders.values())
    assert start.flag("--max-loras-per-batch") == ["3"]
    with pytest.raises(UsageError, match=r"org/dora cannot be served: .*which SGLang does not support"):
        start.serve("org/dora")
    with pytest.raises(NotFoundError):
        start.serve("org/absent")


def test_a_folder_s_adapters_are_not_compared_with_its_name(bucket: Path) -> None:
    start = Start(bucket, uri=str(bucket / "sources/org/base"))
    start.serve("org/other")
    assert start.modules() == {"org/other": "org/other"}
