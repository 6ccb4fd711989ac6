"""A machine, a service and a job, launched by SkyPilot on machines of this machine, and taken back by the cloud.

The machines are bare, and get all from the bucket. The first scenario ends with tokens of vLLM's build for processors;
the others, in which several machines start at once, have a runtime with a stand-in for vLLM: two cores would take
minutes for each start of the real one.
"""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.launch import cloud
from tests.launch.cloud import Instance
from tests.launch.conftest import MODEL, SECRETS, Stage
from tests.launch.image import CHECKOUT
from tests.launch.leaks import Found, search
from tests.launch.node import HOME

pytestmark = [pytest.mark.launch, pytest.mark.timeout(2400)]

KEY = SECRETS["VLLM_API_KEY"]
UP = ("launch", MODEL, "--gpus", "L4:1", "--cloud", "aws", "--yes", "--json")
Times = dict[str, dict[str, float]]
_PATIENCE_SECONDS = 900
# Between two questions to SkyPilot, each of which keeps a core busy for seconds.
_SKY_SECONDS = 5.0

# Where SkyPilot itself leaves the values of secrets, with the modes that it gives them; nothing else may hold one.
# They are why machines should have keys that end and read one model alone, and why nobody else should have an account
# on them or on the API server's machine, whose ~/.sky others can read.
LEFT_ON_THE_MACHINE = {
    # The program of the job, with the values in it: whoever owns the machine's account reads it.
    r"home/\.sky/sky_app/sky_job_\d+": {0o644, 0o755},
    # The commands of `setup` and `run` as scripts, which begin with the variables.
    r"tmp/sky_app_[^/]+": {0o600},
    r"tmp/sky_setup_[^/]+": {0o600},
    # It runs them in interactive shells, which remember what they ran.
    r"home/\.bash_history": {0o600},
}
LEFT_BY_THE_API_SERVER = {
    # Every request as it came, pickled and in base64.
    r"home/\.sky/api_server/requests\.db(-wal)?": {0o644},
    # What machines that come later are launched with: of services, and of managed jobs.
    r"home/\.sky/serve/services\.db(-wal)?": {0o644},
    r"home/\.sky/serve/[^/]+/task\.yaml(\.tmp)?": {0o600},
    r"home/\.sky/spot_jobs\.db(-wal)?": {0o644},
    r"home/\.sky/managed_jobs/[^/]+\.yaml": {0o600},
    # A service's probe, with the API's key in its header.
    r"home/\.sky/state\.db(-wal)?": {0o644},
    # Every request to a service, with the key that came with it.
    r"home/\.sky/serve/[^/]+/load_balancer\.log": {0o644},
}


# The machine's own name; the cloud's API; where SkyPilot and Ray send statistics.
SKYPILOT_ASKS_FOR = r"i-[0-9a-f]+|([\w-]+\.)*(amazonaws\.com|skypilot\.(co|ai)|ray\.io)"
# It hands a job's program to the machine on the command line of ssh, which every user of both machines can see for
# seconds. SKYPILOT_ENABLE_GRPC=1, which it has for its own tests, avoids that; but then launches fail on a machine that
# is slow.
ON_COMMAND_LINES = r"(/bin/sh -c )?ssh -T .*|((chroot|/usr/bin/env) .*)?/bin/bash (--login )?-c .*"
SUBMITS = "mkdir -p ~/sky_logs/"
# What our SSH server writes down is what it was asked.
LEFT_BY_COMMAND_LINES = {r"logs/ssh-[^/]+\.log": {0o644}}


@pytest.fixture(autouse=True)
def no_secret_is_elsewhere(stage: Stage) -> Iterator[None]:
    """After each scenario: values of secrets are where SkyPilot is known to leave them, and nowhere else."""
    yield
    world = stage.world
    known = LEFT_BY_THE_API_SERVER | LEFT_BY_COMMAND_LINES
    found = _unexpected(search(world.folder, SECRETS, without=["disks"]), "", known)
    found += _unexpected(search(world.disks, SECRETS), r"[^/]+/", LEFT_ON_THE_MACHINE)
    for text in stage.processes.seen:
        if not (re.fullmatch(ON_COMMAND_LINES, text, re.DOTALL) and SUBMITS in text):
            found.append(text)
    assert stage.processes.looked
    assert not found, "\n".join(found)


@pytest.fixture(autouse=True)
def no_index_is_asked(stage: Stage) -> Iterator[None]:
    """After each scenario: no machine has asked for the address of a package index, or of anything else unknown."""
    yield
    queries = [line.split() for line in (stage.world.folder / "logs/names.log").read_text().splitlines()]
    machines = {address for machine in seen(stage) for address in (machine.address, machine.private)}
    unknown = {name for sender, name in queries if sender in machines and not re.fullmatch(SKYPILOT_ASKS_FOR, name)}
    assert not unknown


