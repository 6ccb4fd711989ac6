"""One process loads: tensors as they arrive, or all of them.

    for name, tensor in coldstream.stream("Qwen/Qwen3-8B"): ...
    tensors = coldstream.load("s3://bucket/org/model")

A tensor from `stream` lies in memory that the engine reuses once nothing refers to it any more: keep it as long as you
like, and let go of it soon if you can. See docs/engine.md.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable, Generator, Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from coldstream.engine.attach import Consumer, Extent, Owner, StreamerGoneError
from coldstream.errors import ColdstreamError, UsageError
from coldstream.loading.account import Account, account_of
from coldstream.loading.load_metrics import counted
from coldstream.loading.load_plan import Prepared, prepare
from coldstream.loading.load_report import LoadReport, make_report
from coldstream.loading.options import CONNECTIONS_MAX, OnProgress, Options, accepts_old_names
from coldstream.loading.ownership import attend, cached_now, error_of, start_owner
from coldstream.loading.tensor_reader import Reader
from coldstream.loading.tensors import Made
from coldstream.model.uri import Uri
from coldstream.settings import Settings, ambient_settings

if TYPE_CHECKING:
    from typing_extensions import Self

_POLL_SECONDS = 0.1


@accepts_old_names()
def stream(
    uri: str | Uri,
    *,
    device: str = "cpu",
    framework: str | None = None,
    connections: int = CONNECTIONS_MAX,
    memory: int | None = None,
    workers: int | None = None,
    via: str = "auto",
    cache: bool | str | Path = True,
    verify: bool = True,
    in_order: bool = False,
    pin: bool = False,
    keep_all: bool = False,
    settings: Settings | None = None,
    metrics: bool = True,
    on_progress: OnProgress | None = None,
) -> Load:
    """Streams a model's tensors as they arrive: an iterator of (name, tensor).

    `Load` describes the URI, `Options` the other parameters.
    """
    options = Options(
        device=device,
        framework=framework,
        connections=connections,
        memory=memory,
        workers=workers,
        via=via,
        cache=cache,
        verify=verify,
        in_order=in_order,
        pin=pin,
        keep_all=keep_all,
        settings=settings,
        metrics=metrics,
        on_progress=on_progress,
    )
    return Load(uri, options)


@accepts_old_names()
def load(
    uri: str | Uri,
    *,
    device: str = "cpu",
    framework: str | None = None,
    connections: int = CONNECTIONS_MAX,
    memory: int | None = None,
    workers: int | None = None,
    via: str = "auto",
    cache: bool | str | Path = True,
    verify: bool = True,
    in_order: bool = False,
    pin: bool = False,
    keep_all: bool = True,
    settings: Settings | None = None,
    metrics: bool = True,
    on_progress: OnProgress | None = None,
) -> dict[str, Made]:
    """Loads all of a model's tensors, by name. Takes as much memory as the model has bytes.

    `Load` describes the URI, `Options` the other parameters.
    """
    options = Options(
        device=device,
        framework=framework,
        connections=connections,
        memory=memory,
        workers=workers,
        via=via,
        cache=cache,
        verify=verify,
        in_order=in_order,
        pin=pin,
        keep_all=keep_all,
        settings=settings,
        metrics=metrics,
        on_progress=on_progress,
    )
    with Load(uri, options) as loading:
        return dict(loading)


class Load:
    """One load: an iterator of (name, tensor), and a context manager.

    Leaving early, by `close` or the end of the `with` block, ends every process of it within a second. Tensors stay
    valid whatever happens to the load.

    Attributes:
        report: What it did, once the last tensor has been handed out; None before.
        bytes: Of all tensors; known with the first one.
    """

    def __init__(self, uri: str | Uri, options: Options | None = None) -> None:
        """Prepares; nothing is touched before the first tensor is asked for.

        Args:
            uri: `org/model` in the configured store, `s3://bucket/prefix`, `https://host/prefix`,
                `hf://org/model[/folder][@revision]`, `file:///folder` or a path.
            options: How.
        """
        self.report: LoadReport | None = None
        self.bytes = 0
        self._uri, self._options = Uri.of(uri), options or Options()
        self._owner: Owner | None = None
        self._prepared: Prepared | None = None
        self._consumer: Consumer | None = None
        self._reader: Reader | None = None
        self._closed = self._ended = self._writing = False
        self._error: ColdstreamError | None = None
        self._tensors = self._run()

    def __iter__(self) -> Iterator[tuple[str, Made]]:
        if self._ended:
            raise UsageError(
                f"{self._uri}: this load has ended; its tensors can be iterated over only once",
                hint="start another one with coldstream.stream, or keep all tensors with coldstream.load",
            )
        return self

    def __next__(self) -> tuple[str, Made]:
        return next(self._tensors)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        # `for … in stream(uri)` keeps no name to close; errors have nobody to go to here.
        with contextlib.suppress(Exception):
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else repr(self._consumer) if self._consumer else "not begun"
        return f"Load({self._uri}, {state})"

    @property
    def version(self) -> str:
        """Of the model, as `Checkpoint` says; empty before the first tensor."""
        return self._prepared.checkpoint.version if self._prepared is not None else ""

    @property
    def account(self) -> Account | None:
        """What it has done so far; None before the first byte. May be asked in any thread."""
        return account_of(self._owner) if self._owner is not None else None

    @property
    def outcome(self) -> LoadReport | ColdstreamError | None:
        """How it ended: its report, or why it failed; None while it runs, or when it was left early."""
        return self._error or self.report

    def close(self) -> None:
        """Ends the load. Idempotent. A local copy that is still being written goes on if the load was complete."""
        if self._closed:
            return
        self._closed = self._ended = True
        self._tensors.close()
        self._end()

    def _end(self) -> None:
        """Lets go of everything but what tensors refer to."""
        if self._reader is not None:
            self._reader.finish()
        if self._consumer is not None:
            self._consumer.close()
        if self._owner is not None:
            if self._writing and self._owner.stored is None and not self._owner.gone:
                self._owner.detach()
            else:
                self._owner.stop()
        if self._prepared is not None:
            self._prepared.close()

    def wait_for_cache(self, on_wait: Callable[[], None] | None = None) -> str:
        """After the last tensor: waits until the local copy is written, and says what became of it.

        Args:
            on_wait: Called every now and then.

        Returns:
            As `LoadReport.cached`, which has it too from then on.
        """
        assert self.report is not None
        assert self._owner is not None
        assert self._prepared is not None
        owner, prepared = self._owner, self._prepared
        while self._writing and owner.stored is None and owner.failure is None and not owner.gone:
            attend(owner, prepared, None, seconds=_POLL_SECONDS)
            if on_wait:
                on_wait()
        self.report = replace(self.report, cached=cached_now(owner, prepared))
        return self.report.cached

    def _run(self) -> Generator[tuple[str, Made], None, None]:
        began = time.monotonic()
        settings = self._options.settings or ambient_settings()
        owner = self._owner = start_owner(self._uri, self._options, settings)
        ended = counted(self, self._uri, self._options, settings)
        try:
            yield from self._stream(owner, settings, began)
        except StreamerGoneError as exc:
            failure = owner.last_words()
            owner.stop()
            self._error = error_of(failure, str(self._uri))
            raise copy(self._error) from exc
        except ColdstreamError as exc:
            owner.stop()
            # Without its traceback, whose frames hold the memory of the load.
            self._error = copy(exc)
            raise
        except BaseException:
            owner.stop()
            raise
        finally:
            self._ended = True
            ended()

    def _stream(self, owner: Owner, settings: Settings, began: float) -> Iterator[tuple[str, Made]]:
        options = self._options
        prepared = self._prepared = prepare(self._uri, options, settings)
        self.bytes = prepared.bytes
        engine = prepared.engine_settings(options, settings)
        owner.load(prepared.jobs, prepared.catalog, engine)
        consumer = self._consumer = owner.consumer()
        reader = self._reader = Reader(consumer, prepared.headers, options, pinned_bytes=engine.memory_limit)
        yield from reader.empty()
        first: float | None = None
        while consumer.seen < consumer.total:
            extent = self._next(owner, prepared, consumer, reader)
            if first is None:
                first = time.monotonic() - began
            pairs = reader.make(extent)
            # Only what the caller keeps may keep the extent.
            del extent
            yield from pairs
            del pairs
        reader.finish()
        seconds = time.monotonic() - began
        while owner.report is None:
            if owner.gone or owner.failure:
                raise StreamerGoneError("it ended without a report")
            attend(owner, prepared, None, seconds=1.0)
        if options.on_progress:
            options.on_progress(prepared.bytes, prepared.bytes)
        self.report = make_report(
            prepared,
            options,
            owner.report,
            seconds=seconds,
            first_tensor_seconds=seconds if first is None else first,
            cached=cached_now(owner, prepared),
        )
        # A complete copy may have had to be mended.
        self._writing = prepared.copy is not None and (prepared.writes or self.report.corrupt > 0)
        if not self._writing:
            self._end()

    def _next(self, owner: Owner, prepared: Prepared, consumer: Consumer, reader: Reader) -> Extent:
        """The next extent; attends to what else the streamer says while it waits."""
        while True:
            reader.settle()
            extent = consumer.take()
            if extent is not None:
                return extent
            if reader.settle(wait=True):
                continue
            consumer.wait()
            sources: list[Consumer | Owner] = [consumer] if owner.gone else [consumer, owner]
            if owner in select.select(sources, [], [], _POLL_SECONDS)[0]:
                attend(owner, prepared, self._options.on_progress)
            if consumer.failure or owner.failure:
                raise StreamerGoneError("it failed")
