"""The endpoint, region and trusted certificates of an AWS profile, for the settings.

Credentials are left to boto3, which reads the same files and also supports processes, SSO and roles.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

CONFIG_FILE = "~/.aws/config"
CREDENTIALS_FILE = "~/.aws/credentials"
# The beginning of the origin of such a value.
PROFILE = "the profile "


def read_profile(name: str | None, environ: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """The values by the names of their environment variables, and their origin; empty without such a profile.

    boto3 reports files that cannot be read, when it needs credentials.

    Args:
        name: The profile; None for AWS_DEFAULT_PROFILE or "default".
        environ: Names the files with AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE.
    """
    name = name or environ.get("AWS_DEFAULT_PROFILE") or "default"
    path = _expanded(environ.get("AWS_CONFIG_FILE") or CONFIG_FILE, environ)
    config = _read(path)
    credentials = _read(_expanded(environ.get("AWS_SHARED_CREDENTIALS_FILE") or CREDENTIALS_FILE, environ))
    # The credentials file has profiles without a prefix.
    named = {**credentials, **credentials.get("profiles", {})}
    profile = {**_table(config.get("profiles", {}), name), **_table(named, name)}
    settings = {
        "AWS_ENDPOINT_URL_S3": _endpoint(profile, _table(config.get("services", {}), profile.get("services")), environ),
        "AWS_REGION": profile.get("region"),
        "AWS_CA_BUNDLE": profile.get("ca_bundle"),
    }
    values = {
        variable: value.strip() for variable, value in settings.items() if isinstance(value, str) and value.strip()
    }
    if "AWS_CA_BUNDLE" in values:
        values["AWS_CA_BUNDLE"] = _expanded(values["AWS_CA_BUNDLE"], environ)
    return values, f"{PROFILE}{name} in {path}"


def _endpoint(profile: Mapping[str, Any], services: Mapping[str, Any], environ: Mapping[str, str]) -> object:
    ignored = environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS") or profile.get("ignore_configured_endpoint_urls")
    if str(ignored).lower() == "true":
        return None
    s3 = services.get("s3")
    return (s3.get("endpoint_url") if isinstance(s3, dict) else None) or profile.get("endpoint_url")


def _expanded(path: str, environ: Mapping[str, str]) -> str:
    if path.startswith("~/") and "HOME" in environ:
        return os.path.join(environ["HOME"], path[2:])
    return os.path.expanduser(path) if environ is os.environ else path


def _read(path: str) -> Mapping[str, Any]:
    if not os.path.isfile(path):
        return {}
    # Imported here: most machines do not need it.
    from botocore.configloader import load_config
    from botocore.exceptions import BotoCoreError

    try:
        loaded: Mapping[str, Any] = load_config(path)
    except (BotoCoreError, OSError, ValueError):
        return {}
    return loaded


def _table(tables: Mapping[str, Any], name: object) -> Mapping[str, Any]:
    table = tables.get(str(name), {})
    return table if isinstance(table, dict) else {}
