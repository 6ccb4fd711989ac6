"""The CDN in front of the bucket: the rule that makes it keep weights, what it keeps, filling and emptying it.

limits    what a plan of Cloudflare's keeps, and what of a model is within it; pure
objects   a model's objects and where they lie behind the domain
edge      one read through the domain, and what came
rule      the cache rule; pure
zone      the domain's zone at Cloudflare: its plan, its rules, its purges
check     each object on two reads
warm      each object pulled through, then looked at again
"""

from __future__ import annotations

from coldstream.cdn.check import Finding, check
from coldstream.cdn.limits import PLANS, limit_of
from coldstream.cdn.objects import Object, is_stored, objects_of
from coldstream.cdn.rule import rule_for
from coldstream.cdn.warm import Warmed, warm
from coldstream.cdn.zone import Zone, find_zone

__all__ = [
    "PLANS",
    "Finding",
    "Object",
    "Warmed",
    "Zone",
    "check",
    "find_zone",
    "is_stored",
    "limit_of",
    "objects_of",
    "rule_for",
    "warm",
]
