"""Random rights: on its channels, a client receives exactly the events about rows that it can SELECT.

Users, coaches and an admin are connected while rows, assignments, roles and an operator's policies change at random.
After each transaction the row is selected in PostgreSQL as each of them, without any code of the product.

python -m faults.rights                        500 deliveries, with a random seed
python -m faults.rights --deliveries 10000     more deliveries
python -m faults.rights --seed 7               the same run again
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from uuid import UUID

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo

from faults.clusters import Migrated
from faults.mutations import MUTATIONS
from faults.nemesis import Servers
from faults.policies import SHIPPED, VARIANTS, Caller, Oracle, Row
from faults.proxy import Proxy
from faults.subscribers import SECRET, Subscriber
from momentum_sync.database.embedded import short_folder
from momentum_sync.database.migrate import migrate

_USERS, _COACHES = 5, 3
_TYPES = ("check_in", "manual_outreach", "crisis_intervention")
_STATES = ("Rising", "Steady", "NeedsCare")
_MOST_IN_A_BATCH = 4

Sql = AsyncConnection[tuple[object, ...]]


@dataclass
class Verdict:
    """The result of one run. `wrong` is empty if everything was correct."""

    seed: int
    deliveries: int = 0
    withheld: int = 0
    wrong: list[str] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)


@dataclass
class Told:
    """An event expected after a write, and the callers that `may` and those that `must` receive it."""

    key: tuple[object, ...]
    channels: tuple[str, ...]
    row: Row | None  # looked at again, while it exists
    may: set[str]
    must: set[str]


class World:
    """Everything that is changed at random, and the events expected from it."""

    def __init__(
        self, connection: Sql, oracle: Oracle, subscribers: list[Subscriber], chance: Random, verdict: Verdict
    ) -> None:
        self._db = connection
        self._oracle = oracle
        self._ears = subscribers
        self._chance = chance
        self._verdict = verdict
        self._users = [ear.caller.subject for ear in subscribers if ear.caller.name.startswith("user")]
        self._coaches = [ear.caller.subject for ear in subscribers if ear.caller.name.startswith("coach")]
        self._number = 0
        self._fence = 0
        self._final = False
        self._switched: set[str] = set()
        self.changed: set[str] = set()
        self.told: list[Told] = []

    async def batch(self) -> None:
        """Make a few changes, and check that everybody received the expected events and no others."""
        self.told = []
        self._final = False
        self._switched = set()
        for ear in self._ears:
            ear.got.clear()
        held = {ear.caller.name: set(ear.held) for ear in self._ears}
        for _ in range(self._chance.choice((1, 1, 1, 2, 3, _MOST_IN_A_BATCH))):
            name, weight = zip(*_CHANGES, strict=True)
            change = self._chance.choices(name, weight)[0]
            final = await getattr(self, change)()
            self._verdict.done[change.replace("_", " ")] += 1
            await self._look_again()
            if final or self._final:
                break
            for ear in self._ears:
                held[ear.caller.name] |= ear.held
        await self._settle()
        await self._look_again()
        self._judge(held)

    async def _look_again(self) -> None:
        """Update the receivers: callers that see the version now are added to `may`, all others removed from `must`."""
        for told in self.told:
            if told.row is not None:
                seeing = await self._oracle.seeing(told.row)
                told.may |= seeing
                told.must &= seeing

    async def _settle(self) -> None:
        self._fence += 1
        for ear in self._ears:
            await self._db.execute(
                "select momentum.publish(array['notifications:' || %s], jsonb_build_object('event_type', 'fence',"
                " 'number', %s::int))",
                (str(ear.caller.subject), self._fence),
            )
        for ear in self._ears:
            await ear.until_fence(self._fence)

    def _judge(self, held_before: dict[str, set[str]]) -> None:
        by_key = {told.key: told for told in self.told}
        for ear in self._ears:
            name = ear.caller.name
            for key in ear.got:
                told = by_key.get(key)
                if told is None:
                    self._wrong(f"{name} was told {key}, which nobody wrote")
                elif name not in told.may:
                    self._wrong(f"LEAK: {name} ({ear.caller.role}) was told {key} and may not see it")
                elif not held_before[name] & set(told.channels):
                    self._wrong(f"{name} was told {key} without having a channel of it")
                else:
                    self._verdict.deliveries += 1
            for told in self.told:
                wanted = set(told.channels)
                count = ear.got.count(told.key)
                if count > 1:
                    self._wrong(f"{name} was told {told.key} {count} times")
                kept = ear.held & wanted & held_before[name]
                if name in told.must and kept - ear.fresh and not count:
                    self._wrong(f"LOSS: {name} ({ear.caller.role}) was not told {told.key} on {sorted(kept)}")
                if name not in told.may and held_before[name] & wanted:
                    self._verdict.withheld += 1
            ear.fresh.clear()

    def _wrong(self, sentence: str) -> None:
        self._verdict.wrong.append(f"{sentence} (changed policies: {sorted(self.changed)})")

    # Changes of rows. Each returns whether it must be the last of its batch: a deleted version cannot be looked at
    # again.

    async def write_score(self) -> bool:
        user, number = self._chance.choice(self._users), self._next()
        before = await self._oracle.score(user)
        saw = await self._oracle.seeing(before) if before else set()
        await self._db.execute(
            "insert into daily_engagement_scores as s (user_id, score_date, momentum_state, final_score)"
            " values (%(user)s, current_date, %(state)s, %(number)s / 100.0) on conflict (user_id, score_date)"
            " do update set momentum_state = excluded.momentum_state, final_score = excluded.final_score",
            {"user": user, "state": self._chance.choice(_STATES), "number": number % 10_000},
        )
        after = await self._oracle.score(user)
        assert after is not None
        channels = (f"momentum_updates:{user}", "momentum_updates:all")
        await self._tell(f"momentum_score_{'updated' if before else 'created'}", after, channels)
        return await self._tell_out_of_sight("momentum_score_deleted", before, after, saw, channels)

    async def delete_score(self) -> bool:
        user = self._chance.choice(self._users)
        row = await self._oracle.score(user)
        if row is None:
            return False
        saw = await self._oracle.seeing(row)
        await self._db.execute("delete from daily_engagement_scores where user_id = %s", (user,))
        self._tell_gone("momentum_score_deleted", row, (f"momentum_updates:{user}", "momentum_updates:all"), saw)
        return True

    async def write_intervention(self) -> bool:
        user = self._chance.choice(self._users)
        cursor = await self._db.execute(
            "insert into coach_interventions"
            " (user_id, intervention_type, trigger_date, trigger_reason, assigned_coach_id)"
            " values (%s, %s, current_date, %s, %s) returning id",
            (user, self._chance.choice(_TYPES), str(self._next()), self._chance.choice([*self._coaches, None])),
        )
        row = await self._oracle.intervention(await _only(cursor))
        await self._tell("intervention_created", row, (f"interventions:{row.user}", "interventions:coaches"))
        return False

    async def change_intervention(self) -> bool:
        before = await self._any_intervention()
        if before is None:
            return await self.write_intervention()
        saw = await self._oracle.seeing(before)
        what: tuple[str, object] = self._chance.choice(
            (
                ("assigned_coach_id", self._chance.choice([*self._coaches, None])),
                ("intervention_type", self._chance.choice(_TYPES)),
                ("status", self._chance.choice(("scheduled", "in_progress", "completed"))),
            )
        )
        await self._db.execute(
            f"update coach_interventions set {what[0]} = %s, trigger_reason = %s where id = %s".encode(),
            (what[1], str(self._next()), before.id),
        )
        after = await self._oracle.intervention(UUID(before.id))
        channels = (f"interventions:{after.user}", "interventions:coaches")
        await self._tell("intervention_updated", after, channels)
        return await self._tell_out_of_sight("intervention_deleted", before, after, saw, channels)

    async def delete_intervention(self) -> bool:
        row = await self._any_intervention()
        if row is None:
            return False
        saw = await self._oracle.seeing(row)
        await self._db.execute("delete from coach_interventions where id = %s", (row.id,))
        self._tell_gone("intervention_deleted", row, (f"interventions:{row.user}", "interventions:coaches"), saw)
        return True

    async def write_notification(self) -> bool:
        user = self._chance.choice(self._users)
        cursor = await self._db.execute(
            "insert into momentum_notifications (user_id, notification_type, trigger_date, title, message)"
            " values (%s, %s, current_date, %s, 'x') returning id",
            (user, self._chance.choice(("celebration", "momentum_drop")), str(self._next())),
        )
        row = await self._oracle.notification(await _only(cursor))
        await self._tell("push_notification", row, (f"notifications:{user}",))
        return False

    async def _any_intervention(self) -> Row | None:
        cursor = await self._db.execute("select id from coach_interventions order by random() limit 1")
        found = await cursor.fetchone()
        return None if found is None else await self._oracle.intervention(UUID(str(found[0])))

    async def _tell(self, kind: str, row: Row, channels: tuple[str, ...]) -> None:
        seeing = await self._oracle.seeing(row)
        for told in self.told:
            if told.row is not None and told.row.id == row.id:  # an earlier version
                told.row, self._final = None, True
                if row.table in self._switched:  # then the event carries no version, and this cannot be checked
                    told.must = set()
        self.told.append(Told((kind, False, *row.key), channels, row, set(seeing), set(seeing)))

    def _tell_gone(self, kind: str, row: Row, channels: tuple[str, ...], saw: set[str]) -> None:
        for told in self.told:
            if told.row is not None and told.row.id == row.id:
                told.row, told.must = None, set()
        self.told.append(Told((kind, False, *row.key), channels, None, set(saw), set(saw)))

    async def _tell_out_of_sight(
        self, kind: str, before: Row | None, after: Row, saw: set[str], channels: tuple[str, ...]
    ) -> bool:
        """Expect `out_of_sight` events, under changed policies, for callers that could see a row and cannot now."""
        if before is None or after.table not in self.changed:
            return False
        lost = saw - await self._oracle.seeing(after)
        self.told.append(Told((kind, True, *before.key), channels, None, lost, set(lost)))
        return True

    def _next(self) -> int:
        self._number += 1
        return self._number

    # Changes of grants

    async def change_policies(self) -> bool:
        table = self._chance.choice(sorted(VARIANTS))
        name = self._chance.choice(sorted(VARIANTS[table]))
        await self._oracle.set_policies(table, name)
        self._switched |= {table, "daily_engagement_scores"}  # which may change with the interventions
        (self.changed.discard if name == SHIPPED else self.changed.add)(table)
        return False

    async def change_buddies(self) -> bool:
        """Change a table of the operator's own, which a policy reads."""
        one, other = self._chance.sample(self._users, 2)
        if self._chance.random() < 0.5:
            await self._db.execute("insert into buddies values (%s, %s) on conflict do nothing", (one, other))
        else:
            await self._db.execute("delete from buddies where one = %s", (one,))
        return False

    async def change_role(self) -> bool:
        ear = self._chance.choice([ear for ear in self._ears if not ear.caller.name.startswith("user")])
        await ear.become(self._chance.choice(("coach", "admin", None)))
        return False

    async def change_channels(self) -> bool:
        ear = self._chance.choice(self._ears)
        channel = self._chance.choice(ear.wishes)
        if channel in ear.held:
            await ear.unsubscribe(channel)
            return False
        granted = await ear.subscribe(channel)
        allowed, due = await self._oracle.may_have(ear.caller, channel)
        if granted and not allowed:
            self._wrong(f"LEAK: {ear.caller.name} ({ear.caller.role}) was granted {channel}")
        if due and not granted:
            self._wrong(f"LOSS: {ear.caller.name} ({ear.caller.role}) was refused {channel}")
        return False

    async def come_back(self) -> bool:
        await self._chance.choice(self._ears).reconnect()
        return False


