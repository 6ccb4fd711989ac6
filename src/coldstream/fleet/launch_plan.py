"""What is about to be launched: machine and price, the time for the weights, keys and rules. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from coldstream.errors import UsageError
from coldstream.fleet.credentials import Terms
from coldstream.fleet.deployment import Deployment
from coldstream.fleet.sky import NAME, Offer

TARGETS = {"node": "sky", "service": "sky-serve", "job": "sky-job"}
_VERBS = {
    "node": ("launch", "-y", "-d", "-c"),
    "service": ("serve", "up", "-y", "-n"),
    "job": ("jobs", "launch", "-y", "-d", "-n"),
}
# A service is updated in place; a node's job is started again on the machine that is there.
_RENEWALS = {"node": ("launch", "-y", "-d", "-c"), "service": ("serve", "update", "-y")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A launch before it happens.

    Attributes:
        name: SkyPilot's name for it.
        kind: "node", "service" or "job".
        deployment: What is to run.
        limit: What sets the time of the load, as a sentence.
        offer: The machine that SkyPilot would take first; None when it did not say.
        stand_in: The on-demand machine that it would take while a service's spot machines are missing; None when there
            are no stand-ins, or it did not say.
        keys: What the nodes' keys will be; they are made when the plan is agreed to.
    """

    name: str
    kind: str
    deployment: Deployment
    limit: str
    offer: Offer | None
    stand_in: Offer | None
    keys: Terms

    @property
    def secrets(self) -> tuple[str, ...]:
        """The names of what the nodes are given in secret."""
        return (*self.deployment.needed_secrets, *self.deployment.other_secrets)

    @property
    def has_stand_ins(self) -> bool:
        """Whether on-demand machines stand in while spot machines are missing."""
        return self.kind == "service" and self.deployment.spot

    @property
    def dollars_per_hour(self) -> tuple[float, float] | None:
        """Of all machines together, the fewest and the most of them; None when the price is not known.

        SkyPilot keeps a service's or a job's controller beside them, on a small machine.
        """
        each, always = _price_of(self.offer), self.deployment.on_demand_replicas
        apart = _price_of(self.stand_in) if always else 0.0
        if each is None or apart is None:
            return None
        replicas = self.deployment.wish.replicas
        return (replicas.fewest - always) * each + always * apart, (replicas.most - always) * each + always * apart

    @property
    def stand_in_dollars_per_hour(self) -> tuple[float, float] | None:
        """The same while there are no spot machines at all; None when the price is not known, or nothing stands in."""
        each = _price_of(self.stand_in) if self.has_stand_ins else None
        if each is None:
            return None
        replicas = self.deployment.wish.replicas
        return replicas.fewest * each, replicas.most * each

    @property
    def policy(self) -> str:
        """What happens when a machine is taken back, and when it ends."""
        replicas, spot = self.deployment.wish.replicas, self.deployment.spot
        if self.kind == "job":
            return ("spot, started again when taken back" if spot else "on demand") + ", ends with the command"
        if self.kind == "node":
            end = "goes half an hour after the server has ended"
            return f"spot, not replaced when taken back, {end}" if spot else f"on demand, {end}"
        count = f"{replicas.fewest} to {replicas.most}" if replicas.scales else str(replicas.fewest)
        noun = "replica" if replicas.most == 1 else "replicas"
        what = "spot, on demand while there is none" if spot else "on demand"
        return f"{count} {noun}, {what}, replaced when lost"

    def arguments(self, file: str) -> tuple[str, ...]:
        """For `sky`: the launch. No secret is among them, only their names."""
        return (*_VERBS[self.kind], self.name, file, *secret_flags(self.secrets))


def _price_of(offer: Offer | None) -> float | None:
    return offer.dollars_per_hour if offer is not None else None


def secret_flags(names: tuple[str, ...]) -> tuple[str, ...]:
    """For `sky`: take these from the environment."""
    return tuple(word for name in names for word in ("--secret", name))


def renewal(name: str, kind: str, file: str, secrets: tuple[str, ...]) -> tuple[str, ...]:
    """For `sky`: the same again with other secrets.

    Raises:
        UsageError: A job's secrets cannot be replaced.
    """
    if kind not in _RENEWALS:
        raise UsageError(
            f"{name} is a job, whose keys cannot be renewed",
            hint=f"launch it again; stop it: coldstream launch down {name}",
        )
    return (*_RENEWALS[kind], name, file, *secret_flags(secrets))


def checked_launch_name(name: str) -> str:
    """The name, when SkyPilot and all clouds take it.

    Raises:
        UsageError: They do not.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name[:60]!r} is no name for a launch",
            hint="up to 40 lower-case letters, digits and dashes, a letter first",
        )
    return name
