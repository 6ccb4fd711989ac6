"""What the bootstrap program did before it started coldstream: it leaves a record in the environment."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from coldstream.telemetry.timeline.recorder import Recorder

VARIABLE = "COLDSTREAM_BOOTSTRAP"
# The marks at the ends of its steps.
_MARKS = {"fetch": "fetched", "mount": "provided", "unpack": "provided"}
# A record that is older was inherited from another start.
_AGE_SECONDS_MAX = 3600.0

_Time = Annotated[float, Meta(ge=0)]


class BootstrapRecord(msgspec.Struct, frozen=True):
    """The steps as (name, start, stop, what limited it), all times in seconds since 1970."""

    began: _Time
    phases: Annotated[
        list[tuple[Literal["fetch", "mount", "unpack"], _Time, _Time, Literal["link", "disk", "processor"]]],
        Meta(max_length=8),
    ]

    @property
    def monotonic_began(self) -> float:
        """When the bootstrap began, by `time.monotonic`."""
        return time.monotonic() - (time.time() - self.began)

    def apply(self, recorder: Recorder) -> None:
        """Adds its steps to a timeline that began with it."""
        offset = self.monotonic_began - self.began
        for name, start, stop, limit in self.phases:
            recorder.mark(_MARKS[name], stop + offset)
            recorder.span(f"runtime {name}", start + offset, stop + offset, note=f"limited by the {limit}")


def bootstrap_record() -> BootstrapRecord | None:
    """The record, removed from the environment; None where coldstream was started in another way."""
    text = os.environ.pop(VARIABLE, None)
    if text is not None:
        with suppress(msgspec.MsgspecError):
            record = msgspec.json.decode(text, type=BootstrapRecord)
            if 0 <= time.time() - record.began <= _AGE_SECONDS_MAX:
                return record
    return None
