"""A model's manifest, as an origin needs it: the version, and what it says of each file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldstream.errors import CredentialsError, IntegrityError, NotFoundError
from coldstream.machine.parallel import in_parallel
from coldstream.model.names import MANIFEST_NAME

if TYPE_CHECKING:
    from coldstream.model.manifest import FileEntry, StoredObject

# `serialize` writes the first two at the start and the last at the end; no accident spoils all of them.
_MARKS = (b'"format":1,', b'"state":"ready"', b'"state":"uploading"', b'"digest":"sha256:')
_START = b'{"format":'
_MARK_WITHIN_BYTES = 256


@dataclass(frozen=True, slots=True)
class Record:
    """A complete manifest.

    Attributes:
        version: 64 hexadecimal digits: its digest.
        entries: By path.
        is_whole: Whether these are all files of a model, as its upload looked at them.
    """

    version: str
    entries: Mapping[str, FileEntry]
    is_whole: bool = True

    def below(self, folder: str, *, model: str) -> Record | None:
        """The record of a folder inside the model, or None if none of the model's files is in it.

        Args:
            folder: Relative to the model.
            model: The model's own folder, relative to the store.
        """
        from coldstream.model.manifest import entries_below

        entries = {entry.path: entry for entry in entries_below(self.entries.values(), folder, model=model)}
        # The same files may be a part of several models.
        version = hashlib.sha256(f"{self.version}/{folder}".encode()).hexdigest()
        return Record(version, entries, is_whole=False) if entries else None


def looks_like_record(data: bytes) -> bool:
    """Whether this is a manifest or was one before it was cut or altered; not, say, a page that says "not found"."""
    ends = data[:_MARK_WITHIN_BYTES] + data[-_MARK_WITHIN_BYTES:]
    return _START.startswith(data[: len(_START)]) or any(mark in ends for mark in _MARKS)


def read_record(data: bytes, *, where: str, revision: str | None = None) -> Record:
    """Parses what stands in a model's `MANIFEST_NAME`.

    Args:
        data: Its bytes.
        where: Its URI, for messages.
        revision: See `check_revision`.

    Raises:
        ManifestError: It cannot be trusted.
        NotFoundError: It is the journal of an upload: the model is not complete. Or the model is another revision.
    """
    # Imported here: models without a manifest need neither the schema nor what checks it.
    from coldstream.model.manifest import Journal, check_revision, digest_of, parse, upload_command

    record = parse(data, where=where)
    if isinstance(record, Journal):
        stored = sum(bool(entry.objects) for entry in record.files)
        raise NotFoundError(
            f"{where.removesuffix('/' + MANIFEST_NAME)} is not complete: {stored} of {record.planned_files} files; "
            "its upload is running or was broken off",
            hint=f"run: {upload_command(record)}",
            target=where,
        )
    check_revision(record.source, revision, where=where.removesuffix(f"/{MANIFEST_NAME}"))
    return Record(digest_of(data).removeprefix("sha256:"), {entry.path: entry for entry in record.files})


def no_record(where: str, revision: str | None) -> None:
    """A model without a manifest.

    Raises:
        NotFoundError: A revision was asked for, and nothing tells which one it is.
    """
    if revision is not None:
        from coldstream.model.manifest import check_revision

        check_revision(None, revision, where=where)


def nearest_record(folder: str, read: Callable[[str], Record | None]) -> Record | None:
    """The record of a model, or of the model that a folder is a part of, such as one component of a pipeline.

    Args:
        folder: Relative to the store.
        read: Reads the record of a folder, None if it has none.

    Raises:
        What `read` raises. Who may not look into the folders around this one does without.
    """
    if (record := read(folder)) is not None:
        return record

    def read_outer(outer: str) -> Record | None:
        try:
            return read(outer)
        except CredentialsError:
            return None

    segments = folder.split("/")
    around = ["/".join(segments[:depth]) for depth in range(len(segments) - 1, 0, -1)]
    for outer, record in zip(around, in_parallel(read_outer, around), strict=True):
        if record is not None:
            return record.below(folder.removeprefix(f"{outer}/"), model=outer)
    return None


def whole_content(entry: FileEntry, read: Callable[[StoredObject], bytes], *, bytes_max: int, where: str) -> bytes:
    """A whole small file out of the objects that hold it, compared with the manifest.

    Args:
        entry: The file.
        read: Reads one of its objects; it need not look at the size.
        bytes_max: A larger file is refused.
        where: Its URI, for messages.

    Raises:
        IntegrityError: It is larger, or another one.
    """
    if entry.size > bytes_max:
        raise IntegrityError(f"{where} has {entry.size} bytes; at most {bytes_max} are read")
    return checked_content(b"".join(read(stored) for stored in entry.objects), entry, where=where)


def checked_content(data: bytes, entry: FileEntry | None, *, where: str) -> bytes:
    """A whole small file, compared with the manifest when there is one.

    Raises:
        IntegrityError: It is another one.
    """
    if entry is not None and (len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256):
        raise IntegrityError(
            f"{where} is not what the manifest says: its size or SHA-256 differs",
            hint="upload the model again",
            target=where,
        )
    return data
