"""In each of vLLM's processes: tells, when it is asked, which modules' files the process has read.

Only the process itself knows that, since the files are closed again. A thread sleeps at the service's socket until the
service asks or ends. A process stops this thread before it forks, and afterwards both processes start a new one.
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
# What a process says to the service first; it is asked with an empty line, and answers with one line of JSON.
HELLO = b'{"tells": "modules"}\n'
_FORK_SECONDS = 0.2


class ModuleReporter:
    """The thread of this process, and its connection."""

    def __init__(self, address: str) -> None:
        """Prepares.

        Args:
            address: Of the service.
        """
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
                thread = threading.Thread(target=_wait, args=(sock,), name="coldstream-telling", daemon=True)
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
    """Begins, where there is a service. Idempotent, and it never raises."""
    global _this_process  # noqa: PLW0603  # one for each process
    address = os.environ.get(VARIABLE)
    if not address or _this_process is not None:
        return
    telling = _this_process = ModuleReporter(address)
    telling.start()
    os.register_at_fork(before=telling.stop, after_in_parent=telling.start, after_in_child=telling.start)


def files() -> list[str]:
    """The files of this process's modules, in the order of their import, and the sources that were looked into.

    Of a module that has bytecode, or would have it if it could be written, the bytecode's file.
    """
    paths: dict[str, None] = {}
    for module in list(sys.modules.values()):
        # Of its own dictionary: some modules import others when they are asked for anything.
        spec: Any = getattr(module, "__dict__", {}).get("__spec__")
        for path in (getattr(spec, "cached", None), getattr(spec, "origin", None)):
            if isinstance(path, str) and path.startswith("/"):
                paths[path] = None
                break
    for path, entry in list(linecache.cache.items()):
        # Others are promises to read it.
        if len(entry) == 4 and path.startswith("/"):
            paths[path] = None
    return list(paths)


def _wait(sock: socket.socket) -> None:
    with sock, suppress(OSError, RuntimeError):
        while sock.recv(16):
            sock.sendall(json.dumps(files()).encode() + b"\n")
