"""What SGLang's output says: how far a start is, and why it failed. Pure.

For SGLang 0.5.23, whose log was read in its source: see docs/sglang.md.
"""

from __future__ import annotations

import re

from coldstream.node.engine_log import NUMBER, EngineFailure, LogReader, Mark

# In their order in a start. The line of "created" is our loader's own: the model has its layers, and wants tensors.
MARKS = (
    Mark(name="configured", lines=r"server_args="),
    Mark(name="loading", lines=r"Load weight begin\. "),
    Mark(name="created", lines=r"coldstream: reading "),
    Mark(name="weights", lines=r"Load weight end\. ", last=True),
    Mark(name="sized", lines=r"Memory pool end\. ", last=True),
    Mark(name="captured", lines=r"Capture .*graph end\. ", last=True),
    Mark(name="initialised", lines=r"max_total_num_tokens=\d+, chunked_prefill_size=", last=True),
)
# Figures that SGLang prints, for the record: our name, and the line.
FIGURES = (
    ("weights_seconds", re.compile(rf"Load weight end\. elapsed=({NUMBER}) s")),
    ("graph_capture_seconds", re.compile(rf"Capture .*graph end\. .*?elapsed=({NUMBER}) s")),
    ("kv_cache_tokens", re.compile(rf"max_total_num_tokens=({NUMBER}), chunked_prefill_size=")),
)
READER = LogReader(MARKS, FIGURES)
_NOT_STREAMED = "install coldstream in SGLang's own environment; SGLANG_PLUGINS, if it is set, must list it"


class SglangFailure(EngineFailure):
    """Why SGLang failed."""

    # The time, and the rank: "[2026-11-30 16:00:00 TP0]". A traceback follows without either.
    prefix = re.compile(r"^(?:\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d((?: [A-Z]+\d+)*)\] )?")
    usage = re.compile(r"sglang\b[^:]*: (error: .*)$")
    consequence = re.compile(r"scheduler died during initialization|Initialization failed|see the error messages above")
    hints = ((re.compile(r"SafetensorError: "), _NOT_STREAMED),)
