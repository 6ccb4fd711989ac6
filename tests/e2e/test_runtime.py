"""`coldstream runtime` against a bucket, from a real environment to its start on a bare node."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from coldstream.runtime import runtime_store
from tests.conftest import fresh_bucket, quick_store
from tests.e2e.command import Command
from tests.runtimes import BOOTSTRAP, SQUASHFS, BareNode, Venv
from tests.servers.stores import S3Server

pytestmark = SQUASHFS


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Venv:
    return Venv(tmp_path_factory.mktemp("environment") / "venv")


@pytest.fixture
def command(moto: S3Server, tmp_path: Path) -> Command:
    command = Command(moto, fresh_bucket(moto), cwd=tmp_path)
    command.environ["TMPDIR"] = str(tmp_path)
    return command


def test_from_an_environment_to_a_bare_node(command: Command, venv: Venv, tmp_path: Path) -> None:
    """coldstream runtime publish --from VENV; list; show; verify; remove; bootstrap"""
    out, err = command.run("runtime", "list")
    assert "no runtimes in s3://" in out
    assert "coldstream runtime publish" in err
    command.run("runtime", "show", code=10)

    planned = command.json("runtime", "publish", "--from", str(venv.root), "--dry-run")
    assert planned["published"] is False
    assert command.json("runtime", "list")["runtimes"] == []

    out, err = command.run("runtime", "publish", "--from", str(venv.root))
    assert f"packing {venv.root}" in err
    first = out.splitlines()[0]
    assert first == f"published   sha256:{planned['digest']}"
    digest = planned["digest"]
    assert "0.32.0+cpu" in out
    assert "needs        Linux on " in out
    again = command.json("runtime", "publish", "--from", str(venv.root))
    assert (again["digest"], again["published"]) == (digest, False)
    assert not list(tmp_path.glob("coldstream-runtime-*"))

    (entry,) = command.json("runtime", "list")["runtimes"]
    assert (entry["digest"], entry["state"], entry["platform"]["vllm"]) == (digest, "ready", "0.32.0+cpu")
    assert digest[:12] in command.run("runtime", "list")[0]
    assert command.json("runtime", "show") == command.json("runtime", "show", digest[:8]) == entry
    assert command.run("runtime", "verify")[0].startswith(f"verified   sha256:{digest}")

    command.run("runtime", "bootstrap", "--output", "start.py")
    assert (tmp_path / "start.py").read_text() == BOOTSTRAP.read_text() == command.run("runtime", "bootstrap")[0]
    names = ("R2_ENDPOINT", "R2_BUCKET", "R2_ACCESS_KEY", "R2_SECRET_KEY")
    node = BareNode(tmp_path / "node", {name: command.environ[name] for name in names})
    moved = venv.root.rename(venv.root.with_name("gone"))
    try:
        ended = node.start(f"sha256:{digest}", "serve", "org/m", program=str(tmp_path / "start.py"))
    finally:
        moved.rename(venv.root)
    assert (ended.code, ended.out, ended.err) == (0, "coldstream ['serve', 'org/m']\n", "")

    assert command.json("runtime", "remove", digest[:8], "--dry-run")["removed"] is False
    command.run("runtime", "remove", digest[:8], code=2)
    assert command.json("runtime", "list")["runtimes"] != []
    assert command.json("runtime", "remove", digest[:8], "--yes") == {"digests": [digest], "removed": True}
    assert command.json("runtime", "list")["runtimes"] == []
    node.refused("0" * 64, 10, "does not exist")


def test_a_damaged_runtime(command: Command, venv: Venv, moto: S3Server) -> None:
    """coldstream runtime verify; exit code 13"""
    digest = command.json("runtime", "publish", "--from", str(venv.root))["digest"]
    store = quick_store(moto.environ(command.environ["R2_BUCKET"]))
    key = f"{runtime_store.ROOT}/{digest}/image"
    size = next(info.size for info in store.list(key))
    store.put(key, b"\0" * size)
    _, err = command.run("runtime", "verify", code=13)
    assert "is damaged: " in err
    assert f"hint:  run: coldstream runtime remove {digest[:12]}" in err
    store.put(key, b"shorter")
    assert command.json("runtime", "list")["runtimes"][0]["state"] == "damaged"
    assert "damaged" in command.run("runtime", "list")[0]
    command.run("runtime", "verify", code=10)
    command.run("runtime", "verify", digest[:8], code=13)
    assert command.json("runtime", "publish", "--from", str(venv.root))["published"]
    command.run("runtime", "verify")


def test_what_cannot_be_published(command: Command, venv: Venv, tmp_path: Path) -> None:
    """coldstream runtime publish --from …; exit codes 2 and 10"""
    _, err = command.run("runtime", "publish", "--from", str(tmp_path), code=10)
    assert "is not a Python environment" in err
    _, err = command.run("runtime", "publish", "--from", str(tmp_path / "none"), code=2)
    bare = tmp_path / "bare"
    subprocess.run([venv.root / "bin/python3", "-m", "venv", "--without-pip", bare], check=True)
    _, err = command.run("runtime", "publish", "--from", str(bare), code=10)
    assert f"vllm is not installed in {bare}" in err
    command.environ["PATH"] = str(tmp_path)
    _, err = command.run("runtime", "publish", "--from", str(venv.root), "--without-vllm", code=2)
    assert json.loads(command.run("runtime", "list", "--json")[0])["runtimes"] == []


@pytest.mark.parametrize("digest", ["76", "sha256:7", "zzzz"])
def test_digests_that_name_nothing(command: Command, digest: str) -> None:
    command.run("runtime", "show", digest, code=10 if digest == "zzzz" else 2)
    command.run("runtime", "remove", digest, "--yes", code=10 if digest == "zzzz" else 2)
