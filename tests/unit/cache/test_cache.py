"""Copies are opened, found again, listed and removed; the folder is private; where it is."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xxhash

from coldstream.cache.cache import Cache, LocalCopy, configured
from coldstream.cache.copy_writer import CopyWriter
from coldstream.engine.rendezvous import SocketFolder
from coldstream.errors import ConfigError, DiskError, IntegrityError, UsageError
from coldstream.machine import disk as disk_module
from coldstream.machine.disk import make_folders, open_private, temporary_root
from tests.unit.cache.cached_models import (
    URI,
    Model,
    begun,
    entry_of,
    files_below,
    journal_of,
    open_descriptors,
)


def latest_of(cache: Cache, uri: str = URI) -> LocalCopy:
    found = cache.latest(uri)
    assert found is not None
    return found


def test_another_plan_under_the_same_version_starts_over(cache: Cache) -> None:
    Model().fill(cache)
    other = Model(seed=1)
    with other.open(cache) as copy:
        assert other.check(copy) == 0
    assert len(cache.entries()) == 1
    with Model(hashed=False).open(cache) as copy:
        assert not copy.complete
        with pytest.raises(DiskError, match="different list of files"):
            other.open(cache)
    cache.prune(names=["none"])
    assert {path.name for path in cache.root.iterdir()} == {"latest", "lock", "models"}


def test_long_names_and_twins_have_folders_of_their_own(cache: Cache) -> None:
    model = Model()
    stem = "org/" + "x" * 230
    folders = {model.fill(cache, name=stem + end) for end in "ab"}
    assert len(folders) == 2
    # "a--b/c" and "a/b--c" share a folder, and so start over, but never mix.
    model.fill(cache, name="a--b/c")
    with model.open(cache, name="a/b--c") as copy:
        assert copy.name == "a/b--c"
        assert model.check(copy) == 0


def test_latest_is_what_the_uri_had_last(cache: Cache) -> None:
    first, second = Model(), Model(seed=1)
    assert cache.latest(URI) is None
    first.fill(cache, version="1")
    with second.open(cache, version="2") as copy, begun(copy) as writer:
        second.write(writer, 0, 0)
        latest = cache.latest(URI)
        assert latest is not None
        with latest:
            assert (latest.version, latest.name, latest.uri) == ("1", "org/model", URI)
            assert latest.files == tuple(first.files)
            first.check(latest)
    second.fill(cache, version="2")
    with latest_of(cache) as latest:
        assert latest.version == "2"
    # The bucket went back.
    first.open(cache, version="1").close()
    with latest_of(cache) as latest:
        assert latest.version == "1"
    assert cache.latest("s3://models/other") is None


def test_two_uris_share_a_copy(cache: Cache) -> None:
    model = Model()
    model.fill(cache)
    with model.open(cache, uri="https://cdn/org/model") as copy:
        assert copy.complete
    for uri in (URI, "https://cdn/org/model"):
        with latest_of(cache, uri) as latest:
            assert latest.uri == uri
    assert entry_of(cache, "org/model").uri == "https://cdn/org/model"


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"format":1,"uri":"x","name":"../..","version":"x"}', b"\xff"])
def test_a_damaged_note_of_the_latest_counts_as_none(cache: Cache, data: bytes) -> None:
    Model().fill(cache)
    (note,) = (cache.root / "latest").iterdir()
    assert note.name == hashlib.sha256(URI.encode()).hexdigest() + ".json"
    note.write_bytes(data)
    assert cache.latest(URI) is None
    cache.prune(names=["nothing"])
    assert not note.exists()


def test_prune_chooses(cache: Cache) -> None:
    now = time.time()
    for number in range(4):
        folder = Model({"w": [100_000]}, seed=number).fill(cache, name=f"m/{number % 3}", version=str(number))
        os.utime(folder / ".coldstream/used", (now, now - 1000 * (4 - number)))
    each = cache.entries()[0].bytes

    def would(**options: Any) -> list[str]:
        return [entry.version for entry in cache.prune(dry_run=True, **options)]

    assert would() == ["0", "1", "2", "3"]
    assert would(keep_bytes=2 * each) == ["0", "1"]
    assert would(keep_bytes=9 * each) == []
    assert would(names=["m/0"]) == ["0", "3"]
    assert would(names=["m/0"], keep_bytes=3 * each) == ["0"]
    assert would(older_seconds=2500) == ["0", "1"]
    assert would(older_seconds=0) == ["0", "1", "2", "3"]
    with Model({"w": [100_000]}).open(cache, name="m/0", version="0"):
        assert would() == ["1", "2", "3"]
        cache.prune()
    (left,) = cache.entries()
    assert left.name == "m/0"
    assert left.complete
    assert not left.in_use
    assert not (cache.root / "models/m--1").exists()


def test_nothing_is_made_by_looking(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "none")
    assert cache.entries() == []
    assert cache.prune() == []
    assert cache.latest(URI) is None
    assert not (tmp_path / "none").exists()


def test_everything_is_private(cache: Cache) -> None:
    before = os.umask(0)
    try:
        folder = Model().fill(cache)
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.root.stat().st_mode) == 0o700
    for path in cache.root.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert folder.is_dir()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o2775, 0o2777, 0o1777])
def test_in_a_volume_that_is_shared_each_user_has_a_folder(
    tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An emptyDir of Kubernetes is root's, with mode 0777, or 2777 and 2775 where fsGroup is set."""
    volume = tmp_path / "volume"
    volume.mkdir()
    volume.chmod(mode)
    cache = Cache(volume)
    assert cache.root == volume / f"coldstream-{os.geteuid()}"
    before = os.umask(0)
    try:
        with Model().open(cache) as copy:
            assert copy.folder.is_relative_to(cache.root)
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.root.stat().st_mode) & ~stat.S_ISGID == 0o700
    assert Cache(cache.root).root == cache.root, "it is private, so there is no other one in it"
    assert stat.S_IMODE(volume.stat().st_mode) == mode
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert Cache(volume).root == volume / f"coldstream-{owner + 1}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_a_folder_that_another_user_planted_in_a_shared_volume_is_refused(tmp_path: Path) -> None:
    volume, mine = tmp_path / "volume", tmp_path / "mine"
    for folder, mode in ((volume, 0o777), (mine, 0o700)):
        folder.mkdir()
        folder.chmod(mode)
    cache = Cache(volume)
    cache.root.symlink_to(mine)
    os.lchown(cache.root, 12345, 12345)
    with pytest.raises(DiskError, match="is a link created by user 12345"):
        Model().open(cache)
    assert not list(mine.iterdir())
    cache.root.unlink()
    cache.root.mkdir()
    os.chown(cache.root, 12345, 12345)
    with pytest.raises(DiskError, match="belongs to user 12345"):
        Model().open(cache)


