"""`coldstream launch`."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime, timezone
from typing import Any

import click
import msgspec
import yaml

from coldstream.cli.live import Activity, live_lines
from coldstream.cli.output import attributes, coloured, table_text
from coldstream.cli.session import State, confirm
from coldstream.cli.stored_runtimes import check_keys, chosen_runtime, software_document
from coldstream.cli.verbs import DefaultGroup, deployment_options, dry_run_option, negative_flag, yes_option
from coldstream.errors import CancelledError, ColdstreamError, UsageError
from coldstream.fleet.credentials import TTL_SECONDS_MAX, Credentials, How, parse_ttl, plan_keys
from coldstream.fleet.deploy_options import read_options
from coldstream.fleet.launch_plan import TARGETS, LaunchPlan, make_plan
from coldstream.fleet.launch_run import STEP_TEXTS, Launched, ProgressCallbacks, check_name_is_free, launch
from coldstream.fleet.launch_run import renew as renewed
from coldstream.fleet.launches import (
    ANSWERING,
    Launches,
    fetch_endpoint,
    fetch_states,
    launches_of,
    logs_arguments,
    take_down,
)
from coldstream.fleet.models_beside import checked_draft, with_adapters
from coldstream.fleet.sky import Offer, Sky, find_sky, temporary_server
from coldstream.machine.child_environment import CDN_SECRETS
from coldstream.mirror.manifest_records import read_record
from coldstream.mirror.segment_pool import ROOT as SEGMENTS
from coldstream.mirror.segment_pool import segment_keys
from coldstream.model.names import checked_name
from coldstream.settings import Settings
from coldstream.tune.model_shape import read_model
from coldstream.units import format_seconds, plural

# A node reads its weights once; a service starts replicas as long as it exists.
_TTL = {"node": "24h", "service": "7d", "job": "24h"}
# Lines of SkyPilot's output to print after a failure.
_TAIL = 20
_SECRETS = ("R2_ACCESS_KEY", "R2_SECRET_KEY", "R2_SESSION_TOKEN", "VLLM_API_KEY", "COLDSTREAM_BUNDLE_KEY")
_OPTIONAL_SECRETS = ("HF_TOKEN", *CDN_SECRETS)
_sky_option = click.option("--sky", "program", metavar="PATH", help="The sky program.  [default: the one on the PATH]")


@click.group(cls=DefaultGroup, default="up")
def command() -> None:
    """Launch a model on rented GPUs through SkyPilot.

    \b
    coldstream launch Qwen/Qwen3-8B --gpus L4:1
    coldstream launch Qwen/Qwen3-8B --gpus L4:1 --cloud aws --replicas 1..4
    coldstream launch Qwen/Qwen3-8B --gpus L4:1 --command 'python ask.py'
    coldstream launch status
    coldstream launch down qwen3-8b

    `coldstream launch MODEL` is short for `coldstream launch up MODEL`, whose --help shows its options. The nodes get
    temporary keys that can read only this model.
    """


@command.command()
@click.argument("model", metavar="MODEL")
@deployment_options("launch")
@click.option("--name", help="SkyPilot's name for the launch.  [default: after the model]")
@click.option("--ttl", help="Lifetime of the nodes' keys, up to 7d.  [default: 7d for a service, 24h otherwise]")
@click.option(
    "--credentials",
    "how",
    type=click.Choice(["auto", "sign", "api", "own"]),
    default="auto",
    help="Give the nodes keys that are signed here or issued by Cloudflare's API, or your own keys.",
)
@_sky_option
@negative_flag("--no-wait", "Return once SkyPilot has started it, before the model answers.")
@dry_run_option
@yes_option
def up(
    state: State,
    model: str,
    name: str | None,
    ttl: str | None,
    how: How,
    program: str | None,
    wait: bool,
    dry_run: bool,
    yes: bool,
    **values: Any,
) -> None:
    """Launch a model after showing the plan and its price.

    \b
    coldstream launch Qwen/Qwen3-8B --gpus L4:1 --dry-run
    coldstream launch Qwen/Qwen3-8B --gpus L4:1 --cloud aws --yes
    coldstream launch Qwen/Qwen3-32B --gpus H100:2 --replicas 2 --name prod
    coldstream launch Qwen/Qwen3-8B --gpus L4:1 --command 'python ask.py'

    The API key is VLLM_API_KEY; if that is unset, a key is generated and kept in a file that only you can read.
    """
    kind = _kind_of(values)
    options, seconds = read_options(values | {"target": TARGETS[kind]}), parse_ttl(ttl or _TTL[kind])
    settings = state.settings()
    options.check()
    shape = read_model(checked_name(model), settings)
    options = with_adapters(options, shape.name, settings, state.open_store(8), say=state.say)
    draft = checked_draft(options.speculative_config, settings)
    beside = (*options.adapter_names, *([draft] if draft else ()))
    shared = _has_segments(state, shape.name, *beside)
    launches = launches_of(settings)
    sky = find_sky(settings, named=program)
    runtime = click.get_current_context().with_resource(chosen_runtime(state, options))
    digest = runtime.manifest.digest if runtime.manifest else None
    key_plan = plan_keys(settings, shape.name, seconds, how, beside=beside, in_segments=shared, runtime=digest)
    # SkyPilot's dry run checks only that the secrets are set.
    dry_sky = sky.with_secrets(settings, dict.fromkeys((*_SECRETS, *_OPTIONAL_SECRETS), ""))
    with temporary_server(dry_sky) as keep_server:
        with live_lines(state, Activity("SkyPilot is looking for a machine").text):
            terms = key_plan.terms()
            plan = make_plan(
                shape, options, settings, dry_sky, name=name, keys=terms, draft=draft, runtime=runtime.manifest
            )
        for line in _plan_lines(plan):
            state.say(line)
        if dry_run:
            commands = _equivalent_commands(state, plan)
            state.say("nothing was written; equivalent commands, with the secrets in your environment:")
            state.show(_plan_document(plan) | {"commands": commands}, "\n".join(commands))
            return
        check_name_is_free(kind, plan.name, sky, launches)
        if not yes:
            confirm("launch", plan.name)
        keep_server()
    runtime.publish(state)
    keys = key_plan.mint()
    if digest is not None:
        check_keys(state, keys.environment, digest)
    # An earlier launch of this name has ended; its API key must not be taken for this one's.
    launches.forget(plan.name)
    api_key = settings.get("VLLM_API_KEY") or launches.make_api_key(plan.name)
    sky = _sky_for_nodes(sky, plan.deployment.secrets, settings, keys, api_key)
    with _progress(state) as progress:
        launched = launch(replace(plan, keys=keys.terms), sky, launches, progress, api_key=api_key, wait=wait)
    _show(state, launched, launches, own_key=settings.get("VLLM_API_KEY") is not None, document=_plan_document(plan))


def _kind_of(values: dict[str, Any]) -> str:
    is_job, is_service = values["command"] is not None, values["replicas"] is not None
    if is_job and is_service:
        raise UsageError("--command is for a job, and --replicas for a service", hint="keep one of them")
    return "job" if is_job else "service" if is_service else "node"


@command.command()
@click.argument("name", metavar="[NAME]", required=False)
@_sky_option
def status(state: State, name: str | None, program: str | None) -> None:
    """Show the launches from this machine and their state.

    \b
    coldstream launch status
    coldstream launch status qwen3-8b
    """
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
    now = time.time()
    rows, documents = [("NAME", "KIND", "MODEL", "STATE", "URL", "KEYS EXPIRE")], []
    with live_lines(state, Activity("asking SkyPilot").text):
        states = fetch_states(records, sky)
        for record in records:
            word = states[record.name]
            url = fetch_endpoint(record, sky) if word in ANSWERING else None
            expiry = _time_text(record.expires) if record.expires is not None else "-"
            expiry = f"expired {expiry}" if record.expires is not None and record.expires <= now else expiry
            rows.append((record.name, record.kind, record.model, word, url or "-", expiry))
            documents.append(msgspec.to_builtins(record) | {"state": word, "url": url})
    state.show({"launches": documents}, table_text(rows))
    for record in records:
        if record.kind == "service" and record.expires is not None and record.expires - now < 2 * 86400:
            state.say(f"the keys of {record.name} expire soon; run: coldstream launch renew {record.name}")


@command.command()
@click.argument("name", metavar="NAME")
@negative_flag("--no-follow", "Print the log so far and exit.")
@click.option("--replica", type=click.IntRange(1), default=1, help="Replica of a service.")
@_sky_option
def logs(state: State, name: str, follow: bool, replica: int, program: str | None) -> None:
    """Show the log of a launch.

    \b
    coldstream launch logs qwen3-8b
    coldstream launch logs prod --replica 2 --no-follow
    """
    settings = state.settings()
    record = launches_of(settings).find(name)
    sky = find_sky(settings, named=program)
    raise SystemExit(sky.pass_through(*logs_arguments(record, follow=follow, replica=replica)))


@command.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@_sky_option
@yes_option
def down(state: State, names: tuple[str, ...], program: str | None, yes: bool) -> None:
    """Stop launches and terminate their machines.

    \b
    coldstream launch down qwen3-8b
    coldstream launch down qwen3-8b prod --yes
    """
    settings = state.settings()
    launches = launches_of(settings)
    records = [launches.find(name) for name in names]
    sky = find_sky(settings, named=program)
    if not yes:
        confirm("stop", " and ".join(names))
    for record in records:
        with live_lines(state, Activity(f"stopping {record.name}").text):
            take_down(record, sky, launches)
        state.say(f"{record.name} is down")
    if state.json:
        state.show({"down": [record.name for record in records]}, "")


@command.command()
@click.argument("name", metavar="NAME")
@click.option("--ttl", help="Lifetime of the new keys, up to 7d.  [default: as before]")
@_sky_option
@yes_option
def renew(state: State, name: str, ttl: str | None, program: str | None, yes: bool) -> None:
    """Give the nodes of a launch new keys.

    \b
    coldstream launch renew prod
    coldstream launch renew prod --ttl 7d --yes

    A service is updated in place, replica by replica. The server of a single machine is restarted from its local copy.
    """
    settings = state.settings()
    launches = launches_of(settings)
    record = launches.find(name)
    if record.kind == "job":
        raise UsageError(f"{name} is a job, whose keys cannot be renewed", hint="launch it again")
    if record.keys == "own":
        raise UsageError(f"{name} uses your own keys, which do not expire", hint="there is nothing to renew")
    own_key = settings.get("VLLM_API_KEY")
    api_key = own_key or launches.api_key(name)
    if api_key is None:
        raise UsageError(f"the API key of {name} is not known here", hint="set VLLM_API_KEY to it")
    seconds = parse_ttl(ttl) if ttl else min(TTL_SECONDS_MAX, record.ttl_seconds or TTL_SECONDS_MAX)
    how: How = "api" if record.keys == "issued" else "auto"
    shared = _has_segments(state, record.model, *record.beside)
    # Fails before the question if there can be no keys.
    key_plan = plan_keys(
        settings, record.model, seconds, how, beside=record.beside, in_segments=shared, runtime=record.runtime
    )
    secrets = _secret_names(launches, name)
    if missing := [secret for secret in CDN_SECRETS if secret in secrets and settings.get(secret) is None]:
        message = f"{missing[0]} is not set, and the nodes of {name} need it for the CDN"
        raise UsageError(message, hint=f"set {' and '.join(missing)}")
    sky = find_sky(settings, named=program)
    if not yes:
        confirm("restart" if record.kind == "node" else "update", name)
    keys = key_plan.mint()
    sky = _sky_for_nodes(sky, secrets, settings, keys, api_key)
    terms = keys.terms
    record = msgspec.structs.replace(record, keys=terms.how, ttl_seconds=seconds, expires=terms.expires_at)
    with _progress(state) as progress:
        launched = renewed(record, sky, launches, progress, secrets=secrets, api_key=api_key)
    _show(state, launched, launches, own_key=own_key is not None, document={})


def _has_segments(state: State, *names: str) -> bool:
    """Whether weights of one of these models are stored in segments, which models share."""
    store = state.open_store(1)
    records = (read_record(store, name) for name in names)
    return any(record is not None and segment_keys(record[0].files) for record in records)


def _sky_for_nodes(sky: Sky, names: tuple[str, ...], settings: Settings, keys: Credentials, api_key: str) -> Sky:
    """`sky` with the values of the nodes' secrets; a secret without a value must be set too, to the empty text."""
    values = {name: settings.get(name) or "" for name in names} | keys.environment | {"VLLM_API_KEY": api_key}
    return sky.with_secrets(settings, {name: values[name] for name in names})


