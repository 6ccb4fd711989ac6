"""Jobs and catalogs come out as they went in, and show no secret."""

from __future__ import annotations

import mmap
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from coldstream.model.job import (
    Catalog,
    CatalogFile,
    FileJob,
    JobOptions,
    Segment,
    SegmentSource,
    pack,
    sources,
    unpack_files,
    unpack_options,
    unpack_source,
)

DIGESTS = bytes(16) + b"\x01" * 16
JOB = FileJob(
    path="model.safetensors",
    segments=(
        Segment(
            stop=300,
            etag="abc-2",
            url="https://bucket.example/model?X-Amz-Signature=5ec2e7",
            headers=(("Authorization", "Bearer 5ec2e7"),),
        ),
    ),
    copy="/models/a",
    have=b"\x00\x01",
    stops=(100, 300),
    digests=DIGESTS,
    extents=((0, 1), (1, 2)),
)
text = st.text(max_size=20)


def test_chunks_are_half_open_ranges() -> None:
    assert [JOB.span(0), JOB.span(1)] == [(0, 100), (100, 300)]


def test_digests_of_zeros_are_unknown_and_so_are_missing_ones() -> None:
    assert JOB.digest(0) == b""
    assert JOB.digest(1) == b"\x01" * 16
    assert FileJob(path="x", segments=(), stops=(1,), extents=()).digest(0) == b""


def test_what_is_here() -> None:
    assert [JOB.is_local(0), JOB.is_local(1)] == [False, True]
    assert FileJob(path="x", segments=(Segment(stop=1, local="/x"),), stops=(1,), extents=()).is_local(0)
    assert not FileJob(path="x", segments=(Segment(stop=1, url="http://x/x"),), stops=(1,), extents=()).is_local(0)


def test_each_chunk_lies_in_one_segment() -> None:
    segments = tuple(Segment(stop=stop, url=f"http://x/{stop}") for stop in (100, 300, 350))
    job = FileJob(path="x", segments=segments, stops=(40, 100, 200, 300, 350), extents=())
    assert [job.segment(index) for index in range(5)] == [0, 0, 1, 1, 2]
    assert [(source.start, source.segment.stop) for source in sources(job)] == [(0, 100), (100, 300), (300, 350)]
    assert [source.size for source in sources(job)] == [100, 200, 50]
    compressed = replace(job, wire_stops=(10, 30, 60, 70, 99))
    assert [source.size for source in sources(compressed)] == [30, 40, 29]


def test_a_chunk_has_a_span_in_memory_and_a_range_in_its_object() -> None:
    segments = tuple(Segment(stop=stop, url=f"http://x/{stop}") for stop in (100, 300, 350))
    plain = FileJob(path="x", segments=segments, stops=(40, 100, 200, 300, 350), extents=())
    assert [plain.span(index) for index in range(5)] == [(0, 40), (40, 100), (100, 200), (200, 300), (300, 350)]
    assert [plain.wire(index) for index in range(5)] == [(0, 40), (40, 100), (0, 100), (100, 200), (0, 50)]
    compressed = replace(plain, wire_stops=(10, 30, 60, 70, 99))
    assert [compressed.span(index) for index in range(5)] == [plain.span(index) for index in range(5)]
    assert [compressed.wire(index) for index in range(5)] == [(0, 10), (10, 30), (0, 30), (30, 40), (0, 29)]


def test_secrets_are_not_shown() -> None:
    assert "5ec2e7" not in repr(JOB)
    assert "5ec2e7" not in str([JOB])
    assert "5ec2e7" not in repr(sources(JOB))


@given(
    st.lists(
        st.builds(
            FileJob,
            path=text,
            segments=st.lists(
                st.builds(
                    Segment,
                    stop=st.integers(0, 1 << 60),
                    etag=st.none() | text,
                    url=st.none() | text,
                    headers=st.lists(st.tuples(text, text), max_size=3).map(tuple),
                    local=st.none() | text,
                ),
                max_size=3,
            ).map(tuple),
            copy=st.none() | text,
            have=st.binary(max_size=9),
            stops=st.lists(st.integers(0, 1 << 60), max_size=9).map(tuple),
            digests=st.binary(max_size=48),
            extents=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=5).map(tuple),
        ),
        max_size=3,
    )
)
def test_files(files: list[FileJob]) -> None:
    assert unpack_files(pack(files)) == tuple(files)
    for file in files:
        for segment in file.segments:
            source = SegmentSource(
                path=file.path, start=1, segment=segment, size=2, copy=file.copy, cdn_headers=segment.headers
            )
            assert unpack_source(pack(source)) == source


def test_settings() -> None:
    for settings in (
        JobOptions(memory_limit=1),
        JobOptions(memory_limit=1 << 40, consumers=8, listen="/run/x", verify=False, in_order=True, cache="/c"),
    ):
        assert unpack_options(pack(settings)) == settings


@given(
    st.lists(
        st.builds(
            CatalogFile,
            path=text,
            size=st.integers(0, 1 << 60),
            head=st.binary(max_size=50),
            head_stops=st.lists(st.integers(0, 50), max_size=3).map(tuple),
        ),
        max_size=3,
    ),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1 << 60), st.integers(0, 1 << 60)), max_size=5),
)
def test_catalog(files: list[CatalogFile], extents: list[tuple[int, int, int]]) -> None:
    catalog = Catalog(tuple(files), tuple(extents))
    packed = catalog.pack()
    assert Catalog.unpack(packed) == catalog
    with mmap.mmap(-1, len(packed) + 4096) as shared:
        shared[: len(packed)] = packed
        assert Catalog.unpack(shared) == catalog
