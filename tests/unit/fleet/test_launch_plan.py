"""What is about to be launched, and how SkyPilot is asked for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coldstream.errors import ColdstreamError, UsageError
from coldstream.fleet.credentials import Terms
from coldstream.fleet.deploy_options import DeployOptions, parse_replicas
from coldstream.fleet.launch_plan import (
    TARGETS,
    LaunchPlan,
    make_plan,
    secret_flags,
)
from coldstream.fleet.sky import NAME, Offer
from coldstream.settings import load_settings
from coldstream.tune.gpus import parse_gpus
from tests.unit.fleet.deployments import CLOSED, R2, WITH_VLLM, deployment
from tests.unit.fleet.scripted import ScriptedSky
from tests.unit.tune.models import EIGHT, SEVENTY

MODEL = replace(EIGHT, name="org/Llama-3.1-8B")
SETTINGS = {"R2_ENDPOINT": R2.endpoint or "", "R2_BUCKET": "models", "R2_ACCESS_KEY": "a", "R2_SECRET_KEY": "b"}
TABLE = """
 INFRA              INSTANCE          vCPUs   Mem(GB)   GPUS   COST ($)   CHOSEN
 AWS (us-east-1a)   g6.xlarge[Spot]   4       16        L4:1   0.30       ✔
"""
OFFER = Offer(infra="AWS (us-east-1a)", instance="g6.xlarge", cores=4, memory_gib=16.0, dollars_per_hour=0.3)

OWN = Terms(how="own", expires_at=None, prefixes=())


def made(kind: str = "node", *, offer: Offer | None = OFFER, stand_in: Offer | None = None, **more: Any) -> LaunchPlan:
    return LaunchPlan(
        name="m",
        kind=kind,
        deployment=deployment(TARGETS[kind], **more),
        offer=offer,
        stand_in=stand_in,
        keys=OWN,
    )


def planned(said: str | tuple[int, str] = TABLE, *, name: str | None = None, model: Any = MODEL, **more: Any) -> Any:
    sky = ScriptedSky(script={"launch --dryrun": [said]})
    gpus, values = more.pop("gpus", "L4:1"), more.pop("values", {})
    options = DeployOptions(**{"target": "sky", "gpus": parse_gpus(gpus), **more})
    settings = load_settings(SETTINGS | values, environ={})
    plan = make_plan(model, options, settings, sky, name=name, keys=OWN, runtime=WITH_VLLM)
    return plan, sky


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("kind", "verbs"),
    [
        ("node", ("launch", "-y", "-d", "-c", "m", "FILE")),
        ("service", ("serve", "up", "-y", "-n", "m", "FILE")),
        ("job", ("jobs", "launch", "-y", "-d", "-n", "m", "FILE")),
    ],
)
def test_secrets_are_named_and_no_more(kind: str, verbs: tuple[str, ...]) -> None:
    plan = made(kind)
    arguments = plan.arguments("FILE")
    assert arguments[: len(verbs)] == verbs
    assert arguments[len(verbs) :] == secret_flags(plan.deployment.secrets)
    assert {"R2_ACCESS_KEY", "R2_SECRET_KEY", "R2_SESSION_TOKEN", "VLLM_API_KEY"} < {*plan.deployment.secrets}
    assert "HF_TOKEN" not in plan.deployment.secrets
    assert "HF_TOKEN" in made(kind, fallback="hf").deployment.secrets


@pytest.mark.parametrize("kind", ["node", "service", "job"])
def test_what_opens_the_cdn_is_named_too(kind: str) -> None:
    assert {*CLOSED.secrets} < {*made(kind, domain=CLOSED).deployment.secrets}


def test_the_cdn_is_the_nodes_too() -> None:
    values = {"R2_CDN_DOMAIN": "models.example.com", "COLDSTREAM_CDN_HEADER": "X-Key: s3cr3t"}
    plan, sky = planned(values=values)
    assert plan.deployment.environment["R2_CDN_DOMAIN"] == "https://models.example.com"
    assert " --secret COLDSTREAM_CDN_HEADER" in sky.commands[0]
    assert "s3cr3t" not in sky.commands[0] + repr(plan)
    assert planned(values=values, loader="runai")[0].deployment.domain is None
    with pytest.raises(UsageError, match="no node reaches the CDN there"):
        planned(values={"R2_CDN_DOMAIN": "http://localhost:9000"})


def test_prices() -> None:
    assert made().dollars_per_hour == (0.3, 0.3)
    assert made("service", replicas="1..4").dollars_per_hour == pytest.approx((0.3, 1.2))
    assert made("service", replicas="2..4", spot=False).dollars_per_hour == pytest.approx((0.6, 1.2))
    # One of several is on demand, whatever there is.
    assert made("service", replicas="2..4").dollars_per_hour is None
    stood_in = made("service", replicas="2..4", stand_in=replace(OFFER, dollars_per_hour=0.8))
    assert stood_in.dollars_per_hour == pytest.approx((0.3 + 0.8, 3 * 0.3 + 0.8))
    assert stood_in.stand_in_dollars_per_hour == pytest.approx((1.6, 3.2))
    assert made("service", replicas="2").stand_in_dollars_per_hour is None
    assert [made(kind).has_stand_ins for kind in ("node", "service", "job")] == [False, True, False]
    assert not made("service", spot=False).has_stand_ins
    assert made(offer=None).dollars_per_hour is None
    assert made(offer=replace(OFFER, dollars_per_hour=None)).dollars_per_hour is None


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (made(), "spot; not replaced when preempted; terminates 30 min after"),
        (made(spot=False), "on demand; terminates 30 min after"),
        (
            made("service", replicas="1"),
            "1 replica; spot, or on demand while no spot machine is available; replaced when lost",
        ),
        (made("service", replicas="1..3", spot=False), "1 to 3 replicas; on demand; replaced"),
        (made("job"), "restarted when preempted; ends with the command"),
        (made("job", spot=False), "on demand; ends with the command"),
    ],
)
def test_policies(plan: LaunchPlan, says: str) -> None:
    assert says in plan.policy


def test_the_machine_decides_the_rest() -> None:
    plan, sky = planned()
    assert (plan.name, plan.kind, plan.offer) == ("llama-3-1-8b", "node", OFFER)
    assert plan.deployment.loader.prediction.seconds > EIGHT.bytes / 625e6
    assert "AWS" in plan.deployment.loader.prediction.limited_by
    assert plan.deployment.runtime == WITH_VLLM
    (asked,) = sky.commands
    assert " --secret R2_ACCESS_KEY" in asked
    assert " -c " not in asked
    unknown, _ = planned("a table that is not understood")
    assert unknown.offer is None
    assert unknown.deployment.loader.prediction.seconds < plan.deployment.loader.prediction.seconds


def test_a_bucket_of_aws_itself_is_no_other_network() -> None:
    plan, _ = planned(values={"R2_ENDPOINT": None, "AWS_REGION": "us-east-1"})
    assert plan.offer == OFFER
    assert "other networks" not in plan.deployment.loader.prediction.limited_by


@pytest.mark.parametrize("target", ["sky-serve", "sky-job"])
def test_the_dry_run_is_a_node_s(target: str) -> None:
    more: dict[str, Any] = {"command": "python ask.py"} if target == "sky-job" else {"replicas": parse_replicas("2..4")}
    plan, sky = planned(target=target, **more)
    assert sky.commands[0].startswith("launch --dryrun -y -d ")
    assert plan.deployment.options.target == target


def test_the_stand_in_is_asked_for_as_one_that_stays() -> None:
    files: list[str] = []

    class Reads(ScriptedSky):
        def ask(self, *arguments: str, seconds: float = 0.0) -> Any:
            files.append(next(Path(word).read_text() for word in arguments if word.endswith(".yaml")))
            return ScriptedSky.ask(self, *arguments)

    def plan(said: list[Any]) -> LaunchPlan:
        sky, settings = Reads(script={"launch --dryrun": said}), load_settings(SETTINGS, environ={})
        options = DeployOptions(target="sky-serve", gpus=parse_gpus("L4:1"), replicas=parse_replicas("2..4"))
        return make_plan(MODEL, options, settings, sky, name=None, keys=OWN, runtime=WITH_VLLM)

    dearer = TABLE.replace("[Spot]", "").replace("0.30", "0.80")
    assert plan([TABLE, dearer]).stand_in == replace(OFFER, dollars_per_hour=0.8)
    assert ["use_spot: true" in text for text in files] == [True, False]
    # A service comes up without one, too.
    assert plan([TABLE, (1, "No resource satisfying x")]).stand_in is None


def test_names() -> None:
    assert planned(name="prod")[0].name == "prod"
    for name in ("Prod", "8b", "a" * 41, "a/b", "--help", ""):
        with pytest.raises(UsageError, match="is not a valid name for a launch"):
            planned(name=name)
    # What a model is called by itself must be one.
    for model in ("org/" + "8" * 60, "org/" + "a" * 38 + "-" * 5 + "b", "org/8B"):
        name_ = planned(model=replace(EIGHT, name=model))[0].name
        assert NAME.fullmatch(name_)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9000", "http://localhost:9000", "http://[::1]:9000"])
def test_no_node_reaches_this_machine(endpoint: str) -> None:
    with pytest.raises(UsageError, match="no node reaches the bucket there"):
        planned(values={"R2_ENDPOINT": endpoint})


def test_too_large_a_model() -> None:
    with pytest.raises(UsageError, match="does not fit") as caught:
        planned(model=replace(SEVENTY, name="org/70B"))
    assert (caught.value.hint or "").startswith("what fits: --gpus ")


def test_skypilot_refuses() -> None:
    with pytest.raises(UsageError, match="gcp is not enabled"):
        planned((1, "Task requires gcp which is not enabled. To enable"), cloud="gcp")
    with pytest.raises(UsageError, match="no enabled cloud offers such a machine"):
        planned((1, "No resource satisfying x"), spot=False)
    with pytest.raises(ColdstreamError, match="sky refused: ValueError: no"):
        planned((1, "ValueError: no"))