_CHANGES = (
    ("write_score", 8), ("write_intervention", 6), ("change_intervention", 12), ("write_notification", 4),
    ("delete_score", 1), ("delete_intervention", 3), ("change_policies", 3), ("change_buddies", 2), ("change_role", 2),
    ("change_channels", 6), ("come_back", 2),
)  # fmt: skip


async def _only(cursor: psycopg.AsyncCursor[tuple[object, ...]]) -> UUID:
    row = await cursor.fetchone()
    assert row is not None
    return UUID(str(row[0]))


def run(
    seed: int, deliveries: int, *, mutation: str | None = None, seconds: float = 3600.0, logs: Path | None = None
) -> Verdict:
    """Change at random until this many deliveries were checked, the time is over, or something is wrong.

    `logs` keeps the server's output.
    """
    return on_a_database(lambda conninfo, log: _run(seed, deliveries, seconds, conninfo, log, mutation), logs)


def on_a_database(work: Callable[[str, Path], Coroutine[None, None, Verdict]], logs: Path | None) -> Verdict:
    """Do work on a PostgreSQL of its own, with the two roles of SECURITY.md.

    Args:
        work: it gets the connection string, and the file to which servers log.
        logs: keeps that file.
    """
    with short_folder() as folder, Migrated(folder) as postgres:
        with psycopg.connect(postgres.conninfo, autocommit=True) as connection:
            connection.execute(
                "create role momentum_server login noinherit; create role momentum_capture login replication"
            )
        # For the role's privileges.
        migrate(postgres.conninfo, tell=lambda _: None, server_role="momentum_server")
        log = folder / "server.log"
        try:
            return asyncio.run(work(postgres.conninfo, log))
        finally:
            if logs is not None and log.exists():
                shutil.copy(log, logs)


