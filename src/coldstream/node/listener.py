"""Which process listens at the engine's address: none before it starts, then the engine itself (by Linux's `/proc`)."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from coldstream.errors import ColdstreamError
from coldstream.node.http_endpoint import EngineEndpoint

_LISTENS = "0A"
# A flag in /proc/net/unix: the socket accepts connections.
_ACCEPTS = 0x10000
_SOCKET = re.compile(r"socket:\[(\d+)\]")


def check_free(endpoint: EngineEndpoint, name: str) -> None:
    """Binds as the engine called `name` will, and releases the address. Raises ColdstreamError if that fails."""
    if endpoint.socket_path is not None:
        if os.path.lexists(endpoint.socket_path):
            raise ColdstreamError(
                f"{name} cannot listen on {endpoint.socket_path}: the file exists",
                hint="choose another path, or remove the file if no server uses it",
            )
        return
    host, port = endpoint.bind_host, endpoint.port
    # As servers on uvloop choose it.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
    except (OSError, OverflowError, ValueError) as exc:
        where = f"port {port}" + (f" of {host}" if host else "")
        if getattr(exc, "errno", None) != errno.EADDRINUSE:
            why = getattr(exc, "strerror", None) or exc
            raise ColdstreamError(
                f"{name} cannot listen on {where}: {why}", hint=f"check {name}'s --host and --port"
            ) from exc
        raise ColdstreamError(
            f"{name} cannot listen on {where}: another server does{_owner(endpoint)}",
            hint=f"choose another port: -- --port {port + 1}",
        ) from exc


def is_listening(endpoint: EngineEndpoint, pids: Iterable[int]) -> bool | None:
    """Whether one of the processes listens there; None where that is unknown."""
    inodes = _listening(endpoint)
    if not inodes:
        return None
    try:
        return any(inodes & _sockets(pid) for pid in pids)
    except PermissionError:
        return None


def _owner(endpoint: EngineEndpoint) -> str:
    """The process that listens there, for people; "" when it belongs to another user."""
    inodes = _listening(endpoint)
    with suppress(OSError):
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                if inodes & _sockets(int(pid)):
                    return f" (process {pid}, {Path('/proc', pid, 'comm').read_text(errors='replace').strip()})"
    return ""


def _sockets(pid: int) -> set[str]:
    """The inodes of a process's open sockets; empty when it has exited."""
    inodes = set()
    with suppress(FileNotFoundError, ProcessLookupError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):
                if match := _SOCKET.fullmatch(os.readlink(f"/proc/{pid}/fd/{name}")):
                    inodes.add(match[1])
    return inodes


def _listening(endpoint: EngineEndpoint) -> set[str]:
    """The inodes of all sockets that listen there."""
    if endpoint.socket_path is not None:
        path = os.path.abspath(endpoint.socket_path)
        rows = [row for line in _table("unix") if len(row := line.split(maxsplit=7)) == 8]
        return {row[6] for row in rows if int(row[3], 16) & _ACCEPTS and os.path.abspath(row[7]) == path}
    rows = [line.split() for name in ("tcp", "tcp6") for line in _table(name)]
    port = f":{endpoint.port:04X}"
    return {row[9] for row in rows if row[3] == _LISTENS and row[1].endswith(port)}


def _table(name: str) -> Iterator[str]:
    with suppress(OSError):
        yield from Path("/proc/net", name).read_text(errors="replace").splitlines()[1:]
