"""Files in a local folder: a disk, an NFS mount, a download, the Hugging Face cache.

Keys are paths below the root, and links are followed. Writes go to a temporary file in `.coldstream-uploads` and are
renamed into place. A file lock makes conditions hold between the processes of one machine.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime, timezone
from io import FileIO
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from coldstream.errors import (
    ColdstreamError,
    ConflictError,
    CredentialsError,
    IntegrityError,
    NotFoundError,
    UploadNotFoundError,
    UsageError,
)
from coldstream.machine.atomic_file import StagedFile, write_all
from coldstream.machine.limits import disk_error
from coldstream.net.retry import Retry
from coldstream.places.place import (
    Body,
    Link,
    Location,
    ObjectInfo,
    OnBytes,
    PendingUpload,
    Piece,
    UploadPart,
    check_small,
    fill,
    replaced,
    stale,
)
from coldstream.places.tree import open_regular, walk
from coldstream.units import MIB

if TYPE_CHECKING:
    from coldstream.model.manifest import Provenance

_STAGING = ".coldstream-uploads"
# Up to this size the ETag is the content's hash; above it, the file's time and size.
_HASHED_BYTES_MAX = 16 * MIB


class Folder:
    """A folder. Implements `Store`; it is created when first written to."""

    pins_by_etag = False
    write_interval_seconds = 0.0

    def __init__(self, root: Path, *, retry: Retry | None = None) -> None:
        self.root = root = root.absolute()
        self.uri = root.as_uri()
        self.retry = retry or Retry()
        self._staging = root / _STAGING
        self._thread_lock = threading.Lock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri})"

    def head(self, key: str) -> ObjectInfo:
        with self._translated(key):
            return self._describe(key)

    def get(self, key: str, *, bytes_max: int | None = None) -> tuple[bytes, ObjectInfo]:
        info = self.head(key)
        check_small(self._at(key), info.size, bytes_max)
        with self._translated(key), open_regular(self._path(key)) as file:
            return file.readall(), info

    def read_into(
        self, key: str, start: int, buffer: memoryview, *, if_match: str | None = None, on_read: OnBytes | None = None
    ) -> None:
        info = self._matching(key, if_match)
        if buffer and start + len(buffer) > info.size:
            raise IntegrityError(f"{self._at(key)} is shorter than expected", target=self._at(key))

        @contextmanager
        def open_range(done: int) -> Iterator[FileIO]:
            with self._translated(key), open_regular(self._path(key)) as file:
                file.seek(start + done)
                yield file

        fill(buffer, open_range, retry=self.retry, where=self._at(key), on_read=on_read)
        # It may have been written to while it was being read.
        self._matching(key, if_match)

    def read_piece(self, key: str, start: int, stop: int, *, etag: str | None, where: str) -> Piece:
        path = self._path(key)
        with self._translated(key), open_regular(path) as file:
            stat = os.fstat(file.fileno())
            file.seek(start)
            body = file.read(stop - start)
        if len(body) < min(stop, stat.st_size) - start:
            raise replaced(where)
        stamp, location = f"{stat.st_mtime_ns:x}", self.locate(key)
        return Piece(body=body, size=stat.st_size, etag=None, stamp=stamp, location=location)

    def locate(self, key: str) -> Location:
        return Location(local=str(self._path(key)))

    def renew(self, key: str, *, where: str) -> Link:
        raise UsageError(f"{where} is a local file, which has no link")

    def session(self) -> AbstractContextManager[object]:
        return nullcontext()

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for info in self._walk(prefix, hidden=True):
            if info.fault:
                yield info
                continue
            try:
                yield self._describe(info.key)
            except FileNotFoundError:  # deleted since
                continue

    def _walk(self, prefix: str, *, hidden: bool) -> Sequence[ObjectInfo]:
        # Only the folder that the prefix names is walked, not all beside it.
        folder = prefix.rpartition("/")[0]
        if not (self.root / folder).is_dir():
            return ()
        inside = f"{folder}/" if folder else ""
        with self._translated(folder):
            infos = [
                ObjectInfo(
                    key=inside + item.path, size=item.size, etag=_version(item.mtime_ns, item.size), fault=item.fault
                )
                for item in walk(self.root / folder, hidden=hidden)
                if _STAGING not in item.path.split("/")
            ]
        return sorted((info for info in infos if info.key.startswith(prefix)), key=lambda info: info.key)

    def put(
        self,
        key: str,
        body: Body,
        *,
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_absent: bool = False,
        on_sent: OnBytes | None = None,
    ) -> str:
        path = self._path(key)
        with self._translated(key), StagedFile(path, staging=self._made_staging(), mode=0o666) as staged:
            _write(staged, body)
            with self._locked():
                if if_absent and path.exists():
                    raise ConflictError(f"{self._at(key)} exists already")
                if if_match is not None:
                    self._matching(key, if_match)
                path.parent.mkdir(parents=True, exist_ok=True)
                staged.install()
                etag = self._describe(key).etag
        if on_sent:
            on_sent(len(body))
        return etag

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            # Locked, because a write makes the folder that would be removed here.
            with self._translated(key), self._locked():
                path = self._path(key)
                path.unlink(missing_ok=True)
                with suppress(OSError):  # not empty
                    for parent in takewhile(lambda parent: parent != self.root, path.parents):
                        parent.rmdir()

    def create_upload(self, key: str, *, metadata: Mapping[str, str] | None = None) -> str:
        upload_id = uuid.uuid4().hex
        with self._translated(key):
            self._path(key)
            folder = self._made_staging() / f"upload-{upload_id}"
            folder.mkdir()
            (folder / "key").write_bytes(key.encode())
        return upload_id

    def put_part(self, key: str, upload_id: str, number: int, body: Body, *, on_sent: OnBytes | None = None) -> str:
        folder = self._upload(key, upload_id)
        etag = self.part_etag(body)
        with self._translated(key):
            try:
                with StagedFile(folder / f"{number:05d}-{etag}", mode=0o666) as staged:
                    _write(staged, body)
                    for old in folder.glob(f"{number:05d}-*"):
                        old.unlink(missing_ok=True)
                    staged.install()
            except FileNotFoundError as exc:
                raise UploadNotFoundError(f"{self._at(key)}: the upload is gone") from exc
        if on_sent:
            on_sent(len(body))
        return etag

    def copy_part(
        self, key: str, upload_id: str, number: int, source: str, start: int, stop: int, *, if_match: str
    ) -> str | None:
        buffer = memoryview(bytearray(stop - start))
        self.read_into(source, start, buffer, if_match=if_match)
        return self.put_part(key, upload_id, number, buffer)

    def part_etag(self, body: Body) -> str:
        return xxhash.xxh3_128_hexdigest(body)

    def parts(self, key: str, upload_id: str) -> Sequence[UploadPart]:
        folder = self._upload(key, upload_id)
        with self._translated(key):
            return [
                UploadPart(int(path.name[:5]), path.stat().st_size, path.name[6:])
                for path in sorted(folder.iterdir())
                if path.name[:5].isdigit() and path.name[5:6] == "-"
            ]

    def complete_upload(self, key: str, upload_id: str, parts: Sequence[UploadPart]) -> None:
        folder = self._upload(key, upload_id)
        paths = [folder / f"{part.number:05d}-{part.etag}" for part in parts]
        with self._translated(key):
            if paths and not paths[0].exists() and any(folder.glob("*.whole")):
                raise UploadNotFoundError(f"{self._at(key)}: another run completes the upload")
            if not paths or not all(path.exists() for path in paths):
                raise ConflictError(f"{self._at(key)}: a part is missing or is another one")
            # Another run of the same upload may complete it too: only one of them gets the first part.
            whole = folder / f"{uuid.uuid4().hex}.whole"
            try:
                self._join(paths, whole)
                with self._locked():
                    self._path(key).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(whole, self._path(key))
            except FileNotFoundError as exc:
                raise UploadNotFoundError(f"{self._at(key)}: the upload is gone") from exc
            shutil.rmtree(folder, ignore_errors=True)

    def abort_upload(self, key: str, upload_id: str) -> None:
        shutil.rmtree(self._staging / f"upload-{upload_id}", ignore_errors=True)

    def uploads(self, prefix: str) -> Iterator[PendingUpload]:
        for folder in sorted(self._staging.glob("upload-*")):
            try:
                key = (folder / "key").read_text()
            except OSError:  # completed since, or killed before it began
                continue
            if key.startswith(prefix):
                yield PendingUpload(key, folder.name.removeprefix("upload-"))

    def _path(self, key: str) -> Path:
        path = self.root / key
        if ".." in path.parts or key.startswith("/") or _STAGING in path.parts:
            raise IntegrityError(f"the key {key!r} leaves the store's folder")
        return path

    def _at(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def _made_staging(self) -> Path:
        self._staging.mkdir(parents=True, exist_ok=True)
        return self._staging

    def _upload(self, key: str, upload_id: str) -> Path:
        folder = self._staging / f"upload-{upload_id}"
        if not (folder / "key").is_file():
            raise UploadNotFoundError(f"{self._at(key)}: the upload is gone", target=self._at(key))
        return folder

    @staticmethod
    def _join(paths: Sequence[Path], whole: Path) -> None:
        """Makes one file of the parts; the first becomes it."""
        os.replace(paths[0], whole)
        with open(whole, "ab") as target:
            for path in paths[1:]:
                with open(path, "rb") as source:
                    shutil.copyfileobj(source, target, 16 * MIB)
            target.flush()
            os.fsync(target.fileno())

    def _matching(self, key: str, if_match: str | None) -> ObjectInfo:
        info = self.head(key)
        if if_match is not None and info.etag != if_match:
            raise stale(self._at(key), info.etag, if_match)
        return info

    def _describe(self, key: str) -> ObjectInfo:
        path = self._path(key)
        stat = path.stat()
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "not a file", str(path))
        etag = _version(stat.st_mtime_ns, stat.st_size)
        if stat.st_size <= _HASHED_BYTES_MAX:
            etag = xxhash.xxh3_128_hexdigest(path.read_bytes())
        modified = datetime.fromtimestamp(stat.st_mtime, tz=timezone.utc)
        return ObjectInfo(key=key, size=stat.st_size, etag=etag, modified=modified)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # flock is held per open file: threads of one process need a lock of their own.
        with self._thread_lock:
            lock = os.open(self._made_staging() / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        at = self._at(key)
        try:
            yield
        except ColdstreamError:
            raise
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as exc:
            raise NotFoundError(f"{at} does not exist", target=at) from exc
        except PermissionError as exc:
            raise CredentialsError(
                f"{at}: {exc.strerror}", hint="check the folder's owner and mode", target=at
            ) from exc
        except OSError as exc:
            # A name that is too long or circular names nothing.
            if exc.errno in {errno.ENAMETOOLONG, errno.ELOOP} and not os.path.lexists(self.root / key):
                raise NotFoundError(f"{at} does not exist", target=at) from exc
            raise disk_error(exc, at, when_full="free some space, or choose another disk", target=at) from exc


class FolderSnapshot(Folder):
    """A folder whose files are a model, or several, to read them.

    Hidden folders (version control, records) are left out. Files that cannot be read are listed with their fault. A
    file's ETag is its time and size, so that no file is read to list it.
    """

    @property
    def label(self) -> str:
        return str(self.root)

    @property
    def provenance(self) -> Provenance:
        from coldstream.model.manifest import Provenance

        return Provenance(kind="folder")

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        if not self.root.is_dir():
            raise NotFoundError(
                f"there is no folder {self.root}",
                hint="name a folder, or a model on the Hub such as Qwen/Qwen3-8B",
                target=self.uri,
            )
        yield from self._walk(prefix, hidden=False)

    def branches_with_weights(self) -> Sequence[str]:
        return ()

    def _describe(self, key: str) -> ObjectInfo:
        stat = self._path(key).stat()
        return ObjectInfo(key=key, size=stat.st_size, etag=_version(stat.st_mtime_ns, stat.st_size))


def _version(mtime_ns: int, size: int) -> str:
    return f"{mtime_ns:x}-{size:x}"


def _write(staged: StagedFile, body: Body) -> None:
    write_all(staged.descriptor, memoryview(body))
    os.fsync(staged.descriptor)
