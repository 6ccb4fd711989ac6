"""The disk of the cache: locks, permissions, errors.

Directories have mode 0700 and files 0600: models may be gated, and another writer could replace the bytes of a load
without a manifest. Locks use flock(2), which ends with its process. Locks inside a model's directory are taken and
tested only under the root's lock, so that no test looks like a lock, and no directory moves before it is locked.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from coldstream.errors import ColdstreamError, DiskError
from coldstream.machine.limits import limit_error

# The root's lock is usually held for milliseconds; a stopped holder must not block loads.
ROOT_LOCK_SECONDS = 10.0
_POLL_SECONDS = 0.1
TRASH_PREFIX = ".trash-"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # users check its contents

_SET = "set COLDSTREAM_CACHE_DIR to a directory"
_HINTS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), f"free some space, or {_SET} on a larger disk"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), f"{_SET} that is writable by this user"),
    **dict.fromkeys(
        (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP),
        f"this file system has no file locks; {_SET} on a local disk",
    ),
}


def cache_error(path: Path, message: str, *, hint: str | None = None, retryable: bool = False) -> DiskError:
    """An error of the cache at `path`."""
    return DiskError(message, hint=hint, target=str(path), retryable=retryable)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Translates OSError into DiskError about the cache at `path`."""
    try:
        yield
    except ColdstreamError:
        raise
    except OSError as exc:
        limit = limit_error(exc, "write")
        hint = limit.hint if limit else _HINTS.get(exc.errno or 0)
        raise cache_error(path, f"cannot use the cache at {path}: {limit or exc.strerror or exc}", hint=hint) from exc


def private_root(root: Path) -> Path:
    """`root`, or a directory of this user in it if others can write to it or own it."""
    # The kubelet creates a volume as root's, with mode 0777, or 2777 and 2775 with an fsGroup, and a container may run
    # as any user: refusing such a volume would leave the pod without a cache. Its other users could delete or move the
    # directory, but not read or forge it, because the owner and the mode are checked at each use.
    try:
        status = os.stat(root)
    except OSError:
        return root
    shared = stat.S_ISDIR(status.st_mode) and _privacy_fault(status) is not None
    return root / f"coldstream-{os.geteuid()}" if shared else root


def can_be_created(folder: Path) -> bool:
    """Whether a directory exists, or this user may create it."""
    existing = next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))
    return existing == folder or os.access(existing, os.W_OK | os.X_OK)


def temporary_folder() -> Path:
    """The system's directory for temporary files; shared memory if none is writable, as on a read-only root."""
    try:
        import tempfile  # with shutil and what compresses, which the streamer does not need

        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        return SHARED_MEMORY


def temporary_root() -> Path:
    """A private directory for temporary files, for starts without a cache; raises DiskError."""
    root = private_root(temporary_folder())
    checked_root(root, create=True)
    return root


def checked_root(root: Path, *, create: bool) -> bool:
    """Whether the root exists; raises DiskError if it is not a directory, or not private to this user."""
    with disk_errors(root):
        if create:
            make_folders(root)
        try:
            link, status = os.lstat(root), os.stat(root)
        except FileNotFoundError:
            return False
        hint = f"{_SET} of this user"
        fault = None if stat.S_ISDIR(status.st_mode) else "is not a directory"
        if stat.S_ISLNK(link.st_mode) and link.st_uid not in {0, os.geteuid()}:
            # Another user could redirect this user's files with it.
            fault = f"is a link created by user {link.st_uid}"
        if fault is None and (fault := _privacy_fault(status)) and status.st_uid == os.geteuid():
            hint = f"run: chmod go-w {shlex.quote(str(root))}"
        if fault:
            raise cache_error(root, f"cache directory {root} {fault}", hint=hint)
        return True


def _privacy_fault(status: os.stat_result) -> str | None:
    if status.st_uid != os.geteuid():
        return f"belongs to user {status.st_uid}, not to user {os.geteuid()}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"is writable by other users (mode {stat.S_IMODE(status.st_mode):04o})"
    return None


