"""Fills a copy behind a load: verified chunks in any order, from a separate process.

A chunk's record is written after its bytes. A file is under `partial/` until its last chunk is written and synced.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from coldstream.cache.copy_records import DIGEST_BYTES, NOT_THERE, OURS, RECORD, CopyContents, CopyPlan, read_plan
from coldstream.cache.space import make_room, mark_latest, root_of
from coldstream.machine import disk
from coldstream.machine.atomic_file import TEMPORARY_PREFIX, write_all, write_at
from coldstream.machine.closing import Closing
from coldstream.units import GIB, MIB

# Sync after this much, so that dirty pages do not pile up: a load needs the memory, and a container's limit cannot
# reclaim dirty pages. fdatasync leaves clean pages in the page cache, where the next load reads them and the kernel can
# drop them; posix_fadvise(DONTNEED) would drop them at once (reading 2 GiB back: 2.5 s instead of 0.3). A separate
# thread for syncs gained 0 to 45 % on a virtual disk, less than the runs differed; this process can wait instead.
SYNC_BYTES = 256 * MIB
# Other processes fill the same disk: check after this much whether the rest still fits.
ROOM_BYTES = 4 * GIB
# Chunks arrive a few files at a time; beyond this, the file that was opened first is synced and closed.
OPEN_FILES_MAX = 64
_LEFTOVER_SECONDS = 3600.0


class CopyWriter(Closing):
    """The only writer of a copy. For one thread. A DiskError closes it; what was written stays for the next writer."""

    def __init__(self, folder: Path, plan: CopyPlan, bytes_max: int | None, *, locks: ExitStack) -> None:
        self.folder = folder
        self.closed = False
        self._plan = plan
        self._bytes_max = bytes_max
        self._locks = locks
        self._contents = CopyContents(folder, plan.files)
        self._journal = -1
        self._open: dict[int, int] = {}  # descriptors by file index, in the order of opening
        self._dirty: set[int] = set()  # files with bytes that may not be on the disk
        self._unsynced_bytes = 0
        self._room_bytes = 0  # written since the last check for room

    def __repr__(self) -> str:
        missing = sum(self._contents.missing)
        return f"CopyWriter({self.folder}, {'closed' if self.closed else f'{missing} chunks missing'})"

    @classmethod
    def open(cls, folder: Path, *, bytes_max: int | None = None, repair: bool = False) -> CopyWriter | None:
        """Begins to write the copy in `folder`, and makes room for its missing chunks; raises DiskError if it is gone.

        Returns None when another process writes it or it is complete, except to `repair` it: to write a chunk again.
        """
        root = root_of(folder)
        disk.checked_root(root, create=False)
        with ExitStack() as locks, disk.disk_errors(folder):
            with disk.root_locked(root):
                writer_lock = disk.open_locked(folder / OURS / "writer.lock", exclusive=True)
                if writer_lock is None:
                    return None
                locks.callback(disk.unlock, writer_lock)
                copy_lock = disk.open_locked(folder / OURS / "lock", exclusive=False)
                # Never refused: the lock is exclusive only while the root's lock is held too.
                assert copy_lock is not None
                locks.callback(disk.unlock, copy_lock)
            plan = read_plan(folder)
            if plan is None:
                raise disk.cache_error(folder, f"the cached copy {folder} has no plan")
            writer = cls(folder, plan, bytes_max, locks=locks.pop_all())
        with writer._failing(folder):
            writer._begin()
            if not writer.complete:
                make_room(folder, bytes_max)
            if repair or not writer.complete:
                return writer
        writer.close()
        return None

    @property
    def complete(self) -> bool:
        return not any(self._contents.missing)

    def have(self, file: int, chunk: int) -> bool:
        return bool(self._contents.claimed[file][chunk])

    def write(self, file: int, chunk: int, view: memoryview, digest: bytes) -> None:
        """Writes one chunk, whose bytes the caller has verified, unless it is there already; raises DiskError."""
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
            self._room_bytes += len(data)
            if self._room_bytes > ROOM_BYTES:
                self._room_bytes = 0
                make_room(self.folder, self._bytes_max)
            write_at(self._descriptor(file), data, start)
            self._dirty.add(file)
            self._unsynced_bytes += len(data)
            self._record(file, chunk, digest)
            if not self._contents.missing[file]:
                self._finish(file)
                self._mark_if_complete()
            elif self._unsynced_bytes >= SYNC_BYTES:
                self._sync()

    def forget(self, file: int, chunk: int) -> None:
        """Revokes a chunk that was read with wrong bytes; its file moves back to `partial/`. Raises DiskError."""
        self._check(file, chunk)
        if self.have(file, chunk):
            with self._failing(self._contents.plain_path(file)):
                # The record first: otherwise a kill in between would leave a seemingly complete file.
                self._record(file, chunk, NOT_THERE)
                self._set_aside(file)

    def close(self) -> None:
        """Syncs and releases the copy; raises DiskError if the disk could not write everything. Idempotent."""
        if self.closed:
            return
        with self._failing(self.folder):
            self._sync()
            os.fsync(self._journal)
        self._release()

    def _begin(self) -> None:
        """Makes journal and files agree, however the last writer ended."""
        ours = self.folder / OURS
        # Of killed writers of small files; a running one takes milliseconds.
        before = time.time() - _LEFTOVER_SECONDS
        for leftover in ours.glob(f"{TEMPORARY_PREFIX}*"):
            if leftover.lstat().st_mtime < before:
                leftover.unlink()
        self._journal = disk.open_private(ours / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._contents.refresh()
        # An incomplete record at the end would shift those that follow; an invalid journal starts over.
        os.ftruncate(self._journal, self._contents.journal_bytes)
        disk.sync_path(ours / "plan.json")
        for file in range(len(self._plan.files)):
            self._reconcile(file)
        self._mark_if_complete()

    def _reconcile(self, file: int) -> None:
        there, claimed = self._contents.there(file), self._contents.claimed[file]
        for chunk, lies_there in enumerate(there):
            if claimed[chunk] and not lies_there:
                self._record(file, chunk, NOT_THERE)
        if not self._contents.is_plain(file):
            self._contents.plain_path(file).unlink(missing_ok=True)
            if not self._contents.missing[file]:
                self._descriptor(file)
                self._finish(file)
        elif self._contents.missing[file]:
            self._set_aside(file)
        else:
            self._contents.partial_path(file).unlink(missing_ok=True)

    def _set_aside(self, file: int) -> None:
        if self._contents.is_plain(file):
            partial = self._contents.partial_path(file)
            disk.make_folders(partial.parent)
            os.replace(self._contents.plain_path(file), partial)

    def _descriptor(self, file: int) -> int:
        if file not in self._open:
            if len(self._open) >= OPEN_FILES_MAX:
                oldest = next(iter(self._open))
                self._sync_file(oldest)
                os.close(self._open.pop(oldest))
            path = self._contents.partial_path(file)
            disk.make_folders(path.parent)
            descriptor = disk.open_private(path, os.O_RDWR | os.O_CREAT)
            self._open[file] = descriptor
            os.ftruncate(descriptor, self._plan.files[file].size)
        return self._open[file]

    def _record(self, file: int, chunk: int, digest: bytes) -> None:
        write_all(self._journal, RECORD.pack(file, chunk, digest))
        self._contents.set(file, chunk, digest)

    def _finish(self, file: int) -> None:
        self._sync_file(file, whole=True)
        os.fsync(self._journal)
        os.close(self._open.pop(file))
        path = self._contents.plain_path(file)
        disk.make_folders(path.parent)
        os.replace(self._contents.partial_path(file), path)
        disk.sync_path(path.parent)

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
            # The kernel reports lost pages once, and not which. Without the file, the journal's claims are void.
            self._contents.partial_path(file).unlink(missing_ok=True)
            raise
        self._dirty.discard(file)

    def _mark_if_complete(self) -> None:
        if self.complete:
            mark_latest(root_of(self.folder), self._plan)

    @contextmanager
    def _failing(self, path: Path) -> Iterator[None]:
        """Any exception closes the writer; those of the disk become a DiskError."""
        try:
            with disk.disk_errors(path):
                yield
        except BaseException:
            self._release()
            raise

    def _release(self) -> None:
        for descriptor in (*self._open.values(), self._journal):
            if descriptor >= 0:
                with suppress(OSError):  # the descriptor is closed anyway, and fsync has reported errors of the disk
                    os.close(descriptor)
        self._open.clear()
        self._dirty.clear()
        self._journal = -1
        self._locks.close()
        self.closed = True

    def _check(self, file: int, chunk: int) -> None:
        if self.closed:
            raise ValueError(f"{self!r} is closed")
        if not (0 <= file < len(self._plan.files) and 0 <= chunk < len(self._plan.files[file].stops)):
            raise IndexError(f"the plan has no chunk {chunk} of file {file}")


def _sync_data(descriptor: int) -> None:
    # Unlike fsync, it does not write times; macOS has only fsync.
    getattr(os, "fdatasync", os.fsync)(descriptor)
