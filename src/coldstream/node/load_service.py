"""Loads for processes without credentials, which request them over a Unix socket from the process that has them.

All ranks of a node request the same load and attach to the same address, so the bytes cross the network once. The first
load begins before any request, while the engine is imported; a rank that reloads its weights requests the next one.

A request is one line of JSON, `{"uri": …, "load": "<which>", "consumers": <number of readers>}`, and so is the
response: `{"address": …}` or `{"error": {…}}`. Only this user can connect.

The engine's processes connect once more, to report on request which modules they have imported (`module_reads`).
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coldstream.engine import messages
from coldstream.engine.rendezvous import SocketFolder
from coldstream.errors import CancelledError, ColdstreamError, ConflictError, NotFoundError
from coldstream.loading.options import Options
from coldstream.loading.sharing import Share
from coldstream.machine.closing import Closing
from coldstream.model.names import Uri
from coldstream.node import module_reads

if TYPE_CHECKING:
    from coldstream.node.adapter_service import AdapterService

# In the environment of the engine's processes: the service's address.
VARIABLE = module_reads.VARIABLE
# The load that begins without a request.
FIRST = "1"
# The first load of a draft model: it is counted apart, because it may be the model itself, and not all ranks have it.
FIRST_DRAFT = "draft 1"
_NO_ADAPTERS = {"error": {"kind": "usage", "message": "no adapters are served", "hint": "start with --adapters"}}
_LINE_BYTES_MAX = 16 << 10
_CONSUMERS_MAX = 1024
_REPORTERS_MAX = 1024
# On one node: each engine has a GPU of its own.
_ENGINES_MAX = 64
_MODULES_BYTES_MAX = 16 << 20
_CLOSE_SECONDS = 3.0


@dataclass(slots=True)
class _OpenLoad:
    """A load, the number of its readers, and how many of them have requested it."""

    share: Share
    consumers: int
    requests: int = 0


class ModelLoads:
    """The loads of one model. Each model has a lock of its own, so that none waits until another one is resolved.

    Attributes:
        current: Those whose readers are not gone, and in any case the first and the newest; empty once closed.
        of_start: The loads of the start, in order: one for each engine of this node. Those that the engines read as
            their draft model are counted apart.
        failures: Why other loads could not begin.
    """

    def __init__(self, uri: Uri, options: Options, *, version: str | None, before_drop: Callable[[], None]) -> None:
        """`version` is of the folder that the engine reads; without one, the first load decides."""
        self.uri = uri
        self._options, self._version, self._before_drop = options, version, before_drop
        self._lock = threading.Lock()
        self._open: dict[str, _OpenLoad] = {}
        self._is_closed = False
        self.current: tuple[Share, ...] = ()
        self.of_start: dict[str, tuple[Share, ...]] = {FIRST: (), FIRST_DRAFT: ()}
        self.failures: list[ColdstreamError] = []

    def begin(self, which: str, *, consumers: int) -> Share:
        """Begins a load, unless a reader has already requested it."""
        with self._lock:
            return (self._open.get(which) or self._begin(which, consumers)).share

    def share(self, which: str, *, consumers: int) -> str:
        """See `LoadService.share`."""
        with self._lock:
            load = self._open.get(which)
            if load is not None and not load.requests and (load.consumers != consumers or load.share.is_gone):
                # It began before their number was known, or its streamer was killed before the first reader came.
                load.share.close()
                if which in self.of_start:
                    self.of_start[which] = tuple(share for share in self.of_start[which] if share is not load.share)
                load = None
            if load is None or load.requests >= load.consumers or load.consumers != consumers:
                # A second engine on this node counts its loads like the first, and reads a load of its own.
                load = self._begin(which, consumers)
            load.requests += 1
            return load.share.address

    def close(self) -> None:
        self._is_closed = True
        # A thread that is resolving the model holds the lock, and ends its load itself.
        if self._lock.acquire(timeout=_CLOSE_SECONDS):
            try:
                for share in self.current:
                    share.close()
                self.current = ()
                self._open.clear()
            finally:
                self._lock.release()

    def _drop(self) -> None:
        """Closes loads that all of their readers have read: each reload leaves one. The first stays for its report."""
        # Closed ones too, such as one that began before the number of its readers was known.
        gone = [share for share in self.current if share not in self.of_start[FIRST][:1] and share.wait_until_gone(0)]
        if not gone:
            return
        self._before_drop()
        for share in gone:
            share.close()
        self.current = tuple(share for share in self.current if share not in gone)
        # If a load ended before all readers requested it, the rest must not begin another: it would wait for them all.
        for which, load in list(self._open.items()):
            if load.share in gone and load.requests >= load.consumers:
                del self._open[which]

    def _begin(self, which: str, consumers: int) -> _OpenLoad:
        load = self._open[which] = _OpenLoad(self._new_share(consumers), consumers)
        if (first := self.of_start.get(which)) is not None and len(first) < _ENGINES_MAX:
            self.of_start[which] = (*first, load.share)
        return load

    def _new_share(self, consumers: int) -> Share:
        self._drop()
        try:
            share = Share(self.uri, consumers=consumers, options=self._options)
        except ColdstreamError as exc:
            # Without its traceback, whose frames keep objects alive.
            self.failures.append(copy(exc))
            raise
        if self._is_closed:
            share.close()
            raise CancelledError(f"{self.uri}: the load was ended")
        if self._version not in {None, share.version}:
            share.close()
            raise ConflictError(f"{self.uri} was replaced since the engine was started", hint="restart it")
        self._version = share.version
        self.current = (*self.current, share)
        return share


class LoadService(Closing):
    """Serves loads of one or more models to this user's processes, from threads of this process.

    Attributes:
        folder: A private folder for sockets, removed with the service, however it ends.
        adapters: Answers requests for adapters; None where none are served.
        before_drop: Called before loads whose readers are gone leave `loads`, so that they can be counted.
    """

    def __init__(self, uri: str | Uri, *, options: Options) -> None:
        """Listens; sends no request to the bucket yet. `options` are of each load of the model."""
        self.before_drop: Callable[[], None] = lambda: None
        self.adapters: AdapterService | None = None
        self._lock = threading.Lock()
        self._uri = str(Uri.of(uri))
        self._models: dict[str, ModelLoads] = {}
        self.add(uri, options=options)
        self._reporters: list[socket.socket] = []
        self._closed = False
        self._folder = SocketFolder()
        self.address = os.path.join(self._folder.path, "loads")
        self.folder = self._folder.path
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(self.address)
        self._listening.listen(64)
        threading.Thread(target=self._serve, name="coldstream-service", daemon=True).start()

    def __repr__(self) -> str:
        return f"LoadService({', '.join(self._models)}, {len(self.loads)} loads)"

    @property
    def loads(self) -> tuple[Share, ...]:
        """Of all models: see `ModelLoads.current`."""
        return tuple(share for model in [*self._models.values()] for share in model.current)

    @property
    def failures(self) -> list[ColdstreamError]:
        """Why loads could not begin."""
        return [failure for model in [*self._models.values()] for failure in model.failures]

    @property
    def of_start(self) -> tuple[Share, ...]:
        """The loads of the start, in order: one of the served model for each engine of this node."""
        return self._models[self._uri].of_start[FIRST]

    @property
    def drafts_of_start(self) -> tuple[Share, ...]:
        """The first loads of draft models: one for each engine of this node."""
        return tuple(share for model in [*self._models.values()] for share in model.of_start[FIRST_DRAFT])

    @property
    def first(self) -> Share | None:
        """The load that begins without a request; None until `begin`."""
        return next(iter(self.of_start), None)

    def add(self, uri: str | Uri, *, options: Options, version: str | None = None) -> ModelLoads:
        """Serves one more model too. `version` is of the folder that the engine reads, if one was made already."""
        uri = Uri.of(uri)
        before_drop = lambda: self.before_drop()  # noqa: E731, PLW0108  # assigned after the first model
        loads = ModelLoads(uri, options, version=version, before_drop=before_drop)
        # Requests have the URI from the model's folder, which leaves the secret part out.
        return self._models.setdefault(str(uri), loads)

    def begin(self, *, consumers: int) -> Share:
        """Begins the first load. `consumers` is the expected number of ranks; the ranks know the actual one."""
        return self._models[self._uri].begin(FIRST, consumers=consumers)

    def begin_draft(self, model: ModelLoads, *, consumers: int) -> None:
        """Begins the load of a draft model in the background, once the first load is complete.

        The engine needs the draft model last, and until then it would take its share of the network and the memory.
        """

        def begin() -> None:
            # Errors are in `failures`, and the engine gets them when it requests the load.
            with suppress(ColdstreamError):
                if self.first is not None:
                    self.first.wait()
                model.begin(FIRST_DRAFT, consumers=consumers)

        threading.Thread(target=begin, name="coldstream-draft", daemon=True).start()

    def share(self, uri: str, which: str, *, consumers: int) -> str:
        """The address of a load, which all `consumers` ranks that pass the same value of `which` read.

        Raises NotFoundError if the model is not served here, and ConflictError if the bucket has another version of it
        than when the engine was started.
        """
        if (model := self._models.get(uri)) is None:
            models = " and ".join(self._models)
            raise NotFoundError(f"{Uri(uri[:200])} is not a model that is streamed here: {models}")
        return model.share(which, consumers=consumers)

    def modules(self, *, seconds: float = 2.0) -> list[str]:
        """The files of the Python modules that the engine's processes have imported, in the order of their import.

        The API server comes first, then the engine, then its workers. Drops those that take longer than `seconds`.
        """
        until = time.monotonic() + seconds
        with self._lock:
            reporters, self._reporters = self._reporters, []
        for sock in reporters:
            # One that has exited is noticed below.
            with suppress(OSError):
                sock.sendall(b"\n")
        files: dict[str, None] = {}
        for sock in reporters:
            modules: object = None
            sock.settimeout(max(0.001, until - time.monotonic()))
            with suppress(OSError, ValueError):
                modules = json.loads(_read_line(sock, _MODULES_BYTES_MAX))
            if isinstance(modules, list):
                files.update((module, None) for module in modules if isinstance(module, str))
            with self._lock:
                if not isinstance(modules, list) or self._closed:
                    sock.close()
                else:
                    self._reporters.append(sock)
        return list(files)

    def close(self) -> None:
        """Ends all loads, even those that are being read. Idempotent."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        with self._lock:
            self._closed = True
            for sock in self._reporters:
                sock.close()
            self._reporters.clear()
        for model in [*self._models.values()]:
            model.close()
        self._folder.close()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(sock,), daemon=True).start()

    def _answer(self, sock: socket.socket) -> None:
        with ExitStack() as stack, suppress(OSError):
            stack.enter_context(sock)
            if messages.peer_uid(sock) != os.getuid():
                return
            sock.settimeout(10)
            line = _read_line(sock)
            if line != module_reads.HELLO:
                sock.sendall(json.dumps(self._answer_to(line)).encode() + b"\n")
                return
            with self._lock:
                if not self._closed and len(self._reporters) < _REPORTERS_MAX:
                    self._reporters.append(sock)
                    stack.pop_all()

    def _answer_to(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            if "adapter" in request:
                return self.adapters.answer(request) if self.adapters is not None else _NO_ADAPTERS
            uri, which, consumers = request["uri"], request["load"], request["consumers"]
            if not isinstance(uri, str) or not isinstance(which, str):
                raise TypeError(uri, which)
            if type(consumers) is not int or not 1 <= consumers <= _CONSUMERS_MAX:
                raise ValueError(consumers)
        except (ValueError, KeyError, TypeError):
            return {"error": {"message": "invalid request"}}
        try:
            return {"address": self.share(uri, which, consumers=consumers)}
        except ColdstreamError as exc:
            return {"error": {"message": exc.message, "hint": exc.hint}}


def ask(address: str, uri: str | Uri, which: str, *, consumers: int) -> str:
    """Requests a load from the service at `address`; returns the address to attach to. See `LoadService.share`."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(address)
            sock.sendall(json.dumps({"uri": str(Uri.of(uri)), "load": which, "consumers": consumers}).encode() + b"\n")
            answer = json.loads(_read_line(sock) or b"{}")
    except (OSError, ValueError) as exc:
        raise ColdstreamError(
            f"the process that streams the weights does not answer at {address}",
            hint="check that `coldstream serve` is running",
        ) from exc
    if load_address := answer.get("address"):
        return str(load_address)
    error = answer.get("error", {})
    raise ColdstreamError(error.get("message", "the streaming process ended"), hint=error.get("hint"))


def _read_line(sock: socket.socket, bytes_max: int = _LINE_BYTES_MAX) -> bytes:
    with sock.makefile("rb", buffering=1 << 16) as file:
        return file.readline(bytes_max)
