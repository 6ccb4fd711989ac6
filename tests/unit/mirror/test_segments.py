"""Weights in segments: what is sent, shared, freed, and what a death at any write leaves."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from coldstream.errors import ConflictError, CredentialsError, IntegrityError, UsageError
from coldstream.mirror import file_upload, segment_pool
from coldstream.mirror.download import download
from coldstream.mirror.listing import list_models, plan_removal, remove
from coldstream.mirror.manifest_records import read_record
from coldstream.mirror.upload import upload
from coldstream.mirror.upload_plan import UploadReport, plan_upload
from coldstream.mirror.verify import verify
from coldstream.model.manifest import FileEntry, Manifest
from coldstream.places.folder import FolderSnapshot
from coldstream.places.place import Store
from coldstream.units import MIB
from tests.models import safetensors_bytes, write_model
from tests.unit.mirror.test_upload import DroppingStore, DyingStore, Killed, opened

NAME = "org/model"
LIMIT = MIB
SHARD = "model-00001-of-00002.safetensors"
OTHER = "model-00002-of-00002.safetensors"
TENSOR = 400_000
SIZES = {f"layers.{number}.weight": TENSOR for number in range(16)}


def model(**changed: int) -> dict[str, bytes]:
    """Two shards of 6.4 MB; the tensors named (as `t3`, of the first) have other bytes."""
    first = bytearray(safetensors_bytes(SIZES, seed=1))
    start = len(first) - TENSOR * len(SIZES)
    for name, seed in changed.items():
        at = start + int(name[1:]) * TENSOR
        first[at : at + TENSOR] = bytes([seed]) * TENSOR
    return {
        SHARD: bytes(first),
        OTHER: safetensors_bytes({f"other.{key}": size for key, size in SIZES.items()}, seed=2),
        "config.json": b'{"model_type": "llama"}',
        "2_Dense/model.safetensors": safetensors_bytes({"linear.weight": 4000}, seed=3),
    }


class Counting:
    """A store that notes what is written to it: (method, key)."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.calls: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not callable(found):
            return found

        def call(*args: Any, **options: Any) -> Any:
            if args and isinstance(args[0], str):
                self.calls.append((name, args[0]))
            return found(*args, **options)

        return call

    def count(self, *names: str, under: str = "") -> int:
        return sum(name in names and key.startswith(under) for name, key in self.calls)


