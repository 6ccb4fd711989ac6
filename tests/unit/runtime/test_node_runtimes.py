"""The runtimes on a node: listed, and removed unless they are in use."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from coldstream.cache.cache import configured
from coldstream.cli.cache_command import command
from coldstream.cli.session import State
from coldstream.errors import NotFoundError
from coldstream.runtime import node_runtimes
from coldstream.runtime.node_runtimes import NodeRuntime, evict
from tests.runtimes import MOUNT, SQUASHFS, BareNode, artificial_runtime
from tests.unit.cache.cached_models import Model

ONE, OTHER = "ab12" + "0" * 60, "cd34" + "0" * 60


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Our folder for runtimes in the place that the tests have."""
    folder = tmp_path / f"places/coldstream-runtimes-{os.geteuid()}"
    folder.mkdir(parents=True, mode=0o700)
    return folder


def bring(place: Path, digest: str, *, used: float = 1e9) -> Path:
    """An unpacked runtime, as the bootstrap program leaves it."""
    folder = place / digest
    (folder / "mount").mkdir(parents=True)
    (folder / "tree/bin").mkdir(parents=True)
    (folder / "tree/bin/python3").write_bytes(b"x" * 100_000)
    (folder / "used").write_text(Path("/proc/sys/kernel/random/boot_id").read_text())
    os.utime(folder / "used", (used, used))
    return folder


def listed(tmp_path: Path, chosen: str | None = None) -> list[NodeRuntime]:
    return node_runtimes.node_runtimes(tmp_path / "cache", chosen)


