"""`coldstream serve` around a `vllm` that starts at once: bundles restored, refused, published, one line for each."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from coldstream.node.http_endpoint import free_port
from tests.checkpoints import sharded_checkpoint
from tests.e2e.command import Command
from tests.servers.fake_vllm import fake_vllm

NAME = "org/m"
SECRET = "s" * 40


@pytest.fixture
def command(tmp_path: Path) -> Command:
    made = Command(None, "", cwd=tmp_path)
    made.environ |= {
        "COLDSTREAM_STORE": str(tmp_path / "store"),
        "COLDSTREAM_CACHE_DIR": str(tmp_path / "cache"),
        "COLDSTREAM_BUNDLE_KEY": SECRET,
    }
    folder = tmp_path / "m"
    folder.mkdir()
    for path, content in sharded_checkpoint(shards=1, layers=1).items():
        (folder / path).write_bytes(content)
    fake_vllm(tmp_path / "env")
    made.run("upload", str(folder), "--as", NAME)
    return made


def served(command: Command, *arguments: str, wait: str = "warm-start bundle: ") -> str:
    """Starts, waits for a line after "ready", and ends it; what was said."""
    port = str(free_port())
    vllm = str(command.cwd / "env/bin/vllm")
    flags = () if "--" in arguments else ("--",)
    process = command.start("serve", NAME, "--vllm", vllm, *arguments, *flags, "--port", port, "--host", "127.0.0.1")
    said: list[str] = []
    assert process.stderr is not None
    with process:
        for line in process.stderr:
            said.append(line)
            text = "".join(said)
            if "ready in" in text and wait in text.partition("ready in")[2]:
                break
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    text = "".join(said) + err + out
    assert process.returncode == 0, text
    assert SECRET not in text
    assert "Traceback" not in text
    return text


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if "warm-start bundle" in line]


def bundles(command: Command) -> list[Path]:
    return sorted((command.cwd / "store/.coldstream/bundles").rglob("*.bundle"))


def new_node(command: Command) -> None:
    shutil.rmtree(command.cwd / "cache")


def test_the_second_node_builds_nothing(command: Command) -> None:
    first = served(command)
    assert first.count("BUILT") == 2
    assert "SECRETS []" in first, "vLLM does not get the signing key"
    (said,) = lines(first)
    assert "published" in said
    new_node(command)
    second = served(command, wait="\n")
    assert "BUILT" not in second
    (said,) = lines(second)
    assert "restored" in said
    third = served(command, wait="\n")
    assert "BUILT" not in third
    assert lines(third) == [], "nothing to say: they lie here"


def test_other_flags_have_other_caches(command: Command) -> None:
    served(command)
    vllm = str(command.cwd / "env/bin/vllm")
    shown = [
        json.loads(command.run("serve", NAME, "--vllm", vllm, "--print-env", "--json", "--", *flags)[0])["environment"]
        for flags in ((), ("--port", "1"), ("--dtype", "float32"))
    ]
    roots = [next(line for line in found if "VLLM_CACHE_ROOT" in line) for found in shown]
    assert roots[0] == roots[1]
    assert roots[0] != roots[2]
    assert "unset COLDSTREAM_BUNDLE_KEY" in shown[0]


def test_a_bundle_that_does_not_fit_says_why(command: Command) -> None:
    """coldstream serve with one flag, then on another node with another"""
    served(command, "--", "--max-num-batched-tokens", "4096")
    new_node(command)
    said = lines(served(command, "--", "--max-num-batched-tokens", "8192"))
    assert said[0] == (
        "warm-start bundle: not used, the bundle in the bucket was built "
        "with --max-num-batched-tokens 4096 (this is 8192)"
    )
    assert "published" in said[1], "what is said before vLLM starts hides nothing that is said after"
    new_node(command)
    command.environ["COLDSTREAM_BUNDLE_KEY"] = "t" * 40
    said = lines(served(command, "--", "--max-num-batched-tokens", "1", wait="\n"))
    assert not any("built with" in line for line in said), "others' bundles are nothing to go by"


@pytest.mark.parametrize("how", ["tampered", "truncated", "foreign"])
def test_a_bundle_that_is_refused_fails_no_start(command: Command, how: str) -> None:
    served(command)
    new_node(command)
    (pointer,) = bundles(command)
    if how == "tampered":
        pointer.write_bytes(pointer.read_bytes().replace(b"0.32.0", b"0.33.0"))
    elif how == "truncated":
        pointer.write_bytes(pointer.read_bytes()[:100])
    else:
        command.environ["COLDSTREAM_BUNDLE_KEY"] = "t" * 40
    text = served(command)
    assert text.count("BUILT") == 2
    assert "was rejected" in lines(text)[0]
    assert "not signed" in lines(text)[0]
    assert "published" in lines(text)[1]


def test_without_a_key_it_is_off_and_says_why(command: Command) -> None:
    del command.environ["COLDSTREAM_BUNDLE_KEY"]
    text = served(command, wait="\n")
    (said,) = lines(text)
    assert "COLDSTREAM_BUNDLE_KEY is not set" in said
    assert f"BUILT {command.cwd}/env/vllm" in text, "vLLM's own caches are left alone"
    assert bundles(command) == []
    command.environ["COLDSTREAM_BUNDLE_KEY"] = "short"
    assert "has 5 characters" in lines(served(command, wait="\n"))[0]
    command.environ["COLDSTREAM_BUNDLE_KEY"] = SECRET
    assert lines(served(command, "--bundle", "off", wait="\n")) == []


def test_read_restores_and_does_not_publish(command: Command) -> None:
    assert "not published" in lines(served(command, "--bundle", "read"))[0]
    assert bundles(command) == []


def test_it_ends_while_it_publishes(command: Command) -> None:
    """Stopped right after it answers: nothing hangs, and a half publication counts for nothing."""
    served(command, wait="\n")
    published = bool(bundles(command))
    new_node(command)
    assert served(command, wait="\n").count("BUILT") == (0 if published else 2)
