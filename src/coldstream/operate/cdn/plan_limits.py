"""What a plan of Cloudflare's keeps (docs cache/concepts/default-cache-behavior): larger objects pass through. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from coldstream.errors import UsageError
from coldstream.operate.cdn.model_objects import CdnObject

_MB = 10**6
# Enterprise by default; it can be raised there.
PLANS = {"free": 512 * _MB, "pro": 512 * _MB, "business": 512 * _MB, "enterprise": 5000 * _MB}
# Below such a share of a bucket's weights, a rule keeps nothing that a load would notice.
USEFUL_SHARE = 0.5


def limit_of(plan: str | None) -> int:
    """Bytes of the largest object that is kept; of a plan that is not known, the smallest such limit.

    Raises:
        UsageError: There is no such plan.
    """
    if plan is None:
        return min(PLANS.values())
    if plan not in PLANS:
        raise UsageError(f"{plan[:40]!r} is not a known plan of Cloudflare", hint=f"known: {', '.join(PLANS)}")
    return PLANS[plan]


def kept_share(objects: Iterable[CdnObject], limit_bytes: int) -> float | None:
    """The share of the weights' bytes that can be kept; None without weights."""
    weights = [item for item in objects if item.is_weights]
    total = sum(item.size for item in weights)
    return sum(item.size for item in weights if item.size <= limit_bytes) / total if total else None
