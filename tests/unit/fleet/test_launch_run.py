"""A launch from its plan to a model that answers, and what becomes of it, by a scripted SkyPilot."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from coldstream.errors import CancelledError, ColdstreamError, NotFoundError, UnavailableError, UsageError
from coldstream.fleet import launch_run
from coldstream.fleet.launch_run import ProgressCallbacks, check_name_is_free, launch, renew
from coldstream.fleet.launches import (
    Launch,
    Launches,
    fetch_endpoint,
    fetch_known,
    fetch_states,
    is_serving,
    logs_arguments,
    take_down,
)
from coldstream.fleet.sky import SkyOutput
from coldstream.telemetry.timeline.start_record import format_ready_line
from tests.unit.fleet.scripted import ScriptedSky
from tests.unit.fleet.test_launch_plan import made
from tests.unit.telemetry.timeline.starts import streamed

NODE = "⚙︎ Launching on AWS us-east-1 (us-east-1a).\n✓ Cluster launched: 'm'.\n⚙︎ Job submitted, ID: 1\n"
LOG = f"(m, pid=77) {format_ready_line(streamed(), 'http://0.0.0.0:8000')}"
NO_JOBS = (1, "sky.exceptions.ClusterNotUpError: No in-progress managed jobs.")
SERVICES = """Services
NAME  VERSION  UPTIME     STATUS            REPLICAS  ENDPOINT
m     1        1h 2m 3s   {}                1/2       http://1.2.3.4:30001
FAILED  -      -          CONTROLLER_INIT   0/1       -

