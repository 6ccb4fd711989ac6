"""One process starts a load and several read it: the ranks of a tensor-parallel model read its weights once per node.

    with coldstream.share("Qwen/Qwen3-8B", consumers=4) as shared:      # where the bucket's keys are
        ... start the readers with shared.address ...
        report = shared.wait()

    for name, tensor in coldstream.attach(address): ...                 # in each reader, spawned or forked

Readers never see a key or a link. Each of them sees every tensor; memory is reused when all have released it. Tensors
on the CPU are in memory that all readers share: do not write to them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator
from copy import copy
from dataclasses import fields
from typing import TYPE_CHECKING

from coldstream.engine.attach import Consumer, StreamerGoneError
from coldstream.engine.load_statistics import LoadReport, LoadStatistics
from coldstream.engine.rendezvous import SocketFolder
from coldstream.errors import CancelledError, ColdstreamError, DiskError, NotFoundError, UsageError
from coldstream.loading.load_plan import prepare_load
from coldstream.loading.load_report import make_report
from coldstream.loading.options import LoadOptions, Options, takes_options
from coldstream.loading.ownership import attend, cached_now, counted, error_of, start_owner
from coldstream.loading.tensors import Layout, LoadedTensor, TensorStream, tensor_reader
from coldstream.machine.closing import Closing
from coldstream.model.header import parse_header
from coldstream.model.names import Uri
from coldstream.settings import ambient_settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

_POLL_SECONDS = 0.1


class Share(Closing):
    """A load that other processes read; a thread of this process attends to it.

    Readers pass its `address`, a socket that only this user can open, to `attach`.
    """

    def __init__(self, uri: str | Uri, *, consumers: int, options: Options | None = None) -> None:
        """Resolves the model and begins to fetch it; readers may attach at any time.

        All `consumers` must attach: memory waits for all. Each chooses `device` and `framework` itself.
        """
        self._uri, self._consumers, self._options = Uri.of(uri), consumers, options or Options()
        if self._options.names is not None:
            raise UsageError("a shared load has all tensors of the model", hint="leave out names, or use stream")
        began = time.monotonic()
        self.bytes = 0
        self._cached: str | None = None
        self._error: ColdstreamError | None = None
        self._finished = threading.Event()
        self._stopping = threading.Event()
        self._folder = SocketFolder()
        self.address = os.path.join(self._folder.path, "load")
        settings = self._options.settings or ambient_settings()
        self._owner = start_owner(self._uri, self._options, settings)
        self._end_metrics = counted(self, self._uri, self._options, settings)
        try:
            self._prepared = prepare_load(self._uri, self._options, settings)
            self.bytes = self._prepared.bytes
            self.checkpoint, self.origin = self._prepared.checkpoint, self._prepared.origin
            self._planned = (began, time.monotonic())
            job_options = self._prepared.job_options(self._options, settings, consumers=consumers, listen=self.address)
            self._owner.load(self._prepared.jobs, self._prepared.catalog, job_options)
            self._loading_since = time.monotonic()
            self._owner.wait_until_listening()
        except StreamerGoneError as exc:
            gone = error_of(self._owner.last_words(), str(self._uri))
            self._abandon(gone)
            raise gone from exc
        except BaseException as exc:
            error = error_of(None, str(self._uri)) if isinstance(exc, Exception) else None
            self._abandon(exc if isinstance(exc, ColdstreamError) else error)
            raise
        self._thread = threading.Thread(target=self._attend, name="coldstream-share", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"Share({self._uri}, {self._consumers} consumers)"

    @property
    def version(self) -> str:
        return self.checkpoint.version

    @property
    def is_gone(self) -> bool:
        """Whether the streamer has ended: every reader has attached, read everything and released it."""
        return self._owner.gone

    def wait_until_gone(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def wait(self, seconds: float | None = None) -> LoadReport | None:
        """The report, or the load's error, once everything is fetched; None after `seconds`."""
        if not self._finished.wait(seconds):
            return None
        if self._error is not None:
            raise self._error
        statistics = self._owner.statistics
        assert statistics is not None
        return make_report(
            self._prepared,
            self._options,
            statistics,
            consumers=self._consumers,
            seconds=statistics.seconds,
            first_tensor_seconds=statistics.first_ready_seconds or 0.0,
            cached=self._cached or cached_now(self._owner, self._prepared),
        )

    @property
    def statistics(self) -> LoadStatistics | None:
        """What it has done so far; None before the first byte. Safe in any thread."""
        return self._owner.statistics

    @property
    def outcome(self) -> LoadReport | ColdstreamError | None:
        """Its report, or why it failed; None while it runs."""
        return (self._error or self.wait(0)) if self._finished.is_set() else None

    def steps(self) -> dict[str, tuple[float, float]]:
        """Start and end of its steps by `time.monotonic`: "manifest", and at the end "connect" and "stream".

        The streamer counts its seconds from the plan, some milliseconds after it was sent.
        """
        steps = {"manifest": self._planned}
        statistics = self._owner.statistics
        if self._owner.has_finished and statistics is not None:
            since = self._loading_since
            steps["connect"] = (since, since + (statistics.first_ready_seconds or 0.0))
            steps["stream"] = (since, since + statistics.seconds)
        return steps

    def close(self) -> None:
        """Ends the load for all readers. Idempotent. What readers hold stays valid."""
        self._stopping.set()
        self._thread.join()
        self._owner.stop()
        self._prepared.close()
        self._folder.close()

    def _abandon(self, error: ColdstreamError | None) -> None:
        """Ends a load that has not begun."""
        self._owner.stop()
        self._folder.close()
        # A copy has no traceback, whose frames hold more than is known here.
        self._end(copy(error) if error is not None else None)

    def _attend(self) -> None:
        owner = self._owner
        while not self._stopping.is_set() and not owner.gone:
            try:
                attend(owner, self._prepared, self._options.on_progress, seconds=_POLL_SECONDS)
            except ColdstreamError as exc:
                self._error = exc
            if owner.failure is not None and self._error is None:
                self._error = error_of(owner.failure, str(self._uri))
            if owner.has_finished or self._error is not None:
                self._end(self._error)
        if not self._finished.is_set():
            self._end(None if self._stopping.is_set() else error_of(owner.last_words(), str(self._uri)))
        if owner.gone:
            # No one reads it any more: the local copy may be evicted, even if `close` is never called.
            try:
                self._cached = cached_now(owner, self._prepared)
            except DiskError as exc:
                self._cached = exc.message
            self._prepared.close()

    def _end(self, error: ColdstreamError | None) -> None:
        """Sets the outcome, once. A load that has neither finished nor failed was cancelled."""
        if self._finished.is_set():
            return
        if error is None and not self._owner.has_finished:
            error = CancelledError(f"{self._uri}: the load was ended")
        self._error = error
        self._finished.set()
        self._end_metrics()