@contextmanager
def running(folder: Path) -> Iterator[None]:
    """What coldstream holds while it runs."""
    descriptor = os.open(folder / "used", os.O_WRONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    yield
    os.close(descriptor)


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(command, arguments, obj=State(), standalone_mode=False)
    if isinstance(result.exception, NotFoundError):
        raise result.exception
    assert result.exception is None, result.exception
    assert (result.return_value or 0) == code
    return result.stdout


def test_runtimes_are_listed(place: Path, tmp_path: Path) -> None:
    assert listed(tmp_path) == []
    bring(place, ONE, used=1000)
    bring(place, OTHER, used=2000)
    (place / "lock").touch()
    other, one = listed(tmp_path)
    assert (other.version, one.version) == (f"sha256:{OTHER}", f"sha256:{ONE}")
    assert 100_000 <= one.bytes < 150_000
    assert (one.mounted, one.in_use, one.used.timestamp()) == (False, False, 1000)
    elsewhere = tmp_path / "elsewhere"
    assert listed(tmp_path, str(elsewhere)) == []
    place.rename(tmp_path / place.name)
    assert len(node_runtimes.node_runtimes(tmp_path, None)) == 2  # the cache's own folder
    assert len(listed(tmp_path)) == 2  # beside a cache in a folder that is shared


def test_folders_of_others_are_not_ours(place: Path, tmp_path: Path) -> None:
    bring(place, ONE)
    place.rename(tmp_path / "planted")
    place.symlink_to(tmp_path / "planted")
    assert listed(tmp_path) == []
    place.unlink()
    (tmp_path / "planted").rename(place)
    if os.geteuid() == 0:
        os.chown(place, 12345, 0)
        assert listed(tmp_path) == []


def test_a_runtime_is_removed_unless_it_runs(place: Path, tmp_path: Path) -> None:
    folder = bring(place, ONE)
    (folder / "tree.part").mkdir()
    with running(folder):
        (entry,) = listed(tmp_path)
        assert entry.in_use
        assert not evict(entry)
    lock = os.open(place, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # a start that brings a runtime
    assert listed(tmp_path)[0].in_use
    assert not evict(entry)
    os.close(lock)
    assert (folder / "tree/bin/python3").exists()
    assert evict(entry)
    assert listed(tmp_path) == []


def test_a_half_removed_runtime_is_not_started(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bring(place, ONE)
    (entry,) = listed(tmp_path)
    remove = shutil.rmtree

    def killed(path: Path, **options: bool) -> None:
        if path == folder:
            raise KeyboardInterrupt
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        evict(entry)
    assert not (folder / "tree").exists()


def test_cache_list(place: Path) -> None:
    """coldstream cache list"""
    folder = bring(place, ONE)
    with running(folder):
        lines = run("list").splitlines()
    assert lines[-2].split() == ["RUNTIME", "SIZE", "STATE", "LAST", "USED", "FOLDER"]
    assert lines[-1].startswith(f"sha256:{ONE[:12]}")
    assert "unpacked, in use" in lines[-1]
    assert lines[-1].endswith(str(place))
    (entry,) = json.loads(run("list", "--json"))["runtimes"]
    assert (entry["version"], entry["folder"], entry["in_use"]) == (f"sha256:{ONE}", str(folder), False)


def test_cache_prune(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """coldstream cache prune sha256:ab12; --all; --older-than 1h; --keep 1GB"""
    model = Model({"w": [1000]})
    monkeypatch.setenv("COLDSTREAM_CACHE_DIR", str(tmp_path / "cache"))
    copy = model.fill(configured(str(tmp_path / "cache"), "20GB"), name="org/m", version="v1")
    one, other = bring(place, ONE, used=1000), bring(place, OTHER)
    os.utime(other / "used")
    with pytest.raises(NotFoundError, match="sha256:ffff is not in the cache"):
        run("prune", "sha256:ffff")
    with pytest.raises(NotFoundError, match="sha256: is not in the cache"):
        run("prune", "sha256:")
    run("prune", "--keep", "1GB")
    assert one.exists()
    assert "would remove   runtime   ab12" in run("prune", "--older-than", "1h", "--dry-run")
    assert one.exists()
    with running(one):
        run("prune", "sha256:ab12", code=3)
    assert one.exists()
    output = run("prune", "--older-than", "1h")
    assert "and 1 runtime" in output
    assert not one.exists()
    assert other.exists()
    run("prune", "sha256:cd34")
    assert not other.exists()
    assert copy.exists()
    bring(place, ONE)
    document = json.loads(run("prune", "--all", "--yes", "--json"))
    assert [entry["name"] for entry in document["removed"]] == ["org/m", "runtime"]
    assert not one.exists()
    assert not copy.exists()


@SQUASHFS
@MOUNT
def test_a_mounted_runtime_is_unmounted(place: Path, tmp_path: Path) -> None:
    runtime = artificial_runtime(tmp_path / "runtime", size=100_000)
    folder = place / runtime.digest
    (folder / "mount").mkdir(parents=True)
    runtime.image.rename(folder / "image")
    if subprocess.run(["mount", "-o", "loop,ro", folder / "image", folder / "mount"], check=False).returncode:
        pytest.skip("this machine does not mount")
    try:
        (entry,) = listed(tmp_path)
        assert entry.mounted
        assert entry.bytes < 200_000
        with (folder / "mount/bin/python3").open():
            assert not evict(entry)  # it is busy
        assert evict(entry)
        assert not folder.exists()
    finally:
        subprocess.run(["umount", folder / "mount"], check=False, capture_output=True)


@SQUASHFS
def test_a_started_runtime_is_in_use(place: Path, tmp_path: Path) -> None:
    """The bootstrap program holds a lock that the runtime inherits."""
    runtime = artificial_runtime(tmp_path / "runtime", size=100_000)
    folder = bring(place, runtime.digest)
    program = folder / "tree/bin/python3"
    program.write_text("#!/bin/sh\necho started\nread line </proc/self/fd/0\n")
    program.chmod(0o755)
    node = BareNode(place.parent, {})
    with node.begin(runtime.digest, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "started\n"
        (entry,) = listed(tmp_path)
        assert entry.in_use
        assert entry.used.timestamp() > 1e9
        assert not evict(entry)
        process.stdin.close()
        process.wait()
    assert evict(entry)