def _secret_names(launches: Launches, name: str) -> tuple[str, ...]:
    try:
        secrets = yaml.safe_load(launches.file(name).read_text())["secrets"]
        return tuple(secret for secret in (*_SECRETS, *_OPTIONAL_SECRETS) if secret in secrets)
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return _SECRETS


@contextmanager
def _progress(state: State) -> Iterator[ProgressCallbacks]:
    """Prints steps as lines, SkyPilot's last line below them, and the end of its output when it fails."""
    output: list[str] = []
    activity = Activity("SkyPilot")

    def on_line(line: str) -> None:
        output.append(line)
        activity.tell(line)

    def on_step(name: str, seconds: float) -> None:
        if name == "submitted":
            # SkyPilot has done its part: its output does not explain later failures.
            output.clear()
        state.say(f"  {format_seconds(seconds):>7}  {STEP_TEXTS[name]}")

    try:
        with live_lines(state, activity.text):
            yield ProgressCallbacks(line=on_line, step=on_step)
    except CancelledError:
        raise
    except ColdstreamError:
        for line in output[-_TAIL:]:
            state.say(f"  sky: {line}")
        raise


def _plan_lines(plan: LaunchPlan) -> list[str]:
    deployment, keys, prediction = plan.deployment, plan.keys, plan.deployment.loader.prediction
    kind = "spot" if deployment.spot else "on demand"
    kind = "spot, one of them on demand" if deployment.on_demand_replicas else kind
    kind += "" if plan.kind == "node" else ", plus the controller's machine"
    price = _price_text(plan.dollars_per_hour, kind)
    stand_in = _price_text(plan.stand_in_dollars_per_hour, "on demand, while no spot machine is ready")
    origin = "temporary" if keys.how == "signed" else "temporary (issued by Cloudflare)"
    adapters = deployment.options.adapter_names
    beside = f", {plan.draft}" if plan.draft else ""
    beside += f" and {plural(len(adapters), 'adapter')}" if adapters else ""
    terms = f"{origin}, read-only for {deployment.model}{beside}, expire {_time_text(keys.expires_at)}"
    rows = {
        "machine" if deployment.options.replicas.most == 1 else "machines": _machine_text(plan.offer, price),
        "stand-in": _machine_text(plan.stand_in, stand_in) if plan.has_stand_ins else "",
        "weights": f"at least {format_seconds(prediction.seconds)}, {prediction.limited_by}",
        "adapters": ", ".join(adapters),
        "draft": plan.draft or "",
        "software": deployment.software,
        "cdn": f"nodes read through {deployment.domain.url}" if deployment.domain else "",
        "policy": plan.policy,
        "keys": "your own, unchanged" if keys.how == "own" else terms,
    }
    lines = [f"{deployment.model}   {deployment.size}   on {deployment.options.gpus}"]
    lines += [f"  {name:<9} {text}" for name, text in rows.items() if text]
    return lines + [f"{coloured('warning:', 'yellow', sys.stderr)} {text}" for text in _warnings(plan)]


