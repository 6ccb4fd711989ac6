"""One suite for every origin: the same model at each kind of place, with a manifest and without."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import xxhash

import coldstream
from coldstream.errors import (
    ConflictError,
    CredentialsError,
    HeaderError,
    IntegrityError,
    ManifestError,
    NotFoundError,
    UnavailableError,
)
from coldstream.mirror.upload import upload
from coldstream.mirror.upload_plan import plan_upload
from coldstream.model.chunks import CHUNK_BYTES, tensor_stops
from coldstream.model.header import parse_header
from coldstream.model.manifest import Journal, Provenance, serialize
from coldstream.model.names import checked_name
from coldstream.net.pool import read
from coldstream.net.retry import Backoff, Retry
from coldstream.places.checkpoint import SPECULATIVE_BYTES, Checkpoint, Shard
from coldstream.places.folder import FolderSnapshot
from coldstream.places.model_reader import ModelReader
from coldstream.places.opening import open_model_reader
from coldstream.places.place import Store
from coldstream.settings import Settings, load_settings
from tests.conftest import fresh_bucket, quick_store
from tests.models import safetensors_bytes, sharded_model, write_model
from tests.segments import in_segments
from tests.servers.hub import FakeHub
from tests.servers.ranged import RangedServer
from tests.servers.stores import S3Server

NAME = "org/model"
FILES = sharded_model(shards=3, shard_bytes=1 << 20)
SHARDS = sorted(path for path in FILES if path.endswith(".safetensors"))
SMALL = {"1_Pooling/config.json", "config.json", "model.safetensors.index.json", "tokenizer.json"}
QUICK = Backoff(first_seconds=0.01, longest_seconds=0.05, give_up_seconds=2.0)


@dataclass
class Place:
    """A model somewhere. `put` replaces or adds a file, None deletes it."""

    uri: str
    settings: Settings
    put: Callable[[str, bytes | None], None]
    manifest: bool
    record: Callable[[], bytes] = bytes

    def open(self) -> ModelReader:
        return open_model_reader(self.uri, self.settings, retry=Retry(QUICK))


def settings_of(flags: dict[str, str]) -> Settings:
    return load_settings(flags, environ={})


def in_store(store: Store, folder: Path, *, manifest: bool, segments: str = "") -> Callable[[str, bytes | None], None]:
    def put(path: str, content: bytes | None) -> None:
        if content is None:
            store.delete([f"{NAME}/{path}"])
        else:
            store.put(f"{NAME}/{path}", content)

    if manifest:
        source = FolderSnapshot(write_model(folder, FILES))
        upload(store, source, plan_upload(store, source, NAME))
    else:
        for path, content in FILES.items():
            put(path, content)
    if segments:
        cut(store, root="/elsewhere/" if segments == "outside" else "")
    return put


def cut(store: Store, *, root: str) -> None:
    """Replaces the files by segments; a header lies in several."""
    written, _ = store.get(f"{NAME}/coldstream.json", bytes_max=1 << 20)

    def put(key: str, content: bytes) -> str:
        full = key[1:] if key.startswith("/") else f"{NAME}/{key}"
        store.put(full, content)
        return store.head(full).etag

    record = in_segments(written, FILES, put, chunk_bytes=_SMALL_CHUNK_BYTES, every=1, most=6, root=root)
    store.delete([f"{NAME}/{path}" for path in FILES])
    store.put(f"{NAME}/coldstream.json", record)


FOREIGN = ["folder", "rclone", "moto", "web", "hub"]
RECORDED = ["folder+manifest", "rclone+manifest", "moto+manifest", "web+manifest"]
# A header lies in several of them.
_SMALL_CHUNK_BYTES = 100
SEGMENTED = ["folder+segments", "folder+outside", "rclone+segments", "moto+outside", "web+segments"]


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    kind, _, rest = request.param.partition("+")
    manifest = bool(rest)
    segments = rest if rest in {"segments", "outside"} else ""
    with ExitStack() as stack:
        if kind == "hub":
            hub = stack.enter_context(FakeHub())
            files = dict(FILES)
            hub.add_repo(NAME, files)

            def commit(path: str, content: bytes | None) -> None:
                files.pop(path, None)
                files.update({path: content} if content is not None else {})
                hub.add_repo(NAME, files)

            yield Place(f"hf://{NAME}", settings_of({"HF_ENDPOINT": hub.endpoint}), commit, manifest=False)
        elif kind in {"rclone", "moto"}:
            server: S3Server = request.getfixturevalue(kind)
            flags = server.environ(fresh_bucket(server))
            store = quick_store(flags)
            put = in_store(store, tmp_path / "source", manifest=manifest, segments=segments)
            yield Place(NAME, settings_of(flags), put, manifest, lambda: store.get(f"{NAME}/coldstream.json")[0])
        else:
            flags = {"COLDSTREAM_STORE": (tmp_path / "store").as_uri()}
            put = in_store(quick_store(flags), tmp_path / "source", manifest=manifest, segments=segments)
            root = tmp_path / "store" / NAME
            record = (root / "coldstream.json").read_bytes
            if kind == "folder":
                yield Place(NAME, settings_of(flags), put, manifest, record)
                return
            found = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
            web = stack.enter_context(RangedServer({f"/m/{path}": data for path, data in found.items()}))

            def put_web(path: str, content: bytes | None) -> None:
                if content is None:
                    del web.files[f"/m/{path}"], web.etags[f"/m/{path}"]
                else:
                    web.put(f"/m/{path}", content)

            yield Place(f"{web.url}/m", settings_of({}), put_web, manifest, record)


def content(shard: Shard, start: int, stop: int) -> bytes:
    """What the engine would fetch: a chunk, or what lies in one segment of it."""
    found = b""
    begin = 0
    for segment in shard.segments:
        first, last = max(start, begin) - begin, min(stop, segment.stop) - begin
        begin = segment.stop
        if first >= last:
            continue
        if segment.local:
            found += Path(segment.local).read_bytes()[first:last]
            continue
        assert segment.url
        found += read(segment.url, start=first, stop=last, headers=segment.headers, etag=segment.etag).body
    return found


def check(checkpoint: Checkpoint, files: dict[str, bytes], *, chunk_bytes: int = CHUNK_BYTES) -> None:
    assert [shard.path for shard in checkpoint.shards] == sorted(files)
    assert checkpoint.bytes == sum(map(len, files.values()))
    for shard in checkpoint.shards:
        data = files[shard.path]
        header = parse_header(data, file_bytes=len(data), path=shard.path)
        assert (shard.size, shard.header, shard.head) == (len(data), header, data[: header.data_start])
        assert shard.stops == tuple(tensor_stops(header, chunk_bytes=chunk_bytes))
        assert all((segment.url is None) != (segment.local is None) for segment in shard.segments)
        assert shard.segments[-1].stop == shard.size
        assert content(shard, 0, len(data)) == data
        assert content(shard, 5, 5000) == data[5:5000]
        if shard.digests is not None:
            starts = (0, *shard.stops[:-1])
            ranges = zip(starts, shard.stops, strict=True)
            assert shard.digests == b"".join(xxhash.xxh3_128_digest(data[start:stop]) for start, stop in ranges)


@pytest.mark.parametrize("place", FOREIGN + RECORDED + SEGMENTED, indirect=True)
def test_the_checkpoint_is_what_lies_there(place: Place) -> None:
    checkpoint = place.open().checkpoint()
    small = max(len(shard.segments) for shard in checkpoint.shards) > 1
    check(checkpoint, {path: FILES[path] for path in SHARDS}, chunk_bytes=_SMALL_CHUNK_BYTES if small else CHUNK_BYTES)
    assert checkpoint.verified == place.manifest
    assert checkpoint.pinned
    assert re.fullmatch(r"[0-9a-f]{16,}", checkpoint.version)
    assert checked_name(checkpoint.name)
    assert all((shard.digests is not None) == place.manifest for shard in checkpoint.shards)


@pytest.mark.parametrize("place", FOREIGN + RECORDED + SEGMENTED, indirect=True)
def test_nothing_secret_is_shown(place: Place) -> None:
    origin = place.open()
    checkpoint = origin.checkpoint()
    shown = f"{checkpoint!r} {checkpoint.uri} {origin!r} {origin.label}"
    for shard in checkpoint.shards:
        links = [(urlsplit(segment.url or "").query, segment.headers) for segment in shard.segments]
        for secret in [text for query, headers in links for text in (query, *(value for _, value in headers))]:
            assert not secret or secret not in shown
    assert "Signature" not in shown


@pytest.mark.parametrize("place", FOREIGN + RECORDED + SEGMENTED, indirect=True)
def test_the_version_is_stable_until_the_content_changes(place: Place) -> None:
    first = place.open().checkpoint()
    assert place.open().checkpoint().version == first.version
    if place.manifest:
        return
    # The same size, and so the same header and chunks.
    place.put(SHARDS[0], safetensors_bytes({"layers.1.big": (1 << 20) - 1000, "layers.1.small": 1000}, seed=77))
    second = place.open().checkpoint()
    assert second.shards[0].size == first.shards[0].size
    assert second.version != first.version


@pytest.mark.parametrize("place", FOREIGN + RECORDED + SEGMENTED, indirect=True)
def test_a_link_can_be_renewed(place: Place) -> None:
    origin = place.open()
    shard = origin.checkpoint().shards[1]
    if shard.is_local:
        return
    number = len(shard.segments) - 1
    start = shard.segments[number - 1].stop if number else 0
    url, headers = origin.renew(shard.path, number)
    data = FILES[shard.path][start:]
    etag = shard.segments[number].etag
    assert read(url, start=9, stop=99, headers=headers, etag=etag).body == data[9:99]


@pytest.mark.parametrize("place", FOREIGN + RECORDED + SEGMENTED, indirect=True)
def test_the_small_files_are_there(place: Place) -> None:
    origin = place.open()
    names = set(origin.names())
    assert names >= {"config.json", "tokenizer.json", "1_Pooling/config.json"}
    assert names <= SMALL
    for name in names:
        assert origin.read(name, 1 << 20) == FILES[name]
    with pytest.raises(IntegrityError):
        origin.read("tokenizer.json", 3)
    with pytest.raises(NotFoundError):
        origin.read("absent.json", 1 << 20)
    with pytest.raises((IntegrityError, NotFoundError)):
        origin.read("../outside.json", 1 << 20)


def use(place: Place) -> None:
    """Loads a model. Where a manifest has the headers, only requests for chunks notice what is wrong with a file."""
    place.open().checkpoint()
    coldstream.load(place.uri, settings=place.settings, framework="buffer", cache=False)


@pytest.mark.parametrize("place", RECORDED, indirect=True)
def test_objects_replaced_under_a_manifest_are_detected(place: Place) -> None:
    other = safetensors_bytes({"layers.1.BIG": (1 << 20) - 1000, "layers.1.small": 1000}, seed=5)
    assert len(other) == len(FILES[SHARDS[0]])
    place.put(SHARDS[0], other)
    with pytest.raises((ConflictError, IntegrityError), match=SHARDS[0]):
        use(place)
    place.put(SHARDS[0], other + b"x")
    with pytest.raises((ConflictError, IntegrityError), match=SHARDS[0]):
        use(place)


@pytest.mark.parametrize("place", FOREIGN + RECORDED, indirect=True)
def test_a_shard_that_is_gone_is_named(place: Place) -> None:
    place.put(SHARDS[1], None)
    with pytest.raises((NotFoundError, IntegrityError), match=SHARDS[1]):
        use(place)


@pytest.mark.parametrize("place", FOREIGN, indirect=True)
def test_a_damaged_header_is_refused(place: Place) -> None:
    place.put(SHARDS[1], b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(HeaderError, match=SHARDS[1]):
        place.open().checkpoint()


@pytest.mark.parametrize("place", FOREIGN, indirect=True)
def test_a_header_longer_than_the_first_read_is_read_on(place: Place) -> None:
    long = safetensors_bytes({f"{'x' * 200}.{number}": 7 for number in range(2000)})
    assert int.from_bytes(long[:8], "little") > SPECULATIVE_BYTES
    place.put(SHARDS[1], long)
    check(place.open().checkpoint(), {path: FILES[path] for path in SHARDS} | {SHARDS[1]: long})


@pytest.mark.parametrize("place", FOREIGN, indirect=True)
def test_without_weights_it_says_so(place: Place) -> None:
    for path in [*SHARDS, "model.safetensors.index.json"]:
        place.put(path, None)
    with pytest.raises(NotFoundError, match="safetensors") as caught:
        place.open().checkpoint()
    assert caught.value.hint


@pytest.mark.parametrize("place", FOREIGN, indirect=True)
def test_a_single_file_and_its_duplicates(place: Place) -> None:
    for path in [*SHARDS, "model.safetensors.index.json"]:
        place.put(path, None)
    single = safetensors_bytes({"w": 5000})
    place.put("model.safetensors", single)
    place.put("consolidated.safetensors", single)
    place.put("model.fp16.safetensors", single)
    check(place.open().checkpoint(), {"model.safetensors": single})


@pytest.mark.parametrize("place", FOREIGN, indirect=True)
def test_the_index_decides(place: Place) -> None:
    place.put(SHARDS[2], None)
    place.put("stray.safetensors", FILES[SHARDS[2]])
    with pytest.raises((IntegrityError, NotFoundError), match=SHARDS[2]):
        place.open().checkpoint()
    names = ", ".join(f'"{path}": "{path}"' for path in SHARDS[:2])
    place.put("model.safetensors.index.json", f'{{"weight_map": {{{names}}}}}'.encode())
    check(place.open().checkpoint(), {path: FILES[path] for path in SHARDS[:2]})


@pytest.mark.parametrize("place", RECORDED, indirect=True)
def test_an_altered_manifest_is_refused_and_a_cut_one_too(place: Place) -> None:
    written = place.record()
    for damaged in (written[:-100], written.replace(b'"size":', b'"size": ', 1), written[:5], b""):
        place.put("coldstream.json", damaged)
        with pytest.raises(ManifestError, match=r"coldstream\.json"):
            place.open().checkpoint()


@pytest.mark.parametrize("place", FOREIGN[:-1] + RECORDED, indirect=True)
def test_an_unfinished_upload_is_not_a_model(place: Place) -> None:
    journal = Journal(
        name=NAME,
        source=Provenance(kind="hub", repo=NAME, revision="v2"),
        created=datetime(2026, 11, 24, tzinfo=timezone.utc),
        tool="t",
        writer="w",
        planned_files=7,
        planned_bytes=1,
        files=(),
    )
    place.put("coldstream.json", serialize(journal))
    with pytest.raises(NotFoundError, match="0 of 7 files") as caught:
        place.open().checkpoint()
    assert caught.value.hint == f"run: coldstream upload {NAME} --revision v2"


@pytest.mark.parametrize("place", FOREIGN + RECORDED + SEGMENTED, indirect=True)
def test_nothing_at_all(place: Place) -> None:
    elsewhere = Place(f"{place.uri}-absent", place.settings, place.put, manifest=False)
    with pytest.raises(NotFoundError):
        elsewhere.open().checkpoint()


def test_a_server_that_is_away_is_reported_at_once(tmp_path: Path) -> None:
    with RangedServer({}) as server:
        url = server.url
    with pytest.raises(UnavailableError, match="cannot reach 127"):
        open_model_reader(f"{url}/m", settings_of({})).checkpoint()


def test_wrong_keys_are_refused(rclone: S3Server) -> None:
    flags = rclone.environ(fresh_bucket(rclone)) | {"R2_SECRET_KEY": "wrong-secret-key"}
    with pytest.raises(CredentialsError):
        open_model_reader(NAME, settings_of(flags), retry=Retry(QUICK)).checkpoint()
