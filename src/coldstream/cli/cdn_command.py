"""`coldstream cdn`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import click

from coldstream.cli.session import EXIT_CODES, Group, State, coloured, common_options, confirm
from coldstream.cli.table import table_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coldstream.operate.cdn.cache_check import Finding
    from coldstream.operate.cdn.cache_rule import Standing
    from coldstream.operate.cdn.model_objects import Object
    from coldstream.operate.cdn.zone import Zone
    from coldstream.places.cdn_domain import CdnDomain
    from coldstream.places.cloudflare import Api

F = TypeVar("F", bound=Callable[..., Any])
_PLANS = ("free", "pro", "business", "enterprise")
_STATES = {
    "kept": "green",
    "coming": "yellow",
    "not kept": "yellow",
    "too large": "red",
    "kept 404": "red",
    "wrong": "red",
}

# Of a value in a rule: our longest expression has about 150 characters.
_SHOWN_MAX = 300


@click.group(cls=Group, epilog=EXIT_CODES)
def command() -> None:
    """The CDN in front of the bucket: the rule that makes it keep weights, what it keeps, filling and emptying it.

    \b
    coldstream cdn rule                     the cache rule; with CLOUDFLARE_API_TOKEN it is added to the zone
    coldstream cdn check Qwen/Qwen3-8B      each object: small enough? kept? the bucket's bytes?
    coldstream cdn warm Qwen/Qwen3-8B       pull it through, from where the GPUs are
    coldstream cdn purge Qwen/Qwen3-8B      make Cloudflare forget it

    R2_CDN_DOMAIN is the bucket's custom domain.
    """


@command.command(epilog=f"{EXIT_CODES} 1 also: a rule differs from what is wanted, and stays.")
@click.option("--domain", help="The bucket's custom domain.  [env: R2_CDN_DOMAIN]")
@click.option("--zone", "zone_name", help="The zone that it is in.  [default: found by its name]")
@click.option("--plan", type=click.Choice(_PLANS), help="Of the zone, where the API does not say.")
@click.option("--replace", is_flag=True, help="Write rules of ours that differ anew; all others stay.")
@click.option("--force", is_flag=True, help="Even when hardly anything in the bucket is small enough to be kept.")
@click.option("-n", "--dry-run", is_flag=True, help="Show the calls, and change nothing.")
@common_options
def rule(
    state: State,
    domain: str | None,
    zone_name: str | None,
    plan: str | None,
    replace: bool,
    force: bool,
    dry_run: bool,
) -> None:
    """Print the cache rule for the bucket's domain or, with CLOUDFLARE_API_TOKEN, add it to the zone's rules.

    \b
    coldstream cdn rule
    coldstream cdn rule --dry-run
    coldstream cdn rule --domain models.example.com --plan free

    Rules that are there stay. Of one that differs from what is wanted, each field is shown; --replace writes it anew
    if it is ours. The token needs 'Zone: Read' and 'Cache Rules: Edit'.
    """
    from coldstream.operate.cdn.cache_rule import PHASE, rules_for
    from coldstream.operate.cdn.zone import changes_for, is_proxied, look, make
    from coldstream.places.cloudflare import open_api

    state.flags["R2_CDN_DOMAIN"] = domain
    settings = state.settings()
    host = urlsplit(_cdn(state).url).hostname or ""
    rules = rules_for(host)
    api = open_api(settings, retry=state.new_retry(settings))
    zone = _zone(api, host, zone_name) if api else None
    kind = plan or (zone.plan if zone else None)
    _useful(state, kind, force=force)
    if api is None or zone is None:
        state.say("CLOUDFLARE_API_TOKEN is not set: nothing is added. In the dashboard: Caching, Cache Rules, Create;")
        state.say("'Edit expression', 'Eligible for cache', 'Ignore cache-control header and use this TTL' as below")
        state.show({"rules": rules, "added": []}, json.dumps(rules, indent=2))
        return
    standings = look(api, zone, rules)
    changes = changes_for(zone, standings, replace=replace)
    added = [standing for standing in standings.rules if standing.state == "absent"]
    differing = [standing for standing in standings.rules if standing.state == "differs"]
    if dry_run:
        calls = [["GET", f"/zones/{zone.id}/rulesets/phases/{PHASE}/entrypoint"]]
        calls += [[change.method, change.path] for change in changes]
        lines = [" ".join(call) for call in calls] + [line for each in differing for line in _difference_lines(each)]
        lines.append(json.dumps([change.body for change in changes], indent=2))
        differs = [_difference_document(each) for each in differing]
        state.show({"rules": rules, "added": [], "calls": calls, "differs": differs}, "\n".join(lines))
        return
    if is_proxied(api, zone, host) is False:
        _warn(state, f"{host} is not proxied by Cloudflare: nothing is kept. R2, the bucket, Settings, Custom Domains")
    make(api, changes)
    replaced = [standing for standing in differing if replace and standing.is_ours]
    left = [standing for standing in differing if standing not in replaced]
    lines = [f"added     {standing.rule['description']}" for standing in added]
    lines += [f"replaced  {standing.rule['description']}" for standing in replaced]
    lines += [line for standing in left for line in _difference_lines(standing)]
    if not lines:
        lines.append(f"there already, for {host}")
    lines.append("next:     coldstream cdn check MODEL")
    document = {
        "rules": rules,
        "added": [standing.rule["description"] for standing in added],
        "replaced": [standing.rule["description"] for standing in replaced],
        "differs": [_difference_document(standing) for standing in left],
        "zone": zone.name,
        "plan": kind,
    }
    state.show(document, "\n".join(lines))
    if left:
        raise SystemExit(1)


def _reading_options(function: F) -> F:
    """Adds what `check` and `warm` are told of the objects that they read: name, plan, everything, connections."""
    plan_help = "Of the zone.  [default: asked for, or the smallest limit]"
    for option in (
        click.option(
            "--connections", type=click.IntRange(1, 64), default=8, show_default=True, help="Reads at the same time."
        ),
        click.option("--all", "everything", is_flag=True, help="Also what coldstream reads from the bucket itself."),
        click.option("--plan", type=click.Choice(_PLANS), help=plan_help),
        click.argument("name", metavar="MODEL"),
    ):
        function = option(function)
    return function


@command.command(epilog=f"{EXIT_CODES} 1 also: something cannot be kept, or is not the bucket's.")
@_reading_options
@common_options
def check(state: State, name: str, plan: str | None, everything: bool, connections: int) -> None:
    """Look at each object of a model through the domain: its size, what the cache says of two looks, the mend.

    \b
    coldstream cdn check Qwen/Qwen3-8B
    coldstream cdn check Qwen/Qwen3-8B --plan enterprise --json
    """
    from coldstream.operate.cdn.cache_check import check as checked
    from coldstream.operate.cdn.edge import Edge

    cdn = _cdn(state)
    limit = _limit(state, cdn, plan)
    objects = _objects(state, name, everything=everything)
    found = checked(
        Edge(cdn, count=connections),
        objects,
        limit_bytes=limit,
        connections=connections,
        in_bucket=_in_bucket(state),
        on_done=lambda _: None,
    )
    good = sum(finding.state in {"kept", "coming"} for finding in found)
    document = {
        "model": name,
        "url": cdn.url,
        "limit_bytes": limit,
        "ok": good == len(found),
        "objects": [_document(finding) for finding in found],
    }
    state.show(document, _check_text(found, limit))
    if good < len(found):
        raise SystemExit(1)


@command.command(epilog=f"{EXIT_CODES} 1 also: something was not kept, or was not the bucket's.")
@_reading_options
@common_options
def warm(state: State, name: str, plan: str | None, everything: bool, connections: int) -> None:
    """Read every object of a model that can be kept through the domain, then see how many are.

    \b
    coldstream cdn warm Qwen/Qwen3-8B

    Cloudflare fills its cache by being read, near whoever reads: run it where the GPUs are. What is read is compared
    with the hashes of the upload.
    """
    from coldstream.cli.bars import progress_for
    from coldstream.errors import UsageError
    from coldstream.operate.cdn.cache_fill import warm as warmed
    from coldstream.operate.cdn.edge import Edge
    from coldstream.units import format_bytes, format_rate, format_seconds, plural

    cdn = _cdn(state)
    limit = _limit(state, cdn, plan)
    objects = _objects(state, name, everything=everything)
    small = sum(item.size for item in objects if item.size <= limit)
    if not small:
        raise UsageError(
            f"no object of {name} is within the {format_bytes(limit)} that are kept",
            hint="coldstream upload … --object-bytes-max 480MiB stores it in smaller ones",
        )
    with progress_for(state, total_bytes=small, verb="warm") as progress:
        found = warmed(
            Edge(cdn, count=connections),
            objects,
            limit_bytes=limit,
            connections=connections,
            in_bucket=_in_bucket(state),
            progress=progress,
            retry=state.new_retry(state.settings()),
        )
    bad = [finding for finding in found.findings if finding.state not in {"kept", "coming"}]
    document = {
        "model": name,
        "url": cdn.url,
        "bytes": found.bytes,
        "seconds": found.seconds,
        "objects": len(found.findings),
        "first_hits": found.first_hits,
        "hits": found.hits,
        "hit_bytes": found.hit_bytes,
        "retries": found.retries,
        "left_out": [{"key": item.key, "bytes": item.size} for item in found.left_out],
        "faults": [_document(finding) for finding in bad],
    }
    share = found.hit_bytes / small
    lines = [
        f"{finding.object.label}: {finding.state} ({finding.second or 'no cf-cache-status'}), {finding.mend}"
        for finding in bad
    ]
    if coming := [finding for finding in found.findings if finding.state == "coming"]:
        lines.append(f"not kept yet, or only a part: {', '.join(finding.object.label for finding in coming)}")
    if found.left_out:
        size = format_bytes(sum(item.size for item in found.left_out))
        lines.append(f"left out: {plural(len(found.left_out), 'object')}, {size}, larger than {format_bytes(limit)}")
    lines.append(
        f"read {format_bytes(found.bytes)} in {format_seconds(found.seconds)} "
        f"({format_rate(found.bytes, found.seconds)}), {found.first_hits} of {len(found.findings)} kept before, "
        f"{found.retries} retried"
    )
    word = coloured("warm", "green") if not bad and share == 1 else coloured("not all warm", "yellow")
    lines.append(f"{word}   {found.hits} of {len(found.findings)} HIT, {share:.0%} of the bytes")
    state.show(document, "\n".join(lines))
    if bad:
        raise SystemExit(1)


@command.command(epilog=EXIT_CODES)
@click.argument("name", metavar="MODEL")
@click.option("--zone", "zone_name", help="The zone that the domain is in.  [default: found by its name]")
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be forgotten.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@common_options
def purge(state: State, name: str, zone_name: str | None, dry_run: bool, yes: bool) -> None:
    """Make Cloudflare forget a model's objects, everywhere. The bucket stays as it is.

    \b
    coldstream cdn purge Qwen/Qwen3-8B

    CLOUDFLARE_API_TOKEN needs 'Zone: Read' and 'Cache Purge'. Segments never change, and need no purge.
    """
    from coldstream.errors import ConfigError
    from coldstream.operate.cdn.zone import purge as purged
    from coldstream.places.cloudflare import open_api
    from coldstream.units import plural

    settings = state.settings()
    cdn = _cdn(state)
    urls = [cdn.link(item.key) for item in _objects(state, name, everything=True)]
    if dry_run:
        state.show({"model": name, "urls": urls, "purged": False}, "\n".join(urls))
        return
    api = open_api(settings, retry=state.new_retry(settings))
    if api is None:
        raise ConfigError(
            f"CLOUDFLARE_API_TOKEN is not set in {' or '.join(settings.looked_in)}",
            hint="make a token with 'Zone: Read' and 'Cache Purge' at dash.cloudflare.com/profile/api-tokens",
        )
    zone = _zone(api, urlsplit(cdn.url).hostname or "", zone_name)
    if not yes:
        confirm("purge", f"{plural(len(urls), 'URL')} of {name}")
    purged(api, zone, urls)
    state.show({"model": name, "urls": urls, "purged": True}, f"purged   {plural(len(urls), 'URL')} of {name}")


def _difference_lines(standing: Standing) -> list[str]:
    """A rule that differs, a line for each field, and what mends it."""
    if standing.state != "differs":
        return []
    mend = (
        "coldstream cdn rule --replace writes it anew, and no other"
        if standing.is_ours
        else "it was not made by coldstream: in the dashboard, Caching, Cache Rules"
    )
    fields = [f"  {each.field}: {_shown(each.found)}, wanted {_shown(each.wanted)}" for each in standing.differences]
    return [f"differs   {standing.rule['description']}", *fields, f"  mend: {mend}"]


def _shown(value: Any) -> str:
    # Encoded, so that what somebody has written into a rule moves no cursor.
    return "nothing" if value is None else json.dumps(value)[:_SHOWN_MAX]


def _difference_document(standing: Standing) -> dict[str, Any]:
    return {
        "description": standing.rule["description"],
        "ours": standing.is_ours,
        "differences": [
            {"field": each.field, "found": each.found, "wanted": each.wanted} for each in standing.differences
        ],
    }


def _cdn(state: State) -> CdnDomain:
    from coldstream.places.cdn_domain import cdn_of

    cdn = cdn_of(state.settings(), "cdn")
    assert cdn is not None
    return cdn


def _zone(api: Api, host: str, named: str | None) -> Zone:
    from coldstream.operate.cdn.zone import find_zone

    return find_zone(api, host, named=named)


def _objects(state: State, name: str, *, everything: bool) -> Sequence[Object]:
    """Those of a model that a load reads through the domain, or all."""
    from coldstream.operate.cdn.model_objects import objects_of

    found = objects_of(state.open_store(8), name)
    read = [item for item in found if item.is_read]
    # A model without a manifest is read from the bucket alone.
    return found if everything or not read else read


def _in_bucket(state: State) -> Callable[[Object], bool]:
    """Whether the bucket has an object, asked with its keys."""
    from functools import partial

    from coldstream.operate.cdn.model_objects import is_stored

    return partial(is_stored, state.open_store(8))


def _limit(state: State, cdn: CdnDomain, plan: str | None) -> int:
    """Bytes of the largest object that is kept: of the plan that was named, or that the API tells."""
    from coldstream.errors import ColdstreamError
    from coldstream.operate.cdn.plan_limits import limit_of
    from coldstream.places.cloudflare import open_api

    settings = state.settings()
    if plan is None and (api := open_api(settings, retry=state.new_retry(settings))) is not None:
        try:
            plan = _zone(api, urlsplit(cdn.url).hostname or "", None).plan
        except ColdstreamError as exc:
            state.say(f"the zone's plan is not known, so the smallest limit counts: {exc.message}")
    return limit_of(plan if plan in _PLANS else None)


def _useful(state: State, plan: str | None, *, force: bool) -> None:
    """Refuses a rule by which nothing would be kept.

    Raises:
        UsageError: Hardly any of the bucket's weights is small enough.
    """
    from coldstream.errors import ColdstreamError, UsageError
    from coldstream.mirror.listing import list_models
    from coldstream.operate.cdn.model_objects import objects_of
    from coldstream.operate.cdn.plan_limits import USEFUL_SHARE, kept_share, limit_of
    from coldstream.units import format_bytes

    if force:
        return
    limit = limit_of(plan if plan in _PLANS else None)
    try:
        store = state.open_store(8)
        objects = [
            item for model in list_models(store) if model.state == "ready" for item in objects_of(store, model.name)
        ]
    except ColdstreamError as exc:
        state.say(f"the bucket was not looked at: {exc.message}")
        return
    read = [item for item in objects if item.is_read]
    share = kept_share(read, limit)
    if share is not None and share < USEFUL_SHARE:
        kind = f"on the plan {plan}" if plan else "on any plan but Enterprise"
        raise UsageError(
            f"{kind} objects up to {format_bytes(limit)} are kept, and {share:.0%} of the bucket's weights are in such",
            hint="coldstream upload … --object-bytes-max 480MiB stores them so; or --force",
        )


def _warn(state: State, text: str) -> None:
    state.say(f"{coloured('warning:', 'yellow', sys.stderr)} {text}")


def _check_text(found: Sequence[Finding], limit: int) -> str:
    from coldstream.units import format_bytes

    rows = [("OBJECT", "SIZE", "STATE", "FIRST", "SECOND", "MEND")]
    rows += [
        (
            finding.object.label,
            format_bytes(finding.object.size),
            finding.state,
            finding.first or "-",
            finding.second or "-",
            finding.mend,
        )
        for finding in found
    ]
    kept = sum(finding.object.size for finding in found if finding.state == "kept")
    total = sum(finding.object.size for finding in found)
    share = f"{kept / total:.0%}" if total else "nothing"
    last = f"{share} of {format_bytes(total)} is kept; the limit is {format_bytes(limit)} for an object"
    return f"{table_text(rows, colours=_STATES, coloured_column=2)}\n{last}"


def _document(finding: Finding) -> dict[str, Any]:
    item = finding.object
    return {
        "key": item.key,
        "label": item.label,
        "bytes": item.size,
        "state": finding.state,
        "first": finding.first,
        "second": finding.second,
        "mend": finding.mend,
    }
