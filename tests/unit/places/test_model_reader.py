"""What is particular to folders, buckets and the Hub."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import coldstream
from coldstream.errors import (
    ConfigError,
    ConflictError,
    CredentialsError,
    IntegrityError,
    ManifestError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from coldstream.mirror.upload import upload
from coldstream.mirror.upload_plan import plan_upload
from coldstream.model.adapter import Adapter
from coldstream.net.pool import read
from coldstream.net.retry import Backoff, Retry
from coldstream.places.folder import FolderSnapshot
from coldstream.places.model_reader import ModelReader
from coldstream.places.opening import open_model_reader
from coldstream.settings import load_settings
from tests.adapters import adapter_files
from tests.conftest import fresh_bucket, quick_store
from tests.manifests import strip_headers
from tests.models import safetensors_bytes, sharded_model, write_model
from tests.servers.hub import FakeHub
from tests.servers.impostor import Reply, impostor
from tests.servers.stores import S3Server

NAME = "org/model"
FILES = sharded_model(shards=2, shard_bytes=100_000)
SHARDS = sorted(path for path in FILES if path.endswith(".safetensors"))


def opened(uri: str, flags: dict[str, str] | None = None) -> ModelReader:
    retry = Retry(Backoff(first_seconds=0.01, longest_seconds=0.05, give_up_seconds=1.0))
    return open_model_reader(uri, load_settings(flags or {}, environ={}), retry=retry)


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A model with a manifest, in a folder that is a store."""
    store = quick_store({"COLDSTREAM_STORE": (tmp_path / "store").as_uri()})
    source = FolderSnapshot(write_model(tmp_path / "source", FILES))
    upload(store, source, plan_upload(store, source, NAME))
    return tmp_path / "store" / NAME


def rewrite(folder: Path, change: dict[str, Any]) -> None:
    """Changes the entry of the first shard in the manifest."""
    path = folder / "coldstream.json"
    document = json.loads(path.read_bytes())
    entry = next(entry for entry in document["files"] if entry["path"] == SHARDS[0])
    entry.update(change)
    seal(path, document)


def seal(path: Path, document: dict[str, Any]) -> None:
    """Writes a manifest with its digest."""
    body = json.dumps({key: value for key, value in document.items() if key != "digest"}).encode()
    path.write_bytes(body[:-1] + f',"digest":"sha256:{hashlib.sha256(body).hexdigest()}"}}\n'.encode())


def entry_of(folder: Path) -> dict[str, Any]:
    document = json.loads((folder / "coldstream.json").read_bytes())
    return next(entry for entry in document["files"] if entry["path"] == SHARDS[0])


def test_an_adapter_without_a_record_is_known_by_its_files(tmp_path: Path) -> None:
    files = adapter_files("meta/llama", rank=16)
    assert opened(str(write_model(tmp_path / "foreign", files))).adapter() == Adapter(base="meta/llama", rank=16)
    store = quick_store({"COLDSTREAM_STORE": (tmp_path / "store").as_uri()})
    source = FolderSnapshot(tmp_path / "foreign")
    upload(store, source, plan_upload(store, source, "org/adapter"))
    path = tmp_path / "store" / "org/adapter/coldstream.json"
    document = json.loads(path.read_bytes())
    seal(path, {key: value for key, value in document.items() if key not in {"kind", "adapter"}})
    assert opened(str(path.parent)).adapter() == Adapter(base="meta/llama", rank=16)
    # What is recorded counts: the user may have named another base.
    recorded = {"kind": "adapter", "adapter": {"base": "prod/llama", "rank": 8}}
    seal(path, document | recorded)
    assert opened(str(path.parent)).adapter() == Adapter(base="prod/llama", rank=8)


def test_a_model_is_not_an_adapter(recorded: Path) -> None:
    assert opened(str(recorded)).adapter() is None


def test_the_hugging_face_cache_is_a_folder_of_links(tmp_path: Path) -> None:
    write_model(tmp_path / "blobs", FILES)
    snapshot = tmp_path / "models--org--m" / "snapshots" / "abc"
    for path in FILES:
        (snapshot / path).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / path).symlink_to(tmp_path / "blobs" / path)
    origin = opened(str(snapshot))
    checkpoint = origin.checkpoint()
    assert [shard.segments[0].local for shard in checkpoint.shards] == [str(snapshot / path) for path in SHARDS]
    assert checkpoint.name == "org/m"
    with pytest.raises(UsageError, match="local"):
        origin.renew(SHARDS[0])


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", FILES)
    (folder / SHARDS[0]).unlink()
    (folder / SHARDS[0]).symlink_to(folder / "gone")
    with pytest.raises(NotFoundError, match=SHARDS[0]):
        opened(str(folder)).checkpoint()


