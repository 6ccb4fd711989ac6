"""Objects in a local folder: a disk, an NFS mount, a test. Implements `Store`.

Keys are paths below the root. Writes go to a temporary file beside `.coldstream-uploads` and are renamed into place,
so a reader sees the old object or the new one. Conditions hold between processes on one machine through a file lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import xxhash

from coldstream.errors import (
    ColdstreamError,
    ConflictError,
    CredentialsError,
    DiskError,
    IntegrityError,
    NotFoundError,
    UploadNotFoundError,
)
from coldstream.machine.limits import limit_error
from coldstream.net.retry import Retry
from coldstream.places.store import Body, ObjectInfo, PendingUpload, UploadPart
from coldstream.units import MIB

_STAGING = ".coldstream-uploads"
# Up to here an ETag is the content's hash; above it, the file's time and size, since reading it would take too long.
_HASHED_BYTES_MAX = 16 * MIB


class FolderStore:
    """A folder as a store. It is created when first written to."""

    write_interval_seconds = 0.0

    def __init__(self, root: Path, *, retry: Retry | None = None) -> None:
        self.root = root
        self.uri = root.as_uri()
        self.retry = retry or Retry()
        self._staging = root / _STAGING
        self._thread_lock = threading.Lock()

    def __repr__(self) -> str:
        return f"FolderStore({self.uri})"

    def head(self, key: str) -> ObjectInfo:
        with self._translated(key):
            return _describe(self._path(key), key)

    def get(self, key: str, *, if_match: str | None = None, bytes_max: int | None = None) -> tuple[bytes, ObjectInfo]:
        info = self._matching(key, if_match)
        if bytes_max is not None and info.size > bytes_max:
            raise IntegrityError(f"{self._at(key)} has {info.size} bytes; at most {bytes_max} are read")
        with self._translated(key):
            return self._path(key).read_bytes(), info

    def read_into(
        self,
        key: str,
        start: int,
        buffer: memoryview,
        *,
        if_match: str | None = None,
        on_read: Callable[[int], None] | None = None,
    ) -> None:
        self._matching(key, if_match)
        with self._translated(key), open(self._path(key), "rb", buffering=0) as file:
            file.seek(start)
            done = 0
            while done < len(buffer):
                self.retry.check()
                count = file.readinto(buffer[done : done + MIB])
                if not count:
                    raise IntegrityError(f"{self._at(key)} is shorter than expected", target=self._at(key))
                done += count
                if on_read:
                    on_read(count)

    def put(
        self,
        key: str,
        body: Body,
        *,
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_absent: bool = False,
        on_sent: Callable[[int], None] | None = None,
    ) -> str:
        with self._translated(key):
            temporary = self._staged(f"put-{uuid.uuid4().hex}")
            try:
                _write(temporary, body)
                with self._locked():
                    self._check(key, if_match, if_absent=if_absent)
                    self._install(temporary, key)
                    etag = _describe(self._path(key), key).etag
            finally:
                temporary.unlink(missing_ok=True)
        if on_sent:
            on_sent(len(body))
        return etag

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        # Only the folder that the prefix names is walked, not all beside it.
        folder = prefix.rpartition("/")[0]
        with self._translated(prefix):
            found = sorted(path.relative_to(self.root).as_posix() for path in _files(self.root / folder))
        for key in found:
            if key.startswith(prefix):
                try:
                    yield _describe(self._path(key), key)
                except FileNotFoundError:  # deleted since
                    continue

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            with self._translated(key):
                path = self._path(key)
                path.unlink(missing_ok=True)
                for parent in path.parents:
                    if parent == self.root or not _remove_if_empty(parent):
                        break

    def create_upload(self, key: str, *, metadata: Mapping[str, str] | None = None) -> str:
        upload_id = uuid.uuid4().hex
        with self._translated(key):
            self._path(key)
            folder = self._staged(f"upload-{upload_id}")
            folder.mkdir()
            _write(folder / "key", key.encode())
        return upload_id

    def put_part(
        self, key: str, upload_id: str, number: int, body: Body, *, on_sent: Callable[[int], None] | None = None
    ) -> str:
        folder = self._upload(key, upload_id)
        etag = self.part_etag(body)
        with self._translated(key):
            temporary = folder / f"{uuid.uuid4().hex}.new"
            try:
                _write(temporary, body)
                for old in folder.glob(f"{number:05d}-*"):
                    old.unlink(missing_ok=True)
                os.replace(temporary, folder / f"{number:05d}-{etag}")
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
                    self._install(whole, key)
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

    def presign(self, key: str, *, seconds: int = 3600) -> str:
        return self._path(key).as_uri()

    def _path(self, key: str) -> Path:
        path = self.root / key
        if ".." in path.parts or key.startswith("/") or _STAGING in path.parts:
            raise IntegrityError(f"the key {key!r} leaves the store's folder")
        return path

    def _at(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def _staged(self, name: str) -> Path:
        self._staging.mkdir(parents=True, exist_ok=True)
        return self._staging / name

    def _upload(self, key: str, upload_id: str) -> Path:
        folder = self._staging / f"upload-{upload_id}"
        if not (folder / "key").is_file():
            raise UploadNotFoundError(f"{self._at(key)}: the upload is gone", target=self._at(key))
        return folder

    def _install(self, temporary: Path, key: str) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, path)

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
            raise ConflictError(
                f"{self._at(key)} was replaced: its ETag is {info.etag}, expected {if_match}",
                hint="somebody wrote to the model; run: coldstream verify",
            )
        return info

    def _check(self, key: str, if_match: str | None, *, if_absent: bool) -> None:
        path = self._path(key)
        if if_absent and path.exists():
            raise ConflictError(f"{self._at(key)} exists already")
        if if_match is not None:
            try:
                self._matching(key, if_match)
            except NotFoundError as exc:
                raise ConflictError(f"{self._at(key)} is gone") from exc

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # flock is held per open file: threads of one process need a lock of their own.
        with self._thread_lock:
            lock = os.open(self._staged("lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
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
            if limit := limit_error(exc, "write"):
                raise DiskError(f"{at}: {limit}", hint=limit.hint, target=at) from exc
            full = exc.errno in {errno.ENOSPC, errno.EDQUOT}
            hint = "free some space, or choose another disk" if full else None
            raise DiskError(f"{at}: {exc.strerror or exc}", hint=hint, target=at) from exc


def _describe(path: Path, key: str) -> ObjectInfo:
    stat = path.stat()
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "not a file", str(path))
    if stat.st_size <= _HASHED_BYTES_MAX:
        etag = xxhash.xxh3_128_hexdigest(path.read_bytes())
    else:
        etag = f"{stat.st_mtime_ns:x}-{stat.st_size:x}"
    modified = datetime.fromtimestamp(stat.st_mtime, tz=timezone.utc)
    return ObjectInfo(key=key, size=stat.st_size, etag=etag, modified=modified)


def _write(path: Path, body: Body) -> None:
    with open(path, "xb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())


def _files(folder: Path) -> Iterator[Path]:
    """All files below, but for those that are being written."""
    for parent, names, files in os.walk(folder):
        names[:] = [name for name in names if name != _STAGING]
        yield from (Path(parent, name) for name in files)


def _remove_if_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True
