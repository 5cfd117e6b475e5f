"""Several gateways on one feed: each beside a lone server, latency through NATS, capture alone, and a lost gateway.

All processes of the servers share one core, and the CPU time of each is measured separately: with more cores they run
side by side. For the fan-out, one gateway runs at a time and the others are stopped, because they would evict its data
from the CPU cache. On separate machines they would not. The others get the same events afterwards.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import psycopg
import uvloop

from benchmarks.connects import MISSED, change
from benchmarks.environment import Server, environment, fleet, serving, standby, token
from benchmarks.fan_out import REST_S, everyone, publish, warm_up
from benchmarks.latency import CONNECTIONS, RATE, SECONDS, percentile_of
from benchmarks.latency import run as latencies
from benchmarks.load_clients import LoadClients, connect, handshake
from benchmarks.machine import cpu_seconds, prepare_process
from benchmarks.report import Bench, Line

SOCKETS = 1_000  # of each gateway
FLEET = 4
EVENTS, TURNS = 50, 6
DISTINCT = 50_000
STORM = 10_000
_LOG_TIMEOUT_S = 120.0


def measure(bench: Bench) -> Iterator[Line]:
    """Measure with one gateway to four, and the loss of one of four."""
    prepare_process()
    yield from _fan_out(bench)
    yield from _latency(bench)
    yield from _capture(bench)
    yield from _take_over(bench)
    yield from _storm(bench)


def _fan_out(bench: Bench) -> Iterator[Line]:
    """Count the CPU time of a lone server and of each part of a fleet, in turns, for the same events."""
    (sockets,) = bench.sizes(SOCKETS)
    turns, events = (1, 5) if bench.quick else (TURNS, EVENTS)
    alone: list[float] = []
    each: list[float] = []
    together: list[float] = []
    with environment(sockets) as (conninfo, folder):
        for _ in bench.rounds(f"fan-out to {sockets:,} sockets of a server, and of each of {FLEET} gateways"):
            for gateways in (1, FLEET):
                with ExitStack() as stack:
                    # The lone server has a database of its own: a log belongs to one slot.
                    other, home = stack.enter_context(environment(sockets))
                    single = stack.enter_context(serving(other, home))
                    alone_clients = stack.enter_context(everyone(single, sockets))
                    warm_up(other, alone_clients)
                    group = stack.enter_context(fleet(conninfo, folder, gateways))
                    clients_of = []
                    for one in group.gateways:
                        clients_of.append(stack.enter_context(everyone(one, sockets, one.url[-5:])))
                        # The servers close clients that answer no ping while the others connect.
                        for waiting in (alone_clients, *clients_of):
                            waiting.rest(0.05)
                    warm_up_all(conninfo, clients_of)
                    spent = [
                        (
                            _run(other, [single], [alone_clients], events),
                            _run(conninfo, group.gateways, clients_of, events),
                        )
                        for _ in range(turns)
                    ]
                    count = turns * events
                    alone.append(count * sockets / sum(one[0] for one, _ in spent))
                    found = [count * sockets / sum(many[index] for _, many in spent) for index in range(gateways)]
                    each += found
                    if gateways == FLEET:
                        together.append(sum(found))
    yield Line(f"fan-out of a gateway to {sockets:,} sockets", "frames/s", each, "a lone server", alone, least=0.95)
    yield Line(
        f"fan-out of {FLEET} gateways, sum; each measured alone on the core", "frames/s", together, "a lone server",
        alone, least=0.9 * FLEET,
    )  # fmt: skip


def warm_up_all(conninfo: str, clients_of: list[LoadClients]) -> None:
    """Publish events until every snapshot boundary has passed."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        for number in range(5):
            mark = f"warm {time.monotonic_ns() % 10**9:09} {number}"
            publish(connection, mark)
            for clients in clients_of:
                clients.until_all(mark.encode())