def test_segments_within_a_chunk_are_refused_and_other_keys_are_followed(recorded: Path) -> None:
    entry = entry_of(recorded)
    stored = entry["objects"][0]
    half = entry["chunks"]["stops"][0] // 2
    rewrite(recorded, {"objects": [stored | {"size": half}, stored | {"size": stored["size"] - half}]})
    with pytest.raises(ManifestError, match="in the middle of a chunk"):
        opened(str(recorded)).checkpoint()
    (recorded / SHARDS[0]).rename(recorded / "blob.bin")
    rewrite(recorded, {"objects": [stored | {"key": "blob.bin"}]})
    assert opened(str(recorded)).checkpoint().shards[0].segments[0].local == str(recorded / "blob.bin")
    (recorded / "blob.bin").rename(recorded.parent.parent / "shared.bin")
    rewrite(recorded, {"objects": [stored | {"key": "/shared.bin"}]})
    with pytest.raises(ConfigError, match="not known"):
        opened(str(recorded)).checkpoint()
    root = recorded.parent.parent
    checkpoint = opened(NAME, {"COLDSTREAM_STORE": root.as_uri()}).checkpoint()
    assert checkpoint.shards[0].segments[0].local == str(root / "shared.bin")
    assert checkpoint.shards[0].path == SHARDS[0]


def test_chunks_of_other_tools_are_taken_as_they_are(recorded: Path) -> None:
    data = FILES[SHARDS[0]]
    import xxhash

    stops = [3, 50_000, len(data)]
    hashes = [xxhash.xxh3_128_hexdigest(data[start:stop]) for start, stop in zip([0, *stops], stops, strict=False)]
    rewrite(recorded, {"chunks": {"stops": stops, "xxh3_128": "".join(hashes)}})
    shard = opened(str(recorded)).checkpoint().shards[0]
    assert shard.stops == tuple(stops)
    assert shard.digests == bytes.fromhex("".join(hashes))
    rewrite(recorded, {"chunks": {"stops": stops, "xxh3_128": "0" * 32 + "".join(hashes[1:])}})
    with pytest.raises(IntegrityError, match="XXH3-128"):
        opened(str(recorded)).checkpoint()


def test_a_small_file_is_compared_with_the_manifest(recorded: Path) -> None:
    origin = opened(str(recorded))
    assert origin.read("config.json", 1000) == FILES["config.json"]
    (recorded / "config.json").write_bytes(FILES["config.json"].replace(b"llama", b"lions"))
    with pytest.raises(IntegrityError, match="SHA-256"):
        origin.read("config.json", 1000)


def test_root_keys_in_a_bucket(moto: S3Server, tmp_path: Path) -> None:
    flags = moto.environ(fresh_bucket(moto))
    store = quick_store(flags)
    source = FolderSnapshot(write_model(tmp_path / "source", FILES))
    upload(store, source, plan_upload(store, source, NAME))
    local = tmp_path / "copy"
    local.mkdir()
    (local / "coldstream.json").write_bytes(store.get(f"{NAME}/coldstream.json")[0])
    etag = store.put("shared/blob", FILES[SHARDS[0]])
    rewrite(local, {"objects": [{"key": "/shared/blob", "size": len(FILES[SHARDS[0]]), "etag": etag}]})
    store.put(f"{NAME}/coldstream.json", (local / "coldstream.json").read_bytes())
    shard = opened(NAME, flags).checkpoint().shards[0]
    assert shard.segments[0].url
    assert "/shared/blob?" in shard.segments[0].url
    assert read(shard.segments[0].url, start=0, stop=9, etag=shard.segments[0].etag).body == FILES[SHARDS[0]][:9]


def test_a_bucket_by_its_uri_and_a_prefix(moto: S3Server) -> None:
    bucket = fresh_bucket(moto)
    store = quick_store(moto.environ(bucket))
    for path, content in FILES.items():
        store.put(f"some where/v=1/{path}", content)
    flags = moto.environ(fresh_bucket(moto))
    checkpoint = opened(f"s3://{bucket}/some where/v=1", flags).checkpoint()
    assert [shard.path for shard in checkpoint.shards] == SHARDS
    assert checkpoint.name == "some-where/v-1"
    assert checkpoint.uri == f"s3://{bucket}/some where/v=1"


