"""Plans a launch: machine and price, load time, keys and policy."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace

from coldstream.errors import ColdstreamError, UsageError
from coldstream.fleet.credentials import Terms
from coldstream.fleet.deploy_options import DeployOptions, Replicas
from coldstream.fleet.deployment import Deployment, bucket_of, deploy, domain_of, network_path, render
from coldstream.fleet.sky import NAME, Offer, Sky, launch_refusal, parse_offers
from coldstream.runtime.runtime_manifest import RuntimeManifest
from coldstream.settings import Settings
from coldstream.tune.model_shape import Model
from coldstream.tune.recommended import advise

TARGETS = {"node": "sky", "service": "sky-serve", "job": "sky-job"}
_VERBS = {
    "node": ("launch", "-y", "-d", "-c"),
    "service": ("serve", "up", "-y", "-n"),
    "job": ("jobs", "launch", "-y", "-d", "-n"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """A launch of a kind in `TARGETS` before it happens.

    Attributes:
        offer: The machine that SkyPilot would rent; None if its output was not understood.
        stand_in: The on-demand machine that replaces a service's missing spot machines; None if unknown or none does.
        draft: The draft model that nodes read from the bucket.
        keys: The terms of the nodes' keys, which are made once the plan is confirmed.
    """

    name: str
    kind: str
    deployment: Deployment
    offer: Offer | None
    stand_in: Offer | None
    keys: Terms
    draft: str | None = None

    @property
    def has_stand_ins(self) -> bool:
        return self.kind == "service" and self.deployment.spot

    @property
    def dollars_per_hour(self) -> tuple[float, float] | None:
        """The price of the fewest and of the most machines, without SkyPilot's controller; None if unknown."""
        each, always = _price_of(self.offer), self.deployment.on_demand_replicas
        apart = _price_of(self.stand_in) if always else 0.0
        if each is None or apart is None:
            return None
        replicas = self.deployment.options.replicas
        return (replicas.fewest - always) * each + always * apart, (replicas.most - always) * each + always * apart

    @property
    def stand_in_dollars_per_hour(self) -> tuple[float, float] | None:
        """The price while there are no spot machines at all; None if unknown, or without stand-ins."""
        each = _price_of(self.stand_in) if self.has_stand_ins else None
        if each is None:
            return None
        replicas = self.deployment.options.replicas
        return replicas.fewest * each, replicas.most * each

    @property
    def policy(self) -> str:
        """What happens after a preemption, and when the launch ends."""
        replicas, spot = self.deployment.options.replicas, self.deployment.spot
        if self.kind == "job":
            return f"{'spot; restarted when preempted' if spot else 'on demand'}; ends with the command"
        if self.kind == "node":
            kind = "spot; not replaced when preempted" if spot else "on demand"
            return f"{kind}; terminates 30 min after the server exits"
        count = f"{replicas.fewest} to {replicas.most}" if replicas.scales else str(replicas.fewest)
        noun = "replica" if replicas.most == 1 else "replicas"
        kind = "spot, or on demand while no spot machine is available" if spot else "on demand"
        return f"{count} {noun}; {kind}; replaced when lost"

    def arguments(self, file: str) -> tuple[str, ...]:
        """The arguments of `sky` for the launch, with the names of the secrets."""
        return (*_VERBS[self.kind], self.name, file, *secret_flags(self.deployment.secrets))


def _price_of(offer: Offer | None) -> float | None:
    return offer.dollars_per_hour if offer is not None else None


def secret_flags(names: tuple[str, ...]) -> tuple[str, ...]:
    """The arguments that let `sky` take secrets from its environment."""
    return tuple(word for name in names for word in ("--secret", name))


def make_plan(
    model: Model,
    options: DeployOptions,
    settings: Settings,
    sky: Sky,
    *,
    name: str | None,
    keys: Terms,
    draft: str | None = None,
    runtime: RuntimeManifest | None,
) -> LaunchPlan:
    """Plans a launch with a dry run of SkyPilot's, and a second one for on-demand machines that may fill in.

    Without a name, it is named after the model. The deployment's secrets must be set for `sky`, but may be empty.

    Raises:
        UsageError: No node can reach the bucket or its CDN, SkyPilot finds no such machine, or `deploy` raises it.
        ColdstreamError: SkyPilot fails.
    """
    kind = next(kind for kind, target in TARGETS.items() if target == options.target)
    bucket, domain = bucket_of(settings), domain_of(settings, options.loader)
    if bucket.is_local:
        hint = "set R2_ENDPOINT to an address that nodes can reach"
        raise UsageError(f"{bucket.endpoint} is this machine: no node reaches the bucket there", hint=hint)
    if domain is not None and domain.is_local:
        hint = "set R2_CDN_DOMAIN to a domain that nodes can reach, or unset it"
        raise UsageError(f"{domain.url} is this machine: no node reaches the CDN there", hint=hint)
    network = network_path(bucket, options.cloud)
    deployment = replace(deploy(model, options, bucket, domain=domain, network=network), runtime=runtime)
    name = deployment.label if name is None else name
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name[:60]!r} is not a valid name for a launch",
            hint="use up to 40 lower-case letters, digits and dashes, starting with a letter",
        )
    offer = _find_offer(sky, deployment)
    stand_in = None
    if kind == "service" and deployment.spot:
        # The service starts without one too, as long as spot machines are available.
        with suppress(ColdstreamError):
            stand_in = _find_offer(sky, replace(deployment, options=replace(options, spot=False)))
    if offer is not None:
        # The machine is known now: its network sets the number of connections and the load time.
        network = network_path(bucket, offer.cloud, offer.cores)
        deployment = replace(deployment, advice=advise(model, options.gpus, network, context=options.max_model_len))
    return LaunchPlan(
        name=name, kind=kind, deployment=deployment, offer=offer, stand_in=stand_in, keys=keys, draft=draft
    )


def _find_offer(sky: Sky, deployment: Deployment) -> Offer | None:
    """The machine that SkyPilot would rent; a service and a job use the same machines as a node."""
    node = replace(deployment.options, target="sky", command=None, replicas=Replicas())
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix="coldstream-") as file:
        file.write(render(replace(deployment, options=node)))
        file.flush()
        # Without a name, because SkyPilot prints no table for a cluster that exists.
        output = sky.ask("launch", "--dryrun", "-y", "-d", file.name, *secret_flags(deployment.secrets))
    if output.code != 0:
        raise launch_refusal(output.text, spot=deployment.spot)
    return next(iter(parse_offers(output.text)), None)
