"""The installed SGLang, and its API: the address by the flags."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping

from coldstream.engines.sglang.sglang_flags import SglangFlags
from coldstream.node.engine_program import EngineProgram
from coldstream.node.http_endpoint import HttpEndpoint, reachable

_PORT = 30000


class SglangProgram(EngineProgram):
    """A `sglang` command."""

    engine = "SGLang"
    package = "sglang"
    # The tests run the loader of 0.5.23. See docs/sglang.md for what differs in earlier versions.
    oldest = (0, 5, 23)
    newest = (0, 5, 23)

    @property
    def has_coldstream(self) -> bool:
        """Whether its Python finds coldstream: also where a runtime's packages are on the path of both."""
        return "coldstream" in self.packages or self.interpreter == sys.executable

    @property
    def can_hide_key(self) -> bool:
        """Whether the API key can be passed on without showing it in the list of processes."""
        return self._entry is not None

    @property
    def launcher(self) -> tuple[str, ...]:
        """The words that run it."""
        return self._entry or (self.path,)

    @property
    def _entry(self) -> tuple[str, ...] | None:
        return self.module_launcher("coldstream.engines.sglang.sglang_entry")

    def warnings(self, environ: Mapping[str, str]) -> list[str]:
        warnings = [warning] if (warning := self.version_warning()) else []
        if self.packages and not self.has_coldstream:
            warnings.append("coldstream is not installed in SGLang's own environment, so SGLang will find no weights")
        plugins = environ.get("SGLANG_PLUGINS")
        if plugins and "coldstream" not in map(str.strip, plugins.split(",")):
            warnings.append("SGLANG_PLUGINS does not list coldstream; add it, or SGLang will find no weights")
        return warnings


class SglangEndpoint(HttpEndpoint):
    """SGLang's API. Its `/health` generates a token, which takes a second; before 0.5.20 it has no `/ready`."""

    engine = "SGLang"
    health_paths = ("/ready", "/health")
    requests_line = re.compile(r"^sglang:num_(?:running|queue)_reqs(?:\{[^}]*\})? ([0-9.e+]+)$", re.MULTILINE)


def endpoint_of(flags: SglangFlags, environ: Mapping[str, str]) -> SglangEndpoint:
    """Where an SGLang with these flags and this environment will answer."""
    host, port = flags.value("--host") or "127.0.0.1", flags.value("--port") or ""
    return SglangEndpoint(
        host=reachable(host),
        bind_host=host,
        port=int(port) if port.isdecimal() else _PORT,
        tls=bool(flags.value("--ssl-certfile") and flags.value("--ssl-keyfile")),
        key=flags.value("--api-key") or environ.get("VLLM_API_KEY") or None,
    )
