"""The LoRA adapters of one model: found in the bucket, checked against the model, and copied to the node's cache.

A copy is a folder that an inference engine reads itself: an adapter's configuration and its weights, verified against
the manifest. It is a copy of the cache (`coldstream.cache`): each version has a folder of its own, two processes share
it, it is not evicted while it is held, and the least recently used copies make room for new ones.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import xxhash

from coldstream.cache.cache import Cache, LocalCopy, cache_of
from coldstream.cache.copy_records import CachedFile
from coldstream.cache.copy_writer import CopyWriter
from coldstream.errors import (
    CredentialsError,
    DiskError,
    IntegrityError,
    ManifestError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from coldstream.loading.load_plan import OFFLINE_SECONDS
from coldstream.machine.disk import disk_errors, read_bounded, temporary_root
from coldstream.machine.parallel import in_parallel
from coldstream.mirror.digest import read_header
from coldstream.mirror.manifest_records import model_listing, read_record
from coldstream.mirror.stored_files import StoredFile, StoredModel, object_key
from coldstream.model.adapter import CONFIG_BYTES_MAX, WEIGHTS_NAME, Adapter, parse_config
from coldstream.model.adapter_fit import Modules, misfits
from coldstream.model.header import Tensor
from coldstream.model.manifest import Journal, upload_command
from coldstream.model.names import MANIFEST_NAME, checked_name, is_path
from coldstream.model.selection import ADAPTER_CONFIG_NAME
from coldstream.net.retry import Backoff, Retry
from coldstream.places.model_records import group_by_model
from coldstream.places.opening import open_store
from coldstream.places.place import Store, replaced
from coldstream.settings import Settings
from coldstream.units import GIB, MIB, format_bytes

# As of the other parts that are read as files: see `coldstream.model.selection`.
ADAPTER_BYTES_MAX = 4 * GIB
# Of an adapter without a manifest.
_PIECE_BYTES = 8 * MIB
_CONNECTIONS = 8
_STORE_CONNECTIONS = 32
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAdapter:
    """An adapter that the model can be served with. `version` depends on its content; `files` are those of a copy.

    `copy` is the last one on this machine, if the bucket does not answer; then `files` is empty.
    """

    name: str
    adapter: Adapter
    version: str
    files: tuple[StoredFile, ...] = ()
    copy: LocalCopy | None = None

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)


class AdapterSource:
    """The adapters of one model in a store. Thread-safe.

    Attributes:
        base: The model's name in the bucket; None if it has none: then the engine compares the tensors.
        rank_max: The largest rank that the engine accepts; None while that is unknown.
        engine: Who serves them, for messages.
        modules: The model's tensors, to compare adapters with; empty while they are unknown.
    """

    def __init__(self, settings: Settings, *, base: str | None, store: str, cache: bool | str | Path = True) -> None:
        """Sends no request. `store` is the URI of the store; `cache` as in `Options`."""
        self.base = base
        self.rank_max: int | None = None
        self.engine = "vLLM"
        self.modules: Modules = {}
        self.store_uri = store
        self._settings, self._cache_choice = settings, cache
        self._lock = threading.Lock()
        self._stores: dict[float, Store] = {}

    def __repr__(self) -> str:
        return f"AdapterSource({self.store_uri}, {self.base})"

    def name_of(self, path: str) -> str | None:
        """The name of an adapter in this bucket, from a name or its `s3://` URI; None for anything else."""
        name = path.removeprefix(f"{self.store_uri}/").rstrip("/")
        if "://" in name or is_path(name):
            return None
        with suppress(UsageError):
            return checked_name(name)
        return None

    def find(self, name: str, *, seconds: float) -> StoredAdapter:
        """Looks an adapter up; gives up after `seconds` without an answer. See `check` for whether it can be served.

        Raises NotFoundError, UnavailableError and IntegrityError; UsageError: it is too large, or names no base model.
        """
        store = self._store(seconds)
        model = _stored_model(store, checked_name(name))
        files = {file.path: file for file in model.files}
        if missing := [path for path in (ADAPTER_CONFIG_NAME, WEIGHTS_NAME) if path not in files]:
            raise NotFoundError(f"{name} is not an adapter: it has no {missing[0]}", target=f"{store.uri}/{name}")
        config, weights = files[ADAPTER_CONFIG_NAME], files[WEIGHTS_NAME]
        if config.size > CONFIG_BYTES_MAX or weights.size > ADAPTER_BYTES_MAX:
            raise UsageError(
                f"{name} is too large for an adapter: its weights have {format_bytes(weights.size)} of at most "
                f"{format_bytes(ADAPTER_BYTES_MAX)}, its configuration {format_bytes(config.size)}"
            )
        adapter = model.record.adapter if model.record else None
        if adapter is None:
            data = _read(store, name, config, 0, config.size)
            adapter = parse_config(data, where=f"{store.uri}/{name}/{ADAPTER_CONFIG_NAME}")
        both = (config, weights)
        return StoredAdapter(name=name, adapter=adapter, version=_version(both), files=both)

    def latest(self, name: str) -> StoredAdapter | None:
        """The last version on this machine, for when the bucket does not answer. The caller closes its copy."""
        copy = None
        with suppress(DiskError):
            copy = self._cache().latest(self._uri(name))
        if copy is None:
            return None
        data = read_bounded(copy.folder / ADAPTER_CONFIG_NAME, CONFIG_BYTES_MAX)
        # The copy is of this base, whatever its configuration names.
        adapter = parse_config(data or b"", where=str(copy.folder), base=self.base)
        return StoredAdapter(name=name, adapter=adapter, version=copy.version, copy=copy)

    def find_or_latest(self, name: str, *, seconds: float) -> StoredAdapter:
        """As `find`; the last version on this machine if the bucket does not answer."""
        with ExitStack() as closing:
            latest = self.latest(name)
            if latest is not None and latest.copy is not None:
                closing.enter_context(latest.copy)
            try:
                return self.find(name, seconds=seconds if latest is None else min(seconds, OFFLINE_SECONDS))
            except UnavailableError:
                if latest is None:
                    raise
                closing.pop_all()
                return latest

    def names(self, *, seconds: float) -> Sequence[str]:
        """All adapters in the bucket, of whatever model; those of this model on this machine if it does not answer."""
        local: list[str] = []
        with suppress(DiskError):
            local = [entry.name for entry in self._cache().entries() if entry.uri == self._uri(entry.name)]
        try:
            store = self._store(min(seconds, OFFLINE_SECONDS) if local else seconds)
            groups = group_by_model(store.list(""))
        except UnavailableError:
            if not local:
                raise
            return sorted({*local})
        return [
            name
            for name, objects in groups.items()
            if any(info.key == f"{name}/{ADAPTER_CONFIG_NAME}" for info in objects)
        ]

    def is_of_base(self, stored: StoredAdapter) -> bool:
        """Whether an adapter is of this model, as far as that can be told. Raises UnavailableError."""
        if self.base is None or stored.copy is not None or stored.adapter.is_of(self.base):
            return True
        return stored.adapter.is_of(self.base, self._repo)

    def check(self, stored: StoredAdapter) -> None:
        """Raises UsageError for an adapter that the engine cannot serve with this model."""
        name, adapter = stored.name, stored.adapter
        if not self.is_of_base(stored):
            raise adapter.wrong_base(name, str(self.base))
        if adapter.refusal:
            raise UsageError(f"{name} cannot be served: {adapter.refusal.replace('vLLM', self.engine)}")
        if self.rank_max is not None and adapter.rank > self.rank_max:
            raise UsageError(
                f"{name} has the rank {adapter.rank}, and the server accepts ranks up to {self.rank_max}",
                hint=f"serve with: -- --max-lora-rank {adapter.rank}",
            )

    def check_tensors(self, stored: StoredAdapter, *, seconds: float) -> None:
        """Raises UsageError for an adapter whose tensors do not fit the model's; reads them from a copy if it can."""
        if not self.modules:
            return
        with ExitStack() as closing:
            copy = stored.copy
            if copy is None and (latest := self.latest(stored.name)) is not None and latest.copy is not None:
                closing.enter_context(latest.copy)
                copy = latest.copy if latest.version == stored.version else None
            if copy is not None:
                self._check_fit(stored, _tensors_below(copy.folder))
                return
        store, weights = self._store(seconds), stored.files[1]

        def read_start(buffer: memoryview) -> None:
            buffer[:] = _read(store, stored.name, weights, 0, len(buffer))

        where = f"{store.uri}/{stored.name}/{WEIGHTS_NAME}"
        self._check_fit(stored, read_header(read_start, path=where, size=weights.size).tensors)

    def _check_fit(self, stored: StoredAdapter, tensors: Sequence[Tensor]) -> None:
        # The engine itself refuses modules of which the model has none.
        if faults := misfits(tensors, self.modules, rank=stored.adapter.rank, only_certain=True):
            raise UsageError(
                f"{stored.name} does not fit {self.base or 'the model'}: {faults[0]}",
                hint=f"see: coldstream doctor {stored.name}",
            )

    def fetch(self, stored: StoredAdapter, *, on_bytes: Callable[[int], None] = lambda _: None) -> LocalCopy:
        """The complete copy of an adapter, which is held until it is closed; copies it from the bucket if it has to.

        `on_bytes` is called with the size of each piece that came from the bucket. Without a usable cache, the copy is
        among the system's temporary files. Raises UsageError if the tensors do not fit the model's.
        """
        if (copy := stored.copy) is None:
            try:
                copy = self._fetch_into(self._cache(), stored, on_bytes)
            except DiskError:
                copy = self._fetch_into(Cache(temporary_root()), stored, on_bytes)
        with ExitStack() as closing:
            closing.enter_context(copy)
            if self.modules:
                self._check_fit(stored, _tensors_below(copy.folder))
            closing.pop_all()
        return copy

    def _fetch_into(self, cache: Cache, stored: StoredAdapter, on_bytes: Callable[[int], None]) -> LocalCopy:
        files = [_cached_file(file) for file in stored.files]
        copy = cache.open(uri=self._uri(stored.name), name=stored.name, version=stored.version, files=files)
        with ExitStack() as closing:
            closing.enter_context(copy)
            while not copy.complete:
                writer = copy.writer()
                if writer is not None:
                    with writer:
                        self._fill(writer, copy, stored, on_bytes)
                else:
                    time.sleep(_POLL_SECONDS)  # another process of this node copies it
            closing.pop_all()
        return copy

    def _fill(
        self, writer: CopyWriter, copy: LocalCopy, stored: StoredAdapter, on_bytes: Callable[[int], None]
    ) -> None:
        store, one_at_a_time = self._store(self._settings.retry_seconds), threading.Lock()

        def move(file: int, chunk: int) -> None:
            start, stop = copy.files[file].bounds(chunk)
            data = _read(store, stored.name, stored.files[file], start, stop)
            digest, expected = xxhash.xxh3_128_digest(data), copy.files[file].digest(chunk)
            if expected not in {None, digest}:
                raise IntegrityError(
                    f"{stored.name}/{copy.files[file].path}: [{start}, {stop}) is not what the manifest says",
                    hint=f"run: coldstream verify --deep {stored.name}",
                )
            with one_at_a_time:
                writer.write(file, chunk, memoryview(data), digest)
                on_bytes(len(data))

        chunks = [
            partial(move, file, chunk)
            for file, planned in enumerate(copy.files)
            for chunk in range(len(planned.stops))
            if not writer.have(file, chunk)
        ]
        with store.session():
            in_parallel(lambda call: call(), chunks, threads=_CONNECTIONS)

    @cached_property
    def _repo(self) -> str | None:
        """The repository on the Hub that the model was copied from; raises UnavailableError while that is unknown."""
        with suppress(CredentialsError, ManifestError):
            if self.base is not None and (pair := read_record(self._store(OFFLINE_SECONDS), self.base)):
                return pair[0].source.repo
        return None

    def _uri(self, name: str) -> str:
        """The key of a copy. The same adapter may be served with several models that are one by its upload's record."""
        return f"{self.store_uri}/{name}#adapter-of-{self.base}"

    def _cache(self) -> Cache:
        choice = self._cache_choice
        if isinstance(choice, bool):
            return cache_of(self._settings) if choice else Cache(temporary_root())
        return Cache(Path(choice))

    def _store(self, seconds: float) -> Store:
        with self._lock:
            if seconds not in self._stores:
                retry = Retry(Backoff(give_up_seconds=min(seconds, self._settings.retry_seconds)))
                self._stores[seconds] = open_store(
                    self._settings, self.store_uri, retry=retry, connections=_STORE_CONNECTIONS
                )
            return self._stores[seconds]


