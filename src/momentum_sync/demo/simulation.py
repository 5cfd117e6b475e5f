"""A small simulation for the demo: people with changing scores, and a coach.

Everything is plain SQL on the three tables, as an app would write it.
"""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass
from uuid import UUID, uuid5

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from momentum_sync import observe
from momentum_sync.database import queries

_SQL = queries.load(__package__)
_NAMESPACE = UUID("6f1d0c1e-6d6f-4d65-8e74-756d2d73796e")
_OPEN_INTERVENTIONS = 8
_DAYS = 29
_REASONS = (
    ("check_in", "Score fell three days in a row"),
    ("manual_outreach", "No journal entry for five days"),
    ("automated_call_schedule", "NeedsCare since the weekend"),
    ("celebration_call", "Two weeks of Rising"),
    ("escalation", "Two missed calls"),
)
_NOTIFICATIONS = {
    "Rising": ("celebration", "You are rising", "Your momentum has grown. Keep what works.", "view_momentum"),
    "Steady": ("consistency_reminder", "Steady as you go", "Five minutes of journal keep it so.", "journal_entry"),
    "NeedsCare": ("momentum_drop", "A lighter day", "Your coach is there if you want to talk.", "schedule_call"),
}


@dataclass(frozen=True, slots=True)
class Person:
    """Someone in the demo."""

    name: str
    is_coach: bool = False

    @property
    def id(self) -> UUID:
        """Return the person's id, which is the same in every run."""
        return uuid5(_NAMESPACE, self.name)


PEOPLE = tuple(Person(name) for name in ("Amara", "Ben", "Chiara", "Dmitri", "Elif", "Femi"))
COACH = Person("Noor", is_coach=True)


async def live(conninfo: str, *, pace: float, ready: asyncio.Event) -> None:
    """Create the people and change something every `pace` seconds, until cancelled. Waits for the database.

    Args:
        conninfo: the database.
        pace: seconds between changes.
        ready: set once the people are there.
    """
    chance = random.Random()
    while True:
        try:
            async with await AsyncConnection.connect(
                conninfo, autocommit=True, connect_timeout=5, application_name="momentum-sync demo"
            ) as connection:
                await _settle(connection, chance)
                ready.set()
                while True:
                    await _change(connection, chance)
                    await asyncio.sleep(pace)
        except psycopg.OperationalError as error:
            observe.demo_waits(error)
            await asyncio.sleep(1.0)


async def _settle(connection: AsyncConnection[TupleRow], chance: random.Random) -> None:
    await connection.execute(_SQL["names"])
    await connection.execute(_SQL["publish"])
    for person in (*PEOPLE, COACH):
        await connection.execute(_SQL["name"], {"id": person.id, "name": person.name})
        await connection.execute(
            _SQL["person"],
            {
                "id": person.id,
                "email": f"{person.name.lower()}@demo.invalid",
                "app_metadata": json.dumps({"role": "coach"} if person.is_coach else {}),
            },
        )
    for person in PEOPLE:
        await connection.execute(_SQL["past"], {"user_id": person.id, "scores": _past(person)})
        await _score(connection, person, chance)
        await _intervene(connection, person, chance)


async def _change(connection: AsyncConnection[TupleRow], chance: random.Random) -> None:
    person = chance.choice(PEOPLE)
    state = await _score(connection, person, chance)
    what = chance.random()
    if what < 0.15:
        kind, title, message, action = _NOTIFICATIONS[state]
        await connection.execute(
            _SQL["notification"],
            {
                "user_id": person.id,
                "notification_type": kind,
                "title": title,
                "message": message,
                "action_type": action,
            },
        )
    elif what < 0.30:
        await connection.execute(_SQL["advance_intervention"], {"coach_id": COACH.id})
    elif what < 0.50:
        row = await (await connection.execute(_SQL["open_interventions"])).fetchone()
        if row is not None and row[0] < _OPEN_INTERVENTIONS:
            await _intervene(connection, person, chance)
    elif what < 0.53:
        await connection.execute(_SQL["forget"])


def _past(person: Person) -> list[float]:
    """Yield a month of scores, yesterday's first, different for each person."""
    chance = random.Random(person.name)
    score, past = float(chance.randint(30, 80)), []
    for _ in range(_DAYS):
        score = min(98.0, max(5.0, score + chance.gauss(0, 6)))
        past.append(round(score, 1))
    return past


async def _score(connection: AsyncConnection[TupleRow], person: Person, chance: random.Random) -> str:
    parameters = {"user_id": person.id, "start": chance.randint(25, 80), "step": round(chance.gauss(0, 5), 1)}
    row = await (await connection.execute(_SQL["score"], parameters)).fetchone()
    return str(row[0]) if row is not None else "Steady"


async def _intervene(connection: AsyncConnection[TupleRow], person: Person, chance: random.Random) -> None:
    kind, reason = chance.choice(_REASONS)
    await connection.execute(
        _SQL["intervention"],
        {
            "user_id": person.id,
            "intervention_type": kind,
            "trigger_reason": reason,
            "coach_id": COACH.id,
            "in_days": chance.randint(0, 4),
        },
    )
