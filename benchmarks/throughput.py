"""Distinct events to distinct users, through capture, log and gateway on one core, as fast as possible.

The events are committed while the server is stopped, so that only reading them is measured; then it continues, and the
clock runs until every user has its last event and the log has all of them. Beside it `pg_recvlogical` drains the same
WAL to /dev/null, on the same core.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import uvloop
from psycopg.conninfo import conninfo_to_dict

from benchmarks.environment import Server, environment, programs, serving, token
from benchmarks.load_clients import LoadClients, connect, handshake
from benchmarks.machine import SERVER_CORES, cpu_seconds, prepare_process
from benchmarks.report import Bench, Line

USERS = 1000
EVENTS = 50  # for each user, one in each transaction
SLOT = "drained"
LOG_TIMEOUT_S = 120.0
REST_S = 0.005


def measure(bench: Bench) -> Iterator[Line]:
    """Measure with 1,000 users connected."""
    prepare_process()
    (users,) = bench.sizes(USERS)
    with environment(users) as (conninfo, folder), psycopg.connect(conninfo, autocommit=True) as writer:
        writer.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (SLOT,))
        ours, beside, spent = [], [], []
        with serving(conninfo, folder) as server:
            requests = [handshake(server.url, token(index)) for index in range(users)]
            with uvloop.run(connect(server.url, requests)) as clients:
                for number in bench.rounds(f"{EVENTS * users:,} events to {users:,} users"):
                    rate, cpu = run(writer, server, clients, number)
                    ours.append(rate)
                    spent.append(cpu)
                    beside.append(drain(conninfo, folder, EVENTS * users))
    yield Line("events through capture, log and gateway", "events/s", ours, "pg_recvlogical", beside)
    yield Line("events, of the server's core alone", "events/s", spent, least=30_000)


def run(writer: psycopg.Connection, server: Server, clients: LoadClients, number: int) -> tuple[float, float]:
    """Return events per second of wall-clock time, and of the server's CPU time."""
    total = EVENTS * len(clients)
    (before,) = writer.execute("select last_number from momentum.stream").fetchone() or (0,)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        for transaction in range(EVENTS):
            mark = f"end {number:06}" if transaction == EVENTS - 1 else "on the way"
            writer.execute(
                "select momentum.emit('[\"momentum_updates:' || s.user_id || '\"]', json_build_object("
                "'event_type', 'momentum_score_updated', 'user_id', s.user_id, 'score_date', s.score_date,"
                "'momentum_state', s.momentum_state, 'final_score', s.final_score, 'previous_state', s.momentum_state,"
                "'state_changed', false, 'mark', %s::text)::text) from public.daily_engagement_scores s",
                (mark,),
            )
        spent, began = cpu_seconds(server.pid), time.monotonic()
    finally:
        os.kill(server.pid, signal.SIGCONT)
    clients.until_all(f"end {number:06}".encode(), rest=REST_S)
    while True:
        (logged,) = writer.execute("select last_number from momentum.stream").fetchone() or (0,)
        if logged - before >= total:
            break
        if time.monotonic() - began > LOG_TIMEOUT_S:
            raise SystemExit("The log did not get all events.")
        time.sleep(0.005)
    return total / (time.monotonic() - began), total / (cpu_seconds(server.pid) - spent)


def drain(conninfo: str, folder: Path, total: int) -> float:
    """Return events per second of a bare reader of the same WAL, up to its present end."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        (end,) = connection.execute("select pg_current_wal_lsn()::text").fetchone() or ("",)
        given = conninfo_to_dict(conninfo)
        began = time.monotonic()
        subprocess.run(
            ["taskset", "-c", ",".join(map(str, SERVER_CORES)), programs() / "pg_recvlogical",
             "-h", str(given["host"]), "-U", str(given["user"]), "-d", str(given["dbname"]), "--slot", SLOT, "--start",
             "--no-loop", "--endpos", end, "-o", "proto_version=1", "-o", "publication_names=momentum_sync",
             "-o", "messages=true", "-f", "/dev/null"],
            check=True,
        )  # fmt: skip
        return total / (time.monotonic() - began)
