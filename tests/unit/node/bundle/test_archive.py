"""Archives that are signed may still be wrong: nothing leaves the folder, whatever they hold."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldstream.errors import IntegrityError
from coldstream.node.bundle.archive import pack, unpack


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    out.seek(0)
    return out


def member(name: str, content: bytes = b"x", **changes: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in changes.items():
        setattr(info, field, value)
    return info, content


def into(tmp_path: Path) -> Path:
    folder = tmp_path / "inside"
    folder.mkdir()
    return folder


def test_round_trip(tmp_path: Path) -> None:
    source = tmp_path / "source"
    files = {"a/b/c.so": b"\x7fELF" * 1000, "empty": b"", "d.json": b"{}", "naïve/ü": b"u"}
    for path, content in files.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(content)
    os.chmod(source / "a/b/c.so", 0o755)
    os.utime(source / "d.json", ns=(0, 1_700_000_000_123_456_000))
    out = io.BytesIO()
    packed = pack(str(source), [*files, "gone"], out)
    assert (packed.files, packed.bytes, packed.size) == (4, sum(map(len, files.values())), len(out.getvalue()))
    again = io.BytesIO()
    assert pack(str(source), reversed(list(files)), again).sha256 == packed.sha256, "the same content, the same name"
    out.seek(0)
    target = into(tmp_path)
    unpack(out, target, files=4, size=packed.bytes)
    assert {str(p.relative_to(target)): p.read_bytes() for p in target.rglob("*") if p.is_file()} == files
    assert (target / "a/b/c.so").stat().st_mode & 0o777 == 0o700
    assert (target / "empty").stat().st_mode & 0o777 == 0o600
    assert abs((target / "d.json").stat().st_mtime_ns - 1_700_000_000_123_456_000) < 1000


@pytest.mark.parametrize(
    "hostile",
    [
        member("../outside"),
        member("a/../../outside"),
        member("/tmp/outside"),
        member("a//b"),
        member("a\\b"),
        member("a\nb"),
        member(""),
        member("link", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("link", b"", type=tarfile.LNKTYPE, linkname="../outside"),
        member("device", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("pipe", b"", type=tarfile.FIFOTYPE),
        member("folder", b"", type=tarfile.DIRTYPE),
        member("sparse", b"x" * 512, type=tarfile.GNUTYPE_SPARSE),
    ],
    ids=lambda pair: repr(pair[0].name) + str(pair[0].type),
)
def test_what_is_refused(tmp_path: Path, hostile: tuple[tarfile.TarInfo, bytes]) -> None:
    folder = into(tmp_path)
    with pytest.raises(IntegrityError):
        unpack(archive(member("fine"), hostile), folder, files=10, size=10_000)
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
    assert {path.name for path in folder.rglob("*")} <= {"fine"}
    assert not (folder / "fine").is_symlink()


def test_a_name_twice_and_a_file_below_a_file_are_refused(tmp_path: Path) -> None:
    folder = into(tmp_path)
    with pytest.raises(IntegrityError, match="twice"):
        unpack(archive(member("a"), member("a")), folder, files=10, size=100)
    with pytest.raises(IntegrityError):
        unpack(archive(member("b"), member("b/c")), folder, files=10, size=100)


def test_it_is_no_larger_than_it_says(tmp_path: Path) -> None:
    """A bomb: a few kilobytes that would fill the disk."""
    bomb = archive(member("zeros", bytes(50_000_000)))
    assert len(bomb.getvalue()) < 100_000
    folder = into(tmp_path)
    with pytest.raises(IntegrityError, match="more than"):
        unpack(bomb, folder, files=1, size=1_000_000)
    assert sum(path.stat().st_size for path in folder.rglob("*")) == 0
    many = archive(*(member(f"f{i}", b"") for i in range(100)))
    with pytest.raises(IntegrityError, match="more than"):
        unpack(many, folder, files=10, size=1_000_000)
    assert len(list(folder.rglob("*"))) <= 10


def test_broken_archives_are_refused(tmp_path: Path) -> None:
    whole = archive(member("a", os.urandom(100_000))).getvalue()
    folder = into(tmp_path)
    for data in (whole[:-5], whole[: len(whole) // 2], b"", b"no archive", gzip.compress(b"no tar" * 1000)):
        with pytest.raises(IntegrityError, match=r"broken|fewer"):
            unpack(io.BytesIO(data), folder / str(len(data)), files=2, size=100_000)
    with pytest.raises(IntegrityError, match="fewer"):
        unpack(io.BytesIO(whole), folder, files=2, size=100_000)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=200, deadline=None
)
@given(st.data())
def test_changed_bytes_do_no_harm(tmp_path: Path, data: st.DataObject) -> None:
    """What a broken header says is refused or harmless: nothing but our errors comes out, and nothing leaves."""
    raw = bytearray(gzip.decompress(archive(member("a/b", b"x" * 700), member("c", b"y" * 10)).getvalue()))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path / f"f{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    with contextlib.suppress(IntegrityError):
        unpack(io.BytesIO(gzip.compress(bytes(raw))), folder, files=2, size=710)
    assert all(path.name.startswith("f") for path in tmp_path.iterdir())
