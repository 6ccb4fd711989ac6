"""One process loads: tensors as they arrive, all of them, or into a torch module in place.

    for name, tensor in coldstream.stream("Qwen/Qwen3-8B"): ...
    tensors = coldstream.load("s3://bucket/org/model")
    coldstream.load_into(module, "https://cdn.example.com/model")

A tensor of `stream` is a view of memory that the engine reuses when nothing refers to it any more. See docs/python.md.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from coldstream.engine.attach import Consumer, Extent, Owner, StreamerGoneError, ready
from coldstream.engine.load_statistics import LoadReport, LoadStatistics
from coldstream.errors import ColdstreamError, UsageError
from coldstream.loading.load_plan import PreparedLoad, prepare_load
from coldstream.loading.load_report import make_report
from coldstream.loading.options import LoadOptions, OnProgress, Options, TensorOptions, require_torch, takes_options
from coldstream.loading.ownership import attend, cached_now, counted, error_of, start_owner
from coldstream.loading.tensors import Layout, LoadedTensor, TensorReader, TensorStream, is_pinned, tensor_reader
from coldstream.model.names import Uri
from coldstream.model.tensor_choice import Names
from coldstream.settings import Settings, ambient_settings

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

    from coldstream.engine.mapped_files import MappedFiles

_POLL_SECONDS = 0.1


@takes_options(listed=TensorOptions)
def stream(uri: str | Uri, *, subfolder: str = "", keep_all: bool = False, **options: Unpack[TensorOptions]) -> Load:
    """Streams a model's tensors as they arrive: an iterator of (name, tensor).

    `subfolder` is a folder inside the model, such as a component of a pipeline. `Load` describes the URI, `Options` the
    other parameters.
    """
    return Load(Uri.of(uri).below(subfolder), Options(keep_all=keep_all, **options))


@takes_options(listed=TensorOptions)
def load(
    uri: str | Uri, *, subfolder: str = "", keep_all: bool = True, **options: Unpack[TensorOptions]
) -> dict[str, LoadedTensor]:
    """Loads all of a model's tensors, by name; takes as much memory as the model has bytes. Otherwise as `stream`."""
    with Load(Uri.of(uri).below(subfolder), Options(keep_all=keep_all, **options)) as loading:
        return dict(loading)


@takes_options("framework", "keep_all")
def load_into(
    module: torch.nn.Module,
    uri: str | Uri,
    *,
    strict: bool = True,
    prefix: str = "",
    names: Names | None = None,
    subfolder: str = "",
    pin: bool = False,
    **options: Unpack[LoadOptions],
) -> LoadIntoReport:
    """Copies a model's tensors into a module's parameters and buffers, in place, converting dtypes.

    The parameters that are not listed here are those of `Load` and `Options`.

    Args:
        module: On any device but "meta".
        strict: Whether missing or unexpected names are an error, raised after everything that fits was copied.
        names: With them, what the module has beyond these tensors keeps its values and is not missing.
        subfolder: A folder inside the model, such as a component of a pipeline.
        prefix: Removed from the checkpoint's names ("model."); names without it are unexpected.
        device: Where the tensors are loaded before they are copied to the module's own device.

    Raises:
        UsageError: A shape differs, the module is on "meta", or names differ and `strict` is set.
        ColdstreamError: As for `Load`; the module is then partly filled.
    """
    require_torch("load_into")
    import torch

    # With tied weights several names are one tensor, and one of them is enough.
    targets: dict[str, torch.Tensor] = dict(module.state_dict(keep_vars=True))
    if any(target.is_meta for target in targets.values()):
        raise UsageError("the module is on the meta device", hint="allocate it first: module.to_empty(device=...)")
    copied: set[str] = set()
    unexpected: list[str] = []
    uri = Uri.of(uri).below(subfolder)
    made = Options(framework="pt", names=names, pin=pin, **options)
    with Load(uri, made) as loading, torch.no_grad():
        for name, tensor in loading:
            inner = name.removeprefix(prefix)
            target = targets.get(inner) if name.startswith(prefix) else None
            if target is None:
                unexpected.append(name)
            elif target.shape != tensor.shape:
                raise UsageError(
                    f"{name} has the shape {tuple(tensor.shape)}, in the module it is {tuple(target.shape)}",
                    hint="make the module from the config.json of this checkpoint",
                )
            else:
                target.copy_(tensor)
                copied.add(inner)
        report = loading.report
    assert report is not None
    filled = {targets[name].data_ptr() for name in copied if targets[name].numel()}
    missing = [name for name, target in targets.items() if name not in copied and target.data_ptr() not in filled]
    missing = missing if names is None else []
    if strict and (missing or unexpected):
        differences = [
            f"{what} {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            for what, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise UsageError(
            f"{uri} and the module differ: {', '.join(differences)}", hint=_difference_hint(missing, unexpected)
        )
    return LoadIntoReport(missing=tuple(missing), unexpected=tuple(sorted(unexpected)), report=report)


