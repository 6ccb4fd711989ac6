"""Records what a start read, when it has succeeded, by looking at its processes from outside.

Libraries: of every file that a process has mapped, the pages that it has touched. The kernel also maps those around a
touched page, when it has them (16 pages, or its whole folio since Linux 6.18), so a range is somewhat longer than what
was needed. Modules: the processes report them, and their files are recorded whole. Two more kinds are known to be read:
what `importlib.metadata` looks into, of every package, and the sources of all models of transformers, whose names it
collects. Only files below folders that hold programs are recorded: not the model, caches or temporary files.

`/proc/PID/maps` names the files that a process has mapped; `/proc/PID/pagemap` has eight bytes for each page, of which
the highest bit says whether the page is there (kernel docs, admin-guide/mm/pagemap). A page of a private mapping that
was written to, as the linker does when it relocates a library, is no longer the file's, but it was read from it, and
counts.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from coldstream.node.readahead.read_record import DEVICES, FILES_MAX, File, ReadRecord, is_below

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
_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S{4} ([0-9a-f]+) \S+ (\d+) +(/.*)")
_DELETED = " (deleted)"
_ENTRY_BYTES = 8
# The highest byte of an entry, little-endian: present, or swapped out.
_THERE = bytes(1 if byte & 0xC0 else 0 for byte in range(256))
_RUN = re.compile(rb"\x01+")

Range = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """A part of a file in a process's memory: addresses `[start, stop)`, from `offset` of the file on."""

    path: str
    start: int
    stop: int
    offset: int


def record(pids: Sequence[int], modules: Iterable[str]) -> ReadRecord:
    """What some processes of this user have read so far, except those that have exited.

    `modules` are the files of their Python modules, in the order of their import, as `module_reads` reports them.
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
    """The folders that hold programs, judging by where Python's modules are."""
    files = dict.fromkeys(_SYSTEM)
    for path in paths:
        if (match := _PYTHON.fullmatch(path)) and not is_below(path, DEVICES):
            files.update(dict.fromkeys(f"{match[1]}/{folder}" for folder in ("lib", "lib64", "bin")))
    return tuple(files)[:_PREFIXES_MAX]


def ordered(imported: Sequence[str], mapped: Iterable[str]) -> list[str]:
    """The files in the order of need.

    Modules come as they were imported. Another library comes in front of the first module of its package, or, when
    nothing of its package was imported, of the first package that has libraries. The system's come first.
    """
    places = {path: (index, True) for index, path in enumerate(imported)}
    first: dict[str, int] = {}
    for path, (index, _) in places.items():
        if package := _package(path):
            first.setdefault(package, index)
    packages = {path: _package(path) for path in mapped if path not in places}
    earliest = min((first[package] for package in packages.values() if package in first), default=0)
    places |= {path: (first.get(package, earliest) if package else 0, False) for path, package in packages.items()}
    return sorted(places, key=places.__getitem__)


def _package(path: str) -> str | None:
    match = _PACKAGE.fullmatch(path)
    return match[1] if match else None


def _existing(modules: Iterable[str]) -> list[str]:
    """The files that modules were read from, by the real names of their folders, as the kernel names libraries."""
    real = cache(os.path.realpath)
    paths: dict[str, None] = {}
    for module in modules:
        folder, _, name = module.rpartition("/")
        if not folder.startswith("/"):
            continue
        path = f"{real(folder)}/{name}"
        if _size(path) is None and name.endswith(".pyc"):
            with suppress(ValueError):
                path = importlib.util.source_from_cache(path)
        paths[path] = None
    return list(paths)


def _with_others(imported: Sequence[str]) -> list[str]:
    """Adds what is read without being imported, in its place: package metadata, transformers' sources."""
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
    """Adds what a process has mapped; None instead of ranges if it is unknown which of it was read."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    regions: list[Mapping] = []
    try:
        regions += mappings(Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape"))
        with open(f"/proc/{pid}/pagemap", "rb") as pagemap:
            for mapping in regions:
                ranges = mapped.setdefault(mapping.path, [])
                if ranges is not None:
                    pagemap.seek(mapping.start // page_bytes * _ENTRY_BYTES)
                    entries = pagemap.read((mapping.stop - mapping.start) // page_bytes * _ENTRY_BYTES)
                    ranges.extend(present(entries, offset=mapping.offset, page_bytes=page_bytes))
    except OSError:
        mapped.update(dict.fromkeys(mapping.path for mapping in regions))


def _size(path: str) -> int | None:
    """Of a regular file; None for anything else."""
    with suppress(OSError, ValueError):
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            return status.st_size
    return None


def mappings(maps: str) -> Iterator[Mapping]:
    """The files of `/proc/PID/maps`, without deleted ones and memory without a file."""
    for line in maps.splitlines():
        match = _LINE.fullmatch(line)
        # The kernel writes a line feed of a name as \012, and nothing else that way.
        if match is None or match[4] == "0" or match[5].endswith(_DELETED) or "\\" in match[5]:
            continue
        yield Mapping(path=match[5], start=int(match[1], 16), stop=int(match[2], 16), offset=int(match[3], 16))


def present(entries: bytes, *, offset: int, page_bytes: int) -> Iterator[Range]:
    """The ranges of a file that are in memory, by the `pagemap` entries of a mapping that begins at `offset` of it."""
    for run in _RUN.finditer(entries[_ENTRY_BYTES - 1 :: _ENTRY_BYTES].translate(_THERE)):
        yield offset + run.start() * page_bytes, offset + run.end() * page_bytes


def merged(ranges: Iterable[Range], *, gap_bytes: int, size: int) -> tuple[Range, ...]:
    """Ranges sorted, cut at the file's size, and joined where less than `gap_bytes` are between them."""
    runs: list[Range] = []
    for start, stop in sorted(ranges):
        if start >= size:
            break
        if runs and start - runs[-1][1] < gap_bytes:
            runs[-1] = runs[-1][0], max(runs[-1][1], min(stop, size))
        else:
            runs.append((start, min(stop, size)))
    return tuple(runs)
