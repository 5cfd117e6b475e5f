"""Writers: random transactions on the rows of a few users, until stopped."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

import psycopg
from psycopg import Connection

_STATES = ("Rising", "Steady", "NeedsCare")
_PAUSE_S = 0.01
_STOP_S = 60.0
_MOST_UNREAD = 60  # a snapshot shows at most 200

ROW_TABLES = ("fault_rows", "fault_shared_rows")

Sql = Connection[tuple[object, ...]]
_numbers = itertools.count(1)


class Writers:
    """Threads that write. `committed` counts transactions; `stop` ends them and waits."""

    def __init__(self, conninfo: str, users: list[str], day: str, seed: int, count: int) -> None:
        self.conninfo = conninfo
        self._users = users
        self._day = day
        self._stopped = threading.Event()
        self._pauses = threading.Lock()
        self._busy = 0
        self._idle = threading.Condition(self._pauses)
        self._paused = False
        self._scores = itertools.count(1)
        self.committed = 0
        self._threads = [
            threading.Thread(target=self._write, args=(Random(f"{seed}-writer-{number}"),), daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def _number(self) -> int:
        """Return a score in hundredths that differs from all earlier ones, so that each event can be identified."""
        return next(self._scores) % 10_000

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop writing, with no transaction open, until the block ends."""
        with self._idle:
            self._paused = True
            self._idle.wait_for(lambda: self._busy == 0)
        try:
            yield
        finally:
            with self._idle:
                self._paused = False
                self._idle.notify_all()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._idle:
            self._idle.wait_for(lambda: not self._paused or self._stopped.is_set())
            self._busy += 1
        try:
            yield
        finally:
            with self._idle:
                self._busy -= 1
                self._idle.notify_all()

    def stop(self) -> None:
        """Stop writing. Raise RuntimeError if a writer does not return from PostgreSQL."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(_STOP_S)
            if thread.is_alive():
                raise RuntimeError(f"a writer waits for PostgreSQL for more than {_STOP_S:g} s")

    def _write(self, chance: Random) -> None:
        while not self._stopped.is_set():
            try:
                with psycopg.connect(self.conninfo, autocommit=True, connect_timeout=5) as connection:
                    while not self._stopped.wait(chance.random() * _PAUSE_S * 2):
                        with self._turn():
                            self._transaction(connection, chance)
            # On a lost connection, `transaction` lets a Rollback through. The witness knows whether it committed.
            except (psycopg.Error, psycopg.Rollback):
                self._stopped.wait(0.2)

    def _transaction(self, connection: Sql, chance: Random) -> None:
        kind = chance.choices(
            ("one", "several", "many", "rolled back", "savepoint", "long"), (50, 20, 8, 8, 8, 6)
        )[0]  # fmt: skip
        try:
            with connection.transaction():
                if kind == "many":
                    self._many(connection, chance)
                for _ in range(1 if kind == "one" else chance.randint(1, 4)):
                    self._step(connection, chance)
                if kind == "savepoint":
                    with connection.transaction():
                        self._step(connection, chance)
                        raise psycopg.Rollback
                if kind == "long":
                    self._stopped.wait(chance.uniform(0.1, 1.5))
                    self._step(connection, chance)
                if kind == "rolled back":
                    raise psycopg.Rollback
        except (psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation):
            return
        self.committed += 1

    def _many(self, connection: Sql, chance: Random) -> None:
        users = sorted(chance.sample(self._users, 3))
        connection.execute(
            "update daily_engagement_scores s set final_score = n.number / 100.0, momentum_state = %s"
            " from unnest(%s::uuid[], %s::int[]) as n (user_id, number) where s.user_id = n.user_id",
            (chance.choice(_STATES), users, [self._number() for _ in users]),
        )

    def _step(self, connection: Sql, chance: Random) -> None:
        user = chance.choice(self._users)
        steps: tuple[Callable[[Sql, Random, str], None], ...] = (self._score, self._notification, self._intervention)
        chance.choices(steps, (5, 4, 3))[0](connection, chance, user)

    def _score(self, connection: Sql, chance: Random, user: str) -> None:
        if chance.random() < 0.05:
            connection.execute("delete from daily_engagement_scores where user_id = %s", (user,))
            return
        connection.execute(
            "insert into daily_engagement_scores as s (user_id, score_date, momentum_state, final_score)"
            " values (%(user)s, %(day)s, %(state)s, %(number)s / 100.0)"
            " on conflict (user_id, score_date) do update"
            " set momentum_state = excluded.momentum_state, final_score = excluded.final_score",
            {"user": user, "day": self._day, "state": chance.choice(_STATES), "number": self._number()},
        )

    def _notification(self, connection: Sql, chance: Random, user: str) -> None:
        row = connection.execute(
            "select count(*) from momentum_notifications where user_id = %s and status = 'sent'", (user,)
        ).fetchone()
        assert row is not None
        if chance.random() < 0.3 or int(str(row[0])) > _MOST_UNREAD:
            connection.execute(
                "update momentum_notifications set status = 'opened', opened_at = now() where id in ("
                " select id from momentum_notifications where user_id = %s and status = 'sent' limit %s"
                " for update skip locked)",
                (user, chance.randint(1, 3)),
            )
            return
        if chance.random() < 0.15:
            connection.execute(
                "delete from momentum_notifications where id in ("
                " select id from momentum_notifications where user_id = %s limit 1 for update skip locked)",
                (user,),
            )
            return
        kind = chance.choice(("celebration", "momentum_drop", "custom"))
        connection.execute(
            "insert into momentum_notifications (user_id, notification_type, trigger_date, title, message, status)"
            " values (%s, %s, %s, %s, 'it''s so: [x] 🏃', 'sent')",
            (user, kind, self._day, f"number {next(_numbers)}"),
        )

    def _intervention(self, connection: Sql, chance: Random, user: str) -> None:
        choice = chance.random()
        newest = "(select id from coach_interventions where user_id = %s order by random() limit 1)"
        if choice < 0.15:
            connection.execute(f"delete from coach_interventions where id = {newest}".encode(), (user,))
        elif choice < 0.5:
            connection.execute(
                "update coach_interventions set status = case status when 'scheduled' then 'in_progress'"
                f" else 'completed' end where status <> 'completed' and id = {newest}".encode(),
                (user,),
            )
        else:
            connection.execute(
                "insert into coach_interventions (user_id, intervention_type, trigger_date, trigger_reason,"
                " scheduled_date) values (%s, 'check_in', %s, %s, %s)",
                (user, self._day, f"number {next(_numbers)}", self._day),
            )


class RowWriters(Writers):
    """Threads that write to two published tables: `fault_rows`, and `fault_shared_rows`, whose policy asks a table.

    Every version of a row has a number of its own. At times a row gets another owner.
    """

    def _many(self, connection: Sql, chance: Random) -> None:
        for _ in range(chance.randint(5, 40)):
            self._insert(connection, chance, chance.choice(ROW_TABLES))

    def _step(self, connection: Sql, chance: Random) -> None:
        table = chance.choice(ROW_TABLES)
        one = f"(select id from {table} order by random() limit 1 for update skip locked)"
        match chance.choices(("insert", "update", "move", "delete"), (5, 4, 1, 2))[0]:
            case "insert":
                self._insert(connection, chance, table)
            case "update":
                connection.execute(f"update {table} set number = %s where id = {one}".encode(), (next(_numbers),))
            case "move":
                connection.execute(
                    f"update {table} set number = %s, owner = %s where id = {one}".encode(),
                    (next(_numbers), chance.choice(self._users)),
                )
            case _:
                connection.execute(f"delete from {table} where id = {one}".encode())

    def _insert(self, connection: Sql, chance: Random, table: str) -> None:
        connection.execute(
            f"insert into {table} (owner, number, note) values (%s, %s, %s)".encode(),
            (chance.choice(self._users), next(_numbers), "so 🏃" * chance.choice((1, 1, 1, 500))),
        )

    def mark(self) -> None:
        """Write a last row of each owner to each table."""
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            for table in ROW_TABLES:
                for user in self._users:
                    connection.execute(
                        f"insert into {table} (owner, number, note) values (%s, %s, 'last')".encode(),
                        (user, next(_numbers)),
                    )