def _run(conninfo: str, servers: list[Server], clients_of: list[LoadClients], events: int) -> list[float]:
    """Return the CPU seconds of each server for this many events, while the others are stopped."""
    spent = []
    with psycopg.connect(conninfo, autocommit=True) as connection:
        for server, clients in zip(servers, clients_of, strict=True):
            with _stopped([other for other in servers if other is not server]):
                before = cpu_seconds(server.pid)
                for number in range(events):
                    mark = f"mark {time.monotonic_ns() % 10**9:09} {number:06}"
                    publish(connection, mark)
                    clients.until_all(mark.encode())
                clients.rest(REST_S)
                spent.append(cpu_seconds(server.pid) - before)
            for late in clients_of:
                if late is not clients:
                    late.until_all(mark.encode())
                    late.rest(REST_S)
    return spent


@contextmanager
def _stopped(servers: Sequence[Server]) -> Iterator[None]:
    for server in servers:
        os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for server in servers:
            os.kill(server.pid, signal.SIGCONT)


def _latency(bench: Bench) -> Iterator[Line]:
    (clients,) = bench.sizes(CONNECTIONS)
    small = clients < CONNECTIONS
    rate, seconds = (clients, 2.0) if small else (RATE, SECONDS)
    through: list[list[float]] = []
    within: list[list[float]] = []
    with environment(clients) as (conninfo, folder):
        for _ in bench.rounds(f"latency of {rate:,} writes/s to {clients:,} clients, within one process and by NATS"):
            with serving(conninfo, folder) as server:
                within.append(list(latencies(conninfo, server.url, clients, rate, seconds)[1]))
            with fleet(conninfo, folder, 1) as group:
                through.append(list(latencies(conninfo, group.gateways[0].url, clients, rate, seconds)[1]))
    for percentile, most in ((50.0, 1.5), (99.0, 2.0)):
        ours = [percentile_of(one, percentile) * 1000 for one in through]
        beside = [percentile_of(one, percentile) * 1000 for one in within]
        yield Line(f"write → client by NATS, p{percentile:g}", "ms", ours, "within one process", beside, most=most)


def _capture(bench: Bench) -> Iterator[Line]:
    """Measure capture's CPU time for a backlog, with one gateway without clients, and with two full ones."""
    (users,) = bench.sizes(1_000)
    transactions = (DISTINCT if users == 1_000 else 10 * users) // users
    empty: list[float] = []
    full: list[float] = []
    with environment(users) as (conninfo, folder), psycopg.connect(conninfo, autocommit=True) as writer:
        for _ in bench.rounds(f"{transactions * users:,} distinct events through capture to NATS"):
            for gateways, rates in ((1, empty), (2, full)):
                with ExitStack() as stack:
                    group = stack.enter_context(fleet(conninfo, folder, gateways))
                    for server in group.gateways if gateways == 2 else ():
                        requests = [
                            handshake(server.url, token(index), client=server.url[-5:]) for index in range(users)
                        ]
                        clients = stack.enter_context(uvloop.run(connect(server.url, requests)))
                        stack.enter_context(_reading(clients))
                    rates.append(transactions * users / _read(writer, group.capture, transactions))
    yield Line("distinct events through capture to NATS, of its core", "events/s", empty, least=40_000)
    yield Line(
        f"the same, with {users:,} clients on each of two gateways", "events/s", full, "one gateway without clients",
        empty, least=0.9,
    )  # fmt: skip


@contextmanager
def _reading(clients: LoadClients) -> Iterator[None]:
    """Read the clients' frames in a thread."""
    stopped = threading.Event()

    def read() -> None:
        while not stopped.is_set():
            clients.rest(0.1)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _read(writer: psycopg.Connection, capture: Server, transactions: int) -> float:
    """Return the CPU seconds of capture for this many events of each user, which wait while it is stopped."""
    (logged,) = writer.execute("select last_number from momentum.stream").fetchone() or (0,)
    (users,) = writer.execute("select count(*) from public.daily_engagement_scores").fetchone() or (0,)
    total = logged + transactions * users
    os.kill(capture.pid, signal.SIGSTOP)
    try:
        for _ in range(transactions):
            writer.execute(
                "select momentum.emit('[\"momentum_updates:' || s.user_id || '\"]', json_build_object("
                "'event_type', 'momentum_score_updated', 'user_id', s.user_id, 'score_date', s.score_date,"
                "'momentum_state', s.momentum_state, 'final_score', s.final_score, 'previous_state', s.momentum_state,"
                "'state_changed', false)::text) from public.daily_engagement_scores s"
            )
        before = cpu_seconds(capture.pid)
    finally:
        os.kill(capture.pid, signal.SIGCONT)
    ends_at = time.monotonic() + _LOG_TIMEOUT_S
    while (writer.execute("select last_number from momentum.stream").fetchone() or (0,))[0] < total:
        if time.monotonic() > ends_at:
            raise SystemExit(f"The log did not receive all events within {_LOG_TIMEOUT_S:.0f} s.")
        time.sleep(0.01)
    return cpu_seconds(capture.pid) - before


