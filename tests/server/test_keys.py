"""Tokens verified by a published key set: a real issuer over HTTP that rotates its keys."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID

import jwt
import pytest
import websockets
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from momentum_sync.errors import Unauthenticated, Unavailable
from momentum_sync.identity.keys import Authenticator
from momentum_sync.identity.tokens import TokenRules
from momentum_sync.limits import KeyLimits
from tests.fixtures.server import Start

USER = UUID("00000000-0000-4000-8000-000000000001")
PRIVATE: dict[str, Any] = {
    "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
MAKERS: dict[str, Any] = {
    "RS256": jwt.algorithms.RSAAlgorithm,
    "ES256": jwt.algorithms.ECAlgorithm,
    "EdDSA": jwt.algorithms.OKPAlgorithm,
}


class Issuer:
    """An issuer; `answer` is its key set, and `asked` counts requests, which wait for `may_answer`."""

    def __init__(self) -> None:
        self.answer: tuple[int, bytes] = (200, b"{}")
        self.asked = 0
        self.may_answer = threading.Event()
        self.may_answer.set()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                issuer.may_answer.wait(20)
                status, body = issuer.answer if self.path.endswith("/auth/v1/.well-known/jwks.json") else (404, b"")
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                try:
                    self.wfile.write(body)
                except ConnectionError:
                    issuer.answer = (200, b"the reader went away")

            def log_message(self, *args: object) -> None:
                """Log nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def publish(self, *algorithms: str, prefix: str = "k-") -> None:
        keys = [
            {**MAKERS[algorithm].to_jwk(PRIVATE[algorithm].public_key(), as_dict=True), "kid": prefix + algorithm}
            for algorithm in algorithms
        ]
        self.answer = (200, json.dumps({"keys": keys}).encode())

    def sign(self, algorithm: str, prefix: str = "k-") -> str:
        claims = {
            "sub": str(USER), "role": "authenticated", "aud": "authenticated", "iss": f"{self.url}/auth/v1",
            "exp": int(time.time()) + 60,
        }  # fmt: skip
        return jwt.encode(claims, PRIVATE[algorithm], algorithm=algorithm, headers={"kid": prefix + algorithm})


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    thread = threading.Thread(target=issuer.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield issuer
    issuer.server.shutdown()
    thread.join()
    issuer.server.server_close()


@pytest.fixture
def authenticator(issuer: Issuer) -> Authenticator:
    return Authenticator(TokenRules(issuer=f"{issuer.url}/auth/v1"), KeyLimits())


@pytest.fixture
def eager(issuer: Issuer) -> Authenticator:
    """Return an authenticator that fetches keys again at every opportunity."""
    return Authenticator(TokenRules(issuer=f"{issuer.url}/auth/v1"), KeyLimits(retry_s=0.0, fresh_s=0.0))


@pytest.mark.parametrize("algorithm", list(PRIVATE))
async def test_a_published_key_lets_in(start: Start, issuer: Issuer, database: str, algorithm: str) -> None:
    issuer.publish(algorithm)
    async with start(supabase_url=issuer.url, jwt_secret=None) as server:
        async with server.connect(issuer.sign(algorithm)) as client:
            assert (await client.next())["user_id"] == str(USER)
        with pytest.raises(websockets.InvalidStatus):
            async with server.connect(issuer.sign(algorithm, prefix="other-")):
                raise AssertionError("it was let in")
    assert issuer.asked == 1


async def test_rotation(eager: Authenticator, issuer: Issuer) -> None:
    issuer.publish("RS256")
    assert (await eager.verify(issuer.sign("RS256"))).subject == USER
    issuer.publish("ES256")
    assert (await eager.verify(issuer.sign("ES256"))).subject == USER
    with pytest.raises(Unauthenticated):
        await eager.verify(issuer.sign("RS256"))


async def test_a_key_withdrawn_is_forgotten_in_time(eager: Authenticator, issuer: Issuer) -> None:
    issuer.publish("RS256", "ES256")
    await eager.verify(issuer.sign("RS256"))
    issuer.publish("ES256")
    await eager.verify(issuer.sign("RS256"))
    with pytest.raises(Unauthenticated):
        async with asyncio.timeout(10):
            while True:
                await eager.verify(issuer.sign("RS256"))
                await asyncio.sleep(0.01)


async def test_unknown_keys_do_not_make_us_ask_for_ever(authenticator: Authenticator, issuer: Issuer) -> None:
    issuer.publish("RS256")
    for _ in range(20):
        with pytest.raises(Unauthenticated):
            await authenticator.verify(issuer.sign("ES256"))
    assert issuer.asked == 1


async def test_many_at_once_ask_once(authenticator: Authenticator, issuer: Issuer) -> None:
    issuer.publish("RS256")
    token = issuer.sign("RS256")
    found = await asyncio.gather(*(authenticator.verify(token) for _ in range(50)))
    assert {identity.subject for identity in found} == {USER}
    assert issuer.asked == 1


async def test_a_cancelled_first_request_does_not_cancel_the_key_fetch_for_others(
    authenticator: Authenticator, issuer: Issuer
) -> None:
    issuer.publish("RS256")
    token = issuer.sign("RS256")
    issuer.may_answer.clear()
    first, other = (asyncio.ensure_future(authenticator.verify(token)) for _ in range(2))
    async with asyncio.timeout(20):
        while not issuer.asked:
            await asyncio.sleep(0.01)
    first.cancel()
    issuer.may_answer.set()
    assert (await other).subject == USER
    assert (first.cancelled(), issuer.asked) == (True, 1)


@pytest.mark.parametrize("answer", [(500, b""), (302, b""), (200, b"no json"), (200, b"[]"), (200, b" " * 300_000)])
async def test_an_issuer_that_cannot_be_read(
    authenticator: Authenticator, issuer: Issuer, answer: tuple[int, bytes]
) -> None:
    issuer.answer = answer
    with pytest.raises(Unavailable):
        await authenticator.verify(issuer.sign("RS256"))


async def test_known_keys_outlive_an_issuer_that_is_down(eager: Authenticator, issuer: Issuer) -> None:
    issuer.publish("RS256")
    await eager.verify(issuer.sign("RS256"))
    issuer.answer = (503, b"")
    assert (await eager.verify(issuer.sign("RS256"))).subject == USER


async def test_without_an_issuer_nobody_is_asked(issuer: Issuer) -> None:
    with pytest.raises(Unauthenticated):
        await Authenticator(TokenRules(secret="s" * 40), KeyLimits()).verify(issuer.sign("RS256"))
    assert issuer.asked == 0
