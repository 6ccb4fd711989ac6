"""`timeline.json`: what is kept of a start, and how it is read. Pure.

It holds no secret and none of vLLM's flags. A file may come from anybody, so reading checks types, sizes and order, and
lets no character through that a terminal would obey. Fields are only ever added within a format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from coldstream.errors import IntegrityError
from coldstream.telemetry.timeline.phases import Phase, Seconds, Span, Text, clean, named_share

FORMAT = 2
# Of a start that answered, so that every reader takes it.
FORMAT_ANSWERED = 1
RECORD_BYTES_MAX = 1 << 20
RUN = r"[0-9]{8}-[0-9]{6}-[a-z0-9][a-z0-9.-]{0,79}"

Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=1 << 60)]
Figure = Annotated[float, Meta(ge=-1e18, le=1e18)]
Value = Text | Annotated[int, Meta(ge=-(1 << 60), le=1 << 60)] | Figure | bool | None


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where a start ran.

    Attributes:
        device: The GPUs' or the processor's name.
        cores: That may be used.
        gpus: How many there are.
    """

    device: Text
    cores: Count
    gpus: Count = 0


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """How the weights came.

    Attributes:
        bytes: Of the tensors.
        received_bytes: What crossed the network.
        cache_bytes: What came from this machine.
        seconds: From the first request to the last byte.
        hidden_share: How much of that vLLM was busy with something else; None when its lines do not tell.
        waited_seconds: How long vLLM took weights while they were still coming; None likewise.
        limit: What set the pace, in a word; see `engine.verdict`.
        limited_by: The same as a sentence.
        verified: Whether every byte was compared with a hash.
        offline: Whether the bucket did not answer, and the local cache stood in for it.
    """

    bytes: Count
    received_bytes: Count
    cache_bytes: Count
    seconds: Seconds
    hidden_share: Share | None
    waited_seconds: Seconds | None
    limit: Text
    limited_by: Text
    verified: bool = False
    offline: bool = False


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a start ended that was not over.

    Attributes:
        outcome: "failed", or "cancelled" when somebody ended it through us.
        seconds: Since the command began.
        phase: That it ended in.
        exit_code: Of vLLM, as a shell would tell it.
        signal: That ended it, "SIGKILL"; None when it ended by itself.
        reason: Why, in vLLM's own words; None when it printed nothing of the kind.
    """

    outcome: Text
    seconds: Seconds
    phase: Text
    exit_code: Annotated[int, Meta(ge=0, le=1 << 16)]
    signal: Text | None = None
    reason: Text | None = None

    @property
    def how(self) -> str:
        """For people."""
        return f"ended by {self.signal}" if self.signal else f"exit code {self.exit_code}"


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """One start.

    Attributes:
        run: Its name: when it began, and the model; sorts by time.
        model: As it is served.
        began: When the command began, UTC.
        coldstream: Our version.
        vllm: Its version; None when it could not be told.
        loader: How vLLM got the weights.
        machine: Where it ran.
        ready_seconds: From the command to the first answer of `/health`; None when none came.
        first_token_seconds: From the command to the first token; None when none was asked for, or none came.
        phases: What the time went into; they touch each other from 0 to the end.
        spans: What ran beside them.
        verdict: What limited the weights, and what the start.
        stream: How the weights came; None with another loader.
        bundle: What became of the caches; None when they were left alone.
        compile_caches: "loaded", "compiled", "none" or "unknown"; see `marks.compile_caches`.
        figures: What vLLM says of itself, from its lines and its metrics: name to number.
        ended: How it ended before the start was over; None when it was. Such a start is compared with no other.
        format: Of this record: 2 when it ended so, which a reader that knows only 1 refuses.
    """

    run: Annotated[str, Meta(pattern=rf"^{RUN}\Z")]
    model: Text
    began: datetime
    coldstream: Text
    vllm: Text | None
    loader: Text
    machine: Machine
    ready_seconds: Seconds | None
    first_token_seconds: Seconds | None
    phases: Annotated[tuple[Phase, ...], Meta(max_length=100)]
    spans: Annotated[tuple[Span, ...], Meta(max_length=100)] = ()
    verdict: Annotated[tuple[Text, ...], Meta(max_length=10)] = ()
    stream: Stream | None = None
    bundle: Annotated[dict[Text, Value], Meta(max_length=50)] | None = None
    compile_caches: Text = "unknown"
    figures: Annotated[dict[Text, Figure], Meta(max_length=100)] = {}
    ended: Ended | None = None
    format: int = FORMAT_ANSWERED

    def __post_init__(self) -> None:
        stop = 0.0
        for phase in self.phases:
            if phase.start < stop:
                raise ValueError(f"{phase.name} begins before the phase ahead of it has ended")
            stop = phase.stop
        if self.began.tzinfo is None:
            raise ValueError("the time it began has no zone")
        if self.ended is None and self.ready_seconds is None:
            raise ValueError("it neither answered nor ended")

    @property
    def outcome(self) -> str:
        """Whether it answered: "ok", or as `Ended` says."""
        return "ok" if self.ended is None else self.ended.outcome

    @property
    def seconds(self) -> float:
        """From the command to the end of the last phase."""
        return self.phases[-1].stop if self.phases else self.ready_seconds or 0.0

    @property
    def named_share(self) -> float:
        """How much of the time is known by name."""
        return named_share(self.phases)

    @property
    def unnamed_seconds(self) -> float:
        """The rest."""
        return sum(phase.seconds for phase in self.phases if not phase.is_named)

    def with_bundle(self, bundle: Mapping[str, Any] | None) -> Timeline:
        """The same with the caches' state of a later moment."""
        return msgspec.structs.replace(self, bundle=None if bundle is None else as_values(bundle))

    def document(self) -> dict[str, Any]:
        """For JSON; what is computed is in it for readers without this module."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        computed = {
            "outcome": self.outcome,
            "named_share": self.named_share,
            "unnamed_seconds": self.unnamed_seconds,
        }
        return found | computed

    def serialize(self) -> bytes:
        """The bytes of the file."""
        return msgspec.json.format(msgspec.json.encode(self.document()), indent=1) + b"\n"


class _Format(msgspec.Struct):
    format: int


# Made here, once: msgspec crashes when two threads make the first decoder of a type at the same time.
_FORMAT_DECODER = msgspec.json.Decoder(_Format)
_DECODER = msgspec.json.Decoder(Timeline)


def parse(data: bytes, *, where: str) -> Timeline:
    """Reads what `serialize` wrote.

    Args:
        data: The file's bytes.
        where: It lies, for messages.

    Raises:
        IntegrityError: It is nothing of the kind, or of a newer format.
    """
    try:
        if len(data) > RECORD_BYTES_MAX:
            raise ValueError(f"{len(data)} bytes are too many")
        found = _FORMAT_DECODER.decode(data).format
        if found > FORMAT:
            raise IntegrityError(
                f"{where} has format {found}, and this coldstream reads up to {FORMAT}",
                hint="install a newer coldstream",
            )
        return _DECODER.decode(data)
    except (ValueError, RecursionError) as exc:
        raise IntegrityError(f"{where} is not the timeline of a start: {clean(str(exc))[:200]}") from exc


def run_name(began: datetime, model: str) -> str:
    """The name of a start: `20261124-102001-qwen3-8b`."""
    last = re.sub(r"[^a-z0-9.]+", "-", model.lower().rstrip("/").rpartition("/")[2]).strip("-.")
    return f"{began:%Y%m%d-%H%M%S}-{last[:60].rstrip('-.') or 'model'}"


def as_values(record: Mapping[str, Any]) -> dict[str, str | float | bool | None]:
    """A flat record as a timeline keeps it: what is neither text nor number is left out."""
    found: dict[str, str | float | bool | None] = {}
    for name, value in record.items():
        if isinstance(value, str):
            found[clean(name)] = clean(value)
        elif value is None or isinstance(value, (bool, int, float)):
            found[clean(name)] = value
    return found
