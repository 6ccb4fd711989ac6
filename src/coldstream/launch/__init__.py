"""Machines that serve a model, brought up by SkyPilot with keys that open nothing else.

credentials   keys for a node: read-only, one model's prefixes, temporary
plan          what is about to be launched; pure
sky           the `sky` program: what it is asked, and what it prints
server        its server, which a plan alone leaves as it was
steps         how far a launch has come, and where its time went; pure
record        what was launched from this machine
planning      the plan, by a dry run
running       a launch from its plan to a model that answers; the same again with new keys
watch         questions beside a wait
state         what became of it: its state, where it answers, what its machines say; its end
"""

from __future__ import annotations

from coldstream.launch.credentials import TTL_SECONDS_MAX, Credentials, Terms, mint, parse_ttl, terms_of
from coldstream.launch.plan import TARGETS, Plan, secret_flags
from coldstream.launch.planning import make_plan
from coldstream.launch.record import Launch, Launches, launches_of
from coldstream.launch.running import (
    Launched,
    Telling,
    launch,
    refuse_second,
    renew,
)
from coldstream.launch.server import passing_server
from coldstream.launch.sky import Offer, Sky, find_sky
from coldstream.launch.state import endpoint, logs_arguments, states, take_down
from coldstream.launch.steps import Phase, words

__all__ = [
    "TARGETS",
    "TTL_SECONDS_MAX",
    "Credentials",
    "Launch",
    "Launched",
    "Launches",
    "Offer",
    "Phase",
    "Plan",
    "Sky",
    "Telling",
    "Terms",
    "endpoint",
    "find_sky",
    "launch",
    "launches_of",
    "logs_arguments",
    "make_plan",
    "mint",
    "parse_ttl",
    "passing_server",
    "refuse_second",
    "renew",
    "secret_flags",
    "states",
    "take_down",
    "terms_of",
    "words",
]
