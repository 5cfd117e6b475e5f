"""An independent record of the committed changes, in order.

PostgreSQL's `test_decoding` prints the changes of rows on a slot of its own; the expected events are derived here from
the contract, section 1. The product's triggers and decoder are not used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime

import psycopg

from faults.checker import Branch, Change

SLOT = "faults_witness"
_TABLE = re.compile(r"table public\.(\w+): (INSERT|UPDATE|DELETE): (.*)", re.DOTALL)
_TRUNCATED = re.compile(r"table (.*): TRUNCATE: .*")
_KINDS = {
    "daily_engagement_scores": "score", "coach_interventions": "intervention", "momentum_notifications": "notification",
}  # fmt: skip
_COLUMN = re.compile(r"(\w+)\[[^\]]+\]:('(?:[^']|'')*'|\S+)")
_COMMITTED = re.compile(r"COMMIT \d+ \(at (.+)\)")
_USER_FACING = ("momentum_drop", "needs_care_consecutive", "celebration", "consistency_reminder")
_DONE = {"INSERT": "created", "UPDATE": "updated", "DELETE": "deleted"}

Row = dict[str, str | None]


class Witness:
    """A record of the committed changes.

    Histories that were cut off, by a restored copy, a failover or a TRUNCATE, are kept separately.

    Args:
        conninfo: the database.
        events: returns the events of a change, from its table, operation and columns.
        emptied: kinds of rows that a TRUNCATE of a table removes. A table that is not in it must not be emptied.
    """

    def __init__(
        self,
        conninfo: str,
        events: Callable[[str, str, str], Iterator[Change]] | None = None,
        emptied: Mapping[str, str] = _KINDS,
    ) -> None:
        self._conninfo = conninfo
        self._events = events or _events
        self._emptied = emptied
        self._before: list[Change] = []
        self._cut_off: list[list[Change]] = []

    def begin(self) -> None:
        """Record everything from now on."""
        with psycopg.connect(self._conninfo, autocommit=True) as connection:
            connection.execute("select pg_create_logical_replication_slot(%s, 'test_decoding')", (SLOT,))

    def tell(self) -> list[list[Change]]:
        """Return every branch of history in commit order; the current branch comes last."""
        return [*self._cut_off, *self._peek()]

    def cut_off(self) -> None:
        """Note that the database is about to be taken back to an earlier point, with the slot."""
        self._cut_off += self._peek()

    def follow(self, conninfo: str, upto: str) -> None:
        """Note that another cluster takes over, with everything committed below `upto`, without the slot."""
        before = self._peek(upto)[-1]
        self.cut_off()
        self._before, self._conninfo = before, conninfo
        self.begin()

    def _peek(self, upto: str | None = None) -> list[list[Change]]:
        changes = list(self._before)
        ended: list[list[Change]] = []
        transaction: list[Change | str] = []
        with psycopg.connect(self._conninfo, autocommit=True) as connection:
            rows = connection.execute(
                "select data from pg_logical_slot_peek_changes(%s, %s, null, 'include-timestamp', '1')", (SLOT, upto)
            )
            for (line,) in rows:
                committed = _COMMITTED.fullmatch(line)
                if committed:
                    at = datetime.fromisoformat(committed[1]).timestamp()
                    for change in transaction:
                        if isinstance(change, Change):
                            changes.append(replace(change, at=at))
                        else:  # a TRUNCATE removed the rows of this table only
                            branch = Branch(changes)
                            branch.emptied = change
                            ended.append(branch)
                            changes = [one for one in changes if one.row[0] != change]
                    transaction = []
                elif found := _TABLE.fullmatch(line):
                    transaction += self._events(found[1], found[2], found[3])
                elif found := _TRUNCATED.fullmatch(line):
                    names = re.findall(r"public\.(\w+)", found[1])
                    transaction += [self._emptied[name] for name in names if name in self._emptied]
        return [*ended, changes]


def versions(operation: str, columns: str) -> tuple[Row, Row]:
    """Return the old row of an UPDATE, and the new row or that of a DELETE."""
    old: Row = {}
    if operation == "UPDATE":
        before, columns = columns.split(" new-tuple: ")
        old = _row(before)
    return old, _row(columns)


def _events(table: str, operation: str, columns: str) -> Iterator[Change]:
    old, new = versions(operation, columns)
    if table == "daily_engagement_scores":
        yield _score(operation, old, new)
    elif table == "coach_interventions":
        yield _intervention(operation, old, new)
    elif table == "momentum_notifications" and new["notification_type"] in _USER_FACING:
        yield _notification(operation, new)


def _score(operation: str, old: Row, new: Row) -> Change:
    user = str(new["user_id"])
    state, score = str(new["momentum_state"]), f"{float(str(new['final_score'])):.2f}"
    what = (f"momentum_score_{_DONE[operation]}", user, new["score_date"], state, score, old.get("momentum_state"))
    channels = frozenset({f"momentum_updates:{user}", "momentum_updates:all"})
    return Change(what, user, channels, ("score", user), None if operation == "DELETE" else (state, score), 0.0)


def _intervention(operation: str, old: Row, new: Row) -> Change:
    user, status = str(new["user_id"]), str(new["status"])
    what = (f"intervention_{_DONE[operation]}", user, new["id"], new["trigger_reason"], status, old.get("status"))
    shown = operation != "DELETE" and status in ("scheduled", "in_progress")
    return Change(
        what, user, frozenset({f"interventions:{user}", "interventions:coaches"}), ("intervention", str(new["id"])),
        (str(new["trigger_reason"]), status) if shown else None, 0.0,
    )  # fmt: skip


def _notification(operation: str, new: Row) -> Change:
    user, status, title = str(new["user_id"]), str(new["status"]), str(new["title"])
    if operation == "DELETE":
        return Change(
            ("notification_removed", user, new["id"], None, None), user, frozenset({f"notifications:{user}"}),
            ("notification", str(new["id"])), None, 0.0,
        )  # fmt: skip
    shown = status in ("pending", "sent", "delivered")
    return Change(
        ("push_notification", user, new["id"], title, status), user, frozenset({f"notifications:{user}"}),
        ("notification", str(new["id"])), (title, status) if shown else None, 0.0,
    )  # fmt: skip


def _row(text: str) -> Row:
    return {
        name: None if value == "null" else value[1:-1].replace("''", "'") if value.startswith("'") else value
        for name, value in _COLUMN.findall(text)
    }
