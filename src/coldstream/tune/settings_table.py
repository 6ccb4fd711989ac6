"""A table of common GPUs and models with their recommended settings and predicted loads. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from coldstream.tune.gpus import parse_gpus
from coldstream.tune.model_shape import Model
from coldstream.tune.predict import NetworkPath
from coldstream.tune.recommended import Advice, advise

# Models in bfloat16 with the shapes of Llama 2 and 3.
_MODELS = {
    "7B": Model(name="7B", bytes=14_000_000_000, parameters=7_000_000_000, dtype="BF16", layers=32, heads=32,
                kv_heads=8, kv_bytes=131_072, context=8192),
    "13B": Model(name="13B", bytes=26_000_000_000, parameters=13_000_000_000, dtype="BF16", layers=40, heads=40,
                 kv_heads=40, kv_bytes=819_200, context=4096),
    "70B": Model(name="70B", bytes=141_000_000_000, parameters=70_600_000_000, dtype="BF16", layers=80, heads=64,
                 kv_heads=8, kv_bytes=327_680, context=8192),
}  # fmt: skip
# GPU, model, the usual machine's network in Gbit/s and its cores, and the often claimed load times in seconds.
_ROWS = (
    ("A10G:1", "7B", 10, 8, (5, 8)),
    ("A100:1", "7B", 100, 96, (4, 6)),
    ("A100:1", "13B", 100, 96, (6, 10)),
    ("A100:1", "70B", 100, 96, (15, 23)),
    ("A100:4", "70B", 100, 96, (8, 12)),
    ("L4:1", "7B", 10, 8, None),
    ("A100-80GB:2", "70B", 100, 96, None),
    ("H100:1", "13B", 100, 96, None),
    ("H100:2", "70B", 200, 96, None),
    ("H200:1", "70B", 200, 96, None),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsRow:
    """One combination of GPU and model.

    Attributes:
        gpus: As for `--gpus`.
        way: The network path from the bucket to the usual machine with these GPUs.
        promised: The load times that are often claimed, from and to, in seconds; None without a claim.
        remark: Whether that is realistic and what it needs; empty without a claim.
    """

    gpus: str
    model: str
    way: NetworkPath
    advice: Advice
    promised: tuple[int, int] | None
    remark: str


def settings_table(cloud: str = "aws") -> list[SettingsRow]:
    """Returns the table for machines in this cloud, with the cloud's network caps."""
    rows = []
    for gpus, name, gigabits, cores, promised in _ROWS:
        way = NetworkPath(link_bytes_per_second=gigabits * 1e9 / 8, cores=cores, cloud=cloud)
        advice = advise(_MODELS[name], parse_gpus(gpus), way)
        remark = _remark(advice, promised)
        rows.append(SettingsRow(gpus=gpus, model=name, way=way, advice=advice, promised=promised, remark=remark))
    return rows


def _remark(advice: Advice, promised: tuple[int, int] | None) -> str:
    if advice.fit.fault is not None:
        return advice.fit.fault
    ours = advice.loaders[0]
    prediction = ours.prediction
    if promised is None:
        return ""
    if prediction.seconds <= promised[1]:
        return f"the claimed {promised[0]} to {promised[1]} s are realistic with {ours.connections} connections"
    needed = advice.model.bytes / promised[1] * 8 / 1e9
    return f"the claimed {promised[0]} to {promised[1]} s need {needed:.0f} Gbit/s; {prediction.limited_by}"
