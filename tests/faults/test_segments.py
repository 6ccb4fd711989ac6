"""Models whose files are stored in segments load like others: equal bytes, whatever the cuts and whatever fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from coldstream.errors import ConflictError, IntegrityError
from coldstream.loading.options import Options
from coldstream.loading.streaming import Load
from coldstream.model.manifest import Manifest, parse
from coldstream.settings import load_settings
from tests.checkpoints import MIB, expected_tensors, raw_bytes, sharded_checkpoint
from tests.faults.test_engine import manifest_of
from tests.segments import in_segments
from tests.servers.ranged import RangedServer


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    # The embedding, 8 MiB in one tensor, spans several segments wherever they are cut.
    return sharded_checkpoint(shards=2, layers=4, rows=1024, columns=1024)


@pytest.fixture(scope="module")
def expected(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return expected_tensors(tmp_path_factory.mktemp("expected"), files)


def serve(server: RangedServer, files: dict[str, bytes], *, every: int, chunk_bytes: int = MIB) -> None:
    """Puts the model there in segments of `every` chunks, and nowhere else."""

    def put(key: str, content: bytes) -> str:
        server.put(f"/m/{key}", content)
        return server.etags[f"/m/{key}"].strip('"')

    whole = manifest_of(files, dict.fromkeys(files, "unused"))
    server.put("/m/coldstream.json", in_segments(whole, files, put, every=every, chunk_bytes=chunk_bytes))


def load(server: RangedServer, **options: object) -> Load:
    settings = load_settings({"COLDSTREAM_RETRY_SECONDS": "20", "COLDSTREAM_CACHE_LIMIT": "20GB"}, environ={})
    options = {"framework": "buffer", "cache": False, "settings": settings, "connections": 8} | options
    return Load(f"{server.url}/m", Options(**options))  # type: ignore[arg-type]


def bytes_of(loading: Load) -> dict[str, bytes]:
    with loading:
        return {name: raw_bytes(tensor) for name, tensor in loading}


@pytest.mark.parametrize("every", [1, 2, 5, 1000])
def test_equal_bytes_for_every_cut(every: int, files: dict[str, bytes], expected: dict[str, bytes]) -> None:
    with RangedServer({}) as server:
        serve(server, files, every=every)
        loading = load(server)
        assert bytes_of(loading) == expected
        report = loading.report
        assert report is not None
        assert report.verified
        assert report.retries == report.corrupt == 0
        assert report.received_bytes == report.bytes
        # No request goes past the edge of an object: each was answered in full.
        assert all(request.status == 206 for request in server.requests if ".safetensors.d/" in request.path)


def test_a_header_in_several_segments(files: dict[str, bytes], expected: dict[str, bytes]) -> None:
    with RangedServer({}) as server:
        serve(server, files, every=1, chunk_bytes=64 << 10)
        assert bytes_of(load(server, memory=4 * MIB)) == expected
    with RangedServer({}) as server:
        # A hundred bytes to a chunk, and 30,000 to a segment: the header's end lies in the midst of one.
        small = sharded_checkpoint(shards=1, layers=2, rows=16, columns=32)
        serve(server, small, every=300, chunk_bytes=100)
        with load(server) as loading:
            assert sum(len(raw_bytes(tensor)) for _, tensor in loading) > 0


def test_faults_and_links_that_end(files: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """Each segment has a link of its own, which is renewed by itself."""
    with RangedServer({}, seed=3) as server:
        serve(server, files, every=2)
        loading = load(server, memory=12 * MIB)
        found = {}
        with loading:
            for number, (name, tensor) in enumerate(loading):
                found[name] = raw_bytes(tensor)
                del tensor
                if number == 1:
                    # Once: a second one could meet the request by which the link is renewed, which ends the load.
                    server.add("status", r"\.d/", status=403, times=1)
                    server.add("status", r"\.d/", status=503, probability=0.1, times=None)
                    server.add("cut", r"\.d/", at=1000, probability=0.1, times=None)
                    server.add("flip", r"\.d/", at=99, times=2, first=5)
        assert found == expected
        assert loading.report is not None
        assert loading.report.renewals == 1
        assert loading.report.corrupt <= 2


def test_a_segment_that_is_replaced_ends_the_load(files: dict[str, bytes]) -> None:
    with RangedServer({}) as server:
        serve(server, files, every=4)
        with load(server, memory=12 * MIB) as loading:
            next(loading)
            server.add("size", r"\.d/0000[2-9]", by=7, times=None)
            with pytest.raises(ConflictError):
                list(loading)


def test_the_local_copy_is_whole_files(files: dict[str, bytes], expected: dict[str, bytes], tmp_path: Path) -> None:
    with RangedServer({}) as server:
        serve(server, files, every=2)
        loading = load(server, cache=tmp_path)
        with loading:
            found = {name: raw_bytes(tensor) for name, tensor in loading}
            assert loading.wait_for_cache() == "written"
        assert found == expected
        for path in (path for path in files if path.endswith(".safetensors")):
            (copied,) = tmp_path.glob(f"models/*/*/{path}")
            assert copied.read_bytes() == files[path]
        warm = load(server, cache=tmp_path)
        assert bytes_of(warm) == expected
        assert warm.report is not None
        assert warm.report.received_bytes == 0
        # A wrong chunk of the copy is fetched from the segment that it lies in.
        with open(copied, "r+b") as file:
            file.seek(len(files[copied.name]) // 2)
            file.write(b"\0wrong\0")
        mended = load(server, cache=tmp_path)
        assert bytes_of(mended) == expected
        assert mended.report is not None
        assert mended.report.corrupt == 1


def test_from_a_folder(files: dict[str, bytes], expected: dict[str, bytes], tmp_path: Path) -> None:
    """A store that is a folder: segments are read where they lie, relative to its root too."""

    def put(key: str, content: bytes) -> str:
        path = tmp_path / key.removeprefix("/") if key.startswith("/") else tmp_path / "org/m" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return "-"

    whole = manifest_of(files, dict.fromkeys(files, "unused"))
    put("coldstream.json", in_segments(whole, files, put, every=3, chunk_bytes=MIB, root="/objects/"))
    settings = load_settings({"COLDSTREAM_STORE": tmp_path.as_uri()}, environ={})
    assert bytes_of(Load("org/m", Options(framework="buffer", settings=settings))) == expected
    damaged = tmp_path / "objects/model-00002-of-00002.safetensors.d/00001"
    damaged.write_bytes(damaged.read_bytes()[:-5] + b"wrong")
    with pytest.raises(IntegrityError, match="model-00002"):
        bytes_of(Load("org/m", Options(framework="buffer", settings=settings)))


def test_what_is_written_has_several_objects(files: dict[str, bytes]) -> None:
    with RangedServer({}) as server:
        serve(server, files, every=1)
        record = parse(server.files["/m/coldstream.json"], where="x")
        assert isinstance(record, Manifest)
        assert all(len(entry.objects) > 5 for entry in record.files if entry.path.endswith(".safetensors"))
