"""Verification of JSON Web Tokens.

Supabase signs with one HS256 secret, or with RS256, ES256 or EdDSA keys that it publishes as a key set. A key serves
only the algorithm family it was made for, so a public key never verifies an HMAC.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64decode
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from uuid import UUID

import jwt
import msgspec
from jwt.algorithms import HMACAlgorithm

from momentum_sync.errors import Unauthenticated

ROLES = frozenset({"authenticated", "service_role"})
"""Roles on the native protocol and HTTP, where every user has an id."""

REALTIME_ROLES = ROLES | {"anon"}
"""Roles on Supabase's protocol, in addition to the operator's own."""

LEEWAY_S = 5.0
"""By how much the issuer's clock and ours may differ."""

_SIGNED_WITH_A_KEY = frozenset({"RS256", "ES256", "EdDSA"})
_MAX_TOKEN = 16 * 1024
_objects = msgspec.json.Decoder(dict[str, Any])
# A `\u` that follows an odd number of backslashes is text and no escape, and jsonb stores it.
_UNSTORABLE = re.compile(r"(?<!\\)(?:\\\\)*\\u(?:0000|[dD][89a-fA-F])")
# `datetime` ends here, and `exp` is sent to clients as a timestamp.
_YEAR_9999 = 253_402_300_799


class UnknownKey(Unauthenticated):
    """The token names an unknown key; it may have been published since the last fetch."""


@dataclass(frozen=True, slots=True)
class Identity:
    """An authenticated caller.

    `subject` is None for `service_role`. `claims` is the JSON that the database gets; `expires_at` is seconds since
    1970, None for an API key that is not a token.
    """

    role: str
    subject: UUID | None
    claims: str = field(repr=False)
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class TokenRules:
    """The requirements of valid tokens. `more_roles` may connect by Supabase's protocol, too."""

    secret: str | None = field(default=None, repr=False)
    issuer: str | None = None
    audience: str = "authenticated"
    anon_key: str | None = field(default=None, repr=False)
    service_role_key: str | None = field(default=None, repr=False)
    more_roles: Set[str] = frozenset()


def service_role() -> Identity:
    """Return the identity of the service key."""
    return Identity("service_role", None, '{"role":"service_role"}', None)


def api_key(key: str, rules: TokenRules) -> Identity | None:
    """Return the identity of an API key alone: `service_role`, or None for the anon key. Raise Unauthenticated."""
    if not key:
        raise Unauthenticated("The `apikey` header is empty; send a key or omit the header.", "invalid_api_key")
    if rules.service_role_key and _same(key, rules.service_role_key):
        return service_role()
    if rules.anon_key and _same(key, rules.anon_key):
        return None
    raise Unauthenticated("The API key is not one of this project's.", "invalid_api_key")


def realtime_key(key: str, rules: TokenRules) -> Identity | None:
    """Return the identity of a configured API key of Supabase's protocol; None for any other."""
    if rules.service_role_key and _same(key, rules.service_role_key):
        return service_role()
    if rules.anon_key and _same(key, rules.anon_key):
        return Identity("anon", None, '{"role":"anon"}', None)
    return None


def verify(
    token: str, rules: TokenRules, keys: Mapping[str, jwt.PyJWK], *, now: float, realtime: bool = False
) -> Identity:
    """Return the identity that a token proves.

    Args:
        token: the token.
        rules: the requirements.
        keys: the issuer's keys.
        now: seconds since 1970.
        realtime: for Supabase's protocol, whose tokens name a role, and need no user.

    Raises:
        Unauthenticated: it proves nothing; UnknownKey if its key may have been published since.
    """
    if len(token) > _MAX_TOKEN:
        raise Unauthenticated("The token is too long.", "invalid_token")
    if rules.service_role_key and _same(token, rules.service_role_key):
        return service_role()
    try:
        key, algorithm = _key(_header(token), rules, keys)
        # Claims are checked below, against `now`, with codes that clients act on.
        claims = _objects.decode(_signatures.decode(token, key, algorithms=[algorithm]))
    except Unauthenticated:
        raise
    except jwt.InvalidSignatureError as error:
        raise Unauthenticated("The token is not valid.", "invalid_token", fault="signature") from error
    except (jwt.PyJWTError, msgspec.MsgspecError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise Unauthenticated("The token is not valid.", "invalid_token") from error
    _check_times(claims, now)
    _check_origin(claims, rules, symmetric=algorithm == "HS256")
    return _realtime_identity(claims, REALTIME_ROLES | rules.more_roles) if realtime else _identity(claims)


def _same(given: str, key: str) -> bool:
    """Compare in constant time. Header bytes that are not UTF-8 arrive as lone surrogates."""
    return hmac.compare_digest(given.encode(errors="surrogateescape"), key.encode())


def _header(token: str) -> dict[str, Any]:
    """Return a token's header, which `PyJWS.decode` verifies. PyJWT's own function decodes the whole token twice."""
    encoded = token.partition(".")[0]
    return _objects.decode(urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))


class _Examined(HMACAlgorithm):
    """HS256 with keys that were examined before. PyJWT does it for each token, which costs a half."""

    def prepare_key(self, key: str | bytes) -> bytes:
        """Return the key, which `_symmetric` has examined."""
        assert isinstance(key, bytes)
        return key