def make_folders(folder: Path) -> None:
    """Creates a directory and missing parents with mode 0700, regardless of the umask."""
    for missing in reversed([path for path in (folder, *folder.parents) if not os.path.lexists(path)]):
        with suppress(FileExistsError):
            os.mkdir(missing, 0o700)
            os.chmod(missing, 0o700)


def open_private(path: Path, flags: int) -> int:
    """Opens a file with mode 0600, without following links."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW, 0o600)
    if flags & os.O_CREAT:
        os.fchmod(descriptor, 0o600)
    return descriptor


def read_bounded(path: Path, bytes_max: int) -> bytes | None:
    """The content of a file; None if it does not exist or is longer than `bytes_max`."""
    try:
        with open(path, "rb") as file:
            data = file.read(bytes_max + 1)
    except FileNotFoundError:
        return None
    return data if len(data) <= bytes_max else None


def sync_path(path: Path) -> None:
    """Syncs a file's content, or the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def bytes_on_disk(folder: Path) -> int:
    """The disk usage of a directory, without mounts in it, holes of sparse files, and files that disappear."""
    total = 0
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not os.path.ismount(os.path.join(parent, name))]
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return total


def size_and_free(root: Path) -> tuple[int, int]:
    """The size of the file system and the space available to this user, in bytes."""
    status = os.statvfs(root)
    return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize


def trash_name(root: Path) -> Path:
    """A new name for a directory to delete; `cache.space` also deletes leftovers."""
    return root / f"{TRASH_PREFIX}{os.urandom(8).hex()}"


@contextmanager
def root_locked(root: Path) -> Iterator[None]:
    """Holds the root's lock; raises DiskError if another process has held it for too long."""
    descriptor = open_private(root / "lock", os.O_RDWR | os.O_CREAT)
    try:
        deadline = time.monotonic() + ROOT_LOCK_SECONDS
        while not try_lock(descriptor, exclusive=True):
            if time.monotonic() > deadline:
                raise cache_error(
                    root,
                    f"another process has held {root / 'lock'} for more than {ROOT_LOCK_SECONDS:.0f} s",
                    hint=f"look for a stopped process: fuser -v {shlex.quote(str(root / 'lock'))}",
                    retryable=True,
                )
            time.sleep(0.005)
        yield
    finally:
        unlock(descriptor)


@contextmanager
def locked_folder(folder: Path, *, on_wait: Callable[[], None]) -> Iterator[bool]:
    """Locks a directory; calls `on_wait` until then. Yields False if the file system has no such locks, as NFS."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while True:
            try:
                has_locks = True
                if try_lock(descriptor, exclusive=True):
                    break
            except OSError:
                has_locks = False
                break
            on_wait()
            time.sleep(_POLL_SECONDS)
        yield has_locks
    finally:
        os.close(descriptor)


def open_locked(path: Path, *, exclusive: bool) -> int | None:
    """A locked descriptor, for `unlock`; None if another process holds a conflicting lock."""
    with ExitStack() as failing:
        descriptor = open_private(path, os.O_RDWR | os.O_CREAT)
        failing.callback(os.close, descriptor)
        if not try_lock(descriptor, exclusive=exclusive):
            return None
        failing.pop_all()
        return descriptor


def is_locked(path: Path) -> bool:
    """Whether any process holds the lock, shared or exclusive."""
    descriptor = open_locked(path, exclusive=True)
    if descriptor is not None:
        unlock(descriptor)
    return descriptor is None


def try_lock(descriptor: int, *, exclusive: bool) -> bool:
    """Takes the lock without waiting; returns whether that worked."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(descriptor: int) -> None:
    """Releases a lock and closes its descriptor."""
    try:
        # close(2) is not enough: a forked child may still have the descriptor.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)
