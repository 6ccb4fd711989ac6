"""The order of the runs. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence


def rounds(names: Sequence[str], runs: int, seed: int) -> list[list[str]]:
    """Each name once a round, shuffled anew for every round; none runs twice in a row where there are others.

    Interleaved, so that whatever happens to the machine or the network in the meantime happens to all of them.

    Args:
        names: Without repetition.
        runs: How many rounds.
        seed: Equal seeds give equal orders.
    """
    source = random.Random(seed)
    found: list[list[str]] = []
    for _ in range(runs):
        order = source.sample(list(names), len(names))
        if found and len(order) > 1 and order[0] == found[-1][-1]:
            # To any other place.
            place = source.randrange(1, len(order))
            order[0], order[place] = order[place], order[0]
        found.append(order)
    return found
