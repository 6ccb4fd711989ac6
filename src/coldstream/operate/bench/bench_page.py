"""The result as one page of HTML: it needs no script, no font and no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from coldstream.operate.bench.bench_chart import colour_of, floor_sentence, svgs
from coldstream.operate.bench.result import Result, Row, best, seconds_text, verdict
from coldstream.units import format_bytes, format_rate, plural

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #22272e; background: #fff;
  max-width: 1080px; margin: 32px auto; padding: 0 24px; }
h1 { font-size: 24px; margin: 0 0 4px; font-weight: 650; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 36px 0 8px; font-weight: 650; }
p.sub { color: #5f6875; margin: 0 0 20px; overflow-wrap: anywhere; }
p.verdict { border-left: 3px solid #2f6db3; padding-left: 14px; margin: 6px 0; }
svg { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { text-align: left; padding: 5px 10px; border-bottom: 1px solid #e8eaed; vertical-align: top; }
th { color: #5f6875; font-weight: 600; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.note { color: #5f6875; }
i.key { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 8px; }
footer { color: #8b929c; font-size: 12.5px; margin: 40px 0 8px; overflow-wrap: anywhere; }
"""


def html(result: Result) -> str:
    """The page.

    Args:
        result: What came out.

    Raises:
        UsageError: matplotlib is not installed.
    """
    charts = svgs(result)
    count = f"{plural(result.rounds, 'timed run')} of each, interleaved, after one that was not timed"
    sub = (
        f"{format_bytes(result.bytes)} in {plural(result.files, 'file')} from {result.uri} to {result.device}; {count}"
    )
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>Loading {escape(result.model)}</title>',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>',
        f"<h1>Loading {escape(result.model)}</h1>",
        f'<p class="sub">{escape(sub)}</p>',
        *(
            f'<p class="verdict">{escape(line)}</p>'
            for line in (*verdict(result.loads, "load"), *verdict(result.starts, "start"))
        ),
        *charts,
    ]
    if result.loads:
        parts += ["<h2>Bare loads</h2>", _table(result.loads, starts=False)]
    if result.starts:
        parts += ["<h2>Whole starts of vLLM, to the first token</h2>", _table(result.starts, starts=True)]
    if skipped := (*result.skipped, *result.skipped_starts):
        told = dict.fromkeys(f"{one.label}: {one.reason}" for one in skipped)
        parts += ["<h2>Left out</h2>", "<ul>", *(f"<li>{escape(line)}</li>" for line in told), "</ul>"]
    if floors := result.floors.lines():
        rows = "".join(f"<tr><td>{escape(stage)}</td><td>{escape(said)}</td></tr>" for stage, said in floors)
        parts += ["<h2>Floors, measured before the loads</h2>", f"<table><tbody>{rows}</tbody></table>"]
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    last = f"{'. '.join(result.terms)}. {result.machine}. {versions}. {result.began}."
    parts += [f"<footer>{escape(last)}</footer>", "</body></html>"]
    return "\n".join(parts) + "\n"


def _table(rows: Sequence[Row], *, starts: bool) -> str:
    heads = ["Median", "Least to most", "Rate", "CPU s/GiB", "Memory", "x best"]
    if starts:
        # The model's bytes are little of it.
        heads[2:4] = ["CPU s"]
    head = "".join(f'<th class="n">{name}</th>' for name in heads)
    least = best(rows)
    lines = [f"<table><thead><tr><th>Loader</th>{head}<th>How, and how close</th></tr></thead><tbody>"]
    lines += [_row(row, least, starts=starts) for row in rows]
    return "\n".join([*lines, "</tbody></table>"])


def _row(row: Row, least: float | None, *, starts: bool) -> str:
    key = f'<i class="key" style="background:{colour_of(row.name)}"></i>'
    seconds, cpu, per_gib, memory = row.seconds, row.cpu_seconds, row.cpu_seconds_per_gib, row.memory_bytes
    cells = ["-"] * (5 if starts else 6)
    if seconds and cpu and per_gib and memory:
        middle = [f"{cpu.median:.1f}"] if starts else [format_rate(row.bytes, seconds.median), f"{per_gib.median:.2f}"]
        cells = [
            seconds_text(seconds.median),
            f"{seconds_text(seconds.least)} to {seconds_text(seconds.most)}",
            *middle,
            format_bytes(memory.median),
            f"{seconds.median / least:.1f}" if least else "-",
        ]
    versions = ", ".join(f"{name} {version}" for name, version in row.versions.items())
    wrong = f"gave other {'tokens' if starts else 'bytes'} than the others" if row.same is False else ""
    failed = f"failed: {row.failure}" if row.failure else ""
    note = "; ".join(filter(None, (failed, wrong, row.detail, floor_sentence(row), versions)))
    figures = "".join(f'<td class="n">{escape(cell)}</td>' for cell in cells)
    return f'<tr><td>{key}{escape(row.label)}</td>{figures}<td class="note">{escape(note)}</td></tr>'
