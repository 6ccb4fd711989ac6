"""`coldstream launch`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from coldstream.cli.deployment_options import chosen_image, deployment_options, template_words
from coldstream.cli.groups import EXIT_CODES, DefaultGroup
from coldstream.cli.output import coloured, table_text
from coldstream.cli.session import State, confirm
from coldstream.cli.shared_options import common_options
from coldstream.machine.child_environment import CDN_SECRETS

if TYPE_CHECKING:
    from coldstream.fleet.credentials import Credentials
    from coldstream.fleet.launch_plan import Plan
    from coldstream.fleet.launch_record import Launch, Launches
    from coldstream.fleet.launch_run import Launched, Telling
    from coldstream.fleet.sky import Offer
    from coldstream.settings import Settings

# A node reads its weights once; a service's replicas come and go as long as it lives.
_TTL = {"node": "24h", "service": "7d", "job": "24h"}
# What is said of itself by SkyPilot when a launch is followed on no terminal would fill the log.
_TAIL = 20


@click.group(cls=DefaultGroup, default="up", epilog=EXIT_CODES)
def command() -> None:
    """Launch a model on rented GPUs through SkyPilot.

    \b
    coldstream launch Qwen/Qwen3-8B --gpus L4:1
    coldstream launch Qwen/Qwen3-8B --gpus L4:1 --cloud aws --replicas 1..4
    coldstream launch Qwen/Qwen3-8B --gpus L4:1 --command 'python ask.py'
    coldstream launch status
    coldstream launch down qwen3-8b

    `coldstream launch MODEL` is short for `coldstream launch up MODEL`, whose --help shows its options. The nodes get
    keys that read this model alone, and end by themselves.
    """


@command.command(epilog=EXIT_CODES)
@click.argument("model", metavar="MODEL")
@deployment_options
@click.option(
    "--replicas",
    metavar="N|N..M",
    help="A service of so many: lost ones are replaced, a range follows the load.  [default: one machine, no service]",
)
@click.option("--command", "job", metavar="COMMAND", help="A job instead: what runs against the model, then ends.")
@click.option("--name", help="SkyPilot's name for it.  [default: after the model]")
@click.option("--ttl", help="How long the nodes' keys live, up to 7d.  [default: 7d for a service, 24h otherwise]")
@click.option(
    "--credentials",
    "how",
    type=click.Choice(["auto", "sign", "api", "own"]),
    default="auto",
    show_default=True,
    help="The nodes' keys: signed here, issued by Cloudflare's API, or your own as they are.",
)
@click.option("--sky", "program", metavar="PATH", help="The `sky` program.  [default: the one on the PATH]")
@click.option("--no-wait", is_flag=True, help="Return as soon as SkyPilot has it, and not when the model answers.")
@click.option("--dry-run", is_flag=True, help="Show the plan and launch nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@common_options
def up(
    state: State,
    model: str,
    gpus: str,
    spot: bool | None,
    cloud: str | None,
    replicas: str | None,
    job: str | None,
    name: str | None,
    loader: str,
    image: str | None,
    no_image: bool,
    port: int,
    max_model_len: int | None,
    fallback: str | None,
    ttl: str | None,
    how: str,
    program: str | None,
    no_wait: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Launch a model after showing the plan and its price.

    \b
    coldstream launch Qwen/Qwen3-8B --gpus L4:1 --dry-run
    coldstream launch Qwen/Qwen3-8B --gpus L4:1 --cloud aws --yes
    coldstream launch Qwen/Qwen3-32B --gpus H100:2 --replicas 2 --name prod
    coldstream launch Qwen/Qwen3-8B --gpus L4:1 --command 'python ask.py'

    The API's key is VLLM_API_KEY; without it one is made, and kept in a file that only you can read.
    """
    from dataclasses import replace

    from coldstream.errors import UsageError
    from coldstream.fleet.credentials import mint, parse_ttl, terms_of
    from coldstream.fleet.deployment import Replicas, Wish, parse_replicas
    from coldstream.fleet.launch_plan import TARGETS
    from coldstream.fleet.launch_planning import make_plan
    from coldstream.fleet.launch_record import launches_of
    from coldstream.fleet.launch_run import launch, refuse_second
    from coldstream.fleet.sky import find_sky
    from coldstream.fleet.sky_server import passing_server
    from coldstream.model.names import checked_name
    from coldstream.package import __version__
    from coldstream.tune.clouds import parse_cloud
    from coldstream.tune.gpus import parse_gpus
    from coldstream.tune.model_facts import read_model

    if job is not None and replicas is not None:
        raise UsageError("--command is a job, and --replicas a service", hint="keep one of them")
    kind = "job" if job is not None else "service" if replicas is not None else "node"
    wish = Wish(
        target=TARGETS[kind],
        loader=loader,
        replicas=parse_replicas(replicas) if replicas is not None else Replicas(),
        spot=spot,
        cloud=parse_cloud(cloud) if cloud else None,
        image=chosen_image(image, no_image=no_image),
        port=port,
        fallback=fallback,
        command=job,
    )
    chosen, seconds = parse_gpus(gpus), parse_ttl(ttl or _TTL[kind])
    settings = state.settings()
    found = read_model(checked_name(model), settings)
    shared = _in_segments(state, found.name)
    terms = terms_of(settings, found.name, seconds, how=how, in_segments=shared)  # type: ignore[arg-type]
    launches = launches_of(settings)
    sky = find_sky(settings, named=program)
    # A dry run asks that the secrets are set, and not what they are.
    nothing = sky.having(settings, dict.fromkeys((*_SECRETS, *_SOMETIMES), ""))
    with passing_server(nothing) as keep_server:
        with _spinning(state, "SkyPilot looks for a machine"):
            plan = make_plan(
                found,
                wish,
                chosen,
                settings,
                nothing,
                name=name,
                keys=terms,
                version=__version__,
                context=max_model_len,
            )
        for line in _plan_lines(plan):
            state.say(line)
        if dry_run:
            commands = _by_hand(state, plan, max_model_len)
            state.say("nothing was written; by hand, with the values of the secrets in your environment:")
            state.show(_plan_document(plan) | {"commands": commands}, "\n".join(commands))
            return
        refuse_second(kind, plan.name, sky, launches)
        if not yes:
            confirm("launch", plan.name)
        keep_server()
    keys = mint(settings, found.name, seconds, how=how, in_segments=shared)  # type: ignore[arg-type]
    plan = replace(plan, keys=keys.terms)
    # Of an earlier one of this name, which is over: its key would pass for this one's.
    launches.forget(plan.name)
    api_key = settings.get("VLLM_API_KEY") or launches.make_api_key(plan.name)
    sky = sky.having(settings, _secrets(plan.secrets, settings, keys, api_key))
    with _telling(state) as telling:
        launched = launch(plan, sky, launches, telling, api_key=api_key, wait=not no_wait)
    _show(state, launched, launches, own_key=settings.get("VLLM_API_KEY") is not None, document=_plan_document(plan))


