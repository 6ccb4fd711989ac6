"""An upload that dies at its Nth write, for every N: what is ready is one revision, and the next run ends equal."""

from __future__ import annotations

import hashlib
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from coldstream.errors import ConflictError, IntegrityError, UsageError
from coldstream.mirror.listing import list_models
from coldstream.mirror.upload import upload
from coldstream.mirror.upload_plan import plan_upload
from coldstream.mirror.verify import verify
from coldstream.model.manifest import unpack_header
from coldstream.net.retry import Backoff, Retry
from coldstream.places.folder import Folder, FolderSnapshot
from coldstream.places.place import Store
from tests.manifests import recorded, strip_headers
from tests.models import safetensors_bytes, write_model

NAME = "org/model"
PART = 1 << 20
OLD = {
    "model-00001-of-00002.safetensors": safetensors_bytes({"a": (2 << 20) + 500}, seed=1),
    "model-00002-of-00002.safetensors": safetensors_bytes({"b": 700}, seed=2),
    "config.json": b'{"old": true}',
    "gone.json": b"{}",
}
NEW = {
    "model-00001-of-00002.safetensors": safetensors_bytes({"a": (2 << 20) + 500}, seed=3),
    "model-00002-of-00002.safetensors": safetensors_bytes({"b": 700}, seed=2),
    "config.json": b'{"old": false}',
    "come.json": b"{}",
}
WRITES = ("put", "put_part", "create_upload", "complete_upload", "abort_upload", "delete")


class Killed(BaseException):
    """What no code catches and goes on from, as no code survives kill -9."""


class DyingStore:
    """A store whose Nth write is the process's end: that write is done or not, and nothing after it is."""

    def __init__(self, store: Store, nth: int, *, done: bool) -> None:
        self._store, self._left, self._done = store, nth, done
        self._lock = threading.Lock()
        self.died = False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        return self._dying(found, counts=name in WRITES) if callable(found) and name != "part_etag" else found

    def _alive(self) -> bool:
        if self.died:
            raise Killed
        return True

    def _dying(self, method: Any, *, counts: bool) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            with self._lock:  # a process dies at one moment
                self._alive()
                self._left -= counts
                self.died = counts and self._left == 0
                if self.died and not self._done:
                    raise Killed
                answer = method(*args, **options)
                self._alive()
                return answer

        return call


def opened(root: Path) -> Folder:
    return Folder(root, retry=Retry(Backoff(first_seconds=0.01, give_up_seconds=1)))


def hashes(files: dict[str, bytes]) -> dict[str, str]:
    return {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}


def stored(store: Store) -> dict[str, str]:
    found = {info.key.removeprefix(f"{NAME}/"): store.get(info.key)[0] for info in store.list(f"{NAME}/")}
    found.pop("coldstream.json")
    return hashes(found)


def send(store: Any, folder: Path) -> None:
    source = FolderSnapshot(folder)
    upload(store, source, plan_upload(store, source, NAME, part_bytes=PART), connections=3)


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_dead_at_any_write_it_was_ready_or_is_not(tmp_path: Path, done: bool) -> None:
    old, new = (write_model(tmp_path / name, files) for name, files in (("old", OLD), ("new", NEW)))
    send(opened(tmp_path / "first"), old)
    seen = []
    for nth in range(1, 100):
        root = shutil.copytree(tmp_path / "first", tmp_path / f"store-{nth}")
        dying = DyingStore(opened(root), nth, done=done)
        try:
            send(dying, new)
        except Killed:
            assert dying.died
        store = opened(root)
        (model,) = list_models(store)
        seen.append(model.state)
        if model.state == "ready":
            assert stored(store) in (hashes(OLD), hashes(NEW))
            assert verify(store, NAME, deep=True).ok
        else:
            assert model.state == "incomplete"
        send(store, new)
        assert stored(store) == hashes(NEW)
        assert verify(store, NAME, deep=True).ok
        assert list(store.uploads("")) == []
        if not dying.died:
            break
    # Whole at first, not ready while anything of it changes, whole again at the end.
    changing = seen.index("incomplete")
    assert changing <= 1
    assert set(seen[changing:-2]) == {"incomplete"}
    assert seen[-1] == "ready"
    assert len(seen) > 10


