"""Files as the memory of a load: verified in place, and handed out as views."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import xxhash

from coldstream.engine.attach import Extent
from coldstream.engine.mapped_files import MappedFiles
from coldstream.model.job import FileJob, Segment

CHUNK = 10_001  # no edge is that of a page
CHUNKS_EACH = 6


def content_of(number: int) -> bytes:
    return bytes((number * 37 + position) % 251 for position in range(CHUNK * CHUNKS_EACH))


def job(path: Path) -> FileJob:
    """The first chunk is the header; the third and the fourth are one extent."""
    content = path.read_bytes()
    stops = tuple(range(CHUNK, len(content) + 1, CHUNK))
    digests = b"".join(xxhash.xxh3_128_digest(content[stop - CHUNK : stop]) for stop in stops)
    return FileJob(
        path=path.name,
        segments=(Segment(stop=len(content), local=str(path)),),
        stops=stops,
        digests=digests,
        extents=((1, 2), (2, 4), (4, 5), (5, 6)),
    )


def extents_of(jobs: Sequence[FileJob]) -> list[tuple[int, int, int]]:
    return [
        (number, file.span(first)[0], file.span(stop - 1)[1])
        for number, file in enumerate(jobs)
        for first, stop in file.extents
    ]


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for number, path in enumerate(paths):
        path.write_bytes(content_of(number))
    return paths


def mapped(jobs: Sequence[FileJob], *, verify: bool = True, ahead_bytes: int = 1 << 30) -> MappedFiles:
    return MappedFiles(jobs, extents_of(jobs), verify=verify, threads=2, ahead_bytes=ahead_bytes)


def take(files: MappedFiles, number: int) -> Extent:
    assert files.wait(number, 30)
    return files.extent(number)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def flip(path: Path, position: int) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 1]))


def test_every_extent_is_the_file_s_and_outlives_all_else(paths: list[Path]) -> None:
    files = mapped([job(path) for path in paths])
    taken = [take(files, number) for number in range(len(files.extents))]
    assert files.is_whole
    files.close()
    for path in paths:
        path.unlink()
    for extent in taken:
        assert bytes(extent.memory) == content_of(extent.file)[extent.start : extent.stop]
    assert is_mapped(paths[0])
    taken.clear()
    del extent
    gc.collect()
    assert not is_mapped(paths[0])


def test_what_is_written_stays_private_until_it_is_dropped(paths: list[Path]) -> None:
    files = mapped([job(path) for path in paths])
    extent, neighbour = take(files, 1), take(files, 2)
    before = bytes(neighbour.memory)
    extent.memory[:] = [7] * len(extent.memory)
    assert bytes(extent.memory) == bytes([7]) * len(extent.memory)
    assert bytes(neighbour.memory) == before
    assert paths[0].read_bytes() == content_of(0)
    del extent
    gc.collect()
    assert bytes(neighbour.memory) == before
    # The pages within the extent were dropped.
    assert bytes(take(files, 1).memory)[5000:15000] == content_of(0)[2 * CHUNK + 5000 : 2 * CHUNK + 15000]
    files.close()


def test_nothing_is_handed_out_from_the_first_wrong_chunk_on(paths: list[Path]) -> None:
    jobs = [job(path) for path in paths]
    flip(paths[0], 3 * CHUNK + 17)  # the second chunk of the second extent
    files = mapped(jobs)
    assert bytes(take(files, 0).memory) == content_of(0)[CHUNK : 2 * CHUNK]
    assert not files.wait(1, 30)
    assert files.usable == 1
    until(lambda: files.verified == 1)
    assert not files.is_whole
    assert not files.wait(2, 0)
    files.close()


def test_without_verification_wrong_bytes_are_not_noticed(paths: list[Path]) -> None:
    jobs = [job(path) for path in paths]
    flip(paths[0], 3 * CHUNK + 17)
    files = mapped(jobs, verify=False)
    assert bytes(take(files, 1).memory) == paths[0].read_bytes()[2 * CHUNK : 4 * CHUNK]
    files.close()


def test_a_file_that_is_cut_off_ends_the_extents_and_not_the_process(paths: list[Path]) -> None:
    jobs = [job(path) for path in paths]
    files = mapped(jobs, ahead_bytes=1)
    take(files, 0)
    os.truncate(paths[1], 4096)
    assert not any(files.wait(number, 30) for number in range(4, 8) if files.wait(number - 1, 30))
    assert files.usable == 4
    files.close()


@pytest.mark.parametrize("cause", ["missing", "short", "empty"])
def test_what_cannot_be_mapped_is_an_error_at_once(cause: str, paths: list[Path]) -> None:
    jobs = [job(path) for path in paths]
    if cause == "missing":
        paths[1].unlink()
    else:
        os.truncate(paths[1], 0 if cause == "empty" else 100)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError):  # of any kind
        mapped(jobs)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_threads_stay_near_the_reader(paths: list[Path]) -> None:
    files = mapped([job(path) for path in paths], ahead_bytes=2 * CHUNK)
    # The third extent starts three chunks from the reader.
    until(lambda: files.verified == 2)
    assert files.verified == 2
    take(files, 2)
    until(lambda: files.verified >= 4)
    assert [bool(take(files, number)) for number in range(3, 8)] == [True] * 5
    files.close()


def test_statistics(paths: list[Path]) -> None:
    files = mapped([job(path) for path in paths])
    for number in range(8):
        take(files, number)
    statistics = files.total(None)
    assert statistics.local_bytes == statistics.done_bytes == 2 * (CHUNKS_EACH - 1) * CHUNK
    assert statistics.chunks == 2 * (CHUNKS_EACH - 1)
    assert statistics.received_bytes == statistics.memory_bytes == 0
    assert statistics.first_ready_seconds is not None
    assert 0 < statistics.first_ready_seconds <= statistics.seconds
    files.close()
