"""Plans a load: resolves the model, and finds what the local copy already has."""

from __future__ import annotations

import shlex
from bisect import bisect_left
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from coldstream.cache.cache import Cache, LocalCopy, configured
from coldstream.cache.copy_records import CachedFile
from coldstream.errors import ColdstreamError, DiskError, UnavailableError, UsageError
from coldstream.loading.options import Options
from coldstream.machine.connections import WORKERS_USUAL, connection_table
from coldstream.machine.hardware import available_bytes, cores
from coldstream.machine.limits import mapping_limit
from coldstream.model.chunks import extents as extents_of
from coldstream.model.header import Header, parse_header, rank_of
from coldstream.model.job import Catalog, CatalogFile, FileJob, JobOptions, Segment
from coldstream.model.names import Uri, is_path
from coldstream.model.tensor_choice import choose_tensors
from coldstream.net.retry import Backoff, Retry
from coldstream.places.checkpoint import Checkpoint, Shard
from coldstream.places.model_reader import ModelReader
from coldstream.places.opening import open_model_reader, scheme_of
from coldstream.settings import Settings
from coldstream.units import GIB, MIB, format_bytes

if TYPE_CHECKING:
    from coldstream.engine.mapped_files import MappedFiles

OFFLINE_SECONDS = 5.0  # how long to wait for a bucket that does not answer when the local copy is complete
_SLACK_BYTES = 256 * MIB  # memory for chunks in flight when all tensors are kept
# For a device all of it is pinned, so it is as large as is useful, and not as large as possible.
_DEVICE_ARENA_BYTES = GIB


