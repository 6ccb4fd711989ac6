"""Adapters in the bucket, and their copies on the node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import msgspec
import pytest

from coldstream.errors import ConflictError, IntegrityError, NotFoundError, UnavailableError, UsageError
from coldstream.mirror.listing import plan_removal, remove
from coldstream.mirror.manifest_records import read_record, record_key
from coldstream.mirror.upload import upload
from coldstream.mirror.upload_plan import plan_upload
from coldstream.model.adapter_fit import modules_of
from coldstream.model.header import parse_header
from coldstream.model.manifest import Journal, Manifest, Provenance, serialize
from coldstream.node.adapter_source import AdapterSource
from coldstream.node.http_endpoint import free_port
from coldstream.places.folder import FolderSnapshot
from coldstream.places.opening import open_store
from coldstream.places.place import Store
from coldstream.settings import load_settings
from coldstream.units import MIB
from tests.adapters import BASE, adapter_files, base_files, llama_shapes
from tests.conftest import fresh_bucket
from tests.models import write_model
from tests.servers.stores import S3Server
from tests.unit.mirror.stored_models import folder_store, send

NAMES = ("adapter_config.json", "adapter_model.safetensors")


def source_of(tmp_path: Path, *, base: str | None = BASE, **settings: str) -> AdapterSource:
    """The adapters of `folder_store`."""
    ours = {"COLDSTREAM_CACHE_DIR": str(tmp_path / "cache"), "COLDSTREAM_RETRY_SECONDS": "1"}
    store = folder_store(tmp_path).uri
    return AdapterSource(
        load_settings({"COLDSTREAM_STORE": store, **ours, **settings}, environ={}), base=base, store=store
    )


def read(folder: Path) -> dict[str, bytes]:
    """The files that vLLM sees."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def replace_record(store: Store, name: str, **changes: object) -> None:
    """Alters a manifest, with a digest that is right."""
    record, _ = read_record(store, name) or (None, "")
    assert isinstance(record, Manifest)
    store.put(record_key(name), serialize(msgspec.structs.replace(record, **changes)))


@pytest.mark.parametrize("has_manifest", [True, False])
def test_a_copy_is_a_folder_of_the_two_files_for_each_version(tmp_path: Path, has_manifest: bool) -> None:
    store, source = folder_store(tmp_path), source_of(tmp_path)
    folders = []
    for seed in (1, 2, 2):
        files = adapter_files(seed=seed)
        send(store, tmp_path, files, "org/a")
        if not has_manifest:
            store.delete([record_key("org/a")])
        with source.fetch(source.find("org/a", seconds=1)) as copy:
            assert read(copy.folder) == {name: files[name] for name in NAMES}
            folders.append(copy.folder)
    assert folders[0] != folders[1] == folders[2]
    assert read(folders[0]) == {name: adapter_files(seed=1)[name] for name in NAMES}, "running requests may read it"


def test_a_complete_copy_is_not_read_again(tmp_path: Path) -> None:
    store, source = folder_store(tmp_path), source_of(tmp_path)
    send(store, tmp_path, adapter_files(), "org/a")
    stored = source.find("org/a", seconds=1)
    source.fetch(stored).close()
    (tmp_path / "store/org/a/adapter_model.safetensors").unlink()
    with source.fetch(stored) as copy:
        assert copy.complete


def test_damaged_weights_are_refused_and_the_rest_is_continued(tmp_path: Path) -> None:
    store, source = folder_store(tmp_path), source_of(tmp_path)
    files = adapter_files()
    send(store, tmp_path, files, "org/a")
    path = tmp_path / "store/org/a/adapter_model.safetensors"
    path.chmod(0o600)
    path.write_bytes(files[path.name][:-1] + bytes([files[path.name][-1] ^ 1]))
    record, _ = read_record(store, "org/a") or (None, "")
    assert isinstance(record, Manifest)
    # As a place whose ETags do not show the change.
    entries = [
        msgspec.structs.replace(
            entry, objects=tuple(msgspec.structs.replace(stored, etag="-") for stored in entry.objects)
        )
        for entry in record.files
    ]
    replace_record(store, "org/a", files=tuple(entries))
    with pytest.raises(IntegrityError, match=r"org/a/adapter_model.safetensors: \[\d+, \d+\) is not what the manifest"):
        source.fetch(source.find("org/a", seconds=1))
    path.write_bytes(files[path.name][:-1])
    with pytest.raises(ConflictError, match=r"org/a/adapter_model\.safetensors was replaced"):
        source.fetch(source.find("org/a", seconds=1))
    path.write_bytes(files[path.name])
    with source.fetch(source.find("org/a", seconds=1)) as copy:
        assert read(copy.folder)[path.name] == files[path.name]


