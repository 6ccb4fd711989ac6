"""No secret is printed, written, or handed to a process that has no use for it, whatever the command and its end."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from coldstream.serve.endpoint import free_port
from tests.checkpoints import expected_tensors, sharded_checkpoint
from tests.e2e.command import Command
from tests.servers.fake_vllm import fake_vllm
from tests.servers.ranged import RangedServer

TOKEN = "marker-url-token"


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return sharded_checkpoint(shards=2, layers=1)


@pytest.fixture
def command(tmp_path: Path) -> Command:
    made = Command(None, "", cwd=tmp_path)
    made.environ |= {"COLDSTREAM_CACHE_DIR": str(tmp_path / "cache")}
    return made


def told(process: subprocess.Popen[str], word: str) -> str:
    """What a process writes to standard output, as far as a line that holds the word."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if word in line:
            return text
    raise AssertionError(f"{text}\n{process.communicate()[1]}")


def written(folder: Path, secret: str) -> list[Path]:
    """The files below a folder that hold a secret."""
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_a_url_with_a_token_is_served_and_its_token_stays_with_us(
    command: Command, files: dict[str, bytes], tmp_path: Path
) -> None:
    """coldstream serve 'https://host/org/m?token=…'"""
    fake_vllm(tmp_path / "env")
    command.environ["FAKE_VLLM_READS"] = "1"
    size = sum(map(len, expected_tensors(tmp_path / "expected", files).values()))
    flags = ("--host", "127.0.0.1", "--port", str(free_port()))
    with RangedServer({f"/org/m/{path}": content for path, content in files.items()}, query_token=TOKEN) as server:
        arguments = (f"{server.url}/org/m?token={TOKEN}", "--vllm", str(tmp_path / "env/bin/vllm"), "--bundle", "off")
        with command.start("serve", *arguments, "--", *flags) as process:
            out = told(process, "READ")
            process.send_signal(signal.SIGTERM)
            rest, err = process.communicate(timeout=60)
        assert process.returncode in {0, 128 + signal.SIGTERM}, err
        assert f"READ {size} of {server.url}/org/m\n" in out
        command.process("serve", f"{server.url}/org/m?token=not-{TOKEN}", "--vllm", arguments[2], code=12)
    assert TOKEN not in out + rest + err
    assert not written(tmp_path, TOKEN)
