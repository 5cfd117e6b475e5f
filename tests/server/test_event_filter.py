"""Delivered events are those about rows that the caller could SELECT, also under changed policies."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import psycopg
import pytest

from momentum_sync.database.embedded import Embedded
from momentum_sync.database.pool import CallerPool
from momentum_sync.identity.event_filter import EventFilter
from momentum_sync.identity.tokens import Identity
from momentum_sync.limits import QueryLimits
from tests.fixtures.cluster import hold_commits, release_commits
from tests.fixtures.postgres import Sql, add_intervention, add_notification, add_score, new_user
from tests.fixtures.server import TIMEOUT_S, Client, Server, Start, sign, until_state

_marks = itertools.count(1)
ASSIGNED_ONLY = (
    'drop policy "Coaches can view all interventions" on coach_interventions;'
    'create policy "Coaches can view assigned interventions" on coach_interventions for select to authenticated'
    " using ((select public.momentum_caller_role()) = 'coach' and assigned_coach_id = (select auth.uid()))"
)
AS_SHIPPED = (
    'drop policy "Coaches can view assigned interventions" on coach_interventions;'
    'create policy "Coaches can view all interventions" on coach_interventions'
    " for select to authenticated using ((select public.momentum_caller_role()) = 'coach')"
)


@pytest.fixture
def coach(db: Sql) -> UUID:
    return new_user(db)


@asynccontextmanager
async def coaching(server: Server, coach: UUID, *channels: str) -> AsyncIterator[Client]:
    """Connect a coach with these channels, and read the opening."""
    async with server.connect(sign(coach, app_role="coach"), channels=",".join(channels)) as client:
        await client.until("initial_state")
        yield client


async def events(client: Client, db: Sql) -> list[dict[str, Any]]:
    """Publish a mark and return the events before it. Each of these clients has one of the mark's channels."""
    mark = str(next(_marks))
    event = json.dumps({"event_type": "mark", "mark": mark})
    channels = ["interventions:coaches", "momentum_updates:all"]
    db.execute("select momentum.publish(%s, %s)", (channels, event))
    found = []
    while (came := (await client.until("realtime_event"))["event"]).get("mark") != mark:
        if came["event_type"] != "mark":
            found.append(came)
    return found


async def test_a_policy_that_narrows_holds_for_the_very_next_event(
    server: Server, db: Sql, user: UUID, coach: UUID
) -> None:
    async with coaching(server, coach, "interventions:coaches") as client:
        add_intervention(db, user)
        assert [event["event_type"] for event in await events(client, db)] == ["intervention_created"]
        db.execute(ASSIGNED_ONLY)
        for _ in range(5):
            add_intervention(db, user)
        mine = add_intervention(db, user, coach=coach)
        assert [event["intervention_id"] for event in await events(client, db)] == [str(mine)]
        db.execute(AS_SHIPPED)
        add_intervention(db, user)
        assert len(await events(client, db)) == 1


async def test_without_an_event_trigger_a_changed_policy_is_noticed_within_a_second_or_so(
    server: Server, db: Sql, user: UUID, coach: UUID
) -> None:
    db.execute("drop event trigger momentum_policies")
    async with coaching(server, coach, "interventions:coaches") as client:
        before = await number(server)
        db.execute(ASSIGNED_ONLY)
        async with asyncio.timeout(TIMEOUT_S):
            while await number(server) == before:  # until the server has published the change
                await asyncio.sleep(0.02)
        add_intervention(db, user)
        assert await events(client, db) == []


