"""Known clouds, by the names that SkyPilot 0.14 and dstack 0.22 use. Pure."""

from __future__ import annotations

import difflib

from coldstream.errors import UsageError

CLOUDS = (
    *("amddevcloud", "aws", "azure", "cloudrift", "crusoe", "cudo", "datacrunch", "daytona", "digitalocean", "do"),
    *("dstack", "fluidstack", "gcp", "hotaisle", "hyperbolic", "ibm", "jarvislabs", "kubernetes", "lambda", "lium"),
    *("mithril", "nebius", "oci", "paperspace", "primeintellect", "remote", "runpod", "scp", "seeweb", "shadeform"),
    *("slurm", "ssh", "tensordock", "vast", "vastai", "verda", "vsphere", "vultr", "yotta"),
)


def parse_cloud(text: str) -> str:
    """Parses a cloud with an optional region, `aws` or `gcp/us-central1`, in any case; UsageError if unknown."""
    name, slash, place = text.strip().lower().partition("/")
    if name not in CLOUDS:
        near = difflib.get_close_matches(name, CLOUDS, n=1)
        hint = f"did you mean {near[0]}{slash}{place}?" if near else f"known: {', '.join(CLOUDS)}"
        raise UsageError(f"{name[:40]!r} is not a known cloud", hint=hint)
    return f"{name}{slash}{place}"