def _unexpected(found: list[Found], before: str, known: dict[str, set[int]]) -> list[str]:
    def is_known(leak: Found) -> bool:
        return any(re.fullmatch(before + path, leak.path) and leak.mode in modes for path, modes in known.items())

    return [str(leak) for leak in found if not is_known(leak)]


def test_a_machine(stage: Stage, times: Times) -> None:
    """Coldstream launch org/model --gpus L4:1 --cloud aws; coldstream launch status, logs, down."""
    began = time.monotonic()
    launched = json.loads(stage.coldstream(*UP, "--runtime", stage.vllm))
    ready = time.monotonic() - began
    url, name = launched["url"], launched["launch"]["name"]
    assert [launched["kind"], launched["spot"]] == ["node", True]
    assert stage.world.get(f"{url}/v1/models")[0] == 401
    status, body = stage.world.get(f"{url}/v1/models", key=KEY)
    assert (status, [model["id"] for model in json.loads(body)["data"]]) == (200, [MODEL])
    document = {"model": MODEL, "prompt": "the river and the stone", "max_tokens": 8, "ignore_eos": True}
    status, body = stage.world.get(f"{url}/v1/completions", key=KEY, document=document)
    assert (status, json.loads(body)["usage"]["completion_tokens"]) == (200, 8)
    (machine,) = running(stage)
    assert (machine.kind, machine.spot) == ("g6.xlarge", True)
    is_bare(stage, machine)
    assert "coldstream" in read_logs(stage, machine)
    was_read_from_the_bucket(stage)
    assert not {"R2_ACCESS_KEY", "R2_SECRET_KEY", "COLDSTREAM_BUNDLE_KEY"} & vllm_variables()
    assert "Starting vLLM server" in stage.coldstream("launch", "logs", name, "--no-follow")
    state = json.loads(stage.coldstream("launch", "status", "--json"))["launches"]
    assert [(row["name"], row["state"], row["url"]) for row in state] == [(name, "UP", url)]
    phases = {phase["name"]: phase["seconds"] for phase in launched["phases"] if not phase["of_start"]}
    times["machine"] = {**phases, "ready": round(ready, 1)}
    stage.coldstream("launch", "down", name, "--yes")
    until(lambda: not running(stage), "it is gone")


def test_a_service_gets_over_a_preemption(stage: Stage, times: Times) -> None:
    """Coldstream launch org/model --gpus L4:1 --cloud aws --replicas 1..2, whose machine is taken back."""
    before = {machine.id for machine in seen(stage)}
    began = time.monotonic()
    options = ("--replicas", "1..2", "--name", "fleet", "--runtime", stage.stand_in)
    launched = json.loads(stage.coldstream(*UP, *options))
    ready = time.monotonic() - began
    url = launched["url"]
    assert [launched["kind"], launched["spot"]] == ["service", True]
    assert stage.world.get(f"{url}/v1/models")[0] == 401
    assert stage.world.get(f"{url}/v1/models", key=KEY)[0] == 200
    first = running(stage)
    assert any(machine.spot for machine in first)
    has_streamed(stage, *first)
    with stage.world.network():
        cloud.preempt(first)
    taken = time.monotonic()
    until(lambda: stage.world.get(f"{url}/v1/models", key=KEY)[0] != 200, "the service notices")
    noticed = time.monotonic() - taken
    until(lambda: stage.world.get(f"{url}/v1/models", key=KEY)[0] == 200, "the service answers again")
    again = time.monotonic() - taken
    later = [machine for machine in seen(stage) if machine.id not in before | {gone.id for gone in first}]
    assert {machine.spot for machine in later} == {True, False}, "spot, and on-demand as long as there is none"
    has_streamed(stage, *later)
    times["service"] = {"ready": round(ready, 1), "noticed": round(noticed, 1), "ready again": round(again, 1)}
    stage.coldstream("launch", "down", "fleet", "--yes")
    until(lambda: not running(stage), "its machines are gone")


ASK = """\
import os, urllib.request
url = os.environ["OPENAI_BASE_URL"] + "/models"
request = urllib.request.Request(url, headers={"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]})
print("JOB asked", urllib.request.urlopen(request).status, os.environ["MODEL"], flush=True)
"""


