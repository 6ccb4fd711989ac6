"""`coldstream cdn`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import click

from coldstream.cli.groups import EXIT_CODES, Group
from coldstream.cli.live import progress_for
from coldstream.cli.output import coloured, table_text
from coldstream.cli.session import State, confirm
from coldstream.cli.shared_options import count, dry_run_option, options, yes_option
from coldstream.errors import ColdstreamError, ConfigError, UsageError
from coldstream.mirror.listing import list_models
from coldstream.operate.cdn.edge import Edge
from coldstream.operate.cdn.edge_cache import CacheFinding
from coldstream.operate.cdn.edge_cache import check as checked
from coldstream.operate.cdn.edge_cache import warm as warmed
from coldstream.operate.cdn.model_objects import USEFUL_SHARE, CdnObject, is_stored, kept_share, limit_of, objects_of
from coldstream.operate.cdn.zone import (
    PHASE,
    RuleState,
    Zone,
    changes_for,
    find_zone,
    is_proxied,
    look,
    make,
    rules_for,
)
from coldstream.operate.cdn.zone import purge as purged
from coldstream.places.cdn_domain import CdnDomain, cdn_of
from coldstream.places.cloudflare import Api, open_api
from coldstream.units import format_bytes, format_rate, format_seconds, plural

_PLANS = ("free", "pro", "business", "enterprise")
_STATES = {
    "kept": "green",
    "coming": "yellow",
    "not kept": "yellow",
    "too large": "red",
    "kept 404": "red",
    "wrong": "red",
}

# Characters of a value in a rule; our longest expression has about 150.
_SHOWN_MAX = 300
_zone_option = click.option("--zone", "zone_name", metavar="ZONE", help="The domain's zone.  [default: by its name]")
_plan_option = click.option(
    "--plan", type=click.Choice(_PLANS), help="The zone's plan.  [default: from the API, else the smallest limit]"
)


@click.group(cls=Group)
def command() -> None:
    """Configure, check, warm and purge the CDN in front of the bucket.

    \b
    coldstream cdn rule                     create the cache rule
    coldstream cdn check Qwen/Qwen3-8B      which objects are cached
    coldstream cdn warm Qwen/Qwen3-8B       fill the cache near the GPUs
    coldstream cdn purge Qwen/Qwen3-8B      remove it from the cache

    R2_CDN_DOMAIN is the bucket's custom domain at Cloudflare.
    """


@command.command(epilog=f"{EXIT_CODES} Also 1 if an existing rule differs and was not replaced.")
@click.option("--domain", metavar="DOMAIN", help="The bucket's custom domain.  [env: R2_CDN_DOMAIN]")
@_zone_option
@_plan_option
@click.option("--replace", is_flag=True, help="Replace rules of coldstream that differ; leave all others.")
@click.option("--force", is_flag=True, help="Add the rule even if hardly any object is small enough to be cached.")
@dry_run_option
def rule(
    state: State,
    domain: str | None,
    zone_name: str | None,
    plan: str | None,
    replace: bool,
    force: bool,
    dry_run: bool,
) -> None:
    """Print the cache rule for the bucket's domain, or add it.

    \b
    coldstream cdn rule
    coldstream cdn rule --dry-run
    coldstream cdn rule --domain models.example.com --plan free

    Adds the rule to the zone if CLOUDFLARE_API_TOKEN is set; the token needs 'Zone: Read' and 'Cache Rules: Edit'.
    Existing rules are kept. For a rule that differs, shows each field; --replace replaces it if coldstream created it.
    """
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
        state.warn(f"{host} is not proxied by Cloudflare: nothing is kept. R2, the bucket, Settings, Custom Domains")
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


_reading_options = options(
    click.argument("name", metavar="MODEL"),
    _plan_option,
    click.option(
        "--all", "everything", is_flag=True, help="Include objects that coldstream reads from the bucket itself."
    ),
    click.option("--connections", type=count(1, 64), default=8, help="Parallel reads."),
)


@command.command(epilog=f"{EXIT_CODES} Also 1 if an object cannot be cached, or differs from the bucket's.")
@_reading_options
def check(state: State, name: str, plan: str | None, everything: bool, connections: int) -> None:
    """Check how the CDN serves each object of a model.

    \b
    coldstream cdn check Qwen/Qwen3-8B
    coldstream cdn check Qwen/Qwen3-8B --plan enterprise --json

    Requests each object twice through the domain. Shows its size, both cache statuses and a fix.
    """
    cdn = _cdn(state)
    limit = _limit(state, cdn, plan)
    objects = _objects(state, name, everything=everything)
    findings = checked(
        Edge(cdn, count=connections),
        objects,
        limit_bytes=limit,
        connections=connections,
        in_bucket=_in_bucket(state),
    )
    good = sum(finding.state in {"kept", "coming"} for finding in findings)
    document = {
        "model": name,
        "url": cdn.url,
        "limit_bytes": limit,
        "ok": good == len(findings),
        "objects": [_document(finding) for finding in findings],
    }
    state.show(document, _check_text(findings, limit))
    if good < len(findings):
        raise SystemExit(1)


@command.command(epilog=f"{EXIT_CODES} Also 1 if an object was not cached, or differs from the bucket's.")
@_reading_options
def warm(state: State, name: str, plan: str | None, everything: bool, connections: int) -> None:
    """Read a model through the CDN to fill its cache.

    \b
    coldstream cdn warm Qwen/Qwen3-8B

    Cloudflare caches objects near the client that reads them, so run this command where the GPUs are. The data is
    verified against the hashes of the upload.
    """
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
        result = warmed(
            Edge(cdn, count=connections),
            objects,
            limit_bytes=limit,
            connections=connections,
            in_bucket=_in_bucket(state),
            progress=progress,
            retry=state.new_retry(state.settings()),
        )
    bad = [finding for finding in result.findings if finding.state not in {"kept", "coming"}]
    document = {
        "model": name,
        "url": cdn.url,
        "bytes": result.bytes,
        "seconds": result.seconds,
        "objects": len(result.findings),
        "first_hits": result.first_hits,
        "hits": result.hits,
        "hit_bytes": result.hit_bytes,
        "retries": result.retries,
        "left_out": [{"key": item.key, "bytes": item.size} for item in result.left_out],
        "faults": [_document(finding) for finding in bad],
    }
    share = result.hit_bytes / small
    lines = [
        f"{finding.object.label}: {finding.state} ({finding.second or 'no cf-cache-status'}), {finding.fix}"
        for finding in bad
    ]
    if coming := [finding for finding in result.findings if finding.state == "coming"]:
        lines.append(f"not kept yet, or only a part: {', '.join(finding.object.label for finding in coming)}")
    if result.left_out:
        size = format_bytes(sum(item.size for item in result.left_out))
        lines.append(f"left out: {plural(len(result.left_out), 'object')}, {size}, larger than {format_bytes(limit)}")
    lines.append(
        f"read {format_bytes(result.bytes)} in {format_seconds(result.seconds)} "
        f"({format_rate(result.bytes, result.seconds)}), {result.first_hits} of {len(result.findings)} kept before, "
        f"{result.retries} retried"
    )
    word = coloured("warm", "green") if not bad and share == 1 else coloured("not all warm", "yellow")
    lines.append(f"{word}   {result.hits} of {len(result.findings)} HIT, {share:.0%} of the bytes")
    state.show(document, "\n".join(lines))
    if bad:
        raise SystemExit(1)


@command.command()
@click.argument("name", metavar="MODEL")
@_zone_option
@dry_run_option
@yes_option
def purge(state: State, name: str, zone_name: str | None, dry_run: bool, yes: bool) -> None:
    """Remove a model's objects from the CDN's cache.

    \b
    coldstream cdn purge Qwen/Qwen3-8B

    The bucket is not changed. CLOUDFLARE_API_TOKEN needs 'Zone: Read' and 'Cache Purge'. Segments never change, so they
    do not have to be purged.
    """
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


def _difference_lines(standing: RuleState) -> list[str]:
    """A rule that differs, a line for each field, and the fix."""
    if standing.state != "differs":
        return []
    fix = (
        "coldstream cdn rule --replace (it changes no other rule)"
        if standing.is_ours
        else "it was not made by coldstream: in the dashboard, Caching, Cache Rules"
    )
    fields = [
        f"  {each.field}: {_shown(each.actual)}, expected {_shown(each.expected)}" for each in standing.differences
    ]
    return [f"differs   {standing.rule['description']}", *fields, f"  fix: {fix}"]


def _shown(value: Any) -> str:
    # Encoded, so that control characters in a rule do not reach the terminal.
    return "nothing" if value is None else json.dumps(value)[:_SHOWN_MAX]


def _difference_document(standing: RuleState) -> dict[str, Any]:
    return {
        "description": standing.rule["description"],
        "ours": standing.is_ours,
        "differences": [
            {"field": each.field, "found": each.actual, "wanted": each.expected} for each in standing.differences
        ],
    }


def _cdn(state: State) -> CdnDomain:
    cdn = cdn_of(state.settings(), "cdn")
    assert cdn is not None
    return cdn


def _zone(api: Api, host: str, named: str | None) -> Zone:
    return find_zone(api, host, named=named)


def _objects(state: State, name: str, *, everything: bool) -> Sequence[CdnObject]:
    """Those of a model that a load reads through the domain, or all."""
    objects = objects_of(state.open_store(8), name)
    read = [item for item in objects if item.is_read]
    # A model without a manifest is only read from the bucket.
    return objects if everything or not read else read


def _in_bucket(state: State) -> Callable[[CdnObject], bool]:
    """Whether the bucket has an object, asked with its keys."""
    return partial(is_stored, state.open_store(8))


def _limit(state: State, cdn: CdnDomain, plan: str | None) -> int:
    """Bytes of the largest object that is kept: of the plan that was named, or that the API tells."""
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


def _check_text(findings: Sequence[CacheFinding], limit: int) -> str:
    rows = [("OBJECT", "SIZE", "STATE", "FIRST", "SECOND", "FIX")]
    rows += [
        (
            finding.object.label,
            format_bytes(finding.object.size),
            finding.state,
            finding.first or "-",
            finding.second or "-",
            finding.fix,
        )
        for finding in findings
    ]
    kept = sum(finding.object.size for finding in findings if finding.state == "kept")
    total = sum(finding.object.size for finding in findings)
    share = f"{kept / total:.0%}" if total else "nothing"
    last = f"{share} of {format_bytes(total)} is kept; the limit is {format_bytes(limit)} for an object"
    return f"{table_text(rows, colours=_STATES, coloured_column=2)}\n{last}"


def _document(finding: CacheFinding) -> dict[str, Any]:
    item = finding.object
    return {
        "key": item.key,
        "label": item.label,
        "bytes": item.size,
        "state": finding.state,
        "first": finding.first,
        "second": finding.second,
        "mend": finding.fix,
    }
