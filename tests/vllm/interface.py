"""What coldstream uses of vLLM, looked up in vLLM's source, which is read and never run.

    python -m tests.vllm.interface WHEEL-OR-FOLDER ...     writes tests/golden/vllm/VERSION.json for each

So a version that cannot run here (vLLM's GPU builds, say) is compared with one that does. A record maps each name to
its parameters or bases, and each line of vLLM's log that `engines.vllm.vllm_log` waits for to where it stands.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from coldstream.engines.vllm import vllm_log as marks

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "tests/golden/vllm"
# What is used of what is imported, or without being imported: a module or a class, and names in it.
_ATTRIBUTES = """
vllm.config.load:LoadConfig load_format model_loader_extra_config
vllm.config:DeviceConfig device_type
vllm.config:ModelConfig model quantization
vllm.config:ParallelConfig tensor_parallel_size
vllm.config:VllmConfig device_config model_config parallel_config
vllm.distributed.parallel_state:GroupCoordinator cpu_group world_size
vllm.engine.arg_utils:EngineArgs add_cli_args data_parallel_size enforce_eager from_cli_args
vllm.engine.arg_utils:EngineArgs gpu_memory_utilization load_format max_model_len model_loader_extra_config
vllm.engine.arg_utils:EngineArgs pipeline_parallel_size served_model_name tensor_parallel_size
vllm.engine.arg_utils:EngineArgs enable_lora max_cpu_loras max_lora_rank max_loras
vllm.entrypoints.llm:LLM llm_engine
vllm.entrypoints.openai.models.serving: create_error_response
vllm.entrypoints.openai.models.serving:OpenAIServingModels load_lora_adapter static_lora_modules
vllm.entrypoints.openai.models.serving:OpenAIServingModels engine_client init_static_loras lora_id_counter
vllm.entrypoints.openai.models.serving:OpenAIServingModels lora_requests lora_resolver_lock
vllm.entrypoints.serve.lora.protocol:LoadLoRAAdapterRequest lora_name lora_path
vllm.envs: VLLM_ALLOW_RUNTIME_LORA_UPDATING
vllm.envs: VLLM_API_KEY VLLM_CACHE_ROOT VLLM_CPU_KVCACHE_SPACE VLLM_ENABLE_STARTUP_PLAN VLLM_NO_USAGE_STATS
vllm.envs: VLLM_PLUGINS VLLM_USE_AOT_COMPILE
vllm.lora.request:LoRARequest __eq__ __hash__ load_inplace lora_int_id lora_name lora_path
vllm.lora.resolver:LoRAResolver resolve_lora
vllm.model_executor.model_loader.base_loader:BaseModelLoader load_model
vllm.model_executor.model_loader: _LOAD_FORMAT_TO_MODEL_LOADER get_model_loader
vllm.model_executor.model_loader:DefaultModelLoader __init__ _get_weights_iterator _init_ep_weight_filter
vllm.model_executor.model_loader:DefaultModelLoader counter_before_loading_weights download_model
vllm.model_executor.model_loader:DefaultModelLoader get_all_weights load_weights local_expert_ids
vllm.model_executor.model_loader:DefaultModelLoader.Source allow_patterns_overrides is_unused_weight
vllm.model_executor.model_loader:DefaultModelLoader.Source model_or_path prefix subfolder
vllm.model_executor.model_loader:ShardedStateLoader save_model
vllm.platforms.interface:Platform is_cpu is_cuda
vllm.plugins: load_general_plugins
vllm.utils.gc_utils: freeze_gc_heap
vllm.v1.engine.llm_engine:LLMEngine vllm_config
"""
# Asked for with `getattr`, or a line without which two phases are one: since when they are there.
SINCE = {
    "vllm.model_executor.model_loader:DefaultModelLoader.Source.is_unused_weight": "0.32.0",
    "created": "0.32.0",
    "figure model_init_seconds": "0.32.0",
}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_FORMAT = re.compile(r"%[-.\d]*[a-zA-Z]")

Read = Callable[[str], str]


@cache
def uses() -> list[str]:
    """All names of vLLM that the package uses: "module:name" or "module:Class.attribute"."""
    found = set()
    for owner, *names in map(str.split, _ATTRIBUTES.split("\n")[1:-1]):
        found |= {owner + ("" if owner.endswith(":") else ".") + name for name in names}
    for path in (ROOT / "src/coldstream").rglob("*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "from vllm" in text else ():
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vllm":
                found |= {f"{node.module}:{alias.name}" for alias in node.names}
    return sorted(found)


def patterns() -> dict[str, str]:
    """The lines that the package waits for: name to regular expression."""
    found = {mark.name: mark.lines for mark in marks.MARKS}
    found |= {f"figure {name}": pattern.pattern for name, pattern in marks._FIGURES}
    metrics = [name.removesuffix("_sum") for name in marks._METRICS]
    return found | {name: f"^{name}$" for name in (*metrics, "vllm:num_requests_running", "vllm:num_requests_waiting")}


class Source:
    """A vLLM's source: installed below a folder, or in a wheel."""

    def __init__(self, place: Path) -> None:
        if place.is_dir():
            self.paths = sorted(str(path.relative_to(place)) for path in place.glob("vllm/**/*.py"))
            self.read: Read = lambda path: (place / path).read_text()
            (metadata,) = place.glob("vllm-*.dist-info")
            self.version = metadata.name.removesuffix(".dist-info").split("-")[1]
        else:
            wheel = zipfile.ZipFile(place)
            self.paths = sorted(name for name in wheel.namelist() if re.fullmatch(r"vllm/.*\.py", name))
            self.read = lambda path: wheel.read(path).decode()
            self.version = place.name.split("-")[1]
        self.version = self.version.partition("+")[0]
        self.tree = cache(lambda path: ast.parse(self.read(path)))
        self.texts = cache(lambda path: [*self._texts(path)])
        self._known = {*self.paths}

    def find(self, name: str) -> str | None:
        """What a name is: parameters, bases or "value"; None when it is not there."""
        module, _, rest = name.partition(":")
        first, *attributes = rest.split(".")
        place = self._definition(module, first)
        for attribute in attributes:
            place = place and self._attribute(*place, attribute)
        return place and _shown(place[1])

    def lines(self, pattern: str, paths: list[str]) -> list[str]:
        """Where texts stand that a pattern matches: "path: text"."""
        return [
            f"{path}: {text}"
            for path in paths
            for text in self.texts(path)
            if re.search(pattern, _FORMAT.sub("1", text))
        ]

    def _texts(self, path: str) -> Iterator[str]:
        for node in ast.walk(self.tree(path)):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "%s" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                # Whatever has several lines is documentation.
                yield from () if "\n" in node.value else (node.value,)

    def _path(self, module: str) -> str | None:
        stem = module.replace(".", "/")
        return next((path for path in (f"{stem}.py", f"{stem}/__init__.py") if path in self._known), None)

    def _definition(self, module: str, name: str) -> tuple[str, ast.AST] | None:
        path = self._path(module)
        if path is None:
            return None
        for node in ast.walk(self.tree(path)):
            if isinstance(node, (*_FUNCTIONS, ast.ClassDef)) and node.name == name:
                return module, node
            if isinstance(node, ast.ImportFrom) and {alias.asname or alias.name for alias in node.names} & {name, "*"}:
                package = module if path.endswith("__init__.py") else module.rpartition(".")[0]
                package = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
                target = f"{package}.{node.module}".rstrip(".") if node.level else str(node.module)
                if (place := self._definition(target, name)) or node.names[0].name != "*":
                    return place
            if _assigns(node, name):
                return module, node
            # `vllm` itself imports what is asked for.
            if isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    if getattr(key, "value", None) == name and re.fullmatch(
                        r"\.[\w.]+:\w+", str(getattr(value, "value", ""))
                    ):
                        target, _, name = value.value.partition(":")  # type: ignore[attr-defined]
                        return self._definition(module + target, name)
        return None

    def _attribute(self, module: str, owner: ast.AST, name: str) -> tuple[str, ast.AST] | None:
        if not isinstance(owner, ast.ClassDef):
            return None
        for node in ast.walk(owner):
            if isinstance(node, (*_FUNCTIONS, ast.ClassDef)) and node.name == name:
                return module, node
            if _assigns(node, name):
                return module, node
        for base in owner.bases:
            if isinstance(base, ast.Name) and (place := self._definition(module, base.id)):
                return self._attribute(*place, name)
        return None


