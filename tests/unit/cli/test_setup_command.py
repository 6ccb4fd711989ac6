"""The file that `coldstream setup` writes."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from coldstream.cli import setup_command
from coldstream.errors import ConfigError, DiskError
from coldstream.settings import load_settings

KEYS = {"R2_ACCESS_KEY": "access-key-0000000000", "R2_SECRET_KEY": "secret-key-0000000000"}


def test_the_file_must_be_writable(tmp_path: Path) -> None:
    """Checked before the questions; a later change is still a one-line error."""
    setup_command.check_place(tmp_path / ".env")
    with pytest.raises(DiskError, match="its directory does not exist"):
        setup_command.check_place(tmp_path / "none/.env")
    with pytest.raises(DiskError, match="it is a directory"):
        setup_command.check_place(tmp_path)
    with pytest.raises(DiskError, match="No such file or directory"):
        setup_command.write(load_settings(environ=KEYS), tmp_path / "none/.env", {})


def test_shells_and_containers_read_the_file_alike(tmp_path: Path) -> None:
    """Also docker, podman and kubectl, which take everything after the first = literally."""
    answers = {
        "R2_ENDPOINT": "https://0123456789abcdef.eu.r2.cloudflarestorage.com",
        "R2_BUCKET": "my-models",
        "R2_ACCESS_KEY": "AKIA0123456789",
        "R2_SECRET_KEY": "wJalr/XUtnFEMI+K7MDENG=bPx%RfiCY,z:q@x_y.z",
        "R2_SESSION_TOKEN": "FwoGZXIvYXdzE==",
        "HF_TOKEN": "hf_abcDEF",
    }
    path = tmp_path / ".env"
    path.write_text("# mine\nR2_BUCKET='old'\nOTHER=1\n")
    assert len(setup_command.write(load_settings(answers, environ={}), path, {})) == 1, "no warning"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    lines = [line for line in path.read_text().splitlines() if line[0] != "#"]
    raw = dict(line.split("=", 1) for line in lines)
    assert raw == {"OTHER": "1", **answers}
    assert load_settings(env_file=path, environ={}).values == answers
    process = subprocess.run(
        ["sh", "-c", f"set -a; . {path}; env -0"], capture_output=True, text=True, env={}, check=True
    )
    assert raw.items() <= dict(line.split("=", 1) for line in process.stdout.split("\0") if line).items()


def test_warns_of_a_quoted_value(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    odd = "a$b#c&d"
    notes = setup_command.write(load_settings({"HF_TOKEN": odd, "R2_BUCKET": "models"}, environ={}), path, {})
    assert notes[1].startswith("warning: HF_TOKEN is in quotes, which docker")
    assert odd not in notes[1]
    assert load_settings(env_file=path, environ={}).get("HF_TOKEN") == odd
    with pytest.raises(ConfigError, match="HF_TOKEN contains a quote"):
        setup_command.write(load_settings({"HF_TOKEN": "a'b"}, environ={}), path, {})


@pytest.mark.parametrize("text", ["R2_BUCKET=models\n".encode("utf-16"), b"R2_BUCKET=\xff\n"])
def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "env"
    file.write_bytes(text)
    with pytest.raises(ConfigError, match="env is not UTF-8"):
        setup_command.write(load_settings(environ=KEYS), file, {})
