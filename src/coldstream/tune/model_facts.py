"""Reads the properties of a model in a bucket, and of this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from coldstream.errors import ColdstreamError, UsageError
from coldstream.machine import hardware
from coldstream.places.opening import open_model_reader
from coldstream.settings import Settings
from coldstream.tune.connection_curve import Curve
from coldstream.tune.gpus import Gpus, find_gpu
from coldstream.tune.model_shape import Model, describe
from coldstream.tune.predict import NetworkPath

_CONFIG_BYTES_MAX = 16 << 20
# Parts of "NVIDIA A100-SXM4-80GB" and "NVIDIA H100 80GB HBM3" that are not the model's name.
_NOISE_WORDS = re.compile(r"NVIDIA|Tesla|GeForce|SXM\d?|PCIe?|HBM\w*|NVL|Generation|Graphics")


def read_model(uri: str, settings: Settings) -> Model:
    """Describes a model by its shards' headers and its config.json, which may be missing.

    Raises:
        The errors of `open_model_reader` and `ModelReader.checkpoint`.
    """
    origin = open_model_reader(uri, settings)
    checkpoint = origin.checkpoint()
    config: object = None
    with suppress(ColdstreamError, ValueError, RecursionError):
        config = json.loads(origin.read("config.json", _CONFIG_BYTES_MAX))
    headers = [shard.header for shard in checkpoint.shards]
    return describe(checkpoint.name, headers, config if isinstance(config, dict) else {})


def detect_gpus(cards: Sequence[hardware.InstalledGpu]) -> Gpus | None:
    """Returns a machine's GPUs; None if it has none, unknown ones, or different models."""
    if len({card.name for card in cards}) != 1:
        return None
    words = _NOISE_WORDS.sub(" ", cards[0].name).replace("-", " ").split()
    # The name with its memory first: an A100 has 40 or 80 GB.
    for name in ("-".join(words), "".join(words[:1])):
        with suppress(UsageError):
            return Gpus(find_gpu(name), len(cards))
    return None


def path_to_bucket(way: NetworkPath, curve: Curve | None) -> NetworkPath:
    """Returns the network path from the bucket to this machine.

    Args:
        way: What the user specified.
        curve: A measurement, which includes every limit of the network; or None.
    """
    if curve is not None:
        return replace(way, connection_bytes_per_second=curve.each, link_bytes_per_second=curve.most, cloud=None)
    link = way.link_bytes_per_second or hardware.link_bytes_per_second()
    return replace(way, link_bytes_per_second=link, cores=way.cores or hardware.cores())
