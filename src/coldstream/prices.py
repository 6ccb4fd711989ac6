"""What Cloudflare R2 charges: standard storage, as of 2026-11, without the free tier. Pure.

Source: developers.cloudflare.com/r2/pricing. A GB is 10^9 bytes. Egress is free.
"""

from __future__ import annotations

STORAGE_PER_GB_MONTH = 0.015
CLASS_A_PER_MILLION = 4.50  # writes, parts, creating and completing uploads, listing


def storage_per_month(byte_count: int) -> float:
    """US dollars a month for keeping so many bytes."""
    return byte_count / 1e9 * STORAGE_PER_GB_MONTH


def upload_requests(parts: int, files: int) -> float:
    """US dollars, once, for the writes of an upload: its parts, and some three requests beside them per file."""
    return (parts + 3 * files) / 1e6 * CLASS_A_PER_MILLION
