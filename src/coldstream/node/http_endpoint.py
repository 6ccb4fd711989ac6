"""The API of an engine that speaks HTTP as OpenAI's does: the few requests that `serve` makes.

The engine is our own child on this machine, so its certificate is not checked. Its key is sent only to it, in a header.
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from random import SystemRandom
from typing import TYPE_CHECKING, Any, ClassVar

from coldstream.machine.hardware import is_loopback
from coldstream.node.engine_flags import EngineFlags

if TYPE_CHECKING:
    from typing_extensions import Self

_HEALTH_SECONDS = 2.0
# The first token of a cold engine may still compile something.
_TOKEN_SECONDS = 30.0
_ANSWER_BYTES_MAX = 1 << 20
_METRICS_BYTES_MAX = 8 << 20
_PROMPT = "The river"
# Hosts that stand for every interface, and the address at which this machine reaches a server there.
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  # nothing is bound here


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEndpoint:
    """The engine's API, which it binds at `bind_host` (empty for every interface) and `port`, or at a Unix socket.

    This machine reaches it at `host`, with the API key `key`.
    """

    engine: ClassVar[str]
    # Where it listens without flags.
    default_host: ClassVar[str] = ""
    default_port: ClassVar[int]
    # Paths that answer with 200 when the engine is ready; the first that the engine has counts.
    health_paths: ClassVar[tuple[str, ...]] = ("/health",)
    # A line of `/metrics` with a number of requests that the engine is working on.
    requests_line: ClassVar[re.Pattern[str]]

    host: str = "127.0.0.1"
    bind_host: str = ""
    port: int = 8000
    socket_path: str | None = None
    tls: bool = False
    key: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, flags: EngineFlags, environ: Mapping[str, str]) -> Self:
        """Where an engine with these flags and this environment will answer."""
        host, port = flags.value("--host") or cls.default_host, flags.value("--port") or ""
        return cls(
            host=_ANYWHERE.get(host, host),
            bind_host=host,
            port=int(port) if port.isdecimal() else cls.default_port,
            socket_path=flags.value("--uds") or None,
            tls=bool(flags.value("--ssl-certfile") and flags.value("--ssl-keyfile")),
            key=flags.value("--api-key") or environ.get("VLLM_API_KEY") or None,
        )

    @property
    def url(self) -> str:
        """For people."""
        if self.socket_path is not None:
            return f"unix:{self.socket_path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    @property
    def exposure(self) -> str | None:
        """A warning when other machines can reach the API without a key, or None."""
        if self.key is not None or self.socket_path is not None or is_loopback(self.bind_host):
            return None
        where = "every network interface" if self.bind_host in _ANYWHERE else self.bind_host
        return (
            f"{self.engine} listens on {where}, port {self.port}, without an API key; "
            "restrict it with `-- --host 127.0.0.1`, or set VLLM_API_KEY"
        )

    def answers(self) -> bool:
        """Whether the health check succeeds."""
        for path in self.health_paths:
            status, _ = self._request("GET", path, seconds=_HEALTH_SECONDS, bytes_max=1024)
            if status != http.client.NOT_FOUND:
                return status == http.client.OK
        return False

    def first_token(self, name: str) -> float | None:
        """Requests one token from the model called `name`; returns when it came, by `time.monotonic`.

        None when none came: some models complete no text, and other failures show in the user's own requests.
        """
        body = json.dumps({"model": name, "prompt": _PROMPT, "max_tokens": 1, "temperature": 0}).encode()
        answer = self._fetch("POST", "/v1/completions", body, seconds=_TOKEN_SECONDS, bytes_max=_ANSWER_BYTES_MAX)
        now = time.monotonic()
        try:
            return now if answer is not None and json.loads(answer)["choices"] else None
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    def first_token_figures(self) -> Mapping[str, float]:
        """What the engine measured of its first token: name to number."""
        return {}

    def requests(self) -> int:
        """How many requests the engine is working on; 0 when it does not answer."""
        counts = self.requests_line.findall(self.metrics())
        return round(sum(float(count) for count in counts))

    def metrics(self) -> str:
        """The text of `/metrics`; empty when it does not answer."""
        answer = self._fetch("GET", "/metrics", seconds=_HEALTH_SECONDS, bytes_max=_METRICS_BYTES_MAX)
        return (answer or b"").decode("utf-8", "replace")

    def _fetch(self, *request: Any, **limits: Any) -> bytes | None:
        """The body of a response with status 200; None for another status, or when it takes too long."""
        status, content = self._request(*request, **limits)
        return content if status == http.client.OK else None

    def _request(
        self, method: str, path: str, body: bytes | None = None, *, seconds: float, bytes_max: int
    ) -> tuple[int, bytes]:
        """The status and the body of a response; status 0 when none came, or when it takes too long."""
        connection = self._connection(seconds)
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if self.key is not None and body is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(bytes_max)
        except (OSError, ValueError, http.client.HTTPException):
            return 0, b""  # ValueError: a key that a header cannot hold
        finally:
            connection.close()

    def _connection(self, seconds: float) -> http.client.HTTPConnection:
        if self.socket_path is not None:
            return _UnixConnection(self.socket_path, seconds)
        if not self.tls:
            return http.client.HTTPConnection(self.host, self.port, timeout=seconds)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return http.client.HTTPSConnection(self.host, self.port, timeout=seconds, context=context)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def free_port() -> int:
    """A port on loopback that was free a moment ago, and that the kernel gives to no other program by itself."""
    for port in SystemRandom().sample(range(20_000, 30_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
