"""The environment of child processes, without the credentials that they do not need.

Other processes of the same user can read it in /proc, and all descendants inherit it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping

# Credentials of a CDN that is not public.
CDN_SECRETS = ("COLDSTREAM_CDN_HEADER", "CF_ACCESS_CLIENT_ID", "CF_ACCESS_CLIENT_SECRET")
SECRETS = frozenset(
    {
        "VLLM_API_KEY",
        "R2_SECRET_KEY",
        "R2_SESSION_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN",
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "CLOUDFLARE_API_TOKEN",
        "COLDSTREAM_BUNDLE_KEY",
        *CDN_SECRETS,
    }
)
# Access keys are removed too: half of a key pair would be an error.
CREDENTIALS = SECRETS | {"R2_ACCESS_KEY", "AWS_ACCESS_KEY_ID"}
# Variables for Python, OpenSSL, certificates and proxies.
STREAMER = re.compile(
    r"PATH|HOME|TMPDIR|LANG|LC_\w+|LD_\w+|PYTHON\w*|MALLOC_\w+|GLIBC_TUNABLES|OPENSSL_\w+|SSL_\w+"
    r"|AWS_CA_BUNDLE|REQUESTS_CA_BUNDLE|REQUEST_METHOD|(?i:(?:https?|all|no)_proxy)"
)


def child_environment(
    *, keep: Collection[str] = (), only: re.Pattern[str] | None = None, environ: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The environment without credentials, except those to `keep`; `only` matches the variables to pass on."""
    return {
        name: value
        for name, value in (os.environ if environ is None else environ).items()
        if (name in keep or name not in CREDENTIALS) and (only is None or only.fullmatch(name))
    }
