"""`coldstream doctor`: the model and its files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from coldstream.mirror.manifest_records import read_record, record_key
from coldstream.model.manifest import Journal, Manifest, serialize
from coldstream.operate.doctor import store_checks
from tests.e2e.doctor.doctor_place import FILES, NAME, Place
from tests.servers.stores import Faults


def test_a_shard_that_is_missing(place: Place) -> None:
    place.store.delete([f"{NAME}/model-00002-of-00002.safetensors"])
    found = place.faults()
    assert list(found) == ["model"]
    assert "model-00002-of-00002.safetensors is missing" in found["model"]["found"]
    assert found["model"]["hint"].startswith("run: coldstream upload ")


def test_a_shard_that_was_replaced(place: Place) -> None:
    place.store.put(f"{NAME}/model-00002-of-00002.safetensors", b"something else")
    assert "has 14 bytes" in place.faults()["model"]["found"]


def test_an_upload_that_was_broken_off(place: Place) -> None:
    record = read_record(place.store, NAME)
    assert record is not None
    whole = record[0]
    assert isinstance(whole, Manifest)
    journal = Journal(
        name=NAME,
        source=whole.source,
        created=whole.created,
        tool=whole.tool,
        writer="w",
        planned_files=9,
        planned_bytes=9,
        files=(),
    )
    place.store.put(record_key(NAME), serialize(journal))
    found = place.faults()
    assert list(found) == ["model"]
    assert "the upload is incomplete; run: coldstream upload" in found["model"]["found"]


def test_a_manifest_that_was_altered(place: Place) -> None:
    data, _ = place.store.get(record_key(NAME))
    place.store.put(record_key(NAME), data.replace(b'"ready"', b'"read_"'))
    assert "was altered" in place.faults()["model"]["found"]


def test_a_model_without_a_manifest(place: Place) -> None:
    place.store.delete([record_key(NAME)])
    found = place.command.json("doctor", NAME, "--skip", "speed")
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["model"]["state"] == "warn"
    assert checks["model"]["hint"] == f"for a manifest with hashes run: coldstream upload {NAME}"
    assert checks["chunk hashes"]["found"] == "skipped: there is no manifest to compare with"


def test_a_model_without_safetensors(place: Place) -> None:
    for info in list(place.store.list(f"{NAME}/")):
        place.store.delete([info.key])
    place.store.put(f"{NAME}/config.json", b"{}")
    assert "has no safetensors" in place.faults()["model"]["found"]


def test_a_model_without_a_configuration(place: Place, tmp_path: Path) -> None:
    (tmp_path / "m/config.json").unlink()
    place.command.run("upload", str(tmp_path / "m"), "--as", "org/bare")
    found = place.command.json("doctor", "org/bare", "--only", "model")
    assert "no config.json: vLLM cannot serve it" in found["checks"][0]["found"]
    assert found["warned"] == 1


def test_a_header_that_lies(place: Place, tmp_path: Path) -> None:
    """A shard that is no safetensors file: one fault, said once."""
    files = {f"org/liar/{path}": content for path, content in FILES.items() if path == "config.json"}
    files["org/liar/model.safetensors"] = b"\xff" * 64
    for key, content in files.items():
        place.store.put(key, content)
    found = place.command.json("doctor", "org/liar", "--quick", code=1)
    assert [check["name"] for check in found["checks"] if check["state"] == "fail"] == ["model"]


def test_an_altered_byte(place: Place) -> None:
    """The store holds other bytes than were hashed, under the ETag that the manifest names: a disk that forgets."""
    path = "model-00001-of-00002.safetensors"
    data = bytearray(place.store.get(f"{NAME}/{path}")[0])
    data[-1] ^= 1
    etag = place.store.put(f"{NAME}/{path}", bytes(data))
    record = read_record(place.store, NAME)
    assert record is not None
    manifest = record[0]
    assert isinstance(manifest, Manifest)
    old = next(entry.objects[0].etag for entry in manifest.files if entry.path == path)
    body = serialize(manifest).rpartition(b',"digest":"')[0].replace(old.encode(), etag.encode())
    digest = hashlib.sha256(body + b"}").hexdigest()
    place.store.put(record_key(NAME), body + f',"digest":"sha256:{digest}"}}\n'.encode())
    found = place.command.json("doctor", NAME, "--skip", "conditional-put", code=1)
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["model"]["state"] == "ok"
    assert checks["chunk hashes"]["state"] == "fail"
    assert f"{path}: bytes " in checks["chunk hashes"]["found"]
    assert "coldstream verify org/m --deep" in checks["chunk hashes"]["hint"]
    assert checks["speed"]["found"] == "skipped: chunk hashes failed"


def test_a_read_that_goes_wrong_in_the_sample(proxied: tuple[Place, Faults]) -> None:
    place, faults = proxied
    faults.drop_range = True
    found = place.command.json("doctor", NAME, "--only", "chunk-hashes", code=1)
    assert "range" in found["checks"][0]["found"]


def test_a_model_larger_than_the_sample(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coldstream.operate.doctor.store_checks._SAMPLE_BYTES", 1)
    found = place.command.json("doctor", NAME, "--only", "chunk-hashes")
    assert found["checks"][0]["found"].startswith("1 of ")


def test_shards_that_cannot_be_read_through_links(proxied: tuple[Place, Faults]) -> None:
    """coldstream doctor org/m --only speed: the streamer's own requests are refused"""
    place, faults = proxied
    faults.add("fail", r"safetensors\?.*X-Amz-Signature", times=9999, status=403, code="AccessDenied")
    found = place.command.json("doctor", NAME, "--only", "speed", code=1)
    assert found["checks"][0]["exit_code"] == 12


def test_a_slow_bucket(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_checks, "_LOAD_SECONDS_MAX", 0.1)
    found = place.command.json("doctor", NAME, "--only", "speed")
    assert found["warned"] == 1
    assert "a cold start takes more than a minute" in found["checks"][0]["found"]
