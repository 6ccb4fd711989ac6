"""One world for all scenarios, with a model in its bucket."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.checkpoints import expected_tensors, sharded_checkpoint
from tests.e2e.test_tune import CONFIG
from tests.launch.image import CHECKOUT, MissingError, image
from tests.launch.leaks import Processes, watched_processes
from tests.launch.stand_in import told
from tests.launch.world import BUCKET, BUCKET_ENDPOINT, World, missing, world

MODEL = "org/Tiny-Llama"
# Distinctive, so that they are found wherever they come to lie; the bundle's key has the length that it must have.
SECRETS = {
    "R2_ACCESS_KEY": "R2ACCESSZZZ7c1e",
    "R2_SECRET_KEY": "R2SECRETZZZ93b5f0d2a4",
    "VLLM_API_KEY": "VLLMKEYZZZ5e8801",
    "COLDSTREAM_BUNDLE_KEY": "BUNDLEKEYZZZ0123456789abcdef012345",
}


@dataclass(frozen=True)
class Stage:
    """Where the scenarios are played.

    Attributes:
        world: Running, with SkyPilot's API server.
        environ: The bucket and the secrets, for the commands of a user.
        weights: What the stand-in says when it has read the model's weights, all of them and as they are.
        processes: Command lines with secrets that were seen.
    """

    world: World
    environ: dict[str, str]
    weights: str
    processes: Processes

    def coldstream(self, *arguments: str, **options: object) -> str:
        """Runs coldstream as a user would."""
        argv = (sys.executable, "-m", "coldstream", *arguments)
        return self.world.run(*argv, environ=self.environ, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    if lack := missing():
        pytest.skip(f"a launch on this machine needs what is not here: {lack}")
    try:
        home = image(CHECKOUT / ".venv-sky/node")
    except MissingError as exc:
        pytest.skip(f"a launch on this machine needs what is not here: {exc}")
    folder = tmp_path_factory.mktemp("launch")
    files = {**sharded_checkpoint(shards=2), "config.json": json.dumps(CONFIG).encode()}
    weights = told(expected_tensors(folder / "model", files))
    for path, content in files.items():
        (folder / "model" / path).write_bytes(content)
    keys = (SECRETS["R2_ACCESS_KEY"], SECRETS["R2_SECRET_KEY"])
    environ = {
        **SECRETS,
        "R2_SESSION_TOKEN": "",
        "R2_ENDPOINT": BUCKET_ENDPOINT,
        "R2_BUCKET": BUCKET,
    }
    with watched_processes(SECRETS) as processes, world(folder, home=home, keys=keys) as running:
        stage = Stage(running, environ, weights, processes)
        stage.coldstream("upload", str(folder / "model"), "--as", MODEL)
        running.sky("api", "start")
        assert "AWS" in running.sky("check", "aws")
        yield stage
        running.sky("api", "stop", code=None)


@pytest.fixture(scope="session")
def times() -> Iterator[dict[str, dict[str, float]]]:
    """Scenario to event to seconds; written to the file that LAUNCH_TIMES names."""
    found: dict[str, dict[str, float]] = {}
    yield found
    if path := os.environ.get("LAUNCH_TIMES"):
        when = time.strftime("%Y-%m-%d", time.gmtime())
        about = {"date": when, "cores": os.cpu_count(), "unit": "seconds", "scenarios": found}
        Path(path).write_text(json.dumps(about, indent=2) + "\n")
