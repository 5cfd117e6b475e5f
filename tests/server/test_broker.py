"""The connection to NATS where NATS misbehaves: plain text for TLS, errors, servers that do not read."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from momentum_sync.eventlog.broker import Broker, BrokerOptions, subject_of
from momentum_sync.eventlog.nats_server import NatsServer
from momentum_sync.limits import FeedLimits
from tests.fixtures.gateways import Nats


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def connected(
    *urls: str, limits: FeedLimits | None = None, ca: str | None = None
) -> AsyncIterator[tuple[Broker, list[bytes]]]:  # fmt: skip
    """Yield a broker, and its messages on the subject `s`."""
    broker = Broker(BrokerOptions(urls, ca), "test", limits or FeedLimits())
    heard: list[bytes] = []
    await broker.subscribe("s", heard.append)
    await broker.open()
    try:
        yield broker, heard
    finally:
        await broker.close()


class Imitation:
    """An imitation of NATS, for errors that a real one cannot be made to send. It keeps the lines that it receives."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        info = {"server_id": "x", "version": "2.10.0", "max_payload": 1_048_576, "auth_required": True}
        writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
        while line := await reader.readline():
            self.lines.append(line)
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")


@asynccontextmanager
async def imitation() -> AsyncIterator[tuple[Imitation, int]]:
    found = Imitation()
    server = await asyncio.start_server(found.take, "127.0.0.1", 0)
    try:
        yield found, server.sockets[0].getsockname()[1]
    finally:
        for writer in found.writers:
            writer.close()
        server.close()


async def test_no_password_is_sent_in_the_clear_where_tls_is_asked_for() -> None:
    async with imitation() as (server, port), connected(f"tls://user:secret@127.0.0.1:{port}") as (broker, _):
        await until(lambda: len(server.writers) >= 2)  # it has tried again
        assert server.lines == []
        assert not broker.is_connected


async def test_tls_with_user_and_password(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    server = Secure(tmp_path / "nats", certificates)
    await server.start()
    address, log = f"user:secret@localhost:{server.port}", tmp_path / "nats" / "nats.log"
    try:
        async with connected(f"tls://{address}", ca=certificates.ca) as (broker, heard):
            await until(lambda: broker.is_connected)
            broker.publish("s", b"secret")
            await until(lambda: heard == [b"secret"])
        wrong = f"tls://user:wrong@localhost:{server.port}"
        for urls, ca in (((f"tls://{address}",), None), ((wrong,), certificates.ca)):
            said = len(log.read_text())
            async with connected(*urls, ca=ca) as (broker, _):
                await until(lambda said=said: "error" in log.read_text()[said:])  # type: ignore[misc]
                assert not broker.is_connected
        # The second of several addresses is as good as the first.
        async with connected("tls://user:secret@localhost:1", f"tls://{address}", ca=certificates.ca) as (broker, _):
            await until(lambda: broker.is_connected)
    finally:
        await server.stop()


class Certificates(NamedTuple):
    """Files of an authority of the test's own, and of a server that it vouches for."""

    ca: str
    certificate: str
    key: str


def make_certificates(folder: Path) -> Certificates:
    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.now(UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    made = []
    for subject, key in (("authority", keys[0]), ("localhost", keys[1])):
        is_ca = subject == "authority"
        builder = (
            x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name("authority"))
            .public_key(key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        )  # fmt: skip
        made.append(builder.sign(keys[0], hashes.SHA256()).public_bytes(Encoding.PEM))
    private = keys[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for file, content in (("ca.pem", made[0]), ("server.pem", made[1]), ("server.key", private)):
        (folder / file).write_bytes(content)
    return Certificates(*[str(folder / file) for file in ("ca.pem", "server.pem", "server.key")])


class Secure(NatsServer):
    """A NATS server with TLS, and a user with a password."""

    def __init__(self, folder: Path, certificates: Certificates) -> None:
        super().__init__(folder)
        self._certificates = certificates

    def config(self) -> str:
        """Return the configuration."""
        files = self._certificates
        return super().config().replace(
            f'authorization {{ token: "{self.token}" }}',
            f'authorization {{ user: user, password: secret }}\ntls {{ cert_file: "{files.certificate}", '
            f'key_file: "{files.key}" }}',
        )  # fmt: skip


async def test_a_client_that_was_closed_by_an_error_is_replaced() -> None:
    async with imitation() as (server, port), connected(f"nats://127.0.0.1:{port}") as (broker, _):
        await until(lambda: broker.is_connected)
        server.writers[-1].write(b"-ERR 'User Authentication Expired'\r\n")
        await until(lambda: not broker.is_connected)
        await until(lambda: broker.is_connected)
        assert len(server.writers) == 2


async def test_a_server_that_does_not_read_is_left_for_another(nats: Nats, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = NatsServer(tmp_path / "other")
    await other.start()
    try:
        limits = FeedLimits(ping_s=1, connect_s=1, outbox_bytes=1_000_000)
        async with connected(nats.url, other.url, limits=limits) as (broker, heard):
            await until(lambda: broker.is_connected)
            frozen = nats if broker.publish("s", b"first") and str(nats.port) in broker.address else other
            os.kill(frozen.pid, signal.SIGSTOP)
            try:
                async with asyncio.timeout(20):
                    while b"again" not in heard:
                        broker.publish("s", b"x" * 100_000)
                        if str(frozen.port) not in broker.address and broker.is_connected:
                            broker.publish("s", b"again")
                        await asyncio.sleep(0.02)
            finally:
                os.kill(frozen.pid, signal.SIGCONT)
    finally:
        await other.stop()


async def test_closing_does_not_wait_for_a_server_that_does_not_read(nats: Nats) -> None:
    broker = Broker(BrokerOptions((nats.url,)), "test", FeedLimits(connect_s=1, outbox_bytes=1_000_000))
    await broker.open()
    await until(lambda: broker.is_connected)
    nats.pause()
    try:
        for _ in range(40):
            for _ in range(10):
                broker.publish("s", b"x" * 100_000)
            await asyncio.sleep(0.02)
        began = time.monotonic()
        await broker.close()
        assert time.monotonic() - began < 5  # deadlines of a second; it hung for ever
    finally:
        nats.go_on()


async def test_what_is_too_large_or_too_much_is_dropped_and_said(nats: Nats) -> None:
    async with connected(nats.url, limits=FeedLimits(outbox_bytes=1_000)) as (broker, heard):
        assert not broker.publish("s", b"before the connection")
        await until(lambda: broker.is_connected)
        assert not broker.publish("s", b"x" * 2_000_000)
        assert [broker.publish("s", b"x" * 400) for _ in range(3)] == [True, True, False]
        await until(lambda: len(heard) == 2)


async def test_nats_is_started_again_also_where_its_files_are_gone(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats")
    await server.start()
    keeping = asyncio.create_task(server.keep())
    try:
        url = server.url
        (tmp_path / "nats" / "nats.conf").unlink()
        os.kill(server.pid, signal.SIGKILL)
        async with connected(url) as (broker, _):
            await until(lambda: broker.is_connected)
        assert server.url == url
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await server.stop()


@pytest.mark.parametrize(
    ("parts", "subject"), [(["a", "b-c", "1"], "a.b-c.1"), (["a.b", "c d", ">*"], "a_b.c_d.__")]
)  # fmt: skip
def test_subjects_have_no_meaning_beyond_their_parts(parts: list[str], subject: str) -> None:
    assert subject_of(parts) == subject
