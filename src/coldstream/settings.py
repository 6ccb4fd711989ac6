"""Settings: where the bucket is and how to get in, resolved once.

Flags beat the environment, the environment beats the `.env` file in the working directory, that beats the profile of
the AWS configuration, and that the defaults.
An empty value counts as absent. Every variable is described in docs/environment.md.
"""

from __future__ import annotations

import difflib
import io
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from coldstream.aws_profile import PROFILE, read_profile
from coldstream.errors import ConfigError
from coldstream.machine.child_environment import SECRETS
from coldstream.model.names import MANIFEST_NAME, expanded
from coldstream.model.uri import Uri, without_secrets

# Every variable that coldstream itself reads, for the check of misspellings and for docs/environment.md.
VARIABLES: Mapping[str, str] = {
    "R2_ENDPOINT": "URL of the S3 API, https://<account>.r2.cloudflarestorage.com",
    "R2_BUCKET": "the bucket's name",
    "R2_ACCESS_KEY": "access key id",
    "R2_SECRET_KEY": "secret access key",
    "R2_SESSION_TOKEN": "session token of temporary credentials",
    "R2_CDN_DOMAIN": "custom domain in front of the bucket: weights are read through it",
    "COLDSTREAM_CDN_HEADER": "secret header that the custom domain asks for, as `X-Name: value`",
    "CF_ACCESS_CLIENT_ID": "service token of Cloudflare Access in front of the custom domain",
    "CF_ACCESS_CLIENT_SECRET": "its secret",
    "AWS_ENDPOINT_URL": "URL of the S3 API, when R2_ENDPOINT is absent",
    "AWS_ENDPOINT_URL_S3": "the same for S3 alone; wins over AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID": "access key id, when R2_ACCESS_KEY is absent",
    "AWS_SECRET_ACCESS_KEY": "secret access key, when R2_SECRET_KEY is absent",
    "AWS_SESSION_TOKEN": "session token, beside AWS_ACCESS_KEY_ID",
    "AWS_PROFILE": "profile of ~/.aws: its endpoint, region and certificates, and its keys when no others are given",
    "AWS_REGION": "region; `auto` by default on R2, us-east-1 on other endpoints",
    "AWS_DEFAULT_REGION": "the same, when AWS_REGION is absent",
    "AWS_CA_BUNDLE": "file of trusted certificates, for the S3 API",
    "VLLM_API_KEY": "key that the API of a launched model asks for; one is made without it",
    "HF_TOKEN": "Hugging Face token, for gated and private repositories",
    "HF_ENDPOINT": "URL of a Hugging Face mirror",
    "CLOUDFLARE_API_TOKEN": "token for Cloudflare's own API: issuing temporary credentials, rules of the CDN",
    "CLOUDFLARE_BASE_URL": "URL of Cloudflare's API; https://api.cloudflare.com/client/v4 by default",
    "COLDSTREAM_STORE": "s3://bucket[/prefix] or file:///folder, instead of R2_BUCKET",
    "COLDSTREAM_CACHE_DIR": "the local cache; ~/.cache/coldstream by default",
    "COLDSTREAM_CACHE_LIMIT": "how large the local cache may grow; half of its file system by default",
    "COLDSTREAM_BUNDLE_KEY": "signs warm-start bundles, at least 32 characters; without it none are used",
    "COLDSTREAM_SERVICE": "set by `coldstream serve` for vLLM's processes: where they ask for the weights",
    "COLDSTREAM_METRICS_PORT": "port that Prometheus' metrics are served on while a load or vLLM runs; 0: any",
    "COLDSTREAM_METRICS_HOST": "address that they are served on; 127.0.0.1 by default",
    "COLDSTREAM_METRICS_FILE": "file, NAME.prom, that they are left in at the end",
    "COLDSTREAM_RETRY_SECONDS": "how long an operation may make no progress before it fails",
}
RETRY_SECONDS = 180.0
_PREFIX = "COLDSTREAM_"
# In the order in which they win.
ENDPOINTS = ("R2_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
_SERVICE_LINK = re.compile(
    r"COLDSTREAM(?:_[A-Z0-9_]+?)??_"
    r"(SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
_MODEL_MARKS = ("config.json", "model_index.json", "adapter_config.json", MANIFEST_NAME, "*.safetensors", "*.gguf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is configured. Frozen; its repr shows no secret.

    Attributes:
        values: Variable to value; flags and the `.env` file are merged in under the variables' names.
        origins: Variable to where its value came from: "flag", "environment" or the file's path.
        looked_in: Where was looked, for messages.
        warning: What the user should know, or None.
    """

    values: Mapping[str, str]
    origins: Mapping[str, str]
    looked_in: tuple[str, ...]
    warning: str | None = None

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name} from {origin}' for name, origin in sorted(self.origins.items()))})"

    def get(self, *names: str) -> str | None:
        """The first of these variables that is set."""
        return next((self.values[name] for name in names if name in self.values), None)

    def origin(self, *names: str) -> str | None:
        """Where the value that `get` returns came from, as "NAME from .env"."""
        return next((f"{name} from {self.origins[name]}" for name in names if name in self.values), None)

    def store_uri(self) -> str:
        """The store's URI.

        Raises:
            ConfigError: None is configured, or it names a user or a password.
        """
        if uri := self.get("COLDSTREAM_STORE"):
            if Uri(uri).has_user:
                raise ConfigError(
                    f"the store {Uri(uri)} is given with a user or a password",
                    hint="leave them out of COLDSTREAM_STORE; keys go into R2_ACCESS_KEY and R2_SECRET_KEY",
                )
            # A plain path is what people try first.
            return expanded(uri).resolve().as_uri() if uri[0] in "./~" else uri.rstrip("/")
        if bucket := self.get("R2_BUCKET"):
            if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
                raise ConfigError(
                    f"R2_BUCKET is {bucket!r}, which is no bucket's name",
                    hint="3 to 63 lower-case letters, digits and dashes, without slashes",
                )
            return f"s3://{bucket}"
        raise ConfigError(
            f"no bucket is configured: R2_BUCKET is not set in {' or '.join(self.looked_in)}",
            hint="run: coldstream setup --write-env   (or name a store: --store s3://bucket, --store file:///folder)",
        )

    def endpoint(self) -> str | None:
        """The S3 API's URL, or None for AWS itself.

        Raises:
            ConfigError: It is no URL of a server.
        """
        value = self.get(*ENDPOINTS)
        return None if value is None else _checked_endpoint(self.endpoint_setting, value)

    @property
    def endpoint_setting(self) -> str:
        """What names the endpoint, or would: for messages."""
        name = next((n for n in ENDPOINTS if n in self.values), ENDPOINTS[0])
        origin = self.origins.get(name, "")
        return f"endpoint_url (in {origin})" if origin.startswith(PROFILE) else name

    @property
    def is_r2(self) -> bool:
        """Whether the endpoint is Cloudflare's, with its region, limits and prices."""
        host = urlsplit(self.get(*ENDPOINTS) or "").hostname or ""
        return host.endswith(".r2.cloudflarestorage.com")

    @property
    def region(self) -> str | None:
        """The region to sign for; None leaves it to the AWS chain (profile, instance)."""
        if chosen := self.get(*REGIONS):
            return chosen
        if self.is_r2:
            return "auto"
        return "us-east-1" if self.endpoint() else None

    def keys(self) -> tuple[str, str, str | None] | None:
        """(access key id, secret, session token), or None to leave it to the AWS chain.

        Raises:
            ConfigError: One half of a pair is missing.
        """
        for identity, secret, token in (
            ("R2_ACCESS_KEY", "R2_SECRET_KEY", "R2_SESSION_TOKEN"),
            ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
        ):
            present = [name for name in (identity, secret) if name in self.values]
            if len(present) == 1:
                missing = secret if present == [identity] else identity
                raise ConfigError(
                    f"{present[0]} is set (in {self.origins[present[0]]}) and {missing} is not",
                    hint=f"set {missing} as well, or run: coldstream setup --write-env",
                )
            if present:
                return self.values[identity], self.values[secret], self.values.get(token)
        return None

    @property
    def retry_seconds(self) -> float:
        """How long an operation may make no progress.

        Raises:
            ConfigError: It is no positive number.
        """
        text = self.get("COLDSTREAM_RETRY_SECONDS")
        if text is None:
            return RETRY_SECONDS
        try:
            seconds = float(text)
        except ValueError:
            seconds = -1.0
        if not 0 < seconds < 86400:
            raise ConfigError(
                f"COLDSTREAM_RETRY_SECONDS is {text!r}, which is no number of seconds", hint="for example 180"
            )
        return seconds


def load_settings(
    flags: Mapping[str, str | None] | None = None,
    *,
    env_file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    draft: bool = False,
) -> Settings:
    """Resolves the settings.

    Args:
        flags: Variable to value from the command line; None means not given.
        env_file: The file to read; `.env` in the working directory when None, and then it may be absent. In a folder
            with a model it is not read: it may have come with the model, and would choose where tokens are sent.
        environ: The environment; `os.environ` when None.
        draft: The settings are about to be asked for: the file may be absent, and placeholders are left out.

    Raises:
        ConfigError: The file is missing or malformed, a COLDSTREAM_ variable is unknown, or a value is a placeholder.
    """
    environ = os.environ if environ is None else environ
    path = env_file or Path(".env")
    model = _model_mark(path) if env_file is None and _is_file(path) else None
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
        for name, value in layer.items():
            if name.startswith(_PREFIX) and name not in VARIABLES:
                # The prefix, which all share, would make any two of them alike.
                settings = {known.removeprefix(_PREFIX): known for known in VARIABLES if known.startswith(_PREFIX)}
                near = difflib.get_close_matches(name.removeprefix(_PREFIX), settings, n=1)
                raise ConfigError(
                    f"{name} (in {origin}) is not a setting of coldstream",
                    hint=f"did you mean {settings[near[0]]}?" if near else "docs/environment.md lists them all",
                )
            if name in VARIABLES:
                values[name], origins[name] = _unquoted(name, value.strip(), origin), origin
    _add_profile(values, origins, environ)
    for name, value in list(values.items()):
        if not is_placeholder(value):
            continue
        if not draft:
            shown = "its placeholder" if name in SECRETS else repr(value)
            raise ConfigError(
                f"{name} (in {origins[name]}) is still {shown}",
                hint="put the real value there, or be asked for it: coldstream setup --write-env",
            )
        del values[name], origins[name]
    if model:
        unread = f"not read: it lies beside {model}"
        warning = f"{path} is {unread}, so it may have come with a model (--env-file {path} reads it)"
        looked_in = ("the environment", f"{path} ({unread})")
        return Settings(values=values, origins=origins, looked_in=looked_in, warning=warning)
    return Settings(values=values, origins=origins, looked_in=("the environment", str(path)), warning=malformed)


def _add_profile(values: dict[str, str], origins: dict[str, str], environ: Mapping[str, str]) -> None:
    """Adds what the profile of the AWS configuration says, where nothing nearer does."""
    profile, origin = read_profile(values.get("AWS_PROFILE"), environ)
    if not values.keys().isdisjoint(ENDPOINTS):
        # A profile's region belongs to its own endpoint.
        profile = {name: value for name, value in profile.items() if name == "AWS_CA_BUNDLE"}
    if not values.keys().isdisjoint(REGIONS):
        profile.pop("AWS_REGION", None)
    for name, value in profile.items():
        if name not in values:
            values[name], origins[name] = value, origin


def is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes put a variable there: it describes a Service that is called `coldstream` or `coldstream-…`."""
    match = _SERVICE_LINK.fullmatch(name)
    # A Service `coldstream-metrics` sets COLDSTREAM_METRICS_PORT, which is also a setting, to tcp://ADDRESS:PORT.
    return match is not None and (match[1] != "PORT" or "://" in value)


def _unquoted(name: str, value: str, origin: str) -> str:
    """The value, unless it has quotes around it that the environment's maker took as part of it.

    Raises:
        ConfigError: It does.
    """
    if origin == "environment" and len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        raise ConfigError(
            f"{name} (in {origin}): the quotes are part of the value",
            hint="remove them where it is set: docker, podman and kubectl keep the quotes of a file of variables",
        )
    return value


def is_placeholder(value: str) -> bool:
    """Whether a value was copied from instructions, as `<account-id>` or `your_r2_access_key`."""
    return re.search(r"<[a-z -]+>|^your[_-]", value) is not None


def ambient_settings() -> Settings:
    """The settings of a call of the library that was given none; a file that is not read is a Python warning.

    Raises:
        ConfigError: See `load_settings`.
    """
    settings = load_settings()
    if settings.warning:
        warnings.warn(settings.warning, stacklevel=3)
    return settings


def mask(secret: str) -> str:
    """A secret as it may be shown: its last four characters, if it is long enough to spare them."""
    return "…" + secret[-4:] if len(secret) >= 16 else "…"


def _model_mark(env_file: Path) -> str | None:
    """What says that a model lies in the folder of a settings file, or None."""
    folder = env_file.absolute().parent
    return next((mark.name for pattern in _MODEL_MARKS for mark in folder.glob(pattern) if mark.is_file()), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False  # this user may not look into the folder; a working directory may be anywhere


def _read_env_file(path: Path, environ: Mapping[str, str], *, required: bool) -> tuple[dict[str, str], str | None]:
    """The variables of a settings file, and what to tell the user of lines that are not `NAME=value`."""
    if not _is_file(path):
        if required:
            fault = "is not a regular file" if os.path.lexists(path) else "does not exist"
            raise ConfigError(f"the settings file {path} {fault}", hint="look at --env-file")
        return {}, None
    # Imported here: most starts have no such file, and `--help` needs none.
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
    found = dotenv_values(stream=io.StringIO(text), interpolate=True)
    values = {name: value for name, value in found.items() if value}
    # A shell that sources the file expands a bare $NAME; dotenv expands ${NAME} alone.
    for name, value in values.items():
        if match := re.fullmatch(r"\$([A-Za-z_]\w*)", value):
            values[name] = environ.get(match[1]) or values.get(match[1], "")
    return {name: value for name, value in values.items() if value}, malformed


def _checked_endpoint(name: str, text: str) -> str:
    try:
        split = urlsplit(text)
        port_fits = split.port is None or split.port > 0
    except ValueError:
        split, port_fits = urlsplit(""), False
    if split.scheme not in {"http", "https"} or not split.hostname or not port_fits:
        raise ConfigError(
            f"{name} is {without_secrets(text)!r}, which is not a server's URL",
            hint="for example https://<account>.r2.cloudflarestorage.com",
        )
    if split.username or split.password:
        raise ConfigError(f"{name} holds credentials", hint="keys go into R2_ACCESS_KEY and R2_SECRET_KEY")
    if split.path.strip("/") or split.query or split.fragment:
        raise ConfigError(
            f"{name} has the path {split.path!r}", hint="the endpoint is the server alone; the bucket goes to R2_BUCKET"
        )
    return f"{split.scheme}://{split.netloc}"
