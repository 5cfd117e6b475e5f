"""Rows that the overview of several users reads."""

from __future__ import annotations

from uuid import UUID

from momentum_sync.domain.reads import SQL, overview_query
from tests.fixtures.postgres import As, Sql, add_intervention, add_score, new_user


def test_an_overview_reads_no_rows_that_the_policies_would_leave_out(db: Sql, acting: As, user: UUID) -> None:
    """The cost depends on the caller's rows, not on other people's."""
    coach = new_user(db)
    add_intervention(db, user, coach=coach)
    add_score(db, user)
    db.execute("insert into auth.users (id) select gen_random_uuid() from generate_series(1, 3000)")
    db.execute(
        "insert into daily_engagement_scores (user_id, score_date, momentum_state)"
        " select id, current_date - 1, 'Steady' from auth.users; analyze"
    )
    for subject, role in ((user, None), (coach, "coach")):
        with acting(subject, app_role=role) as connection:
            connection.execute("select set_config('momentum.changed', 'none', true)")
            row = connection.execute(SQL["overview_users"]).fetchone()
            assert row is not None
            assert user in row[0]
            asked = {"days": 30, "people": 10, "interventions": 10, "users": row[0]}
            connection.execute(overview_query(some=True, all_interventions=row[1]), asked)
            read = connection.execute(
                "select seq_scan, idx_tup_fetch from pg_stat_xact_user_tables where relname = 'daily_engagement_scores'"
            ).fetchone()
            assert read is not None
            assert read[0] == 0
            assert read[1] < 20
