"""A CDN that injects faults, before a bucket with a model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from coldstream.engine.load_statistics import CdnReport, LoadReport
from coldstream.loading.options import Options
from coldstream.loading.streaming import Load
from coldstream.places.place import Store
from coldstream.settings import Settings, load_settings
from tests.checkpoints import raw_bytes
from tests.conftest import quick_store
from tests.servers.ranged import RangedServer, Reply, Request
from tests.servers.stores import Faults

NAME = "org/model"

PREFIX = "models/v=1+x"

SECRET = "5ec2e7-7a1ue"

PAGE = b"<!doctype html><title>Attention Required!</title>" + b" " * 4000


class FakeCdn(RangedServer):
    """Cloudflare, as far as a reader sees it: `cf-cache-status`, a rule that asks for a header, and its pages."""

    status: str | None = "HIT"
    secret: tuple[str, str] | None = None
    page = False
    misses = ("", "")  # a path, and what a range of it that is not kept begins with

    def _reply(self, request: Request) -> Reply:
        if self.secret is not None and request.headers.get(self.secret[0].lower()) != self.secret[1]:
            return Reply(403, {"Content-Type": "text/html", "cf-cache-status": "BYPASS"}, memoryview(PAGE))
        if self.page:
            return Reply(200, {"Content-Type": "text/html"}, memoryview(PAGE))
        # Conditions are what a cache may trip over: none is asked.
        assert "if-match" not in request.headers
        reply = super()._reply(request)
        if self.status is not None:
            path, beginning = self.misses
            missed = request.path == path and (request.range or "").startswith(beginning)
            reply.headers["CF-Cache-Status"] = "MISS" if missed else self.status
        return reply


@dataclass
class Place:
    """A model in a bucket, and the CDN in front of that."""

    cdn: FakeCdn
    faults: Faults
    bucket: str
    settings: Settings

    def load(self, **options: object) -> Load:
        options = {"framework": "buffer", "cache": False, "settings": self.settings, "connections": 8} | options
        return Load(NAME, Options(**options))  # type: ignore[arg-type]

    def with_settings(self, **values: str) -> Place:
        """The same with other settings."""
        flags = {**self.settings.values, **values}
        return dataclasses.replace(self, settings=load_settings(flags, environ={}))

    @property
    def bucket_reads(self) -> list[str]:
        """The requests for weights that the bucket has seen, the headers' not counted."""
        return [line for line, wanted in self.faults.requests if "/objects/" in line and wanted and "bytes=" in wanted]


@dataclass
class Stored:
    bucket: str
    objects: dict[str, tuple[bytes, str]]  # by path behind the CDN: content and ETag


def bytes_of(loading: Load) -> dict[str, bytes]:
    with loading:
        return {name: raw_bytes(tensor) for name, tensor in loading}


def reports_of(loading: Load) -> tuple[LoadReport, CdnReport]:
    report = loading.report
    assert report is not None
    assert report.cdn is not None
    return report, report.cdn


def foreign(place: Place, files: dict[str, bytes]) -> None:
    store: Store = quick_store(dict(place.settings.values))
    for path, content in files.items():
        store.put(f"foreign/{path}", content)