class NotCopying:
    """A store that cannot copy ranges, as rclone cannot."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def copy_part(self, *args: Any, **options: Any) -> None:
        return None


def send(
    store: Any,
    folder: Path,
    name: str = NAME,
    *,
    limit: int | None = LIMIT,
    plain: bool = False,
    memory: int = 64 * MIB,
) -> UploadReport:
    source = FolderSnapshot(folder)
    plan = plan_upload(store, source, name, object_bytes_max=limit, plain=plain or limit is None)
    return upload(store, source, plan, connections=3, memory_bytes=memory)


def entries(store: Store, name: str = NAME) -> dict[str, FileEntry]:
    found = read_record(store, name)
    assert found is not None
    assert isinstance(found[0], Manifest)
    return {entry.path: entry for entry in found[0].files}


def in_pool(store: Store) -> set[str]:
    return {info.key for info in store.list(segment_pool.ROOT)}


def assert_whole(store: Store, files: dict[str, bytes], tmp_path: Path, name: str = NAME, *, root: str = "") -> None:
    """It is ready, every byte of every copy is right, and it comes back equal."""
    report = verify(store, name, deep=True)
    assert report.ok, report.problems
    target = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
    download(store, name, target)
    assert {p.relative_to(target).as_posix(): p.read_bytes() for p in target.rglob("*") if p.is_file()} == files
    for entry in entries(store, name).values():
        for stored in entry.objects:
            if stored.key.startswith("/"):
                found = store.get(f"{root}{stored.key}".lstrip("/"))[0]
                assert hashlib.sha256(found).hexdigest() == stored.key.rpartition("/")[2]
    assert list(store.uploads("")) == []


@pytest.mark.parametrize("plain", [False, True], ids=["no-plain", "plain"])
def test_weights_lie_in_segments_and_come_back(tmp_path: Path, plain: bool) -> None:
    store, files = opened(tmp_path / "store"), model()
    report = send(store, write_model(tmp_path / "model", files), plain=plain)
    found = entries(store)
    assert [found[path].object_bytes_max for path in sorted(files)] == [None, None, LIMIT, LIMIT]
    for path in (SHARD, OTHER):
        keys = [stored.key for stored in found[path].objects]
        assert all(key.startswith("/.coldstream/segments/") for key in keys)
        assert all(stored.size <= LIMIT for stored in found[path].objects)
        assert len(keys) > 6
        assert (found[path].plain is not None) == plain
    sent_here = {info.key.removeprefix(f"{NAME}/") for info in store.list(f"{NAME}/")}
    assert sent_here == {"coldstream.json", *(path for path in files if plain or path not in (SHARD, OTHER))}
    assert_whole(store, files, tmp_path)
    (info,) = list_models(store)
    assert (info.state, info.layout) == ("ready", "segments 1 MiB" + (" + plain" if plain else ""))
    assert info.bytes == sum(map(len, files.values()))
    assert verify(store, NAME).segments == len(in_pool(store))
    assert report.copied_segments == (len(in_pool(store)) if plain else 0)
    assert report.sent_segments == (0 if plain else len(in_pool(store)))
    assert report.sent_bytes == sum(map(len, files.values()))


def test_a_changed_tensor_alone_is_sent(tmp_path: Path) -> None:
    store = opened(tmp_path / "store")
    send(store, write_model(tmp_path / "old", model()))
    before = in_pool(store)
    counting = Counting(store)
    report = send(counting, write_model(tmp_path / "new", model(t5=9)))
    assert report.sent_segments == 1
    assert report.sent_bytes <= LIMIT
    assert counting.count("put_part") == counting.count("create_upload") == counting.count("complete_upload") == 1
    assert counting.count("put", under=f"{NAME}/model") == 0
    assert len(in_pool(store) - before) == 1
    assert report.swept_segments == len(before - in_pool(store)) == 1
    assert_whole(store, model(t5=9), tmp_path)


def test_beside_plain_files_a_changed_one_is_sent_and_its_changed_segment_copied(tmp_path: Path) -> None:
    store = opened(tmp_path / "store")
    send(store, write_model(tmp_path / "old", model()), plain=True)
    counting = Counting(store)
    report = send(counting, write_model(tmp_path / "new", model(t5=9)), plain=True)
    assert report.sent_bytes == len(model()[SHARD])
    assert (report.sent_segments, report.copied_segments) == (0, 1)
    assert report.kept_segments == len(entries(store)[SHARD].objects) - 1
    assert counting.count("put_part") == 0
    assert counting.count("copy_part") == 1
    assert_whole(store, model(t5=9), tmp_path)


def test_a_store_that_cannot_copy_is_sent_the_segments(tmp_path: Path) -> None:
    store = opened(tmp_path / "store")
    report = send(NotCopying(store), write_model(tmp_path / "model", model()), plain=True)
    assert (report.copied_segments, report.sent_segments) == (0, len(in_pool(store)))
    assert_whole(store, model(), tmp_path)


def test_a_second_upload_writes_nothing(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", model())
    store = opened(tmp_path / "store")
    for plain in (False, True):
        send(store, folder, plain=plain)
        counting = Counting(store)
        assert send(counting, folder, plain=plain).digest is None
        assert counting.count("put", "put_part", "create_upload", "copy_part", "delete") == 0


def test_from_one_layout_to_another(tmp_path: Path) -> None:
    """Whatever is there already is used; what is not wanted any more goes."""
    folder, store = write_model(tmp_path / "model", model()), opened(tmp_path / "store")
    weights = len(model()[SHARD]) + len(model()[OTHER])
    send(store, folder, limit=None)
    report = send(store, folder, plain=True)
    assert (report.sent_bytes, report.sent_segments) == (0, 0)
    assert report.copied_segments == len(in_pool(store))
    assert_whole(store, model(), tmp_path)
    assert send(store, folder, plain=False).sent_bytes == 0
    assert not any(info.key.endswith(SHARD) for info in store.list(""))
    assert_whole(store, model(), tmp_path)
    report = send(store, folder, plain=True)
    assert (report.sent_bytes, report.copied_segments) == (weights, 0)
    assert_whole(store, model(), tmp_path)
    report = send(store, folder, limit=2 * LIMIT, plain=True)
    assert report.sent_bytes == 0
    assert report.kept_segments > 0
    assert_whole(store, model(), tmp_path)
    report = send(store, folder, limit=None)
    assert (report.sent_bytes, in_pool(store)) == (0, set())
    assert_whole(store, model(), tmp_path)
    assert send(store, folder, limit=None).digest is None


def test_models_share_segments_and_removal_keeps_what_others_have(tmp_path: Path) -> None:
    store = opened(tmp_path / "store")
    send(store, write_model(tmp_path / "a", model()), "org/a")
    report = send(store, write_model(tmp_path / "b", model(t5=9)), "org/b")
    assert (report.sent_segments, report.swept_segments) == (1, 0)
    removal = plan_removal(store, "org/a")
    assert removal.segments == 1
    assert removal.shared_segments == len(in_pool(store)) - 2
    remove(store, removal)
    assert_whole(store, model(t5=9), tmp_path, "org/b")
    assert len(in_pool(store)) == verify(store, "org/b").segments
    remove(store, plan_removal(store, "org/b"))
    assert list(store.list("")) == []


def test_nothing_is_swept_while_another_upload_may_need_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, folder = opened(tmp_path / "store"), write_model(tmp_path / "a", model())
    send(store, folder, "org/a")
    with pytest.raises(Killed):
        send(DyingStore(opened(tmp_path / "store"), 2, done=True), folder, "org/b")
    removal = plan_removal(store, "org/a")
    assert removal.segments == 0
    assert "org/b" in (removal.withheld or "")
    remove(store, removal)
    assert len(in_pool(store)) > 10
    monkeypatch.setattr(segment_pool, "GRACE", timedelta(0))  # as if a day had passed
    segment_pool.sweep(store)
    assert in_pool(store) == set()
    send(store, folder, "org/b")
    assert_whole(store, model(), tmp_path, "org/b")


def test_nothing_is_swept_beside_a_manifest_that_cannot_be_read(tmp_path: Path) -> None:
    store, folder = opened(tmp_path / "store"), write_model(tmp_path / "a", model())
    send(store, folder, "org/a")
    store.put("org/newer/coldstream.json", b'{"format":2}')
    removal = plan_removal(store, "org/a")
    assert "org/newer" in (removal.withheld or "")
    remove(store, removal)
    assert len(in_pool(store)) > 10


def test_a_segment_that_vanishes_meanwhile_is_noticed_before_the_model_is_ready(tmp_path: Path) -> None:
    store, folder = opened(tmp_path / "store"), write_model(tmp_path / "a", model())
    send(store, folder, "org/a")

    class Losing(Counting):
        def __getattr__(self, name: str) -> Any:
            if name == "uploads" and self.count("head", under=segment_pool.ROOT) > 5:
                store.delete([min(in_pool(store))])
            return super().__getattr__(name)

    with pytest.raises(ConflictError, match="was changed while"):
        send(Losing(store), folder, "org/b")
    assert {info.name: info.state for info in list_models(store)} == {"org/a": "damaged", "org/b": "incomplete"}
    for name in ("org/a", "org/b"):
        send(store, folder, name)
        assert_whole(store, model(), tmp_path, name)


def test_a_damaged_segment_is_found_and_sent_again(tmp_path: Path) -> None:
    store, folder = opened(tmp_path / "store"), write_model(tmp_path / "model", model())
    send(store, folder)
    key = entries(store)[SHARD].objects[2].key[1:]
    data = bytearray(store.get(key)[0])
    data[7] ^= 1
    store.put(key, bytes(data))
    report = verify(store, NAME)
    assert [problem.path for problem in report.problems] == [SHARD]
    assert "segment 3 of" in report.problems[0].what
    assert [info.state for info in list_models(store)] == ["damaged"]
    with pytest.raises((ConflictError, IntegrityError)):
        download(opened(tmp_path / "store"), NAME, tmp_path / "out")
    assert send(store, folder).sent_segments == 1
    assert_whole(store, model(), tmp_path)


def test_a_damaged_plain_copy_is_found(tmp_path: Path) -> None:
    store, folder = opened(tmp_path / "store"), write_model(tmp_path / "model", model())
    send(store, folder, plain=True)
    store.put(f"{NAME}/{SHARD}", b"other")
    (problem,) = verify(store, NAME).problems
    assert problem.what.startswith("in one piece has 5 bytes")
    report = send(store, folder, plain=True)
    assert report.sent_bytes == len(model()[SHARD])
    assert_whole(store, model(), tmp_path)


def test_keys_that_reach_one_model_alone_remove_it(tmp_path: Path) -> None:
    store = opened(tmp_path / "store")
    send(store, write_model(tmp_path / "model", model()), limit=None)

    class Scoped(NotCopying):
        def uploads(self, prefix: str) -> Any:
            if not prefix.startswith(NAME):
                raise CredentialsError("403")
            return self._store.uploads(prefix)

    removal = plan_removal(Scoped(store), NAME)
    assert removal.withheld is None
    remove(Scoped(store), removal)
    assert list(store.list("")) == []


def test_a_store_that_lies_above_finds_the_segments(tmp_path: Path) -> None:
    """s3://bucket/team/org/model, uploaded to s3://bucket/team as org/model"""
    inner, outer = opened(tmp_path / "store" / "team"), opened(tmp_path / "store")
    send(inner, write_model(tmp_path / "model", model()))
    assert [(info.name, info.state) for info in list_models(outer)] == [(f"team/{NAME}", "ready")]
    report = verify(outer, f"team/{NAME}", deep=True)
    assert (report.ok, report.segments) == (True, len(in_pool(inner)))
    assert_whole(outer, model(), tmp_path, f"team/{NAME}", root="team")
    send(outer, tmp_path / "model", "org/other")
    assert plan_removal(outer, "org/other").segments == len(in_pool(outer))
    remove(outer, plan_removal(outer, "org/other"))
    assert_whole(inner, model(), tmp_path)