def _stored_model(store: Store, name: str) -> StoredModel:
    """What is stored under a name: from its manifest or, without one, from a listing. Requests nothing else."""
    record, _ = read_record(store, name) or (None, "")
    if isinstance(record, Journal):
        raise NotFoundError(f"the upload of {name} is incomplete", hint=f"run: {upload_command(record)}")
    listing = {} if record else {key: info for key, info in model_listing(store, name).items() if key != MANIFEST_NAME}
    if record is None and not listing:
        raise NotFoundError(f"there is no model {name} in {store.uri}", hint="see: coldstream list")
    return StoredModel(name=name, record=record, listing=listing, pool={})


def _read(store: Store, name: str, file: StoredFile, start: int, stop: int) -> bytes:
    """`[start, stop)` of a file, by links: a store in S3 does not import boto3 for them."""
    data, first, where = b"", 0, f"{store.uri}/{name}/{file.path}"
    for stored in file.objects:
        begin, end = max(start, first) - first, min(stop, first + stored.size) - first
        if begin < end:
            etag = stored.etag if stored.etag != "-" else None
            data += store.read_piece(object_key(name, stored), begin, end, etag=etag, where=where).body
        first += stored.size
    if len(data) < stop - start:
        raise replaced(where)
    return data


def _tensors_below(folder: Path) -> Sequence[Tensor]:
    """The tensors of an adapter in a copy."""
    path = folder / WEIGHTS_NAME
    with disk_errors(path), path.open("rb") as file:

        def read_start(buffer: memoryview) -> None:
            file.seek(0)
            file.readinto(buffer)

        return read_header(read_start, path=str(path), size=path.stat().st_size).tensors


def _version(files: Sequence[StoredFile]) -> str:
    parts = [
        (file.path, file.size, file.entry.sha256 if file.entry else [stored.etag for stored in file.objects])
        for file in files
    ]
    return "adapter-" + hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _cached_file(file: StoredFile) -> CachedFile:
    entry = file.entry
    if entry is not None:
        digests = bytes.fromhex(entry.chunks.xxh3_128)
        return CachedFile(path=file.path, size=file.size, stops=entry.chunks.stops, digests=digests)
    stops = (*range(_PIECE_BYTES, file.size, _PIECE_BYTES), file.size) if file.size else ()
    return CachedFile(path=file.path, size=file.size, stops=stops, digests=None)
