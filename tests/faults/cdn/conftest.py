"""A bucket with a model, and a CDN before it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from coldstream.model.manifest import Manifest, parse
from coldstream.settings import load_settings
from tests.checkpoints import MIB, expected_tensors, sharded_checkpoint
from tests.conftest import fresh_bucket, quick_store
from tests.faults.cdn.fake_cdn import NAME, PREFIX, FakeCdn, Place, Stored
from tests.faults.test_engine import manifest_of
from tests.segments import in_segments
from tests.servers.stores import S3Server, fault_proxy


@pytest.fixture(scope="package")
def files() -> dict[str, bytes]:
    return sharded_checkpoint(shards=3, layers=4, rows=1024, columns=1024)


@pytest.fixture(scope="package")
def expected(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return expected_tensors(tmp_path_factory.mktemp("expected"), files)


@pytest.fixture(scope="package")
def stored(moto: S3Server, files: dict[str, bytes]) -> Stored:
    """The model in segments, in a prefix whose name has to be encoded; it is written once."""
    bucket = fresh_bucket(moto)
    store = quick_store(moto.environ(bucket) | {"COLDSTREAM_STORE": f"s3://{bucket}/{PREFIX}"})
    objects = {}

    def put(key: str, content: bytes) -> str:
        etag = store.put(key.removeprefix("/"), content)
        objects[f"/{PREFIX}{key}"] = (content, etag)
        return etag

    whole = manifest_of(files, dict.fromkeys(files, "unused"))
    record = in_segments(whole, files, put, every=5, chunk_bytes=MIB // 2, root="/objects/")
    found = parse(record, where="x")
    assert isinstance(found, Manifest)
    store.put(f"{NAME}/coldstream.json", record)
    return Stored(bucket, objects)


@pytest.fixture
def place(moto: S3Server, stored: Stored) -> Iterator[Place]:
    with fault_proxy(moto) as (server, faults), FakeCdn({}, seed=5) as cdn:
        for path, (content, etag) in stored.objects.items():
            cdn.put(path, content)
            cdn.etags[path] = etag
        flags = server.environ(stored.bucket) | {
            "COLDSTREAM_STORE": f"s3://{stored.bucket}/{PREFIX}",
            "R2_CDN_DOMAIN": cdn.url,
            "COLDSTREAM_RETRY_SECONDS": "20",
            "COLDSTREAM_CACHE_LIMIT": "20GB",
        }
        yield Place(cdn, faults, stored.bucket, load_settings(flags, environ={}))
