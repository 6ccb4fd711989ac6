"""`coldstream cdn`, and loads through the domain, against nginx with Cloudflare's rules and a double of its API."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from coldstream.operate.cdn.edge_cache import PLANS
from coldstream.operate.cdn.zone import rule_for
from tests.checkpoints import sharded_checkpoint
from tests.conftest import fresh_bucket
from tests.e2e.command import Command
from tests.models import write_model
from tests.servers.cdn import Cdn, cdn_proxy
from tests.servers.stores import S3Server
from tests.servers.zone import zone_api

LIMIT = 4_000_000
MODEL = sharded_checkpoint(shards=2, rows=2048, columns=1024) | {"config.json": b"{}"}
SEGMENTS = ("--object-bytes-max", "2MiB", "--no-plain")


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans that keep little, so that models can be small."""
    monkeypatch.setitem(PLANS, "free", LIMIT)


@pytest.fixture(scope="module")
def shared() -> list[str]:
    """The bucket of all tests that only read, after the first of them."""
    return []


@pytest.fixture
def command(moto: S3Server, shared: list[str], tmp_path: Path) -> Command:
    """A bucket with the model in the usual layout, and once more in segments."""
    made = Command(moto, shared[0] if shared else fresh_bucket(moto), cwd=tmp_path)
    write_model(tmp_path / "m", MODEL)
    if not shared:
        upload_twice(made)
        shared.append(made.environ["R2_BUCKET"])
    return made


@pytest.fixture
def own_bucket(moto: S3Server, command: Command) -> None:
    """The same in a bucket of this test alone, which changes what is in it."""
    command.environ["R2_BUCKET"] = fresh_bucket(moto)
    upload_twice(command)


def upload_twice(command: Command) -> None:
    command.run("upload", "./m", "--as", "org/plain", "--quiet")
    command.run("upload", "./m", "--as", "org/cut", *SEGMENTS, "--quiet")


@pytest.fixture
def cdn(moto: S3Server, command: Command) -> Iterator[Cdn]:
    with cdn_proxy(moto, command.environ["R2_BUCKET"], limit_bytes=LIMIT) as found:
        command.environ["R2_CDN_DOMAIN"] = found.url
        yield found


def test_segments_come_from_the_cache(command: Command, cdn: Cdn) -> None:
    """Coldstream cdn check org/cut; coldstream cdn warm org/cut; coldstream load org/cut."""
    first = command.json("cdn", "check", "org/cut")
    assert {row["state"] for row in first["objects"]} <= {"coming", "kept"}
    warmed = command.json("cdn", "warm", "org/cut")
    assert warmed["hits"] == warmed["objects"] > 4
    assert not warmed["left_out"]
    assert not warmed["faults"]
    again = command.json("cdn", "check", "org/cut")
    assert {row["state"] for row in again["objects"]} == {"kept"}
    loaded = command.json("load", "org/cut", "--no-cache")
    plain = command.json("load", "org/plain", "--no-cache", "--via", "s3")
    assert loaded["verified"]
    assert (loaded["bytes"], loaded["tensors"]) == (plain["bytes"], plain["tensors"])
    assert plain["cdn"] is None
    found = loaded["cdn"]
    assert set(found["statuses"]) == {"HIT"}
    assert set(found["failures"]) <= {"slow"}, (
        "a connection that this machine made wait may be taken over by the bucket"
    )
    assert found["fallbacks"] == sum(found["failures"].values())
    assert found["bytes"] > 0.5 * loaded["bytes"]
    text = command.run("load", "org/cut", "--no-cache")[0]
    assert "HIT" in text