async def test_the_server_compares_the_meaning_of_changed_policies(start: Start, db: Sql) -> None:
    """Until then they count as changed, and each event is checked."""

    def changed() -> list[str]:
        rows = db.execute("select table_name from momentum.policies where changed order by 1").fetchall()
        return [name for (name,) in rows]

    db.execute('drop policy "Users can view own interventions" on coach_interventions')
    db.execute("create policy mine on coach_interventions using (user_id = auth.uid()) with check (false)")
    db.execute('alter policy "Users can view own notifications" on momentum_notifications using (true)')
    assert changed() == ["coach_interventions", "momentum_notifications"]
    async with start():
        async with asyncio.timeout(TIMEOUT_S):
            while changed() != ["momentum_notifications"]:
                await asyncio.sleep(0.05)
        # Back to a spelling that was accepted before another one.
        for spelling in ("auth.uid() = user_id", "user_id = auth.uid()", "user_id = (select auth.uid())"):
            db.execute(f"alter policy mine on coach_interventions using ({spelling})".encode())
            async with asyncio.timeout(TIMEOUT_S):
                while changed() != ["momentum_notifications"]:
                    await asyncio.sleep(0.05)
    assert db.execute("select momentum.has_changed_policies('coach_interventions')").fetchone() == (False,)
    db.execute("alter policy mine on coach_interventions using (true)")
    assert changed() == ["coach_interventions", "momentum_notifications"]


