"""Volumes as a kubelet hands them to pods, and containers whose user has no name, no home and no rights."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from coldstream.cache.cache import Cache, configured
from coldstream.errors import DiskError
from coldstream.machine.disk import can_be_created
from tests.unit.cache.cached_models import URI, Model
from tests.users import AS_ROOT, run_as

# As OpenShift's, which are in no passwd; their group is root's, and a volume may have one of its own.
UID, OTHER, FS_GROUP = 1000910000, 1000920000, 1000910001
MODES = [0o777, 0o2777, 0o2775]
# Without it, how full the machine's disk is decides whether models are cached.
LIMIT = "20GB"

pytestmark = AS_ROOT


@pytest.fixture
def place(cache: Cache) -> Iterator[Path]:
    """A folder that every user may enter; pytest's are root's alone."""
    # Reads all modules that the forks will need, some of which another user might not see.
    Model().fill(cache)
    folder = Path(tempfile.mkdtemp(prefix="volumes-", dir="/tmp"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


def volume_in(place: Path, mode: int, *, uid: int = 0) -> Path:
    folder = place / "volume"
    folder.mkdir()
    os.chown(folder, uid, FS_GROUP if mode & stat.S_ISGID else 0)
    folder.chmod(mode)
    return folder


def cache_in(volume: Path) -> Cache:
    return configured(str(volume), LIMIT)


def keeps_a_model(volume: Path) -> None:
    """Fills the cache, and finds the model again as the next container of the pod would."""
    cache, model = cache_in(volume), Model()
    assert cache.root == volume / f"coldstream-{os.geteuid()}"
    model.fill(cache)
    with model.open(cache_in(volume)) as copy:
        assert copy.complete
        assert model.check(copy) == len(model.chunks())
    assert cache_in(volume).latest(URI) is not None
    for path in (cache.root, *cache.root.rglob("*")):
        status = path.lstat()
        assert status.st_uid == os.geteuid()
        assert status.st_mode & 0o077 == 0, path


@pytest.mark.parametrize("uid", [0, UID])
@pytest.mark.parametrize("owner", [0, OTHER])
@pytest.mark.parametrize("mode", MODES)
def test_a_volume_that_others_can_write_to(place: Path, mode: int, owner: int, uid: int) -> None:
    volume = volume_in(place, mode, uid=owner)
    run_as(uid, lambda: keeps_a_model(volume), groups=[FS_GROUP])
    assert stat.S_IMODE(volume.stat().st_mode) == mode


def test_two_users_of_a_volume_do_not_see_each_other_s_models(place: Path) -> None:
    volume = volume_in(place, 0o2777)
    run_as(UID, lambda: keeps_a_model(volume))

    def act() -> None:
        assert list(cache_in(volume).entries()) == []
        keeps_a_model(volume)
        with pytest.raises(PermissionError):
            os.listdir(volume / f"coldstream-{UID}")

    run_as(OTHER, act)
    assert sorted(os.listdir(volume)) == [f"coldstream-{UID}", f"coldstream-{OTHER}"]


def test_another_user_s_folder_in_the_place_of_ours_is_refused(place: Path) -> None:
    volume = volume_in(place, 0o777)

    def act() -> None:
        with pytest.raises(DiskError, match=f"belongs to user {OTHER}, not to user {UID}"):
            Model().fill(cache_in(volume))

    run_as(OTHER, (volume / f"coldstream-{UID}").mkdir)
    run_as(UID, act)


@pytest.mark.parametrize("mode", [0o755, 0o2775])
def test_a_volume_that_is_not_writable_is_named(place: Path, mode: int) -> None:
    """For a group that the container is not in, for example."""
    volume = volume_in(place, mode)

    def act() -> None:
        with pytest.raises(DiskError, match=rf"cannot use the cache at {volume}.*: Permission denied") as caught:
            Model().fill(cache_in(volume))
        assert "COLDSTREAM_CACHE_DIR" in (caught.value.hint or "")

    run_as(UID, act)


@pytest.mark.parametrize("home", [None, "/", "/nonexistent"])
def test_a_user_without_a_name_and_without_a_home(place: Path, home: str | None) -> None:
    volume = volume_in(place, 0o1777)

    def act() -> None:
        tempfile.tempdir = str(volume)
        for name in ("XDG_CACHE_HOME", "HOME"):
            os.environ.pop(name, None)
        if home is not None:
            os.environ["HOME"] = home
        cache = configured(None, LIMIT)
        assert cache.root == volume / f"coldstream-{UID}"
        Model().fill(cache)

    run_as(UID, act)


def test_a_home_is_used_if_it_can_be(place: Path) -> None:
    home, sealed = place / "home", place / "sealed"
    for folder, owner in ((home, UID), (sealed, 0)):
        folder.mkdir(mode=0o755)
        os.chown(folder, owner, 0)

    def act() -> None:
        os.environ.pop("XDG_CACHE_HOME", None)
        os.environ["HOME"] = str(home)
        assert configured(None, LIMIT).root == home / ".cache/coldstream"
        assert can_be_created(home)
        assert not can_be_created(sealed / ".cache/coldstream")
        assert can_be_created(sealed)
        # What the user chose is used, or refused.
        os.environ["XDG_CACHE_HOME"] = str(sealed)
        assert configured(None, LIMIT).root == sealed / "coldstream"

    run_as(UID, act)
