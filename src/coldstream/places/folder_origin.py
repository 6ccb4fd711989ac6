"""A model in a local folder: a disk, a network mount, a download, the Hugging Face cache."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BufferedReader
from pathlib import Path

from coldstream.errors import ConfigError, CredentialsError, DiskError, IntegrityError, NotFoundError, UsageError
from coldstream.model.job import Headers
from coldstream.model.names import MANIFEST_BYTES_MAX, MANIFEST_NAME, checked_path
from coldstream.places.origin import Checkpoint, Link
from coldstream.places.origin_records import Record, nearest_record, no_record, read_record, whole_content
from coldstream.places.shard_choice import choose, recorded_files, small_files
from coldstream.places.shard_headers import Found, Part, Piece, checkpoint_of, replaced
from coldstream.places.tree import WalkedFile, open_regular, walk

_READ_BYTES = 1 << 20


class FolderOrigin:
    """A folder with a model. Implements `Origin`."""

    def __init__(self, folder: Path, *, name: str, store: Path | None = None, revision: str | None = None) -> None:
        """Prepares; nothing is looked at yet.

        Args:
            folder: Absolute.
            name: The model's, for people.
            store: The root of the store that it is in, when it is in one: a manifest may name objects relative to it.
            revision: What it must be; see `check_revision`.
        """
        self._revision = revision
        self._folder, self._name, self._store = folder, name, store
        self.label = folder.as_uri()
        self._known: tuple[Record | None] | None = None

    def __repr__(self) -> str:
        return f"FolderOrigin({self.label})"

    def checkpoint(self) -> Checkpoint:
        record = self._record()
        faults = {} if record else {item.path: item.fault for item in self._files()}
        choice = choose(record.entries if record else faults, self.read, is_checked=bool(record and record.is_whole))
        for path in choice.shards:
            if fault := faults.get(path):
                raise NotFoundError(f"{self._where(path)} cannot be loaded: {fault}", target=self._where(path))
        found = []
        for path in choice.shards:
            entry = record.entries[path] if record else None
            objects = [(stored.key, stored.size) for stored in entry.objects] if entry else [(path, None)]
            parts = tuple(self._part(self._path(key), size) for key, size in objects)
            found.append(Found(path=path, where=self._where(path), entry=entry, parts=parts))
        version = record.version if record else None
        return checkpoint_of(found, uri=self.label, name=self._name, version=version, left_out=choice.left_out)

    def renew(self, path: str, segment: int = 0) -> Link:
        raise UsageError(f"{self._where(path)} is a local file, which needs no link")

    def names(self) -> Sequence[str]:
        record = self._record_once()
        if record:
            return recorded_files(record)
        return small_files({item.path: item.size for item in self._files() if not item.fault}, stored=False)

    def read(self, path: str, bytes_max: int) -> bytes:
        record = self._record_once()
        entry = record.entries.get(path) if record else None
        if entry is None:
            return self._content(self._path(checked_path(path, where=self.label)), bytes_max)
        return whole_content(
            entry,
            lambda stored: self._content(self._path(stored.key), bytes_max),
            bytes_max=bytes_max,
            where=self._where(path),
        )

    def _record_once(self) -> Record | None:
        return self._known[0] if self._known else self._record()

    def _record(self) -> Record | None:
        self._known = (self._read_record(),)
        return self._known[0]

    def _read_record(self) -> Record | None:
        if self._store is None:
            record = self._record_of(self._folder)
        else:
            store = self._store
            inside = self._folder.relative_to(store).as_posix()
            record = nearest_record(inside, lambda folder: self._record_of(store / folder))
        if record is None:
            if not self._folder.is_dir():
                raise self._missing()
            no_record(self.label, self._revision)
        return record

    def _record_of(self, folder: Path) -> Record | None:
        try:
            data = self._content(folder / MANIFEST_NAME, MANIFEST_BYTES_MAX)
        except NotFoundError:
            return None
        return read_record(data, where=f"{folder.as_uri()}/{MANIFEST_NAME}", revision=self._revision)

    def _missing(self) -> NotFoundError:
        if self._store is None:
            return NotFoundError(f"there is no folder {self._folder}", target=self.label)
        from coldstream.places.folder_store import FolderStore
        from coldstream.places.model_listing import missing_model

        return missing_model(FolderStore(self._store), self._folder.relative_to(self._store).as_posix())

    def _files(self) -> Sequence[WalkedFile]:
        with _translated(self._folder):
            return list(walk(self._folder))

    def _content(self, path: Path, bytes_max: int) -> bytes:
        with _translated(path), open_regular(path) as raw, BufferedReader(raw) as file:
            data = file.read(bytes_max + 1)
        if len(data) > bytes_max:
            raise IntegrityError(f"{path} is larger than the {bytes_max} bytes that are read")
        return data

    def _part(self, file: Path, size: int | None) -> Part:
        def rest() -> tuple[None, Headers, str]:
            return None, (), str(file)

        return Part(size=size, read=partial(self._read_range, file), rest=rest)

    def _read_range(self, path: Path, start: int, stop: int, etag: str | None) -> Piece:
        with _translated(path), open_regular(path) as file:
            descriptor = file.fileno()
            pieces = []
            position = start
            while position < stop and (piece := os.pread(descriptor, min(stop - position, _READ_BYTES), position)):
                pieces.append(piece)
                position += len(piece)
            stat = os.fstat(descriptor)
        if position < min(stop, stat.st_size):
            raise replaced(str(path))
        return Piece(
            body=b"".join(pieces), size=stat.st_size, etag=None, stamp=f"{stat.st_mtime_ns:x}", local=str(path)
        )

    def _path(self, key: str) -> Path:
        if not key.startswith("/"):
            return self._folder / key
        if self._store is None:
            raise ConfigError(
                f"{self.label}: its manifest names {key!r}, relative to the store that it is in, which is not known",
                hint="name the model as org/model with --store file:///folder",
            )
        return self._store / key[1:]

    def _where(self, path: str) -> str:
        return f"{self.label}/{path}"


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as exc:
        raise NotFoundError(f"{path} does not exist", target=str(path)) from exc
    except PermissionError as exc:
        raise CredentialsError(f"{path} may not be read", hint="check its owner and mode", target=str(path)) from exc
    except OSError as exc:
        # A name that is too long or circular names nothing.
        if exc.errno in {errno.ENAMETOOLONG, errno.ELOOP}:
            raise NotFoundError(f"{path} does not exist", target=str(path)) from exc
        raise DiskError(f"{path}: {exc.strerror or exc}", target=str(path)) from exc