def _take_over(bench: Bench) -> Iterator[Line]:
    """Kill the capture that reads the slot, while another waits for it, and wait for the next event at a client."""
    took: list[float] = []
    with environment(2) as (conninfo, folder):
        for number in bench.rounds("capture is killed, and another takes over"):
            with (
                fleet(conninfo, folder, 1) as group,
                standby(conninfo, folder, group),
                everyone(group.gateways[0], 1) as clients,
            ):
                warm_up(conninfo, clients)
                os.kill(group.capture.pid, signal.SIGKILL)
                began = time.monotonic()
                with psycopg.connect(conninfo, autocommit=True) as connection:
                    publish(connection, f"after {number:06}")
                clients.until_all(f"after {number:06}".encode())
                took.append(time.monotonic() - began)
    yield Line("capture is killed: the next event has come by a standby after", "s", took, most=2)


def _storm(bench: Bench) -> Iterator[Line]:
    """Kill one of four gateways; its clients resume on the others. Beside it as many clients of a lone server do."""
    (many,) = bench.sizes(STORM)
    took: dict[str, list[float]] = {name: [] for name in ("p99", "last", "p99 beside", "last beside")}
    with environment(many) as (conninfo, folder):
        for _ in bench.rounds(f"{many // 4:,} of {many:,} clients lose their gateway and resume on three others"):
            with fleet(conninfo, folder, 4) as group:
                found = _lost(conninfo, group.gateways, many)
            with serving(conninfo, folder) as server:
                beside = _lost(conninfo, [server], many)
            for name, value in zip(took, (*found, *beside), strict=True):
                took[name].append(value)
    what, reference = "clients of a lost gateway resume on three others", "as many of a lone server"
    yield Line(f"{what}: p99", "s", took["p99"], reference, took["p99 beside"])
    yield Line(f"{what}: the last", "s", took["last"], reference, took["last beside"])


def _lost(conninfo: str, servers: Sequence[Server], many: int) -> tuple[float, float]:
    """Have a quarter of the clients lose their connections, miss a change, and reconnect at once.

    Of several servers the first is killed; a lone one closes the connections. Return the 99th percentile of the times
    until they have resumed, and the longest, in seconds.
    """
    share = many // 4
    others = servers[1:] or servers
    with ExitStack() as stack:
        staying = _requests(others[0].url, range(share, many))
        stack.enter_context(uvloop.run(connect([server.url for server in others], staying)))
        with uvloop.run(connect(servers[0].url, _requests(servers[0].url, range(share)))) as leaving:
            ids = leaving.ids
            if len(servers) > 1:
                os.kill(servers[0].pid, signal.SIGKILL)
        change(conninfo)
        requests = _requests(others[0].url, range(share), ids)
        urls = [server.url for server in others]
        clients = stack.enter_context(uvloop.run(connect(urls, requests, until=MISSED, at_once=share)))
        return percentile_of(clients.took, 99.0), max(clients.took)


def _requests(url: str, users: range, ids: Sequence[str] | None = None) -> list[bytes]:
    """Return a handshake of each user, which resumes if there are ids."""
    found = ids or [""] * len(users)
    return [
        handshake(url, token(index), client=f"c{index}", last=last) for index, last in zip(users, found, strict=True)
    ]
