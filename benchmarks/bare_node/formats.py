"""File systems for the runtime's image: what each takes to make, to use, and to import from."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bare_node.machine import drop_caches, process_cpu, timed
from bare_node.sources import Sources

_IMPORT = "import vllm.entrypoints.openai.api_server"
_SQUASHFS = ("-all-root", "-no-xattrs", "-noappend", "-quiet", "-no-progress")
_ZSTD = ("-comp", "zstd", "-Xcompression-level", "3", "-b")
# What mksquashfs gets; nothing for a tar.
FORMATS = {
    "zstd-128K": (*_ZSTD, "128K"),
    "zstd-256K": (*_ZSTD, "256K"),
    "zstd-1M": (*_ZSTD, "1M"),
    "gzip-128K": ("-comp", "gzip", "-Xcompression-level", "1", "-b", "128K"),
    "tar-gzip": (),
}


def measure_format(sources: Sources, row: str) -> dict[str, Any]:
    """Makes an image and uses it in all ways."""
    root = sources.root()
    image = Path("/dev/shm/coldstream-bare-image")
    out: dict[str, Any] = {}
    try:
        if FORMATS[row]:
            out["make"] = timed(["mksquashfs", root, image, *FORMATS[row], *_SQUASHFS])
            uses = {"mounted": _mounted}
            if row == "zstd-256K":
                uses |= {"squashfuse": _squashfuse, "memory": _unsquashed, "disk": _unsquashed}
        else:
            out["make"] = timed(["sh", "-c", f"tar -cC {root} . | gzip -1 > {image}"])
            uses = {"memory": _untarred, "disk": _untarred}
        out["bytes"] = image.stat().st_size
        for name, use in uses.items():
            base = "/dev/shm" if name != "disk" else str(sources.folder)
            with tempfile.TemporaryDirectory(prefix="coldstream-bare-", dir=base) as folder:
                drop_caches()
                tree = Path(folder) / "root"
                with use(image, tree) as (ready, pid):
                    if name == "disk":
                        drop_caches()
                    before = process_cpu(pid)
                    libraries = f"LD_LIBRARY_PATH={tree}/lib:{tree}/lib/system"
                    command = ["env", "-i", libraries, f"{tree}/bin/python3", "-s", "-c", _IMPORT]
                    wall, cpu = timed(command)
                    out[name] = {"ready": ready, "import": (wall, cpu), "helper_cpu": process_cpu(pid) - before}
    finally:
        image.unlink(missing_ok=True)
    return out


@contextmanager
def _mounted(image: Path, folder: Path) -> Iterator[tuple[Any, int]]:
    folder.mkdir()
    ready = timed(["mount", "-o", "loop,ro", image, folder])
    try:
        yield ready, 0
    finally:
        subprocess.run(["umount", folder], check=True)


@contextmanager
def _squashfuse(image: Path, folder: Path) -> Iterator[tuple[Any, int]]:
    folder.mkdir()
    began = time.monotonic()
    process = subprocess.Popen(["squashfuse", "-f", image, folder])
    while not os.path.ismount(folder):
        time.sleep(0.005)
    try:
        yield (time.monotonic() - began, process_cpu(process.pid)), process.pid
    finally:
        subprocess.run(["umount", folder], check=True)
        process.wait()


@contextmanager
def _unsquashed(image: Path, folder: Path) -> Iterator[tuple[Any, int]]:
    yield timed(["unsquashfs", "-q", "-n", "-no-xattrs", "-d", folder, image]), 0


@contextmanager
def _untarred(image: Path, folder: Path) -> Iterator[tuple[Any, int]]:
    folder.mkdir()
    yield timed(["tar", "-xzf", image, "-C", folder]), 0