def test_orphans_of_a_complete_model_are_dropped(tmp_path: Path) -> None:
    store, folder = opened(tmp_path / "store"), write_model(tmp_path / "old", OLD)
    send(store, folder)
    store.create_upload(f"{NAME}/model-00001-of-00002.safetensors")
    store.create_upload("other/model/model.safetensors")
    send(store, folder)
    assert [pending.key for pending in store.uploads("")] == ["other/model/model.safetensors"]


def test_a_model_inside_another_is_refused(tmp_path: Path) -> None:
    store, folder = opened(tmp_path / "store"), write_model(tmp_path / "old", OLD)
    send(store, folder)
    source = FolderSnapshot(folder)
    for name in ("org", f"{NAME}/inner"):
        with pytest.raises(UsageError, match="the model org/model"):
            plan_upload(store, source, name)


class DroppingStore:
    """Loses a multipart upload before each of the first `times` parts, as another run of the same upload may cause."""

    def __init__(self, store: Store, times: int) -> None:
        self._store, self._left = store, times
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put_part(self, key: str, upload_id: str, number: int, body: memoryview, **options: Any) -> str:
        with self._lock:
            self._left -= 1
            if self._left >= 0:
                self._store.abort_upload(key, upload_id)
        return self._store.put_part(key, upload_id, number, body, **options)


def test_a_file_whose_unfinished_upload_vanishes_starts_over(tmp_path: Path) -> None:
    store, folder = opened(tmp_path / "store"), write_model(tmp_path / "new", NEW)
    send(DroppingStore(store, 1), folder)
    assert stored(store) == hashes(NEW)
    assert verify(store, NAME, deep=True).ok
    assert list(store.uploads("")) == []


def test_uploads_that_always_vanish_are_given_up_on(tmp_path: Path) -> None:
    store, folder = opened(tmp_path / "store"), write_model(tmp_path / "new", NEW)
    with pytest.raises(ConflictError, match="another program aborts"):
        send(DroppingStore(store, 100), folder)
    assert [model.state for model in list_models(store)] == ["incomplete"]


def header_copies(store: Store) -> list[bytes | None]:
    """Of the shards, as the manifest has them."""
    return [entry.chunks.header for entry in recorded(store, NAME).files if entry.path.endswith(".safetensors")]


def test_the_manifest_has_a_copy_of_each_header(tmp_path: Path) -> None:
    store, folder = opened(tmp_path / "store"), write_model(tmp_path / "old", OLD)
    send(store, folder)
    for entry in recorded(store, NAME).files:
        stop = entry.chunks.stops[0]
        assert unpack_header(entry) == (OLD[entry.path][:stop] if "safetensors" in entry.path else None)


def test_an_upload_adds_the_headers_to_an_earlier_manifest_without_sending_anything(tmp_path: Path) -> None:
    store, folder = opened(tmp_path / "store"), write_model(tmp_path / "old", OLD)
    send(store, folder)
    copies = header_copies(store)
    strip_headers(store, NAME)
    assert header_copies(store) == [None, None]
    source = FolderSnapshot(folder)
    plan = plan_upload(store, source, NAME, part_bytes=PART)
    assert (plan.up_to_date, plan.to_send) == (False, ())
    assert upload(store, source, plan).sent_bytes == 0
    assert header_copies(store) == copies
    assert plan_upload(store, source, NAME, part_bytes=PART).up_to_date


def test_headers_that_are_too_large_together_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, folder = opened(tmp_path / "store"), write_model(tmp_path / "old", OLD)
    monkeypatch.setattr("coldstream.mirror.upload.HEADERS_BYTES_MAX", 150)
    send(store, folder)
    assert header_copies(store) == [b"", b""]
    assert plan_upload(store, FolderSnapshot(folder), NAME, part_bytes=PART).up_to_date
    assert verify(store, NAME, deep=True).ok


def test_a_header_that_comes_back_changed_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, folder = opened(tmp_path / "store"), write_model(tmp_path / "old", OLD)
    send(store, folder)
    strip_headers(store, NAME)
    plan = plan_upload(store, FolderSnapshot(folder), NAME, part_bytes=PART)
    monkeypatch.setattr(store, "read_into", lambda *_, **__: None)
    with pytest.raises(IntegrityError, match="its header is not the one that was uploaded"):
        upload(store, FolderSnapshot(folder), plan)
    assert [model.state for model in list_models(store)] == ["incomplete"]
