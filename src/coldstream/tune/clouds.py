"""The clouds that machines are rented from, by the names that SkyPilot 0.14 and dstack 0.22 have for them. Pure."""

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
    """Reads `aws`, or `gcp/us-central1`: a cloud, and perhaps a place in it. Case does not matter.

    Raises:
        UsageError: No such cloud is known.
    """
    name, slash, place = text.strip().lower().partition("/")
    if name not in CLOUDS:
        near = difflib.get_close_matches(name, CLOUDS, n=1)
        hint = f"did you mean {near[0]}{slash}{place}?" if near else f"known: {', '.join(CLOUDS)}"
        raise UsageError(f"{name[:40]!r} is not a known cloud", hint=hint)
    return f"{name}{slash}{place}"
