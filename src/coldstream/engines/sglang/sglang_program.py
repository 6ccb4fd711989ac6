"""The installed SGLang, its flags, and its API."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import ClassVar

from coldstream.node.engine_flags import EngineFlags
from coldstream.node.engine_program import EngineProgram
from coldstream.node.http_endpoint import EngineEndpoint

_TENSOR, _PIPELINE = "--tensor-parallel-size", "--pipeline-parallel-size"


class SglangFlags(EngineFlags):
    """The user's flags for `sglang serve`."""

    engine = "SGLang"
    aliases: ClassVar = {
        "--tp": _TENSOR,
        "--tp-size": _TENSOR,
        "--pp": _PIPELINE,
        "--pp-size": _PIPELINE,
        "--speculative-draft-model": "--speculative-draft-model-path",
    }

    @property
    def ranks(self) -> int:
        return max(1, super().ranks // self.number("--nnodes"))


class SglangProgram(EngineProgram):
    """A `sglang` command."""

    engine = "SGLang"
    package = "sglang"
    # The tests run 0.5.23. See docs/sglang.md for what differs in earlier versions.
    oldest = newest = (0, 5, 23)

    @property
    def has_coldstream(self) -> bool:
        """Whether its Python finds coldstream: also where a runtime's packages are on the path of both."""
        return "coldstream" in self.packages or self.interpreter == sys.executable

    @property
    def entry(self) -> tuple[str, ...] | None:
        """The words that run it with a key from the environment; None where that cannot be."""
        return self.module_launcher("coldstream.engines.sglang.sglang_entry")

    def warnings(self, environ: Mapping[str, str]) -> list[str]:
        warnings = super().warnings(environ)
        if self.packages and not self.has_coldstream:
            warnings.append("coldstream is not installed in SGLang's own environment, so SGLang will find no weights")
        plugins = environ.get("SGLANG_PLUGINS")
        if plugins and "coldstream" not in map(str.strip, plugins.split(",")):
            warnings.append("SGLANG_PLUGINS does not list coldstream; add it, or SGLang will find no weights")
        return warnings


class SglangEndpoint(EngineEndpoint):
    """SGLang's API. Its `/health` generates a token, which takes a second; before 0.5.20 it has no `/ready`."""

    engine = "SGLang"
    default_host = "127.0.0.1"
    default_port = 30000
    health_paths = ("/ready", "/health")
    requests_line = re.compile(r"^sglang:num_(?:running|queue)_reqs(?:\{[^}]*\})? ([0-9.e+]+)$", re.MULTILINE)
