"""The newest hundred timelines of this machine, in `<cache root>/timelines/<run>.json`."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from coldstream.cache.cache import cache_of
from coldstream.errors import ColdstreamError, IntegrityError, NotFoundError, UsageError
from coldstream.machine.atomic_file import write_atomically
from coldstream.machine.disk import checked_root, disk_errors, make_folders, open_private, read_bounded
from coldstream.model.names import expanded, is_path
from coldstream.settings import Settings
from coldstream.telemetry.timeline.phases import clean
from coldstream.telemetry.timeline.start_record import RECORD_BYTES_MAX, RUN, Timeline, parse

KEPT = 100
# The limit for starts that failed, so that a machine that retries forever does not evict the others.
ENDED_KEPT = 20


class Timelines:
    """The timelines of this user's starts on this machine, below the cache's `root`. Safe across processes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.folder = root / "timelines"

    def keep(self, timeline: Timeline) -> Timeline:
        """Stores a new timeline; returns it with its final name: of two in one second, the second is called "…-2"."""
        with disk_errors(self.folder):
            checked_root(self._root, create=True)
            make_folders(self.folder)
            names = itertools.chain([timeline.run], (f"{timeline.run}-{number}" for number in itertools.count(2)))
            timeline = msgspec.structs.replace(timeline, run=next(filter(self._reserve, names)))
            self.update(timeline)
            self._prune(ended=timeline.ended is not None)
        return timeline

    def update(self, timeline: Timeline) -> None:
        """Stores a timeline that `keep` returned again. Raises DiskError."""
        with disk_errors(self.folder):
            write_atomically(self.path(timeline.run), timeline.serialize(), staging=self.folder)

    def path(self, run: str) -> Path:
        return self.folder / f"{run}.json"

    def runs(self) -> list[str]:
        """The names of all timelines, newest first."""
        try:
            names = os.listdir(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        stored = [name.removesuffix(".json") for name in names if name.endswith(".json")]
        return sorted((run for run in stored if re.fullmatch(RUN, run)), key=_by_time, reverse=True)

    def all(self) -> Iterator[Timeline]:
        """All readable timelines, newest first."""
        for run in self.runs():
            with suppress(ColdstreamError):
                yield read(self.path(run))

    def find(self, which: str | None) -> Timeline:
        """A timeline by its name, the beginning of its name, or the path of a file; the newest one for None."""
        if which is None:
            for newest in self.all():
                return newest
            raise NotFoundError(f"no start is recorded in {self.folder}", hint="each coldstream serve records one")
        if is_path(which) or "/" in which or which.endswith(".json"):
            return read(expanded(which))
        runs = self.runs()
        matches = [which] if which in runs else [run for run in runs if run.startswith(which)]
        if not matches:
            raise NotFoundError(f"no start is named {which}", hint="see: coldstream timeline --list")
        if len(matches) > 1:
            raise UsageError(f"{which} is ambiguous: {', '.join(matches[:4])}", hint="type more of the name")
        return read(self.path(matches[0]))

    def _reserve(self, run: str) -> bool:
        """Reserves a name by creating an empty file; False if it is taken."""
        try:
            os.close(open_private(self.path(run), os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def _prune(self, *, ended: bool) -> None:
        surplus = self.runs()[KEPT:]
        if ended:
            surplus += [timeline.run for timeline in self.all() if timeline.ended is not None][ENDED_KEPT:]
        for run in surplus:
            self.path(run).unlink(missing_ok=True)


def timelines_of(settings: Settings) -> Timelines:
    """Those in the configured cache."""
    return Timelines(cache_of(settings).root)


def read(path: Path) -> Timeline:
    """Reads a file; raises NotFoundError, DiskError, or IntegrityError for another content or a newer format."""
    shown = clean(str(path))
    if not path.is_file():
        raise NotFoundError(f"no such file: {shown}", hint="see: coldstream timeline --list")
    with disk_errors(path):
        data = read_bounded(path, RECORD_BYTES_MAX)
    if data is None:
        raise IntegrityError(f"{shown} is too large for a timeline")
    return parse(data, where=shown)


def _by_time(run: str) -> tuple[str, int, str]:
    """A sort key: "…-10" comes after "…-9"."""
    match = re.fullmatch(r"(.*?)-([0-9]{1,3})", run)
    return (match[1], int(match[2]), run) if match else (run, 1, run)