@dataclass(slots=True, kw_only=True)
class PreparedLoad:
    """A load that can begin. Holds the local copy until `close`."""

    checkpoint: Checkpoint
    # Where links are renewed; None if the local copy is used because the origin did not answer.
    origin: ModelReader | None
    headers: list[Header]  # of the shards, with the tensors to load
    local_copy: LocalCopy | None
    cached: str  # `LoadReport.cached` if nothing is written to the local copy
    bytes_max: int | None  # the limit of the cache, or None
    cdn_unused: str = ""  # why the CDN is not used, or ""
    jobs: list[FileJob] = field(default_factory=list, init=False)
    catalog: Catalog = field(init=False)
    bytes: int = field(init=False)  # of all tensors
    # (path, number in its file) of every segment, as the engine numbers them.
    segments: list[tuple[str, int]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        files, extents = [], []
        for number, shard in enumerate(self.checkpoint.shards):
            edges = (0, *shard.stops)
            starts = [tensor.start for tensor in self.headers[number].tensors if tensor.start < tensor.stop]
            # Only those in which a tensor begins that is to be loaded; without a choice, all of them.
            runs = tuple(
                (first, stop)
                for first, stop in extents_of(shard.header, shard.stops)
                if bisect_left(starts, edges[first]) < bisect_left(starts, edges[stop])
            )
            self.jobs.append(self._job(number, shard, runs))
            self.segments += [(shard.path, segment) for segment in range(len(shard.segments))]
            extents += [(number, edges[first], edges[stop]) for first, stop in runs]
            head_stops = tuple(stop for stop in shard.stops if stop <= shard.header.data_start)
            files.append(CatalogFile(shard.path, shard.size, shard.head, head_stops))
        self.catalog = Catalog(tuple(files), tuple(extents))
        self.bytes = sum(stop - start for _, start, stop in extents)

    @property
    def writes(self) -> bool:
        """Whether the load fills the local copy."""
        return self.local_copy is not None and self.cached == "partly"

    @property
    def offline(self) -> bool:
        return self.origin is None

    def job_options(
        self, options: Options, settings: Settings, *, consumers: int = 1, listen: str | None = None
    ) -> JobOptions:
        """The options for the engine; refuses to load when a limit of this process leaves too little memory."""
        largest = max((stop - start for _, start, stop in self.catalog.extents), default=0)
        if options.memory is not None:
            memory_limit = options.memory
        elif options.device != "cpu":
            memory_limit = max(_DEVICE_ARENA_BYTES, 2 * largest)
        else:
            memory_limit = self.bytes + _SLACK_BYTES if options.keep_all else max(_SLACK_BYTES, available_bytes() // 2)
        if (limit := mapping_limit()) is not None:
            room, limit_name = limit
            # A loop holds one tensor while it requests the next.
            what, needed = "two of the largest tensors take", min(2 * largest, self.bytes)
            if options.keep_all:
                what, needed = "all tensors take", self.bytes
            if needed > room:
                raise ColdstreamError(
                    f"{what} {format_bytes(needed)}, and {limit_name} leaves {format_bytes(room)}",
                    hint="raise or remove the limit: ulimit -a shows all limits",
                )
            memory_limit = min(memory_limit, room)
        return JobOptions(
            memory_limit=memory_limit,
            arena_bytes_max=None if limit is None else limit[0],
            consumers=consumers,
            listen=listen,
            verify=options.verify,
            in_order=options.in_order,
            give_up_seconds=settings.retry_seconds,
            attach_seconds=options.attach_seconds,
            answer_seconds=self.checkpoint.answer_seconds,
            # A number that the user has set holds for this load as it is; the others count it.
            connection_table=str(connection_table()),
            shares_connections=options.connections is None,
            # Even a complete copy may have a wrong chunk.
            cache=str(self.local_copy.folder) if self.local_copy is not None and not self.offline else None,
            cache_bytes_max=self.bytes_max,
        )

    def map_files(self, options: Options) -> MappedFiles | None:
        """Maps the files, if all of them are complete on this machine and may be mapped; None if not."""
        limit, file_bytes = mapping_limit(), sum(shard.size for shard in self.checkpoint.shards)
        if any(job.whole_path is None for job in self.jobs) or (limit is not None and limit[0] < file_bytes):
            return None
        from coldstream.engine.mapped_files import MappedFiles

        ahead_bytes = options.memory or (available_bytes() // 2 if options.device == "cpu" else _DEVICE_ARENA_BYTES)
        threads = options.workers or min(WORKERS_USUAL, cores())
        with suppress(OSError, RuntimeError):
            return MappedFiles(
                self.jobs, self.catalog.extents, verify=options.verify, threads=threads, ahead_bytes=ahead_bytes
            )
        return None

    def leave_out(self, count: int) -> None:
        """Removes the first `count` extents from the jobs and the catalog: they were read in place."""
        for number, job in enumerate(self.jobs):
            left_out = min(count, len(job.extents))
            self.jobs[number] = replace(job, extents=job.extents[left_out:])
            count -= left_out
        rest = sum(len(job.extents) for job in self.jobs)
        self.catalog = replace(self.catalog, extents=self.catalog.extents[len(self.catalog.extents) - rest :])

    def close(self) -> None:
        if self.local_copy is not None:
            self.local_copy.close()

    def _job(self, number: int, shard: Shard, runs: tuple[tuple[int, int], ...]) -> FileJob:
        segments, cdn_headers = shard.segments, self.checkpoint.cdn[1] if self.checkpoint.cdn is not None else ()
        if self.cdn_unused:
            segments, cdn_headers = tuple(replace(segment, cdn=None) for segment in segments), ()
        copy = None if shard.is_local else self.local_copy
        return FileJob(
            path=shard.path,
            segments=segments,
            copy=str(copy.path(number)) if copy is not None else None,
            have=copy.have(number) if copy is not None else b"",
            stops=shard.stops,
            digests=shard.digests or (copy.digests(number) if copy is not None else b""),
            extents=runs,
            cdn_headers=cdn_headers,
        )


def prepare_load(
    uri: Uri, options: Options, settings: Settings, *, on_cold: Callable[[], object] = lambda: None
) -> PreparedLoad:
    """Resolves a URI, reads the headers, and opens the local copy.

    `on_cold` is called before that, unless everything is expected to be on this machine. A place that does not answer
    is not an error if there is a complete local copy of the model's last version.
    """
    cache = latest = None
    if options.cache and not _is_local(uri):
        folder = settings.get("COLDSTREAM_CACHE_DIR") if isinstance(options.cache, bool) else str(options.cache)
        cache = configured(folder, settings.get("COLDSTREAM_CACHE_LIMIT"))
        with suppress(DiskError):  # opening the copy reports what is wrong
            latest = cache.latest(uri_key(uri, settings))
    if latest is None and scheme_of(uri, settings) != "file":
        on_cold()
    retry = Retry(Backoff(give_up_seconds=OFFLINE_SECONDS if latest is not None else settings.retry_seconds))
    # Closed before it is opened again: a copy in use cannot be replaced.
    with ExitStack() as closing:
        if latest is not None:
            closing.enter_context(latest)
        try:
            origin = open_model_reader(uri, settings, retry=retry, via=options.via)
            checkpoint = origin.checkpoint()
        except UnavailableError:
            if latest is None:
                raise
            checkpoint = _from_copy(uri, latest)
            headers = _chosen(checkpoint, options)
            closing.pop_all()
            return PreparedLoad(
                checkpoint=checkpoint,
                origin=None,
                headers=headers,
                local_copy=latest,
                cached="complete",
                bytes_max=None,
            )
        _refuse_ranks(checkpoint)
        headers = _chosen(checkpoint, options)
    local_copy, cached = None, "off"
    # Without a version that identifies the content, an old copy looks like a new one.
    if cache is not None and checkpoint.pinned and any(not shard.is_local for shard in checkpoint.shards):
        local_copy, cached = _open_copy(cache, uri, settings, checkpoint)
    return PreparedLoad(
        checkpoint=checkpoint,
        origin=origin,
        headers=headers,
        local_copy=local_copy,
        cached=cached,
        bytes_max=cache.bytes_max if cache is not None else None,
        cdn_unused=_cdn_unused(checkpoint, options),
    )


def _chosen(checkpoint: Checkpoint, options: Options) -> list[Header]:
    return choose_tensors([shard.header for shard in checkpoint.shards], options.names, where=checkpoint.uri)


def _refuse_ranks(checkpoint: Checkpoint) -> None:
    """Rejects the parts of several ranks: their tensors have the same names, and a load has each name once."""
    ranks = {rank_of(shard.path) for shard in checkpoint.shards}
    if len(ranks) > 1:
        raise UsageError(
            f"{checkpoint.uri} holds a part of the model for each of {len(ranks)} ranks",
            hint=f"run: coldstream serve {shlex.quote(checkpoint.name)} --loader runai-sharded",
            target=checkpoint.uri,
        )


def _cdn_unused(checkpoint: Checkpoint, options: Options) -> str:
    """Why the CDN is not used: what cannot be verified comes from the bucket itself."""
    if checkpoint.cdn is None:
        return ""
    if not checkpoint.verified:
        return "no manifest tells the hashes of this model, so it came from the bucket (run: coldstream upload)"
    return "" if options.verify else "its answers have to be verified, so with --no-verify the bucket is read"


def _open_copy(cache: Cache, uri: Uri, settings: Settings, checkpoint: Checkpoint) -> tuple[LocalCopy | None, str]:
    files = [CachedFile(path=s.path, size=s.size, stops=s.stops, digests=s.digests) for s in checkpoint.shards]
    try:
        copy = cache.open(uri=uri_key(uri, settings), name=checkpoint.name, version=checkpoint.version, files=files)
        copy.touch()
    except DiskError as exc:
        return None, exc.message
    return copy, "complete" if copy.complete else "partly"


def _is_local(uri: Uri) -> bool:
    return is_path(uri.full) or uri.full.startswith("file:")


def uri_key(uri: Uri, settings: Settings) -> str:
    """The key of a URI in the cache: a bare name means another model with another store. Never a secret."""
    bare = str(uri)
    return bare if "://" in bare or _is_local(uri) else f"{settings.store_uri()}/{bare}"


def _from_copy(uri: Uri, copy: LocalCopy) -> Checkpoint:
    """The checkpoint of a complete local copy."""
    shards = []
    for number, file in enumerate(copy.files):
        path = copy.path(number)
        with open(path, "rb") as opened:
            first = opened.read(8)
            head = first + opened.read(int.from_bytes(first, "little"))
        shards.append(
            Shard(
                path=file.path,
                size=file.size,
                segments=(Segment(stop=file.size, local=str(path)),),
                header=parse_header(head, file_bytes=file.size, path=file.path),
                head=head,
                stops=file.stops,
                digests=file.digests or copy.digests(number),
            )
        )
    return Checkpoint(
        uri=str(uri),
        name=copy.name,
        version=copy.version,
        verified=all(file.digests for file in copy.files),
        pinned=True,
        shards=tuple(shards),
    )
