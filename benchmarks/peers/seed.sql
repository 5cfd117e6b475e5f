-- The triggers of the original requirements: two NOTIFYs per score, on channels of its user and of all users, and one
-- per cache key, so six per update. They replace Momentum Sync's triggers on the same table.

create function public.seed_publish() returns trigger language plpgsql as $$
declare
    payload text := jsonb_build_object(
        'event_type', 'momentum_score_updated', 'user_id', new.user_id, 'score_date', new.score_date,
        'momentum_state', new.momentum_state, 'final_score', new.final_score,
        'previous_state', old.momentum_state, 'state_changed', new.momentum_state <> old.momentum_state,
        'timestamp', now())::text;
begin
    perform pg_notify('momentum_updates:' || new.user_id, payload);
    perform pg_notify('momentum_updates:all', payload);
    return null;
end;
$$;

create function public.seed_invalidate() returns trigger language plpgsql as $$
declare
    key text;
begin
    foreach key in array array[
        'momentum:current:' || new.user_id, 'momentum:history:' || new.user_id, 'momentum:trend:' || new.user_id,
        'momentum:breakdown:' || new.user_id || ':' || new.score_date
    ] loop
        perform pg_notify(
            'cache_invalidation',
            jsonb_build_object('cache_key', key, 'user_id', new.user_id, 'timestamp', now())::text);
    end loop;
    return null;
end;
$$;

create trigger seed_publish after update on public.daily_engagement_scores
    for each row execute function public.seed_publish();
create trigger seed_invalidate after update on public.daily_engagement_scores
    for each row execute function public.seed_invalidate();
alter table public.daily_engagement_scores disable trigger seed_publish;
alter table public.daily_engagement_scores disable trigger seed_invalidate;