def _difference_hint(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """How to load names that differ by a prefix only, which is the usual case."""
    for name in missing:
        prefixes = [other.removesuffix(name) for other in unexpected if other.endswith(f".{name}")]
        if prefixes:
            return f"the names begin with {prefixes[0]!r}: use prefix={prefixes[0]!r}; or strict=False to accept that"
    return "use strict=False to accept that"


class Load(TensorStream):
    """One load: an iterator of (name, tensor), and a context manager.

    Leaving early, by `close` or the end of the `with` block, ends all of its processes within a second. Tensors stay
    valid in any case.
    """

    _again_hint = "start another one with coldstream.stream, or keep all tensors with coldstream.load"

    def __init__(self, uri: str | Uri, options: Options | None = None) -> None:
        """Prepares; nothing is read before the first tensor is requested.

        `uri` is `org/model` in the configured store, `s3://bucket/prefix`, `https://host/prefix`,
        `hf://org/model[/folder][@revision]`, `file:///folder` or a path.
        """
        self.report: LoadReport | None = None  # its result, after the last tensor; None before
        self.bytes = 0  # of all tensors; known with the first one
        self._target, self._options = Uri.of(uri), options or Options()
        self._owner: Owner | None = None
        self._prepared: PreparedLoad | None = None
        self._files: MappedFiles | None = None
        self._consumer: Consumer | None = None
        self._reader: TensorReader | None = None
        self._began = 0.0
        self._first_seconds: float | None = None
        self._closed = self._writing = False
        self._error: ColdstreamError | None = None
        self._tensors = self._run()

    def __del__(self) -> None:
        # `for … in stream(uri)` keeps no reference to close; no one can catch an error here.
        with contextlib.suppress(Exception):
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else repr(self._consumer) if self._consumer else "not begun"
        return f"Load({self._target}, {state})"

    @property
    def version(self) -> str:
        """Empty before the first tensor."""
        return self._prepared.checkpoint.version if self._prepared is not None else ""

    @property
    def statistics(self) -> LoadStatistics | None:
        """Safe in any thread; None before the first byte."""
        statistics = self._owner.statistics if self._owner is not None else None
        return self._files.total(statistics) if self._files is not None else statistics

    @property
    def outcome(self) -> LoadReport | ColdstreamError | None:
        """Its report, or why it failed; None while it runs, or when it was left early."""
        return self._error or self.report

    def close(self) -> None:
        """Ends the load. Idempotent. The local copy of a complete load is still finished in the background."""
        if self._closed:
            return
        self._closed = self._ended = True
        self._tensors.close()
        self._release()

    def _release(self) -> None:
        if self._reader is not None:
            self._reader.finish()
        if self._files is not None:
            self._files.close()
        if self._consumer is not None:
            self._consumer.close()
        if self._owner is not None:
            if self._writing and self._owner.copy_failure is None and not self._owner.gone:
                self._owner.detach()
            else:
                self._owner.stop()
        if self._prepared is not None:
            self._prepared.close()

    def wait_for_cache(self, on_wait: Callable[[], None] | None = None) -> str:
        """After the last tensor: blocks until the local copy is written, and returns the new `LoadReport.cached`.

        `on_wait` is called several times a second.
        """
        owner, prepared = self._owner, self._prepared
        assert self.report is not None
        assert prepared is not None
        if owner is None:
            return self.report.cached
        while self._writing and owner.copy_failure is None and owner.failure is None and not owner.gone:
            attend(owner, prepared, None, seconds=_POLL_SECONDS)
            if on_wait:
                on_wait()
        self.report = replace(self.report, cached=cached_now(owner, prepared))
        return self.report.cached

    def _run(self) -> Generator[tuple[str, LoadedTensor], None, None]:
        self._began = time.monotonic()
        settings = self._options.settings or ambient_settings()
        end_metrics = counted(self, self._target, self._options, settings)
        try:
            yield from self._stream(settings)
        except StreamerGoneError as exc:
            assert self._owner is not None
            failure = self._owner.last_words()
            self._stop()
            self._error = error_of(failure, str(self._target))
            raise copy(self._error) from exc
        except ColdstreamError as exc:
            self._stop()
            # A copy has no traceback, whose frames hold the memory of the load.
            self._error = copy(exc)
            raise
        except BaseException:
            self._stop()
            raise
        finally:
            self._ended = True
            end_metrics()

    def _start(self, settings: Settings) -> Owner:
        self._owner = self._owner or start_owner(self._target, self._options, settings)
        return self._owner

    def _stop(self) -> None:
        if self._owner is not None:
            self._owner.stop()

    def _stream(self, settings: Settings) -> Iterator[tuple[str, LoadedTensor]]:
        options = self._options
        prepared = self._prepared = prepare_load(self._target, options, settings, on_cold=lambda: self._start(settings))
        self.bytes = prepared.bytes
        files = self._files = None if is_pinned(options) else prepared.map_files(options)
        if files is not None:
            self._stop()
            self._owner = None
            reader = self._reader = tensor_reader(
                Layout(prepared.headers, prepared.catalog.extents), options, arena=None
            )
            yield from reader.empty()
            yield from self._make(reader, self._mapped(files))
            prepared.leave_out(files.usable)
        if files is None or not files.is_whole:
            owner = self._start(settings)
            job_options = prepared.job_options(options, settings)
            owner.load(prepared.jobs, prepared.catalog, job_options)
            consumer = self._consumer = owner.consumer()
            reader = self._reader = tensor_reader(
                Layout(prepared.headers, consumer.catalog.extents),
                options,
                arena=consumer.arena,
                pinned_bytes=job_options.memory_limit,
            )
            if files is None:
                yield from reader.empty()
            yield from self._make(reader, self._streamed(owner, prepared, consumer, reader))
        self._finish(prepared, time.monotonic() - self._began)

    def _make(self, reader: TensorReader, extents: Iterator[Extent]) -> Iterator[tuple[str, LoadedTensor]]:
        for extent in extents:
            if self._first_seconds is None:
                self._first_seconds = time.monotonic() - self._began
            pairs = reader.make(extent)
            # Only what the caller keeps may keep the extent.
            del extent
            yield from pairs
            del pairs
            reader.settle()
        reader.finish()

    def _mapped(self, files: MappedFiles) -> Iterator[Extent]:
        """The extents of mapped files, up to the first one that is wrong."""
        due = self._began + _POLL_SECONDS
        for number in range(len(files.extents)):
            while not files.wait(number, _POLL_SECONDS):
                if number >= files.usable:
                    return
            if self._options.on_progress and time.monotonic() > due:
                due += _POLL_SECONDS
                self._options.on_progress(files.statistics.local_bytes, self.bytes)
            yield files.extent(number)

    def _streamed(
        self, owner: Owner, prepared: PreparedLoad, consumer: Consumer, reader: TensorReader
    ) -> Iterator[Extent]:
        """The streamer's extents; answers its other messages while it waits."""
        while consumer.seen < consumer.total:
            if (extent := consumer.take()) is not None:
                yield extent
                del extent
                continue
            if reader.settle(wait=True):
                continue
            consumer.wait()
            sources: list[Consumer | Owner] = [consumer] if owner.gone else [consumer, owner]
            if owner in ready(sources, _POLL_SECONDS):
                attend(owner, prepared, self._on_progress())
            if consumer.failure or owner.failure:
                raise StreamerGoneError("it failed")

    def _on_progress(self) -> OnProgress | None:
        """Counts what was read in place before the streamer was started."""
        callback, files = self._options.on_progress, self._files
        if callback is None or files is None:
            return callback
        before = files.statistics.local_bytes
        return lambda count, total: callback(min(before + count, total), total)

    def _finish(self, prepared: PreparedLoad, seconds: float) -> None:
        """Makes the report."""
        owner, options = self._owner, self._options
        while owner is not None and not owner.has_finished:
            if owner.gone or owner.failure:
                raise StreamerGoneError("it ended without a report")
            attend(owner, prepared, None, seconds=1.0)
        if options.on_progress:
            options.on_progress(prepared.bytes, prepared.bytes)
        statistics = self.statistics
        assert statistics is not None
        self.report = make_report(
            prepared,
            options,
            statistics,
            seconds=seconds,
            first_tensor_seconds=seconds if self._first_seconds is None else self._first_seconds,
            cached=cached_now(owner, prepared),
        )
        # Even a complete copy may have had a wrong chunk.
        self._writing = (
            owner is not None and prepared.local_copy is not None and (prepared.writes or self.report.corrupt > 0)
        )
        if not self._writing:
            self._release()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadIntoReport:
    """The result of `load_into`."""

    missing: tuple[str, ...]  # parameters and buffers that the checkpoint does not have
    unexpected: tuple[str, ...]  # tensors that the module does not have
    report: LoadReport
