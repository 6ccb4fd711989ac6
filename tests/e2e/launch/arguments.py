"""Arguments and keys that the tests of `coldstream launch` share."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request

LAUNCH = ("launch", "org/m", "--gpus", "L4:1")

UP = (*LAUNCH, "--yes")

KEYS = ("R2_ACCESS_KEY", "R2_SECRET_KEY", "R2_SESSION_TOKEN")

TOKENS = {
    "CLOUDFLARE_API_TOKEN": "cloudflare-token-of-the-user",
    "HF_TOKEN": "hf_token-of-the-user",
    "COLDSTREAM_BUNDLE_KEY": "bundle-key-of-the-user-0123456789",
}


def status_of(url: str, key: str) -> int:
    """The status with which a model's API answers."""
    request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as exc:
        exc.close()
        return exc.code


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
