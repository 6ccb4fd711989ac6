"""Downloads a model from the store into a folder, verified; each file appears whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from coldstream.errors import DiskError, IntegrityError, NotFoundError
from coldstream.machine.atomic_file import TEMPORARY_PREFIX, StagedFile, write_at
from coldstream.machine.disk import locked_folder
from coldstream.machine.limits import disk_error
from coldstream.mirror.pump import CONNECTIONS, MEMORY_BYTES, Pump
from coldstream.mirror.stored_files import StoredFile, StoredFileRead, content_problems, open_model
from coldstream.model.manifest import Journal, upload_command
from coldstream.model.names import is_hidden
from coldstream.net.retry import Retry
from coldstream.places.place import Store
from coldstream.progress import Progress
from coldstream.units import MIB, format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadReport:
    """What a download did."""

    name: str
    folder: str
    files: int  # like `bytes`, without the hidden ones
    bytes: int
    kept_files: int  # in the folder already, with the right content
    skipped: tuple[str, ...]  # hidden files, which are never written: a `.env` would be read as settings
    received_bytes: int
    verified: bool  # whether the content was checked against a manifest
    seconds: float
    retries: int


def download(
    store: Store,
    name: str,
    folder: Path,
    *,
    progress: Progress | None = None,
    connections: int = CONNECTIONS,
    memory_bytes: int = MEMORY_BYTES,
) -> DownloadReport:
    """Writes the model's files below `folder`; keeps those with the right content. Waits for other downloads there."""
    began = time.monotonic()
    progress = progress or Progress()
    model = open_model(store, name)
    name = model.name
    if isinstance(model.record, Journal):
        raise NotFoundError(f"the upload of {name} is incomplete", hint=f"run: {upload_command(model.record)}")
    files = [file for file in model.files if not is_hidden(file.path)]
    skipped = tuple(file.path for file in model.files if is_hidden(file.path))
    if skipped:
        progress.say(f"skipping {', '.join(map(repr, skipped[:3]))}{' …' if skipped[3:] else ''} (hidden)")
    with _locked(folder, store.retry, progress) as is_locked:
        missing = [file for file in files if not _is_there(folder, file)]
        if is_locked:
            # The temporary files of killed downloads.
            for parent in {(folder / file.path).parent for file in files}:
                for leftover in parent.glob(f"{TEMPORARY_PREFIX}*"):
                    leftover.unlink(missing_ok=True)
        needed = sum(file.size for file in missing)
        with _disk_errors(folder):
            free = shutil.disk_usage(folder).free
        if needed > free:
            raise DiskError(
                f"not enough disk space in {folder}: {format_bytes(needed)} needed, {format_bytes(free)} free",
                hint="free some space, or choose a folder on another disk",
            )
        works = [_FileDownload(store, name, folder, file, progress) for file in missing]
        try:
            Pump(cancel=store.retry.cancel, connections=connections, memory_bytes=memory_bytes).run(works)
        finally:
            for work in works:
                work.discard()
    return DownloadReport(
        name=name,
        folder=str(folder),
        files=len(files),
        bytes=sum(file.size for file in files),
        kept_files=len(files) - len(missing),
        skipped=skipped,
        received_bytes=needed,
        verified=model.record is not None,
        seconds=time.monotonic() - began,
        retries=store.retry.count,
    )


class _FileDownload(StoredFileRead):
    def __init__(self, store: Store, name: str, folder: Path, file: StoredFile, progress: Progress) -> None:
        super().__init__(store, name, file, progress, label=file.path)
        self._path = folder / file.path
        self._staged: StagedFile | None = None

    def prepare(self) -> None:
        self._progress.begin(self.file.path, self.file.size)
        with _disk_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._staged = StagedFile(self._path, mode=0o644)
            if self.file.size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._staged.descriptor, 0, self.file.size)

    def store(self, index: int, start: int, view: memoryview, stored: Callable[[], None]) -> None:
        assert self._staged is not None
        with _disk_errors(self._path):
            write_at(self._staged.descriptor, view, start)
        self._progress.stored(self.file.path, len(view))
        stored()

    def finish(self) -> None:
        if problems := content_problems(self.file, self.digest.finish()):
            raise IntegrityError(
                f"{self._name}/{self.file.path}: {problems[0]}", hint=f"run: coldstream verify --deep {self._name}"
            )
        assert self._staged is not None
        with _disk_errors(self._path):
            os.fsync(self._staged.descriptor)
            self._staged.install()
        self._progress.end(self.file.path, "sha256 ok" if self.file.entry else "unverified")

    def discard(self) -> None:
        if self._staged is not None:
            self._staged.discard()


def _is_there(folder: Path, file: StoredFile) -> bool:
    path = folder / file.path
    if file.entry is None or not path.is_file() or path.stat().st_size != file.size:
        return False
    digest = hashlib.sha256()
    with open(path, "rb") as opened:
        while piece := opened.read(4 * MIB):
            digest.update(piece)
    return digest.hexdigest() == file.entry.sha256


@contextmanager
def _locked(folder: Path, retry: Retry, progress: Progress) -> Iterator[bool]:
    """Creates the folder and locks it against other downloads; yields whether the file system has locks."""
    waits = count()

    def on_wait() -> None:
        retry.check()
        if next(waits) == 0:
            progress.say(f"waiting for another download into {folder} to finish")

    with ExitStack() as held:
        with _disk_errors(folder):
            if folder.exists() and not folder.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "not a folder")
            folder.mkdir(parents=True, exist_ok=True)
            is_locked = held.enter_context(locked_folder(folder, on_wait=on_wait))
        yield is_locked


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        hint = "free some space and run the same command again; it keeps complete files"
        raise disk_error(exc, str(path), when_full=hint) from exc
