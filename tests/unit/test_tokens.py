"""Each way in which a token is invalid, and those in which it is valid."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any
from uuid import UUID

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from momentum_sync.errors import Unauthenticated
from momentum_sync.identity.tokens import Identity, TokenRules, UnknownKey, api_key, bearer, realtime_key, verify

SECRET = "a-secret-of-the-tests-with-more-than-32-bytes"
USER = UUID("00000000-0000-4000-8000-000000000001")
NOW = 1_800_000_000.0
ISSUER = "https://project.example/auth/v1"
RULES = TokenRules(secret=SECRET, anon_key="anon", service_role_key="service")
PRIVATE: dict[str, Any] = {
    "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def public(algorithm: str, kid: str = "k") -> jwt.PyJWK:
    maker = {
        "RS256": jwt.algorithms.RSAAlgorithm,
        "ES256": jwt.algorithms.ECAlgorithm,
        "EdDSA": jwt.algorithms.OKPAlgorithm,
    }
    jwk = maker[algorithm].to_jwk(PRIVATE[algorithm].public_key(), as_dict=True)  # type: ignore[attr-defined]
    return jwt.PyJWK({**jwk, "kid": kid})


def claims(**more: Any) -> dict[str, Any]:
    standard = {"sub": str(USER), "role": "authenticated", "aud": "authenticated", "exp": NOW + 60}
    return {name: value for name, value in {**standard, **more}.items() if value is not None}


def signed(key: Any = SECRET, algorithm: str = "HS256", headers: dict[str, Any] | None = None, **more: Any) -> str:
    return jwt.encode(claims(**more), key, algorithm=algorithm, headers=headers)


def check(token: str, rules: TokenRules = RULES, keys: dict[str, jwt.PyJWK] | None = None) -> Any:
    return verify(token, rules, keys or {}, now=NOW)


def test_a_good_token() -> None:
    identity = check(signed(app_metadata={"role": "coach"}))
    assert (identity.role, identity.subject, identity.expires_at) == ("authenticated", USER, NOW + 60)
    assert json.loads(identity.claims)["app_metadata"] == {"role": "coach"}
    assert "coach" not in repr(identity)


@pytest.mark.parametrize(
    "more",
    [
        {"aud": None}, {"aud": ["x", "authenticated"]}, {"role": None}, {"nbf": NOW - 5}, {"nbf": NOW + 4},
        {"iss": "any"}, {"sub": str(USER).upper()}, {"exp": NOW + 0.5}, {"exp": NOW - 4.9}, {"iat": "nonsense"},
    ],
)  # fmt: skip
def test_other_good_tokens(more: dict[str, Any]) -> None:
    assert check(signed(**more)).subject == USER


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"exp": NOW - 5}, "expired"),
        ({"exp": NOW - 3600}, "expired"),
        ({"exp": None}, "no valid `exp`"),
        ({"exp": "soon"}, "no valid `exp`"),
        ({"exp": True}, "no valid `exp`"),
        ({"exp": -1}, "no valid `exp`"),
        ({"exp": 1e300}, "no valid `exp`"),
        ({"nbf": NOW + 60}, "not valid yet"),
        ({"nbf": "later"}, "not valid yet"),
        ({"aud": "somebody"}, "`aud` claim"),
        ({"aud": ["x"]}, "`aud` claim"),
        ({"aud": []}, "`aud` claim"),
        ({"role": "postgres"}, "`role` claim"),
        ({"role": "anon"}, "`role` claim"),
        ({"role": "authenticated; drop table x"}, "`role` claim"),
        ({"role": 7}, "`role` claim"),
        ({"sub": None}, "`sub` claim"),
        ({"sub": "' or true --"}, "`sub` claim"),
        ({"sub": 5}, "`sub` claim"),
    ],
)
def test_wrong_claims(more: dict[str, Any], said: str) -> None:
    with pytest.raises(Unauthenticated, match=said) as refused:
        check(signed(**more))
    assert refused.value.code == ("token_expired" if said == "expired" else "invalid_token")


def encoded(part: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "token",
    [
        "", ".", "..", "a.b.c", "x" * 20_000, "Bearer x", signed()[:-4], signed() + "AAAA", signed("another" * 6),
        f"{encoded({'alg': 'none'})}.{encoded(claims())}.", f"{encoded({'alg': 'None'})}.{encoded(claims())}.",
        f"{encoded({})}.{encoded(claims())}.", f"{encoded([])}.{encoded(claims())}.x", signed(SECRET * 2, "HS512"),
        f"{encoded({'alg': ['HS256']})}.{encoded(claims())}.x", f"{encoded({'alg': 'HS256'})}.{encoded([])}.x", "ü.ü.ü",
    ],
    ids=range(17),
)  # fmt: skip
def test_what_proves_nothing(token: str) -> None:
    with pytest.raises(Unauthenticated):
        check(token)


def test_a_payload_changed_after_signing() -> None:
    header, _, signature = signed().split(".")
    with pytest.raises(Unauthenticated):
        check(f"{header}.{encoded(claims(sub=str(UUID(int=2))))}.{signature}")


@given(st.text(max_size=100))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(Unauthenticated):
        check(text)


@pytest.mark.parametrize("algorithm", list(PRIVATE))
def test_a_key_set(algorithm: str) -> None:
    rules = TokenRules(issuer=ISSUER)
    keys = {"k": public(algorithm)}
    good = signed(PRIVATE[algorithm], algorithm, {"kid": "k"}, iss=ISSUER)
    assert check(good, rules, keys).subject == USER
    with pytest.raises(UnknownKey):
        check(good, rules, {"other": public(algorithm)})
    with pytest.raises(UnknownKey):
        check(signed(PRIVATE[algorithm], algorithm, None, iss=ISSUER), rules, keys)
    for issuer in (None, "https://elsewhere.example", "supabase"):
        with pytest.raises(Unauthenticated, match="`iss` claim"):
            check(signed(PRIVATE[algorithm], algorithm, {"kid": "k"}, iss=issuer), rules, keys)


@pytest.mark.parametrize("algorithm", list(PRIVATE))
@pytest.mark.parametrize("published", list(PRIVATE))
def test_a_key_serves_its_own_algorithm_only(algorithm: str, published: str) -> None:
    if algorithm == published:
        return
    token = signed(PRIVATE[algorithm], algorithm, {"kid": "k"}, iss=ISSUER)
    with pytest.raises(Unauthenticated):
        check(token, TokenRules(issuer=ISSUER), {"k": public(published)})


def test_a_public_key_is_no_hmac_secret() -> None:
    pem = PRIVATE["RS256"].public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip
    forged = jwt.api_jws.PyJWS().encode(
        json.dumps(claims(iss=ISSUER)).encode(), base64.b64encode(pem).decode(), "HS256", {"kid": "k"}
    )
    for rules in (TokenRules(issuer=ISSUER), TokenRules(issuer=ISSUER, secret=SECRET)):
        with pytest.raises(Unauthenticated):
            check(forged, rules, {"k": public("RS256")})


def test_without_a_secret_no_hmac_is_good() -> None:
    with pytest.raises(Unauthenticated, match="does not accept HS256"):
        check(signed(), TokenRules(issuer=ISSUER))


def test_supabases_own_hmac_keys_name_supabase() -> None:
    rules = TokenRules(secret=SECRET, issuer=ISSUER)
    assert check(signed(role="service_role", sub=None, aud=None, iss="supabase"), rules).role == "service_role"
    with pytest.raises(Unauthenticated, match="`iss` claim"):
        check(signed(iss="https://elsewhere.example"), rules)


def test_service_role_has_no_user() -> None:
    identity = check(signed(role="service_role"))
    assert (identity.role, identity.subject) == ("service_role", None)


def test_api_keys() -> None:
    assert api_key("anon", RULES) is None
    service = api_key("service", RULES)
    assert service is not None
    assert (service.role, service.subject, service.expires_at) == ("service_role", None, None)
    assert check("service").role == "service_role"
    for wrong in ("", "Service", "anon ", "ü"):
        with pytest.raises(Unauthenticated):
            api_key(wrong, RULES)
    with pytest.raises(Unauthenticated):
        api_key("anon", TokenRules())


@pytest.mark.parametrize(("header", "token"), [(None, None), ("Bearer t", "t"), ("bearer  t ", "t")])
def test_bearer(header: str | None, token: str | None) -> None:
    assert bearer(header) == token


@pytest.mark.parametrize("header", ["", "t", "Basic dXNlcg==", "Bearer", "Bearer "])
def test_another_scheme(header: str) -> None:
    with pytest.raises(Unauthenticated):
        bearer(header)


def test_secrets_are_not_shown() -> None:
    assert SECRET not in repr(RULES)
    assert "service" not in repr(RULES)


@pytest.mark.parametrize("text", [r"\u0000", r"a\u0000b", r"\ud800", r"\udfff and \\\u0000"])
@pytest.mark.parametrize("name", ["name", "sub", "app_metadata"])
def test_claims_that_no_database_can_hold_are_no_token(name: str, text: str) -> None:
    """Such claims would make every statement of the caller fail."""
    claims_json = json.dumps(claims(**{name: "X"})).replace('"X"', f'"{text}"')
    parts = [base64.urlsafe_b64encode(part).rstrip(b"=") for part in (b'{"alg":"HS256"}', claims_json.encode())]
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(
        b".".join(parts), SECRET.encode()
    )
    token = b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()
    with pytest.raises(Unauthenticated) as refused:
        check(token)
    assert refused.value.code == "invalid_token"


def test_text_that_only_looks_as_if_no_database_could_hold_it_is_fine() -> None:
    told = json.loads(check(signed(name="back\\u0000slash, 😀 and \u00e4")).claims)["name"]
    assert told == "back\\u0000slash, 😀 and \u00e4"


@pytest.mark.parametrize("rules", [RULES, TokenRules(secret=SECRET, anon_key="", service_role_key="")])
def test_an_empty_key_opens_nothing_whatever_was_configured(rules: TokenRules) -> None:
    with pytest.raises(Unauthenticated):
        api_key("", rules)
    with pytest.raises(Unauthenticated):
        check("", rules)


def test_bytes_that_are_no_text_are_no_token() -> None:
    with pytest.raises(Unauthenticated):
        api_key("\udcff", RULES)
    with pytest.raises(Unauthenticated):
        check("\udcff.a.b")


def code(token: str, rules: TokenRules = RULES, keys: dict[str, jwt.PyJWK] | None = None) -> str:
    with pytest.raises(Unauthenticated) as refused:
        check(token, rules, keys)
    assert str(refused.value).endswith(".")
    return refused.value.code


def test_refusals_have_codes() -> None:
    keys = {"k": public("ES256")}
    refused = [
        code("x" * 20_000), code("a.b.c"), code(signed(SECRET * 2, "HS512")), code(signed(), TokenRules(issuer=ISSUER)),
        code(signed(PRIVATE["ES256"], "ES256", {"kid": "other"}), keys=keys),
        code(signed(PRIVATE["RS256"], "RS256", {"kid": "k"}), keys=keys),
        code(signed(app_metadata={"a": "\0"})), code(signed(nbf=NOW + 6)),
    ]  # fmt: skip
    assert refused == ["invalid_token"] * 8
    assert code(signed(exp=NOW - 5)) == "token_expired"
    for key in ("", "another"):
        with pytest.raises(Unauthenticated) as wrong:
            api_key(key, RULES)
        assert wrong.value.code == "invalid_api_key"
        assert str(wrong.value).endswith(".")
    with pytest.raises(Unauthenticated) as other:
        bearer("Basic x")
    assert other.value.code == "invalid_token"


def test_a_token_may_be_as_long_as_the_limit() -> None:
    def padded(size: int) -> str:
        return signed(app_metadata={"a": "x" * size})

    shortest = next(size for size in range(11_900, 12_300) if len(padded(size)) > 16 * 1024)
    assert len(padded(shortest - 1)) <= 16 * 1024
    assert check(padded(shortest - 1)).subject == USER
    assert code(padded(shortest)) == "invalid_token"
    service = "k" * 16 * 1024
    assert check(service, TokenRules(service_role_key=service)).role == "service_role"
    assert code(service + "k", TokenRules(service_role_key=service + "k")) == "invalid_token"


def test_the_claims_that_the_database_gets() -> None:
    found = json.loads(check(signed(sub=str(USER).upper(), iat=NOW, jti=7, iss="any")).claims)
    assert found == {**claims(iat=NOW, jti=7, iss="any"), "sub": str(USER)}
    assert "iat" not in json.loads(check(signed(iat="soon")).claims)
    service = check(signed(role="service_role", sub=None))
    assert (json.loads(service.claims), service.expires_at) == (claims(role="service_role", sub=None), NOW + 60)
    assert json.loads(check("service").claims) == {"role": "service_role"}
    assert json.loads(check(signed(role=None)).claims)["role"] == "authenticated"


@pytest.mark.parametrize("nbf", [0, NOW + 5])
def test_a_token_that_is_valid_from_now_on(nbf: float) -> None:
    assert check(signed(nbf=nbf)).subject == USER


def test_the_last_second_of_year_9999_is_a_time() -> None:
    assert check(signed(exp=253_402_300_799)).expires_at == 253_402_300_799
    assert code(signed(exp=253_402_300_800)) == "invalid_token"


def test_the_audience_is_compared_whole() -> None:
    assert code(signed(aud="authenticated-and-more")) == "invalid_token"
    assert code(signed(aud="xauthenticatedx")) == "invalid_token"


def realtime(**claims: Any) -> Identity:
    token = jwt.encode({"role": "authenticated", "exp": NOW + 60, **claims}, SECRET, algorithm="HS256")
    return verify(token, dataclasses.replace(RULES, more_roles=frozenset({"tenant"})), {}, now=NOW, realtime=True)


@pytest.mark.parametrize("role", ["anon", "authenticated", "tenant"])
def test_supabases_protocol_needs_a_role_and_no_user(role: str) -> None:
    assert realtime(role=role).role == role
    assert realtime(role=role).subject is None
    assert realtime(role=role, sub="clerk|7").subject is None
    named = realtime(role=role, sub="urn:uuid:00000000-0000-4000-8000-000000000001")
    assert named.subject == UUID("00000000-0000-4000-8000-000000000001")
    assert json.loads(named.claims)["sub"] == "00000000-0000-4000-8000-000000000001"  # as `auth.uid()` can cast it


@pytest.mark.parametrize("role", ["postgres", None, 7, ["anon"]])
def test_supabases_protocol_accepts_no_other_role(role: object) -> None:
    with pytest.raises(Unauthenticated) as refused:
        realtime(role=role)
    assert refused.value.fault == "claims"


def test_service_role_has_no_user_by_any_protocol() -> None:
    assert realtime(role="service_role", sub="00000000-0000-4000-8000-000000000001").subject is None
    assert realtime(role="anon", iat="soon").claims.count("iat") == 0
    assert realtime(role="anon").expires_at == NOW + 60


def test_configured_keys_are_callers_of_supabases_protocol() -> None:
    rules = TokenRules(secret=SECRET, anon_key="sb_publishable_a", service_role_key="sb_secret_s")
    anon = realtime_key("sb_publishable_a", rules)
    assert anon is not None
    assert (anon.role, anon.subject, anon.claims, anon.expires_at) == ("anon", None, '{"role":"anon"}', None)
    service = realtime_key("sb_secret_s", rules)
    assert service is not None
    assert service.role == "service_role"
    assert realtime_key("sb_publishable_b", rules) is None
    assert realtime_key("", TokenRules(secret=SECRET)) is None


@pytest.mark.parametrize(
    ("claims", "secret", "fault"),
    [({"exp": NOW - 60}, SECRET, "expired"), ({"exp": None}, SECRET, "claims"), ({}, "another" * 9, "signature")],
)
def test_a_fault_is_named(claims: dict[str, Any], secret: str, fault: str) -> None:
    token = jwt.encode({"role": "anon", "exp": NOW + 60, **claims}, secret, algorithm="HS256")
    with pytest.raises(Unauthenticated) as refused:
        verify(token, RULES, {}, now=NOW, realtime=True)
    assert refused.value.fault == fault
    assert refused.value.late_s == (60 if fault == "expired" else 0)