def test_a_part_of_an_object_is_not_taken_for_it(command: Command, cdn: Cdn) -> None:
    """Coldstream cdn check org/cut; coldstream cdn warm org/cut, after a node has read the head of each segment."""
    urls = [url for url in command.json("cdn", "purge", "org/cut", "--dry-run")["urls"] if "/segments/" in url]
    for url in urls:
        for status in ("MISS", "HIT"):
            with urllib.request.urlopen(urllib.request.Request(url, headers={"Range": "bytes=0-7"})) as answer:
                assert answer.headers["cf-cache-status"] == status
    rows = command.json("cdn", "check", "org/cut")["objects"]
    parts = [row for row in rows if row["bytes"] > 2**20]
    assert len(parts) > 2
    assert {(row["first"], row["second"], row["state"]) for row in parts} == {("HIT", "MISS", "coming")}
    assert {row["mend"] for row in parts} == {"only a part is kept: coldstream cdn warm org/cut"}
    warmed = command.json("cdn", "warm", "org/cut")
    assert warmed["hits"] == warmed["objects"]
    assert {row["state"] for row in command.json("cdn", "check", "org/cut")["objects"]} == {"kept"}


def test_the_usual_layout_cannot_be_kept(command: Command, cdn: Cdn) -> None:
    """Coldstream cdn check org/plain; coldstream cdn warm org/plain; coldstream load org/plain."""
    out, _ = command.run("cdn", "check", "org/plain", code=1)
    assert "too large" in out
    assert "--object-bytes-max" in out
    assert "0% of" in out
    assert "no object of org/plain is within" in command.run("cdn", "warm", "org/plain", code=2)[1]
    found = command.json("load", "org/plain", "--no-cache")["cdn"]
    assert "HIT" not in found["statuses"]
    # The small files beside could be: they are read from the bucket all the same.
    everything = command.json("cdn", "warm", "org/plain", "--all")
    assert len(everything["left_out"]) == 2
    assert everything["hits"] == everything["objects"] == 2


def test_the_domain_dies_in_the_middle(command: Command, cdn: Cdn) -> None:
    """Coldstream load org/cut, while the CDN stops answering."""
    command.run("cdn", "warm", "org/cut")
    stopping = cdn.stop_after(4)
    loaded = command.json("load", "org/cut", "--no-cache", "--connections", "2")
    stopping.join(30)
    assert loaded["verified"]
    assert loaded["cdn"]["bytes"] > 0
    assert loaded["cdn"]["bucket_bytes"] > 0
    assert loaded["cdn"]["bytes"] + loaded["cdn"]["bucket_bytes"] >= loaded["bytes"]
    gone = command.json("load", "org/cut", "--no-cache")
    assert gone["verified"]
    assert gone["cdn"]["bytes"] == 0
    assert gone["cdn"]["gave_up"]
    assert gone["retries"] == 0


@pytest.mark.usefixtures("own_bucket")
def test_an_overwritten_object_is_seen_and_purged(command: Command, cdn: Cdn, tmp_path: Path) -> None:
    """Coldstream cdn check org/plain --all, after an upload; coldstream cdn purge org/plain."""
    command.run("cdn", "warm", "org/plain", "--all")
    changed = {**MODEL, "config.json": b'{"a": 1}'}
    command.run("upload", str(write_model(tmp_path / "n", changed)), "--as", "org/plain", "--quiet")
    rows = command.json("cdn", "check", "org/plain", "--all", code=1)["objects"]
    stale = next(row for row in rows if row["label"] == "config.json")
    assert stale["state"] == "wrong"
    assert "cdn purge" in stale["mend"]
    with zone_api(name="example.com") as zone:
        domain = command.environ["R2_CDN_DOMAIN"]
        command.environ |= zone.environ() | {"R2_CDN_DOMAIN": "models.example.com"}
        urls = command.json("cdn", "purge", "org/plain", "--yes")["urls"]
        assert "https://models.example.com/org/plain/config.json" in urls
        assert sorted(zone.purged) == sorted(urls)
        command.environ["R2_CDN_DOMAIN"] = domain
    cdn.purge(["/org/plain/config.json"])
    rows = command.json("cdn", "check", "org/plain", "--all", code=1)["objects"]
    assert next(row for row in rows if row["label"] == "config.json")["state"] in {"kept", "coming"}


