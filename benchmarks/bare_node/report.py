"""The tables of benchmarks/bare.py, in Markdown."""
# ruff: noqa: RUF001  # signs of the Markdown that is written

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from streaming.link import PAYLOAD_SHARE

BITS = 5e9
OWN, INSTALLED, PULLED = ("mount", "unpack"), ("uv", "uv-compile"), "image"
ROWS = {
    "mount": "coldstream's runtime, root (mounted)",
    "unpack": "coldstream's runtime, unprivileged (unpacked)",
    "uv": "`uv pip install`",
    "uv-compile": "`uv pip install --compile-bytecode`",
    "image": "`podman pull` of gzip layers",
}
RUNTIME_ROWS = {
    "mount": "root, in memory",
    "unpack": "unprivileged, in memory",
    "unsquashfs": "unsquashfs by itself, in memory",
    "mount disk": "root, on a disk without a limit",
    "mount slow": "root, on a disk of 125 MB/s",
    "unpack disk": "unprivileged, on a disk without a limit",
    "unpack slow": "unprivileged, on a disk of 125 MB/s",
}
FORMAT_ROWS = {
    "zstd-128K": "squashfs, zstd 3, 128 KiB",
    "zstd-256K": "squashfs, zstd 3, 256 KiB",
    "zstd-1M": "squashfs, zstd 3, 1 MiB",
    "gzip-128K": "squashfs, gzip 1, 128 KiB",
    "tar-gzip": "tar, gzip 1",
}
Sample = dict[str, Any]


def markdown(result: dict[str, Any]) -> str:
    """All tables of a run."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    arguments = result["arguments"]
    image = result["image"]
    lines = [
        f"{result['machine']}, {versions}; {result['date']}.",
        f"Image {image['size'] / 1e6:.0f} MB, unpacked {image['unpacked'] / 1e9:.2f} GB, {image['files']} files.",
        f"Wheels {result['wheels_bytes'] / 1e6:.0f} MB; layers {result['layers_bytes'] / 1e6:.0f} MB.",
        *(f"Skipped: {row}: {reason}" for row, reason in result["skipped"].items()),
    ]
    for scenario, rows in result["samples"].items():
        render = {"runtime": _runtime_table, "formats": _formats_table}.get(scenario, _token_table)
        lines += ["", f"### {scenario}, {max(map(len, rows.values()))} rounds", "", *render(rows, image)]
    lines += ["", f"arguments: {arguments}"]
    return "\n".join(lines)


def _spread(values: Sequence[float], digits: int = 1) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _token_table(rows: dict[str, list[Sample]], _: dict[str, Any]) -> list[str]:
    lines = ["| Row | first token, s | runtime ready, s | serving, s | CPU-s | each |", "|---|---:|---:|---:|---:|---|"]
    for row, samples in rows.items():
        delivered = [sample["delivered"] for sample in samples]
        serving = [sample["seconds"] - sample["delivered"] for sample in samples]
        cells = [_spread([sample["seconds"] for sample in samples])]
        cells += [f"{statistics.median(values):.1f}" for values in (delivered, serving)]
        cells += [f"{statistics.median([sample['cpu'] for sample in samples]):.0f}"]
        cells += [", ".join(f"{sample['seconds']:.1f}" for sample in samples)]
        lines.append(f"| {ROWS[row]} | {' | '.join(cells)} |")
    lines += ["", "| Measure | Target | Measured | |", "|---|---|---|---|"]
    for own in OWN:
        for others, most, what in ((INSTALLED, 0.6, "the better install"), ((PULLED,), 0.5, "the image")):
            if own in rows and all(other in rows for other in others):
                columns = zip(rows[own], *(rows[other] for other in others), strict=False)
                ratios = [first["seconds"] / min(other["seconds"] for other in rest) for first, *rest in columns]
                lines.append(_target(f"{ROWS[own]}, over {what}", ratios, most))
    return lines


def _target(what: str, ratios: Sequence[float], most: float) -> str:
    state = "reached" if statistics.median(ratios) <= most else "**missed**"
    return f"| {what} | ≤ {most} × | {_spread(ratios, 2)} × | {state} |"


def _runtime_table(rows: dict[str, list[Sample]], image: dict[str, Any]) -> list[str]:
    link = image["size"] / (BITS / 8 * PAYLOAD_SHARE)
    lines = ["| Row | until coldstream is executed, s | CPU-s | bootstrap's memory, MiB |", "|---|---:|---:|---:|"]
    lines.append(f"| the image's bytes ÷ the link's rate | {link:.2f} | | |")
    for row, samples in rows.items():
        cells = [_spread([sample["seconds"] for sample in samples], 2)]
        cells.append(_spread([sample["cpu"] for sample in samples], 1))
        cells.append(f"{max(sample['memory'] for sample in samples) / 2**20:.0f}")
        lines.append(f"| {RUNTIME_ROWS[row]} | {' | '.join(cells)} |")
    seconds = {row: [sample["seconds"] for sample in samples] for row, samples in rows.items()}
    lines += ["", "| Measure | Target | Measured | |", "|---|---|---|---|"]
    if "mount" in rows:
        lines.append(
            _target("root, over 1.3 × bytes ÷ link + 0.5 s", [s / (1.3 * link + 0.5) for s in seconds["mount"]], 1)
        )
    if "unpack" in rows and "unsquashfs" in rows:
        pairs = zip(seconds["unpack"], seconds["unsquashfs"], strict=False)
        text = "unprivileged, over the larger of bytes ÷ link and unsquashfs"
        lines.append(_target(text, [own / max(link, alone) for own, alone in pairs], 1.5))
    for way in OWN:
        if f"{way} slow" in rows and f"{way} disk" in rows:
            pairs = zip(seconds[f"{way} slow"], seconds[f"{way} disk"], strict=False)
            text = f"{RUNTIME_ROWS[f'{way} slow']}, over the disk without a limit"
            lines.append(_target(text, [slow / fast for slow, fast in pairs], 1.2))
    peaks = [sample["memory"] / 2**20 for row in OWN for sample in rows.get(row, [])]
    if peaks:
        state = "reached" if max(peaks) <= 256 else "**missed**"
        lines.append(f"| bootstrap's memory | ≤ 256 MiB | {max(peaks):.0f} MiB | {state} |")
    return lines


def _formats_table(rows: dict[str, list[Sample]], _: dict[str, Any]) -> list[str]:
    lines = ["| Image | MB | made in, s (CPU-s) | used | ready in, s (CPU-s) | first import, s (CPU-s) |"]
    lines.append("|---|---:|---:|---|---:|---:|")

    def pair(pairs: Sequence[Sequence[float]]) -> str:
        wall, cpu = (statistics.median(each[index] for each in pairs) for index in (0, 1))
        return f"{wall:.1f} ({cpu:.1f})"

    for row, samples in rows.items():
        made = [f"{samples[0]['bytes'] / 1e6:.0f}", pair([sample["make"] for sample in samples])]
        for use in (name for name in samples[0] if name not in {"make", "bytes"}):
            imports = [(each[use]["import"][0], each[use]["import"][1] + each[use]["helper_cpu"]) for each in samples]
            ready = pair([sample[use]["ready"] for sample in samples])
            text = {"memory": "unpacked to memory", "disk": "unpacked to the disk"}.get(use, use)
            lines.append(f"| {FORMAT_ROWS[row]} | {' | '.join(made)} | {text} | {ready} | {pair(imports)} |")
    return lines