def test_presigned_links_end_and_are_renewed(rclone: S3Server) -> None:
    flags = rclone.environ(fresh_bucket(rclone))
    store = quick_store(flags)
    for path, content in FILES.items():
        store.put(f"{NAME}/{path}", content)
    origin = opened(NAME, flags)
    shard = origin.checkpoint().shards[0]
    assert shard.segments[0].url
    assert "X-Amz-Expires=43200" in shard.segments[0].url
    assert "X-Amz-Signature" not in repr(shard)
    url, _ = origin.renew(shard.path)
    assert read(url, stop=8, etag=shard.segments[0].etag).body == FILES[shard.path][:8]


def test_a_gated_model_on_the_hub() -> None:
    with FakeHub() as hub:
        hub.add_repo(NAME, FILES, gated=True)
        hub.accepted_tokens.add("hf_good")
        with pytest.raises(CredentialsError, match="gated"):
            opened(f"hf://{NAME}", {"HF_ENDPOINT": hub.endpoint}).checkpoint()
        origin = opened(f"hf://{NAME}", {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_good"})
        checkpoint = origin.checkpoint()
        assert "hf_good" not in repr((checkpoint, origin))
        # The storage host is another one, and never sees the token.
        assert all(shard.segments[0].headers == () for shard in checkpoint.shards)
        assert all(not seen.had_authorization for seen in hub.requests if seen.listener == "cdn")


@pytest.mark.parametrize(
    ("kind", "message", "hint"),
    [
        ("application/xml", r"127\.0\.0\.1:\d+ does not answer as a Hub: 400 application/xml", "HF_ENDPOINT"),
        ("application/json", "the Hub answered 400", "check HF_ENDPOINT"),
    ],
)
def test_a_store_in_place_of_the_hub_is_named(kind: str, message: str, hint: str) -> None:
    body = b"<Error><Code>InvalidRequest</Code></Error>"
    with (
        impostor(Reply(400, {"Content-Type": kind}, body)) as url,
        pytest.raises(UnavailableError, match=message) as it,
    ):
        opened(f"hf://{NAME}", {"HF_ENDPOINT": url}).checkpoint()
    assert hint in (it.value.hint or "")


def test_a_link_of_the_hub_that_ended_is_asked_for_again() -> None:
    with FakeHub() as hub:
        commit = hub.add_repo(NAME, FILES)
        origin = opened(f"hf://{NAME}", {"HF_ENDPOINT": hub.endpoint})
        shard = origin.checkpoint().shards[0]
        hub.faults.expire_links()
        url, headers = origin.renew(shard.path)
        assert url != shard.segments[0].url
        assert read(url, start=2, stop=8, headers=headers).body == FILES[shard.path][2:8]
        hub.add_repo(NAME, FILES | {"config.json": b"{}"}, message="later")
        assert origin.read("config.json", 100) == FILES["config.json"]
        assert opened(f"hf://{NAME}@{commit}", {"HF_ENDPOINT": hub.endpoint}).checkpoint().version == commit
        assert origin.checkpoint().version != commit
        with pytest.raises(NotFoundError, match="no revision"):
            opened(f"hf://{NAME}@absent", {"HF_ENDPOINT": hub.endpoint}).checkpoint()


def test_small_shards_that_the_hub_serves_itself_take_the_token_along() -> None:
    with FakeHub(resolve_cache=True) as hub:
        hub.accepted_tokens.add("hf_good")
        hub.add_repo(NAME, FILES, private_token="hf_good")
        checkpoint = opened(f"hf://{NAME}", {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_good"}).checkpoint()
        assert checkpoint.pinned


def test_files_that_are_too_short_for_what_was_listed(tmp_path: Path, moto: S3Server) -> None:
    flags = moto.environ(fresh_bucket(moto))
    store = quick_store(flags)
    source = FolderSnapshot(write_model(tmp_path / "source", FILES))
    upload(store, source, plan_upload(store, source, NAME))
    store.put(f"{NAME}/{SHARDS[1]}", safetensors_bytes({"w": 1}))
    with pytest.raises(ConflictError, match=SHARDS[1]):
        coldstream.load(NAME, settings=load_settings(flags, environ={}), framework="buffer", cache=False)
    strip_headers(store, NAME)
    with pytest.raises(ConflictError, match=SHARDS[1]):
        opened(NAME, flags).checkpoint()


def test_what_was_stored_with_the_coding_of_its_upload_is_loaded(moto: S3Server) -> None:
    flags = moto.environ(fresh_bucket(moto))
    store = quick_store(flags)
    client = store._client  # type: ignore[attr-defined]
    for path, content in FILES.items():
        coding = "gzip" if path == "config.json" else "aws-chunked"
        stored = gzip.compress(content) if coding == "gzip" else content
        client.put_object(Bucket=flags["R2_BUCKET"], Key=f"{NAME}/{path}", Body=stored, ContentEncoding=coding)
    origin = opened(NAME, flags)
    assert [shard.path for shard in origin.checkpoint().shards] == SHARDS
    assert origin.read("config.json", 1000) == FILES["config.json"]


TWO = sorted(SHARDS)
THREE = [path.replace("-of-00002", "-of-00003") for path in (*TWO, "model-00003-of-00002.safetensors")]


def test_two_shardings_of_one_model_are_refused_with_both_files(tmp_path: Path) -> None:
    pieces = {path: safetensors_bytes({f"other.{path}": 8}) for path in THREE[1:]}
    folder = write_model(tmp_path / "m", {path: FILES[path] for path in TWO} | {THREE[0]: FILES[TWO[1]]} | pieces)
    with pytest.raises(IntegrityError, match=f"{THREE[0]} and {TWO[1]} both hold the tensor"):
        opened(str(folder)).checkpoint()
    store = quick_store({"COLDSTREAM_STORE": (tmp_path / "store").as_uri()})
    with pytest.raises(IntegrityError, match=f"{THREE[0]} and {TWO[1]} both hold the tensor") as caught:
        plan_upload(store, FolderSnapshot(folder), NAME)
    assert f"--exclude {TWO[1]}" in (caught.value.hint or "")
    assert plan_upload(store, FolderSnapshot(folder), NAME, exclude=["*-of-00003*"]).shards == 2


def test_the_parts_of_ranks_share_names_and_are_stored_but_not_loaded_at_once(tmp_path: Path) -> None:
    """What `coldstream shard` writes: `serve --loader runai-sharded` reads one rank's parts each."""
    ranks = {f"model-rank-{rank}-part-0.safetensors": safetensors_bytes({"w": 8}, seed=rank) for rank in range(2)}
    folder = write_model(tmp_path / "m", ranks)
    assert len(opened(str(folder)).checkpoint().shards) == 2
    store = quick_store({"COLDSTREAM_STORE": (tmp_path / "store").as_uri()})
    assert plan_upload(store, FolderSnapshot(folder), NAME).shards == 2
    with pytest.raises(UsageError, match="for each of 2 ranks") as caught:
        coldstream.load(str(folder), framework="buffer")
    assert "--loader runai-sharded" in (caught.value.hint or "")
    (folder / "model-rank-1-part-1.safetensors").write_bytes(safetensors_bytes({"w": 8}))
    with pytest.raises(IntegrityError, match=r"model-rank-1-part-0.*and model-rank-1-part-1.*both hold"):
        opened(str(folder)).checkpoint()


def test_an_index_of_another_name_chooses_between_them(tmp_path: Path) -> None:
    name = "diffusion_pytorch_model.safetensors.index.json"
    index = json.dumps({"weight_map": {"a": TWO[0], "b": TWO[1]}}).encode()
    twins = dict.fromkeys(THREE, FILES[TWO[0]])
    folder = write_model(tmp_path / "m", {path: FILES[path] for path in TWO} | twins | {name: index})
    checkpoint = opened(str(folder)).checkpoint()
    assert [shard.path for shard in checkpoint.shards] == TWO
    assert checkpoint.left_out == dict.fromkeys(THREE, f"not in {name}")


def test_an_index_that_is_left_over_is_said(tmp_path: Path) -> None:
    single = safetensors_bytes({"w": 8})
    index = FILES["model.safetensors.index.json"]
    folder = write_model(tmp_path / "m", {"model.safetensors": single, "model.safetensors.index.json": index})
    checkpoint = opened(str(folder)).checkpoint()
    assert [shard.path for shard in checkpoint.shards] == ["model.safetensors"]
    assert list(checkpoint.left_out) == ["model.safetensors.index.json"]
    (folder / "model.safetensors").rename(folder / THREE[0])
    for path in THREE[1:]:
        (folder / path).write_bytes(safetensors_bytes({path: 8}))
    with pytest.raises(IntegrityError, match=f"index.json names '{TWO[0]}', which is not there"):
        opened(str(folder)).checkpoint()


PIPELINE = {
    "model_index.json": b"{}",
    **{f"transformer/{path}": content for path, content in FILES.items()},
    "vae/config.json": b'{"vae": 1}',
    "vae/diffusion_pytorch_model.safetensors": safetensors_bytes({"w": 8}, seed=1),
    "vae/diffusion_pytorch_model.fp16.safetensors": safetensors_bytes({"w": 4}, seed=2),
}


def check_pipeline(flags: dict[str, str], tmp_path: Path, *, prefix: str = "") -> None:
    store = quick_store(flags)
    source = FolderSnapshot(write_model(tmp_path / "source", PIPELINE))
    upload(store, source, plan_upload(store, source, NAME))
    origin = opened(f"{prefix}{NAME}/transformer", flags)
    checkpoint = origin.checkpoint()
    assert checkpoint.verified
    assert [(shard.path, shard.size) for shard in checkpoint.shards] == [(path, len(FILES[path])) for path in TWO]
    assert set(origin.names()) == set(FILES) - set(TWO)
    assert origin.read("config.json", 1000) == FILES["config.json"]
    other = opened(f"{prefix}{NAME}/vae", flags)
    assert [shard.path for shard in other.checkpoint().shards] == ["diffusion_pytorch_model.safetensors"]
    assert other.checkpoint().version != checkpoint.version
    assert other.read("config.json", 1000) == b'{"vae": 1}'
    store.put(f"{NAME}/vae/config.json", b'{"vae": 2}')
    with pytest.raises(IntegrityError, match="SHA-256"):
        opened(f"{prefix}{NAME}/vae", flags).read("config.json", 1000)
    store.put(f"{NAME}/transformer/{TWO[1]}", FILES[TWO[0]])
    uri, settings = f"{prefix}{NAME}/transformer", load_settings(flags, environ={})
    with pytest.raises((IntegrityError, ConflictError)):
        coldstream.load(uri, settings=settings, framework="buffer", cache=False)
    strip_headers(store, NAME)
    with pytest.raises((IntegrityError, ConflictError)):
        opened(f"{prefix}{NAME}/transformer", flags).checkpoint()
    with pytest.raises(NotFoundError):
        opened(f"{prefix}{NAME}/absent", flags).checkpoint()


def test_a_component_in_a_folder_that_is_a_store_is_verified_by_the_models_manifest(tmp_path: Path) -> None:
    check_pipeline({"COLDSTREAM_STORE": (tmp_path / "store").as_uri()}, tmp_path)


def test_a_component_in_a_bucket_is_verified_by_the_models_manifest(moto: S3Server, tmp_path: Path) -> None:
    flags = moto.environ(fresh_bucket(moto))
    check_pipeline(flags, tmp_path, prefix=f"s3://{flags['R2_BUCKET']}/")


def test_a_folder_that_the_models_manifest_does_not_know_is_foreign(recorded: Path) -> None:
    write_model(recorded / "added", FILES)
    flags = {"COLDSTREAM_STORE": recorded.parent.parent.as_uri()}
    assert not opened(f"{NAME}/added", flags).checkpoint().verified
    assert opened(NAME, flags).checkpoint().verified


def test_a_component_of_an_unfinished_model_is_no_model(recorded: Path) -> None:
    document = json.loads((recorded / "coldstream.json").read_bytes())
    document.pop("digest")
    document |= {"state": "uploading", "writer": "w", "planned_files": 9, "planned_bytes": 9}
    body = json.dumps(document).encode()
    sealed = body[:-1] + f',"digest":"sha256:{hashlib.sha256(body).hexdigest()}"}}'.encode()
    (recorded / "coldstream.json").write_bytes(sealed)
    write_model(recorded / "sub", FILES)
    with pytest.raises(NotFoundError, match="not complete"):
        opened(f"{NAME}/sub", {"COLDSTREAM_STORE": recorded.parent.parent.as_uri()}).checkpoint()


def test_a_component_on_the_hub() -> None:
    with FakeHub() as hub:
        commit = hub.add_repo(NAME, PIPELINE)
        flags = {"HF_ENDPOINT": hub.endpoint}
        origin = opened(f"hf://{NAME}/transformer@{commit}", flags)
        checkpoint = origin.checkpoint()
        assert (checkpoint.name, checkpoint.version) == (f"{NAME}/transformer", commit)
        assert checkpoint.uri == f"hf://{NAME}/transformer@{commit}"
        assert [shard.path for shard in checkpoint.shards] == TWO
        assert set(origin.names()) == set(FILES) - set(TWO)
        assert origin.read("config.json", 1000) == FILES["config.json"]
        url, headers = origin.renew(TWO[1])
        assert read(url, start=2, stop=8, headers=headers).body == FILES[TWO[1]][2:8]
        with pytest.raises(NotFoundError, match=f"no files in hf://{NAME}/trans"):
            opened(f"hf://{NAME}/trans", flags).checkpoint()
