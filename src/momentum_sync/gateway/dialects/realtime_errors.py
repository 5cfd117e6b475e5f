"""Errors in the words of Supabase's server, which clients and apps compare: Supabase, "Realtime Protocol"."""

from __future__ import annotations

from momentum_sync.errors import RequestError, Unauthenticated

_REASONS = {
    "claims": "InvalidJWTToken: Fields `role` and `exp` are required in JWT",
    "signature": "JwtSignatureError: Failed to validate JWT signature",
    "malformed": "MalformedJWT: The token provided is not a valid JWT",
}


def reason(error: RequestError) -> str:
    """Return an error in Supabase's words, where it has some."""
    if isinstance(error, Unauthenticated):
        if error.code in ("token_revoked", "missing_api_key"):
            return f"InvalidJWTToken: {error}"
        if error.fault == "expired":
            return f"InvalidJWTToken: Token has expired {int(error.late_s)} seconds ago"
        return _REASONS[error.fault]
    if error.status == 503:
        return f"UnableToConnectToProject: {error}"
    return f"{error.code}: {error}"


def refusal(error: RequestError, *, is_realtime: bool) -> str | dict[str, str]:
    """Return what a refused handshake says: to Supabase's clients a text, to ours a code and a sentence."""
    if not is_realtime:
        return {"code": error.code, "message": str(error)}
    if isinstance(error, Unauthenticated):
        # As at Supabase, the words without the code that a reply has.
        return "Token has expired" if error.fault == "expired" else reason(error).partition(": ")[2]
    return str(error)