@pytest.mark.parametrize("mask", [0, 0o277, 0o777])
def test_modes_are_private_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        make_folders(tmp_path / "a/b")
        os.close(open_private(tmp_path / "a/b/file", os.O_WRONLY | os.O_CREAT))
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b", "a/b/file")] == [
        0o700,
        0o700,
        0o600,
    ]


def test_a_user_without_a_home_has_a_cache_among_the_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as without HOME and an entry in passwd
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tmp_path.chmod(0o1777)
    assert configured(None, None).root == tmp_path / f"coldstream-{os.geteuid()}"


def test_without_temporary_files_there_is_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only root without an emptyDir at /tmp."""
    # Sockets need a short path, as /dev/shm is.
    memory = Path(tempfile.mkdtemp(prefix="cs-", dir="/tmp"))

    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    monkeypatch.setattr(disk_module, "SHARED_MEMORY", memory)
    memory.chmod(0o1777)
    folder = SocketFolder()
    try:
        assert Path(folder.path).parent == memory
        assert temporary_root() == memory / f"coldstream-{os.geteuid()}"
    finally:
        folder.close()
        shutil.rmtree(memory)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
def test_a_root_that_others_can_write_is_refused(cache: Cache, mode: int) -> None:
    cache.root.mkdir()
    cache.root.chmod(mode)
    refused: Sequence[Callable[[], object]] = (
        lambda: Model().open(cache),
        lambda: cache.latest(URI),
        cache.entries,
        cache.prune,
        lambda: CopyWriter.open(cache.root / "models/a/b"),
    )
    for act in refused:
        with pytest.raises(DiskError, match="is writable by other users"):
            act()


def test_a_root_of_another_user_is_refused(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.root.mkdir(mode=0o755)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(DiskError, match=f"belongs to user {owner}, not to user {owner + 1}"):
        Model().open(cache)


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for root in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(DiskError):
            Model().open(Cache(root))
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    with pytest.raises(DiskError):
        Model().open(Cache(tmp_path / "nowhere/below"))


def test_links_are_not_followed(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"untouched")
    model = Model({"a": [5]})
    with model.open(cache) as copy:
        journal_of(copy).unlink()
        journal_of(copy).symlink_to(tmp_path / "secret")
        with pytest.raises(DiskError):
            copy.writer()
    assert (tmp_path / "secret").read_bytes() == b"untouched"


def test_a_read_only_disk_is_said(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*args: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "mkdir", read_only)
    with pytest.raises(DiskError, match="Read-only") as caught:
        Model().open(cache)
    assert "COLDSTREAM_CACHE_DIR" in (caught.value.hint or "")


def test_a_file_system_without_locks_is_said(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(disk_module.fcntl, "flock", none)
    before = open_descriptors()
    with pytest.raises(DiskError, match="No locks") as caught:
        Model().open(cache)
    assert "no file locks" in (caught.value.hint or "")
    assert open_descriptors() == before


def test_a_stopped_holder_of_the_lock_does_not_stop_loads(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    Model().fill(cache)
    monkeypatch.setattr(disk_module, "ROOT_LOCK_SECONDS", 0.05)
    with disk_module.root_locked(cache.root), pytest.raises(DiskError, match="another process has held") as caught:
        Model().open(cache)
    assert caught.value.retryable


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert configured(None, None).root == tmp_path / ".cache/coldstream"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert configured(None, None).root == tmp_path / ".cache/coldstream"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert configured(None, None).root == tmp_path / "xdg/coldstream"
    chosen = configured("~/models", "10GB")
    assert (chosen.root, chosen.bytes_max) == (tmp_path / "models", 10**10)
    with pytest.raises(ConfigError, match="COLDSTREAM_CACHE_LIMIT"):
        configured(None, "much")


def test_without_a_manifest_the_journal_has_the_digests(cache: Cache) -> None:
    model = Model({"a": [5, 5]}, hashed=False)
    with model.open(cache) as copy, begun(copy) as writer:
        model.write(writer, 0, 1)
        assert copy.digests(0) == bytes(16) + xxhash.xxh3_128_digest(model.piece(0, 1))


def test_a_reader_follows_a_writer_and_a_descriptor_stays_good(cache: Cache) -> None:
    model = Model({"a": [5, 5]})
    with model.open(cache) as reader, model.open(cache) as copy, begun(copy) as writer:
        model.write(writer, 0, 0)
        with reader.path(0).open("rb") as opened:
            model.write(writer, 0, 1)
            assert opened.read() == model.data[0]
        assert reader.complete


def test_names_that_climb_are_refused(cache: Cache) -> None:
    good = Model({"a": [5]}).files[0]
    for path in ["../a", "/a", "a/../../b", "", "a//b", "a\\b", "a\0", ".coldstream/journal", ".ColdStream/x", "."]:
        with pytest.raises(IntegrityError):
            cache.open(uri=URI, name="org/model", version="1", files=[replace(good, path=path)])
        with Model({}).open(cache):
            pass
    for name in ["../x", "a/../b", "/x", "", ".hidden", "a b"]:
        with pytest.raises(UsageError):
            cache.open(uri=URI, name=name, version="1", files=[good])
    for version in ["", "..", ".x", "a/b", "x" * 201, "a b"]:
        with pytest.raises(UsageError):
            cache.open(uri=URI, name="org/model", version=version, files=[good])
    for files in ([good, good], [good, replace(good, path="a/b")], [replace(good, size=6)], [replace(good, stops=())]):
        with pytest.raises(IntegrityError):
            cache.open(uri=URI, name="org/model", version="1", files=files)
    assert {path.parts[0] for path in map(Path, files_below(cache.root))} == {"latest", "lock", "models"}
    assert {entry.bytes_total for entry in cache.entries()} == {0}
