"""`coldstream cdn`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import click

from coldstream.cli.live import progress_for
from coldstream.cli.output import attributes, coloured, table_text
from coldstream.cli.session import State, confirm
from coldstream.cli.verbs import EXIT_CODES, Group, count, dry_run_option, options, yes_option
from coldstream.errors import ColdstreamError, ConfigError, UsageError
from coldstream.mirror.listing import list_models
from coldstream.operate.cdn import edge_cache
from coldstream.operate.cdn.zone import PHASE, RuleState, changes_for, find_zone, is_proxied, look, rules_for
from coldstream.operate.cdn.zone import purge as purged
from coldstream.places.cdn_domain import CdnDomain, cdn_of
from coldstream.places.cloudflare import Api, open_api
from coldstream.units import format_bytes, format_rate, format_seconds, plural

_COLOURS = {
    "kept": "green",
    **dict.fromkeys(("coming", "not kept"), "yellow"),
    **dict.fromkeys(("too large", "kept 404", "wrong"), "red"),
}
_GOOD = ("kept", "coming")
# Characters of a value in a rule; our longest expression has about 150.
_SHOWN_MAX = 300
_zone_option = click.option("--zone", "zone_name", metavar="ZONE", help="The domain's zone.  [default: by its name]")
_plan_option = click.option(
    "--plan",
    type=click.Choice([*edge_cache.PLANS]),
    help="The zone's plan.  [default: from the API, else the smallest limit]",
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
    state: State, domain: str | None, zone_name: str | None, plan: str | None, replace: bool, force: bool, dry_run: bool
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
    host, api = _host(_cdn(state)), _api(state)
    rules = rules_for(host)
    zone = find_zone(api, host, named=zone_name) if api else None
    kind = plan or (zone.plan if zone else None)
    if not force:
        _check_usefulness(state, kind)
    if api is None or zone is None:
        state.say("CLOUDFLARE_API_TOKEN is not set: nothing is added. In the dashboard: Caching, Cache Rules, Create;")
        state.say("'Edit expression', 'Eligible for cache', 'Ignore cache-control header and use this TTL' as below")
        state.show({"rules": rules, "added": []}, json.dumps(rules, indent=2))
        return
    ruleset, standings = look(api, zone, rules)
    changes = changes_for(zone, ruleset, standings, replace=replace)
    differing = [standing for standing in standings if standing.state == "differs"]
    if dry_run:
        calls = [["GET", f"/zones/{zone.id}/rulesets/phases/{PHASE}/entrypoint"]]
        calls += [[method, path] for method, path, _ in changes]
        lines = [" ".join(call) for call in calls] + [line for each in differing for line in _difference_lines(each)]
        lines.append(json.dumps([body for _, _, body in changes], indent=2))
        document = {"rules": rules, "added": [], "calls": calls, "differs": list(map(_difference_document, differing))}
        state.show(document, "\n".join(lines))
        return
    if is_proxied(api, zone, host) is False:
        state.warn(f"{host} is not proxied by Cloudflare: nothing is kept. R2, the bucket, Settings, Custom Domains")
    for method, path, body in changes:
        # A rule that is appended twice would be there twice; one that is written twice is not.
        api.call(method, path, body, repeatable=method == "PATCH")
    left = [standing for standing in differing if not (replace and standing.is_ours)]
    added = [standing.rule["description"] for standing in standings if standing.state == "absent"]
    replaced = [standing.rule["description"] for standing in differing if standing not in left]
    lines = [f"added     {description}" for description in added]
    lines += [f"replaced  {description}" for description in replaced]
    lines += [line for standing in left for line in _difference_lines(standing)]
    lines = [*(lines or [f"there already, for {host}"]), "next:     coldstream cdn check MODEL"]
    document = {"rules": rules, "added": added, "replaced": replaced, "differs": list(map(_difference_document, left))}
    state.show(document | {"zone": zone.name, "plan": kind}, "\n".join(lines))
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
def check(state: State, name: str, plan: str | None, everything: bool, connections: int) -> int:
    """Check how the CDN serves each object of a model.

    \b
    coldstream cdn check Qwen/Qwen3-8B
    coldstream cdn check Qwen/Qwen3-8B --plan enterprise --json

    Requests each object twice through the domain. Shows its size, both cache statuses and a fix.
    """
    edge, objects, how = _opened(state, name, plan, everything=everything, connections=connections)
    findings = edge_cache.check(edge, objects, **how)
    limit, is_good = how["limit_bytes"], all(finding.state in _GOOD for finding in findings)
    document = {"model": name, "url": edge.cdn.url, "limit_bytes": limit, "ok": is_good}
    state.show(document | {"objects": [_document(finding) for finding in findings]}, _check_text(findings, limit))
    return int(not is_good)


@command.command(epilog=f"{EXIT_CODES} Also 1 if an object was not cached, or differs from the bucket's.")
@_reading_options
def warm(state: State, name: str, plan: str | None, everything: bool, connections: int) -> int:
    """Read a model through the CDN to fill its cache.

    \b
    coldstream cdn warm Qwen/Qwen3-8B

    Cloudflare caches objects near the client that reads them, so run this command where the GPUs are. The data is
    verified against the hashes of the upload.
    """
    edge, objects, how = _opened(state, name, plan, everything=everything, connections=connections)
    limit = format_bytes(how["limit_bytes"])
    small = sum(item.size for item in objects if item.size <= how["limit_bytes"])
    if not small:
        hint = "coldstream upload … --object-bytes-max 480MiB stores it in smaller ones"
        raise UsageError(f"no object of {name} is within the {limit} that are kept", hint=hint)
    retry = state.new_retry(state.settings())
    with progress_for(state, total_bytes=small, verb="warm") as progress:
        result = edge_cache.warm(edge, objects, progress=progress, retry=retry, **how)
    bad = [finding for finding in result.findings if finding.state not in _GOOD]
    total, share = len(result.findings), result.hit_bytes / small
    document = {
        "model": name,
        "url": edge.cdn.url,
        **attributes(result, "bytes", "seconds", "first_hits", "hits", "hit_bytes", "retries"),
        "objects": total,
        "left_out": [{"key": item.key, "bytes": item.size} for item in result.left_out],
        "faults": [_document(finding) for finding in bad],
    }
    lines = [f"{each.object.label}: {each.state} ({each.second or 'no cf-cache-status'}), {each.fix}" for each in bad]
    if coming := [finding.object.label for finding in result.findings if finding.state == "coming"]:
        lines.append(f"not kept yet, or only a part: {', '.join(coming)}")
    if result.left_out:
        size = format_bytes(sum(item.size for item in result.left_out))
        lines.append(f"left out: {plural(len(result.left_out), 'object')}, {size}, larger than {limit}")
    read = f"{format_bytes(result.bytes)} in {format_seconds(result.seconds)}"
    rate = format_rate(result.bytes, result.seconds)
    lines.append(f"read {read} ({rate}), {result.first_hits} of {total} kept before, {result.retries} retried")
    word = coloured("warm", "green") if not bad and share == 1 else coloured("not all warm", "yellow")
    lines.append(f"{word}   {result.hits} of {total} HIT, {share:.0%} of the bytes")
    state.show(document, "\n".join(lines))
    return int(bool(bad))


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
    cdn = _cdn(state)
    urls = [cdn.link(item.key) for item in edge_cache.objects_of(state.open_store(8), name)]
    what = f"{plural(len(urls), 'URL')} of {name}"
    if not dry_run:
        api = _api(state)
        if api is None:
            raise ConfigError(
                f"CLOUDFLARE_API_TOKEN is not set in {' or '.join(state.settings().looked_in)}",
                hint="make a token with 'Zone: Read' and 'Cache Purge' at dash.cloudflare.com/profile/api-tokens",
            )
        zone = find_zone(api, _host(cdn), named=zone_name)
        if not yes:
            confirm("purge", what)
        purged(api, zone, urls)
    document = {"model": name, "urls": urls, "purged": not dry_run}
    state.show(document, "\n".join(urls) if dry_run else f"purged   {what}")


def _difference_lines(standing: RuleState) -> list[str]:
    """A rule that differs, a line for each field, and the fix."""
    fix = "it was not made by coldstream: in the dashboard, Caching, Cache Rules"
    if standing.is_ours:
        fix = "coldstream cdn rule --replace (it changes no other rule)"
    lines = [f"differs   {standing.rule['description']}"]
    for each in standing.differences:
        # Encoded, so that control characters in a rule do not reach the terminal.
        actual, expected = (
            "nothing" if value is None else json.dumps(value)[:_SHOWN_MAX] for value in (each.actual, each.expected)
        )
        lines.append(f"  {each.field}: {actual}, expected {expected}")
    return [*lines, f"  fix: {fix}"]


def _difference_document(standing: RuleState) -> dict[str, Any]:
    fields = [{"field": each.field, "found": each.actual, "wanted": each.expected} for each in standing.differences]
    return {"description": standing.rule["description"], "ours": standing.is_ours, "differences": fields}


def _cdn(state: State) -> CdnDomain:
    cdn = cdn_of(state.settings(), "cdn")
    assert cdn is not None
    return cdn


def _host(cdn: CdnDomain) -> str:
    return urlsplit(cdn.url).hostname or ""


def _api(state: State) -> Api | None:
    settings = state.settings()
    return open_api(settings, retry=state.new_retry(settings))


def _opened(
    state: State, name: str, plan: str | None, *, everything: bool, connections: int
) -> tuple[edge_cache.Edge, Sequence[edge_cache.CdnObject], dict[str, Any]]:
    """The CDN, the objects to read, and the arguments that `check` and `warm` share.

    The largest object that is kept depends on the plan, which the API returns unless it is named.
    """
    cdn, store = _cdn(state), state.open_store(8)
    if plan is None and (api := _api(state)) is not None:
        try:
            plan = find_zone(api, _host(cdn)).plan
        except ColdstreamError as exc:
            state.say(f"the zone's plan is not known, so the smallest limit counts: {exc.message}")
    objects = edge_cache.objects_of(store, name)
    # Those that a load reads through the domain. A model without a manifest is only read from the bucket.
    read = [item for item in objects if item.is_read]
    how = {"limit_bytes": edge_cache.limit_of(plan), "in_bucket": partial(edge_cache.is_stored, store)}
    return edge_cache.Edge(cdn, count=connections), objects if everything or not read else read, how


def _check_usefulness(state: State, plan: str | None) -> None:
    """Raises UsageError if the plan would keep hardly any of the bucket's weights."""
    try:
        store = state.open_store(8)
        ready = [model.name for model in list_models(store) if model.state == "ready"]
        objects = [item for name in ready for item in edge_cache.objects_of(store, name) if item.is_read]
    except ColdstreamError as exc:
        state.say(f"the bucket was not looked at: {exc.message}")
        return
    limit = edge_cache.limit_of(plan)
    share = edge_cache.kept_share(objects, limit)
    if share is not None and share < edge_cache.USEFUL_SHARE:
        kind = f"on the plan {plan}" if plan else "on any plan but Enterprise"
        raise UsageError(
            f"{kind} objects up to {format_bytes(limit)} are kept, and {share:.0%} of the bucket's weights are in such",
            hint="coldstream upload … --object-bytes-max 480MiB stores them so; or --force",
        )


def _check_text(findings: Sequence[edge_cache.CacheFinding], limit: int) -> str:
    rows = [("OBJECT", "SIZE", "STATE", "FIRST", "SECOND", "FIX")]
    for each in findings:
        size, first, second = format_bytes(each.object.size), each.first or "-", each.second or "-"
        rows.append((each.object.label, size, each.state, first, second, each.fix))
    kept = sum(finding.object.size for finding in findings if finding.state == "kept")
    total = sum(finding.object.size for finding in findings)
    share = f"{kept / total:.0%}" if total else "nothing"
    last = f"{share} of {format_bytes(total)} is kept; the limit is {format_bytes(limit)} for an object"
    return f"{table_text(rows, colours=_COLOURS, coloured_column=2)}\n{last}"


def _document(finding: edge_cache.CacheFinding) -> dict[str, Any]:
    document = {**attributes(finding.object, "key", "label"), "bytes": finding.object.size}
    return document | attributes(finding, "state", "first", "second") | {"mend": finding.fix}
