"""What a program inherits that coldstream starts: no credential that it has no use for.

A process's environment can be read in /proc by whatever else runs as the same user, and goes on to all that it starts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping

# What a CDN that is not public asks for.
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
# Half a pair of keys is an error to those who find it.
CREDENTIALS = SECRETS | {"R2_ACCESS_KEY", "AWS_ACCESS_KEY_ID"}
# What Python, OpenSSL and the engine's own connections read: certificates and proxies.
STREAMER = re.compile(
    r"PATH|HOME|TMPDIR|LANG|LC_\w+|LD_\w+|PYTHON\w*|MALLOC_\w+|GLIBC_TUNABLES|OPENSSL_\w+|SSL_\w+"
    r"|AWS_CA_BUNDLE|REQUESTS_CA_BUNDLE|REQUEST_METHOD|(?i:(?:https?|all|no)_proxy)"
)


def child_environment(
    *, keep: Collection[str] = (), only: re.Pattern[str] | None = None, environ: Mapping[str, str] | None = None
) -> dict[str, str]:
    """This process's environment without credentials.

    Args:
        keep: Credentials that the program needs.
        only: The variables to hand on, by their whole name; None: all.
        environ: Instead of `os.environ`.
    """
    return {
        name: value
        for name, value in (os.environ if environ is None else environ).items()
        if (name in keep or name not in CREDENTIALS) and (only is None or only.fullmatch(name))
    }