@pytest.mark.usefixtures("own_bucket")
def test_a_404_from_before_the_upload_is_recognized(command: Command, moto: S3Server, cdn: Cdn, tmp_path: Path) -> None:
    """Coldstream cdn check org/later; cdn warm org/later, where a file was requested before it was uploaded."""
    for _ in range(2):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{cdn.url}/org/later/config.json")
    command.run("upload", str(tmp_path / "m"), "--as", "org/later", "--quiet")
    rows = {row["label"]: row for row in command.json("cdn", "check", "org/later", "--all", code=1)["objects"]}
    assert rows["config.json"]["state"] == "kept 404"
    assert "coldstream cdn purge org/later, or wait 3 minutes" in rows["config.json"]["mend"]
    out, _ = command.run("cdn", "warm", "org/later", "--all", code=1)
    assert "config.json: kept 404 (HIT), a 404 from before the upload is kept" in out
    assert "\nnot all warm   " in out
    # What Cloudflare asks the bucket for, and the bucket has in another place, is another bucket's domain.
    with cdn_proxy(moto, fresh_bucket(moto), limit_bytes=LIMIT) as other:
        command.environ["R2_CDN_DOMAIN"] = other.url
        rows = {row["label"]: row for row in command.json("cdn", "check", "org/later", "--all", code=1)["objects"]}
        assert rows["config.json"]["state"] == "wrong"
        assert "is it this bucket's domain?" in rows["config.json"]["mend"]


def test_a_domain_without_a_rule_keeps_nothing(command: Command, moto: S3Server) -> None:
    """Coldstream cdn check org/cut, before coldstream cdn rule."""
    with cdn_proxy(moto, command.environ["R2_BUCKET"], limit_bytes=LIMIT, rule=False) as cdn:
        command.environ["R2_CDN_DOMAIN"] = cdn.url
        rows = command.json("cdn", "check", "org/cut", code=1)["objects"]
        assert {(row["state"], row["second"]) for row in rows} == {("not kept", "DYNAMIC")}
        assert {row["mend"] for row in rows} == {"coldstream cdn rule"}
        found = command.json("load", "org/cut", "--no-cache")["cdn"]
        assert set(found["statuses"]) == {"DYNAMIC"}
        assert "did not help" in found["summary"]


def test_a_domain_that_asks_for_a_secret(command: Command, moto: S3Server) -> None:
    """COLDSTREAM_CDN_HEADER='X-Key: …' coldstream cdn check org/cut."""
    secret = "s3cret-of-the-domain"
    with cdn_proxy(moto, command.environ["R2_BUCKET"], limit_bytes=LIMIT, secret=("X-Key", secret)) as cdn:
        command.environ["R2_CDN_DOMAIN"] = cdn.url
        out, _ = command.run("cdn", "check", "org/cut", code=1)
        assert "refused" in out
        command.environ["COLDSTREAM_CDN_HEADER"] = f"X-Key: {secret}"
        out, err = command.run("cdn", "warm", "org/cut")
        assert "100% of the bytes" in out
        assert secret not in out + err + json.dumps(command.json("cdn", "check", "org/cut"))
        assert secret not in str(cdn.log())


