"""Filling a copy behind a load: verified chunks in any order, from a process of its own.

A chunk's bytes are written first and its journal record after them. A file lies under `partial/` until its last chunk
is there; then it is synced and renamed to its own place.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from coldstream.cache.cached_files import CopyContents, read_plan
from coldstream.cache.copy_records import DIGEST_BYTES, NOT_THERE, OURS, RECORD, CopyPlan
from coldstream.cache.space import make_room, mark_latest, root_of
from coldstream.errors import DiskError
from coldstream.machine.atomic_file import TEMPORARY_PREFIX, write_all, write_at
from coldstream.machine.disk import (
    checked_root,
    disk_errors,
    make_folders,
    open_locked,
    open_private,
    root_locked,
    sync_path,
    unlock,
)
from coldstream.units import GIB, MIB

if TYPE_CHECKING:
    from typing_extensions import Self

# The kernel is made to write after this much, so that dirty pages never pile up: a load wants the memory, and under a
# container's limit dirty pages cannot be reclaimed. fdatasync leaves the pages in the page cache, clean: the next load
# reads them from memory, and the kernel may take them back at no cost. posix_fadvise(DONTNEED) would throw them out
# (reading 2 GiB back: 2.5 s instead of 0.3). A thread of its own for the syncs won 0 to 45 % on a virtual disk, between
# runs that differed by more; this process has nothing else to do, so it waits, at most a fifth of a second there.
SYNC_BYTES = 256 * MIB
# Others fill the same disk: whether the rest still fits is asked again after this much.
ROOM_BYTES = 4 * GIB
# Chunks arrive a few files at a time; beyond this the file that was opened first is synced and closed.
OPEN_FILES_MAX = 64
_LEFTOVER_SECONDS = 3600.0


class CopyWriter:
    """The one process that writes a copy. For one thread; every method may block on the disk.

    After a DiskError it is closed: nothing it claimed is wrong, and what is there stays for the next writer.
    """

    def __init__(self, folder: Path, plan: CopyPlan, bytes_max: int | None, *, locks: tuple[int, int]) -> None:
        """Use `CopyWriter.open`; `locks` are owned from here on: the copy's, shared, and the writer's."""
        self.folder = folder
        self._plan = plan
        self._bytes_max = bytes_max
        self._locks: tuple[int, ...] = locks
        self._contents = CopyContents(folder, plan.files)
        self._journal = -1
        self._open: dict[int, int] = {}  # file index to descriptor, in the order of opening
        self._dirty: set[int] = set()  # of them, those with bytes that may not have reached the disk
        self._unsynced_bytes = 0
        self._unasked_bytes = 0

    def __repr__(self) -> str:
        missing = sum(self._contents.presence.missing)
        return f"CopyWriter({self.folder}, {'closed' if self.closed else f'{missing} chunks missing'})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @classmethod
    def open(cls, folder: Path, *, bytes_max: int | None = None, repair: bool = False) -> CopyWriter | None:
        """Begins to write the copy in `folder`, which `Cache.open` made; makes room for all that it lacks.

        Needs nothing from the process that opened the copy, and holds it against eviction by itself.

        Args:
            folder: `LocalCopy.folder`.
            bytes_max: As for `Cache`.
            repair: Open a complete copy too: one of its chunks was wrong, and is to be forgotten and written again.

        Returns:
            None when another process writes it, or when it is complete and there is nothing to repair.

        Raises:
            DiskError: It does not fit, it is gone, or the disk fails.
        """
        root = root_of(folder)
        checked_root(root, create=False)
        with disk_errors(folder):
            locks = _take_locks(root, folder)
            if locks is None:
                return None
            plan = None
            try:
                plan = read_plan(folder)
            finally:
                if plan is None:
                    _release(locks)
        if plan is None:
            raise DiskError(f"the cached copy {folder} has no plan", operation="cache", target=str(folder))
        writer = cls(folder, plan, bytes_max, locks=locks)
        with writer._failing(folder):
            writer._begin()
            if not writer.complete:
                make_room(folder, bytes_max)
            if repair or not writer.complete:
                return writer
        writer.close()
        return None

    @property
    def closed(self) -> bool:
        """Whether it has given up its locks."""
        return not self._locks

    @property
    def complete(self) -> bool:
        """Whether all is there."""
        return not any(self._contents.presence.missing)

    def have(self, file: int, chunk: int) -> bool:
        """Whether that chunk is there: `write` would do nothing."""
        return bool(self._contents.presence.there[file][chunk])

    def write(self, file: int, chunk: int, view: memoryview, digest: bytes) -> None:
        """Keeps one chunk. One that is there already is left as it is.

        Args:
            file: Index in the plan.
            chunk: Index in the file.
            view: Exactly the chunk's bytes, which the caller has verified; not touched after the return.
            digest: Their XXH3-128, 16 bytes.

        Raises:
            DiskError: The disk is full or fails. The writer is closed.
        """
        self._check(file, chunk)
        planned = self._plan.files[file]
        start, stop = planned.bounds(chunk)
        data = view.cast("B")
        if len(data) != stop - start:
            raise ValueError(f"chunk {chunk} of {planned.path} has {stop - start} bytes, not {len(data)}")
        if len(digest) != DIGEST_BYTES or planned.digest(chunk) not in {None, digest}:
            raise ValueError(f"chunk {chunk} of {planned.path} was not verified: its digest is {digest.hex()}")
        if self.have(file, chunk):
            return
        with self._failing(self._contents.partial_path(file)):
            self._ask_for_room(len(data))
            write_at(self._descriptor(file), data, start)
            self._dirty.add(file)
            self._unsynced_bytes += len(data)
            self._record(file, chunk, digest)
            if not self._contents.presence.missing[file]:
                self._finish(file)
                self._mark_if_complete()
            elif self._unsynced_bytes >= SYNC_BYTES:
                self._sync()

    def forget(self, file: int, chunk: int) -> None:
        """Takes back a chunk that was read with wrong bytes; its file leaves its place until it is whole again.

        Raises:
            DiskError: The disk fails. The writer is closed.
        """
        self._check(file, chunk)
        if self.have(file, chunk):
            with self._failing(self._contents.plain_path(file)):
                # The record first: were it the other way round, a kill in between would leave a whole file to complete.
                self._record(file, chunk, NOT_THERE)
                self._set_aside(file)

    def close(self) -> None:
        """Syncs what is journaled and gives up the copy. Again is fine.

        Raises:
            DiskError: The disk failed to take what was written; that is forgotten. The writer is closed.
        """
        if self.closed:
            return
        with self._failing(self.folder):
            self._sync()
            os.fsync(self._journal)
        self._release()

    def _begin(self) -> None:
        """Makes journal and files agree, whatever the last writer was doing when it ended."""
        ours = self.folder / OURS
        _remove_leftovers(ours)
        self._journal = open_private(ours / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._contents.refresh()
        # Half a record at the end would shift all that follow; a journal that was refused as a whole starts anew.
        os.ftruncate(self._journal, self._contents.journal_bytes)
        sync_path(ours / "plan.json")
        for file in range(len(self._plan.files)):
            self._reconcile(file)
        self._mark_if_complete()

    def _reconcile(self, file: int) -> None:
        there, claimed = self._contents.there(file), self._contents.presence.there[file]
        for chunk, lies_there in enumerate(there):
            if claimed[chunk] and not lies_there:
                self._record(file, chunk, NOT_THERE)
        if not self._contents.is_plain(file):
            self._contents.plain_path(file).unlink(missing_ok=True)
            if not self._contents.presence.missing[file]:
                self._descriptor(file)
                self._finish(file)
        elif self._contents.presence.missing[file]:
            self._set_aside(file)
        else:
            self._contents.partial_path(file).unlink(missing_ok=True)

    def _set_aside(self, file: int) -> None:
        """Moves a file that is not whole from its place to `partial/`."""
        if self._contents.is_plain(file):
            partial = self._contents.partial_path(file)
            make_folders(partial.parent)
            os.replace(self._contents.plain_path(file), partial)

    def _descriptor(self, file: int) -> int:
        if file not in self._open:
            if len(self._open) >= OPEN_FILES_MAX:
                oldest = next(iter(self._open))
                self._sync_file(oldest)
                os.close(self._open.pop(oldest))
            path = self._contents.partial_path(file)
            make_folders(path.parent)
            descriptor = open_private(path, os.O_RDWR | os.O_CREAT)
            self._open[file] = descriptor
            os.ftruncate(descriptor, self._plan.files[file].size)
        return self._open[file]

    def _record(self, file: int, chunk: int, digest: bytes) -> None:
        write_all(self._journal, RECORD.pack(file, chunk, digest))
        self._contents.presence.set(file, chunk, digest)

    def _finish(self, file: int) -> None:
        self._sync_file(file, whole=True)
        os.fsync(self._journal)
        os.close(self._open.pop(file))
        path = self._contents.plain_path(file)
        make_folders(path.parent)
        os.replace(self._contents.partial_path(file), path)
        sync_path(path.parent)

    def _sync(self) -> None:
        for file in sorted(self._dirty):
            self._sync_file(file)
        self._unsynced_bytes = 0

    def _sync_file(self, file: int, *, whole: bool = False) -> None:
        if file not in self._dirty and not whole:
            return
        try:
            _sync_data(self._open[file])
        except OSError:
            # Which pages were lost is not known, and the kernel reports it once. Without the file, what the journal
            # claims of it counts for nothing.
            self._contents.partial_path(file).unlink(missing_ok=True)
            raise
        self._dirty.discard(file)

    def _mark_if_complete(self) -> None:
        if self.complete:
            mark_latest(root_of(self.folder), self._plan)

    def _ask_for_room(self, count: int) -> None:
        self._unasked_bytes += count
        if self._unasked_bytes > ROOM_BYTES:
            self._unasked_bytes = 0
            make_room(self.folder, self._bytes_max)

    @contextmanager
    def _failing(self, path: Path) -> Iterator[None]:
        """Whatever is raised within it closes the writer; what the disk says becomes a DiskError."""
        try:
            with disk_errors(path):
                yield
        except BaseException:
            self._release()
            raise

    def _release(self) -> None:
        for descriptor in (*self._open.values(), self._journal):
            if descriptor >= 0:
                _close(descriptor)
        self._open.clear()
        self._dirty.clear()
        self._journal = -1
        _release(self._locks)
        self._locks = ()

    def _check(self, file: int, chunk: int) -> None:
        if self.closed:
            raise ValueError(f"{self!r} is closed")
        if not (0 <= file < len(self._plan.files) and 0 <= chunk < len(self._plan.files[file].stops)):
            raise IndexError(f"the plan has no chunk {chunk} of file {file}")


def _take_locks(root: Path, folder: Path) -> tuple[int, int] | None:
    """The copy's lock, shared, and the writer's; None when another process writes."""
    with root_locked(root):
        writer = open_locked(folder / OURS / "writer.lock", exclusive=True)
        if writer is None:
            return None
        try:
            copy = open_locked(folder / OURS / "lock", exclusive=False)
        except BaseException:
            unlock(writer)
            raise
        # Excluded by nobody: the lock is exclusive only while the root's is held too.
        assert copy is not None
        return copy, writer


def _release(locks: tuple[int, ...]) -> None:
    for descriptor in locks:
        unlock(descriptor)


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:  # the descriptor is gone all the same; what the disk had to say was asked by fsync
        return


def _sync_data(descriptor: int) -> None:
    # It does without what only fsync writes (times); macOS has fsync alone.
    getattr(os, "fdatasync", os.fsync)(descriptor)


def _remove_leftovers(ours: Path) -> None:
    """Deletes what killed writers of small files left. A live one takes milliseconds."""
    before = time.time() - _LEFTOVER_SECONDS
    with os.scandir(ours) as found:
        for entry in found:
            if entry.name.startswith(TEMPORARY_PREFIX) and entry.stat(follow_symlinks=False).st_mtime < before:
                os.unlink(entry.path)
