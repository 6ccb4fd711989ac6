"""Loads for processes that hold no key: one process has the bucket's credentials, vLLM's ask it over a Unix socket.

All ranks of a node ask for the same load and get the same address to attach to, so that the bytes cross the network
once. The first load begins before anybody asks: it runs while vLLM is imported. A rank that reloads its weights asks
for the next one.

A request is one line of JSON, `{"uri": …, "load": "<which>", "consumers": <how many readers>}`, and so is the answer:
`{"address": …}` or `{"error": {…}}`. Only this user may connect.

vLLM's processes connect once more, to say that they can be asked which modules they have read (`telling`).
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
from coldstream.errors import ColdstreamError, ConflictError
from coldstream.loading.options import Options
from coldstream.loading.sharing import Share
from coldstream.model.uri import Uri
from coldstream.node import module_reads

if TYPE_CHECKING:
    from typing_extensions import Self

# In the environment of vLLM's processes: where to ask.
VARIABLE = module_reads.VARIABLE
# The load that begins by itself.
FIRST = "1"
_LINE_BYTES_MAX = 16 << 10
_CONSUMERS_MAX = 1024
_TELLING_MAX = 1024
# Of one node: an engine has a GPU of its own.
_ENGINES_MAX = 64
_MODULES_BYTES_MAX = 16 << 20


@dataclass(slots=True)
class _Given:
    """A load, how many readers it has, and how many of them have asked for it."""

    share: Share
    consumers: int
    asked: int = 0


class LoadService:
    """Gives loads of one model to this user's processes. Context manager; threads of this process attend to it.

    Attributes:
        address: For `VARIABLE`.
        folder: Where it is: for sockets only, removed with the service, however that ends.
        failures: Why loads could not begin, in their order.
        before_drop: Called before `loads` lets go of those whose readers are gone; whoever counts looks once more.
    """

    def __init__(self, uri: str | Uri, *, options: Options) -> None:
        """Prepares; nothing is asked of the bucket yet.

        Args:
            uri: See `Load`.
            options: Of each load.
        """
        self._uri, self._options = Uri.of(uri), options
        self.before_drop: Callable[[], None] = lambda: None
        self._version: str | None = None
        self._lock = threading.Lock()
        self._given: dict[str, _Given] = {}
        self._every: list[Share] = []
        self._of_start: list[Share] = []
        self.failures: list[ColdstreamError] = []
        self._telling: list[socket.socket] = []
        self._closed = False
        self._folder = SocketFolder()
        self.address = os.path.join(self._folder.path, "loads")
        self.folder = self._folder.path
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(self.address)
        self._listening.listen(64)
        threading.Thread(target=self._serve, name="coldstream-service", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LoadService({self._uri}, {len(self._given)} loads)"

    @property
    def first(self) -> Share | None:
        """The load that begins by itself, for its report; None until `begin`."""
        return next(iter(self._of_start), None)

    @property
    def of_start(self) -> tuple[Share, ...]:
        """The loads of vLLM's start, in their order: one for each engine of this node. They keep their reports."""
        return tuple(self._of_start)

    @property
    def loads(self) -> tuple[Share, ...]:
        """The loads that have begun and whose readers are not gone, the first and the newest in any case.

        None once this is closed. May be asked in any thread.
        """
        return tuple(self._every)

    def begin(self, *, consumers: int) -> Share:
        """Begins the first load.

        Args:
            consumers: How many ranks this node will have, as far as is known; the ranks know better.

        Raises:
            What `Share` raises.
        """
        with self._lock:
            return self._begin(FIRST, consumers).share

    def share(self, which: str, *, consumers: int) -> str:
        """The address of a load.

        Args:
            which: Ranks that say the same read the same load.
            consumers: How many of them there are.

        Raises:
            ConflictError: The model in the bucket is not the one that vLLM was started with.
            What `Share` raises.
        """
        with self._lock:
            given = self._given.get(which)
            if given is not None and not given.asked and (given.consumers != consumers or given.share.is_gone):
                # Begun before their number was known, or its streamer was killed before anybody came.
                given.share.close()
                self._of_start = [share for share in self._of_start if share is not given.share]
                given = None
            if given is None or given.asked >= given.consumers or given.consumers != consumers:
                # A second engine of this node counts its loads as the first did; it reads one of its own.
                given = self._begin(which, consumers)
            given.asked += 1
            return given.share.address

    def modules(self, *, seconds: float = 2.0) -> list[str]:
        """The files of the Python modules that vLLM's processes have imported, in the order of their import.

        The processes stand in the order in which they came: the API server, the engine, its workers.

        Args:
            seconds: How long to wait for all of them; who has not answered by then is not asked again.
        """
        until = time.monotonic() + seconds
        with self._lock:
            asked = [sock for sock in self._telling if _sent(sock, b"\n")]
            self._telling = []
        found: dict[str, None] = {}
        for sock in asked:
            modules = _told(sock, until)
            found.update(dict.fromkeys(modules or ()))
            with self._lock:
                if modules is None or self._closed:
                    sock.close()
                else:
                    self._telling.append(sock)
        return list(found)

    def _drop(self) -> None:
        """Lets go of loads that all of their readers have read: a server that reloads has one every time.

        The first one stays, for its report.
        """
        kept = self.first
        # Closed ones too: one that began before the number of its readers was known.
        gone = [share for share in self._every if share is not kept and share.wait_until_gone(0)]
        if not gone:
            return
        self.before_drop()
        for share in gone:
            share.close()
        self._every = [share for share in self._every if share not in gone]
        # Of one that went before all had come, the others must not begin another: it would wait for those that had.
        for which, given in list(self._given.items()):
            if given.share in gone and given.asked >= given.consumers:
                del self._given[which]

    def _begin(self, which: str, consumers: int) -> _Given:
        given = self._given[which] = _Given(self._new_share(consumers), consumers)
        if which == FIRST and len(self._of_start) < _ENGINES_MAX:
            self._of_start.append(given.share)
        return given

    def _new_share(self, consumers: int) -> Share:
        self._drop()
        try:
            share = Share(self._uri, consumers=consumers, options=self._options)
        except ColdstreamError as exc:
            # Without its traceback, whose frames hold more than is known here.
            self.failures.append(copy(exc))
            raise
        if self._version not in {None, share.version}:
            share.close()
            raise ConflictError(f"{self._uri} was replaced since vLLM was started", hint="start it again")
        self._version = share.version
        self._every.append(share)
        return share

    def close(self) -> None:
        """Ends all loads, whoever reads them. Idempotent."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        with self._lock:
            self._closed = True
            for share in self._every:
                share.close()
            for sock in self._telling:
                sock.close()
            self._every.clear()
            self._given.clear()
            self._telling.clear()
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
                if not self._closed and len(self._telling) < _TELLING_MAX:
                    self._telling.append(sock)
                    stack.pop_all()

    def _answer_to(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            uri, which, consumers = request["uri"], request["load"], request["consumers"]
        except (ValueError, KeyError, TypeError):
            return {"error": {"message": "not understood"}}
        if not isinstance(which, str) or type(consumers) is not int or not 1 <= consumers <= _CONSUMERS_MAX:
            return {"error": {"message": "not understood"}}
        # Who asks has it from the model's folder, where the secret part is left out.
        if uri != str(self._uri):
            return {"error": {"message": f"{Uri(str(uri)[:200])} is not what is streamed here; that is {self._uri}"}}
        try:
            return {"address": self.share(which, consumers=consumers)}
        except ColdstreamError as exc:
            return {"error": {"message": exc.message, "hint": exc.hint}}


def ask(address: str, uri: str | Uri, which: str, *, consumers: int) -> str:
    """Asks a service for a load.

    Args:
        address: Of the service.
        uri: Of the model, as the service was given it.
        which: See `LoadService.share`.
        consumers: As there.

    Returns:
        Where to attach.

    Raises:
        ColdstreamError: The service has ended, or the load cannot begin.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(address)
            sock.sendall(json.dumps({"uri": str(Uri.of(uri)), "load": which, "consumers": consumers}).encode() + b"\n")
            answer = json.loads(_read_line(sock) or b"{}")
    except (OSError, ValueError) as exc:
        raise ColdstreamError(
            f"the process that streams the weights does not answer at {address}", hint="is `coldstream serve` running?"
        ) from exc
    if found := answer.get("address"):
        return str(found)
    error = answer.get("error", {})
    raise ColdstreamError(error.get("message", "the streaming process ended"), hint=error.get("hint"))


def _read_line(sock: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < _LINE_BYTES_MAX:
        piece = sock.recv(4096)
        if not piece:
            break
        line += piece
    return line


def _sent(sock: socket.socket, data: bytes) -> bool:
    try:
        sock.sendall(data)
    except OSError:
        # Its process has ended.
        sock.close()
        return False
    return True


def _told(sock: socket.socket, until: float) -> list[str] | None:
    """What a process tells; None when it does not, in time or in this form."""
    told = bytearray()
    try:
        while not told.endswith(b"\n"):
            sock.settimeout(max(0.001, until - time.monotonic()))
            piece = sock.recv(1 << 16)
            if not piece or len(told) > _MODULES_BYTES_MAX:
                return None
            told += piece
        modules = json.loads(told)
    except (OSError, ValueError):
        return None
    return [module for module in modules if isinstance(module, str)] if isinstance(modules, list) else None
