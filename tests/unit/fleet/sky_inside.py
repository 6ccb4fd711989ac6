"""Validates task files as SkyPilot's API server would, without one: `python sky_inside.py FILE…` in its environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["IS_SKYPILOT_SERVER"] = "true"

# SkyPilot downloads its catalogue of machines, unless files lie there: GPUs and regions are all that is asked of it.
_CATALOGUE = Path.home() / ".sky/catalogs/v8"
_GPUS = ("L4", "H100", "H200", "A100", "A100-80GB")
_FILES = {
    "common/accelerators.csv": ["AcceleratorName,Clouds", *(f"{gpu},\"['AWS', 'GCP']\"" for gpu in _GPUS)],
    "gcp/vms.csv": [
        "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone",
        "g2-standard-4,L4,1.0,4.0,16.0,,0.7,0.3,us-central1,us-central1-a",
    ],
}
for _name, _lines in _FILES.items():
    (_CATALOGUE / _name).parent.mkdir(parents=True, exist_ok=True)
    (_CATALOGUE / _name).write_text("\n".join(_lines) + "\n")

import sky  # noqa: E402
import yaml  # noqa: E402
from sky import check  # noqa: E402
from sky.serve import serve_utils  # noqa: E402
from sky.server import plugins  # noqa: E402

plugins._plugins_loaded = True
# A task for any cloud asks which are set up: none is, on a machine without credentials.
check.get_cached_enabled_clouds_or_refresh = lambda *_args, **_options: [sky.AWS()]


def main(paths: list[str]) -> None:
    for path in paths:
        with open(path) as opened:
            config = yaml.safe_load(opened)
        values = [(name, f"value-of-{name.lower()}") for name in config["secrets"]]
        # It takes the configuration apart.
        task = sky.Task.from_yaml_config(config, secrets_overrides=values)
        task.validate()
        if task.service is not None:
            serve_utils.validate_service_task(task, pool=False)
            header = task.service.readiness_headers["Authorization"]
            assert header == "Bearer value-of-vllm_api_key", header
        print(f"{os.path.basename(path)}: valid")


if __name__ == "__main__":
    main(sys.argv[1:])