def _machine_text(offer: Offer | None, price: str) -> str:
    if offer is None:
        return "SkyPilot did not say which"
    shape = [f"{offer.cores} cores" if offer.cores else "", f"{offer.memory_gib:g} GiB" if offer.memory_gib else ""]
    return "   ".join([offer.instance, offer.infra, ", ".join(filter(None, shape)), price])


def _price_text(prices: tuple[float, float] | None, note: str) -> str:
    if prices is None:
        return "price unknown"
    few, many = prices
    return (f"${few:.2f}/h" if few == many else f"${few:.2f} to ${many:.2f}/h") + f" {note}"


def _warnings(plan: LaunchPlan) -> list[str]:
    keys, expiry, names = plan.keys, _time_text(plan.keys.expires_at), plan.deployment.domain_secrets
    renewal = f"replicas that start after {expiry} cannot read the bucket; before that, run: coldstream launch renew"
    warnings = []
    if keys.how == "own":
        warnings.append(
            "the machines get your own keys, with all their permissions; use keys that only read this bucket"
        )
    if plan.kind == "service" and keys.expires_at is not None:
        warnings.append(f"{renewal} {plan.name}")
    if any(prefix.endswith(SEGMENTS) for prefix in keys.prefixes):
        warnings.append(
            "its weights are in segments that models share, so the keys can read the segments of all models"
        )
    if names:
        warnings.append(f"the CDN's secrets are passed on unchanged and do not expire: {', '.join(names)}")
    if plan.kind == "node" and plan.deployment.spot:
        warnings.append("a preempted machine is not replaced; use --replicas 1 for a service, which replaces it")
    return warnings


