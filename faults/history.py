"""One history: a seed in, a verdict out."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from uuid import UUID

import psycopg

from faults.checker import Change, Client, Rows, adds_up, check_branches, expected
from faults.clients import Walker
from faults.clusters import Migrated
from faults.database import SERVER, Database, clock_environment, clock_of_children
from faults.fleet import Fleet, nemesis_of
from faults.nemesis import Servers
from faults.proxy import Proxy
from faults.witness import Witness
from faults.workload import Writers
from momentum_sync.database.embedded import Embedded, short_folder

SECRET = "a-secret-for-the-faults-with-more-than-32-bytes"
_USERS = 5
_DEVICES = 2
_SETTLED_S = 60.0


@dataclass
class Verdict:
    """The result of one history. `wrong` is empty if everything was correct.

    With Supabase's clients, `connects` are joins, `resyncs` gaps that were told; `doubled` are changes that came again,
    the `oldest` of them that many seconds after its first arrival. `log` is the file with the output of the servers and
    the traces of wrong clients; it is kept for a history that is wrong.
    """

    seed: int
    wrong: list[str] = field(default_factory=list)
    transactions: int = 0
    events: int = 0
    received: int = 0
    connects: int = 0
    resumes: int = 0
    resyncs: int = 0
    doubled: int = 0
    oldest: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    log: Path | None = None

    def keep_log(self, written: Path, asked: Path | None, *, broken_on_purpose: bool) -> None:
        """Copy the log that was `written` to the file `asked` for, or, if the history is wrong, to one of its own."""
        if asked is None and self.wrong and not broken_on_purpose:
            asked = Path(tempfile.gettempdir()) / f"momentum-faults-{self.seed}.log"
        if asked is not None:
            shutil.copy(written, asked)
            self.log = asked

    def advice(self, command: str) -> str:
        """Return an assertion's message about a history that is wrong."""
        return f"again: script/faults {command}--seed {self.seed}; its servers and clients: {self.log}"


def run(
    seed: int, seconds: float, *, mutation: str | None = None, only: list[str] | None = None, logs: Path | None = None,
    settle: float = _SETTLED_S, gateways: bool = False,
) -> Verdict:  # fmt: skip
    """Run one history of this many seconds, on a PostgreSQL of its own.

    `only` names the faults to inject, `settle` is the time that clients may need at the end in seconds, `logs` keeps
    the servers' output, `gateways` has two captures and three gateways in place of one server.
    """
    with short_folder() as folder, clock_of_children(folder), Migrated(folder) as postgres:
        with psycopg.connect(postgres.conninfo, autocommit=True) as connection:
            connection.execute(f"create role {SERVER} superuser login")
        verdict = asyncio.run(_run(seed, seconds, postgres, folder, mutation, only, settle, gateways=gateways))
        verdict.keep_log(folder / "servers.log", logs, broken_on_purpose=mutation is not None)
        return verdict


async def _run(
    seed: int,
    seconds: float,
    postgres: Embedded,
    folder: Path,
    mutation: str | None,
    only: list[str] | None,
    settle: float,
    *,
    gateways: bool,
) -> Verdict:
    chance = Random(seed)
    users, day = _prepare(postgres.conninfo, chance)
    database = Database(postgres, folder, Witness(postgres.conninfo))
    database.witness.begin()
    proxy = Proxy(spread=Random(seed) if gateways else None)
    await proxy.start()
    await database.proxy.start()
    servers = (Fleet if gateways else Servers)(
        database.servers_conninfo, SECRET, proxy, folder / "servers.log", mutation,
        environment=clock_environment(folder, "server"),
    )  # fmt: skip
    nemesis = nemesis_of(servers, database, proxy, chance)
    walkers = [
        Walker(client, role, f"127.0.0.1:{proxy.port}", SECRET, seed) for client, role in _clients(users)
    ]  # fmt: skip
    tasks: list[asyncio.Task[None]] = []
    stuck: list[str] = []
    branches: list[list[Change]] = [[]]
    late: list[str] = []
    servers.ready = min(servers.ready, settle * 6)
    try:
        await servers.start_all(folder)
        tasks = [asyncio.create_task(walker.live()) for walker in walkers]
        writers = database.writers = Writers(postgres.conninfo, users[:_USERS], day, seed, count=4)
        try:
            await nemesis.rage(seconds, only)
            await servers.until(servers.serving, "live")
        except TimeoutError:
            stuck.append(f"the server did not become live again; it had been through {dict(nemesis.faults)}")
            servers.ask()
            with (folder / "servers.log").open("a") as log:
                print(*await asyncio.to_thread(_activity, postgres.conninfo), sep="\n", file=log)
        finally:
            await asyncio.to_thread(writers.stop)
        for walker in walkers:
            walker.calm_down()
            walker.client.unversioned_until = (
                float("inf")
                if nemesis.faults["slow policy"] and nemesis.faults["clock of the database stepped"]
                else nemesis.policies_changed_at
            )
        branches = await asyncio.to_thread(database.witness.tell)
        late = await _until_settled([walker.client for walker in walkers], branches, 0.0 if stuck else settle)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await proxy.stop()
        await servers.stop()
        await database.proxy.stop()
    wrong = stuck + late + _judge(folder / "servers.log", database.conninfo, walkers, branches)
    if wrong:
        with (folder / "servers.log").open("a") as log:
            print(*await asyncio.to_thread(_events, database.conninfo), sep="\n", file=log)
    await asyncio.to_thread(database.close)
    for task in tasks:
        if not task.cancelled() and task.exception() is not None:
            wrong.append(f"a client broke: {task.exception()!r}")
    return Verdict(
        seed=seed, wrong=wrong, transactions=writers.committed, events=sum(map(len, branches)),
        received=sum(len(walker.client.record) for walker in walkers),
        connects=sum(walker.connects for walker in walkers), resumes=sum(walker.resumes for walker in walkers),
        resyncs=sum(walker.resyncs for walker in walkers), faults=dict(nemesis.faults),
    )  # fmt: skip


