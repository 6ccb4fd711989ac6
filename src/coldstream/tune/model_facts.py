"""What a model in a bucket is, and what this machine is."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from coldstream.errors import ColdstreamError, UsageError
from coldstream.machine import hardware
from coldstream.places.origin_opening import open_origin
from coldstream.settings import Settings
from coldstream.tune.connection_curve import Curve
from coldstream.tune.gpus import Gpus, find_gpu
from coldstream.tune.model_shape import Model, describe
from coldstream.tune.predict import Way

_CONFIG_BYTES_MAX = 16 << 20
# In "NVIDIA A100-SXM4-80GB" and "NVIDIA H100 80GB HBM3", what is not the kind.
_BESIDE = re.compile(r"NVIDIA|Tesla|GeForce|SXM\d?|PCIe?|HBM\w*|NVL|Generation|Graphics")


def read_model(uri: str, settings: Settings) -> Model:
    """A model, by its shards' headers and its config.json, which may be missing.

    Raises:
        What `open_origin` and `Origin.checkpoint` raise.
    """
    origin = open_origin(uri, settings)
    checkpoint = origin.checkpoint()
    config: object = None
    with suppress(ColdstreamError, ValueError, RecursionError):
        config = json.loads(origin.read("config.json", _CONFIG_BYTES_MAX))
    headers = [shard.header for shard in checkpoint.shards]
    return describe(checkpoint.name, headers, config if isinstance(config, dict) else {})


def gpus_here(cards: Sequence[hardware.Gpu]) -> Gpus | None:
    """A machine's GPUs; None when it has none, none that is known, or several kinds."""
    if len({card.name for card in cards}) != 1:
        return None
    words = _BESIDE.sub(" ", cards[0].name).replace("-", " ").split()
    # With its memory first: there are A100 with 40 and with 80 GB.
    for name in ("-".join(words), "".join(words[:1])):
        with suppress(UsageError):
            return Gpus(find_gpu(name), len(cards))
    return None


def way_here(way: Way, curve: Curve | None) -> Way:
    """The way from the bucket to this machine.

    Args:
        way: What the user says of it.
        curve: What was measured: that went through all that is on the way. None without.
    """
    if curve is not None:
        return replace(way, connection_bytes_per_second=curve.each, link_bytes_per_second=curve.most, cloud=None)
    link = way.link_bytes_per_second or hardware.link_bytes_per_second()
    return replace(way, link_bytes_per_second=link, cores=way.cores or hardware.cores())
