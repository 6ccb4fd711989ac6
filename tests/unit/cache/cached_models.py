"""Models to keep in a cache, and what tests ask of their copies."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import xxhash

from coldstream.cache.cache import Cache, LocalCopy
from coldstream.cache.copy_records import CachedFile
from coldstream.cache.copy_writer import CopyWriter
from coldstream.cache.space import CachedCopy

REPOSITORY = Path(__file__).resolve().parents[3]
URI = "s3://models/org/model"

HUGE = 1 << 40

SIZES = {"a.safetensors": [40, 3, 50], "sub/b.safetensors": [7] * 9, "empty": [], "c.bin": [1]}


class Model:
    """A small model with known bytes."""

    def __init__(self, sizes: dict[str, list[int]] | None = None, *, seed: int = 0, hashed: bool = True) -> None:
        rng = random.Random(seed)
        self.data: list[bytes] = []
        self.files: list[CachedFile] = []
        for path, chunks in (SIZES if sizes is None else sizes).items():
            data = rng.randbytes(sum(chunks))
            stops = tuple(sum(chunks[: count + 1]) for count in range(len(chunks)))
            pieces = [data[start:stop] for start, stop in pairwise((0, *stops))]
            digests = b"".join(xxhash.xxh3_128_digest(piece) for piece in pieces)
            self.data.append(data)
            self.files.append(CachedFile(path=path, size=len(data), stops=stops, digests=digests if hashed else None))

    def chunks(self) -> list[tuple[int, int]]:
        return [(file, chunk) for file, entry in enumerate(self.files) for chunk in range(len(entry.stops))]

    def piece(self, file: int, chunk: int) -> bytes:
        start, stop = self.files[file].bounds(chunk)
        return self.data[file][start:stop]

    def write(self, writer: CopyWriter, file: int, chunk: int) -> None:
        piece = self.piece(file, chunk)
        writer.write(file, chunk, memoryview(piece), xxhash.xxh3_128_digest(piece))

    def write_all(self, writer: CopyWriter) -> None:
        for file, chunk in self.chunks():
            self.write(writer, file, chunk)

    def open(self, cache: Cache, *, uri: str = URI, name: str = "org/model", version: str = "sha256:1") -> LocalCopy:
        return cache.open(uri=uri, name=name, version=version, files=self.files)

    def fill(self, cache: Cache, *, name: str = "org/model", version: str = "sha256:1", uri: str = URI) -> Path:
        """Puts the whole model into the cache."""
        with self.open(cache, uri=uri, name=name, version=version) as copy:
            with begun(copy) as writer:
                self.write_all(writer)
            assert copy.complete
            return copy.folder

    def check(self, copy: LocalCopy, *, moving: bool = False) -> int:
        """Reads back what the copy claims, byte for byte; returns how many chunks that is.

        `moving`: another process writes it meanwhile.
        """
        count = 0
        for file, entry in enumerate(self.files):
            claimed, digests = copy.have(file), copy.digests(file)
            assert len(claimed) == len(entry.stops)
            for chunk, there in enumerate(claimed):
                if there:
                    start, stop = entry.bounds(chunk)
                    with opened_where_it_is(copy, file) as opened:
                        opened.seek(start)
                        assert opened.read(stop - start) == self.piece(file, chunk)
                    digest = digests[chunk * 16 : chunk * 16 + 16]
                    assert digest == xxhash.xxh3_128_digest(self.piece(file, chunk))
                    count += 1
        for file, entry in enumerate(self.files):
            plain = copy.folder / entry.path
            if plain.exists():
                assert plain.read_bytes() == self.data[file]
        assert moving or copy.complete == all((copy.folder / entry.path).exists() for entry in self.files)
        return count


def opened_where_it_is(copy: LocalCopy, file: int) -> BinaryIO:
    """The file, which another process may move once while we look."""
    try:
        return copy.path(file).open("rb")
    except FileNotFoundError:
        return copy.path(file).open("rb")


def begun(copy: LocalCopy) -> CopyWriter:
    writer = copy.writer()
    assert writer is not None
    return writer


def entry_of(cache: Cache, name: str) -> CachedCopy:
    (found,) = [entry for entry in cache.entries() if entry.name == name]
    return found


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def open_descriptors() -> int:
    return len(os.listdir("/dev/fd"))


def journal_of(copy: LocalCopy) -> Path:
    return copy.folder / ".coldstream" / "journal"


def run_python(code: str, *arguments: object) -> str:
    with start_python(code, *arguments) as process:
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return out


def start_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