@command.command(epilog=EXIT_CODES)
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--sky", "program", metavar="PATH", help="The `sky` program.  [default: the one on the PATH]")
@common_options
def status(state: State, name: str | None, program: str | None) -> None:
    """Show the launches from this machine and their state.

    \b
    coldstream launch status
    coldstream launch status qwen3-8b
    """
    import time

    from coldstream.fleet.launch_record import launches_of
    from coldstream.fleet.launch_state import endpoint, states
    from coldstream.fleet.sky import find_sky

    settings = state.settings()
    launches = launches_of(settings)
    records = [launches.find(name)] if name else list(launches.all())
    if not records:
        state.show({"launches": []}, "nothing was launched from this machine")
        return
    sky = find_sky(settings, named=program)
    if name and not state.json:
        verbs = {"node": ("status", name), "service": ("serve", "status", name), "job": ("jobs", "queue")}
        raise SystemExit(sky.pass_through(*verbs[records[0].kind]))
    with _spinning(state, "asking SkyPilot"):
        found = states(records, sky)
        urls = {
            record.name: endpoint(record, sky) if found[record.name] in {"UP", "READY", "REPLICA_INIT"} else None
            for record in records
        }
    now = time.time()
    rows = [("NAME", "KIND", "MODEL", "STATE", "URL", "KEYS END")]
    rows += [
        (
            record.name,
            record.kind,
            record.model,
            found[record.name],
            urls[record.name] or "-",
            _end_text(record.expires, now),
        )
        for record in records
    ]
    documents = [
        _record_document(record) | {"state": found[record.name], "url": urls[record.name]} for record in records
    ]
    state.show({"launches": documents}, table_text(rows))
    for record in records:
        if record.kind == "service" and record.expires is not None and record.expires - now < 2 * 86400:
            state.say(f"the keys of {record.name} end soon; run: coldstream launch renew {record.name}")