def test_a_job_gets_over_a_preemption(stage: Stage, times: Times) -> None:
    """Coldstream template org/model --target sky-job --command …; sky jobs launch FILE --secret NAME…."""
    work = stage.world.folder / "work"
    work.mkdir()
    (work / "ask.py").write_text(ASK)
    wanted = ("--target", "sky-job", "--gpus", "L4:1", "--cloud", "aws", "--runtime", stage.stand_in)
    # It works until it is told to end.
    command = "python3 ask.py && until test -e /tmp/end; do sleep 1; done && python3 ask.py && echo JOB-DONE"
    stage.coldstream("template", MODEL, *wanted, "--command", command, "-o", "job.yaml")
    secrets = [word for name in (*SECRETS, "R2_SESSION_TOKEN") for word in ("--secret", name)]
    began = time.monotonic()
    options = ("-y", "-d", "-n", "batch", "--workdir", str(work))
    stage.world.sky("jobs", "launch", *options, "job.yaml", *secrets, environ=stage.environ)
    asked = f"JOB asked 200 {MODEL}"
    until(lambda: any(asked in read_logs(stage, machine) for machine in running(stage)), "the job runs")
    runs = time.monotonic() - began
    until(lambda: job_status(stage) == "RUNNING", "SkyPilot knows that it runs", pause_seconds=_SKY_SECONDS)
    first = running(stage)
    has_streamed(stage, first[0])
    with stage.world.network():
        cloud.preempt(first)
    taken = time.monotonic()
    until(lambda: any(asked in read_logs(stage, machine) for machine in running(stage)), "it runs again")
    again = time.monotonic() - taken
    (second,) = running(stage)
    # Not always in another region, whatever EAGER_NEXT_REGION says: SkyPilot 0.14.1 takes the cheapest again.
    assert second.spot
    (stage.world.disks / second.id / "tmp/end").touch()
    until(lambda: job_status(stage) in {"SUCCEEDED", "FAILED"}, "it ends", pause_seconds=_SKY_SECONDS)
    assert job_status(stage) == "SUCCEEDED"
    assert "JOB-DONE" in read_logs(stage, second)
    assert "JOB-DONE" not in read_logs(stage, first[0])
    finished = time.monotonic() - began
    times["job"] = {"runs": round(runs, 1), "runs again": round(again, 1), "succeeded": round(finished, 1)}
    until(lambda: not running(stage), "its machine is gone")


def until(is_so: Callable[[], bool], what: str, *, pause_seconds: float = 0.5) -> None:
    """Waits for something to become true: not for ever, and not for less than a busy machine takes."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, f"not in {_PATIENCE_SECONDS} s: {what}"
        time.sleep(pause_seconds)


def seen(stage: Stage) -> list[Instance]:
    """All machines that there ever were."""
    with stage.world.network():
        return cloud.instances()


def running(stage: Stage) -> list[Instance]:
    """Those that run now."""
    with stage.world.network():
        return cloud.running()


def read_logs(stage: Stage, machine: Instance) -> str:
    """What jobs on a machine have said, also on one that is gone."""
    folder = stage.world.disks / machine.id / "home/sky_logs"
    return "".join(path.read_text(errors="replace") for path in sorted(folder.glob("*/**/*.log")))


def has_streamed(stage: Stage, *machines: Instance) -> None:
    """On one of them vLLM has read every byte of the weights, with no key of the bucket; they came from the bucket."""
    said = [read_logs(stage, machine) for machine in machines]
    assert any(stage.weights in text and "STAND-IN bucket keys []" in text for text in said), said
    was_read_from_the_bucket(stage)


def was_read_from_the_bucket(stage: Stage) -> None:
    """Each shard of the model."""
    asked = (stage.world.folder / "logs/bucket.log").read_text()
    for shard in (1, 2):
        assert f"GET OBJECT Bucket: models Object: {MODEL}/model-{shard:05d}-of-00002.safetensors" in asked


def is_bare(stage: Stage, machine: Instance) -> None:
    """Beside what the runtime brought, the machine has no vLLM, no coldstream, and no checkout of it."""
    look = (
        "import importlib.util, os, shutil\n"
        "print([n for n in ('vllm', 'torch', 'coldstream') if importlib.util.find_spec(n) or shutil.which(n)],"
        f" os.path.exists({str(CHECKOUT / 'src')!r}))"
    )
    options = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null")
    output = stage.world.run("ssh", *options, f"ubuntu@{machine.address}", f"python3 -c {shlex.quote(look)}")
    assert output == "[] False\n"


def vllm_variables() -> set[str]:
    """The names of the variables of vLLM's processes on machines."""
    names: set[str] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command, variables = ((folder / name).read_bytes() for name in ("cmdline", "environ"))
            entries = variables.split(b"\0")
            if f"HOME={HOME}".encode() in entries and re.search(rb"/bin/vllm\0|VLLM::", command):
                names |= {entry.partition(b"=")[0].decode() for entry in entries}
    assert names, "no process of vLLM"
    return names


def job_status(stage: Stage) -> Any:
    """Of the only managed job."""
    rows = json.loads(stage.world.sky("jobs", "queue", "--all", "-o", "json"))
    assert isinstance(rows, list), Path
    return rows[0]["status"].rpartition(".")[2]