def test_rules_are_added_and_none_is_replaced(command: Command) -> None:
    """Coldstream cdn rule; --dry-run; twice."""
    mine = {"ref": "mine", "expression": "true", "action": "set_cache_settings", "action_parameters": {"cache": False}}
    command.environ["R2_CDN_DOMAIN"] = "models.example.com"
    text, err = command.run("cdn", "rule", "--force")
    assert len(json.loads(text)) == 2
    assert "CLOUDFLARE_API_TOKEN is not set" in err
    with zone_api(name="example.com", plan="pro", rules=[mine]) as zone:
        command.environ |= zone.environ()
        assert "POST /zones/" in command.run("cdn", "rule", "--force", "--dry-run")[0]
        assert len(zone.rules) == 1
        added = command.json("cdn", "rule", "--force")
        assert (len(added["added"]), added["plan"], added["zone"]) == (2, "pro", "example.com")
        refs = [rule["ref"] for rule in zone.rules]
        assert refs == ["mine", "coldstream_segments_models_example_com", "coldstream_files_models_example_com"]
        assert command.json("cdn", "rule", "--force")["added"] == []
        assert len(zone.rules) == 3
        # A second domain of the zone has rules of its own.
        assert len(command.json("cdn", "rule", "--force", "--domain", "eu.example.com")["added"]) == 2
        assert len(zone.rules) == 5
        assert not zone.faults
    with zone_api(name="example.com") as zone:
        command.environ |= zone.environ()
        assert len(command.json("cdn", "rule", "--force")["added"]) == 2
        assert len(zone.rules) == 2


def test_a_rule_that_differs_is_reported_and_only_it_is_replaced(command: Command) -> None:
    """Coldstream cdn rule, after coldstream's rule was edited; --replace --dry-run; --replace."""
    mine = {"ref": "mine", "expression": "true", "action": "set_cache_settings", "action_parameters": {"cache": False}}
    command.environ["R2_CDN_DOMAIN"] = "models.example.com"
    with zone_api(name="example.com", rules=[mine]) as zone:
        command.environ |= zone.environ()
        command.run("cdn", "rule", "--force")
        wanted = json.loads(json.dumps(zone.rules))
        _, segments, files = zone.rules
        segments["action_parameters"]["edge_ttl"]["default"] = 60
        segments["action_parameters"]["read_timeout"] = 900
        segments["description"] = "ours, \x1b[31mred"
        files["expression"] = files["expression"].replace("models.example.com", "old.example.com")
        files["enabled"] = False
        changed = json.loads(json.dumps(zone.rules))
        out, _ = command.run("cdn", "rule", "--force", code=1)
        lines = [line.strip() for line in out.splitlines()]
        assert "differs   coldstream: keep segments of models.example.com" in lines
        assert "edge_ttl.default: 60, expected 31536000" in lines
        assert "enabled: false, expected true" in lines
        assert next(line for line in lines if line.startswith("expression: ")).count("example.com") == 2
        assert "fix: coldstream cdn rule --replace (it changes no other rule)" in lines
        assert "\x1b" not in out
        assert len(zone.rules) == 3
        assert zone.rules == changed
        document = command.json("cdn", "rule", "--force", code=1)
        assert [(each["ours"], len(each["differences"])) for each in document["differs"]] == [(True, 1), (True, 2)]
        assert document["differs"][0]["differences"] == [{"field": "edge_ttl.default", "found": 60, "wanted": 31536000}]
        planned = command.json("cdn", "rule", "--force", "--replace", "--dry-run")
        assert [method for method, _ in planned["calls"]] == ["GET", "PATCH", "PATCH"]
        assert zone.rules == changed
        done = command.json("cdn", "rule", "--force", "--replace")
        assert (len(done["replaced"]), done["differs"], done["added"]) == (2, [], [])
        assert zone.rules[0] == wanted[0]
        assert [rule["ref"] for rule in zone.rules] == [rule["ref"] for rule in wanted]
        # What the owner added, and which contradicts nothing, stays.
        assert zone.rules[1]["action_parameters"] == {**wanted[1]["action_parameters"], "read_timeout": 900}
        assert zone.rules[1]["description"] == "ours, \x1b[31mred"
        assert {**zone.rules[2], "version": "1"} == wanted[2]
        assert "there already" in command.run("cdn", "rule", "--force", "--replace")[0]
        changes = [line for line, _ in zone.requests if not line.startswith("GET ")]
        assert [line.partition(" ")[0] for line in changes] == ["POST", "POST", "PATCH", "PATCH"]
        assert not zone.faults