Service Replicas
SERVICE_NAME  ID  VERSION  ENDPOINT  LAUNCHED  INFRA  RESOURCES  STATUS
m             1   1        -         1 min     AWS    1x(…)      READY
ghost         2   1        -         1 min     AWS    1x(…)      READY
"""


def clusters(**rows: str) -> str:
    return json.dumps([{"name": name, "status": status} for name, status in rows.items()])


def queue(*states: str) -> str:
    return json.dumps({"m": [{"job_id": number, "status": state} for number, state in enumerate(states, 1)]})


def jobs(*rows: tuple[int, str, str]) -> str:
    return json.dumps([{"job_id": number, "job_name": name, "status": state} for number, name, state in rows])


def record(kind: str = "node", **more: Any) -> Launch:
    given = {"name": "m", "kind": kind, "model": "org/m", "port": 8000, "began": 1.0, "keys": "signed"}
    return Launch(**{**given, **more})


@contextmanager
def model(key: str = "k", *, status: int = 200, body: bytes = b'{"data": [{"id": "m"}]}') -> Iterator[str]:
    """One that wants a key; its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            right = self.headers["Authorization"] == f"Bearer {key}" and self.path == "/v1/models"
            self.send_response(status if right else 401)
            self.end_headers()
            self.wfile.write(body if right else b"")

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class Told:
    """Who is told how it goes."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: list[str] = []

    @property
    def callbacks(self) -> ProgressCallbacks:
        return ProgressCallbacks(line=self.lines.append, step=lambda name, _seconds: self.steps.append(name))


@pytest.fixture
def launches(tmp_path: Path) -> Launches:
    return Launches(tmp_path / "cache")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_run, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(launch_run, "_STATE_SECONDS", 0.02)
    monkeypatch.setattr(launch_run, "_PROVISION_SECONDS", dict.fromkeys(("node", "service", "job"), 60))


def run(kind: str, script: dict[str, list[Any]], launches: Launches, *, key: str = "k", wait: bool = True) -> Any:
    plan = made(kind)
    told, sky = Told(), ScriptedSky(script={"status --refresh m": [clusters(m="UP")], **script})
    return launch(plan, sky, launches, told.callbacks, api_key=key, wait=wait), told, sky


def test_a_node_until_it_answers(launches: Launches) -> None:
    with model() as url:
        at = url.removeprefix("http://")
        script: dict[str, list[Any]] = {
            "launch": [NODE],
            "status --endpoint 8000 m": [(1, "not UP"), "-", at],
            "queue m": ["{}", queue("RUNNING")],
            "logs m --no-follow": ["not yet", LOG],
        }
        launched, told, sky = run("node", script, launches)
    assert launched.url == url
    assert told.steps == ["provision", "files", "submitted"]
    assert told.lines == NODE.splitlines()
    assert [phase.name for phase in launched.phases if not phase.of_start][-2:] == ["setup", "start"]
    assert "compile" in [phase.name for phase in launched.phases if phase.of_start]
    assert sum(phase.seconds for phase in launched.phases if not phase.of_start) == pytest.approx(launched.seconds)
    assert launches.find("m") == launched.launch
    assert launched.launch.job is None
    assert sky.commands[0].startswith(f"launch -y -d -c m {launches.file('m')} --secret R2_ACCESS_KEY")


def test_it_is_remembered_before_it_costs_money(launches: Launches) -> None:
    class DiesError(Exception):
        pass

    class Looks(ScriptedSky):
        def follow(self, *arguments: str, on_line: Any) -> Any:
            assert launches.find("m").kind == "node"
            assert launches.file("m").exists()
            raise DiesError

    with pytest.raises(DiesError):
        launch(made(), Looks(), launches, Told().callbacks, api_key="k", wait=True)


def test_nobody_waits(launches: Launches) -> None:
    script: dict[str, list[Any]] = {"launch": [NODE], "status --endpoint": ["1.2.3.4:8000"]}
    launched, _, sky = run("node", script, launches, wait=False)
    assert (launched.url, launched.phases) == ("http://1.2.3.4:8000", ())
    assert len(sky.commands) == 2


def test_a_job_runs(launches: Launches) -> None:
    script: dict[str, list[Any]] = {
        "jobs launch": ["⚙︎ Job submitted, ID: 7\n"],
        "jobs queue": [NO_JOBS, jobs((7, "m", "STARTING"), (3, "m", "FAILED")), jobs((7, "m", "RUNNING"))],
    }
    launched, _, _ = run("job", script, launches)
    assert launched.url is None
    assert launches.find("m").job == 7


@pytest.mark.parametrize(
    ("kind", "more", "state"),
    [
        ("node", {"queue m": [queue("SETTING_UP"), queue("RUNNING", "FAILED_SETUP")]}, "FAILED_SETUP"),
        ("node", {"queue m": [queue("JobStatus.FAILED")]}, "FAILED"),
        ("node", {"queue m": [queue("SUCCEEDED")]}, "SUCCEEDED"),
        ("service", {"serve status": [SERVICES.format("CONTROLLER_FAILED")]}, "CONTROLLER_FAILED"),
        ("job", {"jobs queue": [jobs((1, "m", "FAILED_NO_RESOURCE"))]}, "FAILED_NO_RESOURCE"),
    ],
)
def test_what_breaks_down_shows_its_log(launches: Launches, kind: str, more: dict[str, Any], state: str) -> None:
    log = "\n".join(f"line {number}" for number in range(30))
    logs = {"logs m --no-follow", "serve logs m 1 --no-follow", "jobs logs -n m --no-follow"}
    script: dict[str, list[Any]] = {verb: [log] for verb in logs} | {
        "launch": [NODE],
        "serve up": [""],
        "jobs launch": [""],
    }
    script |= {"status --endpoint": [(1, "")], "serve status --endpoint": ["-"]} | more
    with pytest.raises(ColdstreamError, match=f"m failed \\({state}\\)") as caught:
        run(kind, script, launches)
    assert "line 29" in caught.value.message
    assert "line 17\n" not in caught.value.message
    assert "coldstream launch down m" in (caught.value.hint or "")
    assert launches.find("m")


def test_it_never_answers(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_run, "_PROVISION_SECONDS", {"node": 0.3 - made().deployment.start_seconds})
    script: dict[str, list[Any]] = {
        "launch": [NODE],
        "status --endpoint": ["127.0.0.1:9"],
        "queue m": [(1, "no connection")],
    }
    with pytest.raises(
        UnavailableError, match=r"m does not answer yet at http://127\.0\.0\.1:9, and is still starting"
    ) as caught:
        run("node", script, launches)
    assert "coldstream launch down m" in (caught.value.hint or "")


@pytest.mark.parametrize("url", [(1, "ValueError: Cluster 'm' is not UP."), "127.0.0.1:9"])
@pytest.mark.parametrize(("last", "what"), [(clusters(other="UP"), "gone"), (clusters(m="STOPPED"), "stopped")])
def test_a_machine_is_taken_back_while_it_starts(launches: Launches, url: Any, last: str, what: str) -> None:
    script: dict[str, list[Any]] = {
        "launch": [NODE],
        "status --endpoint": [url],
        "status --refresh m -o json": [clusters(m="UP"), (1, "no connection"), clusters(m="INIT"), f"Oh:\n{last}"],
        "queue m": [queue("RUNNING"), (1, "no connection")],
    }
    with pytest.raises(ColdstreamError, match=f"^the machine of m is {what}, before its model answered: ") as caught:
        run("node", script, launches)
    assert "\n" not in caught.value.message
    assert "--replicas 1" in (caught.value.hint or "")
    assert launches.find("m")


REPLICAS = """
Service Replicas
SERVICE_NAME  ID  VERSION  ENDPOINT                 LAUNCHED    INFRA               RESOURCES              STATUS
ghost         7   1        http://1.2.3.4:8000      1 min ago   AWS (us-east-1a)    1x[spot](L4:1, …)      PREEMPTED
"""


def replicas(state: str, *rows: tuple[int, str]) -> str:
    shown = [f"m  {number}  1  -  1 min ago  AWS (us-east-1a)  1x[spot](L4:1, …)  {row}" for number, row in rows]
    return SERVICES.partition("Service Replicas")[0].format(state) + REPLICAS + "\n".join(shown)


@dataclass(frozen=True, slots=True, kw_only=True)
class Late(ScriptedSky):
    """Tells where a service answers as soon as all that happens to it has happened."""

    def ask(self, *arguments: str, seconds: float = 0.0) -> SkyOutput:
        if "--endpoint" in arguments and len(self.script["serve status"]) > 1:
            return SkyOutput(code=0, text="-")
        return ScriptedSky.ask(self, *arguments)


@pytest.mark.parametrize(
    ("told", "losses"),
    [
        ([[(1, "PROVISIONING")], [(1, "STARTING")]], 0),
        ([[(1, "STARTING")], [(1, "PREEMPTED"), (2, "PENDING")], [(1, "PREEMPTED"), (2, "STARTING")]], 1),
        # Nobody looked in between.
        (
            [
                [(1, "PROVISIONING (waiting)")],
                [(2, "PENDING")],
                [(2, "STARTING")],
                [(2, "PREEMPTED")],
                [(3, "PENDING")],
            ],
            2,
        ),
        ([[], [(1, "PREEMPTED")], []], 1),
        # By the service itself.
        ([[(1, "STARTING"), (2, "STARTING")], [(1, "STARTING"), (2, "SHUTTING_DOWN")], [(1, "STARTING")]], 0),
    ],
)
def test_a_service_recovers_and_is_waited_for(launches: Launches, told: list[Any], losses: int) -> None:
    plan, hears = made("service"), Told()
    texts: list[Any] = [replicas("REPLICA_INIT", *rows) for rows in told]
    with model() as url:
        script: dict[str, list[Any]] = {
            "serve up": ["Service is spinning up"],
            # When one is ready, those that are not needed may go.
            "serve status": [*texts, (1, "no connection"), replicas("READY", (9, "READY"))],
            "serve status --endpoint m": [url],
            "serve logs": [LOG],
        }
        launched = launch(plan, Late(script=script), launches, hears.callbacks, api_key="k", wait=True)
    assert launched.url == url
    assert hears.steps == ["submitted", *["replaced"] * losses]


def test_a_job_recovers_and_is_waited_for(launches: Launches) -> None:
    told = ["STARTING", "RECOVERING", "RECOVERING", "STARTING", "RECOVERING", "RUNNING"]
    script: dict[str, list[Any]] = {"jobs launch": [""], "jobs queue": [jobs((7, "m", state)) for state in told]}
    _, hears, _ = run("job", script, launches)
    assert hears.steps == ["submitted", "replaced", "replaced"]


def test_what_skypilot_takes_long_to_say_holds_nobody_up(launches: Launches) -> None:
    never = threading.Event()

    class Slow(ScriptedSky):
        def ask(self, *arguments: str, seconds: float = 0.0) -> SkyOutput:
            if "--refresh" in arguments:
                never.wait(60)
            return ScriptedSky.ask(self, *arguments)

    with model() as url:
        at = url.removeprefix("http://")
        script: dict[str, list[Any]] = {
            "launch": [NODE],
            "status --endpoint": [(1, ""), (1, ""), at],
            "status --refresh": ["[]"],
            "logs": [LOG],
        }
        launched = launch(made(), Slow(script=script), launches, Told().callbacks, api_key="k", wait=True)
        never.set()
    assert launched.url == url


def test_somebody_else_answers(launches: Launches) -> None:
    with model("another") as url:
        script: dict[str, list[Any]] = {"launch": [NODE], "status --endpoint": [url.removeprefix("http://")]}
        with pytest.raises(ColdstreamError, match="rejected the API key"):
            run("node", script, launches)


@pytest.mark.parametrize(
    ("status", "says", "hint"),
    [
        (clusters(m="INIT"), "sky failed: CommandError: rsync; m is left, INIT", "coldstream launch down m"),
        (clusters(other="UP"), "sky failed: CommandError: rsync", "nothing is left running"),
        ((1, "no connection"), "sky failed: CommandError: rsync; m may be running", "coldstream launch down m"),
    ],
)
def test_skypilot_fails(launches: Launches, status: Any, says: str, hint: str) -> None:
    script: dict[str, list[Any]] = {
        "launch": [(1, "x\nsky.exceptions.CommandError: rsync")],
        "status -o json": [status],
    }
    with pytest.raises(ColdstreamError) as caught:
        run("node", script, launches)
    assert caught.value.message == says
    assert hint in (caught.value.hint or "")
    assert launches.find("m")


def test_somebody_interrupts(launches: Launches) -> None:
    class Interrupted(ScriptedSky):
        def follow(self, *arguments: str, on_line: Any) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(CancelledError, match="may continue to start m") as caught:
        launch(made(), Interrupted(), launches, Told().callbacks, api_key="k", wait=True)
    assert caught.value.hint == "stop it: coldstream launch down m"


def test_a_name_that_is_taken(launches: Launches) -> None:
    nothing: dict[str, list[Any]] = {
        "status": ["[]"],
        "serve status": ["No live services."],
        "jobs queue": [NO_JOBS],
    }

    def refuse(kind: str, **more: Any) -> None:
        said = {name.replace("_", " ").removesuffix(" o"): [text] for name, text in more.items()}
        check_name_is_free(kind, "m", ScriptedSky(script=nothing | said), launches)

    for kind in ("node", "service", "job"):
        refuse(kind)
    with pytest.raises(UsageError, match="m already exists, INIT"):
        refuse("node", status_o=clusters(m="INIT"))
    with pytest.raises(UsageError, match="m already exists, RECOVERING"):
        refuse("job", jobs_queue=jobs((8, "m", "RECOVERING"), (7, "m", "FAILED")))
    for over in ("SUCCEEDED", "FAILED_SETUP", "CANCELLED"):
        refuse("job", jobs_queue=jobs((8, "m", over), (7, "m", "RUNNING")))
    # What SkyPilot does not say is no reason, until there is something to be written over.
    refuse("node", status_o=(1, "no connection"))
    launches.keep(record("service"))
    refuse("node")
    with pytest.raises(UsageError, match="m already exists, READY"):
        refuse("node", serve_status=SERVICES.format("READY"))
    with pytest.raises(ColdstreamError, match="sky status failed"):
        refuse("node", status_o=(1, "no connection"))


def test_states() -> None:
    sky = ScriptedSky(
        script={
            "status -o json": [clusters(a="UP", b="STOPPED")],
            "serve status": [SERVICES.format("NO_REPLICA")],
            "jobs queue": [jobs((2, "j", "RUNNING"), (1, "j", "FAILED"))],
        }
    )
    records = [record(name=name) for name in ("a", "b", "c")]
    records += [record("service", name=name) for name in ("m", "FAILED", "ghost")] + [record("job", name="j")]
    assert fetch_states(records, sky) == {
        "a": "UP",
        "b": "STOPPED",
        "c": "gone",
        "m": "NO_REPLICA",
        "FAILED": "CONTROLLER_INIT",
        "ghost": "gone",
        "j": "RUNNING",
    }
    assert fetch_states([], ScriptedSky()) == {}
    silent = ScriptedSky(script={"": [(1, "sky.exceptions.ApiServerConnectionError: Could not connect")]})
    assert fetch_states(records, silent) == {launched.name: "unknown" for launched in records}
    assert fetch_known("job", ScriptedSky(script={"jobs queue": [NO_JOBS]})) == {}


@pytest.mark.parametrize(
    ("said", "url"),
    [
        ("1.2.3.4:8000", "http://1.2.3.4:8000"),
        ("Refreshing…\n https://h.example:443/ ", "https://h.example:443"),
        ("-", None),
        ("", None),
        ((1, "1.2.3.4:8000"), None),
        ("1.2.3.4", None),
        ("1.2.3.4:port", None),
    ],
)
def test_endpoints(said: Any, url: str | None) -> None:
    assert fetch_endpoint(record(), ScriptedSky(script={"status --endpoint 8000 m": [said]})) == url
    assert fetch_endpoint(record("service"), ScriptedSky(script={"serve status --endpoint m": [said]})) == url
    assert fetch_endpoint(record("job"), ScriptedSky()) is None


def test_who_answers() -> None:
    with model() as url:
        assert is_serving(url, "k")
        with pytest.raises(ColdstreamError, match="rejected the API key"):
            is_serving(url, "other")
    assert not is_serving(url, "k")
    for body in (b"", b"[]", b"{}", b'{"data": []}', b"[" * 100_000, b"<html>"):
        with model(body=body) as url:
            assert not is_serving(url, "k"), body[:10]
    for status in (302, 404, 503):
        with model(status=status) as url:
            assert not is_serving(url, "k"), status


@pytest.mark.parametrize(
    ("kind", "job", "verb", "logs"),
    [
        ("node", None, "down -y m", ("logs", "m")),
        ("service", None, "serve down -y m", ("serve", "logs", "m", "2")),
        ("job", 7, "jobs cancel -y 7", ("jobs", "logs", "7")),
        ("job", None, "jobs cancel -y -n m", ("jobs", "logs", "-n", "m")),
    ],
)
def test_each_kind_has_its_verbs(launches: Launches, kind: str, job: int | None, verb: str, logs: Any) -> None:
    launched = record(kind, job=job)
    launches.keep(launched)
    sky = ScriptedSky(script={"": ["done"]})
    take_down(launched, sky, launches)
    assert sky.commands == [verb]
    assert list(launches.all()) == []
    assert logs_arguments(launched, follow=True, replica=2) == logs
    assert logs_arguments(launched, follow=False, replica=2) == (*logs, "--no-follow")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("node", "Cluster(s) not found (tip: see `sky status`)."),
        ("node", (1, "ClusterDoesNotExist: Cluster 'm' does not exist.")),
        ("service", (1, "sky.exceptions.ClusterNotUpError: No live services.")),
        ("job", NO_JOBS),
    ],
)
def test_what_is_gone_is_forgotten(launches: Launches, kind: str, said: Any) -> None:
    launches.keep(record(kind))
    take_down(record(kind), ScriptedSky(script={"": [said]}), launches)
    assert list(launches.all()) == []


@pytest.mark.parametrize(
    ("kind", "said", "why"),
    [
        # SkyPilot 0.14 ends with 0 here.
        (
            "node",
            "Terminating m...failed.\n  ✗ Failed: m (UnauthorizedOperation)\nCluster(s) failed. See details above.",
            "Failed: m \\(UnauthorizedOperation\\)",
        ),
        ("node", (1, "ClientError: The instance was not found"), "was not found"),
        (
            "service",
            "Service 'm' is in failed status (FAILED_CLEANUP). Skipping its termination as it",
            "FAILED_CLEANUP",
        ),
        ("job", "Multiple running jobs found with name 'm'.", "Multiple running jobs"),
        ("service", (1, "RuntimeError: Failed to terminate service"), "Failed to terminate"),
    ],
)
def test_what_is_not_down_is_remembered(launches: Launches, kind: str, said: Any, why: str) -> None:
    launches.keep(record(kind))
    with pytest.raises(ColdstreamError, match=f"sky could not take m down: .*{why}"):
        take_down(record(kind), ScriptedSky(script={"": [said]}), launches)
    assert launches.find("m") == record(kind)


def test_a_node_gets_new_keys(launches: Launches) -> None:
    launches.keep(record(expires=5.0))
    launches.keep_file("m", "secrets: {}")
    changed = record(expires=99.0)
    with model() as url:
        script: dict[str, list[Any]] = {
            "cancel -y -a m": ["done"],
            "launch": [NODE],
            "status --refresh m": [clusters(m="UP")],
            "queue m": [queue("RUNNING")],
            "status --endpoint": [url.removeprefix("http://")],
            "logs": [LOG],
        }
        sky = ScriptedSky(script=script)
        found = renew(changed, sky, launches, Told().callbacks, secrets=("A",), api_key="k")
    assert sky.commands[:2] == ["cancel -y -a m", f"launch -y -d -c m {launches.file('m')} --secret A"]
    assert found.url == url
    assert launches.find("m").expires == 99.0


def test_a_service_gets_new_keys_and_is_not_waited_for(launches: Launches) -> None:
    launches.keep(record("service"))
    launches.keep_file("m", "secrets: {}")
    sky = ScriptedSky(script={"serve update": ["scheduled"], "serve status --endpoint": ["http://1.2.3.4:30001"]})
    found = renew(record("service", expires=9.0), sky, launches, Told().callbacks, secrets=("A", "B"), api_key="k")
    assert sky.commands[0] == f"serve update -y m {launches.file('m')} --secret A --secret B"
    assert (found.url, found.phases) == ("http://1.2.3.4:30001", ())
    assert launches.find("m").expires == 9.0


def test_a_job_keeps_its_keys(launches: Launches) -> None:
    with pytest.raises(UsageError, match="m is a job, whose keys cannot be renewed"):
        renew(record("job"), ScriptedSky(), launches, Told().callbacks, secrets=(), api_key="k")


def test_keys_that_could_not_be_renewed_are_not_remembered(launches: Launches) -> None:
    launches.keep(record("service", expires=5.0))
    with pytest.raises(NotFoundError, match=r"m\.yaml, the file of the launch, is missing"):
        renew(record("service"), ScriptedSky(), launches, Told().callbacks, secrets=(), api_key="k")
    launches.keep_file("m", "secrets: {}")
    sky = ScriptedSky(script={"serve update": [(1, "RuntimeError: no")], "serve status": [SERVICES.format("READY")]})
    with pytest.raises(ColdstreamError, match="RuntimeError: no; m is left, READY"):
        renew(record("service", expires=9.0), sky, launches, Told().callbacks, secrets=(), api_key="k")
    assert launches.find("m").expires == 5.0


def test_the_life_of_the_keys_is_remembered(launches: Launches) -> None:
    plan = made()
    keys = replace(plan.keys, expires_at=int(time.time()) + 3600, how="signed")
    plan = replace(plan, keys=keys)
    sky = ScriptedSky(script={"launch": [NODE], "status --endpoint": ["-"]})
    found = launch(plan, sky, launches, Told().callbacks, api_key="k", wait=False).launch
    assert found.keys == "signed"
    assert found.ttl_seconds == pytest.approx(3600, abs=2)
    assert found.expires == keys.expires_at