def test_equal_segments_are_stored_once(tmp_path: Path) -> None:
    files = {"model.safetensors": safetensors_bytes({"x": 5 * MIB})}
    head = len(files["model.safetensors"]) - 5 * MIB
    files["model.safetensors"] = files["model.safetensors"][:head] + bytes(5 * MIB)
    store = opened(tmp_path / "store")
    send(store, write_model(tmp_path / "model", files))
    assert Counter(stored.key for stored in entries(store)["model.safetensors"].objects).most_common(1)[0][1] == 5
    assert len(in_pool(store)) == 2
    assert_whole(store, files, tmp_path)


@pytest.mark.parametrize("limit", [MIB - 1, (5 << 30) + 1])
def test_sizes_that_make_no_sense_are_refused(tmp_path: Path, limit: int) -> None:
    with pytest.raises(UsageError, match="1 MiB and 5 GiB"):
        send(opened(tmp_path / "store"), write_model(tmp_path / "model", model()), limit=limit)


def test_a_segment_must_fit_into_memory(tmp_path: Path) -> None:
    store, folder = opened(tmp_path / "store"), write_model(tmp_path / "model", model())
    with pytest.raises(UsageError, match="does not fit into"):
        send(store, folder, memory=LIMIT - 1)
    assert list(store.list("")) == []
    send(store, folder, memory=LIMIT)
    assert_whole(store, model(), tmp_path)


