-- Existing tables are adopted only if they have the columns that the triggers read: a trigger that reads a missing
-- column would fail the app's writes.
do $$
declare
    wrong text;
begin
    select string_agg(
        format('%s.%s (%s%s)', n.table_name, n.column_name, n.type_name, case when n.required then ' not null' else '' end),
        ', ' order by n.place)
    into wrong
    from (values
        (1, 'daily_engagement_scores', 'id', 'uuid', true),
        (2, 'daily_engagement_scores', 'user_id', 'uuid', true),
        (3, 'daily_engagement_scores', 'score_date', 'date', true),
        (4, 'daily_engagement_scores', 'momentum_state', 'text', false),
        (5, 'daily_engagement_scores', 'final_score', 'numeric', false),
        (6, 'daily_engagement_scores', 'events_count', 'integer', false),
        (7, 'daily_engagement_scores', 'breakdown', 'jsonb', false),
        (8, 'daily_engagement_scores', 'updated_at', 'timestamp with time zone', false),
        (9, 'momentum_notifications', 'id', 'uuid', true),
        (10, 'momentum_notifications', 'user_id', 'uuid', true),
        (11, 'momentum_notifications', 'notification_type', 'text', false),
        (12, 'momentum_notifications', 'title', 'text', false),
        (13, 'momentum_notifications', 'message', 'text', false),
        (14, 'momentum_notifications', 'action_type', 'text', false),
        (15, 'momentum_notifications', 'action_data', 'jsonb', false),
        (16, 'momentum_notifications', 'status', 'text', false),
        (17, 'momentum_notifications', 'opened_at', 'timestamp with time zone', false),
        (18, 'momentum_notifications', 'created_at', 'timestamp with time zone', false),
        (19, 'coach_interventions', 'id', 'uuid', true),
        (20, 'coach_interventions', 'user_id', 'uuid', true),
        (21, 'coach_interventions', 'intervention_type', 'text', false),
        (22, 'coach_interventions', 'trigger_reason', 'text', false),
        (23, 'coach_interventions', 'status', 'text', false),
        (24, 'coach_interventions', 'assigned_coach_id', 'uuid', false),
        (25, 'coach_interventions', 'scheduled_date', 'date', false),
        (26, 'coach_interventions', 'created_at', 'timestamp with time zone', false),
        (27, 'realtime_event_metrics', 'event_type', 'text', false),
        (28, 'realtime_event_metrics', 'channel_name', 'text', false),
        (29, 'realtime_event_metrics', 'user_id', 'uuid', false),
        (30, 'realtime_event_metrics', 'payload_size', 'integer', false),
        (31, 'realtime_event_metrics', 'processing_time_ms', 'integer', false),
        (32, 'realtime_event_metrics', 'success', 'boolean', false),
        (33, 'realtime_event_metrics', 'error_message', 'text', false),
        (34, 'realtime_event_metrics', 'created_at', 'timestamp with time zone', false)
    ) as n (place, table_name, column_name, type_name, required)
    where to_regclass('public.' || n.table_name) is not null and not exists (
        select from pg_class c
        join pg_attribute a on a.attrelid = c.oid and a.attname = n.column_name and not a.attisdropped
        where c.oid = to_regclass('public.' || n.table_name) and c.relkind in ('r', 'p') and c.relpersistence = 'p'
            and (a.attnotnull or not n.required)
            and replace(format_type(a.atttypid, null), 'character varying', 'text') = n.type_name);
    if wrong is not null then
        raise exception 'tables of the app lack columns that Momentum Sync needs: %', wrong
            using errcode = 'undefined_column',
                hint = 'Nothing was changed. Add or alter the columns, or rename the table if it has another purpose.';
    end if;
    -- The same for objects of others that would be replaced: a schema or functions of these names, if no version of
    -- these migrations was applied.
    if to_regclass('momentum.installed') is null then
        select string_agg(distinct o.name, ', ' order by o.name) into wrong
        from (
            select 'schema momentum' as name
            from pg_class c where c.relnamespace = to_regnamespace('momentum')
            union all
            select 'schema momentum' from pg_proc p where p.pronamespace = to_regnamespace('momentum')
            union all
            select 'function ' || p.oid::regprocedure
            from pg_proc p
            where p.pronamespace = 'public'::regnamespace and p.proname in (
                'momentum_rfc3339', 'momentum_caller_role', 'momentum_is_unbound', 'momentum_may_act_for',
                'momentum_must_act_for', 'momentum_grant')
        ) as o;
        if wrong is not null and to_regclass('momentum.settings') is null then
            raise exception 'objects with names of Momentum Sync exist and were not created by it: %', wrong
                using errcode = 'duplicate_object', hint = 'Nothing was changed. Rename or drop these objects.';
        end if;
    end if;
end;
$$;
