"""The issuer's signing keys, fetched, cached, and fetched again when a token names a new one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import httpx
import jwt
import msgspec

from momentum_sync import observe
from momentum_sync.errors import Unauthenticated, Unavailable
from momentum_sync.identity.tokens import Identity, TokenRules, UnknownKey, api_key, bearer, realtime_key, verify
from momentum_sync.limits import KeyLimits


class Authenticator:
    """Turns the credentials of a request into an identity. Without an issuer no key set is fetched."""

    def __init__(self, rules: TokenRules, limits: KeyLimits) -> None:
        self._rules = rules
        self._limits = limits
        self._url = key_set_url(rules.issuer) if rules.issuer else None
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._fetched_at = float("-inf")
        self._tried_at = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None

    async def authenticate(self, *, authorization: str | None, apikey: str | None) -> Identity:
        """Return the caller behind `Authorization` and `apikey`. Raise Unauthenticated or Unavailable."""
        token = bearer(authorization)
        # Supabase's clients repeat the API key in `Authorization` while no user is signed in.
        if token is not None and token != apikey:
            return await self.verify(token)
        alone = api_key(apikey, self._rules) if apikey is not None else None
        if alone is None:
            raise Unauthenticated("A token is needed: `Authorization: Bearer <token>`.")
        return alone

    async def realtime(self, token: str) -> Identity:
        """Return the caller behind an API key or token of Supabase's protocol. Raise as `verify`."""
        return realtime_key(token, self._rules) or await self.verify(token, realtime=True)

    async def verify(self, token: str, *, realtime: bool = False) -> Identity:
        """Return the identity that a token proves. Raise Unauthenticated, or Unavailable without keys."""
        try:
            identity = verify(token, self._rules, self._keys, now=time.time(), realtime=realtime)
            if self._keys and time.monotonic() - self._fetched_at > self._limits.fresh_s:
                self._refresh()
            return identity
        except UnknownKey:
            if (refreshing := self._refresh()) is not None:
                await asyncio.shield(refreshing)  # others wait for it, too, and the first caller may be gone
            # Before the first key set nothing can be said about the token; 401 would make the client discard one that
            # may be valid.
            if self._fetched_at == float("-inf") and self._url is not None:
                raise Unavailable("The issuer's signing keys are unavailable; try again in a moment.") from None
            return verify(token, self._rules, self._keys, now=time.time(), realtime=realtime)

    def _refresh(self) -> asyncio.Task[None] | None:
        """Return the running fetch of the key set, started now unless one was tried moments ago."""
        due = time.monotonic() - self._tried_at >= self._limits.retry_s
        if self._refreshing is None and self._url is not None and due:
            # Counted from the attempt: anyone can send made-up key ids, and each would cause a fetch.
            self._tried_at = time.monotonic()
            self._refreshing = asyncio.ensure_future(self._fetch_keys(self._url))
        return self._refreshing

    async def _fetch_keys(self, url: str) -> None:
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                self._keys = await fetch_keys(url, self._limits)
            self._fetched_at = time.monotonic()
        except (httpx.HTTPError, OSError, ValueError, TypeError, msgspec.MsgspecError, jwt.PyJWTError) as error:
            observe.keys_unavailable(url, error)
        finally:
            self._refreshing = None


def key_set_url(issuer: str) -> str:
    """Return the address of an issuer's key set."""
    return f"{issuer}/.well-known/jwks.json"


async def fetch_keys(url: str, limits: KeyLimits) -> Mapping[str, jwt.PyJWK]:
    """Return the keys for signatures at a key set's address, by their ids.

    Raises:
        httpx.HTTPError: it does not answer.
        OSError: the certificate authorities cannot be loaded, as with a wrong SSL_CERT_FILE.
        ValueError, TypeError, msgspec.MsgspecError, jwt.PyJWTError: it is no key set.
    """
    # Loading the certificate authorities takes 50 ms, for which all clients would wait.
    tls = await asyncio.to_thread(httpx.create_ssl_context)
    async with (
        httpx.AsyncClient(timeout=limits.timeout_s, follow_redirects=False, verify=tls) as client,
        client.stream("GET", url) as response,
    ):
        response.raise_for_status()
        body = b""
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > limits.key_set_bytes:
                raise ValueError("the key set is too large")
    found = jwt.PyJWKSet.from_dict(msgspec.json.decode(body, type=dict[str, Any])).keys
    # RFC 7517, section 4.2: a key whose `use` is not `sig` is not meant for signatures.
    return {key.key_id: key for key in found if key.key_id and key.public_key_use in (None, "sig")}