async def test_under_shipped_policies_granted_channels_need_no_query_per_event(
    server: Server, db: Sql, user: UUID, coach: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def asked(*_: object) -> set[int]:
        raise AssertionError("the database was asked")

    monkeypatch.setattr(EventFilter, "filter", asked)
    async with coaching(server, coach, "interventions:coaches") as client, server.live(user) as own:
        add_intervention(db, user, coach=coach)
        add_notification(db, user)
        assert len(await events(client, db)) == 1
        assert (await own.until("realtime_event"))["event"]["event_type"] == "intervention_created"
        assert (await own.until("realtime_event"))["event"]["event_type"] == "push_notification"


async def test_a_coach_hears_of_scores_while_the_user_is_assigned(
    server: Server, db: Sql, user: UUID, coach: UUID
) -> None:
    add_score(db, user)
    intervention = add_intervention(db, user, coach=coach)
    channel = f"momentum_updates:{user}"
    async with coaching(server, coach, channel, "interventions:coaches") as client:
        db.execute("update daily_engagement_scores set final_score = 1")
        assert [event.get("final_score") for event in await events(client, db)] == [1]
        db.execute("update coach_interventions set assigned_coach_id = null where id = %s", (intervention,))
        assert (await client.until("realtime_event"))["event"]["event_type"] == "intervention_updated"
        db.execute("update daily_engagement_scores set final_score = 2")
        lost = await client.next()
        assert (lost["type"], lost["code"], lost["refused"]) == ("error", "forbidden", [channel])
        assert await events(client, db) == []


async def test_a_deletion_is_delivered_to_callers_that_could_see_the_row(server: Server, db: Sql, user: UUID) -> None:
    coaches = [new_user(db), new_user(db)]
    db.execute(ASSIGNED_ONLY)
    async with (
        coaching(server, coaches[0], "interventions:coaches") as first,
        coaching(server, coaches[1], "interventions:coaches") as second,
        server.live(user) as own,
    ):
        gone = add_intervention(db, user, coach=coaches[0])
        await first.until("realtime_event")
        db.execute("delete from coach_interventions")
        told = [(event["event_type"], event["intervention_id"]) for event in await events(first, db)]
        assert told == [("intervention_deleted", str(gone))]
        assert await events(second, db) == []
        assert (await own.until("realtime_event"))["event"]["event_type"] == "intervention_created"
        assert (await own.until("realtime_event"))["event"]["event_type"] == "intervention_deleted"


async def test_a_row_hidden_by_an_update_is_deleted_only_for_callers_that_lost_it(
    server: Server, db: Sql, user: UUID
) -> None:
    coaches = [new_user(db), new_user(db)]
    db.execute(ASSIGNED_ONLY)
    async with (
        coaching(server, coaches[0], "interventions:coaches") as first,
        coaching(server, coaches[1], "interventions:coaches") as second,
        server.live(user) as own,
        server.connect(sign(None, role="service_role"), channels="interventions:coaches") as service,
    ):
        await service.until("initial_state")
        add_intervention(db, user, coach=coaches[0])
        assert [event["event_type"] for event in await events(first, db)] == ["intervention_created"]
        db.execute("update coach_interventions set assigned_coach_id = %s", (coaches[1],))
        kinds = [
            [(event["event_type"], event.get("out_of_sight", False)) for event in await events(client, db)]
            for client in (first, second)
        ]
        assert kinds == [[("intervention_deleted", True)], [("intervention_updated", False)]]
        assert [event["event_type"] for event in await events(service, db)] == [
            "intervention_created",
            "intervention_updated",
        ]
        for expected in ("intervention_created", "intervention_updated"):
            assert (await own.until("realtime_event"))["event"]["event_type"] == expected


@pytest.mark.parametrize("day", ["-infinity", "0044-03-15 BC"])
async def test_a_date_that_python_does_not_have_hides_no_event(
    server: Server, db: Sql, user: UUID, coach: UUID, day: str
) -> None:
    add_score(db, user)
    add_intervention(db, user, coach=coach)
    async with coaching(server, coach, f"momentum_updates:{user}") as client:
        add_score(db, user, day=f"date '{day}'")
        event = (await client.until("realtime_event"))["event"]
        assert (event["event_type"], event["channel"]) == ("momentum_score_created", f"momentum_updates:{user}")


async def test_a_policy_that_hides_a_users_own_rows(server: Server, db: Sql, user: UUID) -> None:
    async with server.live(user) as client:
        db.execute(
            "create policy hidden on coach_interventions as restrictive for select to authenticated"
            " using (intervention_type <> 'crisis_intervention')"
        )
        hidden = add_intervention(db, user)
        db.execute("update coach_interventions set intervention_type = 'crisis_intervention' where id = %s", (hidden,))
        db.execute("update coach_interventions set trigger_reason = 'secret' where id = %s", (hidden,))
        db.execute("delete from coach_interventions where id = %s", (hidden,))
        add_notification(db, user)
        seen = []
        while (event := (await client.until("realtime_event"))["event"])["event_type"] != "push_notification":
            seen.append(event)
    assert "secret" not in str(client.seen)
    # The row may be deleted before its first event is checked.
    assert [event["event_type"] for event in seen] in (
        [],
        ["intervention_created", "intervention_deleted"],
        ["intervention_deleted"],
    )


HIDDEN = (
    'drop policy "Coaches can view all interventions" on coach_interventions;'
    "create policy v1 on coach_interventions for select to authenticated"
    " using ((select public.momentum_caller_role()) = 'coach' and status <> 'in_progress')"
)


@pytest.mark.parametrize("changed_before", [True, False], ids=["policies changed before", "policies changed since"])
async def test_a_version_that_was_hidden_stays_so_when_the_row_can_be_seen_again(
    server: Server, db: Sql, user: UUID, coach: UUID, changed_before: bool
) -> None:
    """A resume does not deliver versions of a row that were hidden from coaches."""
    async with coaching(server, coach, "interventions:coaches") as client:
        await events(client, db)
        last = client.seen[-1]["event"]["id"]
    if changed_before:
        db.execute(HIDDEN)
    add_intervention(db, user)
    db.execute("update coach_interventions set status = 'in_progress', trigger_reason = 'SECRET'")
    db.execute("update coach_interventions set status = 'scheduled', trigger_reason = 'call'")
    if not changed_before:
        db.execute(HIDDEN)
    async with server.connect(
        sign(coach, app_role="coach"), channels="interventions:coaches", last_event_id=last
    ) as again:
        told = [(event["event_type"], event["trigger_reason"]) for event in await events(again, db)]
    assert "SECRET" not in str(again.seen)
    assert told[-1] == ("intervention_updated", "call")
    if changed_before:
        assert told == [
            ("intervention_created", "fell"), ("intervention_deleted", "fell"), ("intervention_updated", "call")
        ]  # fmt: skip


async def test_a_row_deleted_before_the_policies_changed_is_judged_by_its_last_version(
    server: Server, db: Sql, user: UUID, coach: UUID
) -> None:
    """The event carries the last version, so a later policy does not withhold it and leave a stale row."""
    async with coaching(server, coach, "interventions:coaches") as client:
        await events(client, db)
        last = client.seen[-1]["event"]["id"]
    confidential, plain = add_intervention(db, user), add_intervention(db, user)
    db.execute(
        "update coach_interventions set trigger_pattern = '{\"confidential\": true}' where id = %s", (confidential,)
    )
    db.execute("delete from coach_interventions")
    db.execute(
        "create policy discreet on coach_interventions as restrictive for select to authenticated"
        " using ((trigger_pattern ->> 'confidential') is distinct from 'true')"
    )
    async with server.connect(
        sign(coach, app_role="coach"), channels="interventions:coaches", last_event_id=last
    ) as again:
        found = [(event["event_type"], event["intervention_id"]) for event in await events(again, db)]
        assert found == [("intervention_deleted", str(plain))]


async def test_a_policy_that_fails_on_one_row_withholds_that_and_nothing_else(
    server: Server, db: Sql, user: UUID, coach: UUID
) -> None:
    db.execute(
        "create policy strange on coach_interventions as restrictive for select to authenticated"
        " using (intervention_type = 'check_in' or trigger_reason::int > 0)"
    )
    async with coaching(server, coach, "interventions:coaches") as client:
        one, broken, two = (add_intervention(db, user) for _ in range(3))
        db.execute("update coach_interventions set intervention_type = 'manual_outreach' where id = %s", (broken,))
        add_intervention(db, user)
        told = await events(client, db)
    assert [event["intervention_id"] for event in told if event["event_type"] == "intervention_created"][:3] == [
        str(one), str(broken), str(two)
    ]  # fmt: skip
    assert [event["event_type"] for event in told[3:]] == ["intervention_deleted", "intervention_created"]
    assert told[3]["out_of_sight"]  # a SELECT of it fails now


async def test_cache_keys_of_hidden_scores_are_not_delivered(server: Server, db: Sql, user: UUID) -> None:
    async with server.live(user) as client:
        add_score(db, user)
        assert (await client.next())["type"] == "cache_invalidation"
        await client.until("realtime_event")
        db.execute('drop policy "Users can view own momentum scores" on daily_engagement_scores')
        db.execute("update daily_engagement_scores set final_score = 1")
        add_notification(db, user)
        assert (await client.until("realtime_event"))["event"]["event_type"] == "push_notification"
    assert [message["type"] for message in client.seen].count("cache_invalidation") == 1


async def test_a_user_without_any_visible_row_keeps_the_channel_of_cache_keys(
    server: Server, db: Sql, user: UUID
) -> None:
    db.execute("create policy more on daily_engagement_scores for select to authenticated using (false)")
    add_score(db, user)
    async with server.live(user) as client:
        db.execute("delete from daily_engagement_scores")
        await client.until("realtime_event")
        add_score(db, user)
        assert (await client.until("cache_invalidation"))["cache_keys"]
    assert "error" not in [message["type"] for message in client.seen]


async def test_an_operators_own_cache_keys_are_delivered_under_changed_policies(
    server: Server, db: Sql, user: UUID, other: UUID
) -> None:
    db.execute("create policy more on daily_engagement_scores for select to authenticated using (false)")
    async with server.live(user) as client, server.live(other) as somebody:
        event = json.dumps({"event_type": "profile_changed", "user_id": str(user), "cache_keys": ["profile"]})
        db.execute("select momentum.publish(array['cache_invalidation'], %s)", (event,))
        assert (await client.until("cache_invalidation"))["cache_keys"] == ["profile"]
        add_notification(db, other)
        await somebody.until("realtime_event")
    assert "cache_invalidation" not in [message["type"] for message in somebody.seen]


async def test_unreadable_policies_count_as_changed_and_do_not_stop_the_feed(
    server: Server, db: Sql, user: UUID, coach: UUID
) -> None:
    async with coaching(server, coach, "interventions:coaches") as client:
        db.execute("alter table coach_interventions rename column assigned_coach_id to coach")
        add_intervention_without_coach(db, user)
        assert len(await events(client, db)) == 1
        health = await until_state(server, "live")
        assert health["status"] == "healthy"


def add_intervention_without_coach(db: Sql, user: UUID) -> None:
    db.execute(
        "insert into coach_interventions (user_id, intervention_type, trigger_date, trigger_reason)"
        " values (%s, 'check_in', current_date, 'x')",
        (user,),
    )


async def test_a_locked_table_does_not_stop_the_feed(server: Server, db: Sql, database: str, user: UUID) -> None:
    async with server.live(user) as client:
        with psycopg.connect(database) as holder:
            holder.execute("lock table coach_interventions in access exclusive mode")
            health = await until_state(server, "live")
            ends = health["uptime"] + 3  # seconds; policies are checked every second
            while health["uptime"] < ends:
                add_notification(db, user)
                assert (await client.until("realtime_event"))["event"]["event_type"] == "push_notification"
                health = await until_state(server, "live")
                assert health["capture"]["lag_ms"] < 4_000


async def test_events_with_a_column_that_the_caller_may_not_select_are_withheld(
    server: Server, db: Sql, user: UUID, coach: UUID
) -> None:
    async with coaching(server, coach, "interventions:coaches") as client:
        db.execute("revoke select on coach_interventions from authenticated")
        db.execute("grant select (id, user_id, status, assigned_coach_id) on coach_interventions to authenticated")
        add_intervention(db, user)
        db.execute("delete from coach_interventions")
        assert await events(client, db) == []
        db.execute("grant select on coach_interventions to authenticated")
        add_intervention(db, user)
        assert len(await events(client, db)) == 1


async def test_missed_events_over_http_are_checked_like_those_of_a_resume(
    server: Server, db: Sql, user: UUID, coach: UUID
) -> None:
    db.execute(ASSIGNED_ONLY)
    async with coaching(server, coach, "interventions:coaches") as client:
        await events(client, db)
        last = client.seen[-1]["event"]["id"]
    add_intervention(db, user)
    mine = add_intervention(db, user, coach=coach)
    asked = {"last_event_id": last, "channels": ["interventions:coaches"]}
    async with server.http(sign(coach, app_role="coach")) as http, asyncio.timeout(10):
        while not (answer := (await http.post("/sync/events", json=asked)).json())["events"]:
            await asyncio.sleep(0.01)
    assert [event["intervention_id"] for event in answer["events"]] == [str(mine)]
    async with server.connect(
        sign(coach, app_role="coach"), channels="interventions:coaches", last_event_id=last
    ) as again:
        assert (await again.next())["resumed"]
        assert (await again.next())["event"]["intervention_id"] == str(mine)


async def number(server: Server) -> str:
    """Return the id of the server's last event."""
    return str((await until_state(server, "live"))["capture"]["last_event_id"])


def intervene(conninfo: str, user: UUID, coach: UUID) -> None:
    """Insert an intervention on a separate connection. Return once the commit has returned."""
    with psycopg.connect(conninfo, autocommit=True) as writer:
        add_intervention(writer, user, coach=coach)


async def test_a_commit_that_is_in_the_wal_and_not_yet_visible_is_waited_for(
    start: Start, own_cluster: Embedded
) -> None:
    """While a commit waits for a standby, its rows cannot be selected, so checked channels wait as well."""
    with psycopg.connect(own_cluster.conninfo, autocommit=True) as db:
        db.execute("set synchronous_commit = local")
        coach, user = new_user(db), new_user(db)
        db.execute(ASSIGNED_ONLY)
        add_intervention(db, user, coach=coach)
        async with start(conninfo=own_cluster.conninfo) as server, server.live(user) as own:
            async with coaching(server, coach, "interventions:coaches") as client:
                hold_commits(db)
                before = await number(server)
                writing = asyncio.ensure_future(asyncio.to_thread(intervene, own_cluster.conninfo, user, coach))
                async with asyncio.timeout(TIMEOUT_S):
                    while await number(server) == before:
                        await asyncio.sleep(0.01)
                add_notification(db, user)  # committed after it, but visible
                asking = asyncio.ensure_future(client.until("realtime_event"))
                assert not (await asyncio.wait([asking, writing], timeout=0.3))[0]
                release_commits(db)
                await writing
                assert (await asking)["event"]["event_type"] == "intervention_created"
                kinds = [(await own.until("realtime_event"))["event"]["event_type"] for _ in range(2)]
                assert kinds == ["intervention_created", "push_notification"]


def revoke(conninfo: str, user: UUID) -> None:
    """Revoke the user's tokens on a separate connection. Return once the commit has returned."""
    with psycopg.connect(conninfo, autocommit=True) as writer:
        writer.execute("select momentum.revoke(%s)", (user,))


async def test_a_revocation_that_is_not_visible_yet_already_closes_connections(
    start: Start, own_cluster: Embedded
) -> None:
    with psycopg.connect(own_cluster.conninfo, autocommit=True) as db:
        db.execute("set synchronous_commit = local")
        user, other = new_user(db), new_user(db)
        token = sign(user)
        async with start(conninfo=own_cluster.conninfo) as server, server.connect(token) as client:
            await client.until("initial_state")
            hold_commits(db)
            revoking = asyncio.ensure_future(asyncio.to_thread(revoke, own_cluster.conninfo, user))
            assert (await client.closed())[0] == 4401
            async with server.connect(token) as again, server.live(other):
                hearing = asyncio.ensure_future(again.closed())
                assert not (await asyncio.wait([hearing], timeout=0.3))[0]
                release_commits(db)
                await revoking
                assert (await hearing)[0] == 4401
                assert again.seen == []


async def test_questions_of_one_round_trip_see_the_same(server: Server, user: UUID) -> None:
    pool = CallerPool(server.settings.database_url or "", QueryLimits(), size=1)
    await pool.open()
    caller = Identity("authenticated", user, json.dumps({"sub": str(user), "iat": int(time.time())}), None)
    query = "select current_setting('transaction_isolation'), pg_current_snapshot()::text, current_user::text"
    answers = await asyncio.gather(*[pool.ask(caller, (query, {})) for _ in range(10)])
    await pool.close()
    assert {row[0] for ((row,),) in answers} == {"repeatable read"}
    assert {row[2] for ((row,),) in answers} == {"authenticated"}


async def test_revoked_connections_close_and_their_tokens_open_nothing(
    server: Server, db: Sql, user: UUID, other: UUID
) -> None:
    token = sign(user)
    async with (
        server.connect(token, client_id="phone") as phone,
        server.connect(token, client_id="watch") as watch,
        server.live(other) as somebody,
    ):
        await phone.until("initial_state")
        await watch.until("initial_state")
        db.execute("set role service_role")
        db.execute("select momentum.revoke(%s)", (user,))
        db.execute("reset role")
        assert (await phone.closed())[0] == 4401
        assert (await watch.closed())[0] == 4401
        assert (await somebody.ask({"type": "ping"}))["type"] == "pong"
    async with server.connect(token) as again:
        assert (await again.closed())[0] == 4401
    async with server.http(token) as http:
        for path, body in (
            ("momentum", {"user_id": str(user)}),
            ("interventions", {"user_id": str(user)}),
            ("notifications", {"user_id": str(user)}),
        ):
            answer = await http.post(f"/sync/{path}", json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "token_revoked")
    async with server.connect(sign(user, iat=int(time.time()) + 2)) as fresh:
        assert (await fresh.next())["type"] == "subscription_confirmed"


async def test_a_new_token_without_the_right_to_the_user_ends_the_connection(
    server: Server, user: UUID, other: UUID
) -> None:
    async with server.connect(sign(user, app_role="admin"), user_id=other) as client:
        await client.until("initial_state")
        await client.send({"type": "authenticate", "token": sign(user)})
        assert (await client.closed())[0] == 4403


async def test_roles_with_their_own_sql_can_be_kept_from_forging_events(server: Server, db: Sql, user: UUID) -> None:
    """The statements of SECURITY.md."""
    functions = "pg_logical_emit_message(boolean, text, text, boolean)"
    bytes_too = "pg_logical_emit_message(boolean, text, bytea, boolean)"
    db.execute(f"revoke execute on function {functions}, {bytes_too} from public")
    db.execute(f"grant execute on function {functions} to momentum_server")
    db.execute("create role somebody_with_sql")
    try:
        forged = '{"channels": ["momentum_updates:all"], "event": {}}'
        with pytest.raises(psycopg.errors.InsufficientPrivilege), db.transaction():
            db.execute("set local role somebody_with_sql")
            db.execute("select pg_logical_emit_message(true, 'momentum_sync', %s)", (forged,))
        async with server.live(user) as client:
            add_notification(db, user)
            assert (await client.until("realtime_event"))["event"]["event_type"] == "push_notification"
            lag = (await until_state(server, "live"))["capture"]["lag_ms"]
            assert lag < 5_000
    finally:
        db.execute("drop role somebody_with_sql")
        db.execute(f"grant execute on function {functions}, {bytes_too} to public")
