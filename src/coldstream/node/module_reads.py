"""Reports, from each of vLLM's processes, the files of the modules that the process has imported.

Only the process itself knows them, since the files are closed again. A thread waits at the service's socket until the
service requests a report or exits. A process stops this thread before it forks, and then both processes start one.
"""

from __future__ import annotations

import json
import linecache
import os
import socket
import sys
import threading
from contextlib import suppress
from typing import Any

# In the environment of vLLM's processes: where the service is.
VARIABLE = "COLDSTREAM_SERVICE"
# The first line that a process sends. The service then requests a report with an empty line, and gets a line of JSON.
HELLO = b'{"tells": "modules"}\n'
_FORK_SECONDS = 0.2


class ModuleReporter:
    """The thread of this process, and its connection to the service at `address`."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._sock: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Connects, and waits for requests. Does nothing if no service listens, or no thread can be started."""
        with suppress(OSError, RuntimeError, ValueError):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect(self._address)
                sock.sendall(HELLO)
                thread = threading.Thread(target=_wait, args=(sock,), name="coldstream-modules", daemon=True)
                thread.start()
            except BaseException:
                sock.close()
                raise
            self._sock, self._thread = sock, thread

    def stop(self) -> None:
        """Ends the thread, at once. Idempotent."""
        if self._sock is not None and self._thread is not None:
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            self._thread.join(_FORK_SECONDS)
            self._sock.close()
        self._sock = self._thread = None


_this_process: ModuleReporter | None = None


def report_modules() -> None:
    """Starts reporting if there is a service. Idempotent; never raises."""
    global _this_process  # noqa: PLW0603  # one for each process
    address = os.environ.get(VARIABLE)
    if not address or _this_process is not None:
        return
    reporter = _this_process = ModuleReporter(address)
    reporter.start()
    os.register_at_fork(before=reporter.stop, after_in_parent=reporter.start, after_in_child=reporter.start)


def files() -> list[str]:
    """The files of this process's modules, in the order of their import, and the sources that `linecache` read.

    For a module with bytecode, or that would have it if it could be written, the file of the bytecode.
    """
    paths: dict[str, None] = {}
    for module in list(sys.modules.values()):
        # From its own dictionary: some modules import others on attribute access.
        spec: Any = getattr(module, "__dict__", {}).get("__spec__")
        for path in (getattr(spec, "cached", None), getattr(spec, "origin", None)):
            if isinstance(path, str) and path.startswith("/"):
                paths[path] = None
                break
    for path, entry in list(linecache.cache.items()):
        # Shorter entries are files that were not read yet.
        if len(entry) == 4 and path.startswith("/"):
            paths[path] = None
    return list(paths)


def _wait(sock: socket.socket) -> None:
    with sock, suppress(OSError, RuntimeError):
        while sock.recv(16):
            sock.sendall(json.dumps(files()).encode() + b"\n")
