"""Adapters in a store: how an upload recognises them, and how they are listed and outlive their base."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import msgspec
import pytest

from coldstream.errors import IntegrityError, UsageError
from coldstream.mirror.listing import ModelInfo, bases_of, list_models, plan_removal
from coldstream.mirror.manifest_records import read_record, record_key
from coldstream.mirror.upload import upload
from coldstream.mirror.upload_plan import UploadPlan, plan_upload
from coldstream.model.adapter import Adapter
from coldstream.model.manifest import Manifest, serialize, upload_command
from coldstream.places.folder import FolderSnapshot
from coldstream.places.place import Store
from tests.adapters import BASE, adapter_config, adapter_files, base_files
from tests.models import write_model
from tests.unit.mirror.stored_models import folder_store, send

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 12345\n" % (b"a" * 64)


def planned(tmp_path: Path, files: dict[str, bytes], **options: Any) -> UploadPlan:
    source = FolderSnapshot(write_model(tmp_path / "source", files))
    return plan_upload(folder_store(tmp_path), source, "org/adapter", **options)


def manifest_of(store: Store, name: str = "org/adapter") -> Manifest:
    record, _ = read_record(store, name) or (None, "")
    assert isinstance(record, Manifest)
    return record


def without_kind(store: Store, name: str = "org/adapter") -> None:
    """Makes a manifest as earlier versions wrote it."""
    record = msgspec.structs.replace(manifest_of(store, name), kind="model", adapter=None)
    store.put(record_key(name), serialize(record))


def test_an_adapter_is_recorded_with_its_base_and_rank(tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    send(store, tmp_path, adapter_files(rank=16), "org/adapter")
    record = manifest_of(store)
    assert (record.kind, record.adapter) == ("adapter", Adapter(base=BASE, rank=16))
    assert {entry.path for entry in record.files} == {*adapter_files()}


def test_a_model_with_an_adapter_beside_it_is_a_model(tmp_path: Path) -> None:
    files = adapter_files() | base_files()
    plan = planned(tmp_path, files)
    assert plan.adapter is None
    with pytest.raises(UsageError, match="is not an adapter, so it has no base model"):
        planned(tmp_path, files, base="org/other")


def test_the_base_that_the_user_names_counts(tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    source = FolderSnapshot(write_model(tmp_path / "source", adapter_files("/home/me/llama")))
    with pytest.raises(UsageError, match="its base model '/home/me/llama' is not a model's name") as caught:
        plan_upload(store, source, "org/adapter")
    assert "--base org/model" in (caught.value.hint or "")
    upload(store, source, plan_upload(store, source, "org/adapter", base="org/llama"))
    record = manifest_of(store)
    assert record.adapter == Adapter(base="org/llama", rank=8)
    assert shlex.split(upload_command(record))[-2:] == ["--base", "org/llama"]
    assert plan_upload(store, source, "org/adapter", base="org/llama").up_to_date
    # Only the manifest changes.
    plan = plan_upload(store, source, "org/adapter", base="org/llama-2")
    assert (plan.up_to_date, plan.to_send) == (False, ())
    upload(store, source, plan)
    assert manifest_of(store).adapter == Adapter(base="org/llama-2", rank=8)


def test_uploading_an_adapter_of_an_earlier_version_again_records_it(tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    send(store, tmp_path, adapter_files(), "org/adapter")
    without_kind(store)
    report = send(store, tmp_path, adapter_files(), "org/adapter")
    assert (report.sent_bytes, manifest_of(store).adapter) == (0, Adapter(base=BASE, rank=8))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"adapter_config.json": adapter_config(None)}, UsageError, "names no base model"),
        ({"adapter_config.json": b"{}"}, IntegrityError, "is malformed"),
        ({"adapter_config.json": POINTER}, IntegrityError, r"adapter_config\.json is a Git LFS pointer"),
        ({"adapter_model.safetensors": POINTER}, IntegrityError, r"adapter_model\.safetensors is a Git LFS pointer"),
        ({"adapter_model.safetensors": None}, UsageError, r"the adapter has no adapter_model\.safetensors\n"),
        (
            {"adapter_model.safetensors": None, "adapter_model.bin": b"pickle"},
            UsageError,
            r"the adapter has no adapter_model\.safetensors, only pickled weights",
        ),
    ],
)
def test_what_is_not_usable_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, bytes | None], error: type[Exception], message: str
) -> None:
    files = {path: content for path, content in (adapter_files() | changes).items() if content is not None}
    with pytest.raises(error, match=message) as caught:
        planned(tmp_path, files)
    assert "\n" not in str(caught.value)
    assert getattr(caught.value, "hint", None)
    assert not list(folder_store(tmp_path).list(""))


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"peft_type": "IA3"}, {"rank": 1024}])
def test_what_vllm_cannot_serve_is_stored(tmp_path: Path, settings: dict[str, Any]) -> None:
    plan = planned(tmp_path, adapter_files(**settings))
    assert plan.adapter
    assert plan.adapter.refusal


def test_adapters_are_listed_with_base_and_rank(tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    send(store, tmp_path, base_files(), BASE)
    send(store, tmp_path, adapter_files(rank=16), "org/adapter")
    send(store, tmp_path, adapter_files("org/gone"), "org/earlier")
    without_kind(store, "org/earlier")
    write_model(tmp_path / "store" / "org/foreign", adapter_files(rank=4))
    listed = {info.name: (info.kind, info.base, info.rank, info.state) for info in list_models(store)}
    assert listed == {
        "org/adapter": ("adapter", BASE, 16, "ready"),
        BASE: ("model", None, None, "ready"),
        "org/earlier": ("adapter", "org/gone", 8, "ready"),
        "org/foreign": ("adapter", BASE, 4, "foreign"),
    }
    assert bases_of(list_models(store)) == {"org/adapter": BASE, "org/earlier": None, "org/foreign": BASE}


def test_an_adapter_whose_base_is_not_known_is_listed_with_the_reason(tmp_path: Path) -> None:
    write_model(tmp_path / "store" / "org/adapter", adapter_files(None))
    write_model(tmp_path / "store" / "org/broken", adapter_files() | {"adapter_config.json": b"{"})
    adapter, broken = list_models(folder_store(tmp_path))
    assert (adapter.kind, adapter.base, adapter.rank) == ("adapter", None, None)
    assert (broken.kind, broken.base) == ("adapter", None)
    store = folder_store(tmp_path)
    send(store, tmp_path, adapter_files(), "org/earlier")
    document = json.loads((tmp_path / "store/org/earlier/coldstream.json").read_bytes())
    assert document["kind"] == "adapter"
    without_kind(store, "org/earlier")
    store.delete(["org/earlier/adapter_model.safetensors"])
    earlier = next(info for info in list_models(store) if info.name == "org/earlier")
    assert (earlier.state, earlier.kind, earlier.base) == ("damaged", "adapter", BASE)


def info(name: str, **facts: Any) -> ModelInfo:
    store = {"state": "ready", "bytes": 1, "files": 1, "repo": None, "revision": None, "layout": "plain", "detail": ""}
    return ModelInfo(**{"name": name, "modified": None, **store, **facts})


def test_a_base_is_known_by_its_name_before_its_repository() -> None:
    adapter = info("org/a", kind="adapter", base="meta/llama")
    copies = [info("dev/llama", repo="meta/llama"), info("prod/llama", repo="meta/llama")]
    assert bases_of([adapter, *copies]) == {"org/a": "dev/llama"}
    assert bases_of([adapter, *copies, info("meta/llama")]) == {"org/a": "meta/llama"}
    # An adapter cannot be the base of another one.
    assert bases_of([adapter, info("meta/llama", kind="adapter", base="x")])["org/a"] is None


def test_removing_a_base_names_the_adapters_that_stay(tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    send(store, tmp_path, base_files(), BASE)
    send(store, tmp_path, base_files(), "org/other")
    for name in ("org/a", "org/b"):
        send(store, tmp_path, adapter_files(), name)
    assert plan_removal(store, BASE).orphans == ("org/a", "org/b")
    assert plan_removal(store, "org/other").orphans == ()
    assert plan_removal(store, "org/a").orphans == ()
