"""A plan, made by a dry run of SkyPilot's."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import replace

from coldstream.errors import ColdstreamError, UsageError
from coldstream.fleet.credentials import Terms
from coldstream.fleet.deployment import Deployment, Wish, bucket_of, deploy, domain_of
from coldstream.fleet.launch_plan import TARGETS, Plan, checked_launch_name, secret_flags
from coldstream.fleet.render import render
from coldstream.fleet.sky import NAME_MAX, Offer, Sky, parse_offers, refusal
from coldstream.settings import Settings
from coldstream.tune.gpus import Gpus
from coldstream.tune.model_shape import Model
from coldstream.tune.predict import NetworkPath
from coldstream.tune.recommended import Advice, advise


def make_plan(
    model: Model,
    wish: Wish,
    gpus: Gpus,
    settings: Settings,
    sky: Sky,
    *,
    name: str | None,
    keys: Terms,
    version: str,
    context: int | None = None,
) -> Plan:
    """Works out what a launch would be, by a dry run of SkyPilot's. Nothing is launched.

    For a service on spot machines there is a second one, for the on-demand machines that stand in for them.

    Args:
        model: As it lies in the bucket.
        wish: What is asked for; its target is one of `TARGETS`' values.
        gpus: In each machine.
        settings: Where the bucket is, and the CDN in front of it.
        sky: Which is given secrets by the same names, that may be empty here.
        name: For the launch; None: after the model.
        keys: What the nodes' keys will be.
        version: Of coldstream.
        context: See `fit`.

    Raises:
        UsageError: The model does not fit, the wish contradicts itself, no node reaches the bucket or its CDN, or
            SkyPilot finds no such machine.
        ConfigError: Bucket or CDN are configured badly.
        ColdstreamError: SkyPilot fails.
    """
    kind = next(kind for kind, target in TARGETS.items() if target == wish.target)
    bucket, domain = bucket_of(settings), domain_of(settings, wish.loader)
    if bucket.is_here:
        raise UsageError(
            f"{bucket.endpoint} is this machine: no node reaches the bucket there",
            hint="name an endpoint that they reach",
        )
    if domain is not None and domain.is_here:
        raise UsageError(
            f"{domain.url} is this machine: no node reaches the CDN there",
            hint="name a domain that they reach in R2_CDN_DOMAIN, or take it out",
        )
    # AWS caps what goes to other networks: a bucket of its own is none.
    elsewhere = bucket.endpoint is not None
    way = NetworkPath(cloud=wish.cloud.partition("/")[0] if wish.cloud and elsewhere else None)

    def deployed(way: NetworkPath) -> tuple[Deployment, Advice]:
        advice = advise(model, gpus, way, context=context)
        return deploy(model.name, wish, advice, bucket, domain=domain, version=version), advice

    first, _ = deployed(way)
    found = checked_launch_name(name or first.slug[:NAME_MAX].rstrip("-"))
    offer = _offer(sky, first)
    if offer is not None:
        way = NetworkPath(cloud=offer.cloud if elsewhere else None, cores=offer.cores)
    stand_in = None
    if kind == "service" and first.spot:
        # Without one the service comes up all the same, when there is spot.
        with suppress(ColdstreamError):
            stand_in = _offer(sky, replace(first, spot=False))
    deployment, advice = deployed(way)
    tuned = next(tuned for tuned in advice.loaders if tuned.loader == wish.loader)
    return Plan(
        name=found,
        kind=kind,
        deployment=deployment,
        limit=tuned.prediction.limited_by,
        offer=offer,
        stand_in=stand_in,
        keys=keys,
    )


def _offer(sky: Sky, deployment: Deployment) -> Offer | None:
    """The machine that SkyPilot would take, by a dry run for one of them.

    Raises:
        ColdstreamError: It would take none.
    """
    # The machines of a service and of a job are a node's.
    single = replace(deployment, wish=replace(deployment.wish, target="sky", command=None))
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix="coldstream-") as file:
        file.write(render(single))
        file.flush()
        names = (*single.needed_secrets, *single.other_secrets)
        # Without a name: of a cluster that is there already, SkyPilot would say nothing.
        answer = sky.ask("launch", "--dryrun", "-y", "-d", file.name, *secret_flags(names))
    if answer.code != 0:
        raise refusal(answer.text, spot=deployment.spot)
    return next(iter(parse_offers(answer.text)), None)