def test_an_adapter_in_segments_is_put_together(tmp_path: Path) -> None:
    files = adapter_files(rank=64, shapes=llama_shapes(layers=8, hidden=256))
    source = FolderSnapshot(write_model(tmp_path / "source", files))
    store = folder_store(tmp_path)
    upload(store, source, plan_upload(store, source, "org/a", object_bytes_max=MIB, plain=False))
    adapters = source_of(tmp_path)
    stored = adapters.find("org/a", seconds=1)
    assert len(stored.files[1].objects) > 1
    with adapters.fetch(stored) as copy:
        assert read(copy.folder) == {name: files[name] for name in NAMES}


def test_what_the_model_cannot_be_served_with_is_refused_by_name(tmp_path: Path) -> None:
    store, source = folder_store(tmp_path), source_of(tmp_path)
    source.rank_max = 16
    adapters = {
        "org/other": (adapter_files("org/other-base"), "org/other is an adapter of org/other-base, not of org/base"),
        "org/large": (adapter_files(rank=32), "org/large has the rank 32, and the server accepts ranks up to 16"),
        "org/dora": (adapter_files(use_dora=True), "org/dora cannot be served: .*use_dora"),
    }
    for name, (files, message) in adapters.items():
        send(store, tmp_path, files, name)
        with pytest.raises(UsageError, match=message):
            source.check(source.find(name, seconds=1))
    send(store, tmp_path, adapter_files(rank=16), "org/right")
    source.check(source.find("org/right", seconds=1))
    source_of(tmp_path, base=None).check(source.find("org/other", seconds=1))


def test_tensors_that_do_not_fit_are_refused_from_the_bucket_and_from_a_copy(tmp_path: Path) -> None:
    store, source = folder_store(tmp_path), source_of(tmp_path)
    for name, shapes in (("org/a", llama_shapes()), ("org/small", llama_shapes(hidden=16))):
        send(store, tmp_path, adapter_files(shapes=shapes), name)
        source.fetch(source.find(name, seconds=1)).close()
    other = source_of(tmp_path)
    base = parse_header(data := base_files()["model.safetensors"], file_bytes=len(data), path="x")
    other.modules = modules_of(base.tensors)
    misfit = r"org/small does not fit org/base: model\.layers\.0\.self_attn\.q_proj is for a weight"
    for each in ("org/a", "org/small"):
        stored = other.find(each, seconds=1)
        # The copy on this machine is read instead of the bucket, also while the bucket is away.
        (tmp_path / f"store/{each}/adapter_model.safetensors").unlink()
        latest = other.latest(each)
        assert latest is not None
        for one in (stored, latest):
            with pytest.raises(UsageError, match=misfit) if each == "org/small" else nullcontext():
                other.check_tensors(one, seconds=1)
            with pytest.raises(UsageError, match=misfit) if each == "org/small" else nullcontext():
                other.fetch(one)


def test_a_base_that_was_copied_from_the_hub_under_another_name_is_known(tmp_path: Path) -> None:
    store, source = folder_store(tmp_path), source_of(tmp_path)
    send(store, tmp_path, base_files(), BASE)
    send(store, tmp_path, adapter_files("meta/llama"), "org/a")
    stored = source.find("org/a", seconds=1)
    assert not source.is_of_base(stored)
    replace_record(store, BASE, source=Provenance(kind="hub", repo="meta/llama", commit="0" * 40, revision="main"))
    assert source_of(tmp_path).is_of_base(stored)


def test_what_is_not_an_adapter_is_not_there(tmp_path: Path) -> None:
    store, source = folder_store(tmp_path), source_of(tmp_path)
    send(store, tmp_path, base_files(), BASE)
    send(store, tmp_path, adapter_files(), "org/a")
    with pytest.raises(NotFoundError, match="org/base is not an adapter: it has no adapter_config"):
        source.find(BASE, seconds=1)
    with pytest.raises(NotFoundError, match="there is no model org/absent in file:"):
        source.find("org/absent", seconds=1)
    record, _ = read_record(store, "org/a") or (None, "")
    assert isinstance(record, Manifest)
    names = ("name", "source", "created", "tool", "files")
    journal = Journal(
        **{name: getattr(record, name) for name in names}, writer="x", planned_files=3, planned_bytes=record.size
    )
    store.put(record_key("org/a"), serialize(journal))
    with pytest.raises(NotFoundError, match="the upload of org/a is incomplete"):
        source.find("org/a", seconds=1)
    assert source.names(seconds=1) == ["org/a"]