@lru_cache(maxsize=8)
def _symmetric(secret: str) -> bytes:
    """Return a shared secret as a key. Raise PyJWTError for a public key or a certificate."""
    return HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)


_signatures = jwt.PyJWS()
_signatures.unregister_algorithm("HS256")
_signatures.register_algorithm("HS256", _Examined(HMACAlgorithm.SHA256))


def _key(header: Mapping[str, Any], rules: TokenRules, keys: Mapping[str, jwt.PyJWK]) -> tuple[jwt.PyJWK | bytes, str]:
    algorithm = header.get("alg")
    if algorithm == "HS256":
        if rules.secret is None:
            raise Unauthenticated("This server does not accept HS256 tokens.", "invalid_token")
        return _symmetric(rules.secret), algorithm
    if algorithm not in _SIGNED_WITH_A_KEY:
        raise Unauthenticated("The signing algorithm of the token is not accepted.", "invalid_token")
    kid = header.get("kid")
    if not isinstance(kid, str) or kid not in keys:
        raise UnknownKey("The token is signed with an unknown key.", "invalid_token")
    if keys[kid].algorithm_name != algorithm:
        raise Unauthenticated("The token is not valid.", "invalid_token")
    return keys[kid], str(algorithm)


def _check_times(claims: Mapping[str, Any], now: float) -> None:
    expires_at = _number(claims.get("exp"))
    if expires_at is None:
        raise Unauthenticated("The token has no valid `exp` claim.", "invalid_token", fault="claims")
    if expires_at + LEEWAY_S <= now:
        raise Unauthenticated("The token has expired.", "token_expired", fault="expired", late_s=now - expires_at)
    not_before = _number(claims.get("nbf", 0))
    if not_before is None or not_before > now + LEEWAY_S:
        raise Unauthenticated("The token is not valid yet.", "invalid_token")


def _check_origin(claims: Mapping[str, Any], rules: TokenRules, *, symmetric: bool) -> None:
    audience = claims.get("aud")
    if audience is not None and rules.audience not in (audience if isinstance(audience, list) else [audience]):
        raise Unauthenticated("The token's `aud` claim is not the expected audience.", "invalid_token")
    issuer = claims.get("iss")
    # Supabase's own HS256 API keys have the issuer `supabase`, and many HS256 setups have none. A published key is
    # valid only for tokens of the issuer that published it.
    if rules.issuer is not None and issuer != rules.issuer and not (symmetric and issuer in (None, "supabase")):
        raise Unauthenticated("The token's `iss` claim is not the expected issuer.", "invalid_token")


def _identity(claims: dict[str, Any]) -> Identity:
    role = claims.setdefault("role", "authenticated")
    if not isinstance(role, str) or role not in ROLES:
        raise Unauthenticated("The token's `role` claim is not accepted.", "invalid_token")
    expires_at = float(claims["exp"])
    _drop_unreadable_iat(claims)
    if role == "service_role":
        return Identity(role, None, _json(claims), expires_at)
    try:
        subject = UUID(claims["sub"])
    except (KeyError, ValueError, TypeError, AttributeError):
        raise Unauthenticated("The token's `sub` claim is not a user id.", "invalid_token") from None
    # UUID() accepts spellings that `auth.uid()` cannot cast, such as `urn:uuid:…`.
    claims["sub"] = str(subject)
    return Identity(role, subject, _json(claims), expires_at)


def _realtime_identity(claims: dict[str, Any], roles: Set[str]) -> Identity:
    role = claims.get("role")
    if not isinstance(role, str) or role not in roles:
        raise Unauthenticated("The token's `role` claim is missing or not accepted.", "invalid_token", fault="claims")
    _drop_unreadable_iat(claims)
    subject = None
    if role != "service_role":
        try:
            # Other issuers name their users by other texts, and the app's policies read those from the claims.
            subject = UUID(claims["sub"])
            claims["sub"] = str(subject)
        except (KeyError, ValueError, TypeError, AttributeError):
            pass
    return Identity(role, subject, _json(claims), float(claims["exp"]))


def _drop_unreadable_iat(claims: dict[str, Any]) -> None:
    # `momentum.admit` casts `iat` to numeric, and takes a missing one for older than every revocation.
    if _number(claims.get("iat")) is None:
        claims.pop("iat", None)


def _json(claims: dict[str, Any]) -> str:
    """Return the claims as JSON that PostgreSQL can store.

    Raise Unauthenticated for strings that `jsonb` cannot hold: NUL, lone surrogates.
    """
    try:
        text = msgspec.json.encode(claims).decode()
    except (UnicodeError, RecursionError):
        text = ""
    if not text or _UNSTORABLE.search(text):
        raise Unauthenticated("The token's claims do not fit jsonb; remove NUL and lone surrogates.", "invalid_token")
    return text


def _number(value: object) -> float | None:
    """Return a time in seconds since 1970, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _YEAR_9999:
        return None
    return float(value)


def bearer(authorization: str | None) -> str | None:
    """Return the token of an `Authorization` header; None without one. Raise Unauthenticated for another scheme."""
    if authorization is None:
        return None
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("The Authorization header is not `Bearer <token>`.", "invalid_token")
    return token.strip()
