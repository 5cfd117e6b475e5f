"""Tables and channels of the momentum app: contract, sections 1 and 2."""

from __future__ import annotations

from momentum_sync.schema import Column, Schema, TableSpec

SCORES = "daily_engagement_scores"
INTERVENTIONS = "coach_interventions"
NOTIFICATIONS = "momentum_notifications"
# Delivered per user: as one global channel, as in the seed, it would tell every client who is active (contract, section
# 4).
CACHE_INVALIDATION = "cache_invalidation"
COACHES = "interventions:coaches"
ALL_SCORES = "momentum_updates:all"

_USER = Column("user_id", "uuid")

SCHEMA = Schema(
    tables=(
        TableSpec(
            name=SCORES,
            event_types=("momentum_score_created", "momentum_score_updated", "momentum_score_deleted"),
            key=(_USER, Column("score_date", "date")),
            version=(Column("momentum_state"), Column("final_score", "numeric")),
            derived={CACHE_INVALIDATION: (_USER,)},
        ),
        TableSpec(
            name=INTERVENTIONS,
            event_types=("intervention_created", "intervention_updated", "intervention_deleted"),
            key=(_USER, Column("id", "uuid", "intervention_id")),
            version=(
                Column("intervention_type"),
                Column("trigger_reason"),
                Column("status"),
                Column("scheduled_date", "date"),
            ),
        ),
        TableSpec(
            name=NOTIFICATIONS,
            event_types=("push_notification", "notification_removed"),
            key=(_USER, Column("id", "uuid", "notification_id")),
            version=(
                Column("notification_type"),
                Column("title"),
                Column("message"),
                Column("action_type"),
                Column("action_data", "jsonb"),
                Column("status"),
            ),
        ),
    ),
    own_channels=(
        "momentum_updates:{user_id}",
        "interventions:{user_id}",
        "notifications:{user_id}",
        CACHE_INVALIDATION,
    ),
    shared_channels=frozenset({COACHES, ALL_SCORES}),
    per_user_channels=frozenset({CACHE_INVALIDATION}),
    grant="momentum_grant",
    may_act_for="momentum_may_act_for",
    claims={"public.momentum_caller_role": ("app_metadata", "role")},
)
