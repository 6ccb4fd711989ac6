"""The image of a folder, and the unpacker that goes with it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from coldstream.errors import DiskError, NotFoundError
from coldstream.runtime import image
from coldstream.runtime.runtime_manifest import CHUNK_BYTES, Platform, decode_manifest, encode_manifest
from tests.runtimes import SQUASHFS

pytestmark = SQUASHFS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of several sizes, a link, a program, and a file that only its owner may read."""
    root = tmp_path / "root"
    (root / "lib/empty").mkdir(parents=True)
    (root / "lib/none").write_bytes(b"")
    (root / "lib/one").write_bytes(b"1")
    (root / "lib/large").write_bytes(os.urandom(9_000_000))
    (root / "program").write_text("#!/bin/sh\necho it runs\n")
    (root / "program").chmod(0o755)
    (root / "link").symlink_to("lib/one")
    return root


def unpacked(path: Path, tmp_path: Path) -> Path:
    """What the published unpacker makes of it, without anything of this system's environment."""
    tool, out = tmp_path / "tool", tmp_path / "out"
    with tarfile.open(fileobj=BytesIO(image.unpacker())) as archive:
        assert all(member.isfile() and "/" not in member.name for member in archive)
        archive.extractall(tool)
    program = [tool / "ld.so", "--library-path", tool, tool / "unsquashfs", "-q", "-n", "-no-xattrs", "-d", out, path]
    subprocess.run(program, check=True, env={}, stdout=subprocess.DEVNULL)
    return out


def test_an_image_unpacks_to_what_was_packed(folder: Path, tmp_path: Path) -> None:
    packed = image.pack(folder, tmp_path / "image")
    out = unpacked(tmp_path / "image", tmp_path)
    for path in folder.rglob("*"):
        copy = out / path.relative_to(folder)
        assert copy.is_symlink() == path.is_symlink()
        assert copy.is_dir() == path.is_dir()
        if path.is_file():
            assert copy.read_bytes() == path.read_bytes()
            assert copy.stat().st_mode == path.stat().st_mode
    assert os.readlink(out / "link") == "lib/one"
    assert subprocess.run([out / "program"], check=True, capture_output=True).stdout == b"it runs\n"
    data = (tmp_path / "image").read_bytes()
    assert packed.size == len(data)
    assert packed.files == 5
    blocks = sum(path.lstat().st_size + 4095 >> 12 << 12 for path in folder.rglob("*") if not path.is_dir())
    assert blocks <= packed.unpacked <= blocks + (1 << 16)
    assert packed.chunk_bytes == CHUNK_BYTES
    starts = range(0, len(data), CHUNK_BYTES)
    assert packed.chunks == [hashlib.sha256(data[start : start + CHUNK_BYTES]).hexdigest() for start in starts]


def test_the_same_files_give_the_same_image(folder: Path, tmp_path: Path) -> None:
    """Whatever their times, and in whatever place and order they were written."""
    first = image.pack(folder, tmp_path / "first")
    other = tmp_path / "elsewhere/other"
    other.parent.mkdir()
    shutil.copytree(folder, other, symlinks=True)
    for path in [*other.rglob("*"), other]:
        os.utime(path, (1e9, 1e9), follow_symlinks=False)
    assert image.pack(other, tmp_path / "second") == first


def test_a_packed_runtime_describes_itself(folder: Path) -> None:
    platform = Platform(machine="x86_64", glibc="2.17", python="3.11", vllm="1", torch="2", coldstream="0.1")

    def fill(out: Path) -> Platform:
        shutil.copytree(folder, out, symlinks=True, dirs_exist_ok=True)
        return platform

    with image.packed(fill) as runtime:
        manifest = runtime.manifest
        assert manifest.platform == platform
        assert runtime.image.stat().st_size == manifest.image.size
        assert hashlib.sha256(runtime.unpacker).hexdigest() == manifest.unpacker.sha256
        assert decode_manifest(encode_manifest(manifest), manifest.digest) == manifest
    assert not runtime.image.exists()


def test_a_full_disk(folder: Path) -> None:
    with pytest.raises(DiskError, match="cannot pack the runtime"):
        image.pack(folder, Path("/nonexistent/image"))


def test_without_squashfs_tools(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    with pytest.raises(NotFoundError, match="mksquashfs is not installed") as caught:
        image.pack(folder, tmp_path / "image")
    assert "apt install squashfs-tools" in (caught.value.hint or "")
    with pytest.raises(NotFoundError, match="unsquashfs is not installed"):
        image.unpacker()
