"""SGLang as an inference engine for `coldstream.node`: see `InferenceEngine` for the contract.

The user's own flags always win: ours are added only where they are missing.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from coldstream.engines.sglang.sglang_caches import SglangCaches
from coldstream.engines.sglang.sglang_log import READER, SglangFailure
from coldstream.engines.sglang.sglang_program import SglangEndpoint, SglangFlags, SglangProgram
from coldstream.errors import ConfigError, UsageError
from coldstream.machine import hardware
from coldstream.model.names import is_path
from coldstream.node.child import Command
from coldstream.node.inference_engine import ON_DEMAND, InferenceEngine, Say, ServeRequest
from coldstream.node.load_service import VARIABLE
from coldstream.node.model_download import downloaded_folder
from coldstream.settings import Settings

# The formats in which SGLang reads safetensors, which are what our loader streams.
_STREAMED = frozenset({None, "auto", "safetensors"})
_PATHS = "--lora-paths"
_DRAFT = "--speculative-draft-model-path"
# SGLang's default.
_BATCH_MAX = 8
_API_KEY = "VLLM_API_KEY"


class SglangEngine(InferenceEngine):
    """The SGLang that runs one request. It reads adapters and draft models itself: see docs/sglang.md."""

    name = "SGLang"
    log_setting = "--log-level info"
    read_line = staticmethod(READER.read_line)
    failure_log = SglangFailure
    endpoint_type = SglangEndpoint
    needs_adapter_folders = True

    _program: SglangProgram

    def __init__(self, request: ServeRequest) -> None:
        """Finds the program and parses the flags. Raises what `find` and `SglangFlags` raise."""
        if request.loader not in {"coldstream", "default"}:
            raise UsageError(f"--loader {request.loader} is for vLLM", hint="leave --loader out")
        if ON_DEMAND in request.adapters:
            raise UsageError(f"--adapters {ON_DEMAND} is for vLLM", hint="name the adapters, or pass: --adapters all")
        super().__init__(request, SglangFlags(request.arguments), SglangProgram.find(request.program))
        self.caches = SglangCaches()
        self.uses_gpus = self._flags.value("--device") != "cpu" and bool(hardware.gpus())
        # A further node of several answers health checks only.
        self.is_headless = self._flags.value("--node-rank") not in {None, "0"}
        self.has_api = not self.is_headless and not {"-h", "--help"} & self._flags.values.keys()

    def warnings(self, environ: Mapping[str, str]) -> list[str]:
        warnings = super().warnings(environ)
        draft = self._flags.value(_DRAFT)
        if draft and "://" not in draft and not is_path(draft) and not os.path.isdir(draft):
            warnings.append(
                f"SGLang reads the draft model {draft} from the Hub itself; to use the one in the bucket, run "
                f"`coldstream download {shlex.quote(draft)}`, and pass its folder"
            )
        return warnings

    def adapter_rank_max(self, rank: int) -> int:
        chosen = self._flags.value("--max-lora-rank") or ""
        return int(chosen) if chosen.isdecimal() else rank

    def add_adapters(
        self, paths: Mapping[str, str], *, rank_max: int | None, on_demand: bool, update_seconds: float
    ) -> None:
        ours = (json.dumps({"lora_name": name, "lora_path": path}) for name, path in paths.items())
        every = [*self._flags.values.get(_PATHS, ()), *ours]
        # SGLang reserves GPU memory for so many, one of which is for requests without an adapter.
        sizes = {"--enable-lora": (), "--max-loras-per-batch": (str(min(len(every) + 1, _BATCH_MAX)),)}
        added = [word for flag, values in sizes.items() if flag not in self._flags for word in (flag, *values)]
        if every:
            self._flags = SglangFlags((*self._flags.without(_PATHS), _PATHS, *every, *added))

    def streaming_command(self, folder: Path, service: str, socket_folder: str) -> Command:
        chosen = self._flags.value("--load-format")
        if chosen not in _STREAMED:
            raise UsageError(
                f"only SGLang's loader of safetensors can be streamed into, not --load-format {chosen}",
                hint="leave --load-format out, or pass --loader default",
            )
        return self._command(folder, {VARIABLE: service})

    def own_command(self, settings: Settings, say: Say) -> Command:
        return self._command(Path(downloaded_folder(self._request, settings, say)), {})

    def _command(self, folder: Path, environment: Mapping[str, str]) -> Command:
        self._check_servable(folder)
        keep: tuple[str, ...] = ()
        if os.environ.get(_API_KEY) and "--api-key" not in self._flags:
            if self._program.entry is None:
                why = f"{_API_KEY} cannot be hidden from other users: SGLang's Python (3.11+) has no coldstream"
                raise ConfigError(why, hint="put `api-key: …` into a private file, and add: -- --config FILE.yaml")
            keep = (_API_KEY,)
        ours = {"--served-model-name": [self._request.served_name], "--enable-metrics": []}
        added = [word for flag, values in ours.items() if flag not in self._flags for word in (flag, *values)]
        arguments = (
            *(self._program.entry or [self._program.path]),
            *("serve", "--model-path", str(folder)),
            *added,
            *self._flags.arguments,
        )
        return Command(arguments=arguments, environment=environment, keep=keep)
