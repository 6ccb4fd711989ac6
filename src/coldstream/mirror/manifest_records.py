"""Reads a model's manifest, and writes its journal and manifest during an upload.

Every write is conditional on the version that was read or written last. An upload whose condition fails has lost the
model to another upload, and stops. On a store that ignores conditions the version is compared before each write, which
leaves a short race between two uploads; `coldstream setup` reports which kind of store it is.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone

from coldstream.errors import ConflictError, IntegrityError, ManifestError, NotFoundError
from coldstream.model.manifest import FileEntry, Journal, Manifest, Provenance, digest_of, parse, serialize
from coldstream.model.names import MANIFEST_BYTES_MAX, MANIFEST_NAME
from coldstream.package import __version__
from coldstream.places.place import Store, honours_conditions

TOOL = f"coldstream {__version__}"


def record_key(name: str) -> str:
    """Returns the key of a model's manifest."""
    return f"{name}/{MANIFEST_NAME}"


def read_record(store: Store, name: str) -> tuple[Manifest | Journal, str] | None:
    """Returns a model's manifest or journal and its ETag, or None when it has neither.

    Raises:
        ManifestError: It cannot be trusted.
    """
    key = record_key(name)
    try:
        data, info = store.get(key, bytes_max=MANIFEST_BYTES_MAX)
    except NotFoundError:
        return None
    except IntegrityError as exc:  # it is too long
        raise ManifestError(exc.message, hint="remove the model: coldstream remove", target=exc.target) from exc
    return parse(data, where=f"{store.uri}/{key}"), info.etag


class JournalWriter:
    """Writes the journal of one upload. Thread-safe; writes are grouped, and spaced as the store requires.

    Attributes:
        conditional: Whether the store honours conditional writes; valid after `open`.
    """

    def __init__(
        self,
        store: Store,
        *,
        name: str,
        source: Provenance,
        planned: tuple[int, int, int],
        entries: Iterable[FileEntry],
        etag: str | None,
    ) -> None:
        """Prepares the journal; writes nothing.

        Args:
            planned: The numbers of files, bytes and shards that the model will have.
            entries: The files that are stored already.
            etag: The current version of the manifest object, or None.
        """
        self.conditional = True
        self._store, self._name, self._source, self._planned = store, name, source, planned
        self._key = record_key(name)
        self._entries = {entry.path: entry for entry in entries}
        self._etag = etag
        self._writer = uuid.uuid4().hex
        self._writing = threading.Lock()
        self._changing = threading.Lock()
        self._version = 0
        self._written = -1
        self._written_at = float("-inf")

    def open(self) -> None:
        """Takes over the model: it is no longer ready, and an earlier upload that still runs will stop.

        Raises:
            ConflictError: Another upload took it over at the same time.
        """
        body = self._write()
        self.conditional = honours_conditions(self._store, self._key, body)
        if not self.conditional:
            # The probe wrote the same bytes again, which may have changed the ETag.
            self._etag = self._store.head(self._key).etag

    def add(self, entry: FileEntry) -> None:
        """Adds a file, to be stored with the next write."""
        self._add(entry)

    def add_durably(self, entry: FileEntry) -> None:
        """Adds a file and returns when the journal with it is stored.

        Raises:
            ConflictError: Another upload has taken the model over.
        """
        self.flush(self._add(entry))

    def _add(self, entry: FileEntry) -> int:
        with self._changing:
            self._entries[entry.path] = entry
            self._version += 1
            return self._version

    def flush(self, version: int | None = None) -> None:
        """Writes the journal up to `version` at least; several waiting threads share one write."""
        with self._writing:
            if self._written < (self._version if version is None else version):
                self._write()

    def flush_if_due(self, seconds: float = 3.0) -> None:
        """Writes the journal if it changed, the last write is `seconds` ago, and no other thread is writing."""
        if self._written == self._version or time.monotonic() - self._written_at < seconds:
            return
        if self._writing.acquire(blocking=False):
            try:
                self._write()
            finally:
                self._writing.release()

    def check(self) -> None:
        """Checks that this upload still owns the model.

        Raises:
            ConflictError: Another upload has taken it over.
        """
        with self._writing, self._takeover_errors():
            if self._etag != self._store.head(self._key).etag:
                raise ConflictError("the manifest was replaced")

    def commit(self, entries: Iterable[FileEntry]) -> str:
        """Makes the model ready with exactly these files. Returns the manifest's digest.

        Raises:
            ConflictError: Another upload has taken the model over.
        """
        with self._writing:
            manifest = Manifest(
                name=self._name,
                source=self._source,
                created=_now(),
                tool=TOOL,
                files=tuple(sorted(entries, key=lambda entry: entry.path)),
            )
            body = serialize(manifest)
            self._put(body)
        return digest_of(body)

    def _write(self) -> bytes:
        with self._changing:
            version, entries = self._version, tuple(self._entries.values())
        files, size, shards = self._planned
        journal = Journal(
            name=self._name,
            source=self._source,
            created=_now(),
            tool=TOOL,
            writer=self._writer,
            planned_files=files,
            planned_bytes=size,
            planned_shards=shards,
            files=entries,
        )
        body = serialize(journal)
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
                f"another upload or removal of {self._name} took over; this one stopped",
                hint="wait until it is done, then run: coldstream list",
                target=f"{self._store.uri}/{self._key}",
            ) from exc


def _now() -> datetime:
    return datetime.now(timezone.utc).replace(microsecond=0)
