"""Records what a start read, when it has succeeded, by looking at its processes from outside.

Libraries: of every file that a process has mapped, the pages that it has touched; the kernel maps those around a
touched page too, when it has them (16 pages, or its whole folio since Linux 6.18), so that a range is somewhat longer
than what was needed. Modules: their files are read and closed again, and only the processes know of them; they tell,
and the files are taken whole. Of two more it is known that they are read: what `importlib.metadata` looks into, of
every package, and the sources of all models of transformers, whose names it collects.

Only files below folders that hold programs are recorded: Python's, its environments', the system's libraries. Neither
the model nor caches nor temporary files are.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from coldstream.node.readahead.pages import ENTRY_BYTES, Range, mappings, merged, present
from coldstream.node.readahead.read_record import FILES_MAX, File, ReadRecord, is_below

# A disk reads what is between two near ranges sooner than it begins another read.
_GAP_BYTES = 128 << 10
_PREFIXES_MAX = 64
_SYSTEM = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/usr/local/cuda",
    "/usr/local/nvidia",
    "/opt/rocm",
)
_PYTHON = re.compile(r"(/.+?)/lib(?:64)?/python3[^/]*/.*")
_METADATA = ("METADATA", "RECORD", "entry_points.txt", "top_level.txt")
_TRANSFORMERS = re.compile(r"(.*/transformers)/(?:__pycache__/)?__init__\.[^/]*")
_UNREAD = re.compile(r"convert_|modular_")
_PACKAGES = re.compile(r".*/(?:site|dist)-packages/")
_PACKAGE = re.compile(r".*/(?:site|dist)-packages/([^/]+?)(?:\.libs)?/.*")
_DEVICES = ("/dev", "/proc", "/sys", "/run")


def record(pids: Sequence[int], modules: Iterable[str]) -> ReadRecord:
    """What some processes have read so far.

    Args:
        pids: Of this user; those that have ended, or may not be looked at, are passed over.
        modules: The files of their Python modules, in the order of their import: the bytecode's, whether or not it
            could be written; see `coldstream.node.module_reads`.

    Returns:
        The record; empty, without an error, if nothing can be read.
    """
    imported = _with_others(_existing(modules))
    mapped: dict[str, list[Range] | None] = {}
    for pid in pids:
        _look(pid, mapped)
    prefixes = prefixes_of([*imported, *mapped])
    files = []
    for path in ordered(imported, mapped):
        size = _size(path)
        if size and is_below(path, prefixes) and path.isprintable():
            ranges = merged(mapped.get(path) or (), gap_bytes=_GAP_BYTES, size=size)
            whole = not ranges or ranges == ((0, size),)
            files.append(File(path=path, size=size, ranges=() if whole else tuple(at for r in ranges for at in r)))
    return ReadRecord(prefixes=prefixes, files=tuple(files[:FILES_MAX]))


def prefixes_of(paths: Iterable[str]) -> tuple[str, ...]:
    """The folders that hold programs, judging by where Python's modules lie. Pure."""
    files = dict.fromkeys(_SYSTEM)
    for path in paths:
        if (match := _PYTHON.fullmatch(path)) and not is_below(path, _DEVICES):
            files.update(dict.fromkeys(f"{match[1]}/{folder}" for folder in ("lib", "lib64", "bin")))
    return tuple(files)[:_PREFIXES_MAX]


def ordered(imported: Sequence[str], mapped: Iterable[str]) -> list[str]:
    """The files in the order of need. Pure.

    Modules come as they were imported. A library that is none comes in front of the first module of its package, or,
    when nothing of its package was imported, of the first package that has libraries. The system's come first.
    """
    order = {path: index for index, path in enumerate(imported)}
    first: dict[str, int] = {}
    for path, index in order.items():
        if package := _package(path):
            first.setdefault(package, index)
    libraries = [path for path in mapped if path not in order]
    packages = {path: _package(path) for path in libraries}
    earliest = min((first[package] for package in packages.values() if package in first), default=0)

    def place(path: str) -> tuple[int, bool]:
        package = packages[path]
        return (first.get(package, earliest) if package else 0), False

    places = {path: (index, True) for path, index in order.items()} | {path: place(path) for path in libraries}
    return sorted(places, key=places.__getitem__)


def _package(path: str) -> str | None:
    match = _PACKAGE.fullmatch(path)
    return match[1] if match else None


def _existing(modules: Iterable[str]) -> list[str]:
    """The files that modules were read from, by their real folders' names, as the kernel tells those of libraries."""
    folders: dict[str, str] = {}
    paths: dict[str, None] = {}
    for module in modules:
        folder, _, name = module.rpartition("/")
        if not folder.startswith("/"):
            continue
        real = folders.get(folder)
        if real is None:
            real = folders[folder] = os.path.realpath(folder)
        path = f"{real}/{name}"
        if _size(path) is None and name.endswith(".pyc"):
            with suppress(ValueError):
                path = importlib.util.source_from_cache(path)
        paths[path] = None
    return list(paths)


def _with_others(imported: Sequence[str]) -> list[str]:
    """The same, and what is read without being imported, where it is read: package metadata, transformers' sources."""
    paths: dict[str, None] = {}
    seen: set[str] = set()
    for path in imported:
        packages = _PACKAGES.match(path)
        if packages and packages[0] not in seen:
            seen.add(packages[0])
            for folder in sorted(glob.iglob(glob.escape(packages[0]) + "*.dist-info")):
                paths.update(dict.fromkeys(f"{folder}/{name}" for name in _METADATA))
        paths[path] = None
        if match := _TRANSFORMERS.fullmatch(path):
            sources = sorted(glob.iglob(glob.escape(match[1]) + "/models/*/[!_]*.py"))
            paths.update((source, None) for source in sources if not _UNREAD.match(os.path.basename(source)))
    return list(paths)


def _look(pid: int, mapped: dict[str, list[Range] | None]) -> None:
    """Adds what a process has mapped; None instead of ranges where it cannot be told which of it was read."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    try:
        regions = list(mappings(Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape")))
    except OSError:
        return
    try:
        pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        mapped.update(dict.fromkeys(mapping.path for mapping in regions))
        return
    try:
        for mapping in regions:
            ranges = mapped.setdefault(mapping.path, [])
            if ranges is None:
                continue
            first, count = mapping.start // page_bytes, (mapping.stop - mapping.start) // page_bytes
            entries = _read_at(pagemap, first * ENTRY_BYTES, count * ENTRY_BYTES)
            ranges.extend(present(entries, offset=mapping.offset, page_bytes=page_bytes))
    finally:
        os.close(pagemap)


def _read_at(descriptor: int, offset: int, size: int) -> bytes:
    pieces = []
    with suppress(OSError):
        while size > 0 and (piece := os.pread(descriptor, min(size, 1 << 20), offset)):
            pieces.append(piece)
            offset, size = offset + len(piece), size - len(piece)
    return b"".join(pieces)


def _size(path: str) -> int | None:
    """Of a regular file; None for anything else."""
    with suppress(OSError, ValueError):
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            return status.st_size
    return None
