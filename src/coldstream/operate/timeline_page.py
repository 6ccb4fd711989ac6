"""Several starts side by side as one page of HTML that needs nothing else: no script, no font, no network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from coldstream.operate.timeline_chart import colour_of, labels_of, svgs
from coldstream.telemetry.timeline.phases import Phase, Span
from coldstream.telemetry.timeline.start_record import Timeline
from coldstream.telemetry.timeline.timeline_text import phase_names, stream_text
from coldstream.units import format_bytes, format_seconds, plural

_FOOTER = (
    "Phases follow each other without a gap; what stands under “beside” runs at the same time. Times are those when "
    "lines of vLLM arrived, by one clock."
)
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #22272e; background: #fff;
  max-width: 1120px; margin: 32px auto; padding: 0 24px; }
h1 { font-size: 24px; margin: 0 0 4px; font-weight: 650; }
h2 { font-size: 17px; margin: 36px 0 8px; font-weight: 650; }
p.sub { color: #5f6875; margin: 0 0 20px; }
svg { width: 100%; height: auto; display: block; }
section.run { border-left: 3px solid #d5dae1; padding: 2px 0 2px 16px; margin: 16px 0; }
section.run h3 { font-size: 15px; margin: 0; font-weight: 650; overflow-wrap: anywhere; }
section.run p { margin: 2px 0; overflow-wrap: anywhere; }
section.run p.facts { color: #5f6875; font-size: 13.5px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { text-align: left; padding: 5px 10px; border-bottom: 1px solid #e8eaed; vertical-align: top; }
th { color: #5f6875; font-weight: 600; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.sum td { font-weight: 650; border-top: 2px solid #d5dae1; }
i.key { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 8px; }
td.note { color: #5f6875; }
footer { color: #8b929c; font-size: 12.5px; margin: 40px 0 8px; }
"""


def html(timelines: Sequence[Timeline]) -> str:
    """The page.

    Args:
        timelines: At least one.

    Raises:
        UsageError: matplotlib is not installed.
    """
    bars, phases = svgs(timelines)
    models = dict.fromkeys(timeline.model for timeline in timelines)
    title = f"How {escape(', '.join(models))} started"
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>',
        f"<h1>{title}</h1>",
        f'<p class="sub">{plural(len(timelines), "start")} of vLLM, from the command to the first token</p>',
        bars,
        "<h2>What limited them</h2>",
        *(_run(timeline, label) for timeline, label in zip(timelines, labels_of(timelines), strict=True)),
        "<h2>Each phase</h2>",
        phases,
        "<h2>The figures</h2>",
        _table(timelines),
        f"<footer>coldstream {escape(timelines[0].coldstream)}. {_FOOTER}</footer>",
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _run(timeline: Timeline, label: str) -> str:
    facts = [
        timeline.run,
        f"vLLM {timeline.vllm}" if timeline.vllm else "vLLM",
        f"loader {timeline.loader}",
        f"{timeline.machine.gpus} x {timeline.machine.device}"
        if timeline.machine.gpus
        else f"{timeline.machine.device}, {plural(timeline.machine.cores, 'core')}",
        f"compile caches: {timeline.compile_caches}",
    ]
    if timeline.bundle is not None:
        facts.append(f"bundle: {_bundle(timeline)}")
    said = [f"ready in {timeline.ready_seconds:.1f} s"]
    if timeline.first_token_seconds is not None:
        said.append(f"first token after {timeline.first_token_seconds:.1f} s")
    said.append(f"named {int(100 * timeline.named_share + 1e-6)}% of it")
    lines = [", ".join(said), *timeline.verdict]
    return "\n".join(
        [
            '<section class="run">',
            f"<h3>{escape(' '.join(filter(None, (label, timeline.model))))}</h3>",
            *(f"<p>{escape(line[:1].upper() + line[1:])}</p>" for line in lines),
            f'<p class="facts">{escape(" · ".join(facts))}</p>',
            "</section>",
        ]
    )


def _bundle(timeline: Timeline) -> str:
    bundle = timeline.bundle or {}
    state, size = bundle.get("state"), bundle.get("bytes")
    return f"{state}, {format_bytes(size)}" if isinstance(size, (int, float)) and size else str(state)


def _table(timelines: Sequence[Timeline]) -> str:
    labels = labels_of(timelines)
    head = "".join(f'<th class="n">{label} seconds</th>' for label in labels)
    rows = [f"<table><thead><tr><th>Phase</th>{head}<th>What happened</th></tr></thead><tbody>"]
    rows += [_row(name, timelines, lambda timeline: timeline.phases) for name in phase_names(timelines)]
    rows.append(_sums("first token" if _have_tokens(timelines) else "ready", timelines))
    rows.append(f'<tr><th>Beside</th><th colspan="{len(labels) + 1}"></th></tr>')
    spans = dict.fromkeys(span.name for timeline in timelines for span in timeline.spans)
    rows += [_row(name, timelines, lambda timeline: timeline.spans) for name in spans]
    figures = dict.fromkeys(name for timeline in timelines for name in timeline.figures)
    if figures:
        rows.append(f'<tr><th>As vLLM itself says</th><th colspan="{len(labels) + 1}"></th></tr>')
    for name in figures:
        cells = "".join(f'<td class="n">{_figure(timeline.figures.get(name))}</td>' for timeline in timelines)
        rows.append(f"<tr><td>{escape(name.replace('_', ' '))}</td>{cells}<td></td></tr>")
    rows.append("</tbody></table>")
    return "\n".join(rows)


def _row(name: str, timelines: Sequence[Timeline], of: Callable[[Timeline], Sequence[Phase | Span]]) -> str:
    cells: list[str] = []
    notes: dict[str, dict[str, None]] = {}
    having = 0
    for timeline, label in zip(timelines, labels_of(timelines), strict=True):
        found = [row for row in of(timeline) if row.name == name]
        cells.append(f'<td class="n">{sum(row.seconds for row in found):.2f}</td>' if found else '<td class="n">-</td>')
        having += bool(found)
        for row in found:
            note = stream_text(timeline) or row.note if name == "stream" else row.note
            if note:
                notes.setdefault(note, {})[label] = None
    # A note that all share needs no letter.
    shared = [text for text, who in notes.items() if len(who) == having]
    note = "; ".join(text if text in shared else f"{', '.join(who)}: {text}" for text, who in notes.items())
    key = f'<i class="key" style="background:{colour_of(name)}"></i>'
    return f'<tr><td>{key}{escape(name)}</td>{"".join(cells)}<td class="note">{escape(note)}</td></tr>'


def _sums(name: str, timelines: Sequence[Timeline]) -> str:
    cells = "".join(f'<td class="n">{timeline.seconds:.2f}</td>' for timeline in timelines)
    unnamed = [timeline.unnamed_seconds for timeline in timelines]
    note = f"{format_seconds(max(unnamed))} of it unnamed" if any(unnamed) else ""
    return f'<tr class="sum"><td>until the {name}</td>{cells}<td class="note">{note}</td></tr>'.replace(
        "until the ready", "until it answers"
    )


def _have_tokens(timelines: Sequence[Timeline]) -> bool:
    return all(timeline.first_token_seconds is not None for timeline in timelines)


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 and value == int(value) else f"{value:.2f}"