class Attached(TensorStream):
    """A shared load as one process reads it: an iterator of (name, tensor), and a context manager."""

    _again_hint = "attach again if the load has another consumer"

    def __init__(self, address: str, options: Options | None = None) -> None:
        """Attaches; refuses when all expected readers have attached already, or the load failed."""
        self._target, self._options = address, options or Options()
        try:
            self._consumer = Consumer.connect(address)
        except StreamerGoneError as exc:
            raise error_of(exc.failure, address) from exc
        except ConnectionRefusedError as exc:
            # The socket exists and no process listens: it was killed.
            raise error_of(None, address) from exc
        except OSError as exc:
            raise NotFoundError(f"no load is shared at {address}: {exc.strerror}") from exc
        catalog = self._consumer.catalog
        headers = [parse_header(file.head, file_bytes=file.size, path=file.path) for file in catalog.files]
        self.total_bytes = sum(stop - start for _, start, stop in catalog.extents)
        layout, arena = Layout(headers, catalog.extents), self._consumer.arena
        self._reader = tensor_reader(layout, self._options, arena=arena, pinned_bytes=self.total_bytes)
        self._tensors = self._run()

    def close(self) -> None:
        """Detaches. Tensors stay valid."""
        self._ended = True
        self._reader.finish()
        self._consumer.close()

    def _run(self) -> Generator[tuple[str, LoadedTensor], None, None]:
        yield from self._reader.empty()
        try:
            for extent in self._consumer.extents(before_wait=lambda: self._reader.settle(wait=True)):
                pairs = self._reader.make(extent)
                del extent
                yield from pairs
                del pairs
                self._reader.settle()
        except StreamerGoneError as exc:
            raise error_of(self._consumer.failure, self._target) from exc
        finally:
            self.close()


@takes_options("framework", "pin")
def share(
    uri: str | Uri,
    *,
    consumers: int,
    keep_all: bool = False,
    attach_seconds: float = 600.0,
    **options: Unpack[LoadOptions],
) -> Share:
    """Starts a load that `consumers` processes read with `attach`.

    `Share` describes the URI and `consumers`, `Options` the other parameters. `device` is where readers put the
    tensors; it decides how much memory is reserved.
    """
    made = Options(keep_all=keep_all, attach_seconds=attach_seconds, **options)
    return Share(uri, consumers=consumers, options=made)


@takes_options(*(field.name for field in fields(Options) if field.name not in {"device", "framework", "pin", "names"}))
def attach(address: str, *, device: str = "cpu", framework: str | None = None, pin: bool = False) -> Attached:
    """Reads a load that another process shares at `Share.address`; `Options` describes the other parameters."""
    return Attached(address, Options(device=device, framework=framework, pin=pin))
