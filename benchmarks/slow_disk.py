"""A disk that is as far away as a network disk or a lazily pulled image: each read waits, and all share a bandwidth.

    with slow_disk(image, latency_seconds=0.01, bytes_per_second=100e6) as folder: ...

The kernel here has neither dm-delay nor NBD, and its block throttling knows no latency. So a file system of one file,
the image, is served over /dev/fuse; a loop device reads that file past the page cache, and the image is mounted from
there. What a program sees is ext4 on a block device with the kernel's own read-ahead. Each mount begins with nothing
in the page cache. Needs root. A process of Python serves the reads, on the cores that are measured.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_THREADS = 64
# The kernel's default, and what network disks come with.
_READ_AHEAD_KIB = 128
_READ_BYTES = 1 << 20
_MODE_FOLDER, _MODE_FILE = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644
# linux/fuse.h, version 7.31.
_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _STATFS, _RELEASE, _FLUSH, _INIT = 1, 2, 3, 14, 15, 17, 18, 25, 26
_WRITE, _FSYNC = 16, 20
_OPENDIR, _RELEASEDIR, _INTERRUPT, _DESTROY, _BATCH_FORGET = 27, 29, 36, 38, 42
_ASYNC_READ, _BIG_WRITES, _ASYNC_DIO, _MAX_PAGES = 1 << 0, 1 << 5, 1 << 15, 1 << 22
_NAME = b"image"


def make_image(folder: Path, image: Path) -> None:
    """An ext4 image with what is in a folder; times are kept, so that bytecode stays valid."""
    used = sum(int(size) for size in subprocess.check_output(["du", "-sk", str(folder)]).split()[:1]) * 1024
    with image.open("wb") as file:
        file.truncate(int(used * 1.25) + (256 << 20))
    command = ["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-N", "400000", "-d", str(folder), str(image)]
    subprocess.run(command, check=True)


@contextmanager
def slow_disk(
    image: Path, *, latency_seconds: float, bytes_per_second: float, writable: bool = False
) -> Iterator[Path]:
    """Mounts an image; the folder is valid within the block. Writes wait, too."""
    with tempfile.TemporaryDirectory(prefix="coldstream-disk-") as temporary:
        Path(temporary).chmod(0o755)
        served, mounted = Path(temporary, "served"), Path(temporary, "mounted")
        served.mkdir()
        mounted.mkdir()
        arguments = [str(image), str(served), str(latency_seconds), str(bytes_per_second)]
        server = subprocess.Popen([sys.executable, __file__, *arguments])
        try:
            _wait_for(served / _NAME.decode())
            command = [
                "losetup",
                *([] if writable else ["--read-only"]),
                "--direct-io=on",
                "--find",
                "--show",
                str(served / _NAME.decode()),
            ]
            device = subprocess.check_output(command, text=True).strip()
            Path("/sys/block", Path(device).name, "queue/read_ahead_kb").write_text(f"{_READ_AHEAD_KIB}\n")
            try:
                options = "rw" if writable else "ro,noload"
                subprocess.run(["mount", "-o", options, "-t", "ext4", device, str(mounted)], check=True)
                try:
                    yield mounted
                finally:
                    subprocess.run(["umount", "--lazy", str(mounted)], check=True)
            finally:
                subprocess.run(["losetup", "--detach", device], check=True)
                _wait_until_free(device)
        finally:
            subprocess.run(["umount", "--lazy", str(served)], check=False)
            server.terminate()
            server.wait()


def _wait_for(path: Path) -> None:
    until = time.monotonic() + 10
    while not path.exists():
        if time.monotonic() > until:
            raise SystemExit("the slow disk does not come up; is this root, with /dev/fuse?")
        time.sleep(0.01)


def _wait_until_free(device: str) -> None:
    until = time.monotonic() + 10
    while Path("/sys/block", Path(device).name, "loop/backing_file").exists() and time.monotonic() < until:
        time.sleep(0.01)


class _Server:
    """Answers the kernel: one folder, one file in it."""

    def __init__(self, image: Path, latency_seconds: float, bytes_per_second: float) -> None:
        self._image = os.open(image, os.O_RDWR)
        self._size = os.fstat(self._image).st_size
        self._latency, self._rate = latency_seconds, bytes_per_second
        self._lock = threading.Lock()
        self._free = 0.0
        self._fuse = os.open("/dev/fuse", os.O_RDWR)

    def mount(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={self._fuse},rootmode=40000,user_id=0,group_id=0,allow_other,max_read={_READ_BYTES}"
        if libc.mount(b"slow", os.fsencode(folder), b"fuse.slow", 6, options.encode()):  # nosuid, nodev
            raise OSError(ctypes.get_errno(), "mount")

    def run(self) -> None:
        while True:
            try:
                request = os.read(self._fuse, _READ_BYTES + 4096)
            except OSError:
                return  # unmounted
            _, code, unique, node = struct.unpack_from("<IIQQ", request)
            if code in {_FORGET, _BATCH_FORGET, _INTERRUPT}:
                continue
            answer = self._answer(code, node, request[40:])
            error, data = (answer, b"") if isinstance(answer, int) else (0, answer)
            try:
                os.writev(self._fuse, [struct.pack("<IiQ", 16 + len(data), -error, unique), data])
            except OSError:
                return

    def _answer(self, code: int, node: int, body: bytes) -> bytes | int:
        if code == _READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            self._wait(size)
            return os.pread(self._image, size, offset)
        if code == _WRITE:
            _, offset, size = struct.unpack_from("<QQI", body)
            self._wait(size)
            return struct.pack("<II", os.pwrite(self._image, body[40:], offset), 0)
        if code == _INIT:
            flags = _ASYNC_READ | _BIG_WRITES | _ASYNC_DIO | _MAX_PAGES
            return struct.pack("<IIIIHHIIHHII24x", 7, 31, 0, flags, _THREADS, _THREADS, _READ_BYTES, 1, 256, 0, 0, 0)
        if code == _LOOKUP:
            return struct.pack("<QQQQII", 2, 0, 3600, 3600, 0, 0) + self._attributes(2) if body == _NAME + b"\0" else 2
        if code == _GETATTR:
            return struct.pack("<QII", 3600, 0, 0) + self._attributes(node)
        if code in {_OPEN, _OPENDIR}:
            return struct.pack("<QII", 1, 0, 0)
        if code == _STATFS:
            return struct.pack("<QQQQQIIII24x", self._size // 4096, 0, 0, 1, 0, 4096, 255, 4096, 0)
        return b"" if code in {_RELEASE, _RELEASEDIR, _FLUSH, _FSYNC, _DESTROY} else 38  # ENOSYS

    def _attributes(self, node: int) -> bytes:
        size, mode = (self._size, _MODE_FILE) if node == 2 else (0, _MODE_FOLDER)
        return struct.pack("<QQQQQQIIIIIIIIII", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _wait(self, size: int) -> None:
        """The link is busy with this read for its share of the bandwidth; the distance comes on top."""
        with self._lock:
            begin = max(self._free, time.monotonic())
            self._free = begin + size / self._rate
            until = self._free + self._latency
        time.sleep(max(0.0, until - time.monotonic()))


def main() -> None:
    """Serves an image until it is unmounted: IMAGE FOLDER SECONDS BYTES_PER_SECOND."""
    image, folder, latency, rate = sys.argv[1:]
    server = _Server(Path(image), float(latency), float(rate))
    server.mount(Path(folder))
    threads = [threading.Thread(target=server.run) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()


if __name__ == "__main__":
    main()
