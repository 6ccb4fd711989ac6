"""vLLM's API: its address by the flags, and what its metrics say."""

from __future__ import annotations

import re
from collections.abc import Mapping

from coldstream.engines.vllm import vllm_log
from coldstream.engines.vllm.flags import Flags
from coldstream.node.http_endpoint import HttpEndpoint, reachable


class VllmEndpoint(HttpEndpoint):
    """vLLM's API."""

    engine = "vLLM"
    requests_line = re.compile(r"^vllm:num_requests_(?:running|waiting)(?:\{[^}]*\})? ([0-9.e+]+)$", re.MULTILINE)

    def first_token_figures(self) -> dict[str, float]:
        return vllm_log.metrics(self.metrics())


def endpoint_of(flags: Flags, environ: Mapping[str, str]) -> VllmEndpoint:
    """Where a vLLM with these flags and this environment will answer."""
    host, port = flags.value("--host") or "", flags.value("--port") or ""
    return VllmEndpoint(
        host=reachable(host),
        bind_host=host,
        port=int(port) if port.isdecimal() else 8000,
        socket_path=flags.value("--uds") or None,
        tls=bool(flags.value("--ssl-certfile") and flags.value("--ssl-keyfile")),
        key=flags.value("--api-key") or environ.get("VLLM_API_KEY") or None,
    )
