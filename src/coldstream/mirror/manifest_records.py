"""Reads a model's manifest, and writes its journal and manifest during an upload.

Every write is conditional on the version that was read or written last: an upload whose condition fails has lost the
model to another one, and stops. On a store that ignores conditions, the version is compared before each write instead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone

import msgspec

from coldstream.errors import ConflictError, IntegrityError, ManifestError, NotFoundError
from coldstream.model.manifest import FileEntry, Journal, Manifest, digest_of, parse, serialize
from coldstream.model.names import MANIFEST_BYTES_MAX, MANIFEST_NAME
from coldstream.package import __version__
from coldstream.places.place import ObjectInfo, Store, honours_conditions

TOOL = f"coldstream {__version__}"


def record_key(name: str) -> str:
    """Returns the key of a model's manifest."""
    return f"{name}/{MANIFEST_NAME}"


def read_record(store: Store, name: str) -> tuple[Manifest | Journal, str] | None:
    """Returns a model's manifest or journal and its ETag, or None; raises ManifestError if it cannot be trusted."""
    key = record_key(name)
    try:
        data, info = store.get(key, bytes_max=MANIFEST_BYTES_MAX)
    except NotFoundError:
        return None
    except IntegrityError as exc:  # it is too long
        raise ManifestError(exc.message, hint="remove the model: coldstream remove", target=exc.target) from exc
    return parse(data, where=f"{store.uri}/{key}"), info.etag


def model_listing(store: Store, name: str) -> dict[str, ObjectInfo]:
    """Returns the objects of a model by their keys relative to it."""
    return {info.key.removeprefix(f"{name}/"): info for info in store.list(f"{name}/")}


class JournalWriter:
    """Writes the journal of one upload, until another one takes the model over: then ConflictError. Thread-safe."""

    def __init__(self, store: Store, journal: Journal, *, etag: str | None) -> None:
        """Prepares the journal, with the files that are stored already; `etag` is that of the current record."""
        self.conditional = True  # whether the store honours conditional writes; known after `open`
        self._store, self._key = store, record_key(journal.name)
        self._journal = journal
        self._entries = {entry.path: entry for entry in journal.files}
        self._etag = etag
        self._writing, self._changing = threading.Lock(), threading.Lock()
        self._version, self._written = 0, -1
        self._written_at = float("-inf")

    def open(self) -> None:
        """Takes over the model: it is no longer ready, and an earlier upload that still runs will stop."""
        body = self._write()
        self.conditional = honours_conditions(self._store, self._key, body)
        if not self.conditional:
            # The probe wrote the same bytes again, which may have changed the ETag.
            self._etag = self._store.head(self._key).etag

    def add(self, entry: FileEntry, *, durable: bool = False) -> None:
        """Adds a file, to be stored with the next write, or at once if it must be `durable`."""
        with self._changing:
            self._entries[entry.path] = entry
            self._version += 1
            version = self._version
        if durable:
            self.flush(version)

    def flush(self, version: int | None = None) -> None:
        """Writes the journal up to `version` at least; several waiting threads share one write."""
        with self._writing:
            if self._written < (self._version if version is None else version):
                self._write()

    def flush_if_due(self, seconds: float = 3.0) -> None:
        if time.monotonic() - self._written_at >= seconds:
            self.flush()

    def check(self) -> None:
        with self._writing, self._takeover_errors():
            if self._etag != self._store.head(self._key).etag:
                raise ConflictError("the manifest was replaced")

    def commit(self, entries: Iterable[FileEntry]) -> str:
        """Makes the model ready with exactly these files. Returns the manifest's digest."""
        with self._writing:
            manifest = Manifest(
                name=self._journal.name,
                kind=self._journal.kind,
                adapter=self._journal.adapter,
                source=self._journal.source,
                created=now(),
                tool=TOOL,
                files=tuple(sorted(entries, key=lambda entry: entry.path)),
            )
            body = serialize(manifest)
            self._put(body)
        return digest_of(body)

    def _write(self) -> bytes:
        with self._changing:
            version, entries = self._version, tuple(self._entries.values())
        body = serialize(msgspec.structs.replace(self._journal, created=now(), files=entries))
        self._put(body)
        self._written = version
        return body

    def _put(self, body: bytes) -> None:
        pause = self._written_at + self._store.write_interval_seconds - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        with self._takeover_errors():
            if not self.conditional and self._etag != self._store.head(self._key).etag:
                raise ConflictError("the manifest was replaced")
            self._etag = self._store.put(self._key, body, if_match=self._etag, if_absent=self._etag is None)
        self._written_at = time.monotonic()

    @contextmanager
    def _takeover_errors(self) -> Iterator[None]:
        try:
            yield
        except (ConflictError, NotFoundError) as exc:
            raise ConflictError(
                f"another upload or removal of {self._journal.name} took over; this one stopped",
                hint="wait until it is done, then run: coldstream list",
                target=f"{self._store.uri}/{self._key}",
            ) from exc


def now() -> datetime:
    """Returns the time in whole seconds, as records have it."""
    return datetime.now(timezone.utc).replace(microsecond=0)
