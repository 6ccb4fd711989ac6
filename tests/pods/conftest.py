"""A bucket with a runtime and a model, and containers that have neither."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import pytest

from tests.pods import containers
from tests.pods.containers import Podman
from tests.servers.stores import rclone_server
from tests.vllm.conftest import PYTHON, clean_environ, run_inside

COMPOSE = "podman-compose==1.6.0"
IMAGE = "docker.io/library/python:slim"
MODEL = "org/Llama"
BUCKET = "weights"
# As OpenShift assigns them.
UID = 1000910000
CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
CPU_FLAGS = ("--enforce-eager", "--max-model-len", "256", "--shutdown-timeout", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives each the time that vLLM takes to start on a busy machine."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.pods)
            item.add_marker(pytest.mark.timeout(900))


@dataclass(frozen=True)
class Origin:
    """What a node gets its files from.

    Attributes:
        environ: The bucket's settings.
        digest: Of the published runtime.
        start: The bootstrap program.
        env_file: `environ` and more, for containers.
        answers: What the model has said, in any of the scenarios.
    """

    environ: dict[str, str]
    digest: str
    start: Path
    env_file: Path
    answers: set[str] = field(default_factory=set)

    def confirm(self, answer: str) -> None:
        """Checks that the model says the same on every node, as its decoding is greedy."""
        self.answers.add(answer)
        assert answer
        assert len(self.answers) == 1, self.answers

    def coldstream(self, *arguments: str) -> str:
        """Runs coldstream on the machine of a user; what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "coldstream", *arguments],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="session")
def podman(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Podman]:
    """With the image IMAGE, which has Python and nothing else."""
    if lack := containers.missing():
        pytest.skip(f"containers need {lack}")
    cache: pytest.Cache | None = request.config.cache
    assert cache is not None
    folder = tmp_path_factory.mktemp("podman")
    with containers.podman(folder) as command:
        if refusal := command.refusal(folder / "one-program.tar"):
            pytest.skip(f"podman runs no containers on this machine: {refusal}")
        archive = containers.base_image(cache.mkdir("pods") / "base.tar")
        command("import", str(archive), IMAGE)
        yield command


@pytest.fixture(scope="session")
def origin(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    folder = tmp_path_factory.mktemp("origin")
    # Without it, rclone reads all of an image for each of its chunks.
    with mock.patch.dict(os.environ, {"RCLONE_ETAG_HASH": "none"}), rclone_server(folder / "s3") as server:
        server.create_bucket(BUCKET)
        environ = clean_environ(**server.environ(BUCKET))
        env_file = folder / ".env"
        settings = {**server.environ(BUCKET), **CPU}
        env_file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        run_inside("tests.vllm.models", "llama", folder / "model")
        made = Origin(environ, "", folder / "start.py", env_file)
        made.coldstream("upload", str(folder / "model"), "--as", MODEL)
        published = made.coldstream("runtime", "publish", "--from", str(PYTHON.parents[1]), "--json")
        made.coldstream("runtime", "bootstrap", "--output", str(made.start))
        yield Origin(environ, json.loads(published)["digest"], made.start, env_file)


@pytest.fixture(scope="session")
def compose(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """podman-compose, in an environment of its own."""
    folder = tmp_path_factory.mktemp("compose")
    venv.create(folder, with_pip=True)
    pip = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, COMPOSE], check=True)
    return folder / "bin/podman-compose"


@pytest.fixture
def memory() -> Iterator[Path]:
    """A volume in memory, as large as the kubelet makes that of the generated files."""
    with tempfile.TemporaryDirectory(prefix="coldstream-test-") as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", folder], check=True)
        try:
            yield Path(folder)
        finally:
            # At once, even if a process of a container is still ending.
            subprocess.run(["umount", "--lazy", folder], check=True)
