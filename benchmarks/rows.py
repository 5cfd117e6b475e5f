"""Changes of rows to clients of Supabase's protocol, under row level security, as fast as possible.

The rows are committed while the server is stopped, so that only reading them is measured; then it continues, and the
clock runs until every client has its last change.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import psycopg
import uvloop

from benchmarks.environment import Server, environment, serving
from benchmarks.load_clients import LoadClients, connect, row_join, row_request
from benchmarks.machine import cpu_seconds, prepare_process, resident
from benchmarks.report import Bench, Line

CLIENTS, MANY = 500, 10_000
CHANGES = 20_000
ASKED, ASKED_OF_ALL = 5_000, 50
REST_S = 0.005
POLICIES = {
    "own": "auth.uid() = user_id",
    "assigned": "exists (select from public.row_teams t where t.user_id = rows.user_id and t.coach_id = auth.uid())",
    "open": "true",
}
_INSERT = (
    "insert into public.rows (user_id, value, at)"
    " select ('00000000-0000-4000-8000-' || lpad(to_hex((%s + n) %% %s), 12, '0'))::uuid, %s, now()"
    " from generate_series(0, %s - 1) n"
)
TABLE = """
create table public.rows (id bigint generated always as identity primary key, user_id uuid, value text, at timestamptz);
create table public.row_teams (coach_id uuid, user_id uuid, primary key (coach_id, user_id));
insert into public.row_teams select id, id from auth.users;
alter table public.rows enable row level security;
create policy rights on public.rows for select to authenticated using (true);
grant select on public.rows, public.row_teams to authenticated;
alter publication supabase_realtime add table public.rows;
analyze public.row_teams;
"""


def measure(bench: Bench) -> Iterator[Line]:
    """Measure policies that are compiled and policies that are checked, to few and to many clients."""
    prepare_process()
    (few,) = bench.sizes(CLIENTS)
    many = few if bench.quick else MANY
    with environment(many) as (conninfo, folder), psycopg.connect(conninfo, autocommit=True) as writer:
        create_table(writer)
        with serving(conninfo, folder) as server:
            rates = {
                clients: run(bench, writer, server, "own", clients, filtered=False, changes=CHANGES)
                for clients in dict.fromkeys((few, many))
            }
            yield Line(f"changes under RLS, own rows, {few:,} clients", "changes/s", rates[few], least=10_000)
            if many != few:
                yield Line(
                    f"the same with {many:,} clients",
                    "changes/s",
                    rates[many],
                    f"{few:,} clients",
                    rates[few],
                    least=0.8,
                )
            asked = run(bench, writer, server, "assigned", few, filtered=True, changes=ASKED)
            yield Line("the same, policy checked per event, eq filter", "changes/s", asked, least=2_000)
            every = run(bench, writer, server, "assigned", few, filtered=False, changes=ASKED_OF_ALL)
            yield Line(f"the same without filters, {few:,} checks a change", "changes/s", every, least=100)
        with serving(conninfo, folder) as server:
            uvloop.run(connected(server, 20, filtered=False)).close()  # allocated once, not per client
            before = resident(server.pid)
            with uvloop.run(connected(server, min(many, 5_000), filtered=False)) as clients:
                kilobytes = (resident(server.pid) - before) / len(clients) / 1000
        yield Line("memory a connection with one topic", "kB", [kilobytes], most=14)


def create_table(writer: psycopg.Connection) -> None:
    """Create the tables, as in an app that has been used for a while."""
    for statement in TABLE.strip().split(";\n"):
        writer.execute(statement.encode())


def run(
    bench: Bench, writer: psycopg.Connection, server: Server, policy: str, clients: int, *, filtered: bool, changes: int
) -> list[float]:
    """Return changes per second, of each round."""
    changes = max(clients, changes // clients * clients) if changes >= clients else changes
    writer.execute(f"alter policy rights on public.rows using ({POLICIES[policy]})".encode())
    rates = []
    with uvloop.run(connected(server, clients, filtered=filtered)) as sockets:
        for number in bench.rounds(f"{changes:,} changes, policy `{policy}`, to {clients:,} clients"):
            mark = f"end {number:06} {policy} {filtered} {clients}"
            os.kill(server.pid, signal.SIGSTOP)
            try:
                for start in range(0, changes, 1_000):
                    writer.execute(_INSERT, (start, clients, "on the way", min(1_000, changes - start)))
                writer.execute(_INSERT, (0, clients, mark, clients))
                began, spent = time.monotonic(), cpu_seconds(server.pid)
            finally:
                os.kill(server.pid, signal.SIGCONT)
            sockets.until_all(mark.encode(), rest=REST_S, timeout=300.0)
            rates.append((changes + clients) / (time.monotonic() - began))
            bench.tell(f"{(cpu_seconds(server.pid) - spent) / (changes + clients) * 1e6:.0f} µs of the core a change")
    return rates


async def connected(server: Server, clients: int, *, filtered: bool) -> LoadClients:
    """Open sockets that have joined one topic each."""
    requests = [row_request(server.url, index) for index in range(clients)]
    joins = [row_join(index, filtered=filtered) for index in range(clients)]
    return await connect(server.url, requests, until=(b"Subscribed to PostgreSQL", 1), first=joins)
