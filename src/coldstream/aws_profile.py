"""What a profile of the AWS configuration says of the S3 API: endpoint, region and trusted certificates.

boto3 reads the same files for itself; everything else asks the settings, which have these values under the names of
the environment variables that stand for them. Credentials stay boto3's: processes, SSO and roles are its business.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

CONFIG_FILE = "~/.aws/config"
CREDENTIALS_FILE = "~/.aws/credentials"
# What the origin of such a value begins with.
PROFILE = "the profile "


def read_profile(name: str | None, environ: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """The values by their variables' names, and where they come from; none where there is no such profile.

    A file that cannot be read is boto3's to complain about, when it is asked for credentials.

    Args:
        name: The profile; None: the one that the environment names, or "default".
        environ: Names the files, as AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE, or the home that they are in.
    """
    name = name or environ.get("AWS_DEFAULT_PROFILE") or "default"
    path = _expanded(environ.get("AWS_CONFIG_FILE") or CONFIG_FILE, environ)
    config = _read(path)
    credentials = _read(_expanded(environ.get("AWS_SHARED_CREDENTIALS_FILE") or CREDENTIALS_FILE, environ))
    # The second file has profiles under their plain names.
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
    # Imported here: most machines have no such file.
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
