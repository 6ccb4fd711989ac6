"""The settings of the bucket and its credentials, resolved once: docs/environment.md describes every variable.

In order of precedence: flags, the environment, `.env` in the working directory, the AWS profile. Empty means absent.
"""

from __future__ import annotations

import difflib
import io
import os
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from coldstream.errors import ConfigError
from coldstream.machine.child_environment import SECRETS
from coldstream.model.names import MANIFEST_NAME, Uri, expanded, without_secrets

# Every variable that coldstream reads; other COLDSTREAM_ variables are rejected as misspelt.
VARIABLES: Mapping[str, str] = {
    "R2_ENDPOINT": "URL of the S3 API, https://<account>.r2.cloudflarestorage.com",
    "R2_BUCKET": "the bucket's name",
    "R2_ACCESS_KEY": "access key id",
    "R2_SECRET_KEY": "secret access key",
    "R2_SESSION_TOKEN": "session token of temporary credentials",
    "R2_CDN_DOMAIN": "custom domain of the bucket, to read weights through its CDN",
    "COLDSTREAM_CDN_HEADER": "secret header that the custom domain requires, as `X-Name: value`",
    "CF_ACCESS_CLIENT_ID": "service token of Cloudflare Access in front of the custom domain",
    "CF_ACCESS_CLIENT_SECRET": "secret of that service token",
    "AWS_ENDPOINT_URL": "URL of the S3 API, when R2_ENDPOINT is absent",
    "AWS_ENDPOINT_URL_S3": "URL of the S3 API; wins over AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID": "access key id, when R2_ACCESS_KEY is absent",
    "AWS_SECRET_ACCESS_KEY": "secret access key, when R2_SECRET_KEY is absent",
    "AWS_SESSION_TOKEN": "session token, with AWS_ACCESS_KEY_ID",
    "AWS_PROFILE": "profile of ~/.aws: endpoint, region and certificates, and keys if no others are set",
    "AWS_REGION": "region; `auto` by default on R2, us-east-1 on other endpoints",
    "AWS_DEFAULT_REGION": "region, when AWS_REGION is absent",
    "AWS_CA_BUNDLE": "file of trusted certificates, for the S3 API",
    "VLLM_API_KEY": "API key of a launched model; generated if absent",
    "HF_TOKEN": "Hugging Face token, for gated and private repositories",
    "HF_ENDPOINT": "URL of a Hugging Face mirror",
    "CLOUDFLARE_API_TOKEN": "token for Cloudflare's API: temporary credentials, CDN rules, usage",
    "CLOUDFLARE_BASE_URL": "URL of Cloudflare's API; https://api.cloudflare.com/client/v4 by default",
    "COLDSTREAM_STORE": "s3://bucket[/prefix] or file:///folder, instead of R2_BUCKET",
    "COLDSTREAM_CACHE_DIR": "the local cache; ~/.cache/coldstream by default",
    "COLDSTREAM_CACHE_LIMIT": "size limit of the local cache; half of its file system by default",
    "COLDSTREAM_BUNDLE_KEY": "key that signs warm-start bundles, at least 32 characters; without it none are used",
    "COLDSTREAM_BOOTSTRAP": "set by the bootstrap program on a bare node: what it did, for the timeline",
    "COLDSTREAM_RUNTIME_DIR": "folder that the bootstrap program brings a runtime to",
    "COLDSTREAM_RUNTIME_MODE": "`unpack` keeps the bootstrap program from mounting a runtime",
    "COLDSTREAM_SERVICE": "set by `coldstream serve` for vLLM's processes: the address of the load service",
    "COLDSTREAM_METRICS_PORT": "port for Prometheus metrics while a load or vLLM runs; 0 picks a free port",
    "COLDSTREAM_METRICS_HOST": "address for Prometheus metrics; 127.0.0.1 by default",
    "COLDSTREAM_METRICS_FILE": "file, NAME.prom, that metrics are written to at the end",
    "COLDSTREAM_ADAPTER_SECONDS": "how often `serve` looks for new versions of its adapters; 60 by default, 0: never",
    "COLDSTREAM_RETRY_SECONDS": "time without progress after which an operation fails; 180 by default",
}
RETRY_SECONDS = 180.0
_ADAPTER_SECONDS = 60.0
_PREFIX = "COLDSTREAM_"
# The beginning of the origin of a value from an AWS profile.
_PROFILE = "the profile "
# In order of precedence.
ENDPOINTS = ("R2_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
_SERVICE_LINK = re.compile(
    r"COLDSTREAM(?:_[A-Z0-9_]+?)??_"
    r"(SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
_MODEL_MARKS = ("config.json", "model_index.json", "adapter_config.json", MANIFEST_NAME, "*.safetensors", "*.gguf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The resolved settings. The repr contains no secrets."""

    values: Mapping[str, str]
    origins: Mapping[str, str]  # the source of each variable's value: "flag", "environment" or the file's path
    looked_in: tuple[str, ...]  # the sources, for messages
    warning: str | None = None  # for the user

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name} from {origin}' for name, origin in sorted(self.origins.items()))})"

    def get(self, *names: str) -> str | None:
        return next((self.values[name] for name in names if name in self.values), None)

    def origin(self, *names: str) -> str | None:
        """The source of the value that `get` returns, as "NAME from .env"."""
        return next((f"{name} from {self.origins[name]}" for name in names if name in self.values), None)

    def store_uri(self) -> str:
        """The store's URI; raises ConfigError if none is configured, or it contains credentials."""
        if uri := self.get("COLDSTREAM_STORE"):
            if Uri(uri).has_user:
                raise ConfigError(
                    f"the URI of the store {Uri(uri)} contains credentials",
                    hint="remove them from COLDSTREAM_STORE, and set R2_ACCESS_KEY and R2_SECRET_KEY",
                )
            # Users often try a plain path first.
            return expanded(uri).resolve().as_uri() if uri[0] in "./~" else uri.rstrip("/")
        if bucket := self.get("R2_BUCKET"):
            if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
                raise ConfigError(
                    f"R2_BUCKET: {bucket!r} is not a valid bucket name",
                    hint="use 3 to 63 lower-case letters, digits and dashes, without quotes or slashes",
                )
            return f"s3://{bucket}"
        raise ConfigError(
            f"no bucket is configured: R2_BUCKET is not set in {' or '.join(self.looked_in)}",
            hint="run: coldstream setup --write-env   (or add --store s3://bucket or --store /folder)",
        )

    def endpoint(self) -> str | None:
        """The S3 API's URL, or None for AWS itself; raises ConfigError if it is not the URL of a server."""
        text, name = self.get(*ENDPOINTS), self.endpoint_setting
        if text is None:
            return None
        try:
            split = urlsplit(text)
            port_fits = split.port is None or split.port > 0
        except ValueError:
            split, port_fits = urlsplit(""), False
        if split.scheme not in {"http", "https"} or not split.hostname or not port_fits:
            raise ConfigError(
                f"{name}: {without_secrets(text)!r} is not a server's URL",
                hint="for example https://<account>.r2.cloudflarestorage.com",
            )
        if split.username or split.password:
            raise ConfigError(f"{name} contains credentials", hint="set R2_ACCESS_KEY and R2_SECRET_KEY instead")
        if split.path.strip("/") or split.query or split.fragment:
            hint = "remove the path; set R2_BUCKET to the bucket"
            raise ConfigError(f"{name} has the path {split.path!r}", hint=hint)
        return f"{split.scheme}://{split.netloc}"

    @property
    def endpoint_setting(self) -> str:
        """The name of the setting with the endpoint, for messages."""
        name = next((n for n in ENDPOINTS if n in self.values), ENDPOINTS[0])
        origin = self.origins.get(name, "")
        return f"endpoint_url (in {origin})" if origin.startswith(_PROFILE) else name

    @property
    def is_r2(self) -> bool:
        host = urlsplit(self.get(*ENDPOINTS) or "").hostname or ""
        return host.endswith(".r2.cloudflarestorage.com")

    @property
    def region(self) -> str | None:
        """The region to sign for; None for that of the AWS profile or instance."""
        if chosen := self.get(*REGIONS):
            return chosen
        if self.is_r2:
            return "auto"
        return "us-east-1" if self.endpoint() else None

    def keys(self) -> tuple[str, str, str | None] | None:
        """(access key id, secret, session token), or None for the AWS credential chain; ConfigError for half a pair."""
        for identity, secret, token in (
            ("R2_ACCESS_KEY", "R2_SECRET_KEY", "R2_SESSION_TOKEN"),
            ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
        ):
            present = [name for name in (identity, secret) if name in self.values]
            if len(present) == 1:
                missing = secret if present == [identity] else identity
                raise ConfigError(
                    f"{present[0]} is set (in {self.origins[present[0]]}) but {missing} is not",
                    hint=f"set {missing}, or run: coldstream setup --write-env",
                )
            if present:
                return self.values[identity], self.values[secret], self.values.get(token)
        return None

    @property
    def retry_seconds(self) -> float:
        """After how long without progress an operation fails; raises ConfigError for anything but 0 to 86400."""
        return self._seconds("COLDSTREAM_RETRY_SECONDS", RETRY_SECONDS)

    @property
    def adapter_seconds(self) -> float:
        """How often a server looks for new versions of its adapters; 0: never. Raises ConfigError."""
        return self._seconds("COLDSTREAM_ADAPTER_SECONDS", _ADAPTER_SECONDS, may_be_zero=True)

    def _seconds(self, name: str, default: float, *, may_be_zero: bool = False) -> float:
        text = self.get(name)
        with suppress(ValueError):
            seconds = default if text is None else float(text)
            if 0 < seconds < 86400 or (may_be_zero and seconds == 0):
                return seconds
        raise ConfigError(f"{name}: {text!r} is not a number of seconds", hint=f"try {default:g}")


def load_settings(
    flags: Mapping[str, str | None] | None = None,
    *,
    env_file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    draft: bool = False,
) -> Settings:
    """Resolves the settings; raises ConfigError for a missing file, an unknown COLDSTREAM_ variable or a placeholder.

    `flags` are by variable, None if a flag was not used. Without `env_file`, `.env` in the working directory is read,
    unless a model is beside it: a file that came with a model could send tokens to another server. A `draft` is for
    `setup`, which asks for the settings: `env_file` may be absent, and placeholders are ignored.
    """
    environ = os.environ if environ is None else environ
    path = env_file or Path(".env")
    # A file of the folder that shows that it is the folder of a model.
    model = None
    if env_file is None and os.path.isfile(path):
        marks = (mark for pattern in _MODEL_MARKS for mark in path.absolute().parent.glob(pattern))
        model = next((mark.name for mark in marks if mark.is_file()), None)
    file_values, malformed = (
        ({}, None) if model else _read_env_file(path, environ, required=env_file is not None and not draft)
    )
    layers = [
        ("flag", {name: value for name, value in (flags or {}).items() if value is not None}),
        ("environment", {n: v for n, v in environ.items() if v.strip() and not is_service_link(n, v)}),
        (str(path), file_values),
    ]
    values: dict[str, str] = {}
    origins: dict[str, str] = {}
    for origin, layer in reversed(layers):
        for name, text in layer.items():
            if name.startswith(_PREFIX) and name not in VARIABLES:
                # The common prefix would make all of them similar.
                settings = {known.removeprefix(_PREFIX): known for known in VARIABLES if known.startswith(_PREFIX)}
                near = difflib.get_close_matches(name.removeprefix(_PREFIX), settings, n=1)
                raise ConfigError(
                    f"{name} (in {origin}) is not a setting of coldstream",
                    hint=f"did you mean {settings[near[0]]}?" if near else "see docs/environment.md",
                )
            if name in VARIABLES:
                value = text.strip()
                if origin == "environment" and re.fullmatch(r"(['\"]).*\1", value, re.DOTALL):
                    raise ConfigError(
                        f"{name} (in {origin}): the quotes are part of the value",
                        hint="remove them where it is set: docker, podman and kubectl keep the quotes of env files",
                    )
                values[name], origins[name] = value, origin
    _add_profile(values, origins, environ)
    for name, value in list(values.items()):
        if not is_placeholder(value):
            continue
        if not draft:
            shown = "its placeholder" if name in SECRETS else repr(value)
            raise ConfigError(
                f"{name} (in {origins[name]}) is still {shown}",
                hint="replace it, or run: coldstream setup --write-env",
            )
        del values[name], origins[name]
    if model:
        unread = f"not read: it is beside {model}"
        warning = f"{path} is {unread}, so it may have come with a model (to read it: --env-file {path})"
        looked_in = ("the environment", f"{path} ({unread})")
        return Settings(values=values, origins=origins, looked_in=looked_in, warning=warning)
    return Settings(values=values, origins=origins, looked_in=("the environment", str(path)), warning=malformed)


def _add_profile(values: dict[str, str], origins: dict[str, str], environ: Mapping[str, str]) -> None:
    """Adds the endpoint, region and certificates of an AWS profile, by their variables, unless others set them."""
    # Credentials are left to boto3, which reads the same files and reports those that cannot be read.
    profile_name = values.get("AWS_PROFILE") or environ.get("AWS_DEFAULT_PROFILE") or "default"
    path = _below_home(environ.get("AWS_CONFIG_FILE") or "~/.aws/config", environ)
    config = _read_aws_file(path)
    credentials_path = environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials"
    credentials = _read_aws_file(_below_home(credentials_path, environ))
    # The credentials file has profiles without a prefix.
    named = {**credentials, **credentials.get("profiles", {})}
    profile = {**_table(config.get("profiles", {}), profile_name), **_table(named, profile_name)}
    ignored = environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS") or profile.get("ignore_configured_endpoint_urls")
    s3 = _table(_table(config.get("services", {}), profile.get("services")), "s3")
    endpoint = s3.get("endpoint_url") or profile.get("endpoint_url")
    ca_bundle = profile.get("ca_bundle")
    # Each with the variables that replace it: the region of a profile belongs to its endpoint.
    settings = (
        ("AWS_ENDPOINT_URL_S3", None if str(ignored).lower() == "true" else endpoint, ENDPOINTS),
        ("AWS_REGION", profile.get("region"), (*ENDPOINTS, *REGIONS)),
        ("AWS_CA_BUNDLE", _below_home(ca_bundle.strip(), environ) if isinstance(ca_bundle, str) else None, ()),
    )
    taken = {*values}
    for name, text, others in settings:
        if taken.isdisjoint((name, *others)) and isinstance(text, str) and text.strip():
            values[name], origins[name] = text.strip(), f"{_PROFILE}{profile_name} in {path}"


def _below_home(path: str, environ: Mapping[str, str]) -> str:
    if path.startswith("~/") and "HOME" in environ:
        return os.path.join(environ["HOME"], path[2:])
    return os.path.expanduser(path) if environ is os.environ else path


def _read_aws_file(path: str) -> Mapping[str, Any]:
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


def is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes set a variable, for a Service named `coldstream` or `coldstream-…`."""
    match = _SERVICE_LINK.fullmatch(name)
    # A Service `coldstream-metrics` sets COLDSTREAM_METRICS_PORT, which is also a setting, to tcp://ADDRESS:PORT.
    return match is not None and (match[1] != "PORT" or "://" in value)


def is_placeholder(value: str) -> bool:
    """Whether a value was copied from instructions, such as `<account-id>` or `your_r2_access_key`."""
    return re.search(r"<[a-z -]+>|^your[_-]", value) is not None


def ambient_settings() -> Settings:
    """The settings of a library call without explicit settings; their warning becomes a Python warning."""
    settings = load_settings()
    if settings.warning:
        warnings.warn(settings.warning, stacklevel=3)
    return settings


def mask(secret: str) -> str:
    """A secret for display: its last four characters, if it is long enough."""
    return "…" + secret[-4:] if len(secret) >= 16 else "…"


def _read_env_file(path: Path, environ: Mapping[str, str], *, required: bool) -> tuple[dict[str, str], str | None]:
    """The variables of a settings file, and a warning about lines that are not `NAME=value`."""
    if not os.path.isfile(path):
        if required:
            fault = "is not a regular file" if os.path.lexists(path) else "does not exist"
            raise ConfigError(f"the settings file {path} {fault}", hint="check --env-file")
        return {}, None
    # Imported here: most starts do not need it.
    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    try:
        bindings = [*parse_stream(io.StringIO(path.read_text("utf-8-sig")))]
    except OSError as exc:
        raise ConfigError(f"cannot read the settings file {path}: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"the settings file {path} is not UTF-8", hint="save it as UTF-8 text") from exc
    lines = [str(binding.original.line) for binding in bindings if binding.error]
    malformed = f"{path} has lines that are not NAME=value and are ignored: {', '.join(lines)}" if lines else None
    text = "".join(binding.original.string for binding in bindings if not binding.error)
    parsed = dotenv_values(stream=io.StringIO(text), interpolate=True)
    values = {name: value for name, value in parsed.items() if value}
    # A shell expands a bare $NAME; dotenv only ${NAME}.
    for name, value in values.items():
        if match := re.fullmatch(r"\$([A-Za-z_]\w*)", value):
            values[name] = environ.get(match[1]) or values.get(match[1], "")
    return {name: value for name, value in values.items() if value}, malformed