@command.command(epilog=EXIT_CODES)
@click.argument("name", metavar="NAME")
@click.option("--no-follow", is_flag=True, help="What there is, and no waiting for more.")
@click.option("--replica", type=click.IntRange(1), default=1, show_default=True, help="Of a service: which one.")
@click.option("--sky", "program", metavar="PATH", help="The `sky` program.  [default: the one on the PATH]")
@common_options
def logs(state: State, name: str, no_follow: bool, replica: int, program: str | None) -> None:
    """Show what the machine of a launch says.

    \b
    coldstream launch logs qwen3-8b
    coldstream launch logs prod --replica 2 --no-follow
    """
    from coldstream.fleet.launch_record import launches_of
    from coldstream.fleet.launch_state import logs_arguments
    from coldstream.fleet.sky import find_sky

    settings = state.settings()
    record = launches_of(settings).find(name)
    sky = find_sky(settings, named=program)
    raise SystemExit(sky.pass_through(*logs_arguments(record, follow=not no_follow, replica=replica)))


@command.command(epilog=EXIT_CODES)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--sky", "program", metavar="PATH", help="The `sky` program.  [default: the one on the PATH]")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@common_options
def down(state: State, names: tuple[str, ...], program: str | None, yes: bool) -> None:
    """End launches and their machines.

    \b
    coldstream launch down qwen3-8b
    coldstream launch down qwen3-8b prod --yes
    """
    from coldstream.fleet.launch_record import launches_of
    from coldstream.fleet.launch_state import take_down
    from coldstream.fleet.sky import find_sky

    settings = state.settings()
    launches = launches_of(settings)
    records = [launches.find(name) for name in names]
    sky = find_sky(settings, named=program)
    if not yes:
        confirm("end", " and ".join(names))
    for record in records:
        with _spinning(state, f"ending {record.name}"):
            take_down(record, sky, launches)
        state.say(f"{record.name} is down")
    if state.json:
        state.show({"down": [record.name for record in records]}, "")


