"""Adapters for engines without credentials, which request them by name over the socket of the load service.

A request is `{"adapter": "org/a", "on_demand": true}`, and the response `{"folder": …}` or `{"error": {…}}`.
`on_demand` is what a client of the engine's API causes by naming an unknown model; without it, the engine's operator
loads an adapter, or with `is_update` the engine itself looks whether one that it has loaded was replaced. A name is
looked up in the bucket each time, so that a load gets the present version.

Clients of the API may request anything, so everything is limited: the time that they wait, the number of adapters that
are looked up, copied and held, and how often the bucket is asked about a name that it does not have.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coldstream.cache.cache import LocalCopy
from coldstream.errors import ColdstreamError, NotFoundError, UnavailableError, UsageError, where_raised
from coldstream.model.names import Uri
from coldstream.node.adapter_source import AdapterSource, StoredAdapter
from coldstream.telemetry.metrics.meter import Meter
from coldstream.units import format_bytes, format_seconds

# How long a client that names an unknown model waits for the answer, at most.
LOOK_SECONDS = 5.0
_GIVE_UP_SECONDS = 3.0
FETCH_SECONDS = 120.0
# How long an error stands for a name without another request to the bucket.
_REMEMBERED_SECONDS = {True: 2.0, False: 10.0}  # by whether trying again can help
_REMEMBERED_MAX = 1024
_LOOKS_MAX = 64
_COPIES_MAX = 4
# An engine may read any version that it was told of again, when it needed the memory for others. vLLM's dies if that is
# gone. Each copy that is held is an open file.
_HELD_MAX = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFetch:
    """A fetch of the start that succeeded, between two times by `time.monotonic`; 0 bytes received if it was cached."""

    name: str
    began: float
    ended: float
    bytes: int
    received_bytes: int


@dataclass(slots=True)
class _Fetch:
    """An adapter that is looked up and copied, for everyone who waits for it."""

    is_found: threading.Event = field(default_factory=threading.Event)
    is_done: threading.Event = field(default_factory=threading.Event)
    folder: str = ""
    is_update: bool = False
    error: ColdstreamError | None = None


class AdapterService:
    """Copies adapters to this node, and holds their copies until `close`. Thread-safe.

    Attributes:
        of_start: The adapters of the start that were copied.
        failures_of_start: Why others could not be copied.
    """

    def __init__(
        self,
        source: AdapterSource,
        *,
        on_demand: bool,
        accepts_paths: bool = False,
        say: Callable[[str], None] = lambda _: None,
        meter: Meter | None = None,
    ) -> None:
        """`accepts_paths`: whether the operator may load what is not in the bucket, as the engine does by itself."""
        self._source, self._on_demand, self._accepts_paths, self._say = source, on_demand, accepts_paths, say
        self._meter = meter or Meter()
        self.of_start: list[AdapterFetch] = []
        self.failures_of_start: list[ColdstreamError] = []
        self._lock = threading.Lock()
        self._of_start: dict[str, _Fetch] = {}
        self._running: dict[str, _Fetch] = {}
        self._errors: dict[str, tuple[float, ColdstreamError]] = {}
        # Why adapters that the engine has loaded could not be updated, each said once.
        self._update_errors: dict[str, str] = {}
        self._held: dict[Path, LocalCopy] = {}
        self._served: set[str] = set()
        self._copying = threading.BoundedSemaphore(_COPIES_MAX)

    def __repr__(self) -> str:
        return f"AdapterService({self._source}, {len(self._held)} held)"

    def begin(self, adapters: Iterable[StoredAdapter]) -> None:
        """Copies the adapters of the start while the engine starts, whose first request for each waits for it."""
        for stored in adapters:
            if stored.name in self._of_start:
                continue
            fetch = self._of_start[stored.name] = _Fetch()
            self._run(stored.name, fetch, stored)

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The response to a request; see this module."""
        path, on_demand = request.get("adapter"), request.get("on_demand") is True
        if not isinstance(path, str):
            return {"error": {"kind": "usage", "message": "invalid request"}}
        try:
            return {"folder": self.folder(path, on_demand=on_demand, is_update=request.get("is_update") is True)}
        except ColdstreamError as exc:
            return {"error": {"kind": exc.kind, "message": exc.message, "hint": exc.hint}}

    def folder(self, path: str, *, on_demand: bool, is_update: bool = False) -> str:
        """The folder of the adapter that a request names. Raises what `AdapterSource` raises."""
        name = self._source.name_of(path)
        leaves_paths = self._accepts_paths and not on_demand and not is_update
        if name is None or (on_demand and name != path):
            if leaves_paths:
                return path
            message = f"{str(Uri(path[:200]))!r} is not the name of an adapter in the bucket"
            raise NotFoundError(message) if on_demand else UsageError(message)
        if on_demand and not self._on_demand:
            raise NotFoundError(f"{name} is not served", hint="start the server with: --adapters on-demand")
        try:
            return self._fetched(name, is_update=is_update)
        except NotFoundError:
            if leaves_paths and name == path:
                return path
            raise

    def close(self) -> None:
        """Lets go of all copies. Idempotent."""
        with self._lock:
            for held in self._held.values():
                held.close()
            self._held.clear()

    def _fetched(self, name: str, *, is_update: bool) -> str:
        """The folder of an adapter's present version. One fetch serves everyone who requests it at the same time."""
        with self._lock:
            fetch = self._of_start.pop(name, None)
            is_of_start = fetch is not None
            fetch = fetch or self._running.get(name) or self._new_fetch(name, is_update=is_update)
        if not is_of_start:
            if not fetch.is_found.wait(LOOK_SECONDS):
                return self._latest(name)
            if not fetch.is_done.wait(FETCH_SECONDS):
                raise UnavailableError(f"{name} is not complete after {FETCH_SECONDS:g} s", hint="request it again")
        fetch.is_done.wait()
        if fetch.error is not None:
            raise fetch.error
        return fetch.folder

    def _new_fetch(self, name: str, *, is_update: bool) -> _Fetch:
        """Starts to fetch; raises the error of an attempt a moment ago. The caller holds the lock."""
        until, error = self._errors.pop(name, (0.0, None))
        if error is not None and time.monotonic() < until:
            self._errors[name] = (until, error)
            raise error
        if len(self._running) >= _LOOKS_MAX:
            raise UnavailableError(f"{name}: {_LOOKS_MAX} other adapters are being fetched", hint="request it again")
        fetch = self._running[name] = _Fetch(is_update=is_update)
        self._run(name, fetch)
        return fetch

    def _run(self, name: str, fetch: _Fetch, stored: StoredAdapter | None = None) -> None:
        """Fetches on another thread."""
        threading.Thread(target=self._fetch, args=(name, fetch, stored), name="adapter", daemon=True).start()

    def _fetch(self, name: str, fetch: _Fetch, stored: StoredAdapter | None) -> None:
        began, is_of_start = time.monotonic(), stored is not None
        try:
            stored = stored or self._source.find_or_latest(name, seconds=_GIVE_UP_SECONDS)
            self._source.check(stored)
            fetch.is_found.set()
            with self._copying:
                pieces: list[int] = []
                local = self._source.fetch(stored, on_bytes=pieces.append)
            is_known = fetch.is_update and local.folder in self._held
            fetch.folder = self._hold(name, local)
            if is_known:
                return
            self._report(name, began, sum(file.size for file in local.files), sum(pieces), is_of_start=is_of_start)
        except ColdstreamError as exc:
            # Without its traceback, whose frames keep objects alive.
            fetch.error = copy(exc)
            if isinstance(exc, NotFoundError):
                if name in self._served:
                    fetch.error = NotFoundError(f"{name} was removed from the bucket", hint="see: coldstream list")
            elif not fetch.is_update or self._update_errors.get(name) != exc.message:
                self._update_errors[name] = exc.message
                self._say(f"adapter {name} was not loaded: {exc.message}")
        except Exception as exc:  # noqa: BLE001  # those who wait must learn of it
            fetch.error = ColdstreamError(f"{name}: internal error: {where_raised(exc)}")
        finally:
            with self._lock:
                self._running.pop(name, None)
                if fetch.error is not None:
                    # While an upload runs, the bucket has no such adapter; clients may ask right after it.
                    if not fetch.is_update:
                        self._remember(name, fetch.error)
                    self.failures_of_start += [fetch.error] * is_of_start
                    self._meter.adapter_failed(fetch.error)
            fetch.is_found.set()
            fetch.is_done.set()

    def _report(self, name: str, began: float, size: int, received_bytes: int, *, is_of_start: bool) -> None:
        ended = time.monotonic()
        if is_of_start:
            self.of_start.append(
                AdapterFetch(name=name, began=began, ended=ended, bytes=size, received_bytes=received_bytes)
            )
        self._meter.adapter_fetched(ended - began, size, received_bytes)
        source = f"{format_bytes(size)} " if received_bytes else "from the local cache, "
        self._say(f"adapter {name}: {source}in {format_seconds(ended - began)}")

    def _remember(self, name: str, error: ColdstreamError) -> None:
        while len(self._errors) >= _REMEMBERED_MAX:
            self._errors.pop(next(iter(self._errors)))
        self._errors[name] = (time.monotonic() + _REMEMBERED_SECONDS[error.retryable], error)

    def _hold(self, name: str, local: LocalCopy) -> str:
        with self._lock:
            is_held = local.folder in self._held
            if not is_held and len(self._held) < _HELD_MAX:
                self._held[local.folder] = local
                self._served.add(name)
                return str(local.folder)
        local.close()
        if not is_held:
            raise UnavailableError(f"{name}: {_HELD_MAX} other adapters are served", hint="restart the server")
        return str(local.folder)

    def _latest(self, name: str) -> str:
        """The folder of the last version on this machine, while the bucket does not answer."""
        latest = self._source.latest(name)
        if latest is None or latest.copy is None:
            raise UnavailableError(f"{name}: {self._source.store_uri} does not answer within {LOOK_SECONDS:g} s")
        self._source.check(latest)
        return self._hold(name, self._source.fetch(latest))
