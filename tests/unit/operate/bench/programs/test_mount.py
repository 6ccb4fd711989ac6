"""`mount.py`, without FUSE: rclone is a script, and a folder counts as mounted when that has made a file in it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from coldstream.operate.bench.programs import mount

MOUNTS = """
import pathlib, signal, sys, time
up = pathlib.Path(sys.argv[3], "up")
signal.signal(signal.SIGTERM, lambda *_: (up.unlink(), sys.exit()))
up.touch()
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def mounted_by_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda folder: Path(folder, "up").exists())


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, rclone: str, command: str) -> object:
    program = folder.parent / "rclone"
    program.write_text(f"#!{sys.executable}\n{rclone}\n")
    program.chmod(0o755)
    arguments = ["mount.py", str(program), "bucket:models/org/m", str(folder), sys.executable, "-c", command]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as caught:
        mount.main()
    return caught.value.code


def test_a_command_runs_in_the_mount_which_ends_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "mount"
    check = f"import pathlib; raise SystemExit(3 if pathlib.Path({str(folder / 'up')!r}).exists() else 4)"
    assert run(monkeypatch, folder, MOUNTS, check) == 3
    assert not [*folder.iterdir()]


def test_a_page_that_cannot_be_read_has_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder, crash = tmp_path / "mount", "import os, signal; os.kill(os.getpid(), signal.SIGBUS)"
    assert run(monkeypatch, folder, MOUNTS, crash) == "error: Bus error while reading from the mount"
    assert not [*folder.iterdir()]


def test_nothing_runs_where_the_mount_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    assert run(monkeypatch, tmp_path / "mount", "raise SystemExit(1)", f"open({str(ran)!r}, 'w')") == 1
    assert not ran.exists()


def test_rclone_is_configured_by_the_environment() -> None:
    aws = {"AWS_ENDPOINT_URL": "https://r2.example.com", "AWS_REGION": "auto", "AWS_CA_BUNDLE": "/ca.pem"}
    environ = mount.mount_environment(aws, cache=Path("/cache"), mode="full")
    assert environ["RCLONE_CONFIG"] == os.devnull, "a user's own remotes are not used"
    assert environ["RCLONE_CONFIG_BUCKET_ENDPOINT"] == "https://r2.example.com"
    assert environ["RCLONE_CONFIG_BUCKET_ENV_AUTH"] == "true"
    assert environ["RCLONE_CA_CERT"] == "/ca.pem"
    assert (environ["RCLONE_VFS_CACHE_MODE"], environ["RCLONE_CACHE_DIR"]) == ("full", "/cache")
    assert "RCLONE_CONFIG_BUCKET_ENDPOINT" not in mount.mount_environment({}, cache=Path("/cache"), mode="off")


def test_a_machine_without_fuse_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert mount.mount_refusal() == ("FUSE is not installed", "run: apt-get install fuse3")
    mount.unmount(tmp_path)
    program = tmp_path / "fusermount3"
    program.touch(mode=0o755)
    monkeypatch.setattr(mount, "_DEVICE", str(tmp_path / "fuse"))
    reason, hint = mount.mount_refusal() or ("", "")
    assert "is not accessible" in reason
    assert "--device" in hint
    (tmp_path / "fuse").touch()
    assert mount.mount_refusal() is None