def _assigns(node: ast.AST, name: str) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return any(getattr(target, "id", getattr(target, "attr", None)) == name for target in targets)


def _shown(node: ast.AST) -> str:
    if isinstance(node, _FUNCTIONS):
        plain = node.args
        for argument in (*plain.posonlyargs, *plain.args, *plain.kwonlyargs, plain.vararg, plain.kwarg):
            if argument is not None:
                argument.annotation = None
        return f"({ast.unparse(plain)})"
    if isinstance(node, ast.ClassDef):
        return f"class({', '.join(map(ast.unparse, node.bases))})"
    return "value"


def record(source: Source, known: Mapping[str, Sequence[str]] | None = None) -> dict[str, object]:
    """What a version has of all that is used.

    Args:
        source: Of the version.
        known: An earlier record's lines: only the files that they stand in are looked at.
    """
    if known is None:
        paths = [path for path in source.paths if re.search(r"\b(took|logger\.info|vllm:)", source.read(path))]
    else:
        paths = sorted({line.partition(": ")[0] for lines in known.values() for line in lines} & {*source.paths})
    return {
        "names": {name: source.find(name) for name in uses()},
        "lines": {name: source.lines(pattern, paths) for name, pattern in patterns().items()},
    }


if __name__ == "__main__":
    RECORDS.mkdir(exist_ok=True)
    for place in sys.argv[1:]:
        source = Source(Path(place))
        (RECORDS / f"{source.version}.json").write_text(json.dumps(record(source), indent=1) + "\n")
        print(source.version)