@command.command(epilog=EXIT_CODES)
@click.argument("name", metavar="NAME")
@click.option("--ttl", help="How long the new keys live, up to 7d.  [default: as the old ones]")
@click.option("--sky", "program", metavar="PATH", help="The `sky` program.  [default: the one on the PATH]")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@common_options
def renew(state: State, name: str, ttl: str | None, program: str | None, yes: bool) -> None:
    """Give the nodes of a launch new keys.

    \b
    coldstream launch renew prod
    coldstream launch renew prod --ttl 7d --yes

    A service is updated in place, replica by replica. A single machine's server is started again, from its local copy.
    """
    import msgspec

    from coldstream.errors import UsageError
    from coldstream.fleet.credentials import TTL_SECONDS_MAX, mint, parse_ttl, terms_of
    from coldstream.fleet.launch_record import launches_of
    from coldstream.fleet.launch_run import renew as renewed
    from coldstream.fleet.sky import find_sky

    settings = state.settings()
    launches = launches_of(settings)
    record = launches.find(name)
    if record.kind == "job":
        raise UsageError(f"{name} is a job, whose keys cannot be renewed", hint="launch it again")
    if record.keys == "own":
        raise UsageError(f"{name} has your own keys, which do not end", hint="nothing is to be done")
    api_key = settings.get("VLLM_API_KEY") or launches.api_key(name)
    if api_key is None:
        raise UsageError(f"the API key of {name} is not known here", hint="set VLLM_API_KEY to it")
    seconds = parse_ttl(ttl) if ttl else min(TTL_SECONDS_MAX, record.ttl_seconds or TTL_SECONDS_MAX)
    how = "api" if record.keys == "issued" else "auto"
    shared = _in_segments(state, record.model)
    terms_of(settings, record.model, seconds, how=how, in_segments=shared)  # type: ignore[arg-type]
    secrets = _secret_names(launches, name)
    if lost := [secret for secret in CDN_SECRETS if secret in secrets and settings.get(secret) is None]:
        raise UsageError(
            f"{lost[0]} is not set, and the nodes of {name} open the CDN with it", hint=f"set {' and '.join(lost)}"
        )
    sky = find_sky(settings, named=program)
    if not yes:
        confirm("restart" if record.kind == "node" else "update", name)
    keys = mint(settings, record.model, seconds, how=how, in_segments=shared)  # type: ignore[arg-type]
    sky = sky.having(settings, _secrets(secrets, settings, keys, api_key))
    terms = keys.terms
    record = msgspec.structs.replace(record, keys=terms.how, ttl_seconds=seconds, expires=terms.expires_at)
    with _telling(state) as telling:
        launched = renewed(record, sky, launches, telling, secrets=secrets, api_key=api_key)
    _show(state, launched, launches, own_key=settings.get("VLLM_API_KEY") is not None, document={})


_SECRETS = ("R2_ACCESS_KEY", "R2_SECRET_KEY", "R2_SESSION_TOKEN", "VLLM_API_KEY", "COLDSTREAM_BUNDLE_KEY")
_SOMETIMES = ("HF_TOKEN", *CDN_SECRETS)


def _in_segments(state: State, name: str) -> bool:
    """Whether a model's weights are stored in segments, which models share."""
    from coldstream.mirror.manifest_records import read_record
    from coldstream.mirror.segment_pool import segment_keys

    found = read_record(state.open_store(1), name)
    return found is not None and bool(segment_keys(found[0].files))


def _secrets(names: tuple[str, ...], settings: Settings, keys: Credentials, api_key: str) -> dict[str, str]:
    """Their values, by name; an empty one must be set, too."""
    known = {**keys.environment, "VLLM_API_KEY": api_key}
    return {name: known[name] if name in known else settings.get(name) or "" for name in names}


def _secret_names(launches: Launches, name: str) -> tuple[str, ...]:
    """Those that the file of a launch asks for."""
    import yaml

    try:
        asked = yaml.safe_load(launches.file(name).read_text())["secrets"]
        return tuple(secret for secret in (*_SECRETS, *_SOMETIMES) if secret in asked)
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return _SECRETS


@contextmanager
def _spinning(state: State, text: str) -> Iterator[None]:
    """Something moves while we wait, on a terminal."""
    if state.quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