def test_a_rule_made_in_the_dashboard_is_reported_and_never_replaced(command: Command) -> None:
    """Coldstream cdn rule --replace, where the rule was created in the dashboard with another TTL."""
    command.environ["R2_CDN_DOMAIN"] = "models.example.com"
    hers = rule_for("models.example.com", segments=True)
    hers = {**hers, "ref": "hers", "action_parameters": {"cache": True}}
    with zone_api(name="example.com", rules=[hers]) as zone:
        command.environ |= zone.environ()
        before = dict(zone.rules[0])
        out, _ = command.run("cdn", "rule", "--force", "--replace", code=1)
        assert "edge_ttl: nothing, expected {" in out
        assert "fix: it was not made by coldstream: in the dashboard, Caching, Cache Rules" in out
        assert "added     coldstream: keep files of models.example.com" in out
        assert zone.rules[0] == before
        assert not zone.faults


@pytest.mark.usefixtures("own_bucket")
def test_a_rule_that_would_keep_nothing_is_refused(command: Command) -> None:
    """Coldstream cdn rule, with shards above the plan's limit."""
    command.environ["R2_CDN_DOMAIN"] = "models.example.com"
    command.run("remove", "org/cut", "--yes")
    err = command.run("cdn", "rule", "--plan", "free", code=2)[1]
    assert "0% of the bucket's weights" in err
    assert "--object-bytes-max" in err
    command.run("cdn", "rule", "--plan", "enterprise")


@pytest.mark.parametrize(
    ("more", "arguments", "code", "says"),
    [
        ({}, ("cdn", "check", "org/cut"), 2, "R2_CDN_DOMAIN is not set"),
        ({"R2_CDN_DOMAIN": "no domain"}, ("cdn", "check", "org/cut"), 2, "not a valid domain"),
        ({"R2_CDN_DOMAIN": "cdn.example.com"}, ("cdn", "check", "org/none"), 10, "org/none"),
        ({"R2_CDN_DOMAIN": "cdn.example.com"}, ("cdn", "check", "org/cut", "--plan", "gold"), 2, "gold"),
        ({"R2_CDN_DOMAIN": "cdn.example.com"}, ("cdn", "purge", "org/cut", "--yes"), 2, "CLOUDFLARE_API_TOKEN"),
        ({"R2_CDN_DOMAIN": "http://127.0.0.1:1"}, ("cdn", "rule", "--force"), 2, "not a domain of a zone"),
    ],
)
def test_bad_input_is_one_line(
    command: Command, more: dict[str, str], arguments: tuple[str, ...], code: int, says: str
) -> None:
    command.environ |= more
    assert says in command.run(*arguments, code=code)[1]


def test_what_cloudflare_refuses(command: Command) -> None:
    command.environ["R2_CDN_DOMAIN"] = "models.example.com"
    with zone_api(name="other.org") as zone:
        command.environ |= zone.environ()
        assert "no zone that models.example.com is in" in command.run("cdn", "rule", "--force", code=10)[1]
        assert "no zone example.net" in command.run("cdn", "rule", "--force", "--zone", "example.net", code=10)[1]
        command.environ["CLOUDFLARE_API_TOKEN"] = "wrong-token-of-somebody"
        err = command.run("cdn", "rule", "--force", code=12)[1]
        assert "CLOUDFLARE_API_TOKEN" in err
        assert "wrong-token" not in err
    with zone_api(name="example.com", proxied=False) as zone:
        command.environ |= zone.environ()
        assert "not proxied" in command.run("cdn", "rule", "--force")[1]


def test_no_server_answers(command: Command) -> None:
    command.environ["R2_CDN_DOMAIN"] = "http://127.0.0.1:1"
    rows = command.json("cdn", "check", "org/cut", code=1)["objects"]
    assert {row["state"] for row in rows} == {"unreachable"}