async def _run(seed: int, deliveries: int, seconds: float, conninfo: str, log: Path, mutation: str | None) -> Verdict:
    chance = Random(seed)
    verdict = Verdict(seed)
    callers = [Caller(f"user {number}", _uuid(chance), None) for number in range(_USERS)]
    callers += [Caller(f"coach {number}", _uuid(chance), "coach") for number in range(_COACHES)]
    callers.append(Caller("admin", _uuid(chance), "admin"))
    proxy = Proxy()
    await proxy.start()
    servers = Servers(
        make_conninfo(conninfo, user="momentum_server"), SECRET, proxy, log, mutation,
        capture=make_conninfo(conninfo, user="momentum_capture"),
    )  # fmt: skip
    ends = time.monotonic() + seconds
    try:
        async with await AsyncConnection.connect(conninfo, autocommit=True) as connection:
            oracle = Oracle(connection, await AsyncConnection.connect(conninfo), callers)
            await oracle.prepare()
            await servers.until(await servers.start(), "live")
            subjects = [caller.subject for caller in callers[:_USERS]]
            subscribers = [Subscriber(caller, subjects, f"127.0.0.1:{proxy.port}") for caller in callers]
            for ear in subscribers:
                await ear.connect()
            world = World(connection, oracle, subscribers, chance, verdict)
            while verdict.deliveries < deliveries and time.monotonic() < ends and not verdict.wrong:
                await world.batch()
                for ear in subscribers:
                    verdict.wrong += ear.broken
            for ear in subscribers:
                await ear.close()
            await oracle.close()
    finally:
        await proxy.stop()
        for process in servers.processes.values():
            process.kill()
            await asyncio.to_thread(process.wait, 30)
    return verdict


