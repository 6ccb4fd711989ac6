"""One world for all scenarios, with a model in its bucket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.checkpoints import expected_tensors
from tests.launch.image import CHECKOUT, MissingError, image
from tests.launch.leaks import Processes, watched_processes
from tests.launch.stand_in import make_environment, told
from tests.launch.world import BUCKET, BUCKET_ENDPOINT, VLLM, World, missing, world

MODEL = "org/Tiny-Llama"
# Distinctive, so that they are found wherever they come to lie; the bundle's key has the length that it must have.
SECRETS = {
    "R2_ACCESS_KEY": "R2ACCESSZZZ7c1e",
    "R2_SECRET_KEY": "R2SECRETZZZ93b5f0d2a4",
    "VLLM_API_KEY": "VLLMKEYZZZ5e8801",
    "COLDSTREAM_BUNDLE_KEY": "BUNDLEKEYZZZ0123456789abcdef012345",
}


COLDSTREAM = (sys.executable, "-m", "coldstream")


@dataclass(frozen=True)
class Stage:
    """Where the scenarios are played.

    Attributes:
        world: Running, with SkyPilot's API server.
        environ: The bucket and the secrets, for the commands of a user.
        weights: What the stand-in says when it has read the model's weights, all of them and as they are.
        processes: Command lines with secrets that were seen.
        vllm: The digest of the runtime with vLLM's build for processors.
        stand_in: That of the one with its stand-in, which starts in a second, where two cores start many machines.
    """

    world: World
    environ: dict[str, str]
    weights: str
    processes: Processes
    vllm: str
    stand_in: str

    def coldstream(self, *arguments: str, **options: object) -> str:
        """Runs coldstream as a user would."""
        return self.world.run(*COLDSTREAM, *arguments, environ=self.environ, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    if lack := missing():
        pytest.skip(f"a launch on this machine needs what is not here: {lack}")
    stand_in, folder = CHECKOUT / ".venv-sky/stand-in", tmp_path_factory.mktemp("launch")
    with ThreadPoolExecutor(1) as other:
        home = other.submit(image, CHECKOUT / ".venv-sky/node")
        make_environment(stand_in, CHECKOUT)
        made = [VLLM / "bin/python", "-m", "tests.vllm.models", "llama", folder / "model"]
        subprocess.run(made, cwd=CHECKOUT, check=True)
    weights = told(expected_tensors(folder / "model", {p.name: p.read_bytes() for p in folder.glob("model/*")}))
    try:
        home.result()
    except MissingError as exc:
        pytest.skip(f"a launch on this machine needs what is not here: {exc}")
    keys = (SECRETS["R2_ACCESS_KEY"], SECRETS["R2_SECRET_KEY"])
    environ = {
        **SECRETS,
        "R2_SESSION_TOKEN": "",
        "R2_ENDPOINT": BUCKET_ENDPOINT,
        "R2_BUCKET": BUCKET,
    }
    with watched_processes(SECRETS) as processes, world(folder, home=home.result(), keys=keys) as running:
        running.run(*COLDSTREAM, "upload", folder / "model", "--as", MODEL, environ=environ)
        # Beside the environments, so that their files can be linked.
        near = {**environ, "TMPDIR": str(CHECKOUT / ".venv-sky")}
        publish = (*COLDSTREAM, "runtime", "publish", "--json", "--from")
        # SkyPilot, which waits a lot, starts beside it.
        with ThreadPoolExecutor(1) as other:
            started = other.submit(_start_skypilot, running)
            digests = [json.loads(running.run(*publish, root, environ=near))["digest"] for root in (VLLM, stand_in)]
            started.result()
        yield Stage(running, environ, weights, processes, *digests)
        running.sky("api", "stop", code=None)


def _start_skypilot(running: World) -> None:
    running.sky("api", "start")
    assert "AWS" in running.sky("check", "aws")


@pytest.fixture(scope="session")
def times() -> Iterator[dict[str, dict[str, float]]]:
    """Scenario to event to seconds; written to the file that LAUNCH_TIMES names."""
    found: dict[str, dict[str, float]] = {}
    yield found
    if path := os.environ.get("LAUNCH_TIMES"):
        when = time.strftime("%Y-%m-%d", time.gmtime())
        about = {"date": when, "cores": os.cpu_count(), "unit": "seconds", "scenarios": found}
        Path(path).write_text(json.dumps(about, indent=2) + "\n")