def _activity(conninfo: str) -> list[str]:
    """Return the activity of PostgreSQL, in which a server that is stuck finds the process that it waits for."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        return [
            text
            for query in (
                "select to_jsonb(a)::text from pg_stat_activity a where pid <> pg_backend_pid() order by xact_start",
                "select to_jsonb(l)::text from pg_locks l where not granted",
                "select to_jsonb(s)::text from pg_replication_slots s",
                "select to_jsonb(p)::text from pg_prepared_xacts p",
            )
            for (text,) in connection.execute(query).fetchall()
        ]


def _events(conninfo: str) -> list[str]:
    """Return the log's events."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        found = connection.execute(
            "select format('log: %s xid %s lsn %s at %s: %s', number, xid, commit_lsn, committed_at, event)"
            " from momentum.event_log order by number"
        ).fetchall()
        return [text for (text,) in found]


def _prepare(conninfo: str, chance: Random) -> tuple[list[str], str]:
    """Return users (the last two are a coach and an admin), and the day of all rows."""
    users = [str(UUID(int=chance.getrandbits(128), version=4)) for _ in range(_USERS + 2)]
    with psycopg.connect(conninfo, autocommit=True) as connection:
        for user in users:
            connection.execute("insert into auth.users (id) values (%s)", (user,))
        # Earlier than any day to which the database's clock is set back.
        row = connection.execute("select (current_date - 5)::text").fetchone()
    assert row is not None
    return users, str(row[0])


def _clients(users: Sequence[str]) -> list[tuple[Client, str | None]]:
    found: list[tuple[Client, str | None]] = []
    for number, user in enumerate(users[:_USERS]):
        channels = frozenset(f"{kind}:{user}" for kind in ("momentum_updates", "interventions", "notifications"))
        found += [(Client(f"user {number}.{device}", user, channels, True), None) for device in range(_DEVICES)]
    coach, admin = users[_USERS:]
    found.append((Client("coach", coach, frozenset({"interventions:coaches"}), False), "coach"))
    both = frozenset({"momentum_updates:all", "interventions:coaches"})
    found.append((Client("admin", admin, both, False), "admin"))
    return found


async def _until_settled(clients: Sequence[Client], branches: Sequence[Sequence[Change]], settle: float) -> list[str]:
    """Wait until the record of every client is complete. Return an error for each one that is late."""
    waiting = list(clients)
    ends = time.monotonic() + settle
    while waiting and time.monotonic() < ends:
        waiting = [client for client in waiting if check_branches(client, branches)]
        await asyncio.sleep(0.3)
    return [f"{client.name}: it did not settle" for client in waiting]


def _judge(log: Path, conninfo: str, walkers: Sequence[Walker], branches: Sequence[Sequence[Change]]) -> list[str]:
    wrong: list[str] = []
    for walker in walkers:
        client = walker.client
        found = walker.broken + check_branches(client, branches)
        if found:
            wrong += found
            with log.open("a") as file:
                print(*walker.trace, sep="\n", file=file)
                for change in expected(client, branches[-1]):
                    print(f"{change.at:.3f} {client.name} was to get {change.what}", file=file)
        if not client.sees_rows:
            continue
        if not adds_up(client, expected(client, branches[-1]), _select(conninfo, client.user)):
            wrong.append(f"{client.name}: snapshot and events do not add up to the tables")
    return wrong


def _select(conninfo: str, user: str) -> Rows:
    """Return the rows that the user may SELECT, in the form of a snapshot."""
    rows: dict[tuple[str, str], tuple[str, ...]] = {}
    with psycopg.connect(conninfo) as connection:
        connection.execute(
            "select set_config('role', 'authenticated', true), set_config('request.jwt.claims', %s, true)",
            (json.dumps({"sub": user, "role": "authenticated"}),),
        )
        for name, *shown in connection.execute(
            "select user_id::text, momentum_state, final_score::text from daily_engagement_scores"
        ):
            rows["score", name] = tuple(shown)
        for name, *shown in connection.execute(
            "select id::text, trigger_reason, status from coach_interventions"
            " where status in ('scheduled', 'in_progress')"
        ):
            rows["intervention", name] = tuple(shown)
        for name, *shown in connection.execute(
            "select id::text, title, status from momentum_notifications"
            " where status in ('pending', 'sent', 'delivered') and notification_type <> 'custom'"
        ):
            rows["notification", name] = tuple(shown)
    return rows