def test_an_adapter_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    send(folder_store(tmp_path), tmp_path, adapter_files(), "org/a")
    monkeypatch.setattr("coldstream.node.adapter_source.ADAPTER_BYTES_MAX", 100)
    with pytest.raises(UsageError, match=r"org/a is too large for an adapter: its weights have .* of at most 100 B"):
        source_of(tmp_path).find("org/a", seconds=1)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("org/a", "org/a"),
        ("s3://models/org/a", "org/a"),
        ("s3://models/org/a/", "org/a"),
        ("s3://others/org/a", None),
        ("s3://models-2/org/a", None),
        ("s3://models/../others/org/a", None),
        ("hf://org/a", None),
        ("file:///etc", None),
        ("/etc/passwd", None),
        ("~/.ssh", None),
        ("../a", None),
        ("org/../../a", None),
        ("org/a?x=1", None),
        ("org/a\n", None),
        ("", None),
    ],
)
def test_only_names_in_the_bucket_are_names(path: str, name: str | None) -> None:
    settings = load_settings({"COLDSTREAM_STORE": "s3://models"}, environ={})
    assert AdapterSource(settings, base=BASE, store="s3://models").name_of(path) == name


def test_without_the_bucket_the_last_version_is_served(rclone: S3Server, tmp_path: Path) -> None:
    environ = rclone.environ(fresh_bucket(rclone)) | {"COLDSTREAM_RETRY_SECONDS": "1"}
    gone = environ | {"R2_ENDPOINT": f"http://127.0.0.1:{free_port()}"}

    def source(environ: dict[str, str], base: str = BASE) -> AdapterSource:
        settings = load_settings({**environ, "COLDSTREAM_CACHE_DIR": str(tmp_path / "cache")}, environ={})
        return AdapterSource(settings, base=base, store=settings.store_uri())

    store = open_store(load_settings(environ, environ={}))
    send(store, tmp_path, adapter_files(seed=1), "org/a")
    stored = source(environ).find_or_latest("org/a", seconds=1)
    source(environ).fetch(stored).close()
    offline = source(gone)
    latest = offline.find_or_latest("org/a", seconds=1)
    offline.check(latest)
    assert offline.names(seconds=1) == ["org/a"]
    with offline.fetch(latest) as copy:
        assert read(copy.folder)[NAMES[1]] == adapter_files(seed=1)[NAMES[1]]
    with pytest.raises(UnavailableError):
        offline.find_or_latest("org/b", seconds=1)
    with pytest.raises(UnavailableError):
        source(gone, base="org/other").find_or_latest("org/a", seconds=1)
    remove(store, plan_removal(store, "org/a"))
    with pytest.raises(NotFoundError):
        source(environ).find_or_latest("org/a", seconds=1)


def test_without_room_in_the_cache_the_copy_is_among_temporary_files(tmp_path: Path) -> None:
    send(folder_store(tmp_path), tmp_path, adapter_files(), "org/a")
    source = source_of(tmp_path, COLDSTREAM_CACHE_LIMIT="1kB")
    with source.fetch(source.find("org/a", seconds=1)) as copy:
        assert tmp_path / "cache" not in copy.folder.parents
        assert json.loads(read(copy.folder)[NAMES[0]])["r"] == 8


_CODE = """
import json, os, sys
from coldstream.node.adapter_source import AdapterSource
from coldstream.settings import load_settings
settings = load_settings()
source = AdapterSource(settings, base="org/base", store=settings.store_uri())
with source.fetch(source.find("org/a", seconds=1)) as copy:
    print(json.dumps([os.listdir(copy.folder), "boto3" in sys.modules]))
"""


def test_a_start_with_adapters_does_not_wait_for_boto3(rclone: S3Server, tmp_path: Path) -> None:
    environ = rclone.environ(fresh_bucket(rclone))
    send(open_store(load_settings(environ, environ={})), tmp_path, adapter_files(), "org/a")
    ended = subprocess.run(
        [sys.executable, "-c", _CODE],
        env={**os.environ, **environ, "COLDSTREAM_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    names, with_boto3 = json.loads(ended.stdout)
    assert {*NAMES} < {*names}
    assert not with_boto3