def test_large_segments_go_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_upload, "PART_BYTES", 150_000)
    counting = Counting(opened(tmp_path / "store"))
    report = send(counting, write_model(tmp_path / "model", model()), memory=LIMIT)
    # The journal, the manifest, and two that try whether the store honours conditions.
    assert report.parts == counting.count("put_part") + counting.count("put", under=f"{NAME}/") - 4
    assert counting.count("put_part") > 4 * report.sent_segments
    assert_whole(counting._store, model(), tmp_path)
    copying = opened(tmp_path / "copying")
    send(copying, tmp_path / "model", plain=True)
    assert in_pool(copying) == in_pool(counting._store)
    assert_whole(copying, model(), tmp_path)


def test_an_unfinished_upload_that_vanishes_is_begun_again(tmp_path: Path) -> None:
    store = opened(tmp_path / "store")
    send(DroppingStore(store, 1), write_model(tmp_path / "model", model()))
    assert_whole(store, model(), tmp_path)


def test_two_uploads_of_one_segment_at_once_are_fine(tmp_path: Path) -> None:
    store, folder = opened(tmp_path / "store"), write_model(tmp_path / "model", model())
    failures: list[BaseException] = []

    def run(name: str) -> None:
        try:
            send(opened(tmp_path / "store"), folder, name)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=run, args=(f"org/{name}",)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for name in "abc":
        assert_whole(store, model(), tmp_path, f"org/{name}")


@pytest.mark.parametrize("plain", [False, True], ids=["no-plain", "plain"])
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_dead_at_any_write_it_was_ready_or_is_not(tmp_path: Path, done: bool, plain: bool) -> None:
    old, new = model(), model(t5=9)
    for files in (old, new):
        del files[OTHER]
        files["model.safetensors"] = files.pop(SHARD)
    folders = [write_model(tmp_path / name, files) for name, files in (("old", old), ("new", new))]
    send(opened(tmp_path / "first"), folders[0], plain=plain)
    seen = []
    for nth in range(1, 100):
        root = shutil.copytree(tmp_path / "first", tmp_path / "store")
        dying = DyingStore(opened(root), nth, done=done)
        try:
            send(dying, folders[1], plain=plain)
        except Killed:
            assert dying.died
        store = opened(root)
        (info,) = list_models(store)
        seen.append(info.state)
        if info.state == "ready":
            assert verify(store, NAME, deep=True).ok
        else:
            assert info.state == "incomplete"
        send(store, folders[1], plain=plain)
        assert_whole(store, new, tmp_path)
        if not dying.died or (seen[-2:] == ["ready", "ready"] and "incomplete" in seen):
            break
        shutil.rmtree(root)
    assert set(seen) == {"ready", "incomplete"}
    assert len(in_pool(store)) == verify(store, NAME).segments
