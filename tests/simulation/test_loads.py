"""Ten thousand loads with faults drawn by seed. A failing seed is named; repeat it with `repeat(SEED)`."""

from __future__ import annotations

import math
import random

import pytest

from tests.simulation.world import MIB, Bucket, Disk, Reader, World

BATCHES, SEEDS = 20, 500


def draw(seed: int) -> World:
    """The world of a seed."""
    rng = random.Random(seed)

    def sometimes(share: float, value: float, otherwise: float = 0.0) -> float:
        return value if rng.random() < share else otherwise

    count = rng.choice([1, 2, 3, 5, 8, 13, 21, 34, 60]) if rng.random() < 0.7 else rng.randint(1, 20)
    extents: list[list[int]] = []
    while sum(map(len, extents)) < count:
        chunks = rng.choice([1, 1, 1, 1, 2, 3, 8])
        size = rng.choice([1, 5000, MIB, 8 * MIB, 8 * MIB, 8 * MIB])
        extents.append([rng.randint(max(1, size // 2), size) for _ in range(chunks)])
    chunks = sum(map(len, extents))
    total = sum(map(sum, extents))
    local = rng.random() < 0.25
    readers = [
        Reader(
            attach=sometimes(0.3, rng.uniform(0, 3)),
            work=sometimes(0.4, rng.uniform(0, 0.1)),
            keep=rng.choice([0, 0, 0, 1, 0.3]),
            late_drop=sometimes(0.2, rng.uniform(0, 0.3)),
            leave_after=rng.randint(0, len(extents)) if rng.random() < 0.1 else None,
        )
        for _ in range(rng.choice([0, 1, 1, 1, 1, 2, 2, 4]))
    ]
    connections = rng.choice([1, 2, 4, 8, 16, 16])
    bucket = Bucket(
        latency=rng.choice([0.001, 0.02, 0.1]),
        connect=rng.choice([0.0, 0.05, 0.2]),
        each_rate=rng.choice([30e6, 70e6, 200e6]),
        total_rate=rng.choice([100e6, 500e6, 4e9, float("inf")]),
        slow=sometimes(0.3, 0.1),
        stall=sometimes(0.2, 0.1),
        reset=sometimes(0.3, 0.2),
        busy=sometimes(0.3, rng.choice([0.05, 0.3])),
        busy_max=int(sometimes(0.05, 3, 1 << 60)),
        retry_after=rng.choice([None, None, 0.0, 0.5]),
        storms=((0.2, 1.0),) if rng.random() < 0.05 else (),
        corrupt=sometimes(0.2, 0.05),
        misranged=sometimes(0.05, 0.05),
        link_requests=rng.choice([0, 0, 0, 0, 2 * connections, 30 + connections]),
        stop_lost=sometimes(0.1, 0.5),
        local_rate=rng.choice([20e6, 500e6, 5e9]),
        local_bad=sometimes(0.5, 0.1),
    )
    also = random.Random(seed ^ 0xCD)
    cdn = None
    if also.random() < 0.4:
        cdn = Bucket(
            latency=also.choice([0.001, 0.05]),
            each_rate=also.choice([2e4, 3e6, 100e6]),
            total_rate=bucket.total_rate,
            slow=also.choice([0.0, 0.1]),
            stall=also.choice([0.0, 0.0, 0.2, 1.0]),
            reset=also.choice([0.0, 0.0, 0.2, 1.0]),
            busy=also.choice([0.0, 0.0, 0.1, 1.0]),
            retry_after=also.choice([None, 30.0]),
            corrupt=also.choice([0.0, 0.0, 0.1, 1.0]),
            no=also.choice([0.0, 0.0, 0.05, 1.0]),
            dead_after=also.choice([math.inf, math.inf, 0.0, 0.3]),
            down_after=also.choice([math.inf, math.inf, 0.0, 0.3]),
        )
    return World(
        extents,
        bucket=bucket,
        cdn=cdn,
        readers=readers,
        disk=Disk(rng.choice([30e6, 300e6, 3e9]), sometimes(0.2, rng.uniform(0, 2), float("inf")))
        if rng.random() < 0.3
        else None,
        files=min(len(extents), rng.choice([1, 1, 2, 4])),
        cuts=random.Random(seed).choice([0.0, 0.0, 0.2, 1.0]),
        is_local=[rng.random() < 0.5 for _ in range(chunks)] if local else (),
        limit=rng.choice([1 << 50, 1 << 50, total, total // 2 + 1, total // 5 + 1, 4 * MIB, 4096]),
        connections=connections,
        first=rng.choice([1, 16]),
        local_max=rng.choice([1, 2, 4]),
        in_order=rng.random() < 0.3,
        workers=min(connections, rng.choice([1, 2, 4])),
        deaths=[rng.uniform(0, 1) for _ in range(rng.choice([1, 3]))] if rng.random() < 0.1 else (),
        respawn=rng.choice([0.0, 0.05]),
        seed=seed,
    )


def repeat(seed: int) -> World:
    """Runs one load; it ends well, or for a reason that the world gave."""
    world = draw(seed)
    world.run()
    if world.failed is not None:
        bad, misranged = world._bad, world._misranged
        allowed = {"integrity": max(bad.values(), default=0) >= 3 or 3 in misranged.values()}
        assert allowed.get(world.failed.kind), f"{world.failed} without a reason"
    return world


@pytest.mark.parametrize("batch", range(BATCHES))
def test_every_load_ends_well(batch: int) -> None:
    seed = 0
    try:
        for seed in range(batch * SEEDS, (batch + 1) * SEEDS):
            repeat(seed)
    except Exception as exc:
        raise AssertionError(f"seed {seed}: {exc}") from exc
