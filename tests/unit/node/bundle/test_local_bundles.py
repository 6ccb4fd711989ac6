from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from coldstream.engines.vllm.vllm_caches import VllmCaches
from coldstream.errors import DiskError
from coldstream.node.bundle.bundle_pointer import Key
from coldstream.node.bundle.local_bundles import LocalBundle, local_bundles_of

KEY = Key(parts={"model": "m", "vllm": "0.32.0"})


def kept(tmp_path: Path, key: Key = KEY) -> LocalBundle:
    return LocalBundle(tmp_path / "cache/bundles", key, VllmCaches())


def test_the_first_start_is_alone_and_others_share(tmp_path: Path) -> None:
    first, second = kept(tmp_path), kept(tmp_path)
    assert first.hold()
    assert not first.is_whole
    came: list[bool] = []
    waiting = threading.Thread(target=lambda: came.append(second.hold()))
    waiting.start()
    with first.replaced() as folder:
        (folder / "restored").write_text("x")
    first.mark_whole("org/m")
    assert not came, "the second waits while the first restores"
    first.share()
    waiting.join(10)
    assert came == [False]
    assert second.is_whole
    assert (second.root / "restored").exists()
    first.close()
    second.close()
    assert first.hold(), "a dead start holds nothing"
    first.close()


def test_a_failed_restore_leaves_what_was_there(tmp_path: Path) -> None:
    caches = kept(tmp_path)
    caches.hold()
    (caches.root / "old").write_text("x")

    def fill_the_disk() -> None:
        with caches.replaced() as folder:
            (folder / "new").write_text("x")
            raise OSError(28, "No space left on device")

    with pytest.raises(DiskError, match="No space"):
        fill_the_disk()
    assert [path.name for path in caches.root.iterdir()] == ["old"]
    assert {path.name[0] for path in caches.base.iterdir()} != {"."}
    caches.close()


def test_whole_caches_are_found_by_their_model(tmp_path: Path) -> None:
    other = Key(parts={"model": "m", "vllm": "0.31.0"})
    for number, key in enumerate((KEY, other)):
        caches = kept(tmp_path, key)
        caches.hold()
        caches.mark_whole("org/m")
        os.utime(caches.base / f"{caches.root.name}.json", (number, number))
        caches.close()
    base = tmp_path / "cache/bundles"
    (base / "broken.json").write_text("{")
    (base / f"{'0' * 16}.json").write_text('{"format": 1, "name": "org/m", "parts": {"a": "b"}}')
    assert [found.key for found in local_bundles_of(base, "org/m", VllmCaches())] == [other, KEY]
    assert local_bundles_of(base, "org/other", VllmCaches()) == []
    assert local_bundles_of(tmp_path / "nowhere", "org/m", VllmCaches()) == []


def test_whole_caches_that_go_while_they_are_looked_for_are_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = kept(tmp_path)
    caches.hold()
    caches.mark_whole("org/m")
    caches.close()
    mark = caches.base / f"{caches.root.name}.json"
    monkeypatch.setattr(LocalBundle, "is_whole", property(lambda _: mark.unlink() or True))
    assert local_bundles_of(caches.base, "org/m", VllmCaches()) == []


def test_what_nobody_used_for_a_month_goes(tmp_path: Path) -> None:
    old = kept(tmp_path, Key(parts={"model": "old"}))
    held = kept(tmp_path, Key(parts={"model": "held"}))
    for caches in (old, held):
        caches.hold()
        caches.mark_whole("org/m")
        before = time.time() - 40 * 86400
        for path in (caches.root, caches.base / f"{caches.root.name}.json"):
            os.utime(path, (before, before))
    old.close()
    staged = old.base / ".new-abc"
    staged.mkdir()
    os.utime(staged, (0, 0))
    new = kept(tmp_path)
    new.hold()
    assert not old.root.exists()
    assert not staged.exists()
    assert held.is_whole, "in use"
    for caches in (held, new):
        caches.close()


def test_a_folder_that_goes_while_old_ones_are_looked_for_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = kept(tmp_path), kept(tmp_path, Key(parts={"model": "other"}))
    first.hold()
    going = first.base / ".new-abc"
    going.mkdir()
    exists = Path.exists

    def gone(path: Path) -> bool:
        if path == going:
            going.rmdir()
        return exists(path)

    monkeypatch.setattr(Path, "exists", gone)
    assert second.hold()
    assert not exists(going)
    for caches in (first, second):
        caches.close()


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    os.chmod(tmp_path / "cache", 0o777)
    with pytest.raises(DiskError, match="is writable by other users"):
        kept(tmp_path).hold()
