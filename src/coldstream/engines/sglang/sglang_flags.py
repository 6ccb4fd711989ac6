"""The user's flags for `sglang serve`."""

from __future__ import annotations

from typing import ClassVar

from coldstream.node.engine_flags import EngineFlags


class SglangFlags(EngineFlags):
    """SGLang's flags."""

    engine = "SGLang"
    aliases: ClassVar = {
        "--tp": "--tensor-parallel-size",
        "--tp-size": "--tensor-parallel-size",
        "--pp": "--pipeline-parallel-size",
        "--pp-size": "--pipeline-parallel-size",
        "--dp": "--data-parallel-size",
        "--dp-size": "--data-parallel-size",
        "--ep": "--expert-parallel-size",
        "--ep-size": "--expert-parallel-size",
    }

    @property
    def ranks(self) -> int:
        """The number of ranks of one replica that will read the weights on this node, as far as the flags tell."""
        ranks = self.number("--tensor-parallel-size") * self.number("--pipeline-parallel-size")
        return max(1, ranks // self.number("--nnodes"))
