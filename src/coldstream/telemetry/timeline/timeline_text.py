"""A timeline as text, for terminals and logs. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from coldstream.telemetry.timeline.phases import PHASE_KINDS, Phase, Span
from coldstream.telemetry.timeline.start_record import Timeline
from coldstream.units import format_bytes, format_rate

COLUMNS_MAX = 100
_BAR_COLUMNS = 28
_NAME_COLUMNS_MAX = 24
# From an eighth of a column to all of it, from the left.
_EIGHTHS = "▏▎▍▌▋▊▉█"


def rows_text(timeline: Timeline, *, bars: bool, columns: int = COLUMNS_MAX) -> list[str]:
    """A line for each phase and span, in the order in which they begin; at most `COLUMNS_MAX` columns are used."""
    rows = _rows(timeline)
    names = min(_NAME_COLUMNS_MAX, max((len(name) for name, *_ in rows), default=0))
    columns = min(columns, COLUMNS_MAX)
    wide = max(8, min(_BAR_COLUMNS, columns - names - 30))
    total = max([timeline.seconds, *(row.stop for _, row, _ in rows)], default=0.0)
    lines = []
    for name, row, note in rows:
        drawn = f"{bar(row.start, row.stop, total, columns=wide)} " if bars and total else ""
        head = f"  {_cut(name, names):<{names}}  {drawn}{row.seconds:6.1f} s"
        text = _cut(note, columns - len(head) - 2) if bars else note
        lines.append(f"{head}  {text}".rstrip())
    return lines


def summary_text(timeline: Timeline, *, url: str | None = None, columns: int | None = None) -> list[str]:
    """The lines below the rows: the duration, the share with known phases, and the verdict; wrapped to `columns`."""
    facts = [ended_text(timeline) or f"ready in {timeline.ready_seconds:.1f} s"]
    if timeline.first_token_seconds is not None:
        facts.append(f"first token after {timeline.first_token_seconds:.1f} s")
    if url:
        facts.append(url)
    # Rounded down, so that 100 % means all of it.
    coverage = f"phases known for {int(100 * timeline.named_share + 1e-6)} % of start-up"
    lines = ["   ".join(facts), coverage, *timeline.verdict]
    if timeline.stream is not None and timeline.stream.offline:
        lines.append("the bucket did not answer; the weights came from the local cache")
    if columns is None:
        return lines
    # A URL is not cut, even if it is longer.
    wrapper = textwrap.TextWrapper(min(columns, COLUMNS_MAX), subsequent_indent="  ", break_long_words=False)
    return [part for line in lines for part in wrapper.wrap(line) or [line]]


def ended_text(timeline: Timeline) -> str:
    """How a start failed or was cancelled; empty when it answered."""
    ended = timeline.ended
    return "" if ended is None else f"{ended.outcome} after {ended.seconds:.1f} s, in {ended.phase}: {ended.how}"


def side_by_side(columns_of: Mapping[str, Timeline], *, bars: bool, columns: int = COLUMNS_MAX) -> list[str]:
    """Several starts by their headings in columns on one axis, with a row for each phase and for the stream."""
    timelines = [*columns_of.values()]
    names = [name for timeline in timelines for name, *_ in _rows(timeline) if name in {"download", "· stream"}]
    names = [*dict.fromkeys([*names, *phase_names(timelines)])]
    left = max(len(name) for name in names) + 2
    total = max(timeline.seconds for timeline in timelines)
    wide = max(8, min(_BAR_COLUMNS, (min(columns, COLUMNS_MAX) - left) // len(timelines) - 12)) if bars else 0
    cell = max(wide + 10, *(len(title) for title in columns_of)) + 2
    lines = [f"  {'':<{left}}" + "".join(f"{title:<{cell}}" for title in columns_of)]
    for name in names:
        line = f"  {name:<{left}}"
        for timeline in timelines:
            spans = [span for row_name, span, _ in _rows(timeline) if row_name == name]
            drawn = bar(spans[0].start, spans[-1].stop, total, columns=wide) if spans and wide else " " * wide
            seconds = f"{sum(span.seconds for span in spans):6.1f} s" if spans else f"{'-':>6}"
            line += f"{drawn} {seconds}".ljust(cell)
        lines.append(line)
    return [line.rstrip() for line in lines]


def bar(start: float, stop: float, total: float, *, columns: int) -> str:
    """A bar from `start` to `stop` on an axis of `total` seconds: as exact as a terminal allows, never invisible."""
    first, end = columns * start / total, columns * stop / total
    cell = min(int(first), columns - 1)
    if end - cell <= 1:
        # It fits in one column, which can only show its length.
        eighths = min(8, max(1, round(8 * (end - first))))
        return (" " * cell + _EIGHTHS[eighths - 1]).ljust(columns)
    # Only one character begins inside a column: the right half block.
    inside = first - cell
    begun = "█" if inside < 0.25 else "▐" if inside < 0.75 else " "
    whole = int(end) - cell - 1
    eighths = round(8 * (end - int(end)))
    if begun == " " and not whole:
        eighths = max(eighths, 1)
    return (" " * cell + begun + "█" * whole + (_EIGHTHS[eighths - 1] if eighths else ""))[:columns].ljust(columns)


def phase_names(timelines: Sequence[Timeline]) -> list[str]:
    """The phases of several starts, each once, in the order of time."""
    order = {kind.name: place for place, kind in enumerate(PHASE_KINDS)} | {"engine init": len(PHASE_KINDS) - 3.5}
    names = {phase.name for timeline in timelines for phase in timeline.phases}
    return sorted(names, key=lambda name: (order.get(name.partition(" + ")[0], len(PHASE_KINDS)), name))


def stream_text(timeline: Timeline) -> str:
    """Size and rate of the stream; empty without one."""
    stream = timeline.stream
    if stream is None:
        return ""
    text = f"{format_bytes(stream.bytes)}, {format_rate(stream.bytes, stream.seconds)}"
    return text if stream.hidden_share is None else f"{text}, {stream.hidden_share:.0%} hidden by the start"


def _rows(timeline: Timeline) -> Sequence[tuple[str, Phase | Span, str]]:
    rows: list[tuple[str, Phase | Span, str]] = [(phase.name, phase, phase.note) for phase in timeline.phases]
    for span in timeline.spans:
        note = (span.name == "stream" and stream_text(timeline)) or span.note
        rows.append((f"· {span.name}", span, note))
    # Spans come below the phase that they run beside.
    return sorted(rows, key=lambda row: (row[1].start, not isinstance(row[1], Phase), row[1].stop))


def _cut(text: str, columns: int) -> str:
    return text if len(text) <= columns else text[: max(0, columns - 1)] + "…"