def _equivalent_commands(state: State, plan: LaunchPlan) -> list[str]:
    """Commands with the same effect, except that the number of connections does not fit the machine."""
    deployment, file = plan.deployment, f"{plan.name}.yaml"
    words = ["coldstream", "template", deployment.model, *deployment.options.arguments()]
    for flag, value in (("--store", state.flags.get("COLDSTREAM_STORE")), ("--env-file", state.env_file), ("-o", file)):
        words += [flag, str(value)] if value is not None else []
    return [shlex.join(words), f"sky {shlex.join(plan.arguments(file))}"]


def _show(state: State, launched: Launched, launches: Launches, *, own_key: bool, document: dict[str, Any]) -> None:
    name, seconds = launched.launch.name, format_seconds(launched.seconds)
    key_file = str(launches.key_file(name))
    document = document | {
        "launch": msgspec.to_builtins(launched.launch),
        **attributes(launched, "url", "seconds"),
        "phases": [asdict(phase) for phase in launched.phases],
        "key_file": None if own_key else key_file,
    }
    lines = []
    for phase in launched.phases:
        label = f"{'    ' if phase.of_start else '  '}{phase.name}"
        lines.append(f"{label:<24} {phase.seconds:7.1f} s  {phase.note}".rstrip())
    if not launched.phases:
        lines.append(f"SkyPilot has accepted {name} after {seconds}; check its progress with: coldstream launch status")
    elif launched.launch.kind == "job":
        lines.append(f"{coloured('running', 'green')} after {seconds}: job {launched.launch.job or name}")
    else:
        lines.append(f"{coloured('ready', 'green')} in {seconds}   {launched.url}")
    if launched.launch.kind != "job":
        key = '"$VLLM_API_KEY"' if own_key else f'"$(cat {shlex.quote(key_file)})"'
        lines.append(f"try:   curl -H Authorization:\\ Bearer\\ {key} {launched.url or 'URL'}/v1/models")
    lines.append(f"next:  coldstream launch logs {name}; coldstream launch down {name}")
    state.show(document, "\n".join(lines))


def _plan_document(plan: LaunchPlan) -> dict[str, Any]:
    keys, deployment = plan.keys, plan.deployment
    return {
        **attributes(plan, "name", "kind", "policy", "dollars_per_hour", "stand_in_dollars_per_hour"),
        **attributes(deployment, "model", "spot"),
        "gpus": str(deployment.options.gpus),
        "replicas": [deployment.options.replicas.fewest, deployment.options.replicas.most],
        "offer": asdict(plan.offer) if plan.offer else None,
        "stand_in": asdict(plan.stand_in) if plan.stand_in else None,
        "load_seconds": deployment.loader.prediction.seconds,
        "limited_by": deployment.loader.prediction.limited_by,
        "cdn": deployment.domain.url if deployment.domain else None,
        "adapters": deployment.options.adapter_names,
        "draft": plan.draft,
        "software": software_document(deployment),
        "keys": {**attributes(keys, "how", "prefixes"), "expires": keys.expires_at},
        "warnings": _warnings(plan),
    }


def _time_text(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds or 0, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