def _uuid(chance: Random) -> UUID:
    return UUID(int=chance.getrandbits(128), version=4)


Run = Callable[..., Verdict]


def command(name: str, about: str | None, run: Run, *, deliveries: int) -> None:
    """Parse the command line and run. The exit status is 1 if anything was wrong.

    Args:
        name: the module.
        about: its description.
        run: runs with a seed, a number of deliveries, a mutation and a file for the server's output.
        deliveries: how many are checked by default.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, help="of the run; else the clock's")
    parser.add_argument("--deliveries", type=int, default=deliveries, help=f"how many are checked ({deliveries:,})")
    parser.add_argument("--mutation", choices=sorted(MUTATIONS), help="a server with this defect on purpose")
    parser.add_argument("--logs", type=Path, help="a file for what the server said")
    given = parser.parse_args()
    began = time.monotonic()
    seed = int(time.time()) if given.seed is None else given.seed
    verdict = run(seed, given.deliveries, mutation=given.mutation, logs=given.logs)
    print(
        f"seed {verdict.seed}: {verdict.deliveries:,} deliveries checked, {verdict.withheld:,} times a caller was"
        f" rightly told nothing, in {time.monotonic() - began:.0f} s:"
        f" {'as it must be' if not verdict.wrong else f'{len(verdict.wrong)} WRONG'}"
    )
    for change, count in verdict.done.most_common():
        print(f"  {count:6,}  {change}")
    for sentence in verdict.wrong[:20]:
        print(f"    {sentence}")
    raise SystemExit(1 if verdict.wrong else 0)


if __name__ == "__main__":
    command("faults.rights", __doc__, run, deliveries=500)