@contextmanager
def _telling(state: State) -> Iterator[Telling]:
    """Steps as lines, with what SkyPilot says beside a spinner on a terminal; all of it when it fails."""
    from coldstream.errors import CancelledError, ColdstreamError
    from coldstream.fleet.launch_run import Telling
    from coldstream.fleet.launch_steps import words
    from coldstream.units import format_seconds

    said: list[str] = []
    live = None
    if not state.quiet and sys.stderr.isatty():
        from rich.console import Console
        from rich.markup import escape

        console = Console(stderr=True)
        live = console.status("SkyPilot")

    def on_line(line: str) -> None:
        said.append(line)
        if live is not None:
            live.update(escape(line[: max(20, console.width - 4)]))

    def on_step(name: str, seconds: float) -> None:
        if name == "submitted":
            # It has done its part: what goes wrong now is not in what it said.
            said.clear()
        state.say(f"  {format_seconds(seconds):>7}  {words(name)}")

    try:
        if live is not None:
            live.start()
        yield Telling(line=on_line, step=on_step)
    except CancelledError:
        raise
    except ColdstreamError:
        for line in said[-_TAIL:]:
            state.say(f"  sky: {line}")
        raise
    finally:
        if live is not None:
            live.stop()


def _plan_lines(plan: Plan) -> list[str]:
    from coldstream.units import format_seconds

    deployment, offer = plan.deployment, plan.offer
    count = deployment.wish.replicas.most
    first = f"{deployment.model}   {deployment.size}   on {deployment.gpus}"
    rows = [
        ("machine" if count == 1 else "machines", _machine_text(offer, _price_text(plan))),
        *([("stand-in", _machine_text(plan.stand_in, _stand_in_text(plan)))] if plan.has_stand_ins else []),
        ("weights", f"in {format_seconds(deployment.load_seconds)} at the least, {plan.limit}"),
        *([("cdn", f"nodes read through {deployment.domain.url}")] if deployment.domain else []),
        ("policy", plan.policy),
        ("keys", _keys_text(plan)),
    ]
    lines = [first, *(f"  {name:<9} {text}" for name, text in rows)]
    return lines + [f"{coloured('warning:', 'yellow', sys.stderr)} {text}" for text in _warnings(plan)]


def _machine_text(offer: Offer | None, price: str) -> str:
    if offer is None:
        return "SkyPilot did not say which"
    shape = [f"{offer.cores} cores" if offer.cores else "", f"{offer.memory_gib:g} GiB" if offer.memory_gib else ""]
    return "   ".join([offer.instance, offer.infra, ", ".join(filter(None, shape)), price])


def _price_text(plan: Plan) -> str:
    if plan.dollars_per_hour is None:
        return "price unknown"
    kind = "spot" if plan.deployment.spot else "on demand"
    if plan.deployment.on_demand_replicas:
        kind = "spot, one of them on demand"
    controller = "" if plan.kind == "node" else ", and the controller's machine"
    return f"{_dollars_text(plan.dollars_per_hour)} {kind}{controller}"


def _stand_in_text(plan: Plan) -> str:
    if plan.stand_in_dollars_per_hour is None:
        return "price unknown"
    return f"{_dollars_text(plan.stand_in_dollars_per_hour)} on demand, while no spot machine is ready"


def _dollars_text(prices: tuple[float, float]) -> str:
    few, many = prices
    return f"${few:.2f}/h" if few == many else f"${few:.2f} to ${many:.2f}/h"


def _keys_text(plan: Plan) -> str:
    keys = plan.keys
    if keys.how == "own":
        return "your own, as they are"
    return f"{keys.how}, read {plan.deployment.model} alone, end {_moment(keys.expires_at)}"


def _warnings(plan: Plan) -> list[str]:
    from coldstream.mirror.segment_pool import ROOT as SEGMENTS

    found = []
    keys = plan.keys
    if keys.how == "own":
        found.append("the machines get your own keys, with all that they may do: make some that read this bucket alone")
    if plan.kind == "service" and keys.expires_at is not None:
        found.append(
            f"replicas that start after {_moment(keys.expires_at)} cannot read the bucket; "
            f"before that, run: coldstream launch renew {plan.name}"
        )
    if any(prefix.endswith(SEGMENTS) for prefix in keys.prefixes):
        found.append("its weights are stored in segments, which models share: the keys open those of all models")
    if names := plan.deployment.domain_secrets:
        found.append(f"what opens the CDN goes along as it is, and does not end by itself: {', '.join(names)}")
    if plan.kind == "node" and plan.deployment.spot:
        found.append("a machine that is taken back is not replaced; --replicas 1 makes it a service, which does that")
    return found


