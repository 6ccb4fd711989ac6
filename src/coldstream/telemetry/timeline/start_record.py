"""`timeline.json`, the record of a start, and the line of JSON that `serve` prints when vLLM answers. Pure.

Neither has secrets or any of vLLM's flags. Files and logs may be hostile, so reading checks types, sizes and order, and
rejects characters that a terminal would obey. Within a format, fields are only added.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from coldstream.errors import IntegrityError
from coldstream.telemetry.timeline.phases import Phase, Seconds, Span, Text, clean, named_share

_FORMAT_MAX = 2
RECORD_BYTES_MAX = 1 << 20
RUN = r"[0-9]{8}-[0-9]{6}-[a-z0-9][a-z0-9.-]{0,79}"

Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=1 << 60)]
Figure = Annotated[float, Meta(ge=-1e18, le=1e18)]
Value = Text | Annotated[int, Meta(ge=-(1 << 60), le=1 << 60)] | Figure | bool | None


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where a start ran; `device` is the name of the GPUs or the processor."""

    device: Text
    cores: Count
    gpus: Count = 0


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """The stream of the weights: the fields of a `LoadReport`, and two more."""

    bytes: Count
    received_bytes: Count
    cache_bytes: Count
    seconds: Seconds
    hidden_share: Share | None  # the share during which vLLM was busy with something else; None when unknown
    waited_seconds: Seconds | None  # how long vLLM read weights that were still arriving; None when unknown
    limit: Text
    limited_by: Text
    verified: bool = False
    offline: bool = False


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a start failed or was cancelled."""

    outcome: Text  # "failed", or "cancelled" when we passed a signal on
    seconds: Seconds  # since the command began
    phase: Text
    exit_code: Annotated[int, Meta(ge=0, le=1 << 16)]  # of vLLM, as a shell reports it
    signal: Text | None = None  # the name of the signal that ended it, such as "SIGKILL"
    reason: Text | None = None  # the error that vLLM printed

    @property
    def how(self) -> str:
        return f"ended by {self.signal}" if self.signal else f"exit code {self.exit_code}"


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """One start."""

    run: Annotated[str, Meta(pattern=rf"^{RUN}\Z")]  # its name: time and model; sorts by time
    model: Text  # its name in the API
    began: datetime  # when the command began, UTC
    coldstream: Text
    vllm: Text | None  # the version of vLLM; None when unknown, and for another engine
    loader: Text  # how the engine got the weights
    machine: Machine
    ready_seconds: Seconds | None  # from the command to the first answer of `/health`; None when none came
    first_token_seconds: Seconds | None  # from the command; None when no token was requested, or none came
    phases: Annotated[tuple[Phase, ...], Meta(max_length=100)]  # without gaps from 0 to the end
    spans: Annotated[tuple[Span, ...], Meta(max_length=100)] = ()
    verdict: Annotated[tuple[Text, ...], Meta(max_length=10)] = ()  # what limited it, or why it ended, in a line each
    stream: Stream | None = None  # None with another loader
    bundle: Annotated[dict[Text, Value], Meta(max_length=50)] | None = None  # what happened to the caches
    # "loaded": every graph came from the caches; "compiled": some did not; "none": eager mode; "unknown": the log does
    # not say, as with the CPU build.
    compile_caches: Text = "unknown"
    figures: Annotated[dict[Text, Figure], Meta(max_length=100)] = {}  # numbers from vLLM's log and metrics, by name
    ended: Ended | None = None  # how it failed or was cancelled; None when it answered
    engine: Text = ""  # its name and version, as in "SGLang 0.5.23"; empty in older records, which are of vLLM
    format: int = 1  # 2 when it did not answer, so that readers that know only 1 reject it

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
    def software(self) -> str:
        """The engine's name, and its version if that is known."""
        return self.engine or f"vLLM {self.vllm or ''}".strip()

    @property
    def outcome(self) -> str:
        """Returns "ok", "failed" or "cancelled"."""
        return "ok" if self.ended is None else self.ended.outcome

    @property
    def seconds(self) -> float:
        """From the command to the end of the last phase."""
        return self.phases[-1].stop if self.phases else self.ready_seconds or 0.0

    @property
    def named_share(self) -> float:
        return named_share(self.phases)

    @property
    def unnamed_seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases if not phase.is_named)

    def with_bundle(self, bundle: Mapping[str, Any] | None) -> Timeline:
        return msgspec.structs.replace(self, bundle=None if bundle is None else as_values(bundle))

    def document(self) -> dict[str, Any]:
        """For JSON, with the computed fields."""
        document: dict[str, Any] = msgspec.to_builtins(self)
        return document | {name: getattr(self, name) for name in ("outcome", "named_share", "unnamed_seconds")}

    def serialize(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self.document()), indent=1) + b"\n"


