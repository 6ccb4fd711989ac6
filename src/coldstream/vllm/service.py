"""Loads for processes that hold no key: one process has the bucket's credentials, vLLM's ask it over a Unix socket.

All ranks of a node ask for the same load and get the same address to attach to, so that the bytes cross the network
once. The first load begins before anybody asks: it runs while vLLM is imported. A rank that reloads its weights asks
for the next one.

A request is one line of JSON, `{"load": "<which>", "consumers": <how many readers it has>}`, and so is the answer:
`{"address": …}` or `{"error": {…}}`. Only this user may connect.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from coldstream.engine import wire
from coldstream.errors import ColdstreamError, ConflictError
from coldstream.loading import Options, Share

if TYPE_CHECKING:
    from typing_extensions import Self

# In the environment of vLLM's processes: where to ask.
VARIABLE = "COLDSTREAM_SERVICE"
# The load that begins by itself.
FIRST = "1"
_LINE_BYTES_MAX = 16 << 10
_CONSUMERS_MAX = 1024


class LoadService:
    """Gives loads of one model to this user's processes. Context manager; threads of this process attend to it.

    Attributes:
        address: For `VARIABLE`.
        first: The load that began first, for its report; None until `begin`.
    """

    def __init__(self, uri: str, *, options: Options) -> None:
        """Prepares; nothing is asked of the bucket yet.

        Args:
            uri: See `Load`.
            options: Of each load.
        """
        self._uri, self._options = uri, options
        self._version: str | None = None
        self._lock = threading.Lock()
        self._shares: dict[str, tuple[int, Share]] = {}
        self.first: Share | None = None
        self._folder = tempfile.mkdtemp(prefix="coldstream-")  # mode 0700
        self.address = os.path.join(self._folder, "loads")
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(self.address)
        self._listening.listen(64)
        threading.Thread(target=self._serve, name="coldstream-service", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LoadService({self._uri}, {len(self._shares)} loads)"

    def begin(self, *, consumers: int) -> Share:
        """Begins the first load.

        Args:
            consumers: How many ranks this node will have, as far as is known; the ranks know better.

        Raises:
            What `Share` raises.
        """
        with self._lock:
            self.first = Share(self._uri, consumers=consumers, options=self._options)
            self._version = self.first.version
            self._shares[FIRST] = consumers, self.first
        return self.first

    def expect(self, version: str) -> None:
        """Says which version of the model vLLM has the configuration of.

        Raises:
            ConflictError: The weights are of another one.
        """
        self._version = self._version or version
        if self._version != version:
            raise ConflictError("the model was replaced while it was being prepared", hint="start again")

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
            expected, found = self._shares.get(which, (0, None))
            if found is not None and expected != consumers:
                # Begun before the number was known: nobody has attached yet.
                found.close()
                found = None
            if found is None:
                found = Share(self._uri, consumers=consumers, options=self._options)
                if which == FIRST:
                    self.first = found
                self._shares[which] = consumers, found
                if self._version not in {None, found.version}:
                    found.close()
                    del self._shares[which]
                    raise ConflictError(f"{self._uri} was replaced since vLLM was started", hint="start it again")
                self._version = found.version
            return found.address

    def close(self) -> None:
        """Ends all loads, whoever reads them. Idempotent."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        with self._lock:
            for _, share in self._shares.values():
                share.close()
            self._shares.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(sock,), daemon=True).start()

    def _answer(self, sock: socket.socket) -> None:
        with sock, suppress(OSError):
            if wire.peer_uid(sock) != os.getuid():
                return
            sock.settimeout(10)
            sock.sendall(json.dumps(self._answer_to(_read_line(sock))).encode() + b"\n")

    def _answer_to(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            which, consumers = request["load"], request["consumers"]
        except (ValueError, KeyError, TypeError):
            return {"error": {"message": "not understood"}}
        if not isinstance(which, str) or type(consumers) is not int or not 1 <= consumers <= _CONSUMERS_MAX:
            return {"error": {"message": "not understood"}}
        try:
            return {"address": self.share(which, consumers=consumers)}
        except ColdstreamError as exc:
            return {"error": {"message": exc.message, "hint": exc.hint}}


def ask(address: str, which: str, *, consumers: int) -> str:
    """Asks a service for a load.

    Args:
        address: Of the service.
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
            sock.sendall(json.dumps({"load": which, "consumers": consumers}).encode() + b"\n")
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
