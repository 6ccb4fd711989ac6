"""Validates configurations by dstack's own parser: `python dstack_inside.py FILE…` in its environment."""

from __future__ import annotations

import os
import sys

import yaml
from dstack._internal.core.models.configurations import parse_apply_configuration


def main(paths: list[str]) -> None:
    for path in paths:
        with open(path) as opened:
            found = parse_apply_configuration(yaml.safe_load(opened))
        assert found.type == "service", found.type
        print(f"{os.path.basename(path)}: valid")


if __name__ == "__main__":
    main(sys.argv[1:])
