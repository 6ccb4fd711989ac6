"""The disk under the cache: locks, permissions, and its errors in our words.

Every folder is 0700 and every file 0600: models may be gated, and whoever can write here could feed a load without a
manifest any bytes. In a folder that others can write to, as a volume of Kubernetes is, each user has a folder of their
own. All locks are flock(2), which ends with the process that holds it, however it ends. Locks inside a
model's folder are taken and tested only by a process that holds the root's lock, so that a test never makes another
process believe that the lock is held, and a folder never moves between finding and locking it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from coldstream.errors import ColdstreamError, DiskError
from coldstream.machine.limits import limit_error

# The root's lock is held for milliseconds; a holder that was stopped must not stop loads.
ROOT_LOCK_SECONDS = 10.0
TRASH_PREFIX = ".trash-"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # who puts something there checks what is there

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns what the operating system says into a DiskError about `path`."""
    try:
        yield
    except ColdstreamError:
        raise
    except OSError as exc:
        limit, hint = limit_error(exc, "write"), None
        if limit is not None:
            hint = limit.hint
        elif exc.errno in _FULL:
            hint = "free some space, or point COLDSTREAM_CACHE_DIR to a larger disk; what is cached so far stays"
        elif exc.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
            hint = "point COLDSTREAM_CACHE_DIR to a folder that this user can write"
        elif exc.errno in {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}:
            hint = "this file system has no file locks; point COLDSTREAM_CACHE_DIR to a local disk"
        raise DiskError(
            f"cannot use the cache at {path}: {limit or exc.strerror or exc}",
            hint=hint,
            operation="cache",
            target=str(path),
        ) from exc


def private_root(root: Path) -> Path:
    """Where this user's files go: `root`, or a folder of this user's own in it when it is shared with others.

    Kubernetes makes volumes that belong to root and that every user, or a group, can write to.
    """
    try:
        status = os.stat(root)
    except OSError:
        return root
    shared = stat.S_ISDIR(status.st_mode) and _privacy_fault(status) is not None
    return root / f"coldstream-{os.geteuid()}" if shared else root


def temporary_folder() -> Path:
    """The system's folder of temporary files; shared memory where none can be written to, as on a read-only root."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        return SHARED_MEMORY


def temporary_root() -> Path:
    """A private folder among the system's temporary files, for what a start needs when there is no cache.

    Raises:
        DiskError: It cannot be made.
    """
    root = private_root(temporary_folder())
    checked_root(root, create=True)
    return root


def checked_root(root: Path, *, create: bool) -> bool:
    """Whether the root is there and private to this user; with `create` it is made, and the answer is True.

    Raises:
        DiskError: It is somebody else's, others can write to it, or it is no folder.
    """
    with disk_errors(root):
        if create:
            make_folders(root)
        try:
            link, status = os.lstat(root), os.stat(root)
        except FileNotFoundError:
            return False
        fault = None if stat.S_ISDIR(status.st_mode) else "it is not a folder"
        if stat.S_ISLNK(link.st_mode) and link.st_uid not in {0, os.geteuid()}:
            # Another user planted it, to have this user's files written elsewhere.
            fault = f"it is a link that user {link.st_uid} made"
        if fault := fault or _privacy_fault(status):
            raise DiskError(
                f"the cache folder {root} is refused: {fault}",
                hint="point COLDSTREAM_CACHE_DIR to a folder of your own, or run: chmod go-w on it when it is yours",
                operation="cache",
                target=str(root),
            )
        return True


def _privacy_fault(status: os.stat_result) -> str | None:
    """Why a folder is not private to this user, or None."""
    if status.st_uid != os.geteuid():
        return f"it belongs to user {status.st_uid}, and this is user {os.geteuid()}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others can write to it (mode {stat.S_IMODE(status.st_mode):04o})"
    return None


def make_folders(folder: Path) -> None:
    """Makes a folder and those around it, private to the user whatever the umask, where they do not exist."""
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        return
    except FileNotFoundError:
        make_folders(folder.parent)
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700)
    os.chmod(folder, 0o700)


def open_private(path: Path, flags: int) -> int:
    """Opens a file of ours; it is created private to the user, and never reached through a link."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW, 0o600)
    if flags & os.O_CREAT:
        os.fchmod(descriptor, 0o600)
    return descriptor


def read_bounded(path: Path, bytes_max: int) -> bytes | None:
    """A small file's bytes; None when it is not there, or longer than `bytes_max`."""
    try:
        with open(path, "rb") as file:
            data = file.read(bytes_max + 1)
    except FileNotFoundError:
        return None
    return data if len(data) <= bytes_max else None


def sync_path(path: Path) -> None:
    """Makes a file's content, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def bytes_on_disk(folder: Path) -> int:
    """What a folder takes: holes in sparse files take nothing. Files that vanish meanwhile do not count."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return total


def size_and_free(root: Path) -> tuple[int, int]:
    """Bytes of the file system, and how many of them this user may still fill."""
    found = os.statvfs(root)
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def trash_name(root: Path) -> Path:
    """A new name that `room.sweep` deletes whenever it finds it."""
    return root / f"{TRASH_PREFIX}{os.urandom(8).hex()}"


@contextmanager
def root_locked(root: Path) -> Iterator[None]:
    """Holds the root's lock.

    Raises:
        DiskError: Another process has held it for too long.
    """
    descriptor = open_private(root / "lock", os.O_RDWR | os.O_CREAT)
    try:
        deadline = time.monotonic() + ROOT_LOCK_SECONDS
        while not try_lock(descriptor, exclusive=True):
            if time.monotonic() > deadline:
                raise DiskError(
                    f"another process holds {root / 'lock'} for more than {ROOT_LOCK_SECONDS:.0f} s",
                    hint="a stopped coldstream process? see: fuser -v on that file",
                    operation="cache",
                    target=str(root),
                    retryable=True,
                )
            time.sleep(0.005)
        yield
    finally:
        unlock(descriptor)


def open_locked(path: Path, *, exclusive: bool) -> int | None:
    """A descriptor that holds the lock, for `unlock`; None when others hold it in a way that excludes ours."""
    descriptor = open_private(path, os.O_RDWR | os.O_CREAT)
    try:
        if try_lock(descriptor, exclusive=exclusive):
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def is_locked(path: Path) -> bool:
    """Whether anybody holds the lock, in whatever way."""
    descriptor = open_locked(path, exclusive=True)
    if descriptor is None:
        return True
    unlock(descriptor)
    return False


def try_lock(descriptor: int, *, exclusive: bool) -> bool:
    """Takes the lock if that is possible at once."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(descriptor: int) -> None:
    """Gives a lock back and closes its descriptor."""
    try:
        # Said, and not left to close(2): a forked child may still have the descriptor.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)
