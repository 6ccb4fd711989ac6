"""Files that bring a model up elsewhere: by SkyPilot, Kubernetes, KServe, dstack or compose; a look at foreign ones.

deployment   what is to run where, checked; pure
render       the file for a target, from `files/`; pure but for reading those
check        what is wrong with a file that somebody else wrote; pure
"""

from __future__ import annotations

from coldstream.template.check import RULES, Finding, check
from coldstream.template.deployment import (
    TARGETS,
    Bucket,
    Deployment,
    Domain,
    Replicas,
    Wish,
    bucket_of,
    deploy,
    domain_of,
    parse_replicas,
)
from coldstream.template.render import render

__all__ = [
    "RULES",
    "TARGETS",
    "Bucket",
    "Deployment",
    "Domain",
    "Finding",
    "Replicas",
    "Wish",
    "bucket_of",
    "check",
    "deploy",
    "domain_of",
    "parse_replicas",
    "render",
]