def _by_hand(state: State, plan: Plan, max_model_len: int | None) -> list[str]:
    """The commands that come to the same, but for connections that suit the machine."""
    import shlex

    deployment, file = plan.deployment, f"{plan.name}.yaml"
    words = template_words(deployment.model, deployment.wish, str(deployment.gpus), max_model_len=max_model_len)
    for flag, value in (("--store", state.flags.get("COLDSTREAM_STORE")), ("--env-file", state.env_file), ("-o", file)):
        words += [flag, str(value)] if value is not None else []
    return [shlex.join(words), f"sky {shlex.join(plan.arguments(file))}"]


def _show(state: State, launched: Launched, launches: Launches, *, own_key: bool, document: dict[str, Any]) -> None:
    import shlex

    name = launched.launch.name
    found = document | {
        "launch": _record_document(launched.launch),
        "url": launched.url,
        "seconds": launched.seconds,
        "phases": [
            {"name": phase.name, "seconds": phase.seconds, "note": phase.note, "of_start": phase.of_start}
            for phase in launched.phases
        ],
        "key_file": None if own_key else str(launches.key_file(name)),
    }
    lines = [_phase_text(phase) for phase in launched.phases]
    lines.append(_ready_text(launched))
    if launched.launch.kind != "job":
        key = '"$VLLM_API_KEY"' if own_key else f'"$(cat {shlex.quote(str(launches.key_file(name)))})"'
        url = launched.url or "URL"
        lines.append(f"try:   curl -H Authorization:\\ Bearer\\ {key} {url}/v1/models")
    lines.append(f"next:  coldstream launch logs {name}; coldstream launch down {name}")
    state.show(found, "\n".join(lines))


def _ready_text(launched: Launched) -> str:
    from coldstream.units import format_seconds

    name, seconds = launched.launch.name, format_seconds(launched.seconds)
    if not launched.phases:
        return f"{name} is SkyPilot's after {seconds}; see how it goes: coldstream launch status"
    if launched.launch.kind == "job":
        return f"{coloured('runs', 'green')} after {seconds}: job {launched.launch.job or name}"
    return f"{coloured('ready', 'green')} in {seconds}   {launched.url}"


def _phase_text(phase: Any) -> str:
    indent = "    " if phase.of_start else "  "
    return f"{indent}{phase.name:<{24 - len(indent)}} {phase.seconds:7.1f} s  {phase.note}".rstrip()


def _plan_document(plan: Plan) -> dict[str, Any]:
    from dataclasses import asdict

    keys, deployment = plan.keys, plan.deployment
    return {
        "name": plan.name,
        "kind": plan.kind,
        "model": deployment.model,
        "gpus": str(deployment.gpus),
        "spot": deployment.spot,
        "replicas": [deployment.wish.replicas.fewest, deployment.wish.replicas.most],
        "offer": asdict(plan.offer) if plan.offer else None,
        "stand_in": asdict(plan.stand_in) if plan.stand_in else None,
        "dollars_per_hour": plan.dollars_per_hour,
        "stand_in_dollars_per_hour": plan.stand_in_dollars_per_hour,
        "load_seconds": deployment.load_seconds,
        "limited_by": plan.limit,
        "cdn": deployment.domain.url if deployment.domain else None,
        "policy": plan.policy,
        "keys": {"how": keys.how, "expires": keys.expires_at, "prefixes": keys.prefixes},
        "warnings": _warnings(plan),
    }


def _record_document(record: Launch) -> dict[str, Any]:
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(record)
    return found


def _end_text(expires: float | None, now: float) -> str:
    if expires is None:
        return "-"
    return _moment(expires) if expires > now else f"ended {_moment(expires)}"


def _moment(seconds: float | None) -> str:
    from datetime import datetime, timezone

    return datetime.fromtimestamp(seconds or 0, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
