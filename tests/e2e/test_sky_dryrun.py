"""SkyPilot's dry run of the files of `coldstream template`: machines, prices and places, without launching any."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from coldstream.fleet.sky import parse_offers, plain
from tests.checkpoints import sharded_checkpoint
from tests.conftest import fresh_bucket
from tests.e2e.command import Command
from tests.e2e.test_tune import CONFIG
from tests.launch.catalogue import write_catalogue
from tests.servers.stores import S3Server

PYTHON = Path(__file__).parents[2] / ".venv-sky/bin/python"
SECRETS = {"R2_ACCESS_KEY": "DRYACCESSZZZ", "R2_SECRET_KEY": "DRYSECRETZZZ", "VLLM_API_KEY": "DRYKEYZZZ"}
# What SkyPilot's API server does with `sky launch --dryrun`, without a server.
INSIDE = """
import os, sys
import sky, yaml
from sky import check, execution
from sky.server import plugins

plugins._plugins_loaded = True
# Whether its keys open it is not asked.
check.get_cached_enabled_clouds_or_refresh = lambda *_args, **_options: [sky.AWS()]
for path in sys.argv[1:]:
    config = yaml.safe_load(open(path))
    values = [(name, os.environ.get(name, "")) for name in config["secrets"]]
    task = sky.Task.from_yaml_config(config, secrets_overrides=values)
    execution.launch(task, cluster_name="dry", dryrun=True)
"""


@pytest.mark.skipif(not PYTHON.is_file(), reason="no SkyPilot in .venv-sky: make .venv-sky/tests.done")
@pytest.mark.skipif(shutil.which("rsync") is None, reason="SkyPilot wants rsync (apt-get install rsync)")
def test_dry_run(rclone: S3Server, moto: S3Server, tmp_path: Path) -> None:
    """Sky launch --dryrun FILE --secret NAME…, for each target of SkyPilot's."""
    command = Command(rclone, fresh_bucket(rclone), cwd=tmp_path)
    (tmp_path / "m").mkdir()
    for path, content in {**sharded_checkpoint(shards=2), "config.json": json.dumps(CONFIG).encode()}.items():
        (tmp_path / "m" / path).write_bytes(content)
    command.run("upload", str(tmp_path / "m"), "--as", "org/m")
    wanted = ("--gpus", "L4:1", "--cloud", "aws")
    command.run("template", "org/m", *wanted, "--target", "sky", "-o", "node.yaml")
    command.run("template", "org/m", *wanted, "--target", "sky", "--on-demand", "--no-image", "-o", "plain.yaml")
    write_catalogue(tmp_path / "home")
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "home"),
        "LANG": "C.UTF-8",
        "IS_SKYPILOT_SERVER": "true",
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        "AWS_ENDPOINT_URL": moto.endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        **SECRETS,
    }
    done = subprocess.run(
        [PYTHON, "-c", INSIDE, "node.yaml", "plain.yaml"],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split() for line in done.stdout.splitlines() if line.strip().startswith("AWS (")]
    assert [(row[2], row[6]) for row in rows] == [("g6.xlarge[Spot]", "0.30"), ("g6.xlarge", "0.80")], done.stdout
    assert done.stdout.count("Dryrun finished.") == 2
    offers = parse_offers(plain(done.stdout))
    assert [(offer.instance, offer.dollars_per_hour) for offer in offers] == [("g6.xlarge", 0.3), ("g6.xlarge", 0.8)]
    for value in SECRETS.values():
        assert value not in done.stdout + done.stderr
