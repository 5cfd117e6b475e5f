"""HTTP to the servers."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

import httpx

_TLS = ssl.create_default_context()  # each client would load the certificate authorities again, in 50 ms


def http_client(seconds: float, headers: Mapping[str, str] | None = None) -> httpx.AsyncClient:
    """Return a client of which each operation may take this long."""
    return httpx.AsyncClient(timeout=seconds, headers=headers, verify=_TLS)