class _Format(msgspec.Struct):
    format: int


# Made here, once: msgspec crashes when two threads make the first decoder of a type at the same time.
_FORMAT_DECODER = msgspec.json.Decoder(_Format)
_DECODER = msgspec.json.Decoder(Timeline)


def parse(data: bytes, *, where: str) -> Timeline:
    """Parses the bytes of a file, which `where` names; IntegrityError if it is not a timeline, or of a newer format."""
    try:
        if len(data) > RECORD_BYTES_MAX:
            raise ValueError(f"{len(data)} bytes exceed the limit")
        version = _FORMAT_DECODER.decode(data).format
        if version > _FORMAT_MAX:
            raise IntegrityError(
                f"{where} has format {version}, but this coldstream reads formats up to {_FORMAT_MAX}",
                hint="upgrade coldstream",
            )
        return _DECODER.decode(data)
    except (ValueError, RecursionError) as exc:
        raise IntegrityError(f"{where} is not a valid timeline: {clean(str(exc))[:200]}") from exc


def run_name(began: datetime, model: str) -> str:
    """The name of a start: `20261124-102001-qwen3-8b`."""
    last = re.sub(r"[^a-z0-9.]+", "-", model.lower().rstrip("/").rpartition("/")[2]).strip("-.")
    return f"{began:%Y%m%d-%H%M%S}-{last[:60].rstrip('-.') or 'model'}"


def as_values(record: Mapping[str, Any]) -> dict[str, str | float | bool | None]:
    """A flat record without the values that are neither text nor numbers."""
    return {
        clean(name): clean(value) if isinstance(value, str) else value
        for name, value in record.items()
        if value is None or isinstance(value, (str, bool, int, float))
    }


class ReadyLine(msgspec.Struct, frozen=True, kw_only=True):
    """The line that `serve` prints for a start that answered at `url`. Its fields are a contract (docs/serve.md)."""

    # Tells the line from others in a log. Comes first.
    coldstream: Literal["ready"] = "ready"
    url: Text
    run: Text
    model: Text
    ready_seconds: Seconds
    first_token_seconds: Seconds | None
    phases: tuple[Phase, ...]
    spans: tuple[Span, ...]


_READY_LINE = '{"coldstream":"ready",'
_READY_LINE_DECODER = msgspec.json.Decoder(ReadyLine)


def format_ready_line(timeline: Timeline, url: str) -> str:
    """The line for a start that answered at `url`, without a line break."""
    names = ("run", "model", "ready_seconds", "first_token_seconds", "phases", "spans")
    return msgspec.json.encode(ReadyLine(url=url, **{name: getattr(timeline, name) for name in names})).decode()


def parse_ready_line(lines: Iterable[str]) -> ReadyLine | None:
    """The last such line of a log; None when it has none. Log collectors may have put a prefix before each line."""
    for line in reversed([*lines]):
        _, beginning, rest = line.partition(_READY_LINE)
        if beginning:
            try:
                return _READY_LINE_DECODER.decode(beginning + rest.rstrip())
            except (msgspec.MsgspecError, UnicodeError, RecursionError):
                continue
    return None
